// Differentiable operations. Each checks its shapes, allocates its result, calls the backend and records its backward
// in the same function (src/ops/). Images are NHWC. A wrong shape is an Error that names the op, what it expected, what
// it got.
#pragma once
#include "linnet/param.h"
#include "linnet/tape.h"

namespace linnet {

// x [n,h,w,c], w [k,r,s,c] -> [n,oh,ow,k], oh = (h + 2 pad - r) / stride + 1. No bias: batch norm has one.
Tensor conv2d(Pass&, const Tensor& x, const Param& w, Conv);

// y = scale * (x - mean) / sqrt(var + eps) + bias over all but the last extent (Ioffe and Szegedy 2015,
// torch.nn.BatchNorm2d), then + residual (same shape), then ReLU, as asked. Pass::train chooses batch or running
// statistics.
Tensor batch_norm(Pass&, const Tensor& x, const Param& scale, const Param& bias, const Buffer& mean, const Buffer& var,
                  Bn, const Tensor* residual = nullptr);
// batch_norm(conv2d(x)); in evaluation in one pass over memory, where the backend can.
Tensor conv_batch_norm(Pass&, const Tensor& x, const Param& w, Conv, const Param& scale, const Param& bias,
                       const Buffer& mean, const Buffer& var, Bn, const Tensor* residual = nullptr);
// conv2d(relu(batch_norm(x))); in training without ever writing what is between, where the backend can.
Tensor batch_norm_relu_conv(Pass&, const Tensor& x, const Param& scale, const Param& bias, const Buffer& mean,
                            const Buffer& var, const Param& w, Conv);
// torch.nn.GroupNorm over [n,h,w,c] or [n,c]; one group is layer norm over (c,h,w) with a scale and bias per channel.
Tensor group_norm(Pass&, const Tensor& x, const Param& scale, const Param& bias, int groups, float eps = 1e-5f);
inline Tensor layer_norm(Pass& p, const Tensor& x, const Param& scale, const Param& bias, float eps = 1e-5f) {
  return group_norm(p, x, scale, bias, 1, eps);
}

Tensor unary(Pass&, const Tensor& x, const Unary&);
inline Tensor relu(Pass& p, const Tensor& x) { return unary(p, x, Relu{}); }
Tensor add(Pass&, const Tensor& a, const Tensor& b);
Tensor flatten(Pass&, const Tensor& x);  // [n,...] -> [n, rest]; a view

// x [n,in], w [out,in], bias [out] -> x w^T + bias
Tensor linear(Pass&, const Tensor& x, const Param& w, const Param& bias);

Tensor max_pool(Pass&, const Tensor& x, Window);
Tensor avg_pool(Pass&, const Tensor& x, Window);
Tensor global_avg_pool(Pass&, const Tensor& x);  // [n,h,w,c] -> [n,c]
// He et al. 2016, option A: every stride-th pixel, zero channels added on both sides up to `channels`.
Tensor shortcut(Pass&, const Tensor& x, int stride, int64_t channels);
// Identity unless Pass::train. `layer` names the layer's random numbers (ParamStore::next_layer_id).
Tensor dropout(Pass&, const Tensor& x, float p, uint32_t layer);

// loss [1] = scale * sum over rows; stats [n,2] f32: each row's loss and whether its largest logit is the label (of two
// mixed labels the one with the larger share).
struct Loss {
  Tensor loss, stats;
};
// logits [n,classes], labels [n] i32 (-1: the row does not count), or a Target of two labels a row. scale is 1 / (rows
// that count) for a mean.
Loss softmax_cross_entropy(Pass&, const Tensor& logits, const Target&, float smoothing, float scale);
// Mean of (x - target)^2 over all elements; no gradient for the target.
Tensor mse_loss(Pass&, const Tensor& x, const Tensor& target);

}  // namespace linnet
