// The own kernels with 16 floats to a vector. CMakeLists.txt compiles this one file for AVX-512; they are called only
// where the processor has that.
#ifdef __AVX512F__
#define SIMD_NAME(name) name##_avx512
#define SIMD_LANES 16
#define SIMD_WIDE 4        // vectors side by side in a row of channels: 32 registers in all
#define WINOGRAD_ROWS 8    // 8 x 2 sums and 2 vectors of 32 registers; a broadcast is part of the multiplication
#define WINOGRAD_BLOCK 16  // tiles: 2 x WINOGRAD_ROWS
#include "batch_norm_kernel.h"
#include "peak_kernel.h"
#include "winograd_kernel.h"
#endif
