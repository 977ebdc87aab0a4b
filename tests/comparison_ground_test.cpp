// What comparisons of runs stand on: the same seed gives every optimizer the same start, batches and crops, and a
// finished run tells what it thinks of each test image and how far its layers move.
#include <gtest/gtest.h>

#include "src/core/digest.h"
#include "tiny_run.h"

namespace linnet {
namespace {

std::string bytes_of(Backend& backend, const Tensor& x) {
  std::string bytes(x.bytes(), '\0');
  backend.download(bytes.data(), x);
  return bytes;
}

std::vector<float> values_of(Backend& backend, const Tensor& x) {
  std::vector<float> values(size_t(x.numel()));
  backend.download(values.data(), x);
  return values;
}

// Each parameter's first values by its name: where it lies in memory depends on the optimizer.
std::map<std::string, std::string> first_weights(TinyRun& run) {
  std::map<std::string, std::string> all;
  for (const Param* p : run.trainer.net().params().params()) all[p->name] = xxh3(bytes_of(*run.backend, p->master));
  return all;
}

// Two epochs of batches, as they come out of crop and flip, with their labels.
std::vector<std::string> batches(TinyRun& run) {
  std::vector<std::string> all;
  for (int64_t epoch = 0; epoch < 2; ++epoch) {
    run.trainer.start_epoch(epoch);
    for (int64_t s = 0; s < run.trainer.steps_per_epoch(); ++s) {
      run.trainer.step();
      all.push_back(xxh3(bytes_of(*run.backend, run.trainer.batch()) + bytes_of(*run.backend, run.trainer.labels())));
    }
  }
  return all;
}

TEST(PairedSeeds, EveryOptimizerGetsTheSameInitBatchesAndCrops) {
  std::vector<Config> configs;
  for (const char* sets : {"sgd", "sgd momentum=0.9 nesterov=true weight_decay=1e-4", "nag momentum=0.9", "rmsprop",
                           "adam", "adamw", "nadam", "radam", "lion", "muon", "adagrad"}) {
    std::vector<std::string> overrides = {"model.name=convnet", "data.name=synthetic", "data.samples=120",
                                          "data.image_size=16", "data.val=24",         "train.batch_size=32",
                                          "train.seed=5",       "train.epochs=2",      "train.eval_batch_size=16"};
    std::istringstream in(sets);
    std::string word;
    in >> word;
    overrides.push_back("optimizer.name=" + word);
    while (in >> word) overrides.push_back("optimizer." + word);
    configs.push_back(parse_config("", "", overrides));
  }
  // Groups and the decay of norms change where parameters lie, too.
  configs.push_back(parse_config(
      "[[group]]\nmatch = \"linear.*\"\nlr = 0.01\n[[group]]\nmatch = \"conv1.*\"\nfrozen = true\n", "groups",
      {"model.name=convnet", "data.name=synthetic", "data.samples=120", "data.image_size=16", "data.val=24",
       "train.batch_size=32", "train.seed=5", "train.epochs=2", "optimizer.decay_norm_and_bias=false"}));
  TinyRun first(configs[0]);
  const auto weights = first_weights(first);
  const auto seen = batches(first);
  ASSERT_EQ(seen.size(), 6U);
  EXPECT_NE(seen[0], seen[3]);  // another epoch, other crops
  for (size_t i = 1; i < configs.size(); ++i) {
    SCOPED_TRACE(configs[i].optimizer.name);
    TinyRun run(configs[i]);
    EXPECT_EQ(first_weights(run), weights);
    EXPECT_EQ(batches(run), seen);
  }
  Config other = configs[0];
  other.train.seed = 6;
  TinyRun run(other);
  EXPECT_NE(first_weights(run), weights);
  EXPECT_NE(batches(run)[0], seen[0]);
}

class Predictions : public testing::TestWithParam<const char*> {};

TEST_P(Predictions, AreThoseThatTheTestAccuracyCounts) {
  Config config = tiny_config("convnet");
  config.train.precision = GetParam();
  if (config.train.precision == "bf16" && !cpu_has_bf16()) GTEST_SKIP() << "no bf16 instructions here";
  TinyRun run(config);
  EXPECT_TRUE(run.trainer.test_predictions().empty());
  ASSERT_EQ(run.run(), Outcome::done);
  const auto& all = run.trainer.test_predictions();
  const Images test = run.data.test();
  ASSERT_EQ(int64_t(all.size()), test.size());
  double right = 0, log_loss_of_right = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].label, test.labels[i]);
    EXPECT_GE(all[i].probability, 0.1F);  // the largest of ten
    EXPECT_LE(all[i].probability, 1.F);
    right += all[i].label == all[i].predicted;
    if (all[i].label == all[i].predicted) log_loss_of_right -= std::log(double(all[i].probability));
  }
  EXPECT_DOUBLE_EQ(right / double(all.size()), run.last("test")["test/acc"]);
  EXPECT_LE(log_loss_of_right / double(all.size()), run.last("test")["test/loss"] + 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Precisions, Predictions, testing::Values("f32", "bf16"));

// Weights before and after the last step of each epoch, by a second look from outside.
struct LastSteps : Observer {
  std::vector<std::vector<float>> before, after;
  std::vector<Row> epochs;
  void on_row(const Row& row) override {
    if (row.kind == "epoch") epochs.push_back(row);
  }
  void on_boundary(Trainer& trainer, bool epoch_done) override {
    auto now = values_of(trainer.net().backend(), trainer.net().params().flat().master);
    if (epoch_done)
      after.push_back(std::move(now));
    else if (trainer.progress().in_epoch + 1 == trainer.steps_per_epoch())
      before.push_back(std::move(now));
  }
};

TEST(UpdateRatio, IsTheChangeOfTheLastStepByTheSizeOfTheWeights) {
  TinyRun run(tiny_config("convnet"));
  LastSteps last;
  ASSERT_EQ(run.trainer.run({&last}), Outcome::done);
  ASSERT_EQ(last.epochs.size(), 2U);
  ASSERT_EQ(last.before.size(), 2U);
  int layers = 0;
  for (size_t e = 0; e < 2; ++e)
    for (const Param* p : run.trainer.net().params().params()) {
      const std::string layer = p->name.substr(0, p->name.rfind('.'));
      if (p->shape.rank() < 2) continue;
      ++layers;
      double change = 0, norm = 0;
      for (auto i = size_t(p->offset); i < size_t(p->offset + p->shape.numel()); ++i) {
        change += std::pow(double(last.after[e][i]) - double(last.before[e][i]), 2);
        norm += std::pow(double(last.before[e][i]), 2);
      }
      EXPECT_GT(change, 0) << layer;
      const double ratio = std::sqrt(change / norm);  // the same up to the order of the sums
      EXPECT_NEAR(last.epochs[e]["update_ratio/" + layer], ratio, 1e-12 * ratio) << layer;
    }
  EXPECT_EQ(layers, 2 * 4);  // three convolutions and the last layer
}

}  // namespace
}  // namespace linnet
