// linnet sweep CONFIG... --seeds 0-4 --grid key=v1,v2 --out DIR
//
// Each run is a process of its own, so that one that crashes takes nothing with it. What is done and what is left is
// read from the run folders alone.
#include <fmt/chrono.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <map>
#include <thread>

#include "child.h"
#include "cli.h"
#include "console.h"
#include "linnet/text.h"
#include "linnet/threads.h"
#include "src/backend/backends.h"
#include "src/core/file.h"
#include "src/report/comparison.h"
#include "src/train/run_lock.h"
#include "sweep_plan.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr auto kPoll = std::chrono::milliseconds(50);
constexpr auto kHeartbeat = std::chrono::seconds(30);

struct Options : SweepRequest {
  int64_t jobs = 0;
  bool fail_fast = false, dry_run = false, json = false;
};

volatile std::sig_atomic_t caught = 0, signals = 0;

void on_signal(int signal) {
  caught = signal;
  signals = signals + 1;
}

void say(const std::string& text) { tell(fmt::format("{:%H:%M:%S} {}\n", fmt::localtime(std::time(nullptr)), text)); }

// The GPUs that may be used, by what CUDA_VISIBLE_DEVICES calls them.
std::vector<std::string> visible_gpus() {
  if (const char* list = std::getenv("CUDA_VISIBLE_DEVICES"); list && *list) return split_list(list, ',');
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
Slots choose_slots(const Options& o, const std::vector<PlannedRun>& runs) {
  Slots slots;
  const bool cuda = std::ranges::any_of(runs, [](const PlannedRun& r) { return r.config.train.device != "cpu"; }) &&
                    cuda_usable().empty();
  if (cuda) slots.gpus = visible_gpus();
  const int cores = default_threads();
  slots.jobs = o.jobs > 0 ? o.jobs : cuda ? std::max<int64_t>(1, int64_t(slots.gpus.size())) : std::max(1, cores / 2);
  const auto left = std::ranges::count_if(runs, &PlannedRun::runs);
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

std::string why_it_failed(const PlannedRun& run, int code, const fs::path& log) {
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
  Sweep(const Options& o, std::vector<PlannedRun>& runs, const Slots& slots)
      : options_(o), runs_(runs), slots_(slots), logs_(fs::path(o.out) / "logs") {
    fs::create_directories(logs_);
    for (const PlannedRun& run : runs) total_ += run.runs();
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
    const PlannedRun& run = runs_[index];
    std::vector<std::string> words;
    if (run.state == RunIs::fresh) {
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
                    run.state == RunIs::fresh     ? "starts"
                    : run.state == RunIs::stopped ? "goes on"
                                                  : "is tried again"));
  }

  fs::path log_of(const PlannedRun& run) const { return logs_ / (run.name + ".log"); }

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
    PlannedRun& run = runs_[child.run];
    const double seconds = std::chrono::duration<double>(Clock::now() - child.started).count();
    spent_ += seconds;
    expected_ += run.seconds;
    ++ended_;
    if (code == 0) {
      run.state = RunIs::done;
      say(fmt::format("{} done: test accuracy {:.2f} %, {}   [{} of {}{}]", run.name,
                      100 * read_run_summary(run.dir).number("test/acc"), duration_text(seconds), ended_, total_,
                      ended_ < total_ ? ", about " + duration_text(remaining()) + " left" : ""));
      return;
    }
    if (code == int(Exit::locked)) {
      run.state = RunIs::busy;
      say(fmt::format("{} is left alone: another process trains it", run.name));
      return;
    }
    if (code == 128 + SIGINT || code == 128 + SIGTERM || code == 128 + SIGHUP) {
      run.state = RunIs::stopped;
      say(fmt::format("{} stopped, and can go on", run.name));
      return;
    }
    if (caught && code == -int(caught)) {  // the second signal: asked for, no failure
      run.state = RunIs::stopped;
      say(fmt::format("{} ended at once; it can go on from its last checkpoint", run.name));
      return;
    }
    run.state = code == int(Exit::diverged) ? RunIs::diverged : RunIs::failed;
    ++failed_;
    say(fmt::format("{} {} ({}); its output is in {}", run.name, run.state == RunIs::diverged ? "diverged" : "FAILED",
                    why_it_failed(run, code, log_of(run)), log_of(run).string()));
  }

  // What is left by the estimate, corrected by how well it was met so far.
  double remaining() const {
    std::vector<PlannedRun> left;
    for (const PlannedRun& run : runs_)
      if (run.runs()) left.push_back(run);
    return time_of(left, slots_.jobs) * (expected_ > 0 ? spent_ / expected_ : 1);
  }

  std::string heartbeat() const {
    std::string text = fmt::format("{} of {} runs ended;", ended_, total_);
    for (const Child& child : children_) {
      const PlannedRun& run = runs_[child.run];
      text += fmt::format(" {} {};", run.name, last_line(log_of(run)));
    }
    return text + fmt::format(" about {} left", duration_text(remaining()));
  }

  const Options& options_;
  std::vector<PlannedRun>& runs_;
  const Slots& slots_;
  fs::path logs_;
  std::vector<Child> children_;
  int64_t total_ = 0, ended_ = 0, failed_ = 0;
  double spent_ = 0, expected_ = 0;  // seconds of the runs that ended
};

std::string plan_text(const std::vector<PlannedRun>& runs, const Slots& slots, bool every_run) {
  std::map<RunIs, int> count;
  for (const PlannedRun& run : runs) ++count[run.state];
  std::string text;
  for (const PlannedRun& run : runs)
    if (every_run)
      text += fmt::format("{:<40} {:<9} {:<7} {}\n", run.name, kRunIs[int(run.state)].first,
                          kRunIs[int(run.state)].second, run.runs() ? "about " + duration_text(run.seconds) : "");
  text += fmt::format("{} runs:", runs.size());
  for (const auto& [state, n] : count) text += fmt::format(" {} {},", n, kRunIs[int(state)].first);
  text.back() = ';';
  const double total = time_of(runs, slots.jobs);
  return text + fmt::format(" {} at a time with {} thread{} each{}; {}\n", slots.jobs, slots.threads,
                            slots.threads == 1 ? "" : "s",
                            slots.gpus.empty() ? "" : fmt::format(" on {} GPUs", slots.gpus.size()),
                            total > 0 ? "about " + duration_text(total) + " in all" : "nothing to do");
}

void print_json(const std::vector<PlannedRun>& runs) {
  Json all = Json::array();
  for (const PlannedRun& run : runs) {
    Json entry = {{"name", run.name},
                  {"dir", run.dir.string()},
                  {"config", run.file},
                  {"seed", run.config.train.seed},
                  {"set", run.overrides},
                  {"status", kRunIs[int(run.state)].first},
                  {"seconds", run.runs() ? Json(run.seconds) : Json(nullptr)}};
    if (run.state == RunIs::done) {
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
  std::vector<PlannedRun> runs = plan_runs(o);
  for (PlannedRun& run : runs) look_at_folder(run);
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
  const auto any = [&](RunIs state) {
    return std::ranges::any_of(runs, [&](const PlannedRun& r) { return r.state == state; });
  };
  if (code == int(Exit::failure) && !any(RunIs::failed)) code = int(Exit::ok);  // diverged, see below
  if (code == int(Exit::ok) && any(RunIs::diverged)) code = int(Exit::diverged);
  if (code == int(Exit::ok) && any(RunIs::busy)) code = int(Exit::locked);
  if (o.json) {
    print_json(runs);
    return code;
  }
  std::vector<RunRecord> done;
  for (const PlannedRun& run : runs)
    if (run.state == RunIs::done) done.push_back(read_run(run.dir));
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
