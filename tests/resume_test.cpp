// A run that was stopped at any step and resumed is, bit for bit, the run that was never stopped.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "linnet/error.h"
#include "linnet/optimizer.h"
#include "linnet/run.h"
#include "tests/temp_dir.h"
#include "tests/tiny_run.h"

namespace linnet {
namespace {

std::string text_of(const Row& row) {
  std::string text = fmt::format("{} {} {} {}", row.kind, row.epoch, row.step, row.hash);
  for (const auto& [name, value] : row.values) text += fmt::format(" {}={:a}", name, value);
  return text;
}

std::vector<std::string> texts_of(const std::vector<Row>& rows, size_t first) {
  std::vector<std::string> texts;
  for (size_t i = first; i < rows.size(); ++i) texts.push_back(text_of(rows[i]));
  return texts;
}

// All of a trainer's state as a checkpoint holds it: JSON text and arrays.
struct State {
  std::string progress, hash;
  std::vector<std::vector<float>> tensors;
  size_t rows;
};

// Keeps the state at every boundary between two steps.
struct Recorder : Observer {
  explicit Recorder(const TinyRun& run) : run(run) {}
  void on_boundary(Trainer& trainer, bool) override {
    State s{trainer.progress().to_json(), trainer.state_hash(), {}, run.rows.size()};
    for (const auto& [name, tensor] : trainer.tensors()) {
      s.tensors.emplace_back(size_t(tensor.numel()));
      trainer.net().backend().download(s.tensors.back().data(), tensor);
    }
    states.push_back(std::move(s));
  }
  const TinyRun& run;
  std::vector<State> states;
};

void put(Trainer& trainer, const State& s) {
  const auto tensors = trainer.tensors();
  ASSERT_EQ(tensors.size(), s.tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    ASSERT_EQ(size_t(tensors[i].second.numel()), s.tensors[i].size()) << tensors[i].first;
    trainer.net().backend().upload(tensors[i].second, s.tensors[i].data());
  }
  trainer.restore(Progress::from_json(s.progress, "a test"));
}

struct Case {
  std::string label, model;
  std::function<void(Config&)> change;
  // At the end: whether the run came to what the case is for.
  std::function<bool(const Progress&)> reached = [](const Progress&) { return true; };
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.label; }

OptimizerConfig optimizer(const std::string& name, double lr) {
  OptimizerConfig o = default_settings(name, "pytorch");
  o.lr = lr;
  return o;
}

PhaseConfig phase_at(int64_t epoch, const OptimizerConfig& o, const std::string& state) {
  PhaseConfig phase{.epoch = epoch, .state = state, .optimizer = o};
  phase.schedule.name = "constant";
  return phase;
}

const std::vector<Case> kCases = {
    {"SgdWithoutMomentum", "linear", [](Config& c) { c.optimizer.momentum = 0; }},
    {"SgdBatchNorm", "resnet20", [](Config& c) { c.data.drop_last = false, c.train.batch_size = 40; }},
    {"Nag", "mlp",
     [](Config& c) {
       c.optimizer = optimizer("nag", 0.01);
       c.schedule.name = "cosine";
     }},
    {"AdamAmsgrad", "mlp",
     [](Config& c) {
       c.optimizer = optimizer("adam", 1e-3);
       c.optimizer.amsgrad = true;
     }},
    {"Nadam", "mlp", [](Config& c) { c.optimizer = optimizer("nadam", 1e-3); }},
    {"Radam", "mlp", [](Config& c) { c.optimizer = optimizer("radam", 1e-3); }},
    {"RmspropCenteredMomentum", "mlp",
     [](Config& c) {
       c.optimizer = optimizer("rmsprop", 1e-3);
       c.optimizer.centered = true;
       c.optimizer.momentum = 0.9;
     }},
    {"Lion", "mlp", [](Config& c) { c.optimizer = optimizer("lion", 1e-4); }},
    {"Muon", "convnet", [](Config& c) { c.optimizer = optimizer("muon", 0.01); }},
    {"Adagrad", "mlp",
     [](Config& c) {
       c.optimizer = optimizer("adagrad", 0.01);
       c.optimizer.initial_accumulator_value = 0.1;
       c.optimizer.lr_decay = 0.1;
     }},
    {"Lookahead", "mlp", [](Config& c) { c.lookahead = {.k = 4, .alpha = 0.5}; }},
    {"EmaFromTheFirst", "convnet",
     [](Config& c) {
       c.ema = {0.9, "first"};
     }},
    {"EmaFromZero", "mlp",
     [](Config& c) {
       c.ema = {0.9, "zero"};
     }},
    {"EmaCorrected", "convnet",
     [](Config& c) {
       c.ema = {0.9, "corrected"};
     }},
    {"ClipBySize", "mlp",
     [](Config& c) {
       c.clip = {.norm = 1.0, .value = 0.02};
       c.log.interval = 2;
     },
     [](const Progress& p) { return p.result.clipped > 0; }},
    {"AccumulateWithATail", "convnet",
     [](Config& c) {
       c.train.batch_size = 20;  // 96 images: batches 20 20 | 20 20 | 16
       c.train.accumulate = 2;
       c.data.drop_last = false;
       c.model.dropout = 0.3;
     }},
    {"FullBatch", "mlp",
     [](Config& c) {
       c.train.accumulate = 0;
       c.train.epochs = 5;
       c.log.interval = 2;
     }},
    {"Plateau", "mlp",
     [](Config& c) {
       c.schedule.name = "plateau";
       c.schedule.patience = 0;
       c.schedule.threshold = 0.3;
       c.schedule.cooldown = 1;
       c.train.epochs = 5;
     },
     [](const Progress& p) { return p.plateau.factor < 1; }},
    {"PhasesFresh", "mlp",
     [](Config& c) {
       c.optimizer = optimizer("adam", 1e-3);
       OptimizerConfig sgd = optimizer("sgd", 0.02);
       sgd.momentum = 0.9;
       c.phases = {phase_at(1, sgd, "fresh"), phase_at(2, optimizer("lion", 1e-4), "fresh")};
       c.phases[0].schedule = {.name = "cosine", .warmup = 0.5};
       c.train.epochs = 3;
     },
     [](const Progress& p) { return p.phase == 2; }},
    {"PhaseCarried", "mlp",
     [](Config& c) {
       c.optimizer = optimizer("adam", 1e-3);
       OptimizerConfig sgd = optimizer("sgd", 0.02);
       sgd.momentum = 0.9;
       sgd.dampening = 0.1;
       c.phases = {phase_at(1, sgd, "carried"), phase_at(2, sgd, "carried")};
       c.train.epochs = 3;
     },
     [](const Progress& p) { return p.phase == 2 && p.update_start == 0; }},
    {"PhaseOnAPlateau", "mlp",
     [](Config& c) {
       c.optimizer.lr = 0.3;  // so that the validation loss rises at times
       c.phases = {phase_at(0, optimizer("adam", 1e-3), "fresh"), phase_at(5, optimizer("adam", 1e-4), "carried")};
       c.phases[0].plateau = 1;
       c.phases[0].schedule.name = "plateau";
       c.phases[0].schedule.patience = 0;
       c.train.epochs = 6;
     },
     [](const Progress& p) { return p.phase == 2 && p.phase_epoch == 5; }},
    {"GroupsOneOfThemFrozen", "convnet",
     [](Config& c) {
       OptimizerConfig slow = c.optimizer, adam = optimizer("adamw", 1e-3);
       slow.lr = 0.005;
       c.groups = {{"conv1.*", true, c.optimizer}, {"*.bias|bn*", false, slow}, {"linear.weight", false, adam}};
     }},
    {"EarlyStopping", "mlp",
     [](Config& c) {
       c.train.patience = 1;
       c.train.stop_metric = "val/loss";
       c.optimizer.lr = 0.3;
       c.train.epochs = 6;
     },
     [](const Progress& p) { return p.stopped && p.epoch < 6; }},
    {"BestWeights", "convnet",  // which are not the last
     [](Config& c) {
       c.train.patience = 9;
       c.optimizer.lr = 0.3;
       c.train.epochs = 5;
     },
     [](const Progress& p) { return p.best_in_use && p.stop_watch.epoch < 5; }},
    {"Smoothing", "mlp",
     [](Config& c) {
       c.log = {.interval = 2, .smoothing = 0.9};
       c.train.label_smoothing = 0.1;
       c.train.tta = "flip_shift";
     }},
    {"Augmentation", "convnet",
     [](Config& c) {
       c.augment = {.crop_pad = 2, .padding = "reflect", .flip = "alternating", .brightness = 0.2, .contrast = 0.2};
       c.augment.cutout = 4;
       c.augment.mixup = 0.4;
       c.augment.cutmix = 1;
       c.model.dropout = 0.2;
     }},
    {"OneStepAnEpoch", "linear",
     [](Config& c) {
       c.train.batch_size = 96;
       c.train.epochs = 4;
     }},
};

Config config_of(const Case& c) {
  Config config = tiny_config(c.model);
  c.change(config);
  return config;
}

class Resume : public ::testing::TestWithParam<Case> {};

TEST_P(Resume, AtEveryStepGivesTheSameRun) {
  const Config config = config_of(GetParam());
  TinyRun straight(config, 1);
  Recorder recorder(straight);
  ASSERT_EQ(straight.trainer.run({&straight, &recorder}), Outcome::done);
  ASSERT_EQ(int64_t(recorder.states.size()), straight.trainer.global_step());
  EXPECT_TRUE(GetParam().reached(straight.trainer.progress())) << straight.trainer.progress().to_json();
  for (const State& s : recorder.states) {
    TinyRun resumed(config, 1);
    put(resumed.trainer, s);
    ASSERT_EQ(resumed.trainer.state_hash(), s.hash);
    EXPECT_EQ(resumed.trainer.progress().to_json(), s.progress);
    ASSERT_EQ(resumed.run(), Outcome::done);
    EXPECT_EQ(texts_of(resumed.rows, 0), texts_of(straight.rows, s.rows)) << s.progress;
    EXPECT_EQ(resumed.trainer.state_hash(), straight.trainer.state_hash()) << s.progress;
    EXPECT_EQ(resumed.trainer.progress().to_json(), straight.trainer.progress().to_json()) << s.progress;
  }
}

// A run that had come to its end, with fewer epochs, goes on as the one that was to have them from the start. Not where
// the learning rate depends on how many there are to be.
TEST(ResumeEpochs, MoreEpochsGiveTheRunThatHadThemFromTheStart) {
  int seen = 0;
  for (const Case& c : kCases) {
    Config config = config_of(c);
    if (config.schedule.name != "plateau") config.schedule.name = "constant";
    seen += config.train.epochs > 1;
    TinyRun straight(config, 1);
    Recorder recorder(straight);
    ASSERT_EQ(straight.trainer.run({&straight, &recorder}), Outcome::done);
    for (int64_t epochs = 1; epochs < straight.trainer.progress().epoch; ++epochs) {
      config.train.epochs = epochs;
      TinyRun shorter(config, 1);
      Recorder end(shorter);
      ASSERT_EQ(shorter.trainer.run({&shorter, &end}), Outcome::done);
      config.train.epochs = straight.config.train.epochs;
      TinyRun longer(config, 1);
      put(longer.trainer, end.states.back());
      ASSERT_EQ(longer.run(), Outcome::done);
      EXPECT_EQ(texts_of(longer.rows, 0), texts_of(straight.rows, end.states.back().rows)) << c.label << epochs;
      EXPECT_EQ(longer.trainer.state_hash(), straight.trainer.state_hash()) << c.label << epochs;
    }
  }
  EXPECT_GE(seen, 15);
}

std::string content(const std::filesystem::path& file) {
  std::ostringstream text;
  text << std::ifstream(file, std::ios::binary).rdbuf();
  return text.str();
}

// As `linnet train` and `linnet resume` do it: a process is killed at step `stop` (-1: never), the next one goes on
// from the newest checkpoint. `polite`: it is stopped by a signal instead, and saves.
void run_in_folder(const Config& config, const std::filesystem::path& dir, int64_t stop, bool polite,
                   Observer* last = nullptr) {
  TinyRun at(config, 1);
  const bool again = std::filesystem::exists(dir / "config.toml");
  RunFolder run = again ? RunFolder(dir, at.config, *at.backend, at.data, RunFolder::Existing{})
                        : RunFolder(dir, at.config, *at.backend, at.data);
  RunCheckpoints checkpoints(run, at.trainer);
  again ? void(checkpoints.load(at.trainer)) : run.begin();
  std::vector<Observer*> observers = {&run, &checkpoints};
  if (last) observers.push_back(last);
  const Outcome outcome = at.trainer.run(observers, [&] { return stop >= 0 && at.trainer.global_step() >= stop; });
  checkpoints.wait();
  if (outcome == Outcome::done) return run.finish("done", at.trainer);
  if (!polite) return;
  checkpoints.save_now(at.trainer);
  run.finish("interrupted", at.trainer);
}

TEST_P(Resume, ThroughTheFilesOfARunGivesTheSameFiles) {
  Config config = config_of(GetParam());
  TempDir folder;
  config.checkpoint.epochs = 0;  // none but at the end
  run_in_folder(config, folder / "straight", -1, false);
  config.checkpoint.epochs = 0.67;  // with 3 steps an epoch: every 2nd step, also in the middle of an epoch
  // Killed before the first checkpoint, killed one step after another, stopped politely where none is due.
  for (const auto& [stop, polite] : {std::pair{1, false}, {3, false}, {3, true}, {5, false}, {6, true}, {-1, false}})
    run_in_folder(config, folder / "stopped", stop, polite);
  for (const char* file : {"metrics.jsonl", "model.safetensors", "ema.safetensors"})
    EXPECT_EQ(content(folder / "stopped" / file), content(folder / "straight" / file)) << file;
  EXPECT_NE(content(folder / "stopped" / "summary.json").find("\"status\": \"done\""), std::string::npos);
  EXPECT_EQ(content(folder / "straight" / "ema.safetensors").empty(), config.ema.decay == 0);
}

// A rewind to where an earlier sitting had ended: with early stopping from the last weights, not from the best, and in
// the phase that is due there.
TEST(ResumeFolder, ARewindToTheEndOfAnEarlierSittingGoesOnAsOneWithMoreEpochs) {
  struct BadOnce : Observer {
    void on_boundary(Trainer& trainer, bool) override {
      if (trainer.global_step() == 7 && trainer.progress().rewinds == 0)
        trainer.net().params().flat().master.data<float>()[1] = NAN;
    }
  } bad;
  for (const char* phase : {"", "fresh", "carried"}) {
    TempDir folder;
    Config config = tiny_config("mlp");
    config.train.on_nonfinite = "rewind";
    config.train.epochs = 4;
    config.train.patience = 20;
    config.checkpoint.epochs = 0.67;  // every 2nd of 3 steps an epoch, also the last one of the 2nd epoch
    if (*phase) {                     // no weight moves before it: it is due behind the 2nd epoch
      config.optimizer.lr = 1e-12;
      config.optimizer.name = "nag";
      config.optimizer.form = "inside";  // what it keeps has the learning rate in it
      config.phases = {{.plateau = 1, .state = phase, .optimizer = config.optimizer}};
      config.phases[0].optimizer.lr = 0.05;
    }
    run_in_folder(config, folder / "straight", -1, false, &bad);
    Config shorter = config;
    shorter.train.epochs = 2;
    run_in_folder(shorter, folder / "resumed", -1, false);
    run_in_folder(config, folder / "resumed", 8, false, &bad);  // killed behind the rewind
    run_in_folder(config, folder / "resumed", -1, false, &bad);
    for (const char* file : {"metrics.jsonl", "model.safetensors"})
      EXPECT_EQ(content(folder / "resumed" / file), content(folder / "straight" / file)) << file << " " << phase;
    const std::string log = content(folder / "straight" / "metrics.jsonl");
    EXPECT_EQ(log.find(R"("lr":0.025)") != log.npos, true) << log;  // half of the phase's, or of the whole run's
    EXPECT_EQ(log.find(R"("lr":1e-12)") != log.npos, *phase != 0) << log;
    EXPECT_FALSE(std::filesystem::exists(folder / "resumed" / "checkpoints" / "00000008.bad-state"));
  }
}

// With the running statistics of the last weights, too, to which a step that is left out goes back.
TEST(ResumeSkipped, BehindTheEndOfAnEarlierSitting) {
  Config config = tiny_config("convnet");
  config.train.epochs = 4;
  config.train.patience = 20;
  config.train.on_nonfinite = "skip";
  config.optimizer.lr = 0.5;
  const auto run = [](TinyRun& at) {  // step 7 is a bad one
    float& weight = at.trainer.net().params().flat().master.data<float>()[1];
    float good = 0;
    EXPECT_EQ(at.run([&] {
      if (at.trainer.global_step() == 6 && at.trainer.progress().in_epoch == 0) good = std::exchange(weight, NAN);
      if (at.trainer.global_step() == 7) weight = good;
      return false;
    }),
              Outcome::done);
  };
  TinyRun straight(config, 1);
  run(straight);
  Config shorter = config;
  shorter.train.epochs = 2;
  TinyRun first(shorter, 1);
  Recorder recorder(first);
  ASSERT_EQ(first.trainer.run({&first, &recorder}), Outcome::done);
  ASSERT_EQ(first.trainer.progress().stop_watch.epoch, 1) << "the best epoch is not the last one";
  TinyRun resumed(config, 1);
  put(resumed.trainer, recorder.states.back());
  run(resumed);
  EXPECT_EQ(resumed.trainer.state_hash(), straight.trainer.state_hash());
  EXPECT_EQ(resumed.trainer.last_result().skipped, 1);
}

// Where nothing was saved before it failed, nothing would be lost by starting over.
TEST(ResumeFolder, ARunThatFailedBeforeItsFirstCheckpointStartsOver) {
  for (const double epochs : {1, 0}) {
    TempDir folder;
    Config config = tiny_config("mlp");
    config.checkpoint.epochs = epochs;
    {
      TinyRun at(config, 1);
      RunFolder run(folder / "run", at.config, *at.backend, at.data);
      RunCheckpoints checkpoints(run, at.trainer);
      run.begin();
      at.trainer.run({&run}, [&] { return at.trainer.global_step() == 2; });
      run.fail_run("failed", "a test", &at.trainer, nullptr);
    }
    TinyRun at(config, 1);
    RunFolder run(folder / "run", at.config, *at.backend, at.data, RunFolder::Existing{});
    RunCheckpoints checkpoints(run, at.trainer);
    EXPECT_EQ(std::filesystem::exists(folder / "run" / "model.safetensors"), epochs == 0);
    if (epochs > 0) {
      EXPECT_FALSE(checkpoints.load(at.trainer));
      EXPECT_EQ(at.trainer.run({&run, &checkpoints}), Outcome::done);
      continue;
    }
    try {  // its weights are all that there is
      checkpoints.load(at.trainer);
      ADD_FAILURE();
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("there were none before its end"), std::string::npos) << e.what();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Configs, Resume, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return info.param.label; });

// A weight that is no number for two steps, and then is one again: what was skipped is part of the state.
TEST(ResumeSkipped, StepsThatWereLeftOutStayCounted) {
  Config config = tiny_config("convnet");
  config.data.val = 0;
  config.train.epochs = 3;
  config.train.on_nonfinite = "skip";
  config.clip.norm = 0.1;
  config.ema = {0.9, "corrected"};
  TinyRun straight(config, 1);
  struct Poison : Observer {
    void on_boundary(Trainer& trainer, bool) override {
      float& weight = trainer.net().params().flat().master.data<float>()[1];
      if (trainer.global_step() == 1) good = std::exchange(weight, NAN);
      if (trainer.global_step() == 3) weight = good;
    }
    float good = 0;
  } poison;
  Recorder recorder(straight);
  ASSERT_EQ(straight.trainer.run({&straight, &poison, &recorder}), Outcome::done);
  EXPECT_EQ(straight.last("step")["skipped"], 2);
  for (const State& s : recorder.states) {  // also where the next step is a bad one
    TinyRun resumed(config, 1);
    put(resumed.trainer, s);
    ASSERT_EQ(resumed.trainer.run({&resumed, &poison}), Outcome::done);
    EXPECT_EQ(texts_of(resumed.rows, 0), texts_of(straight.rows, s.rows)) << s.progress;
    EXPECT_EQ(resumed.trainer.state_hash(), straight.trainer.state_hash());
  }
}

// Whatever the interval, the best epoch's checkpoint is there, and it is the one that counts as the best.
TEST(ResumeFolder, KeepsTheBestEpoch) {
  for (const double epochs : {2.0, 0.67}) {
    Config config = tiny_config("mlp");
    config.train.epochs = 8;
    config.phases = {phase_at(3, optimizer("sgd", 1e-30), "fresh")};  // from then on it becomes no better
    config.checkpoint.epochs = epochs;
    config.checkpoint.keep = 2;
    TempDir folder;
    run_in_folder(config, folder / "run", 10, false);
    run_in_folder(config, folder / "run", -1, false);
    double best = -1;
    int64_t best_step = 0;
    std::istringstream rows(content(folder / "run" / "metrics.jsonl"));
    for (std::string line; std::getline(rows, line);) {
      const auto number = [&](const std::string& name) {
        return std::stod(line.substr(line.find(name) + name.size()));
      };
      if (line.find("\"kind\":\"epoch\"") == line.npos || number("\"val/acc\":") <= best) continue;
      best = number("\"val/acc\":");
      best_step = int64_t(number("\"step\":"));
    }
    ASSERT_GT(best_step, 0);
    ASSERT_EQ(best_step % 6, 3) << "it should fall between two saves";
    EXPECT_EQ(CheckpointStore(folder / "run" / "checkpoints").best_step(), best_step);
  }
}

// A run that has come to the end of its epoch 2 of 5 and is to have no more than 2: what comes behind an epoch for the
// next one's sake (another phase, the last weights) is not part of it.
TEST(ResumeFolder, FewerEpochsEndAsTheyWouldHaveFromTheStart) {
  Config config = tiny_config("mlp");
  config.optimizer.lr = 1;  // the second epoch is worse
  config.ema = {0.9, "corrected"};
  config.train.patience = 20;
  config.phases = {phase_at(2, optimizer("adam", 0.01), "fresh")};
  config.checkpoint.epochs = 1;
  const auto with = [&](int64_t epochs) {
    Config c = config;
    c.train.epochs = epochs;
    return c;
  };
  TempDir folder;
  run_in_folder(with(2), folder / "straight", -1, false);
  EXPECT_NE(content(folder / "straight" / "metrics.jsonl").find("\"best_epoch\":1"), std::string::npos);
  run_in_folder(with(5), folder / "longer", 7, false);
  run_in_folder(with(2), folder / "longer", -1, false);
  for (const char* file : {"metrics.jsonl", "model.safetensors", "ema.safetensors", "predictions.json",
                           "checkpoints/00000006/model.safetensors"})
    EXPECT_EQ(content(folder / "longer" / file), content(folder / "straight" / file)) << file;
  for (const char* run : {"straight", "longer"}) run_in_folder(with(4), folder / run, -1, false);
  for (const char* file : {"metrics.jsonl", "model.safetensors", "ema.safetensors"})
    EXPECT_EQ(content(folder / "longer" / file), content(folder / "straight" / file)) << file;
}

// Somebody removes, replaces, cuts or writes to a log while it is written.
TEST(RunLog, SeesWhatBecomesOfItsFile) {
  TempDir folder;
  const auto path = folder / "metrics.jsonl";
  Log log(path);
  log.append("one");
  EXPECT_EQ(log.keep(), "");
  std::filesystem::remove(path);
  log.append("two");
  EXPECT_NE(log.keep().find("was removed; it was written anew, with all its lines"), std::string::npos);
  log.append("three");
  EXPECT_EQ(log.keep(), "");
  EXPECT_EQ(content(path), "one\ntwo\nthree\n");
  std::ofstream(path, std::ios::app) << "x";
  EXPECT_NE(log.keep().find("is not as long as what was written to it"), std::string::npos) << log.keep();
  std::filesystem::resize_file(path, 14);
  EXPECT_EQ(log.keep(), "");
  std::filesystem::rename(path, folder / "old");
  std::ofstream(path) << "mine";
  EXPECT_NE(log.keep().find("is another file than the one that this run writes"), std::string::npos);
  EXPECT_EQ(content(path), "mine");
  std::filesystem::remove(path);
  EXPECT_NE(log.keep().find("written anew"), std::string::npos);
  EXPECT_EQ(content(path), "one\ntwo\nthree\n");
}

TEST(RunLog, ARemovedLogIsThereAgainAtTheNextCheckpoint) {
  Config config = tiny_config("linear");
  config.checkpoint.epochs = 1;
  TempDir folder;
  run_in_folder(config, folder / "straight", -1, false);
  TinyRun at(config, 1);
  RunFolder run(folder / "run", at.config, *at.backend, at.data);
  RunCheckpoints checkpoints(run, at.trainer);
  std::vector<std::string> told;
  checkpoints.tell_warnings_to([&](const std::string& line) { told.push_back(line); });
  run.begin();
  struct Remove : Observer {
    explicit Remove(std::filesystem::path file) : file(std::move(file)) {}
    void on_step(int64_t step, int64_t) override {
      if (step == 2) std::filesystem::remove(file);
    }
    std::filesystem::path file;
  } remove(folder / "run" / "metrics.jsonl");
  ASSERT_EQ(at.trainer.run({&run, &checkpoints, &remove}), Outcome::done);
  checkpoints.wait();
  EXPECT_EQ(content(folder / "run" / "metrics.jsonl"), content(folder / "straight" / "metrics.jsonl"));
  ASSERT_EQ(told.size(), 1u);
  EXPECT_NE(told[0].find("metrics.jsonl was removed"), std::string::npos);
}

// A finished run that is resumed reads the test set again and changes nothing else.
TEST(ResumeFolder, AFinishedRunStaysAsItIs) {
  TempDir folder;
  const Config config = tiny_config("linear");
  run_in_folder(config, folder / "run", -1, false);
  const std::string metrics = content(folder / "run" / "metrics.jsonl");
  run_in_folder(config, folder / "run", -1, false);
  EXPECT_EQ(content(folder / "run" / "metrics.jsonl"), metrics);
}

// D5: a checkpoint of another build or machine is taken, and it is said that the bits may differ.
TEST(ResumeFolder, SaysWhereItIsNotBitForBit) {
  TempDir folder;
  const Config config = tiny_config("linear");
  run_in_folder(config, folder / "run", 3, true);
  for (const char* compiler : {"", "another one"}) {
    if (*compiler) {
      CheckpointStore store(folder / "run" / "checkpoints");
      std::vector<Rejected> rejected;
      Checkpoint c = store.load_latest(rejected).value();
      c.facts.at("compiler") = compiler;
      store.save(c, false);
    }
    TinyRun at(config, 1);
    RunFolder run(folder / "run", at.config, *at.backend, at.data, RunFolder::Existing{});
    RunCheckpoints checkpoints(run, at.trainer);
    EXPECT_TRUE(checkpoints.load(at.trainer));
    ASSERT_EQ(checkpoints.notes().size(), *compiler ? 1u : 0u);
    if (!*compiler) continue;
    EXPECT_TRUE(checkpoints.notes()[0].starts_with("compiler was another one, is ")) << checkpoints.notes()[0];
    EXPECT_TRUE(checkpoints.notes()[0].ends_with("continues, but not bit for bit")) << checkpoints.notes()[0];
  }
}

// Every digest is right, and what state.json says is not: a checkpoint as bad as any other.
TEST(ResumeFolder, AStateThatContradictsItselfIsNamedAndSetAside) {
  Config config = tiny_config("linear");
  config.checkpoint.epochs = 0.67;
  TempDir folder;
  run_in_folder(config, folder / "straight", -1, false);
  using nlohmann::json;
  const std::vector<std::pair<std::string, json>> forgeries = {
      {"/progress/in_epoch", 1},     {"/progress/epoch", 5},
      {"/progress/step", 2},         {"/progress/totals", json::array()},
      {"/progress/rewound_from", 2}, {"/progress/result.skipped", 9},
      {"/progress/phase", 3},        {"/progress", json::object()},
      {"/run/metrics_bytes", -1},    {"/run/metrics_bytes", 1.5},
      {"/run/metrics_xxh3", json()}, {"/run/best_val_acc", "a\u202e"},
      {"/run/wall_s", -1},           {"/run", json::array({1, 2, 3})}};
  for (const auto& [pointer, value] : forgeries) {
    std::filesystem::remove_all(folder / "run");
    run_in_folder(config, folder / "run", 5, true);
    const auto checkpoints = folder / "run" / "checkpoints";
    {
      CheckpointStore store(checkpoints);
      std::vector<Rejected> none;
      Checkpoint c = store.load_latest(none).value();
      json state = json::parse(c.state);
      ASSERT_TRUE(state.contains(json::json_pointer(pointer))) << pointer;
      state[json::json_pointer(pointer)] = value;
      c.state = state.dump();
      store.save(c, false);
    }
    TinyRun at(config, 1);
    {
      RunFolder run(folder / "run", at.config, *at.backend, at.data, RunFolder::Existing{});
      RunCheckpoints resumed(run, at.trainer);
      EXPECT_TRUE(resumed.load(at.trainer));
      EXPECT_EQ(at.trainer.global_step(), 4) << pointer;
      ASSERT_EQ(resumed.notes().size(), 1u);
      const std::string& note = resumed.notes()[0];
      EXPECT_TRUE(note.starts_with("checkpoint 00000005 is not used: ")) << note;
      const std::string key = pointer.substr(pointer.rfind('/') + 1);
      if (value != json::object() && value != json::array({1, 2, 3})) {
        EXPECT_NE(note.find(key), note.npos) << note;
      }
      EXPECT_EQ(note.find("\u202e"), note.npos);
      EXPECT_TRUE(std::filesystem::exists(checkpoints / "00000005.bad-state"));
    }
    run_in_folder(config, folder / "run", -1, false);
    EXPECT_EQ(content(folder / "run" / "metrics.jsonl"), content(folder / "straight" / "metrics.jsonl")) << pointer;
  }
  // Where none is good, that is said, and the folder stays as it is.
  std::filesystem::remove_all(folder / "run");
  run_in_folder(config, folder / "run", 1, true);
  CheckpointStore store(folder / "run" / "checkpoints");
  std::vector<Rejected> none;
  Checkpoint c = store.load_latest(none).value();
  json state = json::parse(c.state);
  state["progress"]["in_epoch"] = 0;
  c.state = state.dump();
  store.save(c, false);
  TinyRun at(config, 1);
  RunFolder run(folder / "run", at.config, *at.backend, at.data, RunFolder::Existing{});
  try {
    RunCheckpoints(run, at.trainer).load(at.trainer);
    ADD_FAILURE() << "it was taken";
  } catch (const Error& e) {
    EXPECT_EQ(e.exit, Exit::checkpoint);
    EXPECT_NE(std::string(e.what()).find("none of the checkpoints can be used"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("in_epoch = 0"), std::string::npos) << e.what();
  }
  EXPECT_TRUE(std::filesystem::exists(folder / "run" / "checkpoints" / "00000001"));
}

// The control: if a part of the state is lost, the tests above see it.
TEST(ResumeControl, ALostSlotOrCounterIsSeen) {
  Config config = tiny_config("mlp");
  config.optimizer = optimizer("adam", 1e-3);
  TinyRun straight(config, 1);
  Recorder recorder(straight);
  straight.trainer.run({&straight, &recorder});
  State lost = recorder.states[1];
  lost.tensors[2].assign(lost.tensors[2].size(), 0.f);
  TinyRun a(config);
  put(a.trainer, lost);
  a.run();
  EXPECT_NE(a.trainer.state_hash(), straight.trainer.state_hash());
  Progress p = Progress::from_json(recorder.states[1].progress, "a test");
  p.update_start = 1;
  lost = recorder.states[1];
  lost.progress = p.to_json();
  TinyRun b(config);
  EXPECT_THROW(put(b.trainer, lost), Error);  // in the first phase all updates count

  config.phases = {phase_at(1, config.optimizer, "carried")};
  TinyRun phases(config, 1);
  Recorder second(phases);
  phases.trainer.run({&phases, &second});
  lost = second.states[3];
  p = Progress::from_json(lost.progress, "a test");
  ASSERT_EQ(p.phase, 1);
  ASSERT_EQ(p.update_start, 0);
  p.update_start = p.phase_step;
  lost.progress = p.to_json();
  TinyRun c(config);
  put(c.trainer, lost);
  c.run();
  EXPECT_NE(c.trainer.state_hash(), phases.trainer.state_hash());
}

TEST(Progress, TextIsReadBackWholeOrRefused) {
  TinyRun run(tiny_config("linear"));
  const std::string text = run.trainer.progress().to_json();
  EXPECT_EQ(Progress::from_json(text, "x").to_json(), text);
  EXPECT_TRUE(std::isnan(Progress::from_json(text, "x").stop_watch.best));
  std::string renamed = text;
  renamed.replace(renamed.find("\"phase\""), 7, "\"phaze\"");
  std::string other_type = text;
  other_type.replace(other_type.find("\"step\": 0"), 9, "\"step\": {}");
  std::string more = text;
  more.insert(more.find('{') + 1, "\"new\": 1,");
  for (const std::string& bad : {std::string(), std::string("{}"), std::string("[]"), renamed, other_type, more,
                                 text.substr(0, text.size() / 2)})
    try {
      Progress::from_json(bad, "checkpoint 7 of x");
      ADD_FAILURE() << bad;
    } catch (const Error& e) {
      EXPECT_EQ(e.exit, Exit::checkpoint);
      EXPECT_NE(std::string(e.what()).find("checkpoint 7 of x"), std::string::npos) << e.what();
    }
}

// With every digest right, as only someone with intent makes it: what becomes an index or a count is checked.
TEST(Progress, AForgedStateIsRefused) {
  TinyRun run(tiny_config("linear"));
  run.run();
  const std::string text = run.trainer.progress().to_json();
  const auto accepted = [&](const std::string& text) {
    try {
      run.trainer.restore(Progress::from_json(text, "a test"));
      return true;
    } catch (const Error& e) {
      EXPECT_EQ(e.exit, Exit::checkpoint) << e.what();
      return false;
    }
  };
  EXPECT_TRUE(accepted(text));  // the control
  const auto step = run.trainer.global_step();
  const std::vector<std::pair<std::string, nlohmann::json>> forgeries = {{"step", -1},
                                                                         {"step", step + 1},
                                                                         {"step", int64_t(1) << 60},
                                                                         {"step", "1"},
                                                                         {"step", true},
                                                                         {"epoch", -1},
                                                                         {"epoch", 0},
                                                                         {"epoch", int64_t(1) << 60},
                                                                         {"in_epoch", -3},
                                                                         {"in_epoch", 1},
                                                                         {"in_epoch", 3},
                                                                         {"in_epoch", 1'000'000'000},
                                                                         {"phase", 1},
                                                                         {"phase", 77},
                                                                         {"phase", -1},
                                                                         {"phase_step", -1},
                                                                         {"phase_step", step + 1},
                                                                         {"phase_epoch", int64_t(1) << 40},
                                                                         {"update_start", -1},
                                                                         {"update_start", step + 1},
                                                                         {"phase_step", step},
                                                                         {"phase_epoch", 1},
                                                                         {"update_start", step},
                                                                         {"stopped", true},
                                                                         {"best_in_use", true},
                                                                         {"rewinds", -1},
                                                                         {"rewound_from", 1},
                                                                         {"rewound_from", -2},
                                                                         {"rewound_to", nlohmann::json::array({1})},
                                                                         {"rewound_to", 1},
                                                                         {"plateau.factor", -1},
                                                                         {"plateau.factor", 2},
                                                                         {"plateau.factor", nullptr},
                                                                         {"plateau.bad", -1},
                                                                         {"smooth.count", -1},
                                                                         {"stop_watch.waited", -1},
                                                                         {"result.bad_step", step + 1},
                                                                         {"result.bad_step", -2},
                                                                         {"result.bad", int64_t(1) << 40},
                                                                         {"result.bad_in_row", -1},
                                                                         {"result.skipped", step + 1},
                                                                         {"result.clipped", -1},
                                                                         {"totals", nlohmann::json::array()}};
  for (const auto& [field, value] : forgeries) {
    nlohmann::json forged = nlohmann::json::parse(text);
    ASSERT_TRUE(forged.contains(field)) << field;
    forged[field] = value;
    EXPECT_FALSE(accepted(forged.dump())) << field << " = " << value;
  }
  EXPECT_FALSE(accepted(text.substr(0, text.rfind('}')) + ",\"step\": 1}"));  // a key twice

  // An epoch whose last step is done and whose evaluation is not: 3 steps an epoch.
  const auto waiting = [&](int64_t epoch, int64_t in_epoch, nlohmann::json ratios) {
    nlohmann::json forged = nlohmann::json::parse(text);
    forged.update({{"epoch", epoch}, {"in_epoch", in_epoch}, {"update_ratios", std::move(ratios)}});
    return accepted(forged.dump());
  };
  EXPECT_TRUE(waiting(1, 3, {0.25}));
  for (const auto& [epoch, in_epoch] : {std::pair{0, 3}, {0, 6}, {1, 2}, {1, 4}, {2, 3}})
    EXPECT_FALSE(waiting(epoch, in_epoch, {0.25})) << epoch << " " << in_epoch;
  for (const auto& ratios : {nlohmann::json::array({0.25, 0.25}), nlohmann::json::array({"1"}), nlohmann::json(1)})
    EXPECT_FALSE(waiting(1, 3, ratios)) << ratios;
  EXPECT_FALSE(waiting(2, 0, {0.25})) << "ratios where no evaluation is to come";
}

// `linnet eval` and its like: what has right digests and no weights is not used.
TEST(ResumeFolder, WeightsAreThoseOfACheckpointThatHasSome) {
  const TempDir folder;
  CheckpointStore store(folder / "checkpoints");
  Checkpoint c{.step = 1};
  c.tensors["model"].tensors["w"] = {"F32", {1}, std::vector<char>(4)};
  EXPECT_EQ(store.save(c, false), "");
  EXPECT_EQ(store.save({.step = 2}, false), "");
  std::string origin;
  std::vector<std::string> notes;
  EXPECT_TRUE(run_weights(folder.path(), origin, notes).tensors.contains("w"));
  EXPECT_TRUE(origin.starts_with("checkpoint 1 ")) << origin;
  ASSERT_EQ(notes.size(), 2u);
  EXPECT_NE(notes[0].find("checkpoint 00000002 is not used: it has no model.safetensors"), std::string::npos)
      << notes[0];
}

// Moved while it trained, a run leaves the one alone that has its name by then.
TEST(ResumeFolder, AMovedRunWritesNothingIntoAnotherOfItsName) {
  const TempDir folder;
  TinyRun at(tiny_config("mlp"), 1);
  RunFolder run(folder / "run", at.config, *at.backend, at.data);
  run.begin();
  ASSERT_EQ(at.trainer.run({&run}), Outcome::done);
  std::filesystem::rename(folder / "run", folder / "moved");
  std::filesystem::create_directory(folder / "run");
  EXPECT_THROW(run.finish("done", at.trainer), Error);
  run.fail_run("failed", "a test", &at.trainer, nullptr);
  EXPECT_TRUE(std::filesystem::is_empty(folder / "run"));
  std::filesystem::remove(folder / "run");
  std::filesystem::rename(folder / "moved", folder / "run");
  run.finish("done", at.trainer);
  EXPECT_TRUE(std::filesystem::exists(folder / "run" / "model.safetensors"));
}

}  // namespace
}  // namespace linnet
