// A run is one folder: its config, where it ran, its metrics, its checkpoints, its result. Nothing outside it is
// touched.
//
//   config.toml       resolved; itself a valid input
//   env.json          version, commit, compiler, device, threads, data
//   metrics.jsonl     one row a line; the same bytes for the same config, seed and build, stopped and resumed or not
//   timing.jsonl      wall time and images/s of the same rows: what differs from run to run
//   summary.json      status: running | done | interrupted | failed | diverged
//   predictions.json  of a finished run: label, predicted class and its probability for each test image
//   checkpoints/      src/train/checkpoint.cpp
//   model.safetensors the weights, at the end (ema.safetensors: their average)
//   nonfinite.json    of a run that diverged: the step, its samples, where it was seen first, what its tensors and the
//                     steps before it were like
//   LOCK              held by the process that trains
#pragma once
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "linnet/checkpoint.h"
#include "linnet/trainer.h"

namespace linnet {

class RunLock;
class Xxh3;

// A text file that only grows, a line at a time, but for a cut when a run is taken up again. Errors are
// Exit::checkpoint.
class Log {
 public:
  explicit Log(const std::filesystem::path&);
  ~Log();
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;
  void append(const std::string& line);
  int64_t size() const { return size_; }
  // XXH3 of what was written, by this object and before it up to the last cut.
  std::string digest() const;
  // Error if it is shorter than that.
  void cut(int64_t size);
  void sync();
  // Whether the file is still there under its name and of the size that it should have: "", or a line that says what
  // is not so. One that was removed is written anew. Not beside sync().
  std::string keep();

 private:
  std::filesystem::path path_;
  int fd_;
  int64_t size_ = 0;
  std::unique_ptr<Xxh3> digest_;
};

// What a checkpoint stores beside Progress: the logs up to it, and what is the best so far.
struct RunState {
  int64_t metrics_bytes = 0, timing_bytes = 0;
  std::string metrics_xxh3;
  double best_val_acc = -1;
  int64_t best_epoch = 0;
  double wall_s = 0;
};

class RunFolder : public Observer {
 public:
  // Creates `dir`, which is that of a run from begin() on. Error(Exit::usage) if it exists and is not empty,
  // Error(Exit::locked) if another process has it, Error(Exit::checkpoint) if it cannot be written.
  RunFolder(const std::filesystem::path& dir, const Config&, Backend&, const RunData&);
  // Takes up the run in `dir` again, with this config; nothing is written before restore(). Error(Exit::data) if it was
  // trained on other images, Error(Exit::locked) if another process trains it.
  struct Existing {};
  RunFolder(const std::filesystem::path& dir, const Config&, Backend&, const RunData&, Existing);
  ~RunFolder() override;

  // Writes config.toml, env.json and a summary: now there is a run that may be resumed. Of a new one this comes last of
  // what may be refused, and, where it begins from given `weights`, which its config does not say, after the checkpoint
  // of them: env.json keeps what they are. restore() does it, too.
  void begin(const std::string& weights = "");
  void on_row(const Row&) override;
  // Writes the weights and the final summary.
  void finish(const std::string& status, Trainer&, const std::string& reason = "");
  // For a run that failed: the summary and, if given, the weights so far, as far as they can still be written.
  void fail_run(const std::string& status, const std::string& reason, Trainer* trainer, const BadStep* bad) noexcept;

  const std::filesystem::path& dir() const { return dir_; }
  const Row& test() const { return test_; }  // empty until the end
  // summary.json's text.
  std::string summary() const;

  RunState state() const;
  // The logs are cut to what `state` says. False where the rows that remain of the metrics are not those written then.
  bool restore(const RunState& state);
  // Whether the run has saved its weights and a checkpoint with them, or may have, its checkpoints being gone: then
  // starting over would lose it.
  bool was_saved() const { return was_saved_; }
  // The step of the last row in metrics.jsonl; 0 where there is none that can be read.
  int64_t last_logged_step() const;
  void sync_logs();
  std::string keep_logs();  // Log::keep() of each
  // Kept in each checkpoint: with other ones than these, a run goes on but its bits may differ.
  const std::map<std::string, std::string>& facts() const { return facts_; }

 private:
  void open(const Config&, Backend&, const RunData&);
  void save(Trainer&);
  void save_predictions(const std::vector<Prediction>&);
  void require_own_folder() const;
  void write(const char* name, const std::string& text) const;
  void write_summary();
  double wall_s() const;  // trained so far, in all sittings

  std::filesystem::path dir_;
  std::unique_ptr<RunLock> lock_;
  std::unique_ptr<Log> metrics_, timing_;
  std::map<std::string, std::string> facts_;
  std::string config_, env_;  // what config.toml and env.json are to be
  bool begun_ = false, was_saved_ = false;
  std::string status_ = "running", reason_;
  Row last_epoch_, test_;
  RunState state_;
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
};

// The checkpoints of a run, saved between two steps by a thread of their own. After RunFolder in the trainer's list.
class RunCheckpoints : public Observer {
 public:
  // Error(Exit::checkpoint) where the disk has no room for as many checkpoints as the config keeps.
  RunCheckpoints(RunFolder&, Trainer&);
  ~RunCheckpoints() override;

  void on_boundary(Trainer&, bool epoch_done) override;
  // As load(), with CheckpointStore::load_latest's `newest`; false if there is no checkpoint.
  bool on_rewind(Trainer&, int64_t newest) override;
  // The newest sound checkpoint into the trainer, the logs cut to it; false if none was ever saved, and then the logs
  // are empty. Error(Exit::checkpoint) if there are some and none is sound, or they are gone. notes(): what a person
  // should know of it. saved_config(): of the run when that checkpoint was saved; older ones do not say it.
  bool load(Trainer& trainer) { return load(trainer, kNewest); }
  const std::vector<std::string>& notes() const { return notes_; }
  const std::optional<Config>& saved_config() const { return saved_config_; }
  // Saves now and waits for it, unless the last one is of this very step. A stopgap is one that would not be there, had
  // the run not been stopped.
  void save_now(Trainer&, bool stopgap = true);
  // Waits for the save under way; throws what went wrong with it.
  void wait();
  // Who hears, between two steps, what went wrong beside a save (an old checkpoint that cannot be removed); each once.
  void tell_warnings_to(std::function<void(const std::string&)> tell) { tell_ = std::move(tell); }

 private:
  void submit(Trainer&, bool best, bool stopgap);
  bool load(Trainer&, int64_t newest);
  void keep_logs();
  void tell_warnings();

  RunFolder& run_;
  const std::string config_;
  std::function<void(const std::string&)> tell_;
  std::mutex mutex_;
  std::string warning_;         // of the saves since the last look; the writer's thread adds to it
  std::set<std::string> told_;  // lines
  std::unique_ptr<CheckpointStore> store_;
  std::unique_ptr<CheckpointWriter> writer_;
  int64_t interval_, epochs_;
  std::pair<int64_t, int64_t> saved_{-1, 0};  // the step, and its place in the epoch, of the last one saved or loaded
  double best_val_acc_ = -1;
  std::vector<std::string> notes_;
  std::optional<Config> saved_config_;
};

// Those of the changes that a run cannot take in its middle, "optimizer.lr (0.1 -> 0.2), ..."; empty where it takes
// all.
std::string unsafe_changes(const std::vector<ConfigChange>&);

// The weights that a run has come to: those of its newest sound checkpoint, or model.safetensors where there is none.
// `origin` gets their place, `notes` which newer ones cannot be used, and why. Error(Exit::checkpoint) if there are
// neither.
SafeTensors run_weights(const std::filesystem::path& run, std::string& origin, std::vector<std::string>& notes);

// A new, empty folder in $LINNET_RUNS or runs/, named by time, model, optimizer and seed.
std::filesystem::path new_run_dir(const Config&);

// "0.1.0 (commit abc1234)".
std::string version();

}  // namespace linnet
