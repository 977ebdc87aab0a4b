// How the own kernels use AVX-512's 32 registers of 16 floats.
#pragma once
#define SIMD_LANES 16
#define SIMD_WIDE 4          // vectors side by side in a row of channels: 32 registers in all
#define WINOGRAD_ROWS 8      // 8 x 2 sums and 2 vectors of 32 registers; a broadcast is part of the multiplication
#define WINOGRAD_BLOCK 16    // tiles: 2 x WINOGRAD_ROWS
#define WINOGRAD_PAIRS 2048  // a cache of 1 MB holds either, not both
