// linnet sweep CONFIG... --seeds 0-4 --grid key=v1,v2 --out DIR
//
// Each run is a process of its own, so that one that crashes takes nothing with it. What is done and what is left is
// read from the run folders alone.
#include <fmt/chrono.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>
#include <map>
#include <set>
#include <thread>

#include "child.h"
#include "cli.h"
#include "console.h"
#include "linnet/text.h"
#include "linnet/threads.h"
#include "linnet/trainer.h"
#include "src/backend/backends.h"
#include "src/core/file.h"
#include "src/report/comparison.h"
#include "src/report/statistics.h"
#include "src/train/run_lock.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr size_t kMostRuns = 10000;
constexpr size_t kLongestName = 200;  // of a folder, in bytes
constexpr auto kPoll = std::chrono::milliseconds(50);
constexpr auto kHeartbeat = std::chrono::seconds(30);

struct Options {
  std::vector<std::string> configs, set, grid;
  std::string seeds = "0", out, device;
  std::optional<int64_t> epochs;
  int64_t jobs = 0;
  bool fail_fast = false, dry_run = false, json = false;
};

enum class State { fresh, stopped, failed, done, diverged, busy };

// What a run's folder says, and what the sweep does about it.
constexpr std::pair<const char*, const char*> kStates[] = {{"new", "train"}, {"stopped", "resume"}, {"failed", "retry"},
                                                           {"done", "skip"}, {"diverged", "skip"},  {"in use", "skip"}};

struct Run {
  std::string name, file;  // of the folder; of the config
  fs::path dir;
  std::vector<std::string> overrides;
  Config config;
  State state = State::fresh;
  double seconds = 0;  // that it is expected to take from here on
  bool runs() const { return state == State::fresh || state == State::stopped || state == State::failed; }
};

// ---- The plan ------------------------------------------------------------------------------------------------------

int64_t whole_number(std::string_view text, const std::string& all) {
  int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0)
    fail(Exit::usage, "--seeds expects numbers and ranges such as 0-4 or 0,2,7, got '{}'", escaped(all));
  return value;
}

std::vector<std::string> split(const std::string& text, char separator) {
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

std::vector<int64_t> parse_seeds(const std::string& text) {
  std::vector<int64_t> seeds;
  for (const std::string& part : split(text, ',')) {
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
    if (!keys.insert(key).second) fail(Exit::usage, "--grid has the key {} twice", escaped(key));
    const std::vector<std::string> values = split(axis.substr(equals + 1), ',');
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

// Reads every config with every combination of the grid; all mistakes are reported together.
std::vector<Run> plan_runs(const Options& o) {
  const std::vector<int64_t> seeds = parse_seeds(o.seeds);
  const auto grid = parse_grid(o.grid);
  const std::vector<std::string> names = config_names(o.configs);
  if (seeds.size() * grid.size() * names.size() > kMostRuns)
    fail(Exit::usage, "a sweep of {} runs is more than {}", seeds.size() * grid.size() * names.size(), kMostRuns);
  std::vector<Run> of_one_seed;
  std::string mistakes;
  std::set<std::string> known_mistakes, known_names;
  for (size_t c = 0; c < names.size(); ++c)
    for (const auto& point : grid) {
      Run run{.name = names[c], .file = o.configs[c], .overrides = o.set};
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
  std::vector<Run> runs;
  for (const int64_t seed : seeds)
    for (Run run : of_one_seed) {
      run.name += fmt::format("_s{}", seed);
      run.dir = fs::path(o.out) / run.name;
      run.config.train.seed = seed;
      runs.push_back(std::move(run));
    }
  return runs;
}

// What is in the folder must be what is asked for: else the comparison would mix settings.
void require_same_settings(const Run& run, const Config& there) {
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

void look_at_folder(Run& run) {
  std::error_code error;
  if (!fs::exists(run.dir / "config.toml", error)) return;  // train says what else may be wrong with it
  const RunRecord there = read_run_summary(run.dir);
  require_same_settings(run, there.config);
  static const std::map<std::string, State> states = {{"done", State::done},       {"diverged", State::diverged},
                                                      {"failed", State::failed},   {"running", State::busy},
                                                      {"stopped", State::stopped}, {"interrupted", State::stopped}};
  const auto found = states.find(there.status);
  run.state = found == states.end() ? State::stopped : found->second;
}

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

// Seconds for an epoch, from a few steps; a config that cannot be trained fails here, before anything runs.
double seconds_per_epoch(const Config& config, int threads, const RunData& data) {
  const bool cuda = config.train.device == "cuda" || (config.train.device == "auto" && cuda_usable().empty());
  const std::unique_ptr<Backend> backend = cuda ? make_cuda_backend() : make_cpu_backend(threads);
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

// Fills `seconds` of the runs that are left. Finished runs of the same recipe are the best measure there is.
void estimate(std::vector<Run>& runs, int threads) {
  std::map<std::string, std::vector<double>> finished;  // by recipe
  for (const Run& run : runs) {
    if (run.state != State::done) continue;
    Config there = load_config(run.dir / "config.toml");
    there.train.precision = run.config.train.precision;  // "auto" was resolved there
    if (const double s = read_run_summary(run.dir).number("wall_s"); s > 0) finished[recipe(there)].push_back(s);
  }
  std::map<std::string, double> epoch_of, whole;
  std::string data_key;
  Config data_config;  // with what was measured on its images
  RunData data;
  for (Run& run : runs) {
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
    if (run.state != State::fresh) {
      const double done = read_run_summary(run.dir).number("epoch");
      if (done > 0) run.seconds *= std::max(0.0, 1 - done / double(run.config.train.epochs));
    }
  }
}

// `jobs` at a time, the next one where one ends.
double time_of(const std::vector<Run>& runs, int64_t jobs) {
  std::vector<double> free_at(size_t(jobs), 0);
  for (const Run& run : runs)
    if (run.runs()) *std::ranges::min_element(free_at) += run.seconds;
  return *std::ranges::max_element(free_at);
}

// ---- Running -------------------------------------------------------------------------------------------------------

volatile std::sig_atomic_t caught = 0, signals = 0;

void on_signal(int signal) {
  caught = signal;
  signals = signals + 1;
}

void say(const std::string& text) { tell(fmt::format("{:%H:%M:%S} {}\n", fmt::localtime(std::time(nullptr)), text)); }

// The GPUs that may be used, by what CUDA_VISIBLE_DEVICES calls them.
std::vector<std::string> visible_gpus() {
  if (const char* list = std::getenv("CUDA_VISIBLE_DEVICES"); list && *list) return split(list, ',');
  std::vector<std::string> gpus;
  std::error_code error;
  for (const auto& gpu : fs::directory_iterator("/proc/driver/nvidia/gpus", error)) {
    (void)gpu;
    gpus.push_back(std::to_string(gpus.size()));
  }
  return gpus;
}

// Where the runs go: how many at a time, and what each one's slot sets in its environment.
struct Slots {
  int64_t jobs = 1;
  int threads = 1;                // of a run
  std::vector<std::string> gpus;  // none: on the CPU
  std::vector<std::pair<std::string, std::string>> variables(size_t slot) const {
    std::vector<std::pair<std::string, std::string>> all = {{"OMP_NUM_THREADS", std::to_string(threads)}};
    if (!gpus.empty()) all.emplace_back("CUDA_VISIBLE_DEVICES", gpus[slot % gpus.size()]);
    return all;
  }
};

// One run for each GPU. On a CPU one for each two cores: a run of its own uses a core better than a run's third thread.
Slots choose_slots(const Options& o, const std::vector<Run>& runs) {
  Slots slots;
  const bool cuda =
      std::ranges::any_of(runs, [](const Run& r) { return r.config.train.device != "cpu"; }) && cuda_usable().empty();
  if (cuda) slots.gpus = visible_gpus();
  const int cores = default_threads();
  slots.jobs = o.jobs > 0 ? o.jobs : cuda ? std::max<int64_t>(1, int64_t(slots.gpus.size())) : std::max(1, cores / 2);
  const auto left = std::ranges::count_if(runs, &Run::runs);
  slots.jobs = std::clamp<int64_t>(slots.jobs, 1, std::max<int64_t>(1, left));
  const char* wanted = std::getenv("OMP_NUM_THREADS");  // of each run, if the user says so
  slots.threads = wanted && *wanted ? cores : std::max(1, cores / int(slots.jobs));
  return slots;
}

struct Child {
  pid_t pid;
  size_t run, slot;
  Clock::time_point started;
};

struct Result {
  size_t run;
  int code;  // -signal, if one ended it
  double seconds;
};

std::string last_line(const fs::path& log) {
  std::error_code error;
  if (!fs::exists(log, error)) return "";
  std::string text = read_file(log, uint64_t(1) << 30, Exit::failure);
  while (text.ends_with('\n')) text.pop_back();
  return escaped(text.substr(text.rfind('\n') + 1));
}

std::string why_it_failed(const Run& run, int code, const fs::path& log) {
  if (code < 0) return fmt::format("killed by signal {} ({})", -code, strsignal(-code));
  std::string reason;
  try {
    if (fs::exists(run.dir / "summary.json")) reason = read_run_summary(run.dir).summary.value("reason", "");
  } catch (const std::exception&) {  // the log says it
  }
  return fmt::format("code {}: {}", code, reason.empty() ? last_line(log) : escaped(reason, 400));
}

class Sweep {
 public:
  Sweep(const Options& o, std::vector<Run>& runs, const Slots& slots)
      : options_(o), runs_(runs), slots_(slots), logs_(fs::path(o.out) / "logs") {
    fs::create_directories(logs_);
    for (const Run& run : runs) total_ += run.runs();
  }

  // Returns the exit code. A signal is passed on to the runs, which save; a second one ends them at once.
  int run() {
    for (const int signal : {SIGINT, SIGTERM, SIGHUP})
      if (std::signal(signal, on_signal) == SIG_IGN) std::signal(signal, SIG_IGN);  // nohup's wish holds
    std::signal(SIGPIPE, SIG_IGN);
    size_t next = 0;
    int passed_on = 0;
    Clock::time_point last_word = Clock::now();
    while (true) {
      const bool stopping = caught != 0 || (options_.fail_fast && failed_ > 0);
      while (!stopping && int64_t(children_.size()) < slots_.jobs && next < runs_.size()) {
        if (runs_[next].runs()) start(next);
        ++next;
      }
      if (children_.empty()) break;
      if (stopping && passed_on == 0 && signals == 0) pass_on(SIGTERM), passed_on = 1;
      for (; passed_on < signals; ++passed_on) pass_on(caught);
      reap();
      if (Clock::now() - last_word > kHeartbeat) {
        last_word = Clock::now();
        say(heartbeat());
      }
      std::this_thread::sleep_for(kPoll);
    }
    if (caught) {
      tell(fmt::format("stopped by signal {}; go on with the same command\n", int(caught)));
      return 128 + int(caught);
    }
    return failed_ > 0 ? int(Exit::failure) : int(Exit::ok);
  }

 private:
  void start(size_t index) {
    const Run& run = runs_[index];
    std::vector<std::string> words;
    if (run.state == State::fresh) {
      words = {"train",          run.file, "--out",
               run.dir.string(), "--set",  fmt::format("train.seed={}", run.config.train.seed)};
      for (const std::string& o : run.overrides) words.insert(words.end(), {"--set", o});
    } else {
      words = {"resume", run.dir.string()};
    }
    size_t slot = 0;
    while (std::ranges::any_of(children_, [&](const Child& c) { return c.slot == slot; })) ++slot;
    children_.push_back({start_linnet(words, slots_.variables(slot), log_of(run)), index, slot, Clock::now()});
    say(fmt::format("{} {}", run.name,
                    run.state == State::fresh     ? "starts"
                    : run.state == State::stopped ? "goes on"
                                                  : "is tried again"));
  }

  fs::path log_of(const Run& run) const { return logs_ / (run.name + ".log"); }

  void pass_on(int signal) {
    for (const Child& child : children_) ::kill(child.pid, signal);
  }

  void reap() {
    for (size_t i = 0; i < children_.size();) {
      int status = 0;
      if (::waitpid(children_[i].pid, &status, WNOHANG) != children_[i].pid) {
        ++i;
        continue;
      }
      const Child child = children_[i];
      children_.erase(children_.begin() + int64_t(i));
      ended(child, WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
    }
  }

  void ended(const Child& child, int code) {
    Run& run = runs_[child.run];
    const double seconds = std::chrono::duration<double>(Clock::now() - child.started).count();
    spent_ += seconds;
    expected_ += run.seconds;
    ++ended_;
    if (code == 0) {
      run.state = State::done;
      say(fmt::format("{} done: test accuracy {:.2f} %, {}   [{} of {}{}]", run.name,
                      100 * read_run_summary(run.dir).number("test/acc"), duration_text(seconds), ended_, total_,
                      ended_ < total_ ? ", about " + duration_text(remaining()) + " left" : ""));
      return;
    }
    if (code == int(Exit::locked)) {
      run.state = State::busy;
      say(fmt::format("{} is left alone: another process trains it", run.name));
      return;
    }
    if (code == 128 + SIGINT || code == 128 + SIGTERM || code == 128 + SIGHUP) {
      run.state = State::stopped;
      say(fmt::format("{} stopped, and can go on", run.name));
      return;
    }
    run.state = code == int(Exit::diverged) ? State::diverged : State::failed;
    ++failed_;
    say(fmt::format("{} {} ({}); its output is in {}", run.name, run.state == State::diverged ? "diverged" : "FAILED",
                    why_it_failed(run, code, log_of(run)), log_of(run).string()));
  }

  // What is left by the estimate, corrected by how well it was met so far.
  double remaining() const {
    std::vector<Run> left;
    for (const Run& run : runs_)
      if (run.runs()) left.push_back(run);
    return time_of(left, slots_.jobs) * (expected_ > 0 ? spent_ / expected_ : 1);
  }

  std::string heartbeat() const {
    std::string text = fmt::format("{} of {} runs ended;", ended_, total_);
    for (const Child& child : children_) {
      const Run& run = runs_[child.run];
      text += fmt::format(" {} {};", run.name, last_line(log_of(run)));
    }
    return text + fmt::format(" about {} left", duration_text(remaining()));
  }

  const Options& options_;
  std::vector<Run>& runs_;
  const Slots& slots_;
  fs::path logs_;
  std::vector<Child> children_;
  int64_t total_ = 0, ended_ = 0, failed_ = 0;
  double spent_ = 0, expected_ = 0;  // seconds of the runs that ended
};

std::string plan_text(const std::vector<Run>& runs, const Slots& slots, bool every_run) {
  std::map<State, int> count;
  for (const Run& run : runs) ++count[run.state];
  std::string text;
  for (const Run& run : runs)
    if (every_run)
      text += fmt::format("{:<40} {:<9} {:<7} {}\n", run.name, kStates[int(run.state)].first,
                          kStates[int(run.state)].second, run.runs() ? "about " + duration_text(run.seconds) : "");
  text += fmt::format("{} runs:", runs.size());
  for (const auto& [state, n] : count) text += fmt::format(" {} {},", n, kStates[int(state)].first);
  text.back() = ';';
  const double total = time_of(runs, slots.jobs);
  return text + fmt::format(" {} at a time with {} thread{} each{}; {}\n", slots.jobs, slots.threads,
                            slots.threads == 1 ? "" : "s",
                            slots.gpus.empty() ? "" : fmt::format(" on {} GPUs", slots.gpus.size()),
                            total > 0 ? "about " + duration_text(total) + " in all" : "nothing to do");
}

void print_json(const std::vector<Run>& runs) {
  Json all = Json::array();
  for (const Run& run : runs) {
    Json entry = {{"name", run.name},
                  {"dir", run.dir.string()},
                  {"config", run.file},
                  {"seed", run.config.train.seed},
                  {"set", run.overrides},
                  {"status", kStates[int(run.state)].first},
                  {"seconds", run.runs() ? Json(run.seconds) : Json(nullptr)}};
    if (run.state == State::done) {
      const RunRecord there = read_run_summary(run.dir);
      for (const char* key : {"test/acc", "val/acc", "wall_s"})
        if (there.summary.contains(key)) entry[key] = there.summary[key];
    }
    all.push_back(entry);
  }
  fmt::print("{}\n", Json{{"runs", all}}.dump());
}

int sweep(const Options& o) {
  if (fs::exists(fs::path(o.out) / "config.toml"))
    fail(Exit::usage, "{} is a run; a sweep needs a folder of its own with --out", o.out);
  if (fs::exists(o.out) && !fs::is_directory(o.out)) fail(Exit::usage, "--out {} is no folder", o.out);
  std::vector<Run> runs = plan_runs(o);
  for (Run& run : runs) look_at_folder(run);
  const Slots slots = choose_slots(o, runs);
  estimate(runs, slots.threads);
  if (o.dry_run) {
    if (o.json)
      print_json(runs);
    else
      fmt::print("{}", plan_text(runs, slots, true));
    return int(Exit::ok);
  }
  std::error_code error;
  fs::create_directories(o.out, error);
  if (error) fail(Exit::checkpoint, "cannot create the folder {}: {}", o.out, error.message());
  const RunLock lock(o.out);  // of two sweeps in one folder, the second one ends here
  tell(plan_text(runs, slots, false));
  int code = Sweep(o, runs, slots).run();
  const auto any = [&](State state) {
    return std::ranges::any_of(runs, [&](const Run& r) { return r.state == state; });
  };
  if (code == int(Exit::failure) && !any(State::failed)) code = int(Exit::ok);  // diverged, see below
  if (code == int(Exit::ok) && any(State::diverged)) code = int(Exit::diverged);
  if (code == int(Exit::ok) && any(State::busy)) code = int(Exit::locked);
  if (o.json) {
    print_json(runs);
    return code;
  }
  std::vector<RunRecord> done;
  for (const Run& run : runs)
    if (run.state == State::done) done.push_back(read_run(run.dir));
  if (!done.empty()) {
    fmt::print("{}", comparison_text(compare(group_runs(std::move(done)), {})));
    tell(fmt::format("as a page: linnet report {} -o {}\n", o.out, (fs::path(o.out) / "report.html").string()));
  }
  return code;
}

}  // namespace

void add_sweep(CLI::App& app, Command& command) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand(
      "sweep",
      "Train configs over seeds and settings. The same command again skips what is done, goes on with what was stopped "
      "and retries what failed.\n\n"
      "  linnet sweep configs/convnet/sgd.toml configs/convnet/adamw.toml --seeds 0-4 --out runs/cmp\n"
      "  linnet sweep configs/convnet/adamw.toml --grid optimizer.lr=0.01,0.003,0.001 --seeds 0-2 --out runs/lr\n"
      "  linnet report runs/cmp -o report.html");
  verb->add_option("configs", options->configs, "TOML files")->required();
  verb->add_option("--seeds", options->seeds, "seeds of each config: 0-4 or 0,2,7 (default: 0)");
  verb->add_option("--grid", options->grid, "key=value,value,...: each value; with several, each combination")
      ->allow_extra_args(false);
  verb->add_option("-o,--out", options->out, "folder of the runs")->required();
  verb->add_option("-s,--set", options->set, "override a key in all runs (may be repeated)")->allow_extra_args(false);
  verb->add_option("--epochs", options->epochs, "the same as --set train.epochs=");
  verb->add_option("--device", options->device, "auto, cpu or cuda: the same as --set train.device=");
  verb->add_option("-j,--jobs", options->jobs, "runs at a time (default: one for each two cores, or each GPU)")
      ->check(CLI::Range(1, 1024));
  verb->add_flag("--fail-fast", options->fail_fast, "a run that fails or diverges stops the others, which save");
  verb->add_flag("-n,--dry-run", options->dry_run, "say what would run and for how long, and make nothing");
  verb->add_flag("--json", options->json, "the runs as JSON on stdout");
  verb->callback([options, &command] { command = [options] { return sweep(*options); }; });
}

}  // namespace linnet
