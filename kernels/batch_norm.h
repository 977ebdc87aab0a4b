// Batch norm (Ioffe and Szegedy 2015) with the residual add and the ReLU, as functors: for a backend that has no
// routine of its own. x is [rows, channels]. Sums are double; rows are added within segments, segments within groups,
// groups in the end, each in order: the result depends on the shape alone.
#pragma once
#include "hd.h"

namespace linnet {

struct BnShape {
  static constexpr int64_t kSegment = 32;  // rows that one call adds
  int64_t rows, channels;

  LINNET_HD int64_t segments() const { return (rows + kSegment - 1) / kSegment; }
  // Segments to a group: about the square root, so that both levels are short.
  LINNET_HD int64_t fan() const {
    int64_t fan = 1;
    while (fan * fan < segments()) fan *= 2;
    return fan;
  }
  LINNET_HD int64_t groups() const { return (segments() + fan() - 1) / fan(); }
};

struct Pair {
  double a = 0, b = 0;
  LINNET_HD void operator+=(const Pair& p) {
    a += p.a;
    b += p.b;
  }
};

// The sum of the pairs begin..end-1 of one channel.
LINNET_HD Pair sum_pairs(const Pair* pairs, int64_t begin, int64_t end, int64_t channels, int64_t c) {
  Pair sum;
  for (int64_t i = begin; i < end; ++i) sum += pairs[i * channels + c];
  return sum;
}

struct AddPairs {  // over (group, channel)
  BnShape s;
  const Pair* __restrict__ segments;
  Pair* __restrict__ groups;
  LINNET_HD void operator()(int64_t group, int64_t c) const {
    const int64_t begin = group * s.fan(), end = begin + s.fan(), last = s.segments();
    groups[group * s.channels + c] = sum_pairs(segments, begin, end < last ? end : last, s.channels, c);
  }
};

// Sums of x and x^2: in double the difference of squares keeps 7 digits for means up to 10^4 deviations.
template <class T>
struct BnSums {  // over (segment, channel)
  BnShape s;
  const T* __restrict__ x;
  Pair* __restrict__ out;
  LINNET_HD void operator()(int64_t segment, int64_t c) const {
    const int64_t begin = segment * s.kSegment, end = begin + s.kSegment < s.rows ? begin + s.kSegment : s.rows;
    Pair sum;
    for (int64_t r = begin; r < end; ++r) {
      const double v = double(float(x[r * s.channels + c]));
      sum += {v, v * v};
    }
    out[segment * s.channels + c] = sum;
  }
};

// Statistics of the batch: saved [2, channels] for backward, the running ones, and y = factor x + offset.
struct BnStatistics {  // over channels
  BnShape s;
  const Pair* __restrict__ groups;
  const float* __restrict__ scale;
  const float* __restrict__ bias;
  float* __restrict__ running_mean;
  float* __restrict__ running_var;
  float* __restrict__ saved;   // mean, 1 / sqrt(var + eps)
  float* __restrict__ affine;  // [2, channels]: factor, offset
  float eps, momentum;
  LINNET_HD void operator()(int64_t c) const {
    const Pair sum = sum_pairs(groups, 0, s.groups(), s.channels, c);
    const double n = double(s.rows), mean = sum.a / n, above = sum.b - sum.a * mean;
    const double m2 = above < 0 ? 0 : above;  // not fmax: a NaN must stay
    const double inv_std = 1 / sqrt(m2 / n + double(eps)), factor = double(scale[c]) * inv_std;
    saved[c] = float(mean);
    saved[s.channels + c] = float(inv_std);
    affine[c] = float(factor);
    affine[s.channels + c] = float(double(bias[c]) - mean * factor);
    running_mean[c] += momentum * (float(mean) - running_mean[c]);
    running_var[c] += momentum * (float(m2 / (n - 1)) - running_var[c]);  // unbiased, as PyTorch
  }
};

// Evaluation: y = factor x + offset from the running statistics.
struct BnRunning {  // over channels
  int64_t channels;
  const float* __restrict__ scale;
  const float* __restrict__ bias;
  const float* __restrict__ running_mean;
  const float* __restrict__ running_var;
  float* __restrict__ affine;
  float eps;
  LINNET_HD void operator()(int64_t c) const {
    const double factor = double(scale[c]) / sqrt(double(running_var[c]) + double(eps));
    affine[c] = float(factor);
    affine[channels + c] = float(double(bias[c]) - double(running_mean[c]) * factor);
  }
};

template <class T>
struct BnApply {  // over (row, channel)
  int64_t channels;
  const float* __restrict__ affine;
  const T* __restrict__ x;
  const T* __restrict__ residual;  // or null
  T* __restrict__ y;
  bool relu;
  LINNET_HD void operator()(int64_t row, int64_t c) const {
    const int64_t i = row * channels + c;
    float v = float(x[i]) * affine[c] + affine[channels + c];
    if (residual) v += float(residual[i]);
    y[i] = T(relu && v < 0 ? 0.f : v);  // a NaN passes through
  }
};

// Sums of g and of g (x - mean), where g is dy behind the ReLU's mask; g is also the residual's gradient.
template <class T>
struct BnGradSums {  // over (segment, channel)
  BnShape s;
  const T* __restrict__ dy;
  const T* __restrict__ x;
  const T* __restrict__ y;  // null without a ReLU
  const float* __restrict__ saved;
  T* __restrict__ dresidual;  // or null
  Pair* __restrict__ out;
  LINNET_HD void operator()(int64_t segment, int64_t c) const {
    const int64_t begin = segment * s.kSegment, end = begin + s.kSegment < s.rows ? begin + s.kSegment : s.rows;
    const float mean = saved[c];
    Pair sum;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t i = r * s.channels + c;
      const float g = y && !(float(y[i]) > 0) ? 0.f : float(dy[i]);
      if (dresidual) dresidual[i] = T(g);
      sum += {double(g), double(g) * double(float(x[i]) - mean)};
    }
    out[segment * s.channels + c] = sum;
  }
};

// dx = a (g - mean(g) - xhat mean(g xhat)) with a = scale / std, written as a g + k (x - mean) + l.
struct BnGradStatistics {  // over channels
  BnShape s;
  const Pair* __restrict__ groups;
  const float* __restrict__ scale;
  const float* __restrict__ saved;
  float* __restrict__ dscale;
  float* __restrict__ dbias;
  float* __restrict__ terms;  // [3, channels]: a, k, l
  LINNET_HD void operator()(int64_t c) const {
    const Pair sum = sum_pairs(groups, 0, s.groups(), s.channels, c);
    const double inv_std = double(saved[s.channels + c]), a = double(scale[c]) * inv_std, n = double(s.rows);
    dbias[c] = float(sum.a);
    dscale[c] = float(sum.b * inv_std);
    terms[c] = float(a);
    terms[s.channels + c] = float(-a * inv_std * inv_std * sum.b / n);
    terms[2 * s.channels + c] = float(-a * sum.a / n);
  }
};

template <class T>
struct BnGradApply {  // over (row, channel)
  int64_t channels;
  const float* __restrict__ terms;
  const float* __restrict__ saved;
  const T* __restrict__ dy;
  const T* __restrict__ x;
  const T* __restrict__ y;  // null without a ReLU
  T* __restrict__ dx;
  LINNET_HD void operator()(int64_t row, int64_t c) const {
    const int64_t i = row * channels + c;
    const float g = y && !(float(y[i]) > 0) ? 0.f : float(dy[i]);
    dx[i] = T(terms[c] * g + terms[channels + c] * (float(x[i]) - saved[c]) + terms[2 * channels + c]);
  }
};

}  // namespace linnet
