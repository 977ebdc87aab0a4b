#include "checks.h"

namespace linnet {

namespace {

// With the statistics fixed, dx = scale / sqrt(var + eps) * dy (behind the ReLU's mask): the forward pass of dy without
// mean and bias.
Tensor track_fixed(Pass& p, const Tensor& y, const Tensor& x, const Tensor* residual, const Param& scale,
                   const Buffer& var, Bn bn) {
  const Tensor r = residual ? *residual : Tensor(), mask = bn.relu ? y : Tensor();
  return p.tape->track(
      y, {"batch_norm", &scale},
      [&be = p.be, &pool = p.pool, tape = p.tape, x, r, mask, &scale, &var, bn](const Tensor& dy) {
        Tensor d = dy;
        if (bn.relu) {
          d = pool.empty(dy.shape(), dy.dtype());
          be.unary_grad(Relu{}, d, dy, mask, mask);
        }
        const Tensor dx = pool.empty(dy.shape(), dy.dtype()), zero = pool.zeros(scale.shape, DType::f32);
        be.bn_forward(dx, Tensor(), d, nullptr, {scale.master, zero, zero, var.value}, {.eps = bn.eps}, false, nullptr);
        tape->add_grad(x, dx);
        if (r) tape->add_grad(r, d);
      });
}

void require_batch_norm(const Tensor& x, const Param& scale, const Param& bias, const Buffer& mean, const Buffer& var,
                        const Tensor* residual) {
  require(x.rank() >= 2, "[batch_norm] expected input of at least two extents, got {}", x.shape());
  require_per_channel("batch_norm", "a scale", scale.shape, x);
  require_per_channel("batch_norm", "a bias", bias.shape, x);
  require_per_channel("batch_norm", "a running mean", mean.shape, x);
  require_per_channel("batch_norm", "a running variance", var.shape, x);
  require(!residual || residual->shape() == x.shape(), "[batch_norm] expected a residual of shape {}, got {}",
          x.shape(), residual ? residual->shape() : Shape{});
}

Tensor norm_as(Pass& p, const Tensor& x, const Param& scale, const Param& bias, const Buffer& mean, const Buffer& var,
               Bn bn, const Tensor* residual, bool apply) {
  require_batch_norm(x, scale, bias, mean, var, residual);
  require(!p.train || x.numel() > x.dim(-1),
          "[batch_norm] expected more than 1 value per channel when training, got {}; use a larger batch", x.shape());

  // Not applied, the result is a name for what the convolution that reads it makes of x.
  Tensor y = apply ? p.pool.empty(x.shape(), x.dtype()) : x;
  const bool record = p.tape != nullptr;
  require(!record || p.train || p.explain,
          "[batch_norm] has no gradient in evaluation mode; set Pass::train or leave the tape out");
  Tensor saved = p.train ? p.pool.empty({4, x.dim(-1)}, DType::f32) : Tensor();
  const bool known = p.train && p.moments.value && p.moments.var == x.var;
  p.be.bn_forward(apply ? y : Tensor(), saved, x, residual, {scale.master, bias.master, mean.value, var.value}, bn,
                  p.train, known ? &p.moments.value : nullptr);
  if (!record) return y;
  if (!p.train) return track_fixed(p, y, x, residual, scale, var, bn);

  const Tensor r = residual ? *residual : Tensor();
  // y is kept for the ReLU's mask only; without a ReLU its memory may go.
  const Tensor mask = bn.relu ? y : Tensor();
  const auto as_input = bn.relu ? std::make_shared<InputBn>(InputBn{x, saved, {}, apply}) : nullptr;
  const bool first_and_once = p.tape->is_newest(x) && !(residual && residual->var == x.var);  // is x used here
  const bool may_be_left = first_and_once && !p.tape->gradients_watched() && p.moments.var == x.var;
  const auto as_output = may_be_left ? p.moments.norm : nullptr;
  const auto backward = [&be = p.be, &pool = p.pool, tape = p.tape, x, mask, r, saved, &scale, &bias, bn, as_input,
                         as_output](const Tensor& dy) {
    const Tensor sums = as_input ? std::exchange(as_input->sums, {}) : Tensor();
    const bool wants_residual = r && Tape::wants(r), masked = wants_residual && bn.relu && !sums;
    // What nobody else holds may be overwritten. Not masked here, the residual's gradient is dy itself.
    const auto in_place_of_dy = [&](bool wanted) {
      return wanted && dy.sole_owner() ? dy : pool.empty(x.shape(), x.dtype());
    };
    Tensor dr = masked ? in_place_of_dy(true) : Tensor();
    // If nothing else is added to dx, the convolution that made x computes it from dy, which stands for it until then.
    const bool left = as_output && sums && !tape->grad(x);
    if (left) *as_output = {x, pool.empty({4, x.dim(-1)}, DType::f32)};
    Tensor dx = left ? dy : in_place_of_dy(!wants_residual);
    tape->add_grad(scale, [&](const Tensor& dscale) {
      tape->add_grad(bias, [&](const Tensor& dbias) {
        be.bn_backward(dx, dr ? &dr : nullptr, dscale, dbias, dy, x, mask, saved, scale.master, bn,
                       sums ? &sums : nullptr, left ? &as_output->factors : nullptr);
      });
    });
    if (dr)
      tape->add_grad(r, std::move(dr));
    else if (wants_residual)
      tape->add_grad(r, dy);
    tape->add_grad(x, std::move(dx));
  };
  y = p.tape->track(y, {"batch_norm", &scale}, backward);
  p.norm = {y.var, as_input};
  return y;
}

}  // namespace

Tensor batch_norm(Pass& p, const Tensor& x, const Param& scale, const Param& bias, const Buffer& mean,
                  const Buffer& var, Bn bn, const Tensor* residual) {
  return norm_as(p, x, scale, bias, mean, var, bn, residual, true);
}

Tensor batch_norm_relu_conv(Pass& p, const Tensor& x, const Param& scale, const Param& bias, const Buffer& mean,
                            const Buffer& var, const Param& w, Conv conv) {
  conv2d_shape(x, w, conv);  // an error must leave the running statistics alone
  const bool apart = !p.tape || !p.train || p.tape->watched() || p.tape->gradients_watched() ||
                     !p.be.takes_unapplied_bn(x, w.shape, conv);
  return conv2d(p, norm_as(p, x, scale, bias, mean, var, {.relu = true}, nullptr, apart), w, conv);
}

Tensor conv_batch_norm(Pass& p, const Tensor& x, const Param& w, Conv conv, const Param& scale, const Param& bias,
                       const Buffer& mean, const Buffer& var, Bn bn, const Tensor* residual) {
  if (!p.tape && !p.train) {
    const Tensor y = p.pool.empty(conv2d_shape(x, w, conv), x.dtype());
    require_batch_norm(y, scale, bias, mean, var, residual);
    if (p.be.conv_bn(y, x, w.compute, conv, residual, {scale.master, bias.master, mean.value, var.value}, bn)) return y;
  }
  return batch_norm(p, conv2d(p, x, w, conv), scale, bias, mean, var, bn, residual);
}

Tensor group_norm(Pass& p, const Tensor& x, const Param& scale, const Param& bias, int groups, float eps) {
  require(x.rank() == 4 || x.rank() == 2, "[group_norm] expected input [n,h,w,c] or [n,c], got {}", x.shape());
  require(groups > 0 && x.dim(-1) % groups == 0, "[group_norm] {} channels do not divide into {} groups", x.dim(-1),
          groups);
  require_per_channel("group_norm", "a scale", scale.shape, x);
  require_per_channel("group_norm", "a bias", bias.shape, x);
  Tensor y = p.pool.empty(x.shape(), x.dtype());
  Tensor saved = p.pool.empty({x.dim(0) * groups, 2}, DType::f32);
  p.be.group_norm(y, saved, x, scale.master, bias.master, groups, eps);
  if (!p.tape) return y;
  return p.tape->track(y, {"group_norm", &scale},
                       [&be = p.be, &pool = p.pool, tape = p.tape, x, saved, &scale, &bias, groups](const Tensor& dy) {
                         Tensor dx = pool.empty(x.shape(), x.dtype());
                         tape->add_grad(scale, [&](const Tensor& dscale) {
                           tape->add_grad(bias, [&](const Tensor& dbias) {
                             be.group_norm_grad(dx, dscale, dbias, dy, x, scale.master, saved, groups);
                           });
                         });
                         tape->add_grad(x, std::move(dx));
                       });
}

}  // namespace linnet
