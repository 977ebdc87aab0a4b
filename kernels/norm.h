// Normalisation formulas. Group norm runs as it stands here on both backends; batch norm is the backends' own business
// (cuDNN; src/backend/cpu/batch_norm.cpp), which share its scalar formulas.
#pragma once
#include "hd.h"

namespace linnet {

// Mean and sum of squared deviations (M2) of `n` values; merging is Chan et al. 1979, exact and stable.
struct Moments {
  double n = 0, mean = 0, m2 = 0;
};
LINNET_HD Moments merge(const Moments& a, const Moments& b) {
  const double n = a.n + b.n;
  if (n == 0) return a;
  const double d = b.mean - a.mean;
  return {n, a.mean + d * (b.n / n), a.m2 + b.m2 + d * d * (a.n * b.n / n)};
}

// Group norm (Wu and He 2018; torch.nn.GroupNorm) over x [batch, pixels, channels]: one call a (sample, group).
struct GroupShape {
  int64_t pixels, channels, groups;
};
template <class T>
struct GroupNormForward {
  GroupShape s;
  const T* __restrict__ x;
  const float* __restrict__ scale;
  const float* __restrict__ bias;
  T* __restrict__ y;
  float* __restrict__ saved;  // [batch * groups, 2]: mean, 1 / sqrt(var + eps)
  float eps;
  LINNET_HD void operator()(int64_t item) const {
    const int64_t width = s.channels / s.groups, first = item % s.groups * width;
    const int64_t base = item / s.groups * s.pixels * s.channels + first;
    const double count = double(s.pixels * width);
    double sum = 0, squares = 0;
    for (int64_t p = 0; p < s.pixels; ++p)
      for (int64_t c = 0; c < width; ++c) sum += double(float(x[base + p * s.channels + c]));
    const double mean = sum / count;
    for (int64_t p = 0; p < s.pixels; ++p)
      for (int64_t c = 0; c < width; ++c) {
        const double d = double(float(x[base + p * s.channels + c])) - mean;
        squares += d * d;
      }
    const float inv_std = float(1 / sqrt(squares / count + double(eps)));
    saved[item * 2] = float(mean);
    saved[item * 2 + 1] = inv_std;
    for (int64_t p = 0; p < s.pixels; ++p)
      for (int64_t c = 0; c < width; ++c) {
        const int64_t i = base + p * s.channels + c;
        y[i] = T((float(x[i]) - float(mean)) * inv_std * scale[first + c] + bias[first + c]);
      }
  }
};
template <class T>
struct GroupNormGradInput {  // over (sample, group)
  GroupShape s;
  const T* __restrict__ dy;
  const T* __restrict__ x;
  const float* __restrict__ scale;
  const float* __restrict__ saved;
  T* __restrict__ dx;
  LINNET_HD void operator()(int64_t item) const {
    const int64_t width = s.channels / s.groups, first = item % s.groups * width;
    const int64_t base = item / s.groups * s.pixels * s.channels + first;
    const float mean = saved[item * 2], inv_std = saved[item * 2 + 1];
    double sum_g = 0, sum_gx = 0;  // of g = dy * scale, and of g * xhat
    for (int64_t p = 0; p < s.pixels; ++p)
      for (int64_t c = 0; c < width; ++c) {
        const int64_t i = base + p * s.channels + c;
        const float g = float(dy[i]) * scale[first + c];
        sum_g += double(g);
        sum_gx += double(g * (float(x[i]) - mean) * inv_std);
      }
    const double count = double(s.pixels * width);
    const float mean_g = float(sum_g / count), mean_gx = float(sum_gx / count);
    for (int64_t p = 0; p < s.pixels; ++p)
      for (int64_t c = 0; c < width; ++c) {
        const int64_t i = base + p * s.channels + c;
        const float g = float(dy[i]) * scale[first + c], xhat = (float(x[i]) - mean) * inv_std;
        dx[i] = T(inv_std * (g - mean_g - xhat * mean_gx));
      }
  }
};
template <class T>
struct GroupNormGradParams {  // over channels
  GroupShape s;
  int64_t batch;
  const T* __restrict__ dy;
  const T* __restrict__ x;
  const float* __restrict__ saved;
  float* __restrict__ dscale;
  float* __restrict__ dbias;
  LINNET_HD void operator()(int64_t c) const {
    const int64_t group = c / (s.channels / s.groups);
    double sum_g = 0, sum_gx = 0;
    for (int64_t n = 0; n < batch; ++n) {
      const float mean = saved[(n * s.groups + group) * 2], inv_std = saved[(n * s.groups + group) * 2 + 1];
      for (int64_t p = 0; p < s.pixels; ++p) {
        const int64_t i = (n * s.pixels + p) * s.channels + c;
        sum_g += double(float(dy[i]));
        sum_gx += double(float(dy[i]) * (float(x[i]) - mean) * inv_std);
      }
    }
    dbias[c] = float(sum_g);
    dscale[c] = float(sum_gx);
  }
};

}  // namespace linnet
