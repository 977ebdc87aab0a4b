// What a run's epochs say together, and the warnings of silent failures.
#include "linnet/verdict.h"

#include <gtest/gtest.h>

#include <cmath>

#include "linnet/warnings.h"

namespace linnet {
namespace {

// Epochs from 1 on: training and validation accuracy, and losses that go with them.
std::vector<EpochResult> epochs(const std::vector<std::pair<double, double>>& acc) {
  std::vector<EpochResult> all;
  for (const auto& [train, val] : acc)
    all.push_back({int64_t(all.size()) + 1, 2.3 * (1 - train), train, 2.3 * (1 - val), val});
  return all;
}

TEST(Verdict, TellsOverfittingFromUnderfitting) {
  EXPECT_EQ(judge_fit({}).kind, "");
  EXPECT_EQ(judge_fit(epochs({{0.6, 0.55}, {0.96, 0.72}, {0.97, 0.73}})).kind, "overfitting");  // the text's 97 and 73
  EXPECT_EQ(judge_fit(epochs({{0.79, 0.78}, {0.8, 0.79}, {0.81, 0.8}, {0.82, 0.8}})).kind, "balanced");
  EXPECT_EQ(judge_fit(epochs({{0.5, 0.5}, {0.6, 0.58}, {0.66, 0.63}})).kind, "still learning");
  EXPECT_EQ(judge_fit(epochs({{0.3, 0.3}, {0.31, 0.3}, {0.31, 0.31}, {0.315, 0.31}})).kind, "underfitting");
  EXPECT_EQ(judge_fit(epochs({{0.2, 0.2}})).kind, "underfitting");
  EXPECT_EQ(judge_fit(epochs({{0.9, NAN}})).kind, "unknown");
}

// A gap of less than 20 points, and yet the best epoch is long over.
TEST(Verdict, SeesThatTheBestIsOver) {
  std::vector<EpochResult> run = epochs({{0.7, 0.7}, {0.8, 0.72}, {0.85, 0.72}, {0.86, 0.72}});
  EXPECT_EQ(judge_fit(run).kind, "still learning");
  run[3].val_loss = 1.2 * run[1].val_loss;
  EXPECT_EQ(judge_fit(run).kind, "overfitting");
  EXPECT_NE(judge_fit(run).text.find("best in epoch 2"), std::string::npos) << judge_fit(run).text;
}

TEST(Verdict, CountsEpochsToAnAccuracy) {
  const auto reached = epochs_to(epochs({{0.9, 0.45}, {0.9, 0.62}, {0.9, 0.55}, {0.9, 0.7}}));
  ASSERT_EQ(reached.size(), 3u);
  EXPECT_EQ(reached[0].epoch, 2);                         // 50 %
  EXPECT_EQ(reached[1].epoch, 2);                         // 60 %
  EXPECT_EQ(reached[2].epoch, 4);                         // 70 %
  EXPECT_EQ(epochs_to(epochs({{0.9, NAN}})).size(), 5u);  // by the training, where there is no validation
}

// ---- Silent failures
// -------------------------------------------------------------------------------------------------

std::string found_in(const std::vector<EpochResult>& epochs, double lr = 0.1) {
  Config config;
  config.optimizer.lr = 0.1;
  std::string ids;
  Watchdog dog(config, 10, [&](const Warning& w) { ids += (ids.empty() ? "" : " ") + w.id; });
  for (const EpochResult& e : epochs)
    dog.on_row({.kind = "epoch",
                .epoch = e.epoch,
                .step = e.epoch * 100,
                .values = {{"train/loss", e.train_loss},
                           {"train/acc", e.train_acc},
                           {"val/loss", e.val_loss},
                           {"val/acc", e.val_acc},
                           {"lr", lr}}});
  return ids;
}

TEST(SilentFailure, W29TheLossNoLongerFalls) {
  using Pairs = std::vector<std::pair<double, double>>;
  EXPECT_EQ(found_in(epochs(Pairs(6, {0.6, 0.6}))), "W29");
  EXPECT_EQ(found_in(epochs(Pairs(5, {0.6, 0.6}))), "");         // four epochs after the first
  EXPECT_EQ(found_in(epochs(Pairs(6, {0.6, 0.6})), 0.005), "");  // the schedule has cooled it down
  EXPECT_EQ(found_in(epochs(Pairs(6, {0.95, 0.9}))), "");
  Pairs rising(6, {0.6, 0.6});
  rising[5].first = 0.61;
  EXPECT_EQ(found_in(epochs(rising)), "");
}

TEST(SilentFailure, W30SureAndWrong) {
  auto run = epochs({{0.7, 0.6}, {0.8, 0.61}, {0.85, 0.66}});
  EXPECT_EQ(found_in(run), "");
  run[1].val_loss = run[2].val_loss = 2.5;
  EXPECT_EQ(found_in(run), "W30");
  run[1].val_loss = 1;
  EXPECT_EQ(found_in(run), "");  // once is no habit
}

}  // namespace
}  // namespace linnet
