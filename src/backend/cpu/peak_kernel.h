// As many multiplications and additions as a core can do: nothing but registers is touched.
#include "peak_table.h"
#include "simd.h"

namespace linnet {
namespace {

// Enough independent sums to hide an addition's latency; they and two factors fit into the registers.
constexpr int kSums = 12;

double multiply_add(int64_t rounds) {
  V sums[kSums], a{}, b{};
  for (int i = 0; i < kSums; ++i) sums[i] = V{} + float(i);
  a += 0.5f, b += 1e-3f;
  for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) {
      sums[i] = sums[i] * a + b;
      asm volatile("" : "+v"(sums[i]));  // is needed, and not known beforehand
    }
  for (int i = 1; i < kSums; ++i) sums[0] += sums[i];
  float out[kLanes];
  store(out, sums[0]);
  return double(out[0]);
}

}  // namespace

extern const PeakKernel SIMD_NAME(peak) = {2 * kSums * kLanes, multiply_add};

}  // namespace linnet
