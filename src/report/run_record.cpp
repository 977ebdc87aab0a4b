#include "src/report/run_record.h"

#include <algorithm>
#include <cmath>

#include "linnet/run.h"
#include "src/core/file.h"
#include "src/train/run_lock.h"

namespace linnet {

namespace fs = std::filesystem;

namespace {

constexpr int kDepth = 4;  // folders between a collection and its runs

void find_below(const fs::path& path, int depth, std::vector<fs::path>& found) {
  std::error_code error;
  if (fs::exists(path / "config.toml", error)) {
    found.push_back(path);
    return;
  }
  if (depth == 0) return;
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(path, fs::directory_options::skip_permission_denied, error))
    if (entry.is_directory(error) && !entry.is_symlink(error)) folders.push_back(entry.path());
  std::ranges::sort(folders);
  for (const fs::path& folder : folders) find_below(folder, depth - 1, found);
}

Json read_if_there(const fs::path& file) {
  std::error_code error;
  return fs::exists(file, error) ? read_json(file, Exit::checkpoint) : Json::object();
}

// train.epochs is safe to change, and yet another one is another result.
bool is_of_recipe(const std::string& key) {
  return key != "train.seed" && (key == "train.epochs" || !is_safe_to_change(key));
}

}  // namespace

double RunRecord::number(const char* key) const {
  const auto found = summary.find(key);
  return found != summary.end() && found->is_number() ? found->get<double>() : std::nan("");
}

std::vector<fs::path> find_runs(const fs::path& path) {
  std::vector<fs::path> found;
  find_below(path, kDepth, found);
  return found;
}

RunRecord read_run_summary(const fs::path& dir) {
  RunRecord run{.dir = dir, .name = fs::absolute(dir / "").parent_path().filename().string()};
  run.config = load_config(dir / "config.toml");
  run.env = read_if_there(dir / "env.json");
  run.summary = read_if_there(dir / "summary.json");
  if (!run.env.is_object() || !run.summary.is_object())
    fail(Exit::checkpoint, "{}: expected an object in env.json and in summary.json", dir.string());
  run.status = run.summary.contains("status") && run.summary["status"].is_string()
                   ? run.summary["status"].get<std::string>()
                   : "running";
  if (run.status == "running" && lock_holder(dir).empty()) run.status = "stopped";
  return run;
}

RunRecord read_run_log(const fs::path& dir) {
  RunRecord run = read_run_summary(dir);
  run.rows = read_rows(dir);
  return run;
}

RunRecord read_run(const fs::path& dir) {
  RunRecord run = read_run_log(dir);
  const fs::path file = dir / "predictions.json";
  std::error_code error;
  if (run.status == "done" && fs::exists(file, error))
    run.predictions = parse_predictions(read_file(file, kMaxJsonBytes, Exit::checkpoint), file.string());
  run.calibration = read_calibration(dir);
  std::string origin;
  std::vector<std::string> notes;
  if (run.calibration && run.calibration->weights != digest(run_weights(dir, origin, notes))) run.calibration.reset();
  return run;
}

Json value_at(const Json& env, const std::string& place) {
  const Json::json_pointer at(place);
  return env.contains(at) ? env.at(at) : Json();
}

std::map<std::string, std::string> environment_of(const RunRecord& run) {
  std::map<std::string, std::string> all;
  nlohmann::json env = run.env;  // a lookup in an ordered_json compares all keys
  env.erase("earlier");
  env.erase("weights");  // where a fork comes from is no part of its environment
  const nlohmann::json flat = env.flatten();
  for (const auto& [key, value] : flat.items())
    if (key.size() > 1 && key != "/started")
      all[key.substr(1)] = value.is_string() ? value.get<std::string>() : value.dump();
  return all;
}

std::vector<ConfigChange> recipe_differences(const Config& from, const Config& to) {
  std::vector<ConfigChange> all = differences(from, to);
  std::erase_if(all, [](const ConfigChange& c) { return !is_of_recipe(c.key); });
  return all;
}

std::string recipe(const Config& config) {
  std::string text;
  for (const ConfigChange& c : recipe_differences(Config(), config)) text += fmt::format("{} = {}\n", c.key, c.to);
  return text;
}

}  // namespace linnet
