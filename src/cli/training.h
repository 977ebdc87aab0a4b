// What train, resume and fork share: a run under signals, a time limit and a console.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "linnet/profile.h"
#include "linnet/run.h"
#include "linnet/warnings.h"
#include "stop_signals.h"

namespace CLI {
class App;
}

namespace linnet {

struct TrainingOptions {
  std::vector<std::string> set;
  std::string out, device;
  std::optional<int64_t> seed, epochs;
  std::string max_time, profile;
  bool json = false, strict = false, no_graph = false;

  // The --set list with what --seed, --epochs and --device stand for.
  std::vector<std::string> overrides() const;
  // Error(Exit::usage) for a value that makes no sense, before anything is made.
  void check() const;
  // Their options on a verb; `fresh`: of a verb that starts a new run.
  void add_to(CLI::App& verb, bool fresh);
};

// A backend and images for `config`, which gets the data's mean and deviation, and bf16 or f32 for precision = "auto";
// both splits are read once.
struct Workplace {
  std::unique_ptr<StopSignals> signals = std::make_unique<StopSignals>();  // before any thread
  RunData data;  // before the backend has threads, or a GPU: pictures are decoded in processes that are forked
  std::unique_ptr<Backend> backend;
  std::shared_ptr<CallLog> spans;  // what the backend does, with --profile
  Workplace(Config& config, const TrainingOptions& options);
};

// Prints what can be said before the first step. Error(Exit::usage) with --strict, if there was any.
void warn(Warnings& warnings, const std::vector<Warning>& found);

// Trains from where `trainer` stands; returns the exit code. The folder gets weights and summary however it ends.
int run_training(Trainer& trainer, RunFolder& run, RunCheckpoints& checkpoints, const Workplace& at, Warnings& warnings,
                 const TrainingOptions& options);

}  // namespace linnet
