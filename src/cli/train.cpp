// linnet train CONFIG
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <optional>

#include "cli.h"
#include "console.h"
#include "linnet/run.h"

namespace linnet {

namespace {

volatile std::sig_atomic_t caught = 0;

// The first signal asks the trainer to stop after this step; the second one ends the process at once.
void on_signal(int signal) {
  if (caught) _exit(128 + signal);
  caught = signal;
}

void stop_on(int signal) {
  if (std::signal(signal, on_signal) == SIG_IGN) std::signal(signal, SIG_IGN);  // nohup's wish holds
}

struct Options {
  std::string config, out, device;
  std::vector<std::string> set;
  std::optional<int64_t> seed, epochs;
  bool json = false;
};

int train(const Options& o) {
  std::vector<std::string> overrides = o.set;
  if (o.seed) overrides.push_back(fmt::format("train.seed={}", *o.seed));
  if (o.epochs) overrides.push_back(fmt::format("train.epochs={}", *o.epochs));
  if (!o.device.empty()) overrides.push_back("train.device=" + o.device);
  Config config = load_config(o.config, overrides);

  const auto backend = make_backend(config.train.device);
  const RunData data = load_run_data(config);
  data.test();  // a damaged test set shows now, not after hours of training; it is measured once, at the end
  Trainer trainer(config, *backend, data);
  RunFolder run(o.out.empty() ? new_run_dir(config) : std::filesystem::path(o.out), config, *backend, data);

  tell(fmt::format("{} on {}: {} parameters; {} training, {} validation images; {} steps an epoch\nrun: {}\n",
                   config.model.name, backend->info().front().second, trainer.net().params().count(), data.train.size(),
                   data.val.size(), trainer.steps_per_epoch(), run.dir().string()));

  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) stop_on(signal);
  std::signal(SIGPIPE, SIG_IGN);  // `linnet train ... | head` must not lose the run
  Console console(config.train.epochs, trainer.steps_per_epoch(), config.train.batch_size);
  Outcome outcome;
  try {
    outcome = trainer.run({&run, &console}, [] { return caught != 0; });
    if (outcome == Outcome::interrupted)
      run.finish("interrupted", trainer.net(), fmt::format("signal {}", int(caught)));
    else
      run.finish("done", trainer.net());
  } catch (const std::exception& e) {
    console.clear();
    const auto* error = dynamic_cast<const Error*>(&e);
    const bool diverged = error && error->exit == Exit::diverged;
    run.fail_run(diverged ? "diverged" : "failed", e.what(), diverged ? nullptr : &trainer.net());
    throw;
  }
  console.clear();
  if (outcome == Outcome::interrupted) {
    tell(fmt::format("stopped by signal {} after step {}; the weights so far are in {}\n", int(caught),
                     trainer.global_step(), (run.dir() / "model.safetensors").string()));
    return 128 + caught;
  }
  if (o.json)
    fmt::print("{}", run.summary());
  else
    fmt::print("test accuracy {:.2f} %  (loss {:.4f})\nrun: {}\n", 100 * run.test()["test/acc"],
               run.test()["test/loss"], run.dir().string());
  return int(Exit::ok);
}

}  // namespace

void add_train(CLI::App& app, Command& command) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("train",
                                      "Train what a config file describes.\n\n"
                                      "  linnet train configs/resnet20.toml --seed 3 --set optimizer.lr=0.05");
  verb->add_option("config", options->config, "TOML file; `linnet config show FILE` explains its keys")->required();
  verb->add_option("-s,--set", options->set, "override a key: --set optimizer.lr=0.05 (may be repeated)")
      ->allow_extra_args(false);
  verb->add_option("-o,--out", options->out, "folder of the run; must not exist or be empty (default: below runs/)");
  verb->add_option("--device", options->device, "auto, cpu or cuda: the same as --set train.device=");
  verb->add_option("--seed", options->seed, "the same as --set train.seed=");
  verb->add_option("--epochs", options->epochs, "the same as --set train.epochs=");
  verb->add_flag("--json", options->json, "print the run's summary as JSON on stdout");
  verb->callback([options, &command] { command = [options] { return train(*options); }; });
}

}  // namespace linnet
