// A run as its folder tells of it, for whoever compares runs. Nothing is written and no lock is taken.
#pragma once
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "linnet/calibration.h"
#include "linnet/config.h"
#include "src/core/json.h"
#include "src/train/run_files.h"
#include "src/train/run_log.h"

namespace linnet {

struct RunRecord {
  std::filesystem::path dir;
  std::string name;  // of the folder
  Config config;
  Json env, summary;
  std::string status;                      // summary.json's; "stopped" where it says "running" and nobody trains
  std::vector<LoggedRow> rows;             // of read_run_log
  std::optional<Predictions> predictions;  // of read_run, if it is finished
  std::optional<Calibration> calibration;  // of `linnet eval --calibrate`, if it is of these weights
  double number(const char* key) const;    // of the summary; NaN if it has none
};

// The run folders at `path` and below it, by name. A run is a folder with a config.toml.
std::vector<std::filesystem::path> find_runs(const std::filesystem::path& path);

// config.toml, env.json and summary.json. An Error names the file that cannot be read.
RunRecord read_run_summary(const std::filesystem::path& dir);
// And the rows of the logs.
RunRecord read_run_log(const std::filesystem::path& dir);
// And the predictions and the calibration, for which the weights are read.
RunRecord read_run(const std::filesystem::path& dir);

// The value at `place` (a JSON pointer) of a file that anyone may have changed; null where there is none.
Json value_at(const Json&, const std::string& place);

// What env.json holds, as "data/train/xxh3" -> "...", without the time at which the run started, the
// sittings before the last, and the weights of a fork.
std::map<std::string, std::string> environment_of(const RunRecord&);

// The config's keys that make results what they are, with their values: all but the seed and those that may change in
// the middle of a run. Runs that have the same are one group.
std::string recipe(const Config&);
// The keys in which the recipes of two configs differ.
std::vector<ConfigChange> recipe_differences(const Config& from, const Config& to);

}  // namespace linnet
