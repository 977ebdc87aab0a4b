// linnet check CONFIG
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <thread>

#include "cli.h"
#include "linnet/run.h"
#include "src/core/digest.h"
#include "src/core/file.h"
#include "src/core/json.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kSteps = 24, kSaveEvery = 5, kFewest = 8;

// A folder that goes when the check is over.
struct Scratch {
  fs::path path;
  Scratch() {
    std::string name = (fs::temp_directory_path() / "linnet-check-XXXXXX").string();
    if (!mkdtemp(name.data())) fail(Exit::checkpoint, "cannot make a temporary folder like {}", name);
    path = name;
  }
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// In a process of its own: trains in `dir` up to step `steps`, from the last checkpoint if there is one.
[[noreturn]] void train_in_child(const fs::path& dir, Config config, int64_t steps) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // it does not outlive the check
  try {
    const auto backend = make_backend(config.train.device, conv_method(config));
    const RunData data = load_run_data(config);
    Trainer trainer(config, *backend, data);
    auto run = fs::exists(dir / "config.toml")
                   ? std::make_unique<RunFolder>(dir, config, *backend, data, RunFolder::Existing{})
                   : std::make_unique<RunFolder>(dir, config, *backend, data);
    RunCheckpoints checkpoints(*run, trainer);
    checkpoints.load(trainer);
    trainer.run({run.get(), &checkpoints}, [&] { return trainer.global_step() >= steps; });
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
    if (kill_at > 0 && steps_logged(dir) >= kill_at) kill(child, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
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

bool check_resume(Config config) {
  const Scratch scratch;
  config.log.interval = 1;
  config.train.patience = 0;  // the steps are counted here
  int64_t steps = kSteps;
  {
    Config copy = config;
    const RunData data = load_run_data(copy);
    const int64_t per_epoch = steps_per_epoch(copy, data.train.size());
    steps = std::min(steps, per_epoch * config.train.epochs);
    config.checkpoint.epochs = double(kSaveEvery) / double(std::max<int64_t>(1, per_epoch));
  }
  if (steps < kFewest)
    fail(Exit::usage, "a run of {} steps is too short for this check, which needs {}: raise train.epochs", steps,
         kFewest);
  const fs::path straight = scratch.path / "straight", killed = scratch.path / "killed";
  run_child(straight, config, steps, 0);
  int kills = 0;
  for (const int64_t quarter : {1, 2, 3}) kills += run_child(killed, config, steps, quarter * steps / 4 + 1);
  run_child(killed, config, steps, 0);
  const std::string want = digest_of(straight, steps), got = digest_of(killed, steps);
  fmt::print("resume: {}  {} steps straight {}, killed {} times and resumed {}\n", want == got ? "PASS" : "FAIL", steps,
             want, kills, got);
  if (want != got)
    fmt::print(
        "        weights, optimizer state or metrics differ: this build or machine does not repeat its own bits\n");
  if (kills == 0) fmt::print("        the training was over before it could be killed: use a larger model or batch\n");
  return want == got && kills > 0;
}

}  // namespace

void add_check(CLI::App& app, Command& command) {
  struct Options {
    std::string config;
    std::vector<std::string> set;
    std::vector<std::string> only;
  };
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("check",
                                      "Check a config before a long run; exit code 5 when a check fails.\n\n"
                                      "  linnet check configs/resnet20.toml --only resume");
  verb->add_option("config", options->config, "TOML file")->required();
  verb->add_option("-s,--set", options->set, "override a key (may be repeated)")->allow_extra_args(false);
  verb->add_option("--only", options->only, "resume: a run killed by SIGKILL ends with the bits of one that was not")
      ->delimiter(',')
      ->check(CLI::IsMember({"resume"}));
  verb->callback([options, &command] {
    command = [options] {
      return int(check_resume(load_config(options->config, options->set)) ? Exit::ok : Exit::diverged);
    };
  });
}

}  // namespace linnet
