// Vectors of SIMD_LANES floats, for kernels that are compiled once per instruction set (kernels_avx2.cpp,
// kernels_avx512.cpp): the vector extension that GCC and clang share. Elements in memory are float or bf16, arithmetic
// is in float.
//
// Such files must not include C++ headers: an inline function of theirs, compiled here for AVX-512, could be the copy
// that the linker keeps for everyone. All functions are in an unnamed namespace for the same reason.
#pragma once
#include <stdint.h>

namespace linnet {
namespace {

constexpr int kLanes = SIMD_LANES;
using V = float __attribute__((vector_size(kLanes * sizeof(float))));
using Half = uint16_t;  // bf16 (kernels/hd.h): the upper half of a float

template <class Vec>
constexpr int kWidth = int(sizeof(Vec) / sizeof(float));  // Vec: V, or float where less than a vector is left

using Words = uint32_t __attribute__((vector_size(kLanes * sizeof(uint32_t))));
using Halves = Half __attribute__((vector_size(kLanes * sizeof(Half))));

template <class Vec = V>
inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class Vec>
inline void store(float* p, Vec v) {
  __builtin_memcpy(p, &v, sizeof v);
}

inline uint32_t widened(Half h) { return uint32_t(h) << 16; }
inline Words widened(Halves h) { return __builtin_convertvector(h, Words) << 16; }

// To nearest, ties to even. A NaN stays one (training is stopped by it): only its lower half may be set.
template <class W>
inline W rounded(W u) {
  return (u & 0x7FFFFFFF) > 0x7F800000 ? (u >> 16) | 0x40 : (u + 0x7FFF + ((u >> 16) & 1)) >> 16;
}
inline Half narrowed(uint32_t u) { return Half(rounded(u)); }
inline Halves narrowed(Words u) { return __builtin_convertvector(rounded(u), Halves); }

template <class To, class From>
inline To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class Vec>
struct Bits {
  using Word = Words;
  using Narrow = Halves;
};
template <>
struct Bits<float> {
  using Word = uint32_t;
  using Narrow = Half;
};

template <class Vec = V>
inline Vec load(const Half* p) {
  typename Bits<Vec>::Narrow h;
  __builtin_memcpy(&h, p, sizeof h);
  return same_bits<Vec>(widened(h));
}
template <class Vec>
inline void store(Half* p, Vec v) {
  const auto h = narrowed(same_bits<typename Bits<Vec>::Word>(v));
  __builtin_memcpy(p, &h, sizeof h);
}

}  // namespace
}  // namespace linnet
