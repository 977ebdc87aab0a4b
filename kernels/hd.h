// What every file in kernels/ may use: the marker for code that runs on both sides, and the 16-bit float.
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

}  // namespace linnet
