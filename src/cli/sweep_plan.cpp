#include "sweep_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>
#include <map>
#include <set>

#include "linnet/text.h"
#include "linnet/trainer.h"
#include "src/backend/backends.h"
#include "src/report/run_record.h"
#include "src/report/statistics.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr size_t kMostRuns = 10000;
constexpr size_t kLongestName = 200;  // of a folder, in bytes

int64_t whole_number(std::string_view text, const std::string& all) {
  int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0)
    fail(Exit::usage, "--seeds expects numbers and ranges such as 0-4 or 0,2,7, got '{}'", escaped(all));
  return value;
}

}  // namespace

std::vector<std::string> split_list(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  int depth = 0;  // a list's commas are its own
  for (const char c : text) {
    depth += (c == '[') - (c == ']');
    if (c == separator && depth <= 0)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

namespace {

std::vector<int64_t> parse_seeds(const std::string& text) {
  std::vector<int64_t> seeds;
  for (const std::string& part : split_list(text, ',')) {
    const size_t dash = part.find('-');
    const int64_t first = whole_number(part.substr(0, dash), text);
    const int64_t last = dash == part.npos ? first : whole_number(part.substr(dash + 1), text);
    if (last < first || last - first >= int64_t(kMostRuns))
      fail(Exit::usage, "--seeds expects a range from low to high of at most {} seeds, got '{}'", kMostRuns,
           escaped(part));
    for (int64_t s = first; s <= last; ++s) seeds.push_back(s);
  }
  std::vector<int64_t> sorted = seeds;
  std::ranges::sort(sorted);
  if (const auto twice = std::ranges::adjacent_find(sorted); twice != sorted.end())
    fail(Exit::usage, "--seeds has {} twice", *twice);
  return seeds;
}

// Every combination of the grid's values, as overrides.
std::vector<std::vector<std::string>> parse_grid(const std::vector<std::string>& grid) {
  std::vector<std::vector<std::string>> all(1);
  std::set<std::string> keys;
  for (const std::string& axis : grid) {
    const size_t equals = axis.find('=');
    if (equals == axis.npos || equals == 0 || equals + 1 == axis.size())
      fail(Exit::usage, "--grid expects key=value,value,..., got '{}'", escaped(axis));
    const std::string key = axis.substr(0, equals);
    if (key == "train.seed") fail(Exit::usage, "--grid cannot vary train.seed; use --seeds");
    if (axis.find(",,") != axis.npos || axis.ends_with(',') || axis[equals + 1] == ',')
      fail(Exit::usage, "--grid has an empty value: '{}'", escaped(axis));
    if (!keys.insert(key).second) fail(Exit::usage, "--grid has the key {} twice", escaped(key));
    const std::vector<std::string> values = split_list(axis.substr(equals + 1), ',');
    if (std::set(values.begin(), values.end()).size() != values.size())
      fail(Exit::usage, "--grid has a value of {} twice: '{}'", escaped(key), escaped(axis));
    std::vector<std::vector<std::string>> longer;
    for (const auto& before : all)
      for (const std::string& value : values) {
        longer.push_back(before);
        longer.back().push_back(key + "=" + value);
      }
    all = std::move(longer);
    if (all.size() > kMostRuns) fail(Exit::usage, "--grid has more than {} combinations", kMostRuns);
  }
  return all;
}

std::string file_name(const std::string& text) {
  std::string name;
  for (const char c : text) name += std::isalnum(static_cast<unsigned char>(c)) || std::strchr("._=+-", c) ? c : '_';
  return name;
}

// The configs' names: their files', with the folder's in front where two files have the same one.
std::vector<std::string> config_names(const std::vector<std::string>& files) {
  std::vector<std::string> names;
  std::map<std::string, int> count;
  for (const std::string& file : files) ++count[fs::path(file).stem().string()];
  for (const std::string& file : files) {
    const fs::path path = fs::absolute(file).lexically_normal();
    const std::string stem = path.stem().string();
    names.push_back(file_name(count[stem] > 1 ? path.parent_path().filename().string() + "-" + stem : stem));
  }
  for (size_t i = 0; i < names.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (names[i] == names[j])
        fail(Exit::usage, "the configs {} and {} have the same name; rename one of them", files[j], files[i]);
  return names;
}

}  // namespace

std::vector<PlannedRun> plan_runs(const SweepRequest& o) {
  const std::vector<int64_t> seeds = parse_seeds(o.seeds);
  const auto grid = parse_grid(o.grid);
  for (const std::string& set : o.set)  // the sweep's seed would win, and nobody would know
    if (set.starts_with("train.seed=")) fail(Exit::usage, "--set cannot set train.seed in a sweep; use --seeds");
  const std::vector<std::string> names = config_names(o.configs);
  if (seeds.size() * grid.size() * names.size() > kMostRuns)
    fail(Exit::usage, "a sweep of {} runs is more than {}", seeds.size() * grid.size() * names.size(), kMostRuns);
  std::vector<PlannedRun> of_one_seed;
  std::string mistakes;
  std::set<std::string> known_mistakes, known_names;
  for (size_t c = 0; c < names.size(); ++c)
    for (const auto& point : grid) {
      PlannedRun run{.name = names[c], .file = o.configs[c], .overrides = o.set};
      run.overrides.insert(run.overrides.end(), point.begin(), point.end());
      if (o.epochs) run.overrides.push_back(fmt::format("train.epochs={}", *o.epochs));
      if (!o.device.empty()) run.overrides.push_back("train.device=" + o.device);
      for (const std::string& p : point) run.name += "_" + file_name(p);
      if (!known_names.insert(run.name).second)
        fail(Exit::usage, "two points of the grid would have the folder {}; run them in two sweeps", run.name);
      if (run.name.size() > kLongestName)
        fail(Exit::usage, "the grid's values make a folder's name of {} characters, and {} are possible",
             run.name.size(), kLongestName);
      try {
        run.config = load_config(run.file, run.overrides);
      } catch (const Error& e) {
        if (e.exit != Exit::usage) throw;
        if (known_mistakes.insert(e.what()).second) mistakes += (mistakes.empty() ? "" : "\n") + std::string(e.what());
        continue;
      }
      of_one_seed.push_back(std::move(run));
    }
  if (!mistakes.empty()) fail(Exit::usage, "{}", mistakes);

  // A seed of all configs before the next one: what is stopped early can be compared already.
  std::vector<PlannedRun> runs;
  for (const int64_t seed : seeds)
    for (PlannedRun run : of_one_seed) {
      run.name += fmt::format("_s{}", seed);
      run.dir = fs::path(o.out) / run.name;
      run.config.train.seed = seed;
      runs.push_back(std::move(run));
    }
  return runs;
}

namespace {

// What is in the folder must be what is asked for: else the comparison would mix settings.
void require_same_settings(const PlannedRun& run, const Config& there) {
  std::string changes;
  for (const ConfigChange& c : recipe_differences(there, run.config)) {
    if (run.config.data.mean.empty() && (c.key == "data.mean" || c.key == "data.std")) continue;  // measured since
    if (c.key == "train.precision" && run.config.train.precision == "auto") continue;             // chosen since
    changes +=
        fmt::format("\n  {}: {} there, {} now", c.key, c.from.empty() ? "none" : c.from, c.to.empty() ? "none" : c.to);
  }
  if (there.train.seed != run.config.train.seed) changes += "\n  train.seed";
  if (!changes.empty())
    fail(Exit::usage, "{} holds a run of other settings; choose another folder with --out, or remove it:{}",
         run.dir.string(), changes);
}

}  // namespace

void look_at_folder(PlannedRun& run) {
  std::error_code error;
  if (!fs::exists(run.dir / "config.toml", error)) return;  // train says what else may be wrong with it
  const RunRecord there = read_run_summary(run.dir);
  require_same_settings(run, there.config);
  static const std::map<std::string, RunIs> states = {{"done", RunIs::done},       {"diverged", RunIs::diverged},
                                                      {"failed", RunIs::failed},   {"running", RunIs::busy},
                                                      {"stopped", RunIs::stopped}, {"interrupted", RunIs::stopped}};
  const auto found = states.find(there.status);
  run.state = found == states.end() ? RunIs::stopped : found->second;
}

namespace {

// ---- How long it will take -----------------------------------------------------------------------------------------

// All that the time of a step depends on.
std::string cost_key(Config config) {
  config.schedule = {};
  config.train.seed = 0;
  config.train.epochs = 1;
  config.log = {};
  config.checkpoint = {};
  return to_toml(config);
}

// Seconds for an epoch, from a few steps.
double seconds_per_epoch(const Config& config, int threads, const RunData& data) {
  const bool cuda = config.train.device == "cuda" || (config.train.device == "auto" && cuda_usable().empty());
  const std::unique_ptr<Backend> backend =
      cuda ? make_cuda_backend(backend_options(config)) : make_cpu_backend(threads);
  Trainer trainer(config, *backend, data);
  int64_t done = 0;
  const auto seconds_of_step = [&] {
    const Clock::time_point from = Clock::now();
    if (done % trainer.steps_per_epoch() == 0) trainer.start_epoch(done / trainer.steps_per_epoch());
    trainer.step();
    backend->synchronize();
    ++done;
    return std::chrono::duration<double>(Clock::now() - from).count();
  };
  double spent = 0;
  for (int i = 0; i < 3 && spent < 1; ++i) spent += seconds_of_step();  // these also allocate
  std::vector<double> seconds;
  for (spent = 0; seconds.size() < 20 && spent < 1; spent += seconds.back()) seconds.push_back(seconds_of_step());
  constexpr double kEvaluation = 1.0 / 3;  // of an image's training: the forward pass without the backward one
  const double train = median(seconds) * double(trainer.steps_per_epoch());
  return train * (1 + kEvaluation * double(data.val.size()) / double(data.train.size()));
}

}  // namespace

void estimate(std::vector<PlannedRun>& runs, int threads) {
  std::map<std::string, std::vector<double>> finished;  // by recipe
  for (const PlannedRun& run : runs) {
    if (run.state != RunIs::done) continue;
    Config there = load_config(run.dir / "config.toml");
    there.train.precision = run.config.train.precision;  // "auto" was resolved there
    if (const double s = read_run_summary(run.dir).number("wall_s"); s > 0) finished[recipe(there)].push_back(s);
  }
  std::map<std::string, double> epoch_of, whole;
  std::string data_key;
  Config data_config;  // with what was measured on its images
  RunData data;
  for (PlannedRun& run : runs) {
    if (!run.runs()) continue;
    const std::string of_file = run.name.substr(0, run.name.rfind("_s"));
    if (!whole.contains(of_file)) {
      Config config = run.config;
      Config only_data;
      only_data.data = config.data;
      if (data_key.empty() || to_toml(only_data) != data_key) {
        data_key = to_toml(only_data);
        data = load_run_data(config);
        data.test();  // a damaged test set shows now
        data_config = config;
      }
      config.data = data_config.data;
      if (const auto found = finished.find(recipe(config)); found != finished.end()) {
        for (const double s : found->second) whole[of_file] += s / double(found->second.size());
      } else {
        const std::string key = cost_key(config);
        if (!epoch_of.contains(key)) epoch_of[key] = seconds_per_epoch(config, threads, data);
        whole[of_file] = epoch_of[key] * double(config.train.epochs);
      }
    }
    run.seconds = whole[of_file];
    if (run.state != RunIs::fresh) {
      const double done = read_run_summary(run.dir).number("epoch");
      if (done > 0) run.seconds *= std::max(0.0, 1 - done / double(run.config.train.epochs));
    }
  }
}

double time_of(const std::vector<PlannedRun>& runs, int64_t jobs) {
  std::vector<double> free_at(size_t(jobs), 0);
  for (const PlannedRun& run : runs)
    if (run.runs()) *std::ranges::min_element(free_at) += run.seconds;
  return *std::ranges::max_element(free_at);
}

}  // namespace linnet
