// The generator against Random123's known answers, and what is made of its words against stored numbers.
#include "kernels/rng.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <set>
#include <vector>

namespace linnet {
namespace {

std::array<uint32_t, 4> words(const Random4& r) { return {r.v[0], r.v[1], r.v[2], r.v[3]}; }
using Words = std::array<uint32_t, 4>;

TEST(Philox, KnownAnswersOfRandom123) {
  EXPECT_EQ(words(philox4x32(0, 0, 0, 0, 0, 0)), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(words(philox4x32(~0u, ~0u, ~0u, ~0u, ~0u, ~0u)), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(words(philox4x32(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0)),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// Computed once by another implementation (Python). A run's numbers must not change with the program's version.
TEST(Random, NamesItsNumbersAsEver) {
  EXPECT_EQ(words(random4(0x0123456789abcdef, Draw::augment, 0xfedcba9876543210, 7, 5)),
            (Words{0x4e9bfe00, 0xc0e4fe73, 0x025a9058, 0xf01ff329}));
}

TEST(Random, EveryPartOfTheNameCounts) {
  const uint64_t high = uint64_t(1) << 32;
  const std::set<Words> all = {
      words(random4(1, Draw::init, 1, 1, 1)),        words(random4(2, Draw::init, 1, 1, 1)),
      words(random4(1 + high, Draw::init, 1, 1, 1)), words(random4(1, Draw::shuffle, 1, 1, 1)),
      words(random4(1, Draw::init, 2, 1, 1)),        words(random4(1, Draw::init, 1 + high, 1, 1)),
      words(random4(1, Draw::init, 1, 2, 1)),        words(random4(1, Draw::init, 1, 1, 2))};
  EXPECT_EQ(all.size(), 8u);
}

TEST(Random, UnitFloatAndBelowKeepTheirValues) {
  EXPECT_EQ(unit_float(0), 0.f);
  EXPECT_EQ(unit_float(0xff), 0.f);
  EXPECT_EQ(unit_float(0x100), 0x1p-24f);
  EXPECT_EQ(unit_float(0x80000000), 0.5f);
  EXPECT_EQ(unit_float(0xd16cfe09), 0.818069338798523f);
  EXPECT_EQ(unit_float(~0u), 1 - 0x1p-24f);

  EXPECT_EQ(below(0, 9), 0u);
  EXPECT_EQ(below(0x80000000, 9), 4u);
  EXPECT_EQ(below(0xd16cfe09, 50000), 40903u);
  EXPECT_EQ(below(~0u, 1), 0u);
  EXPECT_EQ(below(~0u, 50000), 49999u);
}

TEST(Random, NormalFloatKeepsItsValues) {
  EXPECT_FLOAT_EQ(normal_float(0, 0), 6.66043711f);  // the largest there is
  EXPECT_FLOAT_EQ(normal_float(0, 0x80000000), -6.66043711f);
  EXPECT_EQ(normal_float(~0u, 0), 0.f);
  EXPECT_FLOAT_EQ(normal_float(0xd16cfe09, 0x94fdcceb), -0.551467896f);
  EXPECT_FLOAT_EQ(normal_float(0x5001e420, 0x24126ea1), 0.965467155f);
}

// Fixed seed, so that the bounds (four standard errors) hold for ever or never.
TEST(Random, NormalHasTheMomentsOfANormal) {
  constexpr int n = 200000;
  double sum[5] = {};
  int beyond_two = 0;
  for (int i = 0; i < n; ++i) {
    const Random4 r = random4(5, Draw::test, uint64_t(i));
    const double x = double(normal_float(r.v[0], r.v[1]));
    beyond_two += std::abs(x) > 2;
    for (double power = 1; double& s : sum) s += power, power *= x;
  }
  const double root = std::sqrt(double(n));
  EXPECT_NEAR(sum[1] / n, 0, 4 / root);
  EXPECT_NEAR(sum[2] / n, 1, 4 * std::sqrt(2.0) / root);
  EXPECT_NEAR(sum[3] / n, 0, 4 * std::sqrt(15.0) / root);
  EXPECT_NEAR(sum[4] / n, 3, 4 * std::sqrt(96.0) / root);
  EXPECT_NEAR(double(beyond_two) / n, 0.0455, 4 * 0.21 / root);
}

TEST(Random, BelowIsUniform) {
  constexpr int n = 100000, k = 9;
  std::array<int, k> count{};
  for (int i = 0; i < n; ++i) ++count[below(random4(3, Draw::test, uint64_t(i)).v[2], k)];
  double chi_square = 0;
  for (const int c : count) chi_square += (c - double(n) / k) * (c - double(n) / k) / (double(n) / k);
  EXPECT_LE(chi_square, 26.1);  // 8 degrees of freedom: exceeded with probability 0.001
}

}  // namespace
}  // namespace linnet
