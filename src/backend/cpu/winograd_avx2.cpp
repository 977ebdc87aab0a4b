// The Winograd kernels with 8 floats to a vector: AVX2 and FMA, which the default LINNET_ARCH asks for.
#define WINOGRAD_TABLE winograd_avx2
#define WINOGRAD_LANES 8
#define WINOGRAD_ROWS 6    // 6 x 2 sums, 2 vectors and a broadcast: 15 of 16 registers
#define WINOGRAD_BLOCK 18  // tiles: 3 x WINOGRAD_ROWS
#include "winograd_kernel.h"
