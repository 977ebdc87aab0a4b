// Random numbers as a pure function: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// 2011). There is no generator state anywhere in Linnet. A draw is named by what it is for, so any thread order, any
// backend and a resumed run draw the same numbers, and sample k's crop in epoch e can be computed alone.
#pragma once
#include "hd.h"

namespace linnet {

// What a draw is for. It is part of the key: two purposes never share a number. Append only: the values are in every
// run.
enum class Draw : uint32_t {
  init = 1,
  shuffle = 2,
  augment = 3,
  dropout = 4,
  split = 5,
  synthetic = 6,
  test = 7,
  jitter = 8,
  cutout = 9,
  mix = 10
};

struct Random4 {
  uint32_t v[4];
};

// The bare generator; known-answer tests in tests/rng_test.cpp are Random123's.
LINNET_HD Random4 philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0;
    const uint64_t p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Four words named by (seed, purpose, item, epoch, stream). `item` is what is drawn for (a sample, an element), `epoch`
// when (an epoch, or the low word of a step), `stream` which of several at that place (a layer, a word of the epoch).
LINNET_HD Random4 random4(uint64_t seed, Draw purpose, uint64_t item, uint32_t epoch = 0, uint32_t stream = 0) {
  return philox4x32(uint32_t(item), uint32_t(item >> 32), epoch, stream, uint32_t(seed),
                    uint32_t(seed >> 32) ^ (uint32_t(purpose) * 0x9E3779B9u));
}

// Uniform in [0, 1): 24 bits, so that every value is exact in float.
LINNET_HD float unit_float(uint32_t u) { return float(u >> 8) * 0x1p-24f; }

// Uniform in 0..n-1 by multiplication (Lemire 2019) without the rejection step: the bias is below n / 2^32.
LINNET_HD uint32_t below(uint32_t u, uint32_t n) { return uint32_t((uint64_t(u) * n) >> 32); }

// Standard normal by Box and Muller, from two words. In double, so that the float result does not depend on libm's last
// bit.
LINNET_HD float normal_float(uint32_t a, uint32_t b) {
  const double u = (double(a) + 1.0) * 0x1p-32;  // (0, 1]
  const double angle = 6.283185307179586 * (double(b) * 0x1p-32);
  return float(sqrt(-2.0 * log(u)) * cos(angle));
}

}  // namespace linnet
