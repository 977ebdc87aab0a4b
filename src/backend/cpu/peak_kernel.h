// As many multiplications and additions as a core can do: nothing but registers is touched.
#include "peak_table.h"
#include "simd.h"

namespace linnet {
namespace {

// Enough independent sums to hide an addition's latency; they and two factors fit into the registers. (An array of them
// would lie in memory.)
constexpr int kSums = 12;

double multiply_add(int64_t rounds) {
  V a{}, b{};
  a += 0.5f, b += 1e-3f;
  V s0 = b, s1 = s0 + b, s2 = s1 + b, s3 = s2 + b, s4 = s3 + b, s5 = s4 + b;  // no two the same
  V s6 = s5 + b, s7 = s6 + b, s8 = s7 + b, s9 = s8 + b, s10 = s9 + b, s11 = s10 + b;
  for (int64_t r = 0; r < rounds; ++r) {
    s0 = s0 * a + b, s1 = s1 * a + b, s2 = s2 * a + b, s3 = s3 * a + b, s4 = s4 * a + b, s5 = s5 * a + b;
    s6 = s6 * a + b, s7 = s7 * a + b, s8 = s8 * a + b, s9 = s9 * a + b, s10 = s10 * a + b, s11 = s11 * a + b;
#ifdef __x86_64__
    asm volatile("" : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3), "+v"(s4), "+v"(s5));  // all are wanted
    asm volatile("" : "+v"(s6), "+v"(s7), "+v"(s8), "+v"(s9), "+v"(s10), "+v"(s11));
#endif
  }
  float out[kLanes];
  store(out, s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11);
  return double(out[0]);
}

}  // namespace

extern const PeakKernel SIMD_NAME(peak) = {2 * kSums * kLanes, multiply_add};

}  // namespace linnet
