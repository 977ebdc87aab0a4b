// Batch norm from the functors of kernels/batch_norm.h: three levels of sums and one pass that applies. It is a
// template on the executor, so that tests/cuda_batch_norm_test.cpp runs these very lines on the CPU.
#pragma once
#include "kernels/batch_norm.h"
#include "linnet/backend.h"

namespace linnet {

inline BnShape bn_shape(const Tensor& x) { return {x.numel() / x.dim(-1), x.dim(-1)}; }

// What a call needs besides its tensors: pairs for both levels of sums, then up to three numbers a channel.
struct BnScratch {
  Pair *segments, *groups;
  float* terms;
  BnScratch(void* memory, BnShape s)
      : segments(static_cast<Pair*>(memory)),
        groups(segments + s.segments() * s.channels),
        terms(reinterpret_cast<float*>(groups + s.groups() * s.channels)) {}
  static size_t bytes(BnShape s) {
    return size_t(s.channels) * (size_t(s.segments() + s.groups()) * sizeof(Pair) + 3 * sizeof(float));
  }
};

template <class T, class Exec>
void bn_forward_with(const Exec& exec, void* scratch, const Tensor& y, const Tensor& saved, const Tensor& x,
                     const Tensor* residual, const BnState& state, Bn bn, bool train) {
  const BnShape s = bn_shape(x);
  const BnScratch m(scratch, s);
  const float *scale = state.scale.data<float>(), *bias = state.bias.data<float>();
  float *mean = state.mean.data<float>(), *var = state.var.data<float>();
  if (train) {
    exec.for_each_2d(s.segments(), s.channels, BnSums<T>{s, x.data<T>(), m.segments}, s.kSegment);
    exec.for_each_2d(s.groups(), s.channels, AddPairs{s, m.segments, m.groups}, s.fan());
    exec.for_each(s.channels,
                  BnStatistics{s, m.groups, scale, bias, mean, var, saved.data<float>(), m.terms, bn.eps, bn.momentum},
                  s.groups());
  } else {
    exec.for_each(s.channels, BnRunning{s.channels, scale, bias, mean, var, m.terms, bn.eps});
  }
  exec.for_each_2d(
      s.rows, s.channels,
      BnApply<T>{s.channels, m.terms, x.data<T>(), residual ? residual->data<T>() : nullptr, y.data<T>(), bn.relu});
}

template <class T, class Exec>
void bn_backward_with(const Exec& exec, void* scratch, const Tensor& dx, const Tensor* dresidual, const Tensor& dscale,
                      const Tensor& dbias, const Tensor& dy, const Tensor& x, const Tensor& y, const Tensor& saved,
                      const Tensor& scale, Bn bn) {
  const BnShape s = bn_shape(x);
  const BnScratch m(scratch, s);
  const T* mask = bn.relu ? y.data<T>() : nullptr;
  const float* stats = saved.data<float>();
  exec.for_each_2d(
      s.segments(), s.channels,
      BnGradSums<T>{s, dy.data<T>(), x.data<T>(), mask, stats, dresidual ? dresidual->data<T>() : nullptr, m.segments},
      s.kSegment);
  exec.for_each_2d(s.groups(), s.channels, AddPairs{s, m.segments, m.groups}, s.fan());
  exec.for_each(
      s.channels,
      BnGradStatistics{s, m.groups, scale.data<float>(), stats, dscale.data<float>(), dbias.data<float>(), m.terms},
      s.groups());
  exec.for_each_2d(s.rows, s.channels,
                   BnGradApply<T>{s.channels, m.terms, stats, dy.data<T>(), x.data<T>(), mask, dx.data<T>()});
}

}  // namespace linnet
