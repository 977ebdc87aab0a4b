// The training loop: the same bits every time, exact accounting, and what it does when things go wrong.
#include "linnet/trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <set>
#include <span>

#include "linnet/error.h"
#include "linnet/optimizer.h"
#include "linnet/run.h"
#include "temp_dir.h"
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
  EXPECT_EQ(seen, (std::vector<std::string>{"step 0/1", "step 0/2", "step 1/3", "layers 1/3", "epoch 1/3", "step 1/4",
                                            "step 2/6", "layers 2/6", "epoch 2/6", "test 2/6"}));
  EXPECT_EQ(test_reads, 1);
  EXPECT_EQ(run.trainer.global_step(), 6);
  // The parts of an epoch make up the whole: step 4, then steps 5 and 6.
  EXPECT_NEAR(run.rows[8]["train/loss"], (run.rows[5]["train/loss"] + 2 * run.rows[6]["train/loss"]) / 3, 1e-12);
  EXPECT_EQ(run.rows[8].hash.size(), 32u);
  EXPECT_TRUE(std::isnan(run.rows[8]["no such metric"]));
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
    if (row.kind == "test" || row.kind == "layers") continue;
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
  EXPECT_EQ(run.run([&] { return run.trainer.global_step() >= 4; }), Outcome::interrupted);
  EXPECT_EQ(run.trainer.global_step(), 4);
  EXPECT_THROW(run.last("test"), Error);
}

// A step may be of many batches: it is given up, and what goes on from there comes to the same end.
TEST(Trainer, AStepOfSeveralBatchesIsGivenUp) {
  for (const char* rule : {"sgd", "nag"}) {
    Config config = tiny_config("convnet");
    config.optimizer.name = rule;
    config.optimizer.form = rule == std::string("nag") ? "inside" : "accumulate";
    config.train.batch_size = 8;
    config.train.accumulate = 6;  // 12 batches, 2 steps an epoch
    TinyRun whole(config), run(config);
    whole.run();
    for (const int asked : {3, 9, 14}) {  // between two batches of a step
      const int64_t step = run.trainer.global_step();
      const std::string before = run.trainer.state_hash();
      int calls = 0;
      EXPECT_EQ(run.run([&] { return ++calls == 3; }), Outcome::interrupted) << asked;
      EXPECT_EQ(run.trainer.global_step(), step);
      EXPECT_EQ(run.trainer.state_hash(), before) << rule;
      run.run([&] { return run.trainer.global_step() > step; });
    }
    run.run();
    EXPECT_EQ(run.trainer.state_hash(), whole.trainer.state_hash()) << rule;
    ASSERT_EQ(run.rows.size(), whole.rows.size());
    for (size_t i = 0; i < run.rows.size(); ++i)
      for (size_t k = 0; k < run.rows[i].values.size(); ++k) {
        const auto& [name, value] = run.rows[i].values[k];
        const double other = whole.rows[i].values[k].second;
        EXPECT_TRUE(value == other || (std::isnan(value) && std::isnan(other))) << rule << i << name << value << other;
      }
  }
}

// A signal does not wait for an evaluation's end; what goes on from there comes to the same end.
TEST(Trainer, AnEvaluationIsGivenUp) {
  Config config = tiny_config("convnet");
  config.train.eval_batch_size = 4;
  config.ema = {0.9, "corrected"};
  TinyRun whole(config), run(config);
  whole.run();
  const int64_t steps = whole.trainer.steps_per_epoch();
  struct Count : Observer {
    void on_step(int64_t step, int64_t) override { at = step, asked = 0; }
    int64_t at = 0, asked = 0;
  } count;
  const auto interrupted = [&](int64_t step, int64_t batch) {  // the batches of an evaluation, then of the average's
    const auto stop = [&] { return count.at == step && ++count.asked > batch; };
    EXPECT_EQ(run.trainer.run({&run, &count}, stop), Outcome::interrupted);
    EXPECT_EQ(run.trainer.global_step(), step);
    const Progress p = run.trainer.progress();
    run.trainer.restore(Progress::from_json(p.to_json(), "a test"));
    return p.in_epoch;
  };
  EXPECT_EQ(interrupted(steps, 2), steps);
  count.asked = 0;
  EXPECT_EQ(interrupted(steps, 8), steps);
  count.at = -1;
  EXPECT_EQ(interrupted(2 * steps, 20), 0);  // of the test images
  count.at = -1;
  EXPECT_EQ(run.run(), Outcome::done);
  EXPECT_EQ(run.trainer.state_hash(), whole.trainer.state_hash());
  ASSERT_EQ(run.rows.size(), whole.rows.size());
  for (size_t i = 0; i < run.rows.size(); ++i) {
    EXPECT_EQ(run.rows[i].kind, whole.rows[i].kind);
    EXPECT_EQ(run.rows[i].step, whole.rows[i].step);
    EXPECT_EQ(run.rows[i].values, whole.rows[i].values);
  }
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

// ---- Accumulation --------------------------------------------------------------------------------------------------

// A run without anything random but the first weights and the order.
Config plain_config(const std::string& model) {
  Config config = tiny_config(model);
  config.augment.crop_pad = 0;
  config.augment.flip = "none";
  config.train.epochs = 1;
  config.train.precision = "f32";
  return config;
}

std::vector<float> weights_of(Trainer& trainer) {
  const Tensor w = trainer.net().params().flat().master;
  return {w.data<float>(), w.data<float>() + w.numel()};
}

const Param& param(TinyRun& run, const std::string& name) {
  for (const Param* p : run.trainer.net().params().params())
    if (p->name == name) return *p;
  fail(Exit::failure, "there is no parameter {}", name);
}

std::vector<float> values(const Tensor& t) { return {t.data<float>(), t.data<float>() + t.numel()}; }

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = a.size() == b.size() ? 0 : NAN;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i)
    if (!(std::fabs(double(a[i]) - double(b[i])) <= largest)) largest = std::fabs(double(a[i]) - double(b[i]));
  return largest;
}

struct Cut {
  int64_t batch_size, accumulate;
  bool drop_last;
};
// The weights after an epoch.
std::vector<float> trained(Config config, const Cut& cut) {
  config.train.batch_size = cut.batch_size;
  config.train.accumulate = cut.accumulate;
  config.data.drop_last = cut.drop_last;
  TinyRun run(config);
  run.run();
  return weights_of(run.trainer);
}

// The gradient is the same sum over the same images, in another order. Each partial sum is rounded to float (2^-24 of
// it), and a few dozen of them follow one another: some 1e-6 of a gradient of about 1, times lr = 0.05 and few steps.
constexpr double kOrderOfSums = 2e-6;

TEST(Accumulation, SeveralBatchesAreOneLargeOne) {
  for (const char* model : {"linear", "mlp", "convnet_nobn"}) {
    const Config config = plain_config(model);
    const std::vector<float> whole = trained(config, {48, 1, true});
    TinyRun before(config);
    EXPECT_GT(largest_difference(weights_of(before.trainer), whole), 1e-3) << model;
    for (const Cut& cut : {Cut{24, 2, true}, Cut{16, 3, true}, Cut{6, 8, true}, Cut{1, 48, true}})
      EXPECT_LE(largest_difference(trained(config, cut), whole), kOrderOfSums) << model << cut.batch_size;
  }
}

// 96 images in batches of 40, 40, 16: the mean is that over images, not over batches.
TEST(Accumulation, ARaggedTailCountsByItsImages) {
  const Config config = plain_config("mlp");
  EXPECT_LE(largest_difference(trained(config, {40, 3, false}), trained(config, {96, 1, true})), kOrderOfSums);
  EXPECT_LE(largest_difference(trained(config, {40, 2, false}), trained(config, {16, 5, false})), kOrderOfSums);
  EXPECT_LE(largest_difference(trained(config, {7, 100, false}), trained(config, {96, 1, true})), kOrderOfSums);
}

TEST(Accumulation, ZeroIsFullBatchGradientDescent) {
  Config config = plain_config("mlp");
  EXPECT_LE(largest_difference(trained(config, {20, 0, false}), trained(config, {96, 1, true})), kOrderOfSums);
  config.train.accumulate = 0;
  config.train.epochs = 3;
  TinyRun run(config);
  EXPECT_EQ(run.trainer.steps_per_epoch(), 1);
  run.run();
  EXPECT_EQ(run.trainer.global_step(), 3);
}

TEST(Accumulation, TheTailIsFlushedOrDropped) {
  Config config = plain_config("linear");
  config.train.batch_size = 20;  // 96 images: 4 whole batches and 16 images
  config.train.accumulate = 3;
  struct {
    bool drop_last;
    const char* tail;
    int64_t steps, images;
  } const expected[] = {{true, "flush", 2, 80}, {true, "drop", 1, 60}, {false, "flush", 2, 96}, {false, "drop", 1, 60}};
  for (const auto& e : expected) {
    config.data.drop_last = e.drop_last;
    config.train.accumulate_tail = e.tail;
    TinyRun run(config);
    EXPECT_EQ(run.trainer.steps_per_epoch(), e.steps) << e.drop_last << e.tail;
    run.run();
    const double correct = run.last("epoch")["train/acc"] * double(e.images);
    EXPECT_NEAR(correct, std::round(correct), 1e-9);
  }
  config.train.accumulate = 6;
  EXPECT_THROW(TinyRun{config}, Error);  // dropped: not one step in an epoch
  config.train.accumulate_tail = "flush";
  EXPECT_EQ(TinyRun(config).trainer.steps_per_epoch(), 1);
}

TEST(Accumulation, EpochMeansAreThoseOverImages) {
  Config config = plain_config("linear");
  config.data.drop_last = false;
  config.train.batch_size = 40;
  TinyRun run(config);
  run.run();
  const double sizes[] = {40, 40, 16};
  for (const char* name : {"train/loss", "train/acc"}) {
    double mean = 0;
    for (int i = 0; i < 3; ++i) mean += sizes[i] / 96 * run.rows[size_t(i)][name];
    EXPECT_NEAR(run.last("epoch")[name], mean, 1e-12);
  }
}

TEST(Accumulation, TheLearningRateFollowsTheImagesPerStep) {
  Config config = plain_config("linear");
  config.train.batch_size = 16;
  config.train.accumulate = 2;
  config.train.lr_batch_size = 8;
  const auto lr = [&](const char* law) {
    config.train.lr_scaling = law;
    return TinyRun(config).trainer.learning_rate(0);
  };
  EXPECT_DOUBLE_EQ(lr("none"), 0.05);
  EXPECT_DOUBLE_EQ(lr("linear"), 0.05 * 4);
  EXPECT_DOUBLE_EQ(lr("sqrt"), 0.05 * 2);
  config.train.accumulate = 0;
  EXPECT_DOUBLE_EQ(lr("linear"), 0.05 * 12);
  TinyRun run(config);
  run.run();
  EXPECT_DOUBLE_EQ(run.last("step")["lr"], 0.05 * 12);  // the rate that was used, not only shown: see below
  const auto before = values(param(run, "linear.bias").master);
  run.trainer.start_epoch(1);
  run.trainer.step();
  EXPECT_GT(largest_difference(values(param(run, "linear.bias").master), before), 0);
}

// ---- Groups --------------------------------------------------------------------------------------------------------

TEST(Groups, HaveTheirOwnRatesDecayAndOptimizer) {
  Config config = plain_config("convnet");
  config.optimizer = {.lr = 0.1, .momentum = 0, .weight_decay = 0.01};
  OptimizerConfig slow = config.optimizer, lion = default_settings("lion", "pytorch");
  slow.lr = 0.025;
  slow.weight_decay = 0;
  lion.lr = 0.001;
  config.groups = {{"conv2.weight|bn?.*", false, slow}, {"linear.*", false, lion}, {"*", false, config.optimizer}};
  TinyRun run(config);
  std::vector<std::vector<float>> before;
  for (const Param* p : run.trainer.net().params().params()) before.push_back(values(p->master));
  run.trainer.step();
  size_t i = 0;
  for (const Param* p : run.trainer.net().params().params()) {
    const bool is_slow = p->name == "conv2.weight" || p->name.starts_with("bn"),
               is_lion = p->name.starts_with("linear");
    EXPECT_EQ(p->group, is_slow ? 1 : is_lion ? 2 : 3) << p->name;
    const std::vector<float> w0 = before[i++], w = values(p->master), g = values(p->grad);
    for (size_t k = 0; k < w.size(); ++k) {
      const double grad = double(g[k]), w_0 = double(w0[k]);
      const double step = is_lion   ? 0.001 * double((grad > 0) - (grad < 0))
                          : is_slow ? 0.025 * grad
                                    : 0.1 * (grad + 0.01 * w_0);
      ASSERT_NEAR(double(w[k]), w_0 - step, 1e-7 * (1 + std::fabs(w_0))) << p->name << " " << k;
    }
  }
}

TEST(Groups, FrozenParametersKeepTheirBitsAndAreOutsideOfTheNorm) {
  Config config = plain_config("convnet_nobn");
  config.clip.norm = 0.01;
  config.lookahead.k = 2;
  config.ema.decay = 0.9;
  config.groups = {{"conv*", true, config.optimizer}};
  TinyRun run(config);
  const std::vector<float> conv = values(param(run, "conv1.weight").master),
                           linear = values(param(run, "linear.weight").master);
  run.trainer.step();
  double squares = 0;
  for (const char* name : {"linear.weight", "linear.bias"})
    for (const float g : values(param(run, name).grad)) squares += double(g) * double(g);
  EXPECT_NEAR(double(run.trainer.last_result().grad_norm), std::sqrt(squares), 1e-5 * std::sqrt(squares));
  double conv_squares = 0;
  for (const float g : values(param(run, "conv1.weight").grad)) conv_squares += double(g) * double(g);
  EXPECT_GT(conv_squares, 0.001 * squares);  // it would be seen
  run.trainer.start_epoch(0);
  run.run();
  EXPECT_EQ(values(param(run, "conv1.weight").master), conv);
  EXPECT_NE(values(param(run, "linear.weight").master), linear);
}

TEST(Groups, ThatMatchNothingOrFreezeAllAreRefused) {
  Config config = tiny_config("mlp");
  const auto error = [&] {
    try {
      TinyRun run(config);
    } catch (const Error& e) {
      EXPECT_EQ(e.exit, Exit::usage);
      return std::string(e.what());
    }
    return std::string("no error");
  };
  config.groups = {{"fc2.*", false, config.optimizer}};
  EXPECT_EQ(error(),
            "the group with match = \"fc2.*\" matches no parameter; they are called fc1.weight, linear.bias, ...");
  config.groups = {{"*", true, config.optimizer}};
  EXPECT_EQ(error(), "every parameter is frozen: there is nothing to train");
}

// ---- Phases --------------------------------------------------------------------------------------------------------

OptimizerConfig settings(const std::string& name, double lr) {
  OptimizerConfig o = default_settings(name, "pytorch");
  o.lr = lr;
  return o;
}
OptimizerConfig momentum_sgd(const std::string& form = "accumulate") {
  OptimizerConfig o = settings("sgd", 0.02);
  o.momentum = 0.8;
  o.form = form;
  return o;
}
PhaseConfig phase(int64_t epoch, const OptimizerConfig& o, const std::string& state) {
  PhaseConfig p{.epoch = epoch, .state = state, .optimizer = o};
  p.schedule.name = "constant";
  return p;
}

// What the optimizer keeps when so many epochs are done.
std::vector<float> slots_after(const Config& config, int64_t epochs) {
  struct Look : Observer {
    void on_boundary(Trainer& trainer, bool) override {
      if (trainer.progress().epoch == epochs && trainer.progress().in_epoch == 0)
        slots = values(trainer.net().params().flat().slots);
    }
    int64_t epochs = 0;
    std::vector<float> slots;
  } look;
  look.epochs = epochs;
  TinyRun run(config);
  run.trainer.run({&look});
  return look.slots;
}

TEST(Phases, CarriedTakesOverTheAverageGradient) {
  Config config = tiny_config("mlp");
  config.optimizer = settings("adam", 1e-3);
  const std::vector<float> adam = slots_after(config, 1);
  config.phases = {phase(1, momentum_sgd(), "carried")};
  const std::vector<float> sgd = slots_after(config, 1);
  // After 3 updates Adam's m is the average times 1 - 0.9^3; the sum that SGD keeps is 1 + 0.8 + 0.8^2 times it.
  const double factor = (1 + 0.8 + 0.64) / (1 - 0.9 * 0.9 * 0.9);
  const size_t n = adam.size() / 2;
  double largest = 0;
  for (size_t i = 0; i < n; ++i) {
    const double expected = double(adam[i]) * factor;
    ASSERT_NEAR(double(sgd[i]), expected, 2e-7 * std::fabs(expected));
    largest = std::max(largest, std::fabs(expected));
    ASSERT_EQ(sgd[n + i], 0.f);
  }
  EXPECT_GT(largest, 1e-3);
}

TEST(Phases, CarriedBetweenTwoFormsOfOneOptimizerIsRescaledToo) {
  Config config = tiny_config("mlp");
  config.optimizer = momentum_sgd();
  const std::vector<float> sum = slots_after(config, 1);
  config.phases = {phase(1, momentum_sgd(), "carried")};
  EXPECT_EQ(slots_after(config, 1), sum);
  config.phases = {phase(1, momentum_sgd("ewa"), "carried")};
  const std::vector<float> average = slots_after(config, 1);
  config.phases = {phase(1, momentum_sgd("inside"), "carried")};
  const std::vector<float> inside = slots_after(config, 1);
  for (size_t i = 0; i < sum.size(); ++i) {
    ASSERT_NEAR(double(average[i]), 0.2 * double(sum[i]), 1e-6 * std::fabs(double(sum[i])));
    ASSERT_NEAR(double(inside[i]), -0.02 * double(sum[i]), 1e-6 * std::fabs(double(sum[i])));
  }
  // From `inside`: its velocity has the learning rate of the last step in it, here a tenth of the base one.
  config.optimizer = momentum_sgd("inside");
  config.schedule = {.name = "step", .step_size = 1.0 / 3, .gamma = 0.1};
  config.phases = {};
  config.optimizer.momentum = 1e-4;  // as good as only the last step's
  const std::vector<float> velocity = slots_after(config, 1);
  OptimizerConfig other = config.optimizer;
  other.form = "accumulate";
  config.phases = {phase(1, other, "carried")};
  const std::vector<float> carried = slots_after(config, 1);
  for (size_t i = 0; i < sum.size(); ++i)
    ASSERT_NEAR(double(carried[i]), double(velocity[i]) / -0.0002, 1e-5 * std::fabs(double(carried[i])));
}

TEST(Phases, FreshStartsAtZero) {
  Config config = tiny_config("mlp");
  config.optimizer = momentum_sgd();
  config.phases = {phase(1, momentum_sgd(), "fresh")};
  for (const float v : slots_after(config, 1)) ASSERT_EQ(v, 0.f);
}

TEST(Phases, CarriedWhereNothingCanBeIsRefusedBeforeTheTraining) {
  const std::pair<OptimizerConfig, OptimizerConfig> wrong[] = {
      {settings("rmsprop", 1e-3), momentum_sgd()},         // has no average of the gradient
      {settings("sgd", 0.1), momentum_sgd()},              // keeps nothing
      {momentum_sgd(), settings("adam", 1e-3)},            // needs squares too
      {settings("adam", 1e-3), settings("adagrad", 0.01)}  // has no place for it
  };
  for (const auto& [from, to] : wrong) {
    Config config = tiny_config("mlp");
    config.optimizer = from;
    config.phases = {phase(1, to, "carried")};
    try {
      TinyRun run(config);
      ADD_FAILURE() << from.name << to.name;
    } catch (const Error& e) {
      EXPECT_EQ(e.exit, Exit::usage);
      EXPECT_NE(std::string(e.what()).find("use state = \"fresh\""), std::string::npos) << e.what();
    }
    config.phases[0].state = "fresh";
    EXPECT_EQ(TinyRun(config).run(), Outcome::done);
  }
}

TEST(Phases, StartAtTheirEpochWithAScheduleOfTheirOwn) {
  Config config = tiny_config("mlp");
  config.train.epochs = 5;
  config.optimizer = settings("adam", 1e-3);
  config.schedule = {.name = "linear"};
  config.phases = {phase(2, momentum_sgd(), "fresh")};
  config.phases[0].schedule = {.name = "linear", .warmup = 1};
  TinyRun run(config);
  run.run();
  std::vector<double> lr;
  for (const Row& row : run.rows)
    if (row.kind == "step") lr.push_back(row["lr"]);
  // 6 steps down to 0 over the first phase's two epochs; then 3 steps up and 6 down, over the last three.
  const std::vector<double> share = {1, 5 / 6., 4 / 6., 3 / 6., 2 / 6., 1 / 6., 1 / 3., 2 / 3.,
                                     1, 1,      5 / 6., 4 / 6., 3 / 6., 2 / 6., 1 / 6.};
  ASSERT_EQ(lr.size(), share.size());
  for (size_t i = 0; i < lr.size(); ++i) EXPECT_NEAR(lr[i], (i < 6 ? 1e-3 : 0.02) * share[i], 1e-12) << i;
  EXPECT_TRUE(std::holds_alternative<Momentum>(run.trainer.updater().rules()[0]));
}

TEST(Phases, StartOnAPlateau) {
  Config config = tiny_config("mlp");
  config.train.epochs = 12;
  config.optimizer.lr = 0.3;
  config.phases = {phase(0, settings("adam", 1e-4), "fresh")};
  config.phases[0].plateau = 2;
  TinyRun run(config);
  run.run();
  double best = INFINITY;
  int64_t waited = 0, begin = -1;
  for (const Row& row : run.rows) {
    if (row.kind != "epoch") continue;
    EXPECT_EQ(row["lr"], begin < 0 ? 0.3 : 1e-4) << row.epoch;
    waited = row["val/loss"] < best ? 0 : waited + 1;
    best = std::min(best, row["val/loss"]);
    if (begin < 0 && waited == 2) begin = row.epoch;
  }
  EXPECT_GT(begin, 2);
  EXPECT_EQ(run.trainer.progress().phase_epoch, begin);
}

TEST(Phases, AGroupKeepsItsRatioAndItsOwnOptimizerWhileThePhaseHasTheRuns) {
  Config config = tiny_config("mlp");
  config.optimizer = momentum_sgd();
  OptimizerConfig lion = settings("lion", 0.002), fast = momentum_sgd();
  fast.lr = 0.04;
  config.groups = {{"*.bias", false, lion}, {"linear.weight", false, fast}};
  OptimizerConfig slower = momentum_sgd();
  slower.lr = 0.01;
  config.phases = {phase(1, slower, "carried"), phase(2, settings("adam", 1e-3), "fresh")};
  config.train.epochs = 3;
  TinyRun run(config);
  struct Look : Observer {
    void on_boundary(Trainer& trainer, bool epoch_done) override {
      if (!epoch_done) return;
      StepParams params;
      trainer.updater().fill(params, trainer.global_step(), 1);
      std::string text;
      for (size_t g = 0; g < 3; ++g)
        text += fmt::format("{}:{:.6g} ",
                            trainer.updater().rules()[g].index() == Rule(Lion{}).index()       ? "lion"
                            : trainer.updater().rules()[g].index() == Rule(Momentum{}).index() ? "sgd"
                                                                                               : "adam",
                            params.group[g].lr);
      seen.push_back(text);
    }
    std::vector<std::string> seen;
  } look;
  run.trainer.run({&look});
  EXPECT_EQ(look.seen[0], "sgd:0.01 lion:0.001 sgd:0.02 ");
  EXPECT_EQ(look.seen[1], "adam:0.001 adam:0.0001 adam:0.002 ");
}

// ---- Averages, early stopping, plateau, views ----------------------------------------------------------------------

TEST(Ema, EvaluationLeavesTheWeightsUntouched) {
  Config config = tiny_config("convnet");
  TinyRun plain(config);
  plain.run();
  EXPECT_TRUE(std::isnan(plain.last("epoch")["val/ema_acc"]));
  for (const char* start : {"first", "zero", "corrected"}) {
    config.ema = {0.9, start};
    TinyRun run(config);
    run.run();
    EXPECT_EQ(weights_of(run.trainer), weights_of(plain.trainer)) << start;
    EXPECT_EQ(values(run.trainer.net().params().flat().buffers), values(plain.trainer.net().params().flat().buffers));
    EXPECT_EQ(run.last("epoch")["val/loss"], plain.last("epoch")["val/loss"]);
    for (const char* name : {"val/ema_loss", "val/ema_acc"}) EXPECT_FALSE(std::isnan(run.last("epoch")[name])) << name;
    for (const char* name : {"test/ema_loss", "test/ema_acc"}) EXPECT_FALSE(std::isnan(run.last("test")[name])) << name;
    EXPECT_NE(run.last("epoch")["val/ema_loss"], run.last("epoch")["val/loss"]);
  }
}

// After one update the corrected average is that update's weights; the one from the first weights is 0.9 of those.
TEST(Ema, HasTheValueOfItsStart) {
  Config config = plain_config("mlp");
  config.train.batch_size = 96;
  config.ema = {0.9, "corrected"};
  TinyRun corrected(config);
  corrected.run();
  EXPECT_NEAR(corrected.last("epoch")["val/ema_loss"], corrected.last("epoch")["val/loss"], 1e-5);
  config.ema.start = "first";
  TinyRun run(config);
  const std::vector<float> w0 = weights_of(run.trainer);
  run.trainer.step();
  const std::vector<float> w1 = weights_of(run.trainer);
  for (const auto& [name, tensor] : run.trainer.tensors())
    for (size_t i = 0; name == "ema" && i < w0.size(); ++i)
      ASSERT_NEAR(double(values(tensor)[i]), 0.9 * double(w0[i]) + 0.1 * double(w1[i]), 1e-7);
}

TEST(Ema, AnAverageThatIsNotFiniteLeavesTheWeightsToo) {
  Config config = plain_config("mlp");
  config.ema = {0.9, "first"};
  TinyRun run(config);
  for (const auto& [name, tensor] : run.trainer.tensors())
    if (name == "ema") tensor.data<float>()[5] = NAN;
  struct Look : Observer {
    void on_step(int64_t, int64_t) override { weights = weights_of(*trainer); }
    Trainer* trainer = nullptr;
    std::vector<float> weights;
  } look;
  look.trainer = &run.trainer;
  EXPECT_THROW(run.trainer.run({&look}), Diverged);
  EXPECT_EQ(weights_of(run.trainer), look.weights);
}

TEST(EarlyStopping, StopsAfterItsPatienceWithTheBestWeights) {
  for (const char* metric : {"val/loss", "val/acc"}) {
    Config config = tiny_config("convnet");
    config.optimizer.lr = 0.4;
    config.train.epochs = 30;
    config.train.patience = 2;
    config.train.stop_metric = metric;
    TinyRun run(config);
    run.run();
    const bool larger = std::string(metric) == "val/acc";
    const Row* best = nullptr;
    int64_t waited = 0, stop = 0;
    for (const Row& row : run.rows) {
      if (row.kind != "epoch") continue;
      const bool better = !best || (larger ? row[metric] > (*best)[metric] : row[metric] < (*best)[metric]);
      waited = better ? 0 : waited + 1;
      if (better) best = &row;
      if (waited == 2 && stop == 0) stop = row.epoch;
    }
    ASSERT_GT(stop, 0) << metric;
    EXPECT_EQ(run.trainer.progress().epoch, stop) << metric;
    EXPECT_EQ(best->epoch, stop - 2) << metric;
    EXPECT_EQ(run.last("test")["best_epoch"], double(best->epoch));
    const BatchSource val = upload_source(*run.backend, run.data.val, run.config.data.mean, run.config.data.std);
    const Accuracy a = run.trainer.net().evaluate(val, 16, 10);
    EXPECT_EQ(a.loss, (*best)["val/loss"]) << metric;
    EXPECT_EQ(a.acc, (*best)["val/acc"]) << metric;
    EXPECT_NE(a.loss, run.last("epoch")["val/loss"]) << metric;
  }
}

TEST(EarlyStopping, TheBestWeightsCountWhereItDoesNotStopToo) {
  Config config = tiny_config("mlp");
  config.optimizer.lr = 0.3;
  config.train.epochs = 6;
  config.train.patience = 100;
  config.train.stop_metric = "val/loss";
  TinyRun run(config);
  run.run();
  double best = INFINITY;
  for (const Row& row : run.rows)
    if (row.kind == "epoch") best = std::min(best, row["val/loss"]);
  ASSERT_LT(best, run.last("epoch")["val/loss"]);
  const BatchSource val = upload_source(*run.backend, run.data.val, run.config.data.mean, run.config.data.std);
  EXPECT_EQ(run.trainer.net().evaluate(val, 16, 10).loss, best);
}

TEST(Plateau, LowersTheLearningRateOfTheRun) {
  Config config = tiny_config("linear");
  config.schedule.name = "plateau";
  config.schedule.threshold = 0.999;  // better is a thousandth of the loss: never
  config.schedule.patience = 1;
  config.schedule.factor = 0.5;
  config.schedule.min_lr = 0.01;
  config.train.epochs = 9;
  TinyRun run(config);
  run.run();
  std::vector<double> lr;
  for (const Row& row : run.rows)
    if (row.kind == "epoch") lr.push_back(row["lr"]);
  // Epoch 1 sets the best; of two bad ones the second lowers it.
  EXPECT_EQ(lr, (std::vector<double>{0.05, 0.05, 0.05, 0.025, 0.025, 0.0125, 0.0125, 0.01, 0.01}));
}

TEST(TestTime, ViewsAreReportedBesideThePlainAccuracy) {
  Config config = tiny_config("convnet");
  config.train.epochs = 1;
  config.ema = {0.9, "first"};
  TinyRun plain(config);
  plain.run();
  EXPECT_TRUE(std::isnan(plain.last("test")["test/tta_acc"]));
  std::vector<double> losses;
  for (const char* tta : {"flip", "flip_shift"}) {
    config.train.tta = tta;
    TinyRun run(config);
    run.run();
    const Row& test = run.last("test");
    EXPECT_EQ(test["test/loss"], plain.last("test")["test/loss"]);
    for (const char* name : {"test/tta_acc", "test/ema_acc", "test/ema_tta_acc"}) EXPECT_GE(test[name], 0) << name;
    losses.push_back(test["test/tta_loss"]);
    const BatchSource source = upload_source(*run.backend, run.data.test(), run.config.data.mean, run.config.data.std);
    std::vector<View> views = {{false, 0, 0}, {true, 0, 0}};
    if (std::string(tta) == "flip_shift")
      views.insert(views.end(), {{false, -1, -1}, {true, -1, -1}, {false, 1, 1}, {true, 1, 1}});
    EXPECT_EQ(run.trainer.net().evaluate(source, 7, 10, views).acc, test["test/tta_acc"]);
  }
  EXPECT_NE(losses[0], losses[1]);
}

// ---- Steps that are not finite -------------------------------------------------------------------------------------

// Writes a value into a tensor of the trainer when so many steps are done, and the old one back later.
struct Poison : Observer {
  Poison(TinyRun& run, const std::string& name, int64_t from, int64_t until = 1000000, float value = NAN)
      : at(param(run, name).master.data<float>() + 3), from(from), until(until), value(value) {}
  void on_boundary(Trainer& trainer, bool) override {
    if (trainer.global_step() == from && times-- > 0) {
      good = *at;
      *at = value;
      hash = trainer.state_hash();
    }
    if (trainer.global_step() == until) *at = good;
  }
  float* at;
  int64_t from, until;
  float value, good = 0;
  int times = 1;
  std::string hash;
};

BadStep bad_step(TinyRun& run, const std::vector<Observer*>& observers) {
  try {
    run.trainer.run(observers);
  } catch (const Diverged& e) {
    EXPECT_EQ(e.exit, Exit::diverged);
    return e.bad;
  }
  ADD_FAILURE() << "it did not diverge";
  return {};
}

TEST(NotFinite, StopLeavesTheStateAndNamesTheStep) {
  for (const char* model : {"linear", "mlp", "convnet_nobn", "convnet"})
    for (const float value : {float(NAN), float(INFINITY), -float(INFINITY)}) {
      const Config config = tiny_config(model);
      const std::string name = std::string(model) == "mlp"      ? "fc1.weight"
                               : std::string(model) == "linear" ? "linear.weight"
                                                                : "conv1.weight";
      BadStep first;
      for (int again = 0; again < 2; ++again) {
        TinyRun run(config);
        Poison poison(run, name, 4, 1000000, value);
        const BadStep bad = bad_step(run, {&poison});
        EXPECT_EQ(run.trainer.state_hash(), poison.hash) << model << value;
        EXPECT_EQ(bad.step, 4);
        EXPECT_EQ(bad.epoch, 1);
        EXPECT_EQ(bad.where, "weight " + name);
        ASSERT_EQ(bad.samples.size(), 32u);
        if (again) {
          EXPECT_EQ(bad.samples, first.samples);
        }
        first = bad;
      }
      EXPECT_EQ(std::set(first.samples.begin(), first.samples.end()).size(), 32u);
      EXPECT_LT(*std::ranges::max_element(first.samples), 96);
    }
}

// Training does not read the running statistics: without a look at them they would end in a checkpoint.
TEST(NotFinite, RunningStatisticsAreLookedAt) {
  TinyRun run(tiny_config("convnet"));
  const Flat& flat = run.trainer.net().params().flat();
  struct Spoil : Observer {
    explicit Spoil(const Flat& f) : flat(f) {}
    void on_boundary(Trainer& trainer, bool) override {
      if (trainer.global_step() == 4) flat.buffers.data<float>()[2] = INFINITY;
    }
    const Flat& flat;
  } spoil(flat);
  const BadStep bad = bad_step(run, {&spoil});
  EXPECT_EQ(bad.step, 4);
  EXPECT_EQ(bad.where, "the running statistics of batch norm");
  for (int64_t i = 0; i < flat.buffers.numel(); ++i) EXPECT_TRUE(std::isfinite(flat.buffers.data<float>()[i]));
}

// Activations of 1e25 are finite and their variance is not: what batch norm makes of them is finite again.
TEST(NotFinite, TheLayerWhoseRunningStatisticsAreNotFiniteIsNamed) {
  TinyRun run(tiny_config("convnet"));
  struct Enlarge : Observer {
    void on_boundary(Trainer& trainer, bool) override {
      if (trainer.global_step() != 4) return;
      for (const Param* p : trainer.net().params().params())
        if (p->name == "conv2.weight")
          for (int64_t i = 0; i < p->shape.numel(); ++i) p->master.data<float>()[i] *= 1e25f;
    }
  } enlarge;
  const BadStep bad = bad_step(run, {&enlarge});
  EXPECT_EQ(bad.step, 4);
  EXPECT_EQ(bad.where, "the running statistics bn2.running_var");
}

TEST(NotFinite, TheWeightsOfTheLastGoodStepStay) {
  Config config = tiny_config("mlp");
  config.optimizer.lr = 1e6;
  config.data.val = 0;  // else that sees it first
  BadStep first;
  for (int again = 0; again < 2; ++again) {
    TinyRun run(config);
    struct Look : Observer {
      void on_boundary(Trainer& trainer, bool) override { hash = trainer.state_hash(); }
      std::string hash;
    } look;
    const BadStep bad = bad_step(run, {&look});
    EXPECT_EQ(run.trainer.state_hash(), look.hash) << bad.step << bad.where;
    EXPECT_EQ(bad.where.find("weight "), std::string::npos) << bad.where;  // these are large, but finite
    EXPECT_NE(bad.where, "");
    if (again) {
      EXPECT_EQ(std::tuple(bad.step, bad.where, bad.samples), std::tuple(first.step, first.where, first.samples));
    }
    first = bad;
  }
}

// The images are normalised by (pixel - mean) / std: too small a std makes them infinite.
TEST(NotFinite, SeesBadImagesAndBadGradients) {
  Config config = tiny_config("mlp");
  config.data.mean = {0.5, 0.5, 0.5};
  config.data.std = {1, 1e-42, 1};
  TinyRun images(config);
  const std::string hash = images.trainer.state_hash();
  EXPECT_EQ(bad_step(images, {}).where, "the images");
  EXPECT_EQ(images.trainer.state_hash(), hash);

  // Large finite images, a hidden layer of 1e-5 and large output weights: the loss is finite, d loss / d fc1.weight
  // not.
  config.data.std = {1e-30, 1e-30, 1e-30};
  TinyRun run(config);
  std::ranges::fill(std::span(param(run, "fc1.weight").master.data<float>(), 100 * 768), 0.f);
  std::ranges::fill(std::span(param(run, "fc1.bias").master.data<float>(), 100), 1e-5f);
  for (int i = 0; i < 1000; ++i) param(run, "linear.weight").master.data<float>()[i] = i < 100 ? 1e10f : 0;
  const std::string before = run.trainer.state_hash();
  const BadStep bad = bad_step(run, {});
  EXPECT_EQ(bad.where, "gradient of fc1.weight");
  EXPECT_TRUE(std::isfinite(bad.loss)) << bad.loss;
  EXPECT_EQ(run.trainer.state_hash(), before);
}

TEST(NotFinite, SkipLeavesStepsOutAndCountsThem) {
  for (const char* model : {"mlp", "convnet"}) {
    Config config = tiny_config(model);
    config.train.epochs = 3;
    config.data.val = 0;
    config.data.samples = 96;
    config.train.on_nonfinite = "skip";
    config.train.max_skips = 3;
    config.log.smoothing = 0.5;
    config.ema = {0.9, "corrected"};
    TinyRun run(config);
    Poison poison(run, model == std::string("mlp") ? "fc1.weight" : "conv1.weight", 2, 5);  // steps 2, 3, 4 are bad
    struct Look : Observer {
      void on_boundary(Trainer& trainer, bool) override { hashes.push_back(trainer.state_hash()); }
      std::vector<std::string> hashes;
    } look;
    EXPECT_EQ(run.trainer.run({&run, &poison, &look}), Outcome::done);
    EXPECT_EQ(look.hashes[1], look.hashes[2]);
    EXPECT_EQ(look.hashes[1], look.hashes[3]);
    EXPECT_NE(look.hashes[4], look.hashes[5]);
    std::vector<double> skipped;
    for (const Row& row : run.rows)
      if (row.kind == "step") skipped.push_back(std::isnan(row["skipped"]) ? 0 : row["skipped"]);
    EXPECT_EQ(skipped, (std::vector<double>{0, 0, 1, 2, 3, 3, 3, 3, 3}));
    EXPECT_FALSE(std::isnan(run.last("step")["train/loss_smooth"]));
    EXPECT_FALSE(std::isnan(run.last("test")["test/ema_loss"]));
    EXPECT_FALSE(std::isnan(run.last("epoch")["train/loss"]));
  }
}

TEST(NotFinite, TooManySkipsInARowEndTheRun) {
  Config config = tiny_config("mlp");
  config.data.val = 0;
  config.data.samples = 96;
  TinyRun stopped(config);
  Poison once(stopped, "fc1.weight", 1);
  const BadStep expected = bad_step(stopped, {&once});
  config.train.on_nonfinite = "skip";
  config.train.max_skips = 4;
  config.train.epochs = 4;
  TinyRun run(config);
  Poison poison(run, "fc1.weight", 1);
  const BadStep bad = bad_step(run, {&poison});
  EXPECT_EQ(run.trainer.global_step(), 6);  // steps 1 to 5, into the next epoch
  EXPECT_EQ(run.trainer.last_result().skipped, 5);
  EXPECT_EQ(run.trainer.state_hash(), poison.hash);
  EXPECT_EQ(bad.step, 1);
  EXPECT_EQ(bad.epoch, 0);
  EXPECT_EQ(bad.samples, expected.samples);
}

struct RewindRun {
  explicit RewindRun(const Config& config)
      : at(config), run(folder / "run", at.config, *at.backend, at.data), checkpoints(run, at.trainer) {
    run.begin();
  }
  std::string metrics() const {
    std::ifstream file(folder / "run" / "metrics.jsonl");
    return {std::istreambuf_iterator<char>(file), {}};
  }
  TempDir folder;
  TinyRun at;
  RunFolder run;
  RunCheckpoints checkpoints;
};

Config rewind_config() {
  Config config = tiny_config("mlp");
  config.train.epochs = 3;
  config.train.on_nonfinite = "rewind";
  config.train.max_skips = 2;
  config.checkpoint.epochs = 0.67;  // every 2nd of 3 steps an epoch
  return config;
}

TEST(NotFinite, RewindGoesBackWithHalfTheLearningRate) {
  std::string first;
  for (int again = 0; again < 2; ++again) {
    RewindRun r(rewind_config());
    Poison poison(r.at, "fc1.weight", 5);
    EXPECT_EQ(r.at.trainer.run({&r.at, &r.run, &r.checkpoints, &poison}), Outcome::done);
    EXPECT_EQ(r.at.trainer.progress().rewinds, 1);
    EXPECT_EQ(r.at.trainer.global_step(), 9);
    for (const Row& row : r.at.rows) EXPECT_EQ(row.kind == "step" && row.step == 9 && row["lr"] != 0.025, false);
    // The log has each step once: the first four with the full rate.
    const std::string text = r.metrics();
    for (int step = 1; step <= 9; ++step) {
      const std::string mark = fmt::format("\"kind\":\"step\",\"epoch\":{},\"step\":{},", step / 3, step);
      EXPECT_EQ(text.find(mark), text.rfind(mark)) << step;
      const size_t line = text.find(mark);
      ASSERT_NE(line, text.npos) << step << text;
      const std::string lr = step <= 4 ? "\"lr\":0.05," : "\"lr\":0.025,";
      EXPECT_LT(text.find(lr, line), text.find('\n', line)) << step << text;
    }
    if (again) {
      EXPECT_EQ(text, first);
    }
    first = text;
  }
}

// The checkpoint's writer refuses weights that are not finite; the run goes back to the one before it.
TEST(NotFinite, RewindFromWeightsThatCannotBeSaved) {
  RewindRun r(rewind_config());
  Poison poison(r.at, "fc1.weight", 4, 1000000, INFINITY);
  EXPECT_EQ(r.at.trainer.run({&r.run, &poison, &r.checkpoints}), Outcome::done);
  EXPECT_EQ(r.at.trainer.progress().rewinds, 1);
}

// At the end of an epoch it is the validation that sees it.
TEST(NotFinite, RewindFromTheValidation) {
  RewindRun r(rewind_config());
  struct AtStep : Observer {
    explicit AtStep(TinyRun& run) : at(param(run, "fc1.weight").master.data<float>()) {}
    void on_step(int64_t step, int64_t) override {
      if (step == 6 && times-- > 0) *at = NAN;
    }
    float* at;
    int times = 1;
  } poison(r.at);
  EXPECT_EQ(r.at.trainer.run({&r.run, &r.checkpoints, &poison}), Outcome::done);
  EXPECT_EQ(r.at.trainer.progress().rewinds, 1);
}

// A weight that is no number at a step, for as long as the run went back fewer than so many times: it is the state that
// decides, so that a resumed run meets the same.
struct BadUntil : Observer {
  BadUntil(int64_t step, int64_t rewinds) : step(step), rewinds(rewinds) {}
  void on_boundary(Trainer& trainer, bool) override {
    const Progress p = trainer.progress();
    if (p.step == step && p.rewinds < rewinds) trainer.net().params().flat().master.data<float>()[1] = NAN;
  }
  int64_t step, rewinds;
};

// Checkpoints of every second step alone: no epoch is the best one.
Config patient_config() {
  Config config = rewind_config();
  config.data.val = 0;
  config.data.samples = 96;
  config.train.max_skips = 5;
  return config;
}

using Steps = std::vector<int64_t>;

std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::ranges::sort(names);
  return names;
}

TEST(NotFinite, RewindThatDoesNotHelpGoesToAnOlderCheckpoint) {
  Config config = patient_config();
  RewindRun r(config);
  BadUntil bad(7, 4);
  EXPECT_EQ(r.at.trainer.run({&r.run, &r.checkpoints, &bad}), Outcome::done);
  const Progress end = r.at.trainer.progress();
  EXPECT_EQ(end.step, 9);
  EXPECT_EQ(end.rewinds, 4);
  EXPECT_EQ(end.rewound_from, 7);
  EXPECT_EQ(end.rewound_to, (Steps{6, 4, 2, 2}));  // the oldest is tried as often as it is allowed
  const auto names = names_in(r.folder / "run" / "checkpoints");
  std::vector<std::string> aside;  // by the last of the four alone: disks are not endless
  std::ranges::copy_if(names, std::back_inserter(aside), [](const auto& n) { return n.find(".bad-") != n.npos; });
  EXPECT_EQ(aside, (std::vector<std::string>{"00000004.bad-diverged", "00000006.bad-diverged"}));
}

// What a stop has saved is none to go back to; nothing that was written is lost for it.
TEST(NotFinite, NoRewindToAStopgap) {
  Config config = patient_config();
  config.checkpoint.epochs = 5;
  RewindRun r(config);
  int64_t stop_at = 1;
  EXPECT_EQ(r.at.trainer.run({&r.run, &r.checkpoints}, [&] { return r.at.trainer.global_step() == stop_at; }),
            Outcome::interrupted);
  r.checkpoints.save_now(r.at.trainer);
  std::filesystem::create_directory(r.folder / "run" / "checkpoints" / "00000000.bad-sha256");  // as of a damaged one
  BadUntil bad(3, 100);
  stop_at = -1;
  const Diverged error = [&] {
    try {
      r.at.trainer.run({&r.run, &r.checkpoints, &bad});
    } catch (const Diverged& d) {
      return d;
    }
    return Diverged("", {});
  }();
  EXPECT_EQ(error.bad.step, 3) << error.what();
  EXPECT_NE(std::string(error.what()).find("there is no checkpoint to go back to"), std::string::npos) << error.what();
  EXPECT_NE(r.metrics().find("\"step\":3,"), std::string::npos);
}

// Who asks to stop while a bad step of several batches is looked at gets that look.
TEST(NotFinite, AStopDoesNotDisturbTheLookAtABadStep) {
  Config config = tiny_config("mlp");
  config.train.batch_size = 8;
  config.train.accumulate = 3;
  TinyRun run(config);
  Poison poison(run, "fc1.weight", 2);
  struct Bad : Observer {
    void on_step(int64_t step, int64_t) override { done = step == 3; }
    bool done = false;
  } bad;
  EXPECT_THROW(run.trainer.run({&run, &poison, &bad}, [&] { return bad.done; }), Diverged);
}

// Past the step where it failed, and with that saved, another failure is one of its own.
TEST(NotFinite, RewindAtANewPlaceTakesTheNewestCheckpoint) {
  Config config = patient_config();
  RewindRun r(config);
  BadUntil first(3, 2), second(7, 4);
  EXPECT_EQ(r.at.trainer.run({&r.run, &r.checkpoints, &first, &second}), Outcome::done);
  EXPECT_EQ(r.at.trainer.progress().rewound_to, (Steps{2, 2, 6, 4}));
}

// Killed or stopped at any step on the way, the run goes the same way again and ends with the same bits. What a stop
// saves is no checkpoint to go back to.
TEST(NotFinite, ARunThatGoesBackIsResumedExactly) {
  Config config = patient_config();
  const auto go = [&](const std::filesystem::path& dir, int after, bool killed) {
    TinyRun at(config, 1);
    const bool again = std::filesystem::exists(dir / "config.toml");
    RunFolder run = again ? RunFolder(dir, at.config, *at.backend, at.data, RunFolder::Existing{})
                          : RunFolder(dir, at.config, *at.backend, at.data);
    RunCheckpoints checkpoints(run, at.trainer);
    again ? void(checkpoints.load(at.trainer)) : run.begin();
    BadUntil bad(7, 3);
    struct Killed {};
    struct Kill : Observer {
      Kill(int after, bool killed) : left(after), killed(killed) {}
      void on_step(int64_t, int64_t) override {
        if (left-- == 0 && killed) throw Killed{};
      }
      int left;
      bool killed;
    } kill(after, killed);
    try {
      const auto stop = [&] { return !killed && after >= 0 && kill.left < 0; };
      if (at.trainer.run({&run, &checkpoints, &bad, &kill}, stop) == Outcome::interrupted) {
        try {
          checkpoints.save_now(at.trainer);
        } catch (const Error& e) {  // the weight that is no number is there already
          if (e.exit != Exit::diverged) throw;
        }
        return std::string();
      }
      checkpoints.wait();
      return at.trainer.state_hash() + at.trainer.progress().to_json();
    } catch (const Killed&) {
      checkpoints.wait();
      return std::string();
    }
  };
  const auto metrics = [](const std::filesystem::path& dir) {
    std::ifstream file(dir / "metrics.jsonl");
    return std::string{std::istreambuf_iterator<char>(file), {}};
  };
  TempDir folder;
  for (const bool kill : {true, false}) {
    // Of every 4th step where it is stopped: what that saves lies between a checkpoint and the bad step.
    if (!kill) config.checkpoint.epochs = 1.34;
    const auto reference = folder / (kill ? "to be killed" : "to be stopped");
    const std::string straight = go(reference, -1, true);
    ASSERT_NE(straight.find("\"rewinds\": 3,"), std::string::npos) << straight;
    int ended = 0;
    for (int after = 0; after < 100; ++after) {
      const auto dir = folder / fmt::format("{}{}", kill ? "killed" : "stopped", after);
      const std::string first = go(dir, after, kill);
      ended += first.empty();
      EXPECT_EQ(first.empty() ? go(dir, -1, kill) : first, straight) << kill << after;
      EXPECT_EQ(metrics(dir), metrics(reference)) << kill << after;
      if (!first.empty()) break;
    }
    EXPECT_GT(ended, 15);  // 9 steps, and those that were done again
  }
}

TEST(NotFinite, RewindEndsAfterItsNumberAndWithoutACheckpoint) {
  {
    RewindRun r(rewind_config());
    Poison poison(r.at, "fc1.weight", 5);
    poison.times = 100;
    std::string message;
    BadStep bad;
    try {
      r.at.trainer.run({&r.run, &r.checkpoints, &poison});
    } catch (const Diverged& d) {
      EXPECT_EQ(d.exit, Exit::diverged);
      message = d.what();
      bad = d.bad;
    }
    EXPECT_TRUE(
        message.starts_with("training went back 2 times (to step 4, 3), each time with half the learning rate; "
                            "train.max_skips = 2 allows no more; training diverged: the loss is nan in epoch "))
        << message;
    EXPECT_EQ(bad.step, 5);
    EXPECT_EQ(r.at.trainer.progress().rewinds, 2);
    r.run.fail_run("diverged", "x", nullptr, &bad);
    std::ifstream file(r.folder / "run" / "nonfinite.json");
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    EXPECT_NE(text.find("\"where\": \"weight fc1.weight\""), text.npos) << text;
    EXPECT_NE(text.find("\"step\": 5"), text.npos) << text;
  }
  Config config = rewind_config();
  config.checkpoint.epochs = 1;
  RewindRun r(config);
  Poison poison(r.at, "fc1.weight", 1);
  EXPECT_EQ(bad_step(r.at, {&r.run, &r.checkpoints, &poison}).step, 1);
  EXPECT_NE(r.metrics().find("\"step\":1,"), std::string::npos);  // what was logged stays
}

// ---- Net, RunData ---------------------------------------------------------------------------------------------------

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
