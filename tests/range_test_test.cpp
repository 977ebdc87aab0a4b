// The learning-rate range test: its rates, where it ends, and that it leaves no trace.
#include "src/lab/range_test.h"

#include <gtest/gtest.h>

#include "tiny_run.h"

namespace linnet {
namespace {

TEST(RangeTest, GoesFromTheFirstRateToTheLast) {
  TinyRun run(tiny_config("convnet"));
  const RangeTest test = range_test(run.trainer, 1e-5, 1e-2, 7);
  ASSERT_EQ(test.lr.size(), 7u);  // three epochs of it
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

TEST(RangeTest, ReadsTheRangeOffACurve) {
  std::vector<double> lr, loss;  // flat until 1e-4, falling until 1e-2, then rising
  for (int i = 0; i <= 60; ++i) {
    const double e = -6 + i / 10.0;
    lr.push_back(std::pow(10, e));
    loss.push_back(e < -4 ? 2 : e < -2 ? 2 - 0.5 * (e + 4) : 1 + 3 * (e + 2));
  }
  const LrRange r = lr_range(lr, loss);
  EXPECT_NEAR(std::log10(r.from), -3.8, 0.11);
  EXPECT_NEAR(std::log10(r.to), -2.2, 0.11);
  EXPECT_GT(r.steepest, r.from / 2);
  EXPECT_LT(r.steepest, r.to * 2);
  std::vector<double> back = loss;  // a late return from a peak is no range
  back[55] = 0.1;
  EXPECT_EQ(lr_range(lr, back).to, r.to);
  EXPECT_TRUE(std::isnan(lr_range(lr, std::vector<double>(lr.size(), 2.3)).to));
  EXPECT_EQ(smoothed({1, 2, 6, 2, 1}, 1), (std::vector<double>{1, 3, 10. / 3, 3, 1}));
}

}  // namespace
}  // namespace linnet
