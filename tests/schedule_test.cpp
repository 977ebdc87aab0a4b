// Learning rates against worked examples, computed in double elsewhere.
#include "linnet/schedule.h"

#include <gtest/gtest.h>

#include "linnet/config.h"
#include "linnet/error.h"

namespace linnet {
namespace {

struct At {
  int64_t step;
  double lr;
};

void expect_rates(const Schedule& schedule, const std::vector<At>& expected) {
  for (const auto& [step, lr] : expected) EXPECT_NEAR(double(schedule(step)), lr, 2e-6 * lr) << "step " << step;
}

TEST(Schedule, Constant) { expect_rates(constant_lr(0.1f), {{0, 0.1}, {1000000, 0.1}}); }

// StepLR(0.001, step 30, gamma 0.1).
TEST(Schedule, MultistepAtEqualDistances) {
  expect_rates(multistep_lr(1e-3f, {30, 60, 90}, 0.1f),
               {{0, 1e-3}, {29, 1e-3}, {30, 1e-4}, {59, 1e-4}, {60, 1e-5}, {89, 1e-5}, {90, 1e-6}, {99, 1e-6}});
}

TEST(Schedule, Multistep) {
  expect_rates(multistep_lr(0.1f, {60, 120}, 0.1f),
               {{0, 0.1}, {59, 0.1}, {60, 0.01}, {119, 0.01}, {120, 0.001}, {199, 0.001}});
}

// The first value is a fifth, not 0; the last of the warmup is the full rate.
TEST(Schedule, WarmupThenMultistep) {
  expect_rates(warmup_lr(0.1f, 5, multistep_lr(0.1f, {100, 150}, 0.1f)), {{0, 0.02},
                                                                          {1, 0.04},
                                                                          {2, 0.06},
                                                                          {3, 0.08},
                                                                          {4, 0.1},
                                                                          {5, 0.1},
                                                                          {99, 0.1},
                                                                          {100, 0.01},
                                                                          {149, 0.01},
                                                                          {150, 0.001},
                                                                          {199, 0.001}});
}

TEST(Schedule, CosineToZero) {
  const Schedule s = cosine_lr(0.1f, 0, 200, 0);
  expect_rates(
      s, {{0, 0.1}, {50, 0.08535533905932738}, {100, 0.05}, {150, 0.014644660940672627}, {199, 6.168375916970615e-06}});
  EXPECT_EQ(s(200), 0.f);
  EXPECT_EQ(s(1000), 0.f);
}

// CosineAnnealingLR(T_max 100, eta_min 1e-6).
TEST(Schedule, CosineToAFloor) {
  expect_rates(cosine_lr(1e-3f, 0, 100, 1e-6f), {{0, 1e-3},
                                                 {1, 0.0009997535269026829},
                                                 {25, 0.0008536998372026805},
                                                 {50, 0.0005005},
                                                 {75, 0.00014730016279731955},
                                                 {99, 1.2464730973170658e-06},
                                                 {100, 1e-6}});
}

const std::vector<At> kWarmupCosine = {{0, 1e-4},
                                       {4, 5e-4},
                                       {9, 1e-3},
                                       {10, 1e-3},
                                       {32, 0.0008598102302691563},
                                       {55, 0.0005005},
                                       {99, 1.3042819039616668e-06}};

TEST(Schedule, WarmupThenCosine) {
  expect_rates(warmup_lr(1e-3f, 10, cosine_lr(1e-3f, 10, 100, 1e-6f)), kWarmupCosine);
}

Config config_of(const std::string& name, double lr, double epochs) {
  Config c;
  c.schedule.name = name;
  c.optimizer.lr = lr;
  c.train.epochs = int64_t(epochs);
  return c;
}

TEST(Schedule, AConfigsEpochsBecomeSteps) {
  Config c = config_of("cosine", 1e-3, 100);
  c.schedule.warmup = 10;
  c.schedule.min_lr = 1e-6;
  expect_rates(make_schedule(c, 1), kWarmupCosine);
  // 10 epochs of 10 steps: the same numbers of steps.
  c.train.epochs = 10;
  c.schedule.warmup = 1;
  expect_rates(make_schedule(c, 10), kWarmupCosine);

  c = config_of("multistep", 0.1, 200);
  c.schedule.milestones = {100, 150};
  c.schedule.warmup = 0.5;
  expect_rates(make_schedule(c, 390), {{0, 0.1 / 195},
                                       {194, 0.1},
                                       {195, 0.1},
                                       {100 * 390 - 1, 0.1},
                                       {100 * 390, 0.01},
                                       {150 * 390 - 1, 0.01},
                                       {150 * 390, 0.001}});
  expect_rates(make_schedule(config_of("constant", 0.3, 2), 5), {{0, 0.3}, {9, 0.3}});
}

TEST(Schedule, NothingButWarmupIsAllowed) {
  Config c = config_of("cosine", 0.1, 2);
  c.schedule.warmup = 2;
  expect_rates(make_schedule(c, 5), {{0, 0.01}, {9, 0.1}});
}

TEST(Schedule, TheCosineNeverRisesAfterTheWarmup) {
  Config c = config_of("cosine", 0.1, 5);
  c.schedule.warmup = 1;
  const Schedule s = make_schedule(c, 100);
  for (int64_t step = 1; step < 100; ++step) EXPECT_GT(s(step), s(step - 1));
  for (int64_t step = 101; step < 500; ++step) EXPECT_LT(s(step), s(step - 1)) << step;
}

TEST(Schedule, AnUnknownNameIsRefused) {
  try {
    make_schedule(config_of("cosin", 0.1, 1), 1);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.exit, Exit::usage);
    EXPECT_NE(std::string(e.what()).find("did you mean 'cosine'?"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace linnet
