#include "cudnn_graph.h"

#include <numeric>

#include "check.h"
#include "linnet/error.h"

namespace linnet {

// Attributes are set, then the descriptor is finalized, then others may refer to it. Whoever refers keeps it alive.
class CudnnDescriptor {
 public:
  explicit CudnnDescriptor(cudnnBackendDescriptorType_t type) {
    LINNET_CALL(cudnnBackendCreateDescriptor(type, &descriptor_));
  }
  ~CudnnDescriptor() { cudnnBackendDestroyDescriptor(descriptor_); }
  CudnnDescriptor(const CudnnDescriptor&) = delete;

  cudnnBackendDescriptor_t get() const { return descriptor_; }

  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count, const void* values) {
    LINNET_CALL(cudnnBackendSetAttribute(descriptor_, name, type, count, values));
  }
  void set_ints(cudnnBackendAttributeName_t name, const std::vector<int64_t>& v) {
    set(name, CUDNN_TYPE_INT64, int64_t(v.size()), v.data());
  }
  void set(cudnnBackendAttributeName_t name, float v) { set(name, CUDNN_TYPE_FLOAT, 1, &v); }
  void set(cudnnBackendAttributeName_t name, bool v) { set(name, CUDNN_TYPE_BOOLEAN, 1, &v); }
  void set(cudnnBackendAttributeName_t name, cudnnDataType_t v) { set(name, CUDNN_TYPE_DATA_TYPE, 1, &v); }
  void set(cudnnBackendAttributeName_t name, const CudnnDescriptor& v) {
    set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &v.descriptor_);
  }

  // Up to `most` values of an attribute.
  template <class T>
  std::vector<T> get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, size_t most) const {
    std::vector<T> values(most);
    int64_t count = 0;
    LINNET_CALL(cudnnBackendGetAttribute(descriptor_, name, type, int64_t(most), &count, values.data()));
    values.resize(std::min(most, size_t(count)));
    return values;
  }

  void finalize() { LINNET_CALL(cudnnBackendFinalize(descriptor_)); }
  bool try_finalize() { return cudnnBackendFinalize(descriptor_) == CUDNN_STATUS_SUCCESS; }

 private:
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

namespace {

using Ptr = std::shared_ptr<CudnnDescriptor>;
Ptr make(cudnnBackendDescriptorType_t type) { return std::make_shared<CudnnDescriptor>(type); }

// Where an operation keeps its attributes: the three convolutions have the same ones under different names.
struct ConvNames {
  cudnnBackendDescriptorType_t type;
  cudnnBackendAttributeName_t conv, x, w, y, alpha, beta;
};
ConvNames names_of(ConvPass pass) {
  switch (pass) {
    case ConvPass::forward:
      return {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA};
    case ConvPass::backward_data:
      return {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA};
    case ConvPass::backward_weight:
      return {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA};
  }
  fail(Exit::failure, "[cudnn] unknown pass {}", int(pass));
}

using Notes = std::vector<cudnnBackendNumericalNote_t>;

bool obeys(const Notes& notes, CudnnRules rules) {
  for (const cudnnBackendNumericalNote_t note : notes) switch (note) {
      case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC:
        if (rules.deterministic) return false;
        break;
      case CUDNN_NUMERICAL_NOTE_TENSOR_CORE:
      case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS:
        if (!rules.tensor_cores) return false;
        break;
      case CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION:
      case CUDNN_NUMERICAL_NOTE_FFT:  // these lose digits, the largest tile most
      case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6:
      case CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13:
        return false;
      default:
        break;
    }
  return true;
}

std::string name_of(cudnnBackendNumericalNote_t note) {
  switch (note) {
    case CUDNN_NUMERICAL_NOTE_TENSOR_CORE:
      return "tensor core";
    case CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS:
      return "down-converted inputs";
    case CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION:
      return "reduced precision reduction";
    case CUDNN_NUMERICAL_NOTE_FFT:
      return "fft";
    case CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC:
      return "nondeterministic";
    case CUDNN_NUMERICAL_NOTE_WINOGRAD:
      return "winograd";
    case CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP:
      return "strict nan";
    default:
      return "note " + std::to_string(int(note));
  }
}

// The engine that a configuration belongs to. cuDNN fills in a descriptor that the caller has made.
Ptr engine_of(const CudnnDescriptor& config) {
  const Ptr engine = make(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t raw = engine->get();
  int64_t count = 0;
  LINNET_CALL(cudnnBackendGetAttribute(config.get(), CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                       &count, &raw));
  return engine;
}

cudnnDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return CUDNN_DATA_FLOAT;
    case DType::bf16:
      return CUDNN_DATA_BFLOAT16;
    case DType::fp16:
      return CUDNN_DATA_HALF;
    default:
      fail(Exit::failure, "[cudnn] expected f32, bf16 or fp16, got {}", linnet::name_of(dtype));
  }
}

int64_t number_of(const CudnnDescriptor& engine) {
  return engine.get<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1).at(0);
}

// "28:2=1,7=0": engine 28 with knob 2 at 1 and knob 7 at 0.
std::string tag_of(const CudnnDescriptor& config, const CudnnDescriptor& engine) {
  std::vector<Ptr> knobs;  // asked for their number, cuDNN says none
  std::vector<cudnnBackendDescriptor_t> raw;
  for (int i = 0; i < CUDNN_KNOB_TYPE_COUNTS; ++i) {
    knobs.push_back(make(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR));
    raw.push_back(knobs.back()->get());
  }
  int64_t count = 0;
  LINNET_CALL(cudnnBackendGetAttribute(config.get(), CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                       int64_t(raw.size()), &count, raw.data()));
  knobs.resize(size_t(count));
  std::string tag = fmt::format("{}:", number_of(engine));
  for (const Ptr& knob : knobs) {
    const auto type = knob->get<cudnnBackendKnobType_t>(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1);
    const auto value = knob->get<int64_t>(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1);
    tag += fmt::format("{}{}={}", knob == knobs.front() ? "" : ",", int(type.at(0)), value.at(0));
  }
  return tag;
}

// The engine configurations that the heuristics offer for an operation graph, best first.
std::vector<Ptr> offered(const CudnnDescriptor& graph, const CudnnDescriptor* described, cudnnBackendHeurMode_t mode) {
  CudnnDescriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  if (described) heuristics.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, *described);
  if (!heuristics.try_finalize()) return {};  // this mode has nothing for this operation
  int64_t count = 0;
  LINNET_CALL(cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                       0, &count, nullptr));
  std::vector<Ptr> configs;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (int64_t i = 0; i < count; ++i) {
    configs.push_back(make(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
    raw.push_back(configs.back()->get());
  }
  if (count > 0)
    LINNET_CALL(cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                         count, &count, raw.data()));
  configs.resize(size_t(count));
  return configs;
}

}  // namespace

CudnnDevice CudnnDevice::of(cudnnContext* handle) {
  CudnnDevice device;
  device.properties_ = make(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  device.properties_->set(CUDNN_ATTR_DEVICEPROP_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
  device.properties_->finalize();
  device.handle_ = handle;
  return device;
}

CudnnDevice CudnnDevice::described_by(const std::string& json) {
  CudnnDevice device;
  device.properties_ = make(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  device.properties_->set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, int64_t(json.size()),
                          json.data());
  device.properties_->finalize();
  return device;
}

int CudnnGraph::tensor(const std::array<int64_t, 4>& nchw, DType dtype) {
  const auto [n, c, h, w] = nchw;
  const auto id = int64_t(tensors_.size());
  const Ptr t = make(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  t->set(CUDNN_ATTR_TENSOR_DATA_TYPE, type_of(dtype));
  t->set_ints(CUDNN_ATTR_TENSOR_DIMENSIONS, {n, c, h, w});
  t->set_ints(CUDNN_ATTR_TENSOR_STRIDES, {h * w * c, 1, w * c, c});
  t->set_ints(CUDNN_ATTR_TENSOR_UNIQUE_ID, {id});
  t->set_ints(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, {16});
  t->set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, false);
  t->finalize();
  tensors_.push_back(t);
  return int(id);
}

void CudnnGraph::convolution(ConvPass pass, int x, int w, int y, int64_t stride, int64_t pad) {
  const Ptr conv = make(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
  conv->set_ints(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, {2});
  conv->set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_DATA_FLOAT);
  conv->set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
  conv->set_ints(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, {pad, pad});
  conv->set_ints(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, {pad, pad});
  conv->set_ints(CUDNN_ATTR_CONVOLUTION_DILATIONS, {1, 1});
  conv->set_ints(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, {stride, stride});
  conv->finalize();
  others_.push_back(conv);

  const ConvNames names = names_of(pass);
  const Ptr op = make(names.type);
  op->set(names.conv, *conv);
  op->set(names.x, *tensors_[size_t(x)]);
  op->set(names.w, *tensors_[size_t(w)]);
  op->set(names.y, *tensors_[size_t(y)]);
  op->set(names.alpha, 1.f);
  op->set(names.beta, 0.f);  // the output is overwritten
  op->finalize();
  operations_.push_back(op);
}

std::vector<CudnnPlan> CudnnGraph::plans(const CudnnDevice& device, CudnnRules rules, const std::string& what,
                                         size_t most, const std::string& tag) const {
  const Ptr graph = make(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  std::vector<cudnnBackendDescriptor_t> raw;
  for (const Ptr& op : operations_) raw.push_back(op->get());
  graph->set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, int64_t(raw.size()), raw.data());
  cudnnContext* const handle = device.handle_;  // null where the device is only described
  if (handle) graph->set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
  graph->finalize();

  size_t seen = 0, allowed = 0;
  std::vector<CudnnPlan> plans;
  for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
    if (!plans.empty()) break;  // the second list is for where the first one has nothing
    for (const Ptr& config : offered(*graph, handle ? nullptr : device.properties_.get(), mode)) {
      if (plans.size() == most) break;
      ++seen;
      const Ptr engine = engine_of(*config);
      const Notes notes = engine->get<cudnnBackendNumericalNote_t>(
          CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, CUDNN_NUMERICAL_NOTE_TYPE_COUNT);
      if (!obeys(notes, rules)) continue;
      ++allowed;
      CudnnPlan plan;
      plan.tag_ = tag_of(*config, *engine);
      if (!tag.empty() && plan.tag_ != tag) continue;
      const Ptr made = make(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
      made->set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, *config);
      if (handle)
        made->set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
      else
        made->set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, *device.properties_);
      if (!made->try_finalize()) continue;

      for (const auto& group : {tensors_, others_, operations_, {device.properties_, graph, engine, config, made}})
        plan.parts_.insert(plan.parts_.end(), group.begin(), group.end());
      plan.workspace_ = size_t(made->get<int64_t>(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1).at(0));
      std::string text;
      for (const cudnnBackendNumericalNote_t note : notes) text += (text.empty() ? "" : ", ") + name_of(note);
      plan.engine_ = fmt::format("engine {} [{}]", number_of(*engine), text.empty() ? "no notes" : text);
      plans.push_back(std::move(plan));
    }
  }
  if (plans.empty() && tag.empty())
    fail(Exit::device,
         "cuDNN {} has no plan for {}: {} engine configurations were offered, {} obey the rules ({}, {}), "
         "none of these builds",
         cudnnGetVersion(), what, seen, allowed, rules.deterministic ? "deterministic" : "nondeterministic allowed",
         rules.tensor_cores ? "tensor cores allowed" : "no TF32");
  return plans;
}

void CudnnPlan::run(cudnnContext* handle, const std::vector<void*>& tensors, void* workspace) const {
  std::vector<int64_t> ids(tensors.size());
  std::iota(ids.begin(), ids.end(), 0);
  CudnnDescriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set_ints(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, ids);
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, int64_t(tensors.size()), tensors.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
  pack.finalize();
  LINNET_CALL(cudnnBackendExecute(handle, parts_.back()->get(), pack.get()));
}

}  // namespace linnet
