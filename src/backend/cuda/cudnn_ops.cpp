#include "cudnn_ops.h"

#include "check.h"

namespace linnet {

std::string to_string(const ConvShape& s) {
  constexpr const char* kPass[] = {"forward", "backward_data", "backward_weight"};
  return fmt::format("conv2d {} of {} images {}x{}x{} with {} filters {}x{}, stride {}, pad {}, in f32",
                     kPass[int(s.pass)], s.n, s.h, s.w, s.c, s.k, s.r, s.s, s.stride, s.pad);
}

CudnnPlan convolution_plan(const ConvShape& s, const CudnnDevice& device, CudnnRules rules) {
  CudnnGraph graph;
  const int x = graph.tensor({s.n, s.c, s.h, s.w}), w = graph.tensor({s.k, s.c, s.r, s.s}),
            y = graph.tensor({s.n, s.k, s.oh, s.ow});
  graph.convolution(s.pass, x, w, y, s.stride, s.pad);
  return graph.plan(device, rules, to_string(s));
}

CudnnConvolutions::CudnnConvolutions(CudaRuntime& runtime, Scratch& scratch) : runtime_(runtime), scratch_(scratch) {
  LINNET_CALL(cudnnCreate(&handle_));
  LINNET_CALL(cudnnSetStream(handle_, runtime.stream()));
  device_ = CudnnDevice::of(handle_);
}

CudnnConvolutions::~CudnnConvolutions() { cudnnDestroy(handle_); }

void CudnnConvolutions::run(ConvPass pass, const Tensor& x, const Tensor& w, const Tensor& y, Conv conv) {
  for (const Tensor* t : {&x, &w, &y})
    if (t->dtype() != DType::f32)
      fail(Exit::usage, "[conv2d] the cuda backend convolves f32 only, got {}; set train.precision = \"f32\"",
           name_of(t->dtype()));
  const ConvShape shape{pass,     x.dim(0), x.dim(1), x.dim(2), x.dim(3),    w.dim(0),
                        w.dim(1), w.dim(2), y.dim(1), y.dim(2), conv.stride, conv.pad};
  auto found = plans_.find(shape);
  if (found == plans_.end()) found = plans_.emplace(shape, convolution_plan(shape, device_)).first;
  const CudnnPlan& plan = found->second;
  plan.run(handle_, {x.raw(), w.raw(), y.raw()}, scratch_.at_least(plan.workspace()));
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
