#include "linnet/layers.h"

namespace linnet {

Conv2d::Conv2d(const Scope& s, int64_t in, int64_t out, int kernel, Conv conv)
    : weight_(s.store.add(s.name("weight"), {out, kernel, kernel, in}, true, he_normal(in * kernel * kernel),
                          Kind::conv_weight)),
      conv_(conv) {}

BatchNorm2d::BatchNorm2d(const Scope& s, int64_t channels)
    : scale_(s.store.add(s.name("weight"), {channels}, false, constant(1))),
      bias_(s.store.add(s.name("bias"), {channels}, false, constant(0))),
      mean_(s.store.add_buffer(s.name("running_mean"), {channels}, 0)),
      var_(s.store.add_buffer(s.name("running_var"), {channels}, 1)) {}

Tensor BatchNorm2d::run(Pass& p, const Tensor& x, const Tensor* residual, bool relu) {
  return batch_norm(p, x, scale_, bias_, mean_, var_, {.relu = relu}, residual);
}

Tensor BatchNorm2d::run(Pass& p, const Conv2d& conv, const Tensor& x, const Tensor* residual) {
  return conv_batch_norm(p, x, conv.weight_, conv.conv_, scale_, bias_, mean_, var_, {.relu = true}, residual);
}

GroupNorm::GroupNorm(const Scope& s, int groups, int64_t channels)
    : scale_(s.store.add(s.name("weight"), {channels}, false, constant(1))),
      bias_(s.store.add(s.name("bias"), {channels}, false, constant(0))),
      groups_(groups) {}

Linear::Linear(const Scope& s, int64_t in, int64_t out, bool relu_follows)
    : weight_(s.store.add(s.name("weight"), {out, in}, true,
                          relu_follows ? he_normal(in) : uniform(1 / std::sqrt(float(in))))),
      bias_(s.store.add(s.name("bias"), {out}, false, uniform(1 / std::sqrt(float(in))))) {}

Linear::Linear(const Scope& s, const Shape& flattened, int64_t out, bool relu_follows)
    : Linear(s, flattened.numel(), out, relu_follows) {
  require(flattened.rank() == 3, "[linear] expected inputs [height,width,channels], got {}", flattened);
  weight_.flattened = flattened;
}

}  // namespace linnet
