// Vectors of SIMD_LANES floats, for kernels that are compiled once per instruction set (kernels_*.cpp): the vector
// extension that GCC and clang share, and two intrinsics where they take half of a bf16 kernel's loads and most of its
// stores away. Elements in memory are float or bf16, arithmetic is in float.
//
// Such files must not include C++ headers (what <immintrin.h> defines is inlined always): an inline function of theirs,
// compiled here for AVX-512, could be the copy that the linker keeps for everyone. All functions are in an unnamed
// namespace for the same reason.
#pragma once
#include <stdint.h>
#ifdef __AVX512BW__
#include <immintrin.h>
#endif

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
#ifdef __AVX512BW__
  if constexpr (sizeof(Vec) == sizeof(__m512)) {  // each number to the upper half of a float: one instruction, not two
    const __m512i upper = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0,
                                           3, 0, 2, 0, 1, 0, 0, 0);
    const __m512i words = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return same_bits<Vec>(_mm512_maskz_permutexvar_epi16(0xAAAAAAAA, upper, words));
  }
#endif
  typename Bits<Vec>::Narrow h;
  __builtin_memcpy(&h, p, sizeof h);
  return same_bits<Vec>(widened(h));
}
template <class Vec>
inline void store(Half* p, Vec v) {
#ifdef __AVX512BF16__
  if constexpr (sizeof(Vec) == sizeof(__m512)) {  // the same bits, but for numbers below 2^-126, which become 0
    const __m256bh h = _mm512_cvtneps_pbh(same_bits<__m512>(v));
    __builtin_memcpy(p, &h, sizeof h);
    return;
  }
#endif
  const auto h = narrowed(same_bits<typename Bits<Vec>::Word>(v));
  __builtin_memcpy(p, &h, sizeof h);
}

}  // namespace
}  // namespace linnet
