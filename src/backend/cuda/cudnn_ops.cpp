#include "cudnn_ops.h"

#include <algorithm>
#include <limits>

#include "check.h"

namespace linnet {

namespace {

constexpr size_t kTimed = 8;                              // plans of a shape; the heuristics put the good ones first
constexpr size_t kTimedWorkspace = size_t(512) << 20;     // a plan that wants more is not worth its memory
constexpr int kTimedRounds = 3, kTimedRunsOfARound = 20;  // the fastest round counts

struct Event {
  Event() { LINNET_CALL(cudaEventCreate(&event)); }
  ~Event() { cudaEventDestroy(event); }
  Event(const Event&) = delete;
  cudaEvent_t event = nullptr;
};

}  // namespace

std::string to_string(const ConvShape& s) {
  constexpr const char* kPass[] = {"forward", "backward_data", "backward_weight"};
  return fmt::format("conv2d {} of {} images {}x{}x{} with {} filters {}x{}, stride {}, pad {}, in {}",
                     kPass[int(s.pass)], s.n, s.h, s.w, s.c, s.k, s.r, s.s, s.stride, s.pad, name_of(s.type));
}

CudnnRules rules_for(DType type, const BackendOptions& options) {
  return {.deterministic = options.deterministic, .tensor_cores = type != DType::f32 || options.tf32};
}

std::vector<CudnnPlan> convolution_plans(const ConvShape& s, const CudnnDevice& device, CudnnRules rules, size_t most,
                                         const std::string& tag) {
  CudnnGraph graph;
  const int x = graph.tensor({s.n, s.c, s.h, s.w}, s.type), w = graph.tensor({s.k, s.c, s.r, s.s}, s.type),
            y = graph.tensor({s.n, s.k, s.oh, s.ow}, s.type);
  graph.convolution(s.pass, x, w, y, s.stride, s.pad);
  return graph.plans(device, rules, to_string(s), most, tag);
}

std::string PlanChoices::text() const {
  if (tags.empty()) return "";
  std::string text = by + "\n";
  for (const auto& [shape, tag] : tags) text += fmt::format("{} {}\n", tag, shape);
  return text;
}

void PlanChoices::take(const std::string& text) {
  size_t begin = text.find('\n') + 1;
  if (begin == 0 || text.substr(0, begin - 1) != by) return;
  while (begin < text.size()) {
    const size_t end = std::min(text.find('\n', begin), text.size()), space = text.find(' ', begin);
    if (space < end) tags[text.substr(space + 1, end - space - 1)] = text.substr(begin, space - begin);
    begin = end + 1;
  }
}

CudnnConvolutions::CudnnConvolutions(CudaRuntime& runtime, Scratch& scratch, const BackendOptions& options)
    : runtime_(runtime), scratch_(scratch), options_(options) {
  LINNET_CALL(cudnnCreate(&handle_));
  LINNET_CALL(cudnnSetStream(handle_, runtime.stream()));
  device_ = CudnnDevice::of(handle_);
  choices_.by = fmt::format("cuDNN {} on {}", cudnnGetVersion(), runtime.info().front().second);
}

CudnnConvolutions::~CudnnConvolutions() { cudnnDestroy(handle_); }

// Of the plans that do the same, by the device's clock: as a graph, since the host's calls would take longer than a
// small convolution. Their results are thrown away. One that cannot run loses; a fault that stays comes back.
size_t CudnnConvolutions::fastest(const std::vector<CudnnPlan>& plans, const std::vector<void*>& tensors) {
  const Event begin, end;
  constexpr float kNever = std::numeric_limits<float>::infinity();
  const auto milliseconds = [&](const CudnnPlan& plan) {
    void* workspace = scratch_.at_least(plan.workspace());
    plan.run(handle_, tensors, workspace);  // the first run loads its kernel
    const std::unique_ptr<Replay> runs = runtime_.capture([&] {
      for (int i = 0; i < kTimedRunsOfARound; ++i) plan.run(handle_, tensors, workspace);
    });
    runs->run();
    float best = kNever;
    for (int round = 0; round < kTimedRounds; ++round) {
      LINNET_CALL(cudaEventRecord(begin.event, runtime_.stream()));
      runs->run();
      LINNET_CALL(cudaEventRecord(end.event, runtime_.stream()));
      LINNET_CALL(cudaEventSynchronize(end.event));
      float took = 0;
      LINNET_CALL(cudaEventElapsedTime(&took, begin.event, end.event));
      best = std::min(best, took);
    }
    return best;
  };
  std::vector<float> times(plans.size(), kNever);
  for (size_t i = 0; i < plans.size(); ++i) {
    if (plans[i].workspace() > kTimedWorkspace) continue;
    try {
      times[i] = milliseconds(plans[i]);
    } catch (const Error&) {
      cudaGetLastError();
    }
  }
  return size_t(std::ranges::min_element(times) - times.begin());  // none could run: cuDNN's favourite
}

const CudnnPlan& CudnnConvolutions::plan_for(const ConvShape& shape, const std::vector<void*>& tensors) {
  if (const auto found = plans_.find(shape); found != plans_.end()) return found->second;
  const std::string name = to_string(shape);
  const CudnnRules rules = rules_for(shape.type, options_);
  std::vector<CudnnPlan> plans;
  if (const auto chosen = choices_.tags.find(name); chosen != choices_.tags.end())
    plans = convolution_plans(shape, device_, rules, 1, chosen->second);
  size_t taken = 0;
  if (plans.empty()) {
    const bool timed = options_.autotune && !runtime_.capturing();  // nothing runs while a step is recorded
    plans = convolution_plans(shape, device_, rules, timed ? kTimed : 1);
    if (plans.size() > 1) taken = fastest(plans, tensors);
    if (!runtime_.capturing()) choices_.tags[name] = plans[taken].tag();
  }
  return plans_.emplace(shape, std::move(plans[taken])).first->second;
}

void CudnnConvolutions::run(ConvPass pass, const Tensor& x, const Tensor& w, const Tensor& y, Conv conv) {
  require(x.dtype() == w.dtype() && x.dtype() == y.dtype(), "[conv2d] expected tensors of one type, got {}, {}, {}",
          name_of(x.dtype()), name_of(w.dtype()), name_of(y.dtype()));
  const ConvShape shape{pass,     x.dim(0), x.dim(1), x.dim(2),    x.dim(3), w.dim(0), w.dim(1),
                        w.dim(2), y.dim(1), y.dim(2), conv.stride, conv.pad, x.dtype()};
  const std::vector<void*> tensors = {x.raw(), w.raw(), y.raw()};
  const CudnnPlan& plan = plan_for(shape, tensors);
  plan.run(handle_, tensors, scratch_.at_least(plan.workspace()));
}

void CudnnConvolutions::forward(const Tensor& y, const Tensor& x, const Tensor& w, Conv conv) {
  if (y.numel() > 0) run(ConvPass::forward, x, w, y, conv);
}

void CudnnConvolutions::backward_data(const Tensor& dx, const Tensor& dy, const Tensor& w, Conv conv) {
  if (dx.numel() > 0) run(ConvPass::backward_data, dx, w, dy, conv);
}

void CudnnConvolutions::backward_weight(const Tensor& dw, const Tensor& dy, const Tensor& x, Conv conv) {
  if (x.numel() > 0)
    run(ConvPass::backward_weight, x, dw, dy, conv);
  else
    runtime_.zero(dw.raw(), dw.bytes());  // an empty sum
}

}  // namespace linnet
