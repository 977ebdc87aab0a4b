// Each pass walks the rows in blocks that stay in the first-level cache and, within a block, eight channels at a time
// in registers. Sums: float within a block (at most 64 rows, shifted by the first row so that large means cost no
// digits), double across blocks; chunks of rows are fixed by the shape and merged in order, so threads do not change
// the bits.
#include "batch_norm.h"

#include <algorithm>
#include <cstring>

#include "kernels/norm.h"

namespace linnet {

namespace {

constexpr int64_t kBlockRows = 64;
constexpr int kUnroll = 4;  // independent sums, so that the additions' latency does not bind

using V8 = float __attribute__((vector_size(32)));  // GCC and clang: eight floats, whatever the machine has

// Loads and stores of V = V8 or float (the channels left over), from float or bf16.
template <class V>
inline constexpr int kWidth = int(sizeof(V) / sizeof(float));
template <class V>
V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
V load(const bf16* p) {
  float f[kWidth<V>];
  for (int i = 0; i < kWidth<V>; ++i) f[i] = float(p[i]);
  return load<V>(f);
}
template <class V>
void store(float* p, V v) {
  std::memcpy(p, &v, sizeof v);
}
template <class V>
void store(bf16* p, V v) {
  float f[kWidth<V>];
  store(f, v);
  for (int i = 0; i < kWidth<V>; ++i) p[i] = bf16(f[i]);
}

struct Chunks {
  int64_t rows, channels, size, count;
  Chunks(const Tensor& x) : rows(x.numel() / x.dim(-1)), channels(x.dim(-1)) {
    const int64_t wanted = std::clamp<int64_t>(rows * channels / 16384, 1, 64);
    size = std::max((rows + wanted - 1) / wanted + kBlockRows - 1, kBlockRows) / kBlockRows * kBlockRows;
    count = (rows + size - 1) / size;
  }
};

// Calls f(V{}, channel, first_row, end_row) for every block of rows of a chunk and every group of channels.
template <class F>
void for_blocks(const Chunks& c, int64_t chunk, const F& f) {
  const int64_t end = std::min(c.rows, (chunk + 1) * c.size), wide = c.channels / 8 * 8;
  for (int64_t r = chunk * c.size; r < end; r += kBlockRows) {
    const int64_t stop = std::min(end, r + kBlockRows);
    for (int64_t ch = 0; ch < wide; ch += 8) f(V8{}, ch, r, stop);
    for (int64_t ch = wide; ch < c.channels; ++ch) f(float{}, ch, r, stop);
  }
}

// Adds the lanes of a block's partial sums to the chunk's totals.
template <class V>
void fold(const V (&sums)[kUnroll], double* totals) {
  const V v = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float f[kWidth<V>];
  store(f, v);
  for (int i = 0; i < kWidth<V>; ++i) totals[i] += double(f[i]);
}

// Calls row(r, lane) for the rows of a block, lanes in turn.
template <class F>
void for_rows(int64_t r, int64_t stop, const F& row) {
  for (; r + kUnroll <= stop; r += kUnroll)
    for (int u = 0; u < kUnroll; ++u) row(r + u, u);
  for (; r < stop; ++r) row(r, 0);
}

template <class T>
void batch_moments(ThreadPool& pool, const Chunks& c, const T* x, std::vector<Moments>& out) {
  const int64_t C = c.channels;
  std::vector<double> sums(size_t(c.count * C * 2), 0.0);  // per chunk and channel: of x - shift, and its square
  pool.run(c.count, [&](int64_t chunk, int) {
    double* total = sums.data() + chunk * C * 2;
    const T* shift = x + chunk * c.size * C;
    for_blocks(c, chunk, [&]<class V>(V, int64_t ch, int64_t r, int64_t stop) {
      const V origin = load<V>(shift + ch);
      V s[kUnroll] = {}, q[kUnroll] = {};
      for_rows(r, stop, [&](int64_t row, int u) {
        const V d = load<V>(x + row * C + ch) - origin;
        s[u] += d;
        q[u] += d * d;
      });
      fold(s, total + ch);
      fold(q, total + C + ch);
    });
  });
  out.assign(size_t(C), Moments{});
  for (int64_t chunk = 0; chunk < c.count; ++chunk) {
    const double n = double(std::min(c.size, c.rows - chunk * c.size));
    const double* total = sums.data() + chunk * C * 2;
    for (int64_t ch = 0; ch < C; ++ch) {
      const double mean = total[ch] / n;
      const double m2 = std::max(0.0, total[C + ch] - total[ch] * mean);
      out[size_t(ch)] = merge(out[size_t(ch)], {n, double(float(x[chunk * c.size * C + ch])) + mean, m2});
    }
  }
}

template <class T>
void forward(ThreadPool& pool, const Tensor& ty, const Tensor& saved, const Tensor& tx, const Tensor* tresidual,
             const BnState& state, Bn bn, bool train) {
  const Chunks c(tx);
  const int64_t C = c.channels;
  const T* x = tx.data<T>();
  T* y = ty.data<T>();
  const float *scale = state.scale.data<float>(), *bias = state.bias.data<float>();
  float *running_mean = state.mean.data<float>(), *running_var = state.var.data<float>();

  std::vector<float> a(static_cast<size_t>(C)), b(static_cast<size_t>(C));  // y = a x + b
  if (train) {
    std::vector<Moments> moments;
    batch_moments(pool, c, x, moments);
    float* keep = saved.data<float>();
    for (int64_t ch = 0; ch < C; ++ch) {
      const Moments& m = moments[size_t(ch)];
      const double inv_std = 1 / std::sqrt(m.m2 / m.n + double(bn.eps));
      keep[ch] = float(m.mean);
      keep[C + ch] = float(inv_std);
      a[size_t(ch)] = float(double(scale[ch]) * inv_std);
      b[size_t(ch)] = float(double(bias[ch]) - m.mean * double(scale[ch]) * inv_std);
      running_mean[ch] += bn.momentum * (float(m.mean) - running_mean[ch]);
      running_var[ch] += bn.momentum * (float(m.m2 / (m.n - 1)) - running_var[ch]);  // unbiased, as PyTorch
    }
  } else {
    for (int64_t ch = 0; ch < C; ++ch) {
      a[size_t(ch)] = float(double(scale[ch]) / std::sqrt(double(running_var[ch]) + double(bn.eps)));
      b[size_t(ch)] = float(double(bias[ch]) - double(running_mean[ch]) * double(a[size_t(ch)]));
    }
  }

  const T* residual = tresidual ? tresidual->data<T>() : nullptr;
  pool.run(c.count, [&](int64_t chunk, int) {
    for_blocks(c, chunk, [&]<class V>(V, int64_t ch, int64_t r, int64_t stop) {
      const V va = load<V>(a.data() + ch), vb = load<V>(b.data() + ch), zero{};
      for (; r < stop; ++r) {
        const int64_t i = r * C + ch;
        V v = load<V>(x + i) * va + vb;
        if (residual) v += load<V>(residual + i);
        if (bn.relu) v = v < zero ? zero : v;
        store(y + i, v);
      }
    });
  });
}

template <class T>
void backward(ThreadPool& pool, const Tensor& tdx, const Tensor* tdresidual, const Tensor& dscale, const Tensor& dbias,
              const Tensor& tdy, const Tensor& tx, const Tensor& ty, const Tensor& saved, const Tensor& scale, Bn bn) {
  const Chunks c(tx);
  const int64_t C = c.channels;
  const T *x = tx.data<T>(), *dy = tdy.data<T>(), *y = bn.relu ? ty.data<T>() : nullptr;
  T *dx = tdx.data<T>(), *dresidual = tdresidual ? tdresidual->data<T>() : nullptr;
  const float *mean = saved.data<float>(), *inv_std = mean + C;

  const auto masked = [&]<class V>(V, int64_t i) {  // the gradient behind the ReLU
    const V g = load<V>(dy + i);
    return y ? (load<V>(y + i) > V{} ? g : V{}) : g;
  };

  std::vector<double> sums(size_t(c.count * C * 2), 0.0);  // of g, and of g (x - mean)
  pool.run(c.count, [&](int64_t chunk, int) {
    double* total = sums.data() + chunk * C * 2;
    for_blocks(c, chunk, [&]<class V>(V, int64_t ch, int64_t r, int64_t stop) {
      const V m = load<V>(mean + ch);
      V s[kUnroll] = {}, q[kUnroll] = {};
      for_rows(r, stop, [&](int64_t row, int u) {
        const int64_t i = row * C + ch;
        const V g = masked(V{}, i);
        if (dresidual) store(dresidual + i, g);
        s[u] += g;
        q[u] += g * (load<V>(x + i) - m);
      });
      fold(s, total + ch);
      fold(q, total + C + ch);
    });
  });

  // dx = a (g - mean(g) - xhat mean(g xhat)), a = scale / std  (Ioffe and Szegedy 2015), written as a g + k x' + l.
  std::vector<float> a(static_cast<size_t>(C)), k(static_cast<size_t>(C)), l(static_cast<size_t>(C));
  for (int64_t ch = 0; ch < C; ++ch) {
    double s = 0, q = 0;
    for (int64_t chunk = 0; chunk < c.count; ++chunk) {
      s += sums[size_t((chunk * 2) * C + ch)];
      q += sums[size_t((chunk * 2 + 1) * C + ch)];
    }
    const double inv = double(inv_std[ch]), factor = double(scale.data<float>()[ch]) * inv, n = double(c.rows);
    dbias.data<float>()[ch] = float(s);
    dscale.data<float>()[ch] = float(q * inv);
    a[size_t(ch)] = float(factor);
    k[size_t(ch)] = float(-factor * inv * inv * q / n);
    l[size_t(ch)] = float(-factor * s / n);
  }
  pool.run(c.count, [&](int64_t chunk, int) {
    for_blocks(c, chunk, [&]<class V>(V, int64_t ch, int64_t r, int64_t stop) {
      const V va = load<V>(a.data() + ch), vk = load<V>(k.data() + ch), vl = load<V>(l.data() + ch),
              vm = load<V>(mean + ch);
      for (; r < stop; ++r) {
        const int64_t i = r * C + ch;
        store(dx + i, va * masked(V{}, i) + vk * (load<V>(x + i) - vm) + vl);
      }
    });
  });
}

}  // namespace

void batch_norm_forward(ThreadPool& pool, const Tensor& y, const Tensor& saved, const Tensor& x, const Tensor* residual,
                        const BnState& state, Bn bn, bool train) {
  if (x.dtype() == DType::bf16)
    forward<bf16>(pool, y, saved, x, residual, state, bn, train);
  else
    forward<float>(pool, y, saved, x, residual, state, bn, train);
}

void batch_norm_backward(ThreadPool& pool, const Tensor& dx, const Tensor* dresidual, const Tensor& dscale,
                         const Tensor& dbias, const Tensor& dy, const Tensor& x, const Tensor& y, const Tensor& saved,
                         const Tensor& scale, Bn bn) {
  if (x.dtype() == DType::bf16)
    backward<bf16>(pool, dx, dresidual, dscale, dbias, dy, x, y, saved, scale, bn);
  else
    backward<float>(pool, dx, dresidual, dscale, dbias, dy, x, y, saved, scale, bn);
}

}  // namespace linnet
