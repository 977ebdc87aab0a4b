// What every file in kernels/ may use: the marker for code that runs on both sides, and the 16-bit floats.
// The files of this folder include nothing but <cmath>, <cstdint>, <variant> and one another, so that g++ and nvcc read
// the very same source: a CPU test of a functor tests the code that runs on the GPU.
#pragma once
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define LINNET_HD __host__ __device__ __forceinline__
#else
#define LINNET_HD inline __attribute__((always_inline))
#endif

namespace linnet {

LINNET_HD uint32_t float_bits(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, sizeof u);
  return u;
}
LINNET_HD float bits_float(uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, sizeof x);
  return x;
}

// By the bits: a compiler that was told to assume finite numbers (-ffast-math) answers isfinite() with "yes".
LINNET_HD bool is_finite(double x) {
  uint64_t u;
  __builtin_memcpy(&u, &x, sizeof u);
  return (u >> 52 & 0x7FF) != 0x7FF;
}

// What a kernel's loop calls: the functor itself, or its local(), which has read what is the same for all elements.
template <class F>
LINNET_HD auto loop_body(const F& f) {
  if constexpr (requires { f.local(); })
    return f.local();
  else
    return f;
}

// bfloat16: the upper half of a float. Arithmetic is done in float; only loads and stores convert.
struct bf16 {
  uint16_t bits;
  bf16() = default;
  // Round to nearest, ties to even; a NaN stays a NaN (adding the rounding constant could turn it into infinity).
  LINNET_HD explicit bf16(float x) {
    const uint32_t u = float_bits(x);
    const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    bits = uint16_t((u & 0x7FFFFFFFu) > 0x7F800000u ? (u >> 16) | 0x40u : rounded);
  }
  LINNET_HD explicit operator float() const { return bits_float(uint32_t(bits) << 16); }
};
static_assert(sizeof(bf16) == 2);

// IEEE half precision: 5 bits of exponent, 10 of fraction; the largest number is 65504, the smallest 2^-24.
struct fp16 {
  uint16_t bits;
  fp16() = default;
#ifdef __CUDA_ARCH__
  LINNET_HD explicit fp16(float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
  LINNET_HD explicit operator float() const {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
  }
#else
  // Round to nearest, ties to even. Without float denormals, which the CPU's threads flush to zero.
  LINNET_HD explicit fp16(float x) {
    const uint32_t sign = float_bits(x) >> 16 & 0x8000u, u = float_bits(x) & 0x7FFFFFFFu;
    uint32_t rounded;
    if (u > 0x7F800000u)  // a NaN stays one
      rounded = 0x7E00u;
    else if (u >= 0x477FF000u)  // from 65520 on
      rounded = 0x7C00u;
    else if (u < 0x38800000u)  // below 2^-14: next to 0.5 a float's last place is 2^-24
      rounded = float_bits(bits_float(u) + 0.5f) - 0x3F000000u;
    else
      rounded = (u - 0x38000000u + 0xFFFu + (u >> 13 & 1u)) >> 13;
    bits = uint16_t(sign | rounded);
  }
  LINNET_HD explicit operator float() const {
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16, u = bits & 0x7FFFu;
    if (u < 0x400u) return bits_float(sign | float_bits(float(u) * 0x1p-24f));
    return bits_float(sign | ((u << 13) + (u >= 0x7C00u ? 0x70000000u : 0x38000000u)));
  }
#endif
};
static_assert(sizeof(fp16) == 2);

}  // namespace linnet
