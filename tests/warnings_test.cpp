// The warnings W1 to W28: each where it has to be given, and a neighbour where it must not.
#include "linnet/warnings.h"

#include <gtest/gtest.h>

#include <cmath>

#include "linnet/checkpoint.h"
#include "linnet/optimizer.h"
#include "linnet/run.h"
#include "temp_dir.h"
#include "tiny_run.h"

namespace linnet {
namespace {

using Overrides = std::vector<std::string>;
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// ---- The table and the log -----------------------------------------------------------------------------------------

TEST(Warnings, TheTableHoldsW1ToW30EachWithAdvice) {
  ASSERT_EQ(warning_table().size(), 30u);
  for (size_t i = 0; i < 30; ++i) {
    const WarningEntry& w = warning_table()[i];
    EXPECT_EQ(w.id, fmt::format("W{}", i + 1));
    EXPECT_TRUE(w.kind == "start" || w.kind == "training" || w.kind == "error") << w.id;
    EXPECT_FALSE(w.condition.empty() || w.condition.ends_with('.')) << w.id;
    EXPECT_FALSE(w.advice.empty() || w.advice.ends_with('.')) << w.id;
  }
}

TEST(Warnings, EachIsToldOnceAndStrictMakesAllButNotesFatal) {
  Warnings mild(false), strict(true);
  EXPECT_FALSE(strict.fatal());
  for (Warnings* w : {&mild, &strict}) {
    EXPECT_EQ(w->tell_once({"W10", "data.shuffle is off"}),
              "warning W10: data.shuffle is off. Batches that are the same in every epoch, in the order of the files, "
              "bias the steps: data.shuffle = true.");
    EXPECT_EQ(w->tell_once({"W10", "again"}), "");
    EXPECT_TRUE(w->tell_once({"W4", "x", true}).starts_with("note W4: x. "));
  }
  EXPECT_FALSE(mild.fatal());
  EXPECT_TRUE(strict.fatal());
  EXPECT_TRUE(strict.reason().starts_with("--strict: W10 is an error")) << strict.reason();
  Warnings notes(true);
  notes.tell_once({"W4", "x", true});
  EXPECT_FALSE(notes.fatal());
  EXPECT_THROW(notes.tell_once({"W99", "x"}), Error);
}

// ---- Before training -----------------------------------------------------------------------------------------------

Config config_with(const std::string& toml) { return parse_config(toml, "t"); }

constexpr RunFacts kFacts{.images = 1280, .parameters = 270'000, .depth = 20, .batch_norm = true};

std::string ids(const std::vector<Warning>& warnings) {
  std::string text;
  for (const Warning& w : warnings) text += (text.empty() ? "" : " ") + (w.note ? "(" + w.id + ")" : w.id);
  return text;
}

struct Case {
  std::string toml, want;
  RunFacts facts = kFacts;
};

std::string adam(const std::string& more) { return "[optimizer]\nname = 'adam'\n" + more; }
std::string sgd(const std::string& more) { return "[optimizer]\nname = 'sgd'\nlr = 0.1\nmomentum = 0.9\n" + more; }
std::string rms(const std::string& more) { return "[optimizer]\nname = 'rmsprop'\nlr = 0.001\n" + more; }

TEST(Warnings, AtTheStart) {
  RunFacts no_bn = kFacts, deep = kFacts, large = kFacts, ragged = kFacts;
  no_bn.batch_norm = false;
  deep.depth = 56;
  large.parameters = 1'000'001;
  ragged.images = 1290;
  RunFacts ragged_no_bn = ragged;
  ragged_no_bn.batch_norm = false;
  const std::vector<Case> cases = {
      {sgd(""), ""},
      {adam(""), ""},
      // W1, W3: betas
      {adam("betas = [0.995, 0.995]"), "W1"},
      {adam("betas = [0.99, 0.995]"), ""},
      {adam("betas = [0.9, 0.989]"), "W3"},
      {adam("betas = [0.9, 0.99]"), ""},
      {"[optimizer]\nname = 'lion'\nbetas = [0.9, 0.95]", ""},
      {"[optimizer]\nname = 'lion'\nbetas = [0.99, 0.9]", "W1"},
      // W2: learning rates, their ends included
      {adam("lr = 1e-4"), ""},
      {adam("lr = 0.9e-4"), "W2"},
      {adam("lr = 1e-2"), ""},
      {adam("lr = 2e-2"), "W2"},
      {"[optimizer]\nname = 'sgd'\nlr = 1e-3", ""},
      {"[optimizer]\nname = 'sgd'\nlr = 0.9e-3", "W2"},
      {"[optimizer]\nname = 'sgd'\nlr = 0.2", "W2"},
      {"[optimizer]\nname = 'sgd'\nlr = 1\nmomentum = 0.9\nform = 'ewa'", ""},
      {"[optimizer]\nname = 'sgd'\nlr = 0.005\nmomentum = 0.9\nform = 'ewa'", "W2"},
      {rms("") + "alpha = 0.9", ""},
      {"[optimizer]\nname = 'rmsprop'\nlr = 0.02", "W2"},
      {"[optimizer]\nname = 'lion'\nlr = 1e-3", ""},
      {"[optimizer]\nname = 'lion'\nlr = 1e-2", "W2"},
      {"[optimizer]\nname = 'adagrad'", ""},
      {"[optimizer]\nname = 'muon'", ""},
      {"[optimizer]\nname = 'nag'", ""},
      {"[optimizer]\nname = 'nadam'", ""},
      {"[optimizer]\nname = 'radam'", ""},
      {"[optimizer]\nname = 'adamw'", ""},
      {sgd("[[group]]\nmatch = 'conv1*'\nlr = 0.5"), "W2"},
      {sgd("[[group]]\nmatch = 'conv1*'\nfrozen = true"), ""},
      {sgd("[[phase]]\nepoch = 5\noptimizer.lr = 0.5"), "W2"},
      // W4: short averages, 0 is none
      {adam("betas = [0.4, 0.999]"), "(W4)"},
      {adam("betas = [0.5, 0.999]"), ""},
      {adam("betas = [0.0, 0.999]"), ""},
      {"[optimizer]\nname = 'sgd'\nlr = 0.1\nmomentum = 0.4", "(W4)"},
      {"[optimizer]\nname = 'sgd'\nlr = 0.1\nmomentum = 0", ""},
      {rms("alpha = 0.3"), "(W4)"},
      // W6: L2 through Adam's moments
      {adam("weight_decay = 1e-4"), "W6"},
      {adam("weight_decay = 1e-4\npreset = 'keras'"), ""},
      {"[optimizer]\nname = 'adamw'\nweight_decay = 1e-2", ""},
      {"[optimizer]\nname = 'nadam'\nweight_decay = 1e-4", "W6"},
      {"[optimizer]\nname = 'nadam'\nweight_decay = 1e-4\nform = 'decoupled'", ""},
      {sgd("weight_decay = 1e-4"), ""},
      // W7
      {rms("alpha = 0.999"), "W7"},
      {rms("alpha = 0.999\nform = 'corrected'"), ""},
      {rms("alpha = 0.99"), ""},
      // W8, W9: batch sizes
      {sgd("[train]\nbatch_size = 7"), "W8", no_bn},
      {sgd("[train]\nbatch_size = 8"), "", no_bn},
      {sgd("[train]\nbatch_size = 256"), ""},
      {sgd("[train]\nbatch_size = 257"), "W8"},
      {sgd("[train]\nbatch_size = 128\naccumulate = 3"), "W8"},
      {sgd("[train]\nbatch_size = 4\naccumulate = 2"), "", no_bn},
      {sgd("[train]\naccumulate = 0"), "W8"},
      {sgd("[train]\nbatch_size = 15"), "W9"},
      {sgd("[train]\nbatch_size = 16"), "(W9)"},
      {sgd("[train]\nbatch_size = 31"), "(W9)"},
      {sgd("[train]\nbatch_size = 32"), ""},
      {sgd("[train]\nbatch_size = 15"), "", no_bn},
      // W10: the order matters where an epoch has several steps
      {sgd("[data]\nshuffle = false"), "W10"},
      {sgd("[data]\nshuffle = false\n[train]\naccumulate = 0"), "W8"},
      // W11
      {sgd("[data]\ndrop_last = false"), "W11", ragged},
      {sgd("[data]\ndrop_last = false"), "", ragged_no_bn},
      {sgd("[data]\ndrop_last = false"), ""},
      {sgd("[data]\ndrop_last = true"), "", ragged},
      // W23: between phases
      {sgd("[[phase]]\nepoch = 5\noptimizer.momentum = 0.5"), "W23"},
      {sgd("[[phase]]\nepoch = 5\noptimizer.momentum = 0.5\noptimizer.lr = 0.05"), ""},
      {sgd("[[phase]]\nepoch = 5\noptimizer.momentum = 0.91"), ""},
      {sgd("form = 'ewa'\n[[phase]]\nepoch = 5\noptimizer.momentum = 0.5"), ""},
      {adam("[[phase]]\nepoch = 5\noptimizer.name = 'sgd'\noptimizer.momentum = 0.9"), ""},
      // W26
      {sgd(""), "W26", deep},
      {sgd(""), "W26", large},
      {sgd("[schedule]\nwarmup = 1"), "", deep},
      {sgd("[schedule]\nname = 'one_cycle'"), "", large},
      // W28, before the first step
      {adam("eps = 1e-10"), "W28"},
      {adam("eps = 1e-9"), ""},
      {adam("eps = 1e-10\nform = 'eps_inside'"), ""},
      {"[optimizer]\nname = 'adagrad'\neps = 1e-10", ""},
      // Several at once, in their order
      {adam("betas = [0.9, 0.5]\nlr = 0.5\nweight_decay = 0.1\n[data]\nshuffle = false"), "W1 W2 W3 W6 W10 W28"},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(ids(start_warnings(config_with(c.toml), c.facts)), c.want) << c.toml;
  }
}

TEST(Warnings, OneMessageNamesAllPlacesAndTellsWhatIsTakenOverOnce) {
  const auto found = start_warnings(config_with(sgd("[[group]]\nmatch = 'a*'\nlr = 0.5\n[[group]]\nmatch = 'b*'\n"
                                                    "[[phase]]\nepoch = 5\noptimizer.lr = 0.7")),
                                    kFacts);
  ASSERT_EQ(ids(found), "W2");
  EXPECT_EQ(found[0].message,
            "[[group]] a*: lr = 0.5 is out of the range usual for sgd, 0.001 to 0.1; [[phase]] 1: lr = 0.7 is out of "
            "the range usual for sgd, 0.001 to 0.1");
}

TEST(Warnings, W12AndW23OfAFork) {
  const Config before = config_with(sgd("[train]\nbatch_size = 128"));
  const std::vector<std::pair<std::string, std::string>> cases = {
      {sgd("[train]\nbatch_size = 128"), ""},
      {sgd("[train]\nbatch_size = 192"), "W12"},
      {sgd("[train]\nbatch_size = 160"), ""},
      {sgd("[train]\nbatch_size = 64"), "W12"},
      {sgd("[train]\nbatch_size = 64\naccumulate = 2"), ""},
      {sgd("[train]\nbatch_size = 64\nlr_scaling = 'linear'"), ""},
      {"[optimizer]\nname = 'sgd'\nlr = 0.1\nmomentum = 0", "W23"},
      {"[optimizer]\nname = 'sgd'\nlr = 1\nmomentum = 0", ""},
  };
  for (const auto& [toml, want] : cases) EXPECT_EQ(ids(change_warnings(before, config_with(toml), 1280)), want) << toml;
}

TEST(Warnings, FactsOfModels) {
  const auto facts = [](const std::string& model) {
    TinyRun run(tiny_config(model));
    return facts_of(run.trainer.net().params(), run.data.train.size());
  };
  const RunFacts resnet = facts("resnet20"), mlp = facts("mlp");
  EXPECT_EQ(resnet.depth, 20);
  EXPECT_TRUE(resnet.batch_norm);
  EXPECT_EQ(resnet.images, 96);
  EXPECT_EQ(mlp.depth, 2);
  EXPECT_FALSE(mlp.batch_norm);
  EXPECT_EQ(mlp.parameters, 16 * 16 * 3 * 100 + 100 + 1010);
}

// ---- Errors that no run survives -----------------------------------------------------------------------------------

template <class F>
std::string error_of(Exit exit, F&& f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.exit, exit) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}
void expect_has(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), text.npos) << "no '" << part << "' in:\n" << text;
}

TEST(Warnings, W4AndW5AreErrorsOfTheConfig) {
  expect_has(error_of(Exit::usage, [] { config_with(adam("betas = [1.0, 0.999]")); }), "optimizer.betas");
  expect_has(error_of(Exit::usage, [] { config_with(rms("alpha = 1")); }), "alpha");
  expect_has(error_of(Exit::usage, [] { config_with(adam("eps = 0.9e-10")); }), "optimizer.eps");
  EXPECT_EQ(config_with(adam("eps = 1e-10")).optimizer.eps, 1e-10);
}

TEST(Warnings, W9IsAnErrorForOneValuePerChannel) {
  const auto backend = make_cpu_backend(1);
  ParamStore store;
  BatchNorm2d bn(Scope{store, ""} / "bn", 4);
  store.seal(*backend, 0);
  Pool pool(*backend);
  Tape tape(*backend, pool);
  const auto run = [&](int64_t batch) {
    tape.begin_step();
    Pass pass{*backend, pool, &tape, true};
    bn.forward(pass, pool.zeros({batch, 4}, DType::f32));
  };
  expect_has(error_of(Exit::failure, [&] { run(1); }), "use a larger batch");
  EXPECT_NO_THROW(run(2));
}

TEST(Warnings, W13NamesStepAndLayer) {
  Config config = tiny_config("mlp");
  config.optimizer.lr = 1e4;
  config.train.epochs = 20;
  TinyRun run(config);
  const std::string message = error_of(Exit::diverged, [&] { run.run(); });
  for (const char* part : {"step ", "the first value that is not finite is in ", "smaller optimizer.lr", "clip_norm"})
    expect_has(message, part);
}

TEST(Warnings, ShorterStepsAreNotThoseThatAreSet) {
  Config c = tiny_config("mlp");
  EXPECT_EQ(shorter_steps(c), "a smaller optimizer.lr, schedule.warmup = 1 or optimizer.clip_norm = 1");
  c.clip.norm = 1;
  EXPECT_EQ(shorter_steps(c), "a smaller optimizer.lr or schedule.warmup = 1");
  c.schedule.warmup = 1;
  EXPECT_EQ(shorter_steps(c), "a smaller optimizer.lr or a longer schedule.warmup");
  Warnings told(false);
  EXPECT_EQ(told.tell_once({"W15", "it jumps", false, "Use " + shorter_steps(c)}),
            "warning W15: it jumps. Use a smaller optimizer.lr or a longer schedule.warmup.");
}

TEST(Warnings, W17NothingToTrain) {
  Config config = tiny_config("linear");
  config.groups = {{.match = "*.bias", .frozen = true}};
  EXPECT_NO_THROW(TinyRun{config});
  config.groups = {{.match = "*", .frozen = true}};
  expect_has(error_of(Exit::usage, [&] { TinyRun{config}; }), "nothing to train");
}

TEST(Warnings, W24EvaluationChangesNothingAndBatchNormRefusesToTrainInIt) {
  Config config = tiny_config("convnet");
  config.model.dropout = 0.5;
  TinyRun run(config);
  run.trainer.step();
  const BatchSource val = upload_source(*run.backend, run.data.val, run.config.data.mean, run.config.data.std);
  const std::string before = run.trainer.state_hash();
  const Accuracy first = run.trainer.net().evaluate(val, 7, 10), second = run.trainer.net().evaluate(val, 24, 10);
  EXPECT_EQ(run.trainer.state_hash(), before);
  EXPECT_EQ(first.acc, second.acc);
  EXPECT_NEAR(first.loss, second.loss, 1e-5);

  ParamStore store;
  BatchNorm2d bn(Scope{store, ""} / "bn", 4);
  store.seal(*run.backend, 0);
  Pool pool(*run.backend);
  Tape tape(*run.backend, pool);
  tape.begin_step();
  Pass evaluating{*run.backend, pool, &tape, false};
  expect_has(error_of(Exit::failure,
                      [&] {
                        bn.forward(evaluating, pool.zeros({2, 4}, DType::f32));
                      }),
             "no gradient in evaluation mode");
}

TEST(Warnings, W25ACheckpointWithoutStateIsRefused) {
  const TempDir dir;
  TinyRun run(tiny_config("linear"));
  RunFolder folder(dir / "run", run.config, *run.backend, run.data);
  RunCheckpoints checkpoints(folder, run.trainer);
  folder.begin();
  run.trainer.step();
  checkpoints.save_now(run.trainer);
  EXPECT_TRUE(checkpoints.load(run.trainer));

  std::vector<Rejected> none;
  const auto path = dir / "run" / "checkpoints";
  const Checkpoint good = *load_latest_checkpoint(path, none);
  const auto message_without = [&](auto&& take_away) {
    Checkpoint bad = good;
    take_away(bad);
    CheckpointStore(path).save(bad, false);
    return error_of(Exit::checkpoint, [&] { RunCheckpoints(folder, run.trainer).load(run.trainer); });
  };
  expect_has(message_without([](Checkpoint& c) { c.tensors["optim"].tensors.clear(); }), "has no 'slots'");
  // Random numbers and the schedule are functions of the seed and of these counters.
  expect_has(message_without([](Checkpoint& c) { c.state = "{}"; }), "state.json");
}

TEST(Warnings, W27InputThatIsNotFinite) {
  Config config = config_with(sgd("[data]\nmean = [0.5, 0.5, 0.5]\nstd = [0.2, 1e-300, 0.2]"));
  expect_has(error_of(Exit::usage, [&] { start_warnings(config, kFacts); }),
             "W27: data.mean = 0.5 and data.std = 1e-300");
  config.data.std[1] = 1e-3;
  EXPECT_EQ(ids(start_warnings(config, kFacts)), "");
  error_of(Exit::usage, [] { config_with("data.mean = [nan, 0.5, 0.5]"); });
}

// ---- While training ------------------------------------------------------------------------------------------------

struct Watched {
  explicit Watched(const Config& config = {}) : dog(config, 10, [this](const Warning& w) { found.push_back(w); }) {}
  std::string ids() const { return linnet::ids(found); }

  // A row of metrics `steps` after the last one.
  void row(double loss, int64_t steps = 50, std::vector<std::pair<std::string, double>> more = {}) {
    at += steps;
    more.emplace_back("train/loss", loss);
    dog.on_step(at, 0);
    dog.on_row({.kind = "step", .epoch = epoch, .step = at, .values = std::move(more)});
  }
  void end_epoch(double train_loss, double train_acc, double val_loss = kNone, double val_acc = kNone) {
    dog.on_row(
        {.kind = "epoch",
         .epoch = ++epoch,
         .step = at,
         .values = {
             {"train/loss", train_loss}, {"train/acc", train_acc}, {"val/loss", val_loss}, {"val/acc", val_acc}}});
  }
  std::vector<Warning> found;
  Watchdog dog;
  int64_t at = 0, epoch = 0;
};

TEST(Watchdog, W13SkippedStepsAndARewind) {
  Watched good, skips, rewinds;
  for (Watched* w : {&good, &skips, &rewinds}) w->row(2);
  good.row(2);
  skips.row(kNone, 50, {{"skipped", 3}});
  skips.row(1.9, 50, {{"skipped", 3}});
  rewinds.row(1.9, -10);
  EXPECT_EQ(good.ids(), "");
  EXPECT_EQ(skips.ids(), "W13");
  EXPECT_EQ(rewinds.ids(), "W13");
}

TEST(Watchdog, W14FlatNearChance) {
  Watched flat, high, falling, short_one, noisy;
  for (int i = 0; i < 2; ++i) flat.row(2.300);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(high.ids(), "") << i;
    high.row(2.5);  // first weights that are sure, and learn nothing
  }
  for (const double loss : {2.32, 2.31, 2.30, 2.29, 2.28, 2.27}) falling.row(loss);
  short_one.row(2.300);
  for (int i = 0; i < 50; ++i) noisy.row(2.3 + (i % 2 ? 0.1 : -0.1), 1);  // the same, seen at every step
  Config config;
  config.schedule.warmup = 1;
  Watched warming(config);
  for (int i = 0; i < 10; ++i) warming.row(2.300);
  EXPECT_EQ(flat.ids(), "W14");
  EXPECT_EQ(noisy.ids(), "W14");
  EXPECT_EQ(high.ids(), "W14");
  EXPECT_EQ(falling.ids(), "");
  EXPECT_EQ(short_one.ids(), "");
  EXPECT_EQ(warming.ids(), "");
}

// convnet at a learning rate of 1e-9: 28 steps an epoch, the first a warmup.
TEST(Watchdog, W14NothingIsLearntInEpochs) {
  struct Case {
    double first, second;
    int64_t steps;
    const char* want;
  };
  const Case cases[] = {{2.4938, 2.4918, 28, "W14"},
                        {2.4938, 2.48, 28, ""},
                        {2.4938, 2.4918, 24, ""},
                        {2.4938, 2.6, 28, ""},
                        {1.99, 1.99, 28, ""}};  // rising is no W14; much is learnt
  for (const Case& c : cases) {
    Config config;
    config.schedule.warmup = 1;
    Watched w(config);
    w.at = c.steps;
    w.end_epoch(c.first, 0.1);
    EXPECT_EQ(w.ids(), "");
    w.at += c.steps;
    w.end_epoch(c.second, 0.1);
    EXPECT_EQ(w.ids(), c.want) << c.first << " " << c.second << " " << c.steps;
  }
  Config config;
  config.schedule.warmup = 2;
  Watched warming(config);
  for (int i = 0; i < 2; ++i) {
    warming.at += 28;
    warming.end_epoch(2.5, 0.1);
  }
  EXPECT_EQ(warming.ids(), "");
}

TEST(Watchdog, W15TenTimesTheFirstLoss) {
  Watched bad, once, trained, lost;
  for (const double loss : {2.4, 25., 26.}) bad.row(loss);
  for (const double loss : {2.4, 25., 3.}) once.row(loss);
  for (const double loss : {0.01, 0.2, 0.2, 0.2}) trained.row(loss);  // from good weights: no harm
  for (const double loss : {0.01, 2.9, 2.9}) lost.row(loss);
  EXPECT_EQ(bad.ids(), "W15");
  EXPECT_EQ(once.ids(), "");
  EXPECT_EQ(trained.ids(), "");
  EXPECT_EQ(lost.ids(), "W15");
}

TEST(Watchdog, W15TheThirdSpike) {
  Watched calm, spiky, small;
  for (int i = 0; i < 100; ++i) {
    calm.row(i % 20 == 15 ? 1.9 : 1);
    spiky.row(i % 20 == 15 ? 2.5 : 1);
    small.row(i % 20 == 15 ? 0.1 : 0.01);
    EXPECT_EQ(spiky.ids(), i < 55 ? "" : "W15") << i;
  }
  EXPECT_EQ(calm.ids(), "");
  EXPECT_EQ(small.ids(), "");
}

TEST(Watchdog, W16NormsOfLayers) {
  struct Norms {
    double norm, loss;
    int looks;
    const char* want;
  };
  const Norms cases[] = {{0, 2, 2, ""},         {0, 2, 3, "W16"},     {11, 2, 4, ""},    {11, 2, 5, "W16"},
                         {10, 2, 50, ""},       {1001, 2, 1, "W16"},  {1000, 2, 4, ""},  {0.009, 2, 9, ""},
                         {0.009, 2, 10, "W16"}, {0.009, 0.1, 50, ""}, {0.01, 2, 50, ""}, {INFINITY, 2, 50, ""}};
  for (const Norms& c : cases) {
    Watched w;
    w.row(c.loss);
    for (int i = 0; i < c.looks; ++i) w.dog.judge_gradients({{"good", 0.5}, {"conv", c.norm}});
    EXPECT_EQ(w.ids(), c.want) << c.norm << " " << c.looks;
    if (!w.found.empty()) expect_has(w.found[0].message, "the gradient of conv has a norm of ");
  }
  Watched in_turn;  // other layers, or not in a row
  for (int i = 0; i < 20; ++i) in_turn.dog.judge_gradients({{"a", i % 2 ? 20 : 1.}, {"b", i % 2 ? 1 : 20.}});
  EXPECT_EQ(in_turn.ids(), "");
}

TEST(Watchdog, W18TheGap) {
  Watched large, small, twice, without;
  for (int i = 0; i < 3; ++i) {
    large.end_epoch(0.1, 0.97, 1, 0.73);
    small.end_epoch(0.6, 0.82, 0.6, 0.80);
    twice.end_epoch(0.1, 0.97, 1, i == 1 ? 0.8 : 0.73);
    without.end_epoch(0.1, 0.97);
  }
  EXPECT_EQ(large.ids(), "W18");
  EXPECT_EQ(small.ids(), "");
  EXPECT_EQ(twice.ids(), "");
  EXPECT_EQ(without.ids(), "");
}

TEST(Watchdog, W19BothLow) {
  Config config;
  config.train.epochs = 8;
  Watched stuck(config), rising(config), high(config), brief;
  for (int i = 0; i < 8; ++i) {
    stuck.end_epoch(2, 0.3, 2, 0.3);
    EXPECT_EQ(stuck.ids(), i < 5 ? "" : "W19") << i;
    rising.end_epoch(2, 0.2 + 0.03 * i, 2, 0.2 + 0.03 * i);
    EXPECT_EQ(rising.ids(), i < 7 ? "" : "W19") << i;  // at the end of the run, still below half
    high.end_epoch(1, 0.6, 1, 0.6);
  }
  for (int i = 0; i < 4; ++i) brief.end_epoch(2, 0.3, 2, 0.3);
  EXPECT_EQ(high.ids(), "");
  EXPECT_EQ(brief.ids(), "");
}

TEST(Watchdog, W20TrainingLossFallsAndValidationDoesNot) {
  Watched bad, good, flat;
  for (int i = 0; i < 11; ++i) {
    EXPECT_EQ(bad.ids(), "") << i;
    bad.end_epoch(1 - 0.05 * i, 0.8, 0.7 + 0.01 * i, 0.75);
    good.end_epoch(1 - 0.05 * i, 0.8, 0.7 + 0.01 * i, 0.75 + 0.001 * i);
    flat.end_epoch(1 - 0.005 * i, 0.8, 0.7, 0.75);
  }
  EXPECT_EQ(bad.ids(), "W20");
  EXPECT_EQ(good.ids(), "");
  EXPECT_EQ(flat.ids(), "");
}

TEST(Watchdog, W21ClippedShare) {
  Watched half, more, early;
  for (int i = 0; i < 3; ++i) half.row(2, 50, {{"clipped_share", 0.5}});
  early.row(2, 50, {{"clipped_share", 1}});
  for (int i = 0; i < 2; ++i) more.row(2, 50, {{"clipped_share", 0.51}});
  EXPECT_EQ(half.ids(), "");
  EXPECT_EQ(early.ids(), "");
  EXPECT_EQ(more.ids(), "W21");
}

TEST(Watchdog, W22Reversals) {
  EXPECT_DOUBLE_EQ(reversed_share("++-0", "-+0+"), 0.5);  // of the two that moved twice
  EXPECT_TRUE(std::isnan(reversed_share("0", "+")));
  Watched often, seldom, broken;
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(often.ids(), "");
    often.dog.judge_reversals(0.38, 0.3);
    seldom.dog.judge_reversals(0.3, 0.3);
    broken.dog.judge_reversals(i == 2 ? 0.1 : 0.38, 0.3);
  }
  EXPECT_EQ(often.ids(), "W22");
  EXPECT_EQ(seldom.ids(), "");
  EXPECT_EQ(broken.ids(), "");
}

TEST(Watchdog, W28NoGradientSoFar) {
  Watched some, few;
  some.dog.judge_history("conv1.weight", 0.1);
  few.dog.judge_history("conv1.weight", 0.09);
  EXPECT_EQ(some.ids(), "W28");
  EXPECT_EQ(few.ids(), "");
}

TEST(Watchdog, EachIsFoundOnce) {
  Watched w;
  for (int i = 0; i < 100; ++i) {
    w.row(2.3);
    w.dog.judge_gradients({{"conv", 2000}});
  }
  EXPECT_EQ(w.ids(), "W16 W14");
}

// ---- Real runs -----------------------------------------------------------------------------------------------------

std::string watch(
    const Config& config, const std::function<void(TinyRun&)>& spoil = [](TinyRun&) {}) {
  TinyRun run(config);
  spoil(run);
  Watched w(run.config);
  run.trainer.run({&run, &w.dog});
  return w.ids();
}

TEST(Watchdog, AGoodRunIsQuiet) {
  Config config = tiny_config("convnet");
  config.train.epochs = 4;
  EXPECT_EQ(watch(config), "");
  config.optimizer = default_settings("adam", "pytorch");
  EXPECT_EQ(watch(config), "");
}

// Weights of 0 in the last layer but one, and no bias: nothing behind it has a gradient, and Adam has no history.
TEST(Watchdog, ADeadNetIsSeenInGradientsAndHistory) {
  Config config = tiny_config("mlp");
  config.optimizer = default_settings("adam", "pytorch");
  config.train.epochs = 60;
  const std::string found = watch(config, [](TinyRun& run) {
    for (Param* p : run.trainer.net().params().params()) {
      std::vector<float> values(size_t(p->shape.numel()), p->name == "fc1.bias" ? -1e6f : 0.f);
      run.backend->upload(p->master, values.data());
    }
  });
  EXPECT_NE((" " + found + " ").find(" W16 "), std::string::npos) << found;
  EXPECT_NE((" " + found + " ").find(" W28 "), std::string::npos) << found;
  EXPECT_NE((" " + found + " ").find(" W14 "), std::string::npos) << found;
}

// Full-batch gradient descent where lr times the curvature (here of the weight decay) is near 2 goes to and fro; with a
// small learning rate it does not.
TEST(Watchdog, AZigzagIsSeenInTheWeights) {
  Config config = tiny_config("linear");
  config.augment = {.crop_pad = 0, .flip = "none"};
  config.train.accumulate = 0;
  config.train.epochs = 70;
  config.optimizer = {.lr = 1.9, .weight_decay = 1};
  EXPECT_NE((" " + watch(config) + " ").find(" W22 "), std::string::npos);
  config.optimizer.lr = 1e-3;
  EXPECT_EQ((" " + watch(config) + " ").find(" W22 "), std::string::npos);
}

}  // namespace
}  // namespace linnet
