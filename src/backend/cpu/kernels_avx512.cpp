// The own kernels with 16 floats to a vector. CMakeLists.txt compiles this one file for AVX-512; they are called only
// where the processor has that.
#ifdef __AVX512F__
#define SIMD_NAME(name) name##_avx512
#include "avx512.h"
#include "batch_norm_kernel.h"
#include "peak_kernel.h"
#include "winograd_kernel.h"
#endif
