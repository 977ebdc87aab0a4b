// Which instruction set the own kernels use.
#pragma once

namespace linnet {

enum class Simd { avx2, avx512, amx };  // each has what the ones before it have; amx: matrix products of bf16 in tiles
Simd best_simd();                       // the widest that this processor has, and that the system lets us use

}  // namespace linnet
