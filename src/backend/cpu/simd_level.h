// Which instruction set the own kernels use.
#pragma once

namespace linnet {

enum class Simd { avx2, avx512 };
Simd best_simd();  // the widest that this processor has

}  // namespace linnet
