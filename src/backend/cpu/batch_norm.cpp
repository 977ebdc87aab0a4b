// Each pass walks the rows in chunks that are fixed by the shape; their sums are merged in order, so threads do not
// change the bits. Sums: float within a few rows, shifted by a chunk's first row so that large means cost no digits,
// double beyond (batch_norm_kernel.h).
#include "batch_norm.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "batch_norm_table.h"
#include "kernels/norm.h"

namespace linnet {

namespace {

const BnKernels& kernels_for(DType type, Simd simd) {
  const bool half = type == DType::bf16;
#ifdef __x86_64__
  if (half && simd >= Simd::avx512_bf16) return bn_bf16_avx512_bf16;
  if (simd >= Simd::avx512) return half ? bn_bf16_avx512 : bn_f32_avx512;
#endif
  (void)simd;
  return half ? bn_bf16_avx2 : bn_f32_avx2;
}

// The rows of a tensor [..., channels] in pieces.
struct Chunks {
  int64_t rows, channels, size, count;
  size_t row_bytes;
  explicit Chunks(const Tensor& x)
      : rows(x.numel() / x.dim(-1)), channels(x.dim(-1)), row_bytes(size_t(x.dim(-1)) * size_of(x.dtype())) {
    constexpr int64_t kRows = 64, kElements = 16384, kMost = 64;
    const int64_t wanted = std::clamp<int64_t>(rows * channels / kElements, 1, kMost);
    size = std::max<int64_t>(1, (rows + wanted * kRows - 1) / (wanted * kRows)) * kRows;
    count = (rows + size - 1) / size;
  }
  int64_t rows_of(int64_t chunk) const { return std::min(size, rows - chunk * size); }
  char* at(int64_t chunk, const Tensor& t) const {
    return static_cast<char*>(t.raw()) + size_t(chunk * size) * row_bytes;
  }
  char* at(int64_t chunk, const Tensor* t) const { return t ? at(chunk, *t) : nullptr; }
};

std::vector<Moments> batch_moments(ThreadPool& pool, const BnKernels& kernels, const Chunks& c, const Tensor& x) {
  const int64_t C = c.channels;
  std::vector<double> sums(size_t(c.count * C * 2), 0.0);  // per chunk: of x - shift, and its square
  pool.run(c.count, [&](int64_t chunk, int) {
    kernels.moments(sums.data() + chunk * C * 2, c.at(chunk, x), c.at(chunk, x), c.rows_of(chunk), C);
  });
  std::vector<Moments> all(static_cast<size_t>(C));
  const auto element = [&](int64_t i) {
    return x.dtype() == DType::bf16 ? float(x.data<bf16>()[i]) : x.data<float>()[i];
  };
  for (int64_t chunk = 0; chunk < c.count; ++chunk) {
    const double n = double(c.rows_of(chunk)), *total = sums.data() + chunk * C * 2;
    for (int64_t ch = 0; ch < C; ++ch) {
      const double mean = total[ch] / n, m2 = std::max(0.0, total[C + ch] - total[ch] * mean);
      const double shift = double(element(chunk * c.size * C + ch));
      all[size_t(ch)] = merge(all[size_t(ch)], {n, shift + mean, m2});
    }
  }
  return all;
}

std::vector<Moments> known_moments(const Tensor& t, double n) {
  const int64_t channels = t.dim(1);
  std::vector<Moments> all;
  for (int64_t ch = 0; ch < channels; ++ch) all.push_back({n, t.data<double>()[ch], t.data<double>()[channels + ch]});
  return all;
}

}  // namespace

void batch_norm_factors(const BnState& state, Bn bn, float* a, float* b) {
  const float *mean = state.mean.data<float>(), *var = state.var.data<float>();
  for (int64_t ch = 0; ch < state.scale.numel(); ++ch) {
    a[ch] = float(double(state.scale.data<float>()[ch]) / std::sqrt(double(var[ch]) + double(bn.eps)));
    b[ch] = float(double(state.bias.data<float>()[ch]) - double(mean[ch]) * double(a[ch]));
  }
}

void batch_norm_forward(ThreadPool& pool, Simd simd, const Tensor& y, const Tensor& saved, const Tensor& x,
                        const Tensor* residual, const BnState& state, Bn bn, bool train, const Tensor* moments) {
  const BnKernels& kernels = kernels_for(x.dtype(), simd);
  const Chunks c(x);
  const int64_t C = c.channels;
  const float *scale = state.scale.data<float>(), *bias = state.bias.data<float>();
  float *running_mean = state.mean.data<float>(), *running_var = state.var.data<float>();

  std::vector<float> a(static_cast<size_t>(C)), b(static_cast<size_t>(C));  // y = a x + b
  if (train) {
    const std::vector<Moments> of_batch =
        moments ? known_moments(*moments, double(c.rows)) : batch_moments(pool, kernels, c, x);
    float* keep = saved.data<float>();
    for (int64_t ch = 0; ch < C; ++ch) {
      const Moments& m = of_batch[size_t(ch)];
      const double inv_std = 1 / std::sqrt(m.m2 / m.n + double(bn.eps));
      keep[ch] = float(m.mean);
      keep[C + ch] = float(inv_std);
      a[size_t(ch)] = float(double(scale[ch]) * inv_std);
      b[size_t(ch)] = float(double(bias[ch]) - m.mean * double(scale[ch]) * inv_std);
      keep[2 * C + ch] = residual ? std::numeric_limits<float>::quiet_NaN() : a[size_t(ch)];
      keep[3 * C + ch] = b[size_t(ch)];
      running_mean[ch] += bn.momentum * (float(m.mean) - running_mean[ch]);
      running_var[ch] += bn.momentum * (float(m.m2 / (m.n - 1)) - running_var[ch]);  // unbiased, as PyTorch
    }
  } else {
    batch_norm_factors(state, bn, a.data(), b.data());
  }
  if (!y) return;
  pool.run(c.count, [&](int64_t chunk, int) {
    kernels.apply(c.at(chunk, y), c.at(chunk, x), c.at(chunk, residual), a.data(), b.data(), bn.relu, c.rows_of(chunk),
                  C);
  });
}

void batch_norm_backward(ThreadPool& pool, Simd simd, const Tensor& dx, const Tensor* dresidual, const Tensor& dscale,
                         const Tensor& dbias, const Tensor& dy, const Tensor& x, const Tensor& y, const Tensor& saved,
                         const Tensor& scale, Bn bn, const Tensor* known, const Tensor* factors) {
  const BnKernels& kernels = kernels_for(x.dtype(), simd);
  const Chunks c(x);
  const int64_t C = c.channels;
  const float *mean = saved.data<float>(), *inv_std = mean + C, *forward_a = mean + 2 * C, *forward_b = mean + 3 * C;
  // The sign of a x + b is that of y, which then need not be read. (With NaN in a, y is NaN too: no mask either way.)
  const BnMask mask = !bn.relu || known ? BnMask::none : std::isnan(forward_a[0]) ? BnMask::from_y : BnMask::from_x;
  const Tensor* of_mask = mask == BnMask::from_y ? &y : nullptr;

  std::vector<double> of_chunks(known ? 0 : size_t(c.count * C * 2), 0.0);  // of g, and of g (x - mean)
  if (!known)
    pool.run(c.count, [&](int64_t chunk, int) {
      kernels.grad_sums(of_chunks.data() + chunk * C * 2, c.at(chunk, dresidual), c.at(chunk, dy), c.at(chunk, x),
                        c.at(chunk, of_mask), mask, mean, forward_a, forward_b, c.rows_of(chunk), C);
    });
  const double* const sums = known ? known->data<double>() : of_chunks.data();
  const int64_t parts = known ? 1 : c.count;

  // dx = a (g - mean(g) - xhat mean(g xhat)), a = scale / std  (Ioffe and Szegedy 2015), written as a g + k x' + l.
  std::vector<float> a(static_cast<size_t>(C)), k(static_cast<size_t>(C)), l(static_cast<size_t>(C));
  for (int64_t ch = 0; ch < C; ++ch) {
    double s = 0, q = 0;
    for (int64_t part = 0; part < parts; ++part) {
      s += sums[part * 2 * C + ch];
      q += sums[(part * 2 + 1) * C + ch];
    }
    const double inv = double(inv_std[ch]), factor = double(scale.data<float>()[ch]) * inv, n = double(c.rows);
    dbias.data<float>()[ch] = float(s);
    dscale.data<float>()[ch] = float(q * inv);
    a[size_t(ch)] = float(factor);
    k[size_t(ch)] = float(-factor * inv * inv * q / n);
    l[size_t(ch)] = float(-factor * s / n);
    if (!factors) continue;
    float* const of_channel = factors->data<float>() + ch;
    of_channel[0] = a[size_t(ch)];
    of_channel[C] = k[size_t(ch)];
    of_channel[2 * C] = mean[ch];
    of_channel[3 * C] = l[size_t(ch)];
  }
  if (factors) return;
  // a is scale / std in both directions. dresidual is masked already.
  const Tensor& g = dresidual ? *dresidual : dy;
  pool.run(c.count, [&](int64_t chunk, int) {
    kernels.grad(c.at(chunk, dx), c.at(chunk, g), c.at(chunk, x), c.at(chunk, of_mask), dresidual ? BnMask::none : mask,
                 mean, a.data(), forward_b, k.data(), l.data(), c.rows_of(chunk), C);
  });
}

}  // namespace linnet
