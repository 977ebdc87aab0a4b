// The own kernels of bf16 once more, with AVX512_BF16, whose one instruction rounds 16 floats (simd.h). CMakeLists.txt
// compiles this one file for it; they are called only where the processor has that.
#ifdef __AVX512BF16__
#define SIMD_NAME(name) name##_avx512_bf16
#define SIMD_BF16_ONLY  // those of f32 would be kernels_avx512.cpp's
#include "avx512.h"
#include "batch_norm_kernel.h"
#include "winograd_kernel.h"
#endif
