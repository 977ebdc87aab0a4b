#include "winograd.h"

#include <algorithm>
#include <cstring>

#include "kernels/norm.h"

namespace linnet {

namespace {

WinogradShape shape_of(const Tensor& x, const Tensor& w) { return {x.dim(0), x.dim(1), x.dim(2), w.dim(3), w.dim(0)}; }

int64_t tiles(const WinogradShape& s) { return s.n * ((s.h + 3) / 4) * ((s.w + 3) / 4); }

// Tiles in pieces of whole blocks: at most `pieces` of them.
struct Pieces {
  int64_t size, count;
  Pieces(int64_t tiles, int64_t block, int64_t pieces) {
    const int64_t blocks = (tiles + block - 1) / block;
    size = std::max<int64_t>(1, (blocks + pieces - 1) / pieces) * block;
    count = (tiles + size - 1) / size;
  }
};

// Enough to keep many threads evenly busy. Each piece of a weight gradient costs a sum of its own, hence fewer of them.
constexpr int64_t kPieces = 64, kWeightPieces = 16;

// Both gradients at once save a transform of dy, but want the filters and as many sums in the cache together: up to so
// many pairs of channels (0.6 MB).
constexpr int64_t kPairsAtOnce = 2048;

}  // namespace

Simd best_simd() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq"))
    return Simd::avx512;
#endif
  return Simd::avx2;
}

Winograd::Winograd(ThreadPool& pool, Simd simd) : pool_(pool), simd_(simd), scratch_(size_t(pool.threads())) {
  require(simd != Simd::avx512 || best_simd() == Simd::avx512, "[winograd] this processor has no AVX-512");
}

const WinogradKernels& Winograd::kernels_for(DType type) const {
  require(type == DType::f32 || type == DType::bf16, "[winograd] expected f32 or bf16, got {}", name_of(type));
  const bool half = type == DType::bf16;
#ifdef __x86_64__
  if (simd_ == Simd::avx512) return half ? winograd_bf16_avx512 : winograd_f32_avx512;
#endif
  return half ? winograd_bf16_avx2 : winograd_f32_avx2;
}

bool Winograd::takes(const Shape& w, Conv conv) {
  return w.rank() == 4 && w[1] == 3 && w[2] == 3 && conv.stride == 1 && conv.pad == 1 && w[0] % kWinogradGroup == 0 &&
         w[3] % kWinogradGroup == 0;
}

float* Winograd::Buffer::at_least(int64_t floats) {
  if (floats > size) {
    const size_t bytes = (size_t(floats) * sizeof(float) + 63) / 64 * 64;
    size = 0;
    data.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!data) fail(Exit::device, "out of memory: {} MiB of workspace for a convolution", bytes >> 20);
    std::memset(data.get(), 0, bytes);  // the products also read rows of a block that nobody wrote
    size = floats;
  }
  return data.get();
}

float* Winograd::scratch(const WinogradKernels& kernels, int thread, const WinogradShape& s) {
  return scratch_[size_t(thread)].at_least(kernels.scratch_size(s.c, s.k));
}

void Winograd::convolve(const WinogradKernels& kernels, void* y, const void* x, const void* plus,
                        const WinogradShape& s, double* moments) {
  const Pieces pieces(tiles(s), kernels.block, kPieces);
  const int64_t k = s.k;
  // A piece's sums: how many pixels, the sums, those of squares, the shift (as floats).
  const int64_t stride = 1 + 3 * k;
  double* const sums = moments ? reinterpret_cast<double*>(sums_.at_least(2 * stride * pieces.count)) : nullptr;
  pool_.run(pieces.count, [&](int64_t piece, int thread) {
    const int64_t first = piece * pieces.size, end = std::min(tiles(s), first + pieces.size);
    if (!moments)
      return kernels.convolve(y, x, plus, filters_.data.get(), s, first, end, scratch(kernels, thread, s), nullptr);
    double* const own = sums + piece * stride;
    std::fill_n(own, 1 + 2 * k, 0.0);
    WinogradSums of_piece{reinterpret_cast<float*>(own + 1 + 2 * k), own + 1, own + 1 + k, 0};
    kernels.convolve(y, x, nullptr, filters_.data.get(), s, first, end, scratch(kernels, thread, s), &of_piece);
    own[0] = of_piece.pixels;
  });
  for (int64_t channel = 0; moments && channel < k; ++channel) {
    Moments all;
    for (int64_t piece = 0; piece < pieces.count; ++piece) {
      const double *own = sums + piece * stride, n = own[0], sum = own[1 + channel], squares = own[1 + k + channel];
      const float shift = reinterpret_cast<const float*>(own + 1 + 2 * k)[channel];
      all = merge(all, {n, double(shift) + sum / n, std::max(0.0, squares - sum * sum / n)});
    }
    moments[channel] = all.mean;
    moments[k + channel] = all.m2;
  }
}

void Winograd::forward(const Tensor& y, const Tensor& x, const Tensor& w, double* moments) {
  const WinogradKernels& kernels = kernels_for(x.dtype());
  const WinogradShape s = shape_of(x, w);
  float* u = filters_.at_least(kWinogradPositions * s.c * s.k);
  const int64_t groups_c = s.c / kWinogradGroup, groups_k = s.k / kWinogradGroup;
  pool_.run(groups_c * groups_k,
            [&](int64_t pair, int) { kernels.filters(u, w.raw(), s.c, s.k, pair / groups_k, pair % groups_k); });
  convolve(kernels, y.raw(), x.raw(), nullptr, s, moments);
}

void Winograd::turn_filters(const WinogradKernels& kernels, const Tensor& w, const WinogradShape& s) {
  float* u = filters_.at_least(kWinogradPositions * s.c * s.k);
  const int64_t groups_c = s.c / kWinogradGroup, groups_k = s.k / kWinogradGroup;
  pool_.run(groups_c * groups_k,
            [&](int64_t pair, int) { kernels.turned_filters(u, w.raw(), s.c, s.k, pair / groups_k, pair % groups_k); });
}

void Winograd::backward_data(const Tensor& dx, const Tensor& dy, const Tensor& w) { data(dx, dy, w, nullptr); }

void Winograd::data(const Tensor& dx, const Tensor& dy, const Tensor& w, const Tensor* plus) {
  const WinogradKernels& kernels = kernels_for(dy.dtype());
  const WinogradShape s = shape_of(dy, w);
  turn_filters(kernels, w, s);
  convolve(kernels, dx.raw(), dy.raw(), plus ? plus->raw() : nullptr, {s.n, s.h, s.w, s.k, s.c}, nullptr);
}

// Calls work(sum, first, end, scratch) for pieces of the tiles, each of which gives a sum dw [k,3,3,c] of its own, and
// adds them up.
template <class Work>
void Winograd::for_weight_pieces(const WinogradKernels& kernels, float* dw, const WinogradShape& s, const Work& work) {
  const Pieces pieces(tiles(s), kernels.block, kWeightPieces);
  const int64_t count = s.k * 9 * s.c;
  if (pieces.count == 0) return void(std::memset(dw, 0, sizeof(float) * size_t(count)));

  // The first piece writes to dw itself, the others to partial sums.
  float* partial = partial_.at_least((pieces.count - 1) * count);
  const auto sum_of = [&](int64_t piece) { return piece == 0 ? dw : partial + (piece - 1) * count; };
  pool_.run(pieces.count, [&](int64_t piece, int thread) {
    const int64_t first = piece * pieces.size, end = std::min(tiles(s), first + pieces.size);
    work(sum_of(piece), first, end, scratch(kernels, thread, s));
  });

  // A fixed tree of pairs over the pieces; elements are shared out by the row of a filter, 3 c of them.
  pool_.run(s.k * 3, [&](int64_t row, int) {
    const int64_t begin = row * 3 * s.c, end = begin + 3 * s.c;
    for (int64_t distance = 1; distance < pieces.count; distance *= 2)
      for (int64_t p = 0; p + distance < pieces.count; p += 2 * distance) {
        float* a = sum_of(p);
        const float* b = sum_of(p + distance);
        for (int64_t i = begin; i < end; ++i) a[i] += b[i];
      }
  });
}

void Winograd::backward_weight(const Tensor& dw, const Tensor& dy, const Tensor& x) {
  const WinogradKernels& kernels = kernels_for(dy.dtype());
  const WinogradShape s = shape_of(x, dw);
  for_weight_pieces(kernels, dw.data<float>(), s, [&](float* sum, int64_t first, int64_t end, float* memory) {
    kernels.weight_gradient(sum, dy.raw(), x.raw(), s, first, end, memory);
  });
}

void Winograd::backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w,
                        const Tensor* plus) {
  const WinogradKernels& kernels = kernels_for(dy.dtype());
  const WinogradShape s = shape_of(x, w);
  if (s.c * s.k > kPairsAtOnce) {
    backward_weight(dw, dy, x);
    return data(dx, dy, w, plus);
  }
  turn_filters(kernels, w, s);
  for_weight_pieces(kernels, dw.data<float>(), s, [&](float* sum, int64_t first, int64_t end, float* memory) {
    kernels.backward(dx.raw(), sum, dy.raw(), x.raw(), plus ? plus->raw() : nullptr, filters_.data.get(), s, first, end,
                     memory);
  });
}

}  // namespace linnet
