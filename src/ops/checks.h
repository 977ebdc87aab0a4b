// What several ops check in the same words.
#pragma once
#include "linnet/ops.h"

namespace linnet {

// An image batch, [n,h,w,c].
inline void require_nhwc(const char* op, const Tensor& x) {
  require(x.rank() == 4, "[{}] expected NHWC input [n,h,w,c], got {}", op, x.shape());
}

// A parameter with one number per channel of x.
inline void require_per_channel(const char* op, const char* what, const Shape& shape, const Tensor& x) {
  require(shape == Shape{x.dim(-1)}, "[{}] expected {} of shape [{}] for input {}, got {}", op, what, x.dim(-1),
          x.shape(), shape);
}

// Output extent of a window of `size` over `in` padded by `pad` on both sides.
inline int64_t window_extent(const char* op, int64_t in, int64_t size, int stride, int pad) {
  require(stride > 0 && pad >= 0 && size > 0 && in + 2 * pad >= size,
          "[{}] a window of {} with stride {} and padding {} does not fit an extent of {}", op, size, stride, pad, in);
  return (in + 2 * pad - size) / stride + 1;
}

// The shape of conv2d(x, w), or what is wrong with those (conv.cpp).
Shape conv2d_shape(const Tensor& x, const Param& w, Conv);

}  // namespace linnet
