// What the driver of batch norm (batch_norm.cpp) and its kernels (batch_norm_kernel.h, compiled once per instruction
// set and element type) share.
#pragma once
#include <stdint.h>

namespace linnet {

// Where the ReLU's mask comes from: nowhere, the sign of a x + b, the sign of y.
enum class BnMask { none, from_x, from_y };

// On rows [rows, channels] that lie one after another; T is float or bf16. Everything else is [channels].
struct BnKernels {
  // sums [2, channels] += sums over rows of x - shift and of its square.
  void (*moments)(double* sums, const void* x, const void* shift, int64_t rows, int64_t channels);
  // y = a x + b (+ residual, unless null), then ReLU if asked for.
  void (*apply)(void* y, const void* x, const void* residual, const float* a, const float* b, bool relu, int64_t rows,
                int64_t channels);
  // With g = dy behind the mask: sums [2, channels] += sums of g and of g (x - mean); dresidual = g, unless null.
  void (*grad_sums)(double* sums, void* dresidual, const void* dy, const void* x, const void* y, BnMask,
                    const float* mean, const float* a, const float* b, int64_t rows, int64_t channels);
  // dx = a g + k (x - mean) + l.
  void (*grad)(void* dx, const void* dy, const void* x, const void* y, BnMask, const float* mean, const float* a,
               const float* b, const float* k, const float* l, int64_t rows, int64_t channels);
};

extern const BnKernels bn_f32_avx2, bn_bf16_avx2, bn_f32_avx512, bn_bf16_avx512, bn_bf16_avx512_bf16;

}  // namespace linnet
