// Convolution as plain sums, for the odd shapes for which oneDNN has nothing but its reference implementation (one to
// five filters, padding as wide as the kernel): that takes hundreds of times as long as its others.
#pragma once
#include "linnet/backend.h"

namespace linnet {

struct PlainShape {
  int64_t n, h, w, c, k, r, s, oh, ow;
  int stride, pad;
};

// Of images first..end-1, all f32: x [n,h,w,c], weights [k,r,s,c], y [n,oh,ow,k]. dw is overwritten with what these
// images add to it.
void plain_forward(float* y, const float* x, const float* weights, const PlainShape&, int64_t first, int64_t end);
void plain_backward_data(float* dx, const float* dy, const float* weights, const PlainShape&, int64_t first,
                         int64_t end);
void plain_backward_weight(float* dw, const float* dy, const float* x, const PlainShape&, int64_t first, int64_t end);

}  // namespace linnet
