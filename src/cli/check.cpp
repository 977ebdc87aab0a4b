// linnet check CONFIG
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli.h"
#include "console.h"
#include "linnet/run.h"
#include "linnet/text.h"
#include "linnet/warnings.h"
#include "src/core/digest.h"
#include "src/core/file.h"
#include "src/core/json.h"
#include "src/lab/checks.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kSteps = 24, kSaveEvery = 5, kFewest = 8;

// Here and not in checks(): it needs processes of its own.
constexpr CheckEntry kResume = {"resume", "a run killed by SIGKILL and resumed ends with the bits of one that was not",
                                "this build or machine does not repeat its own bits: linnet info, and tell the authors",
                                nullptr};

// ---- Signals -------------------------------------------------------------------------------------------------------

volatile std::sig_atomic_t caught = 0, has_files = 0;

// Files are removed first; where there are none, and at a second signal, it ends at once.
void on_signal(int signal) {
  if (!has_files || caught) _exit(128 + signal);
  caught = signal;
}

struct Interrupted {
  int signal;
};

void stop_if_asked() {
  if (caught) throw Interrupted{caught};
}

// ---- A run, killed and resumed -------------------------------------------------------------------------------------

fs::path temporary_folder() {
  std::error_code error;
  const fs::path path = fs::temp_directory_path(error);
  if (!error) return path;
  for (const char* variable : {"TMPDIR", "TMP", "TEMP", "TEMPDIR"})  // in the order of the standard library
    if (const char* value = std::getenv(variable))
      fail(Exit::checkpoint, "{} is {}: expected a folder for temporary files; name one there, or unset it for /tmp",
           variable, escaped(value));
  fail(Exit::checkpoint, "there is no folder /tmp for temporary files: name one in TMPDIR");
}

// A folder that goes when the check is over.
struct Scratch {
  fs::path path;
  Scratch() {
    std::string name = (temporary_folder() / "linnet-check-XXXXXX").string();
    has_files = 1;
    if (!mkdtemp(name.data()))
      fail(Exit::checkpoint, "cannot make a temporary folder like {}: {}; name another place in TMPDIR", escaped(name),
           std::generic_category().message(errno));
    path = name;
  }
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
    has_files = 0;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// In a process of its own: trains in `dir` up to step `steps`, from the last checkpoint if there is one.
[[noreturn]] void train_in_child(const fs::path& dir, Config config, int64_t steps) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);                                                 // it does not outlive the check
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) std::signal(signal, SIG_IGN);  // the check ends it
  try {
    const auto backend = make_backend(config.train.device, backend_options(config));
    const RunData data = load_run_data(config);
    Trainer trainer(config, *backend, data);
    const bool again = fs::exists(dir / "config.toml");
    auto run = again ? std::make_unique<RunFolder>(dir, config, *backend, data, RunFolder::Existing{})
                     : std::make_unique<RunFolder>(dir, config, *backend, data);
    RunCheckpoints checkpoints(*run, trainer);
    again ? void(checkpoints.load(trainer)) : run->begin();
    trainer.run({run.get(), &checkpoints}, [&] {
      // Not before the evaluation of an epoch that ends here.
      return trainer.global_step() >= steps && trainer.progress().in_epoch < trainer.steps_per_epoch();
    });
    checkpoints.save_now(trainer);
    _exit(0);
  } catch (const Error& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    _exit(int(e.exit));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    _exit(1);
  }
}

// Steps whose metrics are on the disk.
int64_t steps_logged(const fs::path& dir) {
  std::error_code error;
  if (!fs::exists(dir / "metrics.jsonl", error)) return 0;
  const std::string text = read_file(dir / "metrics.jsonl", 1 << 24, Exit::failure);
  return std::count(text.begin(), text.end(), '\n');
}

// Returns whether it was killed; kill_at 0: it is left alone.
bool run_child(const fs::path& dir, const Config& config, int64_t steps, int64_t kill_at) {
  const pid_t child = fork();
  if (child < 0) fail(Exit::failure, "cannot start a process: {}", std::generic_category().message(errno));
  if (child == 0) train_in_child(dir, config, steps);
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    if (caught) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      break;
    }
    if (kill_at > 0 && steps_logged(dir) >= kill_at) kill(child, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  stop_if_asked();
  if (WIFSIGNALED(status)) return true;
  if (WEXITSTATUS(status) != 0) fail(Exit(WEXITSTATUS(status)), "the training of the check failed");
  return false;
}

// What a run that stopped at step `steps` has come to: its newest checkpoint, where it stands, its metrics.
std::string digest_of(const fs::path& dir, int64_t steps) {
  const fs::path at = dir / "checkpoints" / fmt::format("{:08}", steps);
  std::string all;
  for (const char* name : {"model.safetensors", "optim.safetensors"})
    all += read_file(at / name, uint64_t(1) << 33, Exit::checkpoint);
  all += read_json(at / "state.json", Exit::checkpoint).at("progress").dump();
  return xxh3(all + read_file(dir / "metrics.jsonl", 1 << 24, Exit::checkpoint));
}

CheckResult check_resume(Config config, int64_t images) {
  const Scratch scratch;
  config.log.interval = 1;
  config.train.patience = 0;      // the steps are counted here
  config.train.autotune = false;  // two runs that time their convolutions may choose differently
  const int64_t per_epoch = steps_per_epoch(config, images);
  const int64_t steps = std::min(kSteps, per_epoch * config.train.epochs);
  config.checkpoint.epochs = double(kSaveEvery) / double(std::max<int64_t>(1, per_epoch));
  if (per_epoch == 0)
    fail(Exit::usage, "{} training images do not fill one batch of {}", images, config.train.batch_size);
  if (steps < kFewest)
    return {CheckResult::Verdict::skipped,
            fmt::format("a run of {} steps is too short for this check, which needs {}: raise train.epochs", steps,
                        kFewest),
            ""};
  const fs::path straight = scratch.path / "straight", killed = scratch.path / "killed";
  run_child(straight, config, steps, 0);
  int kills = 0;
  for (const int64_t quarter : {1, 2, 3}) kills += run_child(killed, config, steps, quarter * steps / 4 + 1);
  run_child(killed, config, steps, 0);
  const std::string want = digest_of(straight, steps), got = digest_of(killed, steps);
  std::string text = fmt::format("{} steps straight {}, killed {} times and resumed {}", steps, want, kills, got);
  if (want != got) text += ": weights, optimizer state or metrics differ";
  if (kills == 0) text += ": the training was over before it could be killed; use a larger model or batch";
  return verdict(want == got && kills > 0, text);
}

// ---- The verb ------------------------------------------------------------------------------------------------------

struct Options {
  std::string config;
  std::vector<std::string> set, only;
  bool json = false;
};

const char* name_of(CheckResult::Verdict v) {
  return v == CheckResult::Verdict::pass ? "PASS" : v == CheckResult::Verdict::fail ? "FAIL" : "SKIPPED";
}

int run_checks(const Options& o) {
  using Verdict = CheckResult::Verdict;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP})
    if (std::signal(signal, on_signal) == SIG_IGN) std::signal(signal, SIG_IGN);  // nohup's wish holds
  Config config = load_config(o.config, o.set);
  const Terminal terminal = stdout_terminal();
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  std::vector<std::string> found;  // warnings
  int failed = 0, skipped = 0;
  const auto wanted = [&](std::string_view name) {
    return o.only.empty() || std::ranges::find(o.only, name) != o.only.end();
  };
  const auto run = [&](const CheckEntry& entry, const std::function<CheckResult()>& check) {
    const auto begin = std::chrono::steady_clock::now();
    CheckResult r;
    try {
      r = check();
    } catch (const Error& e) {  // what `train` would refuse, such as images that fill no batch: the others still speak
      if (e.exit != Exit::usage) throw;
      r = {Verdict::fail, e.what(), "", "linnet train refuses this config: change what is named above"};
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    failed += r.verdict == Verdict::fail;
    skipped += r.verdict == Verdict::skipped;
    const std::string advice = r.verdict != Verdict::fail ? ""
                               : r.advice.empty()         ? std::string(entry.advice)
                                                          : r.advice;
    json.push_back({{"check", entry.name},
                    {"verdict", name_of(r.verdict)},
                    {"text", r.text},
                    {"advice", advice.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(advice)},
                    {"seconds", seconds}});
    if (o.json) return;
    fmt::print("{}: {}  {}\n", entry.name, name_of(r.verdict), r.text);
    for (size_t at = 0; at < r.picture.size();) {
      const size_t end = std::min(r.picture.find('\n', at), r.picture.size());
      fmt::print("  {}\n", r.picture.substr(at, end - at));
      at = end + 1;
    }
    if (!advice.empty()) fmt::print("  what to do: {}\n", advice);
    std::fflush(stdout);
  };

  // First, for it forks: no thread is running yet.
  const RunData data = load_run_data(config);
  if (wanted(kResume.name)) run(kResume, [&] { return check_resume(config, data.train.size()); });
  stop_if_asked();
  if (o.only.size() != 1 || o.only[0] != kResume.name) {
    const auto backend = make_backend(config.train.device, backend_options(config));
    config.train.precision = linnet::name_of(precision_of(config, *backend));
    Terminal inner = terminal;
    inner.columns -= 2;  // the pictures stand two columns in
    // A config's own faults are told as `train` tells them: they say at once what a check only shows.
    Net net(*backend, config.model.name, model_options(config, data.train), uint64_t(config.train.seed));
    for (const Warning& w : start_warnings(config, facts_of(net.params(), data.train.size())))
      found.push_back(Warnings(false).tell_once(w));
    if (!o.json)
      for (const std::string& line : found) tell(line + "\n");
    const Subject subject{config, *backend, data, inner, colours_wanted()};
    for (const CheckEntry& entry : checks())
      if (wanted(entry.name)) run(entry, [&] { return entry.run(subject); });
  }
  if (o.json)
    fmt::print(
        "{}\n",
        nlohmann::ordered_json{{"passed", failed == 0}, {"skipped", skipped}, {"warnings", found}, {"checks", json}}
            .dump());
  else if (failed + skipped == 0)
    fmt::print("all checks passed\n");
  else
    fmt::print("{} failed, {} skipped, {} passed\n", failed, skipped, int(json.size()) - failed - skipped);
  return int(failed == 0 ? Exit::ok : Exit::diverged);
}

}  // namespace

void add_check(CLI::App& app, Command& command) {
  auto options = std::make_shared<Options>();
  std::vector<std::string> names;
  std::string list;
  const auto name = [&](const CheckEntry& entry) {
    names.emplace_back(entry.name);
    list += fmt::format("\n  {:<10}{}", entry.name, entry.summary);
  };
  name(kResume);
  for (const CheckEntry& entry : checks()) name(entry);
  CLI::App* verb = app.add_subcommand("check",
                                      "Check a config before a long run; exit code 5 when a check fails.\n\n"
                                      "  linnet check configs/resnet20.toml\n"
                                      "  linnet check configs/resnet20.toml --only flow,gradient --json\n" +
                                          list);
  add_config_options(*verb, options->config, options->set);
  verb->add_option("--only", options->only, "these checks, with commas between")
      ->delimiter(',')
      ->check(CLI::IsMember(names));
  verb->add_flag("--json", options->json, "verdicts as JSON on stdout");
  verb->callback([options, &command] {
    command = [options] {
      try {
        return run_checks(*options);
      } catch (const Interrupted& i) {
        return 128 + i.signal;
      }
    };
  });
}

}  // namespace linnet
