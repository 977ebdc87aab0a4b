#include "linnet/onnx.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <variant>

#include "linnet/run.h"
#include "linnet/weights.h"
#include "proto/onnx.pb.h"  // written by protoc
#include "src/core/json.h"

namespace linnet {

namespace {

constexpr int64_t kOpset = 17, kIrVersion = 8;

struct Node {
  using Value = std::variant<int64_t, float, std::vector<int64_t>>;
  std::string op;
  std::vector<std::string> inputs;
  std::string output;
  std::vector<std::pair<std::string, Value>> attributes;
};

struct Constant {
  std::vector<int64_t> shape;
  std::vector<float> floats;
  std::vector<int64_t> ints;  // if there are no floats
};

struct Graph {
  std::vector<Node> nodes;
  std::map<std::string, Constant> constants;

  std::string add(Node node) {
    node.output = node.op + "_" + std::to_string(nodes.size());
    nodes.push_back(std::move(node));
    return nodes.back().output;
  }
  // Small integers that ONNX wants as tensors.
  std::string integers(const std::vector<int64_t>& values) {
    std::string name = "ints";
    for (const int64_t v : values) name += "_" + std::to_string(v);
    constants[name] = {{int64_t(values.size())}, {}, values};
    return name;
  }
};

[[noreturn]] void refuse(const char* what) { fail(Exit::usage, "[export] {} has no form in the ONNX export", what); }

struct HostBlock : Block {
  explicit HostBlock(size_t size) {
    bytes = (size + 63) / 64 * 64;
    data = std::aligned_alloc(64, std::max<size_t>(bytes, 64));
    if (!data) throw std::bad_alloc();
  }
  ~HostBlock() override { std::free(data); }
};

// A backend that computes nothing and writes down what a forward pass in evaluation mode asks for. A value is known by
// where its tensor lies: memory that is used again gets a new name when it is written.
class Recorder final : public Backend {
 public:
  Graph graph;

  // Before the forward pass: parameters and buffers have their names.
  void name_parameters(ParamStore& store) {
    for (const Param* p : store.params()) {
      values_[p->compute.raw()] = {p->name, p->shape};
      flattened_[p->compute.raw()] = p->flattened.rank() == 3;
    }
    for (const Buffer& b : store.buffers()) values_[b.value.raw()] = {b.name, b.shape};
  }
  void set(const Tensor& t, const std::string& name) { values_[t.raw()] = {name, t.shape()}; }

  // The name of a value. Images are [n, c, h, w] there: read as rows, one is flattened.
  std::string get(const Tensor& t, bool* was_image = nullptr) {
    const auto found = values_.find(t.raw());
    require(found != values_.end(), "[export] a value of shape {} comes from nowhere", t.shape());
    const auto& [name, shape] = found->second;
    if (shape.rank() != 4 || t.rank() != 2) return name;
    if (was_image) *was_image = shape[1] * shape[2] > 1;
    return graph.add({"Flatten", {name}, "", {{"axis", int64_t(1)}}});
  }

  Device device() const override { return Device::cpu; }
  std::vector<std::pair<std::string, std::string>> info() const override { return {{"device", "none"}}; }
  std::shared_ptr<Block> allocate(size_t bytes) override { return std::make_shared<HostBlock>(bytes); }
  void upload(const Tensor& dst, const void* host) override { move(dst.raw(), host, dst.bytes()); }
  void download(void* host, const Tensor& src) override { move(host, src.raw(), src.bytes()); }
  void copy(const Tensor& dst, const Tensor& src) override { move(dst.raw(), src.raw(), src.bytes()); }
  void zero(const Tensor& dst) override {
    if (dst.bytes() > 0) std::memset(dst.raw(), 0, dst.bytes());
  }
  void synchronize() override {}

  bool conv_forward(const Tensor& y, const Tensor& x, const Tensor& w, Conv c, const Tensor*) override {
    const Shape& k = w.shape();
    set(y, graph.add({"Conv", {get(x), get(w)}, "", window(k[1], k[2], c.stride, c.pad)}));
    return false;
  }
  void bn_forward(const Tensor& y, const Tensor&, const Tensor& x, const Tensor* residual, const BnState& s, Bn bn,
                  bool train, const Tensor*) override {
    if (train) refuse("training");
    std::string value = graph.add({"BatchNormalization",
                                   {get(x), get(s.scale), get(s.bias), get(s.mean), get(s.var)},
                                   "",
                                   {{"epsilon", bn.eps}}});
    if (residual) value = graph.add({"Add", {value, get(*residual)}, "", {}});
    if (bn.relu) value = graph.add({"Relu", {value}, "", {}});
    set(y, value);
  }
  void matmul(const Tensor& c, const Tensor& a, bool ta, const Tensor& b, bool tb) override {
    bool image = false;
    const std::string rows = get(a, &image);
    if (image && !flattened_[b.raw()])
      fail(Exit::usage,
           "[export] {} reads a flattened image in Linnet's order; build its Linear from the image's shape", get(b));
    set(c, graph.add({"Gemm", {rows, get(b)}, "", {{"transA", int64_t(ta)}, {"transB", int64_t(tb)}}}));
  }
  void bias_add(const Tensor& y, const Tensor& x, const Tensor& bias) override {
    const std::string value = get(x);
    Node& last = graph.nodes.back();
    if (last.op == "Gemm" && last.output == value && last.inputs.size() == 2) {
      last.inputs.push_back(get(bias));
      set(y, value);
    } else {
      set(y, graph.add({"Add", {value, get(bias)}, "", {}}));
    }
  }
  void cast(const Tensor& y, const Tensor& x) override { set(y, get(x)); }
  void unary(const Unary& op, const Tensor& y, const Tensor& x) override {
    Node node{"", {get(x)}, "", {}};
    if (std::holds_alternative<Relu>(op))
      node.op = "Relu";
    else if (std::holds_alternative<Sigmoid>(op))
      node.op = "Sigmoid";
    else if (std::holds_alternative<Tanh>(op))
      node.op = "Tanh";
    else if (const auto* leaky = std::get_if<LeakyRelu>(&op))
      node = {"LeakyRelu", node.inputs, "", {{"alpha", leaky->negative_slope}}};
    else
      refuse("this activation");
    set(y, graph.add(std::move(node)));
  }
  void add(const Tensor& y, const Tensor& a, const Tensor& b) override {
    const std::string left = get(a), right = get(b);
    set(y, graph.add({"Add", {left, right}, "", {}}));
  }
  void max_pool(const Tensor& y, const Tensor&, const Tensor& x, Window w) override {
    set(y, graph.add({"MaxPool", {get(x)}, "", window(w.height, w.width, w.stride, w.pad)}));
  }
  void avg_pool(const Tensor& y, const Tensor& x, Window w) override {
    if (w.height == x.dim(1) && w.width == x.dim(2) && w.pad == 0)
      return set(y, graph.add({"GlobalAveragePool", {get(x)}, "", {}}));
    Node node{"AveragePool", {get(x)}, "", window(w.height, w.width, w.stride, w.pad)};
    node.attributes.emplace_back("count_include_pad", int64_t(1));
    set(y, graph.add(std::move(node)));
  }
  void shortcut(const Tensor& y, const Tensor& x, int stride) override {
    const int64_t end = int64_t(1) << 40, half = (y.dim(3) - x.dim(3)) / 2;
    const std::string thinned = graph.add({"Slice",
                                           {get(x), graph.integers({0, 0}), graph.integers({end, end}),
                                            graph.integers({2, 3}), graph.integers({stride, stride})},
                                           "",
                                           {}});
    set(y, graph.add({"Pad", {thinned, graph.integers({0, half, 0, 0, 0, half, 0, 0})}, "", {}}));
  }

  // What no forward pass in evaluation mode asks for.
  std::unique_ptr<Replay> capture(std::function<void()>) override { refuse("a captured step"); }
  void conv_backward_data(const Tensor&, const Tensor&, const Tensor&, Conv) override { refuse("a gradient"); }
  void conv_backward_weight(const Tensor&, const Tensor&, const Tensor&, Conv) override { refuse("a gradient"); }
  bool conv_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, Conv, const Tensor*,
                     const InputBn*, const OutputBn*) override {
    refuse("a gradient");
  }
  void bn_backward(const Tensor&, const Tensor*, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                   const Tensor&, const Tensor&, const Tensor&, Bn, const Tensor*, const Tensor*) override {
    refuse("a gradient");
  }
  void unary_grad(const Unary&, const Tensor&, const Tensor&, const Tensor&, const Tensor&) override {
    refuse("a gradient");
  }
  void scale_by(const Tensor&, const Tensor&, const Tensor&) override { refuse("a scaling"); }
  void bias_grad(const Tensor&, const Tensor&) override { refuse("a gradient"); }
  void max_pool_grad(const Tensor&, const Tensor&, const Tensor&, Window) override { refuse("a gradient"); }
  void avg_pool_grad(const Tensor&, const Tensor&, Window) override { refuse("a gradient"); }
  void shortcut_grad(const Tensor&, const Tensor&, int) override { refuse("a gradient"); }
  void dropout(const Tensor&, const Tensor&, float, uint32_t, const Tensor&) override { refuse("dropout"); }
  void group_norm(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, int, float) override {
    refuse("group norm");
  }
  void group_norm_grad(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                       const Tensor&, int) override {
    refuse("a gradient");
  }
  void softmax_loss(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Target&, float, float) override {
    refuse("a loss");
  }
  void mse_loss(const Tensor&, const Tensor&, const Tensor&, const Tensor&) override { refuse("a loss"); }
  void accumulate(const Tensor&, const Tensor&) override { refuse("a sum"); }
  void make_batch(const Tensor&, const Target&, const Tensor&, const BatchSource&, const Tensor&, int64_t) override {
    refuse("a batch");
  }
  void judge_step(const Tensor&, const Tensor&, const Tensor*, const Tensor&, Clip) override { refuse("an update"); }
  void shift(const Rule&, const Flat&, int, const Tensor&) override { refuse("an update"); }
  void update(const Rule&, const Flat&, int, Clip, const Tensor&) override { refuse("an update"); }
  void muon(const Muon&, const Flat&, const Matrix&, int, Clip, const MuonMemory&, const Tensor&) override {
    refuse("an update");
  }
  void lookahead(const Lookahead&, const Tensor&, const Tensor&, const Tensor&) override { refuse("an update"); }
  void moving_average(const Tensor&, const Tensor&, double, const Tensor&) override { refuse("an update"); }
  void commit(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t, const Tensor&) override {
    refuse("an update");
  }

 private:
  struct Value {
    std::string name;
    Shape shape;
  };
  static void move(void* to, const void* from, size_t bytes) {
    if (bytes > 0) std::memmove(to, from, bytes);
  }
  static std::vector<std::pair<std::string, Node::Value>> window(int64_t height, int64_t width, int64_t stride,
                                                                 int64_t pad) {
    return {{"kernel_shape", std::vector<int64_t>{height, width}},
            {"strides", std::vector<int64_t>{stride, stride}},
            {"pads", std::vector<int64_t>{pad, pad, pad, pad}}};
  }

  std::map<const void*, Value> values_;
  std::map<const void*, bool> flattened_;
};

// w' = w g and bias' = bias - mean g with g = scale / sqrt(var + eps), for each batch norm that alone reads a
// convolution.
void fold_batch_norms(Graph& graph) {
  std::map<std::string, int> readers;
  for (const Node& node : graph.nodes)
    for (const std::string& input : node.inputs) ++readers[input];
  std::map<std::string, size_t> made_by;
  std::map<std::string, std::string> renamed;
  std::vector<Node> kept;
  for (Node node : graph.nodes) {
    for (std::string& input : node.inputs)
      if (const auto now = renamed.find(input); now != renamed.end()) input = now->second;
    const auto source = node.op == "BatchNormalization" ? made_by.find(node.inputs[0]) : made_by.end();
    Node* conv = source == made_by.end() ? nullptr : &kept[source->second];
    if (!conv || conv->op != "Conv" || conv->inputs.size() != 2 || readers[conv->output] != 1) {
      made_by[node.output] = kept.size();
      kept.push_back(std::move(node));
      continue;
    }
    const auto eps = double(std::get<float>(node.attributes[0].second));
    Constant weight = graph.constants.at(conv->inputs[1]);
    const auto& [scale, bias, mean, var] =
        std::tie(graph.constants.at(node.inputs[1]).floats, graph.constants.at(node.inputs[2]).floats,
                 graph.constants.at(node.inputs[3]).floats, graph.constants.at(node.inputs[4]).floats);
    const size_t row = weight.floats.size() / scale.size();
    Constant folded_bias{{int64_t(scale.size())}, {}, {}};
    for (size_t c = 0; c < scale.size(); ++c) {
      const double g = double(scale[c]) / std::sqrt(double(var[c]) + eps);
      for (size_t i = c * row; i < (c + 1) * row; ++i) weight.floats[i] = float(double(weight.floats[i]) * g);
      folded_bias.floats.push_back(float(double(bias[c]) - double(mean[c]) * g));
    }
    const std::string name = conv->inputs[1] + ".folded";
    conv->inputs = {conv->inputs[0], name, name + ".bias"};
    graph.constants[name] = std::move(weight);
    graph.constants[name + ".bias"] = std::move(folded_bias);
    renamed[node.output] = conv->output;
  }
  graph.nodes = std::move(kept);
}

void add_constants(Graph& graph, const SafeTensors& weights) {
  for (const auto& [name, tensor] : weights.tensors) {
    Constant& c = graph.constants[name] = {tensor.shape, std::vector<float>(tensor.bytes.size() / sizeof(float)), {}};
    if (!c.floats.empty()) std::memcpy(c.floats.data(), tensor.bytes.data(), tensor.bytes.size());
  }
}

Constant per_channel(const std::vector<double>& values) {
  return {{1, int64_t(values.size()), 1, 1}, {values.begin(), values.end()}, {}};
}

// ---- protobuf
// --------------------------------------------------------------------------------------------------------

void write_node(const Node& node, onnx::NodeProto& out) {
  out.set_op_type(node.op);
  out.set_name(node.output);
  for (const std::string& input : node.inputs) out.add_input(input);
  out.add_output(node.output);
  for (const auto& [name, value] : node.attributes) {
    onnx::AttributeProto& a = *out.add_attribute();
    a.set_name(name);
    if (const auto* i = std::get_if<int64_t>(&value)) {
      a.set_type(onnx::AttributeProto::INT);
      a.set_i(*i);
    } else if (const auto* f = std::get_if<float>(&value)) {
      a.set_type(onnx::AttributeProto::FLOAT);
      a.set_f(*f);
    } else {
      a.set_type(onnx::AttributeProto::INTS);
      for (const int64_t v : std::get<std::vector<int64_t>>(value)) a.add_ints(v);
    }
  }
}

void write_constant(const std::string& name, const Constant& c, onnx::TensorProto& out) {
  out.set_name(name);
  for (const int64_t extent : c.shape) out.add_dims(extent);
  const bool floats = c.ints.empty();
  out.set_data_type(floats ? onnx::TensorProto::FLOAT : onnx::TensorProto::INT64);
  if (floats)
    out.set_raw_data(c.floats.data(), c.floats.size() * sizeof(float));
  else
    out.set_raw_data(c.ints.data(), c.ints.size() * sizeof(int64_t));
}

void write_value(const std::string& name, const std::vector<int64_t>& shape, onnx::ValueInfoProto& out) {
  out.set_name(name);
  auto& type = *out.mutable_type()->mutable_tensor_type();
  type.set_elem_type(onnx::TensorProto::FLOAT);
  type.mutable_shape()->add_dim()->set_dim_param("N");
  for (const int64_t extent : shape) type.mutable_shape()->add_dim()->set_dim_value(extent);
}

std::string serialise(const Graph& graph, const Trained& t, const std::string& logits, const OnnxOptions& o) {
  onnx::ModelProto model;
  model.set_ir_version(kIrVersion);
  model.set_producer_name("linnet");
  model.set_producer_version(version());
  model.add_opset_import()->set_version(kOpset);
  onnx::GraphProto& g = *model.mutable_graph();
  g.set_name(t.config.model.name);
  write_value("input", {t.options.channels, t.options.height, t.options.width}, *g.add_input());
  write_value("logits", {t.options.classes}, *g.add_output());
  std::map<std::string, int> used;
  for (Node node : graph.nodes) {
    if (node.output == logits) node.output = "logits";
    for (const std::string& input : node.inputs) ++used[input];
    write_node(node, *g.add_node());
  }
  for (const auto& [name, constant] : graph.constants)
    if (used.contains(name)) write_constant(name, constant, *g.add_initializer());
  const std::pair<const char*, std::string> facts[] = {
      {"classes", Json(t.class_names).dump(-1, ' ', false, Json::error_handler_t::replace)},
      {"input", o.normalise ? "pixel / 255" : "(pixel / 255 - mean) / std"},
      {"mean", Json(t.config.data.mean).dump()},
      {"std", Json(t.config.data.std).dump()},
      {"temperature", Json(t.calibration ? t.calibration->temperature : 1).dump()}};
  for (const auto& [key, value] : facts) {
    onnx::StringStringEntryProto& entry = *model.add_metadata_props();
    entry.set_key(key);
    entry.set_value(value);
  }
  return model.SerializeAsString();
}

}  // namespace

std::string to_onnx(const Trained& trained, const OnnxOptions& o) {
  const auto& [mean, std] = std::tie(trained.config.data.mean, trained.config.data.std);
  const auto channels = size_t(trained.options.channels);
  if (o.normalise && (mean.size() != channels || std.size() != channels))
    fail(Exit::usage, "[export] the normalisation of {} channels is not known: give --mean and --std", channels);

  Recorder recorder;
  Graph& graph = recorder.graph;
  Net net = trained.build(recorder);
  recorder.name_parameters(net.params());
  add_constants(graph, get_weights(recorder, net.params()));
  std::string input = "input";
  if (o.normalise) {
    graph.constants["mean"] = per_channel(mean);
    graph.constants["std"] = per_channel(std);
    input = graph.add({"Div", {graph.add({"Sub", {input, "mean"}, "", {}}), "std"}, "", {}});
  }
  const Tensor x =
      net.pool().empty({1, trained.options.height, trained.options.width, trained.options.channels}, DType::f32);
  recorder.set(x, input);
  Pass pass{recorder, net.pool()};
  const Tensor y = net.forward(pass, x);
  const std::string logits = recorder.get(y);
  if (o.fold_bn) fold_batch_norms(graph);
  return serialise(graph, trained, logits, o);
}

}  // namespace linnet
