// What a sweep will do: its runs, the state of their folders, and how long they will take.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "linnet/config.h"

namespace linnet {

enum class RunIs { fresh, stopped, failed, done, diverged, busy };

// What a run's folder says, and what the sweep does about it.
constexpr std::pair<const char*, const char*> kRunIs[] = {{"new", "train"}, {"stopped", "resume"}, {"failed", "retry"},
                                                          {"done", "skip"}, {"diverged", "skip"},  {"in use", "skip"}};

struct PlannedRun {
  std::string name, file;  // of the folder; of the config
  std::filesystem::path dir;
  std::vector<std::string> overrides;
  Config config;
  RunIs state = RunIs::fresh;
  double seconds = 0;  // that it is expected to take from here on
  bool runs() const { return state == RunIs::fresh || state == RunIs::stopped || state == RunIs::failed; }
};

struct SweepRequest {
  std::vector<std::string> configs, set, grid;  // files; key=value; key=value,value,...
  std::string seeds = "0", out, device;
  std::optional<int64_t> epochs;
};

// The parts between separators; those in [brackets] are a list's own.
std::vector<std::string> split_list(const std::string& text, char separator);

// Every config with every combination of the grid and every seed, in the order they run. All mistakes are reported
// together (Exit::usage).
std::vector<PlannedRun> plan_runs(const SweepRequest&);

// Finds out what the run's folder holds; a run of other settings there is an error.
void look_at_folder(PlannedRun&);

// Fills `seconds` of the runs that are left, each on so many threads. Finished runs of the same recipe are the best
// measure there is; else a few steps are timed, and a config that cannot be trained fails here, before anything runs.
void estimate(std::vector<PlannedRun>&, int threads);

// Seconds, with `jobs` at a time.
double time_of(const std::vector<PlannedRun>&, int64_t jobs);

}  // namespace linnet
