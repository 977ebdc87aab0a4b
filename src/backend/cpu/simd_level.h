// Which instruction set the own kernels use.
#pragma once

namespace linnet {

// Each has what the ones before it have. avx512_bf16: floats are rounded to bf16 by one instruction (f32 is AVX-512's);
// amx: matrix products of bf16 in tiles.
enum class Simd { avx2, avx512, avx512_bf16, amx };
Simd best_simd();  // the widest that this processor has, and that the system lets us use
const char* name_of(Simd);

}  // namespace linnet
