// Learning rates against worked examples (computed in double elsewhere) and against torch.optim.lr_scheduler
// (tests/golden/schedules.json, made by scripts/reference_torch.py).
#include "linnet/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "linnet/error.h"

namespace linnet {
namespace {

using nlohmann::json;
using Rates = std::vector<std::pair<int64_t, double>>;  // step and learning rate

// The names are visit_schedule's, without "schedule.".
ScheduleConfig config_of(const json& values) {
  ScheduleConfig c;
  size_t known = 0;
  visit_schedule(c, [&](const Key& key, auto& value) {
    const std::string leaf(key.name.substr(key.name.find('.') + 1));
    if (!values.contains(leaf)) return;
    values[leaf].get_to(value);
    ++known;
  });
  if (known != values.size()) throw std::runtime_error("unknown key in " + values.dump());
  return c;
}

void expect_close(double got, double want, int64_t at) { EXPECT_NEAR(got, want, 1e-12 * std::abs(want)) << at; }

void expect_rates(const Schedule& schedule, const Rates& expected) {
  for (const auto& [step, lr] : expected) expect_close(schedule(step), lr, step);
}

const json& golden() {
  static const json all = json::parse(std::ifstream("tests/golden/schedules.json"));
  return all;
}

// ---- Worked examples. One step an epoch: both intervals are the same ----

void expect_by_epoch(const json& values, double lr, int64_t epochs, const Rates& expected) {
  for (const char* interval : {"step", "epoch"}) {
    SCOPED_TRACE(interval);
    ScheduleConfig c = config_of(values);
    c.interval = interval;
    expect_rates(make_schedule(c, lr, 1, epochs), expected);
  }
  // With 7 steps an epoch, each has its epoch's rate.
  ScheduleConfig c = config_of(values);
  c.interval = "epoch";
  const Schedule schedule = make_schedule(c, lr, 7, epochs);
  for (const auto& [epoch, rate] : expected)
    for (const int64_t step : {0, 3, 6}) expect_close(schedule(7 * epoch + step), rate, epoch);
}

TEST(Schedule, Constant) { expect_by_epoch({{"name", "constant"}}, 0.1, 10, {{0, 0.1}, {1000000, 0.1}}); }

TEST(Schedule, Step) {
  expect_by_epoch({{"name", "step"}, {"step_size", 30}, {"gamma", 0.1}}, 1e-3, 100,
                  {{0, 1e-3}, {29, 1e-3}, {30, 1e-4}, {59, 1e-4}, {60, 1e-5}, {89, 1e-5}, {90, 1e-6}, {99, 1e-6}});
}

TEST(Schedule, Multistep) {
  expect_by_epoch({{"name", "multistep"}, {"milestones", {60, 120}}}, 0.1, 200,
                  {{0, 0.1}, {59, 0.1}, {60, 0.01}, {119, 0.01}, {120, 0.001}, {199, 0.001}});
}

// The first rate of the warmup is a fifth, not 0; its last is the full one.
TEST(Schedule, WarmupThenMultistep) {
  expect_by_epoch({{"name", "multistep"}, {"milestones", {100, 150}}, {"warmup", 5}}, 0.1, 200,
                  {{0, 0.02},
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

TEST(Schedule, Cosine) {
  expect_by_epoch({{"name", "cosine"}}, 0.1, 200,
                  {{0, 0.1},
                   {50, 0.08535533905932738},
                   {100, 0.05},
                   {150, 0.014644660940672627},
                   {199, 6.168375916970615e-06},
                   {200, 0},
                   {1000, 0}});
  expect_by_epoch({{"name", "cosine"}, {"min_lr", 1e-6}}, 1e-3, 100,
                  {{0, 1e-3},
                   {1, 0.0009997535269026829},
                   {25, 0.0008536998372026805},
                   {50, 0.0005005},
                   {75, 0.00014730016279731955},
                   {99, 1.2464730973170658e-06},
                   {100, 1e-6}});
}

TEST(Schedule, WarmupThenCosine) {
  expect_by_epoch({{"name", "cosine"}, {"min_lr", 1e-6}, {"warmup", 10}}, 1e-3, 100,
                  {{0, 1e-4},
                   {4, 5e-4},
                   {9, 1e-3},
                   {10, 1e-3},
                   {32, 0.0008598102302691563},
                   {55, 0.0005005},
                   {99, 1.3042819039616668e-06}});
}

// Transformers' get_linear_schedule_with_warmup(1000, 10000).
TEST(Schedule, WarmupFromZeroThenLinear) {
  const ScheduleConfig c = config_of({{"name", "linear"}, {"warmup", 1}, {"warmup_from", "zero"}});
  expect_rates(make_schedule(c, 5e-5, 1000, 10),
               {{0, 0}, {500, 2.5e-5}, {1000, 5e-5}, {5500, 2.5e-5}, {10000, 0}, {20000, 0}});
}

// lr = beta lr + (1 - beta) target.
TEST(Schedule, ExponentialIsAMovingAverageOnItsWayToTheFloor) {
  expect_by_epoch({{"name", "exponential"}, {"gamma", 0.95}, {"min_lr", 0.001}}, 0.1, 100,
                  {{0, 0.1},
                   {1, 0.09505},
                   {2, 0.09034749999999998},
                   {3, 0.08588012499999997},
                   {4, 0.08163611874999997},
                   {5, 0.07760431281249996}});
}

// ---- PyTorch ----

TEST(Schedule, Pytorch) {
  ASSERT_EQ(golden()["rates"].size(), 20u);
  for (const json& c : golden()["rates"]) {
    SCOPED_TRACE(c["schedule"].dump());
    const Schedule schedule = make_schedule(config_of(c["schedule"]), c["lr"], c["steps_per_epoch"], c["epochs"]);
    const std::vector<double> rates = c["rates"];
    ASSERT_EQ(rates.size(), c["epochs"].get<size_t>() * c["steps_per_epoch"].get<size_t>());
    for (size_t step = 0; step < rates.size(); ++step)
      expect_close(schedule(int64_t(step)), rates[step], int64_t(step));
  }
}

// ---- Epochs and steps ----

TEST(Schedule, EpochsMayBeFractions) {
  const ScheduleConfig c = config_of({{"name", "multistep"}, {"milestones", {100, 150.5}}, {"warmup", 0.5}});
  expect_rates(make_schedule(c, 0.1, 390, 200), {{0, 0.1 / 195},
                                                 {194, 0.1},
                                                 {195, 0.1},
                                                 {100 * 390 - 1, 0.1},
                                                 {100 * 390, 0.01},
                                                 {150 * 390 + 194, 0.01},
                                                 {150 * 390 + 195, 0.001}});
}

TEST(Schedule, NothingButWarmupIsAllowed) {
  for (const char* name : {"constant", "cosine", "linear", "polynomial", "exponential"}) {
    const Schedule s = make_schedule(config_of({{"name", name}, {"warmup", 2}}), 0.1, 5, 2);
    expect_rates(s, {{0, 0.01}, {9, 0.1}});
    EXPECT_TRUE(std::isfinite(s(10))) << name;
  }
}

TEST(Schedule, NoneRisesAfterTheWarmupOrLeavesItsBounds) {
  for (const ScheduleEntry& entry : schedules()) {
    SCOPED_TRACE(entry.name);
    if (entry.name == "one_cycle") continue;
    ScheduleConfig c = config_of({{"name", entry.name}, {"warmup", 1}, {"milestones", {2, 3}}, {"step_size", 0.5}});
    c.min_lr = 0.001;
    const Schedule s = make_schedule(c, 0.1, 100, 5);
    for (int64_t step = 1; step < 100; ++step) EXPECT_GT(s(step), s(step - 1));
    for (int64_t step = 101; step < 500; ++step) {
      EXPECT_LE(s(step), s(step - 1)) << step;
      EXPECT_GT(s(step), 0) << step;
    }
  }
}

TEST(Schedule, RestartsReturnToTheBaseRate) {
  const ScheduleConfig c = config_of({{"name", "cosine"}, {"period", 1}, {"period_factor", 2}, {"warmup", 1}});
  const Schedule s = make_schedule(c, 0.1, 10, 20);
  for (const int64_t epoch : {1, 2, 4, 8, 16}) {
    expect_close(s(10 * epoch), 0.1, epoch);
    EXPECT_LT(s(10 * epoch - 1), epoch == 1 ? 0.11 : 0.1 * 0.03) << epoch;
  }
}

// The shortest runs: no division by 0.
TEST(Schedule, OneCycleOfAFewSteps) {
  for (const int64_t steps : {1, 2, 3, 4, 10}) {
    const Schedule s = make_schedule(config_of({{"name", "one_cycle"}}), 0.1, steps, 1);
    for (int64_t step = 0; step < steps; ++step) {
      EXPECT_GT(s(step), 0) << steps;
      EXPECT_LE(s(step), 0.1 * (1 + 1e-12)) << steps;
    }
    if (steps > 1) expect_close(s(steps - 1), 0.1 / 25 / 1e4, steps);
  }
}

TEST(Schedule, AnUnknownNameIsRefused) {
  try {
    make_schedule(config_of({{"name", "cosin"}}), 0.1, 1, 1);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.exit, Exit::usage);
    EXPECT_NE(std::string(e.what()).find("did you mean 'cosine'?"), std::string::npos) << e.what();
  }
}

TEST(Schedule, EveryKeyIsUsedBySomeSchedule) {
  ScheduleConfig c;
  std::vector<std::string_view> leaves;
  visit_schedule(c, [&](const Key& key, auto&) {
    const std::string_view leaf = key.name.substr(key.name.find('.') + 1);
    leaves.push_back(leaf);
    const bool used =
        std::ranges::any_of(schedules(), [&](const ScheduleEntry& e) { return std::ranges::count(e.keys, leaf) > 0; });
    EXPECT_EQ(used, key.by_entry) << key.name;
  });
  for (const ScheduleEntry& entry : schedules())
    for (const std::string_view key : entry.keys) EXPECT_EQ(std::ranges::count(leaves, key), 1) << key;
}

// ---- Rules between keys ----

struct Wrong {
  json values;
  std::string message, key;
};

TEST(Schedule, Problems) {
  const std::vector<Wrong> wrongs = {
      {{{"name", "multistep"}, {"milestones", {5, 5}}}, "must increase strictly, got [5, 5]", "schedule.milestones"},
      {{{"name", "multistep"}, {"milestones", {5, 10}}},
       "must be below train.epochs = 10, got [5, 10]",
       "schedule.milestones"},
      {{{"name", "multistep"}, {"milestones", {1}}, {"warmup", 2}},
       "must lie after the warmup of 2 epochs",
       "schedule.milestones"},
      {{{"warmup", 10.5}}, "schedule.warmup = 10.5 is longer than train.epochs = 10", "schedule.warmup"},
      {{{"warmup", 1.5}, {"interval", "epoch"}}, "schedule.warmup = 1.5 must be whole epochs", "schedule.warmup"},
      {{{"warmup", 1}, {"interval", "epoch"}, {"warmup_from", "zero"}}, "a learning rate of 0", "schedule.warmup_from"},
      {{{"name", "cosine"}, {"min_lr", 0.2}}, "schedule.min_lr = 0.2 is above optimizer.lr = 0.1", "schedule.min_lr"},
      {{{"name", "plateau"}, {"min_lr", 0.2}}, "schedule.min_lr = 0.2 is above", "schedule.min_lr"},
      {{{"name", "step"}, {"step_size", 0.5}, {"interval", "epoch"}},
       "step_size = 0.5 must be whole epochs",
       "schedule.step_size"},
      {{{"name", "cosine"}, {"period", 0.5}, {"interval", "epoch"}},
       "period = 0.5 must be whole epochs",
       "schedule.period"},
      {{{"name", "cosine"}, {"period_factor", 2}}, "no effect without a schedule.period", "schedule.period_factor"},
      {{{"name", "one_cycle"}, {"warmup", 1}}, "one_cycle rises by itself", "schedule.warmup"},
  };
  for (const Wrong& wrong : wrongs) {
    SCOPED_TRACE(wrong.values.dump());
    const ScheduleProblems problems = schedule_problems(config_of(wrong.values), 0.1, 10);
    ASSERT_EQ(problems.size(), 1u);
    EXPECT_EQ(problems[0].first[0], wrong.key);
    EXPECT_NE(problems[0].second.find(wrong.message), std::string::npos) << problems[0].second;
  }
  for (const json& fine : std::vector<json>{{{"name", "multistep"}, {"milestones", {2, 9.5}}, {"warmup", 2}},
                                            {{"name", "constant"}, {"milestones", {99}}, {"min_lr", 5}},
                                            {{"name", "cosine"}, {"period", 3}, {"period_factor", 2}},
                                            {{"name", "linear"}, {"warmup", 10}, {"min_lr", 0.1}}})
    EXPECT_TRUE(schedule_problems(config_of(fine), 0.1, 10).empty()) << fine;
  EXPECT_NE(schedule_problems(config_of({{"warmup", 3}}), 0.1, 2, "the phase's length")[0].second.find(
                "longer than the phase's length = 2"),
            std::string::npos);
}

// ---- Phases ----

TEST(Schedule, SpansOfPhases) {
  Config c;
  c.train.epochs = 100;
  const auto expect_span = [&](size_t index, int64_t first, int64_t epochs) {
    const PhaseSpan span = phase_span(c, index, first);
    EXPECT_EQ(span.first_epoch, first);
    EXPECT_EQ(span.epochs, epochs) << index;
  };
  expect_span(0, 0, 100);
  c.phases = {{.epoch = 30}, {.plateau = 5}, {.epoch = 80}};
  expect_span(0, 0, 30);
  expect_span(1, 30, 50);  // a plateau may cut it short
  expect_span(2, 47, 33);
  expect_span(3, 80, 20);
}

// ---- Plateau ----

// val loss 1 - 0.05 e until epoch 10, then flat: PyTorch lowers the rate for epoch 17, Keras for epoch 16.
TEST(Plateau, PytorchAndKerasCount) {
  for (const auto& [counting, first] : {std::pair("pytorch", 17), {"keras", 16}}) {
    const ScheduleConfig c = config_of({{"name", "plateau"}, {"factor", 0.5}, {"patience", 5}, {"counting", counting}});
    Plateau plateau(c, 0.001);
    for (int64_t epoch = 0; epoch < 20; ++epoch) {
      const double loss = epoch < 10 ? 1 - 0.05 * double(epoch) : 0.5;
      EXPECT_EQ(plateau.update(loss), epoch + 1 == first) << counting << epoch;
      EXPECT_EQ(plateau.factor(), epoch + 1 < first ? 1 : 0.5) << counting << epoch;
    }
  }
}

// The epochs' rates on random metrics; the state is saved and restored after each of them.
void expect_plateau(const json& schedule, const char* counting, double lr, const std::vector<double>& metrics,
                    const std::vector<double>& rates) {
  SCOPED_TRACE(schedule.dump() + counting);
  ScheduleConfig c = config_of(schedule);
  c.counting = counting;
  PlateauState saved = Plateau(c, lr).state();
  ASSERT_EQ(metrics.size(), rates.size());
  double before = lr;
  for (size_t epoch = 0; epoch < metrics.size(); ++epoch) {
    Plateau plateau(c, lr);
    plateau.restore(saved);
    const bool fell = plateau.update(metrics[epoch]);
    expect_close(lr * plateau.factor(), rates[epoch], int64_t(epoch));
    EXPECT_EQ(fell, rates[epoch] != before) << epoch;
    before = rates[epoch];
    saved = plateau.state();
    EXPECT_TRUE(std::isfinite(saved.best));
  }
}

TEST(Plateau, PytorchOnRandomMetrics) {
  ASSERT_EQ(golden()["plateau"].size(), 16u);
  for (const json& c : golden()["plateau"]) expect_plateau(c["schedule"], "pytorch", c["lr"], c["metrics"], c["rates"]);
}
// The epochs after which the rate falls on the same metrics, as the callback of Keras 3.15.1 has it.
TEST(Plateau, KerasOnRandomMetrics) {
  const std::vector<std::vector<int>> falls = {
      {2, 7, 10, 12, 14, 16, 18, 20, 25, 28, 30, 34, 38, 40, 42, 44, 46, 49, 52, 56, 59},
      {3, 10},
      {2, 5, 9, 12, 15, 18, 21},
      {3, 5, 7, 9, 12, 14, 19},
      {3, 8},
      {1, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 31, 33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59},
      {5, 9},
      {6, 8, 11, 13, 18, 20, 22},
      {1, 4, 7, 9, 11, 13, 15, 17, 19, 21, 25, 28, 30, 32, 34, 36, 38, 40, 43, 46, 48, 50, 52, 54, 56, 58},
      {1, 3, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 29, 31, 33, 35, 37, 39, 41, 43, 46, 48, 50, 52, 54, 56, 58},
      {2, 7, 10, 13, 16, 20, 23},
      {3, 5, 7, 10, 12, 15, 17},
      {4, 8, 11, 17, 20, 23, 34, 37, 44, 49, 53, 57},
      {5, 7, 9, 11, 15, 22, 24, 26, 28, 30, 33, 35, 37, 39, 41, 43, 45, 47, 49, 52, 54, 58},
      {5, 9, 14, 18, 22, 33, 42},
      {3, 10, 13, 16, 19, 27, 30},
  };
  const json& cases = golden()["plateau"];
  ASSERT_EQ(falls.size(), cases.size());
  for (size_t n = 0; n < cases.size(); ++n) {
    const json& c = cases[n];
    const auto factor = c["schedule"]["factor"].get<double>(), floor = c["schedule"]["min_lr"].get<double>();
    double lr = c["lr"];
    std::vector<double> rates;
    for (int epoch = 0; epoch < int(c["metrics"].size()); ++epoch) {
      if (std::ranges::count(falls[n], epoch)) lr = std::max(lr * factor, floor);
      rates.push_back(lr);
    }
    expect_plateau(c["schedule"], "keras", c["lr"], c["metrics"], rates);
  }
}

TEST(Plateau, NaNIsNeverBetter) {
  for (const char* metric : {"val/loss", "val/acc"})
    for (const char* counting : {"pytorch", "keras"}) {
      Plateau plateau(config_of({{"metric", metric}, {"counting", counting}, {"patience", 2}}), 0.1);
      plateau.update(1);
      int falls = 0;
      for (int i = 0; i < 3; ++i) falls += plateau.update(NAN);
      EXPECT_EQ(falls, 1) << metric << counting;
      EXPECT_EQ(plateau.state().best, 1);
    }
}

TEST(Plateau, NeverBelowTheFloor) {
  for (const char* counting : {"pytorch", "keras"}) {
    Plateau plateau(config_of({{"counting", counting}, {"patience", 0}, {"min_lr", 0.003}}), 0.1);
    for (int i = 0; i < 20; ++i) plateau.update(1);
    EXPECT_NEAR(0.1 * plateau.factor(), 0.003, 1e-15) << counting;
    EXPECT_FALSE(plateau.update(1));
  }
}

// ---- Batch sizes ----

TEST(Batches, LinearAndSqrtScaling) {
  expect_close(scaled_lr(0.1, "linear", 128, 32), 0.4, 128);
  for (const auto& [batch, lr] :
       Rates{{1, 0.0003125}, {8, 0.0025}, {16, 0.005}, {32, 0.01}, {64, 0.02}, {128, 0.04}, {1024, 0.32}})
    expect_close(scaled_lr(0.01, "linear", batch, 32), lr, batch);
  for (const auto& [batch, lr] : Rates{{16, 0.01}, {32, 0.02}, {64, 0.04}, {128, 0.08}})
    expect_close(scaled_lr(0.01, "linear", batch, 16), lr, batch);
  expect_close(scaled_lr(0.001, "sqrt", 256, 32), 0.0028284271247461905, 256);
  expect_close(scaled_lr(0.001, "linear", 256, 32), 0.008, 256);
  EXPECT_EQ(scaled_lr(0.1, "none", 1024, 32), 0.1);
  EXPECT_THROW(scaled_lr(0.1, "cubic", 2, 1), Error);
}

TEST(Batches, StepsOfAnEpoch) {
  EXPECT_EQ(batches_per_epoch(1000, 32, false), 32);
  EXPECT_EQ(batches_per_epoch(1000, 32, true), 31);
  for (const auto& [batch, steps] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1024}, {8, 128}, {16, 64}, {32, 32}, {64, 16}, {128, 8}, {256, 4}, {1024, 1}})
    for (const bool drop_last : {false, true}) EXPECT_EQ(batches_per_epoch(1024, batch, drop_last), steps);
  EXPECT_EQ(steps_per_epoch(32, 4, true), 8);
  EXPECT_EQ(steps_per_epoch(32, 4, false), 8);
  EXPECT_EQ(steps_per_epoch(34, 4, true), 9);
  EXPECT_EQ(steps_per_epoch(34, 4, false), 8);
  EXPECT_EQ(steps_per_epoch(34, 0, true), 1);
  EXPECT_EQ(steps_per_epoch(0, 0, true), 0);
}

TEST(Batches, OfAConfig) {
  Config c;
  c.train.batch_size = 32;
  c.train.accumulate = 4;
  c.train.lr_scaling = "linear";
  c.train.lr_batch_size = 32;
  c.data.drop_last = true;
  EXPECT_EQ(steps_per_epoch(c, 1000), 8);
  expect_close(scaled_lr(c, 0.1, 1000), 0.4, 0);
  c.train.accumulate_tail = "drop";
  EXPECT_EQ(steps_per_epoch(c, 1000), 7);
  c.train.accumulate = 0;  // the full batch: 31 of 32 images, or all 1000
  EXPECT_EQ(steps_per_epoch(c, 1000), 1);
  expect_close(scaled_lr(c, 0.1, 1000), 0.1 * 31, 0);
  c.data.drop_last = false;
  expect_close(scaled_lr(c, 0.1, 1000), 0.1 * 1000 / 32, 0);
}

// 32 factors of (10 / 1e-8)^(1/32), the example's, need 33 batches.
TEST(Batches, RangeTest) {
  for (const auto& [k, lr] : Rates{{0, 1e-8}, {16, 0.0003162277660168381}, {31, 5.232991146814953}, {32, 10}})
    expect_close(range_test_lr(1e-8, 10, k, 33), lr, k);
  expect_close(range_test_lr(1e-8, 10, 1, 33) / 1e-8, 1.9109529749704406, 1);
  expect_close(range_test_lr(1e-8, 10, 1, 32) / 1e-8, 1.9512934226359633, 1);
  EXPECT_EQ(range_test_lr(1e-8, 10, 0, 1), 1e-8);
}

}  // namespace
}  // namespace linnet
