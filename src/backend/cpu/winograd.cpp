#include "winograd.h"

#include <algorithm>
#include <cstring>

namespace linnet {

namespace {

const WinogradKernels& kernels_of(Simd simd) {
#ifdef __x86_64__
  if (simd == Simd::avx512) return winograd_avx512;
#endif
  (void)simd;
  return winograd_avx2;
}

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

}  // namespace

Simd best_simd() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq"))
    return Simd::avx512;
#endif
  return Simd::avx2;
}

Winograd::Winograd(ThreadPool& pool, Simd simd)
    : pool_(pool), kernels_(kernels_of(simd)), scratch_(size_t(pool.threads())) {
  require(simd != Simd::avx512 || best_simd() == Simd::avx512, "[winograd] this processor has no AVX-512");
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

float* Winograd::scratch(int thread, const WinogradShape& s) {
  return scratch_[size_t(thread)].at_least(kernels_.scratch_size(s.c, s.k));
}

void Winograd::convolve(float* y, const float* x, const WinogradShape& s) {
  const Pieces pieces(tiles(s), kernels_.block, kPieces);
  pool_.run(pieces.count, [&](int64_t piece, int thread) {
    const int64_t first = piece * pieces.size, end = std::min(tiles(s), first + pieces.size);
    kernels_.convolve(y, x, filters_.data.get(), s, first, end, scratch(thread, s));
  });
}

void Winograd::forward(float* y, const float* x, const float* w, const WinogradShape& s) {
  float* u = filters_.at_least(kWinogradPositions * s.c * s.k);
  const int64_t groups_c = s.c / kWinogradGroup, groups_k = s.k / kWinogradGroup;
  pool_.run(groups_c * groups_k,
            [&](int64_t pair, int) { kernels_.filters(u, w, s.c, s.k, pair / groups_k, pair % groups_k); });
  convolve(y, x, s);
}

void Winograd::backward_data(float* dx, const float* dy, const float* w, const WinogradShape& s) {
  float* u = filters_.at_least(kWinogradPositions * s.c * s.k);
  const int64_t groups_c = s.c / kWinogradGroup, groups_k = s.k / kWinogradGroup;
  pool_.run(groups_c * groups_k,
            [&](int64_t pair, int) { kernels_.turned_filters(u, w, s.c, s.k, pair / groups_k, pair % groups_k); });
  convolve(dx, dy, {s.n, s.h, s.w, s.k, s.c});
}

void Winograd::backward_weight(float* dw, const float* dy, const float* x, const WinogradShape& s) {
  const Pieces pieces(tiles(s), kernels_.block, kWeightPieces);
  const int64_t count = s.k * 9 * s.c;
  if (pieces.count == 0) return void(std::memset(dw, 0, sizeof(float) * size_t(count)));

  // The first piece writes to dw itself, the others to partial sums.
  float* partial = partial_.at_least((pieces.count - 1) * count);
  const auto sum_of = [&](int64_t piece) { return piece == 0 ? dw : partial + (piece - 1) * count; };
  pool_.run(pieces.count, [&](int64_t piece, int thread) {
    const int64_t first = piece * pieces.size, end = std::min(tiles(s), first + pieces.size);
    kernels_.weight_gradient(sum_of(piece), dy, x, s, first, end, scratch(thread, s));
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

}  // namespace linnet
