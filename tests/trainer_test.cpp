// The training loop: the same bits every time, exact accounting, and what it does when things go wrong.
#include "linnet/trainer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "linnet/error.h"
#include "tiny_run.h"

namespace linnet {
namespace {

// All that a run reports, but for times.
std::string report(const Config& config, int threads) {
  TinyRun run(config, threads);
  run.run();
  std::string text;
  for (const Row& row : run.rows) {
    text += fmt::format("{} {} {} {}", row.kind, row.epoch, row.step, row.hash);
    for (const auto& [name, value] : row.values) text += fmt::format(" {}={:a}", name, value);
    text += '\n';
  }
  return text + run.trainer.state_hash();
}

TEST(Trainer, TheSameSeedGivesTheSameBitsOnAnyNumberOfThreads) {
  for (const char* model : {"convnet", "resnet20"}) {
    const Config config = tiny_config(model);
    const std::string first = report(config, 1);
    EXPECT_NE(first.find("test/acc="), std::string::npos);
    EXPECT_EQ(report(config, 1), first) << model;
    EXPECT_EQ(report(config, 2), first) << model;
    EXPECT_EQ(report(config, 3), first) << model;
  }
}

TEST(Trainer, DropoutAndARaggedBatchAreReproducibleToo) {
  Config config = tiny_config("convnet");
  config.model.dropout = 0.3;
  config.data.drop_last = false;
  config.train.batch_size = 40;
  EXPECT_EQ(report(config, 3), report(config, 1));
}

TEST(Trainer, AnotherSeedGivesOthers) {
  Config config = tiny_config("convnet");
  config.train.epochs = 1;
  TinyRun a(config);
  config.train.seed = 2;
  TinyRun b(config);
  EXPECT_NE(a.trainer.state_hash(), b.trainer.state_hash());
  a.run();
  b.run();
  EXPECT_NE(a.last("test")["test/loss"], b.last("test")["test/loss"]);
}

TEST(Trainer, ReportsEveryIntervalEveryEpochAndTheTestOnce) {
  Config config = tiny_config("linear");
  config.log.interval = 2;
  TinyRun run(config);
  int test_reads = 0;
  run.data.test = [&, test = run.data.test] { return ++test_reads, test(); };
  EXPECT_EQ(run.run(), Outcome::done);
  std::vector<std::string> seen;
  for (const Row& row : run.rows) seen.push_back(fmt::format("{} {}/{}", row.kind, row.epoch, row.step));
  EXPECT_EQ(seen, (std::vector<std::string>{"step 0/2", "step 1/3", "epoch 1/3", "step 1/4", "step 2/6", "epoch 2/6",
                                            "test 2/6"}));
  EXPECT_EQ(test_reads, 1);
  EXPECT_EQ(run.trainer.global_step(), 6);
  // The parts of an epoch make up the whole: steps 1 and 2, then step 3.
  EXPECT_NEAR(run.rows[2]["train/loss"], (2 * run.rows[0]["train/loss"] + run.rows[1]["train/loss"]) / 3, 1e-12);
  EXPECT_EQ(run.rows[2].hash.size(), 32u);
  EXPECT_TRUE(std::isnan(run.rows[2]["no such metric"]));
}

TEST(Trainer, TheLastSmallerBatchIsDroppedOrCountedExactly) {
  Config config = tiny_config("convnet");
  config.train.batch_size = 40;  // of 96 images
  config.train.epochs = 1;
  config.log.interval = 1000;
  for (const bool drop : {true, false}) {
    config.data.drop_last = drop;
    TinyRun run(config);
    EXPECT_EQ(run.trainer.steps_per_epoch(), drop ? 2 : 3);
    run.run();
    EXPECT_EQ(run.trainer.batch().dim(0), drop ? 40 : 16);
    const double correct = run.last("epoch")["train/acc"] * (drop ? 80 : 96);
    EXPECT_NEAR(correct, std::round(correct), 1e-9);
  }
}

TEST(Trainer, ABatchThatCannotBeFilledIsRefused) {
  Config config = tiny_config("linear");
  config.train.batch_size = 97;
  try {
    TinyRun run(config);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.exit, Exit::usage);
    EXPECT_NE(std::string(e.what()).find("96 training images do not fill one batch of 97"), std::string::npos)
        << e.what();
  }
  config.data.drop_last = false;
  EXPECT_EQ(TinyRun(config).trainer.steps_per_epoch(), 1);
}

double first_loss(double smoothing) {
  Config config = tiny_config("convnet");
  config.train.label_smoothing = smoothing;
  TinyRun run(config);
  run.trainer.start_epoch(0);
  run.trainer.step();
  return double(run.trainer.last_loss());
}

// The smoothed loss is (1 - s) times the usual one plus s times that of an even target: linear in s.
TEST(Trainer, LabelSmoothingMixesInTheEvenTarget) {
  const double none = first_loss(0), half = first_loss(0.4), full = first_loss(0.8);
  EXPECT_NE(none, full);
  EXPECT_NEAR(half, (none + full) / 2, 1e-5);
}

TEST(Trainer, ValidationLossIsNotSmoothed) {
  Config config = tiny_config("convnet");
  config.train.epochs = 1;
  config.optimizer.lr = 1e-12;
  TinyRun plain(config);
  plain.run();
  config.train.label_smoothing = 0.8;
  TinyRun smoothed(config);
  smoothed.run();
  EXPECT_NEAR(smoothed.last("epoch")["val/loss"], plain.last("epoch")["val/loss"], 1e-6);
  EXPECT_GT(std::abs(smoothed.last("epoch")["train/loss"] - plain.last("epoch")["train/loss"]), 1e-3);
}

TEST(Trainer, ClippingBoundsTheStepAndLogsTheNormBeforeIt) {
  Config config = tiny_config("convnet");
  config.optimizer.momentum = 0;
  config.optimizer.weight_decay = 0;
  double norm = 0;
  for (const double clip : {0.0, 0.01}) {
    config.clip.norm = clip;
    TinyRun run(config);
    int calls = 0;
    const Tensor w = run.trainer.net().params().flat().master;
    const std::vector<float> before(w.data<float>(), w.data<float>() + w.numel());
    run.run([&] { return calls++ == 1; });
    double squares = 0;
    for (size_t i = 0; i < before.size(); ++i) squares += std::pow(double(w.data<float>()[i]) - double(before[i]), 2);
    if (clip == 0) norm = run.last("step")["grad_norm"];
    EXPECT_GT(norm, 0.1);
    EXPECT_EQ(run.last("step")["grad_norm"], norm);  // of the same first step
    EXPECT_NEAR(std::sqrt(squares), config.optimizer.lr * (clip > 0 ? clip : norm), 1e-3 * std::sqrt(squares));
  }
}

TEST(Trainer, LogsTheLearningRateThatWasUsed) {
  Config config = tiny_config("linear");
  config.schedule.name = "cosine";
  config.schedule.warmup = 1;
  TinyRun run(config);
  run.run();
  for (const Row& row : run.rows) {
    if (row.kind == "test") continue;
    EXPECT_EQ(row["lr"], double(run.trainer.learning_rate(row.step - 1))) << row.step;
  }
  EXPECT_FLOAT_EQ(float(run.rows[0]["lr"]), float(0.05 / 3));
}

TEST(Trainer, DivergenceIsAnErrorThatSaysWhatToDo) {
  for (const char* model : {"convnet_nobn", "mlp"}) {
    Config config = tiny_config(model);
    config.optimizer.lr = 1e6;
    TinyRun run(config);
    try {
      run.run();
      FAIL() << model;
    } catch (const Error& e) {
      EXPECT_EQ(e.exit, Exit::diverged);
      EXPECT_NE(std::string(e.what()).find("Use a smaller optimizer.lr"), std::string::npos) << e.what();
    }
  }
}

// The last update of a run is seen by no training loss.
TEST(Trainer, DivergenceInTheLastStepIsSeenToo) {
  for (const int64_t val : {0, 24}) {
    Config config = tiny_config("mlp");
    config.optimizer.lr = 1e38;
    config.train.epochs = 1;
    config.train.batch_size = 96;
    config.data.val = val;
    TinyRun run(config);
    ASSERT_EQ(run.trainer.steps_per_epoch(), 1);
    try {
      run.run();
      FAIL();
    } catch (const Error& e) {
      EXPECT_EQ(e.exit, Exit::diverged);
      EXPECT_NE(std::string(e.what()).find(val ? "validation images" : "test images"), std::string::npos) << e.what();
    }
  }
}

TEST(Trainer, StopsBetweenTwoSteps) {
  TinyRun run(tiny_config("linear"));
  int calls = 0;
  EXPECT_EQ(run.run([&] { return ++calls > 4; }), Outcome::interrupted);
  EXPECT_EQ(run.trainer.global_step(), 4);
  EXPECT_THROW(run.last("test"), Error);
}

TEST(Trainer, WithoutValidationImagesThereIsNoValidation) {
  Config config = tiny_config("linear");
  config.data.val = 0;
  TinyRun run(config);
  EXPECT_EQ(run.data.train.size(), 120);
  EXPECT_EQ(run.run(), Outcome::done);
  EXPECT_TRUE(std::isnan(run.last("epoch")["val/acc"]));
  EXPECT_FALSE(std::isnan(run.last("epoch")["train/acc"]));
}

TEST(Trainer, ValidationImagesAreNotTrainedOn) {
  Config config = tiny_config("linear");
  RunData data = load_run_data(config);
  EXPECT_EQ(data.train.size(), 96);
  EXPECT_EQ(data.val.size(), 24);
  const int64_t bytes = data.train.image_bytes();
  const auto image = [&](const Images& from, int64_t i) {
    return std::string(from.pixels.begin() + i * bytes, from.pixels.begin() + (i + 1) * bytes);
  };
  for (int64_t v = 0; v < 24; ++v)
    for (int64_t t = 0; t < 96; ++t) ASSERT_NE(image(data.val, v), image(data.train, t));
}

TEST(Net, EvaluationDoesNotDependOnTheBatchSize) {
  TinyRun run(tiny_config("resnet20"));
  run.run();
  Net& net = run.trainer.net();
  const Images test = run.data.test();
  ASSERT_EQ(test.size(), 24);
  const BatchSource source = upload_source(*run.backend, test, run.config.data.mean, run.config.data.std);
  const Accuracy whole = net.evaluate(source, 24, 10);
  EXPECT_EQ(whole.n, 24);
  EXPECT_EQ(whole.acc, run.last("test")["test/acc"]);
  double correct = 0;  // 24 images: classes 0 to 3 have three, the others two
  for (size_t c = 0; c < 10; ++c) correct += whole.per_class[c] * (c < 4 ? 3 : 2);
  EXPECT_NEAR(correct / 24, whole.acc, 1e-12);
  for (const int64_t batch : {1, 5, 16, 1000}) {
    const Accuracy part = net.evaluate(source, batch, 10);
    EXPECT_NEAR(part.loss, whole.loss, 1e-5) << batch;
    EXPECT_NEAR(part.acc, whole.acc, 1e-5) << batch;
  }
}

TEST(Net, EvaluationNeitherCropsNorFlips) {
  TinyRun run(tiny_config("linear"));
  BatchSource source = upload_source(*run.backend, run.data.val, run.config.data.mean, run.config.data.std);
  const double plain = run.trainer.net().evaluate(source, 8, 10).loss;
  source.augment = {.crop_pad = 4, .flip = Flip::random};
  EXPECT_EQ(run.trainer.net().evaluate(source, 8, 10).loss, plain);
}

TEST(Net, AClassWithoutImagesHasNoAccuracy) {
  TinyRun run(tiny_config("linear"));
  const Images two = subset(run.data.val, {0, 1});
  const Accuracy a =
      run.trainer.net().evaluate(upload_source(*run.backend, two, run.config.data.mean, run.config.data.std), 8, 10);
  EXPECT_GE(std::count_if(a.per_class.begin(), a.per_class.end(), [](double v) { return std::isnan(v); }), 8);
}

TEST(RunData, MeanAndDeviationAreMeasuredUnlessGiven) {
  Config config = tiny_config("linear");
  const RunData data = load_run_data(config);
  const ChannelStats stats = channel_stats(data.train);
  ASSERT_EQ(config.data.mean.size(), 3u);
  EXPECT_EQ(config.data.mean[1], double(stats.mean[1]));
  EXPECT_EQ(config.data.std[2], double(stats.std[2]));
  config.data.mean = {0.1, 0.2, 0.3};
  load_run_data(config);
  EXPECT_EQ(config.data.mean[0], 0.1);
  config.data.mean = config.data.std = {0.5};
  EXPECT_THROW(load_run_data(config), Error);
}

}  // namespace
}  // namespace linnet
