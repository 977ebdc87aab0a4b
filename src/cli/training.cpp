#include "training.h"

#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <utility>

#include "cli.h"
#include "console.h"
#include "linnet/tensorboard.h"
#include "linnet/text.h"
#include "src/core/file.h"
#include "src/core/json.h"

namespace linnet {

namespace {

// "90", "90s", "15m", "1.5h" in seconds; 0: no limit.
double seconds_of(const std::string& text) {
  if (text.empty()) return 0;
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string unit(end, text.data() + text.size());
  const double factor = unit.empty() || unit == "s" ? 1
                        : unit == "m"               ? 60
                        : unit == "h"               ? 3600
                        : unit == "d"               ? 86400
                                                    : 0;
  if (error != std::errc() || !(value > 0) || !std::isfinite(value) || factor == 0)
    fail(Exit::usage, "--max-time expects a time such as 90s, 15m, 1.5h or 2d, got '{}'", escaped(text));
  return value * factor;
}

// A warning that --strict makes an error: the weights are good.
struct StrictError : Error {
  using Error::Error;
};

// W13, with what the trainer cannot know: how a person can see whether it is the data.
std::string with_advice(const Diverged& d) {
  return fmt::format("{}, and check the data: linnet data verify. The last good step was {} (W13)", d.what(),
                     d.bad.step);
}

// Records some steps and writes them as a Chrome trace when they are over, or when the training is.
class TraceFile : public Observer {
 public:
  TraceFile(std::string path, CallLog& log, const ParamStore& params, int64_t first)
      : path_(std::move(path)), log_(log), params_(params), first_(first + kSkipped) {}
  void on_step(int64_t step, int64_t) override {
    if (step < first_ || written_) return;
    if (step == first_) {
      log_.start();
      begin_ = now_ns();
    } else {
      end_of(fmt::format("step {}", step));
      if (step == first_ + kSteps) write();
    }
  }
  // Evaluation is no part of the step that comes next.
  void on_boundary(Trainer& trainer, bool epoch_done) override {
    if (epoch_done && log_.on())
      end_of(fmt::format("end of epoch {}", trainer.global_step() / trainer.steps_per_epoch()));
  }
  // False: the training was over before there was anything.
  bool write() {
    log_.stop();
    if (written_) return true;
    if (phases_.empty()) return false;
    written_ = true;
    write_file_atomically(path_, chrome_trace(log_.spans(), params_, phases_), Exit::checkpoint);
    log_.clear();
    return true;
  }
  static constexpr int64_t kSkipped = 3, kSteps = 20;  // the first steps fill caches

 private:
  void end_of(std::string phase) {
    const int64_t now = now_ns(), begin = std::exchange(begin_, now);
    phases_.push_back({std::move(phase), begin, now - begin});
  }

  std::string path_;
  CallLog& log_;
  const ParamStore& params_;
  int64_t first_;
  bool written_ = false;
  int64_t begin_ = 0;  // of the current phase
  std::vector<PhaseTime> phases_;
};

// How the training went, of a finished run's summary.
std::string fit_text(const std::string& summary, const Warnings& warnings) {
  const Json json = Json::parse(summary);
  std::string text;
  if (json.contains("fit"))
    text +=
        fmt::format("fit: {}: {}\n", json["fit"]["verdict"].get<std::string>(), json["fit"]["text"].get<std::string>());
  std::string reached;
  if (json.contains("epochs_to"))
    for (const auto& [acc, epoch] : json["epochs_to"].items())
      reached += fmt::format("{}{:g} % {}", reached.empty() ? "" : ", ", 100 * std::stod(acc), epoch.get<int64_t>());
  if (!reached.empty()) text += fmt::format("epochs to an accuracy of: {}\n", reached);
  std::vector<std::string> seen;  // those before the first step are seen on the screen still
  for (const WarningEntry& w : warning_table())
    if (w.kind == "training" && std::ranges::find(warnings.told(), w.id) != warnings.told().end())
      seen.emplace_back(w.id);
  if (!seen.empty()) text += fmt::format("warnings while it trained: {}\n", fmt::join(seen, ", "));
  return text;
}

}  // namespace

std::vector<std::string> TrainingOptions::overrides() const {
  std::vector<std::string> all = set;
  if (seed) all.push_back(fmt::format("train.seed={}", *seed));
  if (epochs) all.push_back(fmt::format("train.epochs={}", *epochs));
  if (!device.empty()) all.push_back("train.device=" + device);
  if (no_graph) all.push_back("train.graph=false");
  return all;
}

void TrainingOptions::check() const {
  seconds_of(max_time);
  if (!profile.empty() && std::filesystem::exists(profile))
    fail(Exit::usage, "--profile {}: there is a file already; name another one or remove it", profile);
  if (!profile.empty()) require_absent(profile);  // also: its folder takes a file
}

void TrainingOptions::add_to(CLI::App& verb, bool fresh) {
  verb.add_option("-s,--set", set, "override a key: --set optimizer.lr=0.05 (may be repeated)")
      ->allow_extra_args(false);
  if (fresh) verb.add_option("-o,--out", out, "folder of the run; must not exist or be empty (default: below runs/)");
  verb.add_option("--device,--backend", device, "auto, cpu, cuda or check: the same as --set train.device=");
  verb.add_flag("--no-graph", no_graph, "the same as --set train.graph=false: a GPU gets each step call by call");
  if (fresh) verb.add_option("--seed", seed, "the same as --set train.seed=");
  verb.add_option("--epochs", epochs, "the same as --set train.epochs=");
  verb.add_option("--max-time", max_time, "save and stop after this time (90s, 15m, 1.5h), as SIGTERM does");
  verb.add_option("--profile", profile, "write a Chrome trace of 20 steps, after the first 3, to this file");
  verb.add_flag("--json", json, "print the run's summary as JSON on stdout");
  verb.add_flag("--strict", strict, "warnings end the run: `linnet list warnings`");
}

Workplace::Workplace(Config& config, const TrainingOptions& options)
    : data(load_run_data(config)), backend(make_backend(config.train.device, backend_options(config))) {
  for (const std::string& note : data.notes) tell("note: " + note + "\n");
  config.train.precision = name_of(precision_of(config, *backend));  // a resumed run goes on in the same one
  if (config.train.precision == "fp16" && backend->device() == Device::cpu)
    tell("note: the CPU computes fp16 through f32: for comparisons, it is slower than f32\n");
  if (!options.profile.empty()) {
    spans = std::make_shared<CallLog>();
    backend = make_profiler(std::move(backend), spans);
  }
  data.test();  // a damaged test set shows now, not after hours of training; it is measured once, at the end
}

void warn(Warnings& warnings, const std::vector<Warning>& found) {
  for (const Warning& w : found)
    if (const std::string line = warnings.tell_once(w); !line.empty()) tell(line + "\n");
  if (warnings.fatal()) fail(Exit::usage, "{}", warnings.reason());
}

int run_training(Trainer& trainer, RunFolder& run, RunCheckpoints& checkpoints, const Workplace& at, Warnings& warnings,
                 const TrainingOptions& o) {
  using Clock = std::chrono::steady_clock;
  const double limit = seconds_of(o.max_time);
  const auto started = Clock::now();
  const auto out_of_time = [&] {
    return limit > 0 && std::chrono::duration<double>(Clock::now() - started).count() > limit;
  };

  at.signals->begin();
  const auto caught = [&] { return at.signals->caught(); };
  std::signal(SIGPIPE, SIG_IGN);  // `linnet train ... | head` must not lose the run
  const Config& config = trainer.config();
  Console console(config.train.epochs, trainer.steps_per_epoch(), config.train.batch_size, trainer.global_step());
  Watchdog watchdog(config, at.data.train.classes, [&](const Warning& w) {
    const std::string line = warnings.tell_once(w);
    if (line.empty()) return;
    console.clear();
    tell(line + "\n");
  });
  checkpoints.tell_warnings_to([&](const std::string& warning) {
    console.clear();
    tell(fmt::format("warning: {}\n", warning));
  });
  std::optional<TensorBoard> tensorboard;
  std::optional<TraceFile> trace;
  std::vector<Observer*> observers = {&run, &checkpoints, &console, &watchdog};
  if (at.spans)
    observers.push_back(&trace.emplace(o.profile, *at.spans, trainer.net().params(), trainer.global_step()));
  Outcome outcome;
  std::string reason;
  try {
    if (config.log.tensorboard) {
      observers.push_back(&tensorboard.emplace(run.dir(), trainer));
      if (trainer.global_step() == 0) tensorboard->add_samples(at.data.train);
    }
    outcome = trainer.run(observers, [&] { return caught() != 0 || out_of_time() || warnings.fatal(); });
    if (trace && !trace->write())
      tell(fmt::format("note: --profile: no trace was written, as it begins after {} steps, and there were no more\n",
                       TraceFile::kSkipped));
    if (warnings.fatal()) {
      checkpoints.save_now(trainer);
      throw StrictError(Exit::diverged, warnings.reason());
    }
    if (outcome == Outcome::interrupted) {
      reason = caught() ? fmt::format("signal {}", caught()) : "--max-time";
      checkpoints.save_now(trainer);
      run.finish("interrupted", trainer, reason);
    } else {
      checkpoints.wait();
      if (tensorboard)
        tensorboard->add_confusion(trainer.test_predictions(), at.data.train.classes, trainer.global_step() + 1);
      run.finish("done", trainer);
    }
  } catch (const std::exception& e) {
    console.clear();
    const auto* error = dynamic_cast<const Error*>(&e);
    const auto* diverged = dynamic_cast<const Diverged*>(&e);
    const bool bad = error && error->exit == Exit::diverged && !dynamic_cast<const StrictError*>(&e);
    const std::string why = diverged ? with_advice(*diverged) : e.what();
    std::optional<BadStep> step;
    if (diverged)
      step = diverged->bad;
    else if (bad)  // the save behind a step found a state that is not finite
      step = {.step = trainer.global_step() - 1, .epoch = trainer.progress().epoch, .loss = NAN, .where = e.what()};
    // A device that has failed gives no weights, or wrong ones: what was saved before it stands.
    const bool lost = error && error->exit == Exit::device;
    run.fail_run(bad ? "diverged" : "failed", why, bad || lost ? nullptr : &trainer, step ? &*step : nullptr);
    if (diverged)
      throw Diverged(fmt::format("{}\nwhat led to it: linnet autopsy {}", why, shell_word(run.dir().string())),
                     diverged->bad);
    throw;
  }
  console.clear();
  if (outcome == Outcome::interrupted) {
    tell(fmt::format("stopped by {} after step {}; go on with: linnet resume {}\n", reason, trainer.global_step(),
                     shell_word(run.dir().string())));
    return 128 + (caught() ? caught() : SIGTERM);
  }
  if (o.json) {
    fmt::print("{}", run.summary());
    return int(Exit::ok);
  }
  const Progress end = trainer.progress();
  if (config.train.patience > 0)
    tell(fmt::format("{} the weights of epoch {} are restored, the best on {}\n",
                     end.stopped ? fmt::format("stopped early after epoch {}:", end.epoch) : "done:",
                     end.stop_watch.epoch, config.train.stop_metric));
  const Row& test = run.test();
  fmt::print("test accuracy {:.2f} %  (loss {:.4f})\n", 100 * test["test/acc"], test["test/loss"]);
  const std::pair<const char*, const char*> others[] = {{"test/tta_acc", "mean of its views"},
                                                        {"test/ema_acc", "averaged weights"},
                                                        {"test/ema_tta_acc", "averaged weights, mean of its views"}};
  for (const auto& [name, what] : others)
    if (!std::isnan(test[name])) fmt::print("              {:.2f} %  ({})\n", 100 * test[name], what);
  fmt::print("{}", fit_text(run.summary(), warnings));
  fmt::print("run: {}\n", escaped(run.dir().string(), std::string::npos));
  return int(Exit::ok);
}

}  // namespace linnet
