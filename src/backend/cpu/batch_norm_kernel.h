// Batch norm's passes over rows of channels. Memory is what they wait for: each walks every tensor once, in order, with
// as many channels side by side as there are registers for.
#include "batch_norm_table.h"
#include "simd.h"

namespace linnet {
namespace {

constexpr int64_t kBlockRows = 64;  // sums are float within as many rows, double beyond

// Calls f.template operator()<Vec, W>(channel) for groups of W vectors of channels: SIMD_WIDE ones, then single ones,
// then single channels.
template <class F>
void for_channels(int64_t channels, const F& f) {
  int64_t c = 0;
  for (; c + SIMD_WIDE * kLanes <= channels; c += SIMD_WIDE * kLanes) f.template operator()<V, SIMD_WIDE>(c);
  for (; c + 2 * kLanes <= channels; c += 2 * kLanes) f.template operator()<V, 2>(c);
  for (; c + kLanes <= channels; c += kLanes) f.template operator()<V, 1>(c);
  for (; c < channels; ++c) f.template operator()<float, 1>(c);
}

// Two sums over rows: term(row, w, &first, &second) adds vector w's terms. Rows take turns among as many accumulators
// as make four vectors, so that the additions' latency does not bind.
template <class Vec, int W, class Term>
[[gnu::always_inline]] inline void sum_rows(double* sums, int64_t rows, int64_t channels, const Term& term) {
  constexpr int kTurns = W >= 4 ? 1 : 4 / W;
  for (int64_t block = 0; block < rows; block += kBlockRows) {
    const int64_t end = block + kBlockRows < rows ? block + kBlockRows : rows;
    Vec first[kTurns][W] = {}, second[kTurns][W] = {};
    int64_t r = block;
    for (; r + kTurns <= end; r += kTurns)
      for (int turn = 0; turn < kTurns; ++turn)
        for (int w = 0; w < W; ++w) term(r + turn, w, first[turn][w], second[turn][w]);
    for (; r < end; ++r)
      for (int w = 0; w < W; ++w) term(r, w, first[0][w], second[0][w]);
    for (int w = 0; w < W; ++w) {
      for (int turn = 1; turn < kTurns; ++turn) {
        first[0][w] += first[turn][w];
        second[0][w] += second[turn][w];
      }
      float f[kWidth<Vec>], s[kWidth<Vec>];
      store(f, first[0][w]);
      store(s, second[0][w]);
      for (int i = 0; i < kWidth<Vec>; ++i) {
        sums[w * kWidth<Vec> + i] += double(f[i]);
        sums[channels + w * kWidth<Vec> + i] += double(s[i]);
      }
    }
  }
}

template <class Vec, int W>
inline void load_all(Vec (&v)[W], const auto* p) {
  for (int w = 0; w < W; ++w) v[w] = load<Vec>(p + w * kWidth<Vec>);
}

template <class T>
void moments(double* sums, const void* x_, const void* shift, int64_t rows, int64_t channels) {
  for_channels(channels, [&]<class Vec, int W>(int64_t c) {
    const T* x = static_cast<const T*>(x_) + c;
    Vec origin[W];
    load_all(origin, static_cast<const T*>(shift) + c);
    sum_rows<Vec, W>(sums + c, rows, channels, [&](int64_t r, int w, Vec& sum, Vec& squares) {
      const Vec d = load<Vec>(x + r * channels + w * kWidth<Vec>) - origin[w];
      sum += d;
      squares += d * d;
    });
  });
}

template <class T, bool kResidual, bool kRelu>
void apply_as(T* y_, const T* x_, const T* residual_, const float* a_, const float* b_, int64_t rows,
              int64_t channels) {
  for_channels(channels, [&]<class Vec, int W>(int64_t c) {
    Vec a[W], b[W];
    load_all(a, a_ + c);
    load_all(b, b_ + c);
    for (int64_t r = 0, i = c; r < rows; ++r, i += channels)
      for (int w = 0; w < W; ++w) {
        Vec v = load<Vec>(x_ + i + w * kWidth<Vec>) * a[w] + b[w];
        if (kResidual) v += load<Vec>(residual_ + i + w * kWidth<Vec>);
        if (kRelu) v = v < Vec{} ? Vec{} : v;  // a NaN passes through
        store(y_ + i + w * kWidth<Vec>, v);
      }
  });
}

template <class T>
void apply(void* y, const void* x, const void* residual, const float* a, const float* b, bool relu, int64_t rows,
           int64_t channels) {
  const auto f = residual ? (relu ? apply_as<T, true, true> : apply_as<T, true, false>)
                          : (relu ? apply_as<T, false, true> : apply_as<T, false, false>);
  f(static_cast<T*>(y), static_cast<const T*>(x), static_cast<const T*>(residual), a, b, rows, channels);
}

// The gradient behind the ReLU. a x + b is computed as in apply(), so its sign is that of what was rounded to y.
template <BnMask mask, class Vec, class T>
inline Vec masked(Vec g, Vec x, const T* y, Vec a, Vec b) {
  if constexpr (mask == BnMask::none) return g;
  Vec value;
  if constexpr (mask == BnMask::from_x)
    value = x * a + b;
  else
    value = load<Vec>(y);
  return value > Vec{} ? g : Vec{};
}

template <class T, BnMask mask>
void grad_sums_as(double* sums, T* dresidual, const T* dy, const T* x_, const T* y, const float* mean_, const float* a_,
                  const float* b_, int64_t rows, int64_t channels) {
  for_channels(channels, [&]<class Vec, int W>(int64_t c) {
    Vec mean[W], a[W], b[W];
    load_all(mean, mean_ + c);
    load_all(a, a_ + c);
    load_all(b, b_ + c);
    sum_rows<Vec, W>(sums + c, rows, channels, [&](int64_t r, int w, Vec& sum, Vec& products) {
      const int64_t i = r * channels + c + w * kWidth<Vec>;
      const Vec x = load<Vec>(x_ + i), g = masked<mask>(load<Vec>(dy + i), x, y + i, a[w], b[w]);
      if (dresidual) store(dresidual + i, g);
      sum += g;
      products += g * (x - mean[w]);
    });
  });
}

template <class T>
void grad_sums(double* sums, void* dresidual, const void* dy, const void* x, const void* y, BnMask mask,
               const float* mean, const float* a, const float* b, int64_t rows, int64_t channels) {
  const auto f = mask == BnMask::none     ? grad_sums_as<T, BnMask::none>
                 : mask == BnMask::from_x ? grad_sums_as<T, BnMask::from_x>
                                          : grad_sums_as<T, BnMask::from_y>;
  f(sums, static_cast<T*>(dresidual), static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const T*>(y),
    mean, a, b, rows, channels);
}

template <class T, BnMask mask>
void grad_as(T* dx, const T* dy, const T* x_, const T* y, const float* mean_, const float* a_, const float* b_,
             const float* k_, const float* l_, int64_t rows, int64_t channels) {
  for_channels(channels, [&]<class Vec, int W>(int64_t c) {
    Vec mean[W], a[W], b[W], k[W], l[W];
    load_all(mean, mean_ + c);
    load_all(a, a_ + c);
    load_all(b, b_ + c);
    load_all(k, k_ + c);
    load_all(l, l_ + c);
    for (int64_t r = 0, row = c; r < rows; ++r, row += channels)
      for (int w = 0; w < W; ++w) {
        const int64_t i = row + w * kWidth<Vec>;
        const Vec x = load<Vec>(x_ + i), g = masked<mask>(load<Vec>(dy + i), x, y + i, a[w], b[w]);
        store(dx + i, a[w] * g + k[w] * (x - mean[w]) + l[w]);
      }
  });
}

template <class T>
void grad(void* dx, const void* dy, const void* x, const void* y, BnMask mask, const float* mean, const float* a,
          const float* b, const float* k, const float* l, int64_t rows, int64_t channels) {
  const auto f = mask == BnMask::none     ? grad_as<T, BnMask::none>
                 : mask == BnMask::from_x ? grad_as<T, BnMask::from_x>
                                          : grad_as<T, BnMask::from_y>;
  f(static_cast<T*>(dx), static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<const T*>(y), mean, a, b, k,
    l, rows, channels);
}

}  // namespace

#ifndef SIMD_BF16_ONLY
extern const BnKernels SIMD_NAME(bn_f32) = {moments<float>, apply<float>, grad_sums<float>, grad<float>};
#endif
extern const BnKernels SIMD_NAME(bn_bf16) = {moments<Half>, apply<Half>, grad_sums<Half>, grad<Half>};

}  // namespace linnet
