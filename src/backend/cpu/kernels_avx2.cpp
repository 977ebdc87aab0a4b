// The own kernels with 8 floats to a vector: AVX2 and FMA, which the default LINNET_ARCH asks for.
#define SIMD_NAME(name) name##_avx2
#define SIMD_LANES 8
#define SIMD_WIDE 2          // vectors side by side in a row of channels: 16 registers in all
#define WINOGRAD_ROWS 6      // 6 x 2 sums, 2 vectors and a broadcast: 15 of 16 registers
#define WINOGRAD_BLOCK 18    // tiles: 3 x WINOGRAD_ROWS
#define WINOGRAD_PAIRS 4096  // caches of 512 KB hold neither the filters nor the sums, so nothing is lost
#include "batch_norm_kernel.h"
#include "peak_kernel.h"
#include "winograd_kernel.h"
