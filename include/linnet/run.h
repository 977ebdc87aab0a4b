// A run is one folder: its config, where it ran, its metrics, its result. Nothing outside it is touched.
//
//   config.toml       resolved; itself a valid input
//   env.json          version, commit, compiler, device, threads, data
//   metrics.jsonl     one row a line; the same bytes for the same config, seed and build
//   timing.jsonl      wall time and images/s of the same rows: what differs from run to run
//   summary.json      status: running | done | interrupted | failed | diverged
//   model.safetensors the weights, at the end
#pragma once
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>

#include "linnet/trainer.h"

namespace linnet {

class RunFolder : public Observer {
 public:
  // Creates `dir` and writes config.toml, env.json and a summary. Error(Exit::usage) if it exists and is not empty,
  // Error(Exit::locked) if another process is just doing the same, Error(Exit::checkpoint) if it cannot be written.
  RunFolder(const std::filesystem::path& dir, const Config&, Backend&, const RunData&);

  void on_row(const Row&) override;
  // Writes model.safetensors and the final summary.
  void finish(const std::string& status, Net&, const std::string& reason = "");
  // For a run that failed: the summary and, if given, the weights so far, as far as they can still be written.
  void fail_run(const std::string& status, const std::string& reason, Net* net) noexcept;

  const std::filesystem::path& dir() const { return dir_; }
  const Row& test() const { return test_; }  // empty until the end
  // summary.json's text.
  std::string summary() const;

 private:
  void save(Net&);  // model.safetensors
  void write_summary();
  void append(std::ofstream&, const std::string& file, const std::string& line);

  std::filesystem::path dir_;
  std::ofstream metrics_, timing_;
  std::string status_ = "running", reason_;
  Row last_epoch_, test_;
  double best_val_acc_ = -1;
  int64_t best_epoch_ = 0;
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
};

// A new, empty folder in $LINNET_RUNS or runs/, named by time, model, optimizer and seed.
std::filesystem::path new_run_dir(const Config&);

// "0.1.0 (commit abc1234)".
std::string version();

}  // namespace linnet
