// What the Winograd driver (winograd.cpp) and its kernels (winograd_kernel.h, compiled once per instruction set and
// element type) share.
#pragma once
#include <stdint.h>

namespace linnet {

constexpr int kWinogradGroup = 16;      // channels come in groups of this many
constexpr int kWinogradPositions = 36;  // of a transformed 6x6 tile

// A 3x3 convolution with stride 1 and one pixel of zero padding: n images of h x w pixels, c channels in, k channels
// out. Its output is cut into tiles of 4x4 pixels, numbered through all images.
struct WinogradShape {
  int64_t n, h, w, c, k;
};

// Sums over an output's channels, for batch normalisation: [channels] each, of y - shift and of its square.
struct WinogradSums {
  float* shift;  // written: the first pixel
  double *sum, *squares;
  double pixels;  // how many were added
};

// Functions of one instruction set. Each runs on the calling thread and touches only what its arguments name. Memory
// named scratch, filters or sums is aligned to 64 bytes; activations and weights, float or bf16, need no alignment.
struct WinogradKernels {
  int64_t block;  // tiles worked on at a time; a piece of work is best a multiple of it

  // How many floats convolve, weight_gradient and backward need as scratch, for c and k as below.
  int64_t (*scratch_size)(int64_t c, int64_t k);

  // Transforms one group of input channels of one group of filters: w [k,3,3,c] -> filters [36, k/16, c, 16].
  void (*filters)(float* filters, const void* w, int64_t c, int64_t k, int64_t group_c, int64_t group_k);
  // The same for backward-data, a convolution with the filters turned by 180 degrees and c and k in each other's place:
  // w [k,3,3,c] -> filters [36, c/16, k, 16].
  void (*turned_filters)(float* filters, const void* w, int64_t c, int64_t k, int64_t group_c, int64_t group_k);

  // y [n,h,w,k] = x [n,h,w,c] * filters (+ plus, unless null; it may be y), for the output tiles first..end-1. sums,
  // unless null, get those of y without plus.
  void (*convolve)(void* y, const void* x, const void* plus, const float* filters, const WinogradShape&, int64_t first,
                   int64_t end, float* scratch, WinogradSums* sums);

  // dw [k,3,3,c] = what the tiles first..end-1 of x [n,h,w,c] add to the weight gradient, given all of dy [n,h,w,k].
  void (*weight_gradient)(float* dw, const void* dy, const void* x, const WinogradShape&, int64_t first, int64_t end,
                          float* scratch);
  // That, and those tiles of dx [n,h,w,c] = dy * turned filters (+ plus).
  void (*backward)(void* dx, float* dw, const void* dy, const void* x, const void* plus, const float* turned_filters,
                   const WinogradShape&, int64_t first, int64_t end, float* scratch);
};

extern const WinogradKernels winograd_f32_avx2, winograd_bf16_avx2, winograd_f32_avx512, winograd_bf16_avx512;

}  // namespace linnet
