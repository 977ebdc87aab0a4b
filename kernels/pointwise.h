// Elementwise operations. An activation is one struct: its value, and its slope given input x and output y.
// Formulas as in PyTorch's torch.nn.functional.
#pragma once
#include "hd.h"
#include "rng.h"
#include "step.h"

namespace linnet {

struct Relu {
  LINNET_HD float value(float x) const { return x < 0 ? 0.f : x; }  // a NaN passes through
  LINNET_HD float slope(float, float y) const { return y > 0 ? 1.f : 0.f; }
};
struct LeakyRelu {
  float negative_slope = 0.01f;
  LINNET_HD float value(float x) const { return x > 0 ? x : negative_slope * x; }
  LINNET_HD float slope(float x, float) const { return x > 0 ? 1.f : negative_slope; }
};
struct Sigmoid {
  LINNET_HD float value(float x) const { return 1 / (1 + expf(-x)); }
  LINNET_HD float slope(float, float y) const { return y * (1 - y); }
};
struct Tanh {
  LINNET_HD float value(float x) const { return tanhf(x); }
  LINNET_HD float slope(float, float y) const { return 1 - y * y; }
};
struct Silu {  // x * sigmoid(x)
  LINNET_HD float value(float x) const { return x / (1 + expf(-x)); }
  LINNET_HD float slope(float x, float y) const { return y + (1 - y) / (1 + expf(-x)); }
};
struct Gelu {  // x * Phi(x), the exact form
  LINNET_HD float value(float x) const { return 0.5f * x * (1 + erff(x * 0.70710678f)); }
  LINNET_HD float slope(float x, float) const {
    return 0.5f * (1 + erff(x * 0.70710678f)) + x * 0.39894228f * expf(-0.5f * x * x);
  }
};

template <class From, class To>
struct Cast {
  const From* __restrict__ x;
  To* __restrict__ y;
  LINNET_HD void operator()(int64_t i) const { y[i] = To(float(x[i])); }
};

template <class Op, class T>
struct UnaryForward {
  Op op;
  const T* __restrict__ x;
  T* __restrict__ y;
  LINNET_HD void operator()(int64_t i) const { y[i] = T(op.value(float(x[i]))); }
};
template <class Op, class T>
struct UnaryBackward {
  Op op;
  const T* __restrict__ x;
  const T* __restrict__ y;
  const T* __restrict__ dy;
  T* __restrict__ dx;
  LINNET_HD void operator()(int64_t i) const { dx[i] = T(float(dy[i]) * op.slope(float(x[i]), float(y[i]))); }
};

// y may be a: the tape adds into the older gradient.
template <class T>
struct Add {
  const T* a;
  const T* b;
  T* y;
  LINNET_HD void operator()(int64_t i) const { y[i] = T(float(a[i]) + float(b[i])); }
};

// y = x * factor[0]; the factor lies on the device (the gradient of a loss).
template <class T>
struct ScaleBy {
  const T* x;
  const float* __restrict__ factor;
  T* y;
  LINNET_HD void operator()(int64_t i) const { y[i] = T(float(x[i]) * factor[0]); }
};

template <class T>
struct BiasAdd {  // over (row, column)
  const T* x;
  const float* __restrict__ bias;
  T* y;
  int64_t columns;
  LINNET_HD void operator()(int64_t row, int64_t c) const {
    const int64_t i = row * columns + c;
    y[i] = T(float(x[i]) + bias[c]);
  }
};
template <class T>
struct BiasGrad {  // over columns: rows are added in order
  const T* __restrict__ dy;
  float* __restrict__ dbias;
  int64_t rows, columns;
  LINNET_HD void operator()(int64_t c) const {
    double sum = 0;
    for (int64_t r = 0; r < rows; ++r) sum += double(float(dy[r * columns + c]));
    dbias[c] = float(sum);
  }
};

// Inverted dropout: each element is kept with probability 1 - p and scaled by 1 / (1 - p). Which ones is a pure
// function of (seed, step, layer, element), so backward calls the same functor on dy and nothing is stored.
template <class T>
struct ApplyDropout {
  const T* x;
  T* y;
  const StepParams* __restrict__ params;
  float p;
  uint32_t layer;
  LINNET_HD void operator()(int64_t i) const {
    const Random4 r = random4(params->seed, Draw::dropout, uint64_t(i / 4), uint32_t(params->step), layer);
    y[i] = T(unit_float(r.v[i % 4]) >= p ? float(x[i]) * (1 / (1 - p)) : 0.f);
  }
};

}  // namespace linnet
