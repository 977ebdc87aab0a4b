// The Winograd kernels with 16 floats to a vector. CMakeLists.txt compiles this one file for AVX-512; winograd.cpp
// calls it only where the processor has that.
#ifdef __AVX512F__
#define WINOGRAD_TABLE winograd_avx512
#define WINOGRAD_LANES 16
#define WINOGRAD_ROWS 8    // 8 x 2 sums and 2 vectors of 32 registers; a broadcast is part of the multiplication
#define WINOGRAD_BLOCK 16  // tiles: 2 x WINOGRAD_ROWS
#include "winograd_kernel.h"
#endif
