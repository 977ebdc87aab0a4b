// The learning-rate range test: its rates, where it ends, and that it leaves no trace.
#include "src/lab/range_test.h"

#include <gtest/gtest.h>

#include <random>

#include "tiny_run.h"

namespace linnet {
namespace {

TEST(RangeTest, GoesFromTheFirstRateToTheLast) {
  TinyRun run(tiny_config("convnet"));
  const RangeTest test = range_test(run.trainer, 1e-5, 1e-2, 7);
  ASSERT_EQ(test.lr.size(), 7u);  // three epochs of it
  EXPECT_EQ(test.steps, 7);
  EXPECT_DOUBLE_EQ(test.lr.front(), 1e-5);
  EXPECT_NEAR(test.lr.back(), 1e-2, 1e-12);  // not 1e-2 / gamma
  EXPECT_NEAR(test.lr[1] / test.lr[0], std::pow(1e3, 1. / 6), 1e-9);
  EXPECT_FALSE(test.diverged);
}

TEST(RangeTest, LeavesWeightsStateAndOrderAsTheyWere) {
  TinyRun tested(tiny_config("convnet")), plain(tiny_config("convnet"));
  for (TinyRun* r : {&tested, &plain}) r->trainer.step();
  const std::string before = tested.trainer.state_hash();
  range_test(tested.trainer, 1e-4, 1, 8);
  EXPECT_EQ(tested.trainer.state_hash(), before);
  for (int i = 0; i < 2; ++i) {
    for (TinyRun* r : {&tested, &plain}) r->trainer.step();
    EXPECT_EQ(tested.trainer.last_loss(), plain.trainer.last_loss());
    EXPECT_EQ(tested.trainer.learning_rate(i), plain.trainer.learning_rate(i));
  }
  EXPECT_EQ(tested.trainer.state_hash(), plain.trainer.state_hash());
}

TEST(RangeTest, EndsWhereTheLossIsNotANumber) {
  TinyRun run(tiny_config("convnet_nobn"));
  const RangeTest test = range_test(run.trainer, 1e-3, 1e6, 30);
  EXPECT_TRUE(test.diverged);
  EXPECT_LT(test.loss.size(), 30u);
  ASSERT_FALSE(test.loss.empty());
  for (const double loss : test.loss) EXPECT_LT(loss, 10 * test.loss[0]);  // false for NaN
  run.trainer.step();                                                      // and the trainer is sound
  EXPECT_TRUE(std::isfinite(run.trainer.last_loss()));
}

const double kChance = std::log(10);

TEST(RangeTest, ReadsTheRangeOffACurve) {
  std::vector<double> lr, loss;  // flat until 1e-4, falling until 1e-2, then rising
  for (int i = 0; i <= 60; ++i) {
    const double e = -6 + i / 10.0;
    lr.push_back(std::pow(10, e));
    loss.push_back(e < -4 ? 2 : e < -2 ? 2 - 0.5 * (e + 4) : 1 + 3 * (e + 2));
  }
  const LrRange r = lr_range({lr, loss}, 2, kChance);
  EXPECT_EQ(r.doubt, "");
  EXPECT_NEAR(std::log10(r.from), -3.8, 0.11);
  EXPECT_NEAR(std::log10(r.to), -2.2, 0.11);
  EXPECT_NEAR(std::log10(r.steepest), -3, 0.6);
  std::vector<double> back = loss;  // a late return from a peak is no range
  for (size_t i = 50; i < 58; ++i) back[i] = 0.1;
  EXPECT_EQ(lr_range({lr, back}, 2, kChance).to, r.to);
  EXPECT_TRUE(std::isnan(lr_range({lr, std::vector<double>(lr.size(), 2.3)}, 2, kChance).to));
  EXPECT_EQ(smoothed({1, 2, 6, 2, 1}, 1), (std::vector<double>{1, 3, 10. / 3, 3, 1}));
}

// 60 rates from 1e-6 to 10: level 2.4 with noise of deviation 0.2, falling by `fall` over the decade before 10^to,
// and rising behind it.
RangeTest noisy_curve(unsigned seed, double fall, double to = -2) {
  std::mt19937 random(seed);
  RangeTest test;
  for (int i = 0; i < 60; ++i) {
    const double e = -6 + 7 * i / 59.0;
    double noise = -6;
    for (int k = 0; k < 12; ++k) noise += double(random()) / 4294967296.0;
    test.lr.push_back(std::pow(10, e));
    test.loss.push_back(2.4 - fall * std::clamp(e - to + 1, 0.0, 1.0) + 3 * std::max(0.0, e - to) + 0.2 * noise);
  }
  return test;
}

TEST(RangeTest, NoiseIsNoFall) {
  int found = 0;
  for (unsigned seed = 0; seed < 100; ++seed) {
    const RangeTest flat = noisy_curve(seed, 0);
    const LrRange r = lr_range(flat, 2, kChance);
    found += r.doubt.empty();
    EXPECT_EQ(std::isnan(r.to), !r.doubt.empty());
  }
  EXPECT_LE(found, 4);
  EXPECT_NE(seeds_range({noisy_curve(0, 0), noisy_curve(1, 0)}, 2, kChance).range.doubt.find("no clear fall"),
            std::string::npos);
}

TEST(RangeTest, SeedsTogetherGiveAnOrderedRangeAtItsPlace) {
  for (unsigned seed = 0; seed < 100; seed += 4) {
    std::vector<RangeTest> tests;
    for (unsigned k = 0; k < 4; ++k) tests.push_back(noisy_curve(seed + k, 0.7));
    const SeedsRange found = seeds_range(tests, 2, kChance);
    ASSERT_EQ(found.range.doubt, "") << seed;
    EXPECT_LE(found.range.from, found.range.steepest) << seed;
    EXPECT_LE(found.range.steepest, found.range.to) << seed;
    EXPECT_NEAR(std::log10(found.range.to), -2.1, 0.4) << seed;
    EXPECT_NEAR(std::log10(found.range.steepest), -2.5, 0.6) << seed;
  }
}

TEST(RangeTest, SeedsThatDisagreeGiveNoRange) {
  const SeedsRange found = seeds_range({noisy_curve(0, 1, -3.5), noisy_curve(1, 1, -1)}, 2, kChance);
  for (const LrRange& one : found.seeds) EXPECT_EQ(one.doubt, "");
  EXPECT_NE(found.range.doubt.find("the seeds disagree: the loss falls until"), std::string::npos) << found.range.doubt;
  EXPECT_TRUE(std::isnan(found.range.to));
}

TEST(RangeTest, AReturnFromALeapIsNoFall) {
  std::vector<double> lr, loss = {2.4, 6, 9, 12};
  while (loss.size() < 40) loss.push_back(12.0 - 0.2 * double(loss.size()));
  for (size_t i = 0; i < loss.size(); ++i) lr.push_back(std::pow(10, 3 + 0.1 * double(i)));
  const std::string rises = "the loss rises from the first rates on, before it could fall";
  EXPECT_EQ(lr_range({lr, loss}, 2, kChance).doubt, rises);
  EXPECT_EQ(lr_range({{1e3}, {2.4}, true, 40}, 2, kChance).doubt, rises);
}

TEST(RangeTest, FewRatesAreTooFewWhateverTheLossDoes) {
  const LrRange few = lr_range({{1e-3, 1e-2, 1e-1}, {2.4, 2.4, 2.4}, true, 10}, 2, kChance);
  EXPECT_NE(few.doubt.find("10 rates are too few"), std::string::npos) << few.doubt;
  EXPECT_EQ(few.cure, "more --steps");
}

// From 3.3 to ln 10 within the noise: what is unlearnt is a first answer, and the rate at which that goes teaches
// little.
TEST(RangeTest, AFallDownToGuessingIsInDoubt) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    std::vector<RangeTest> tests;
    for (unsigned k = 0; k < 3; ++k) {
      tests.push_back(noisy_curve(3 * seed + k, 1));
      for (double& y : tests.back().loss) y += kChance + 1 - 2.4;
    }
    const SeedsRange found = seeds_range(tests, 2, kChance);
    EXPECT_NE(found.range.doubt.find("of guessing"), std::string::npos) << seed << found.range.doubt;
    EXPECT_EQ(seeds_range(tests, 2, kChance + 1).range.doubt, "") << seed;  // of more classes it would be a range
  }
}

TEST(RangeTest, WhatNoSeedShowsAloneIsInDoubt) {
  std::vector<RangeTest> tests;  // each falls by less than its noise bears, the mean of 30 by more
  for (unsigned k = 0; k < 30; ++k) tests.push_back(noisy_curve(k, 0.3));
  const SeedsRange found = seeds_range(tests, 2, kChance);
  EXPECT_NE(found.range.doubt.find("fewer than half"), std::string::npos) << found.range.doubt;
  EXPECT_NE(found.range.cure.find("--steps"), std::string::npos);
}

// More seeds find one outside sooner or later: that alone is no disagreement.
TEST(RangeTest, OneOfManySeedsMayLieApart) {
  std::vector<RangeTest> tests;
  for (unsigned k = 0; k < 7; ++k) tests.push_back(noisy_curve(k, 1, k == 0 ? -3.6 : -2));
  const SeedsRange found = seeds_range(tests, 2, kChance);
  EXPECT_EQ(found.range.doubt, "");
  EXPECT_LT(found.seeds[0].to, 1e-3);
}

}  // namespace
}  // namespace linnet
