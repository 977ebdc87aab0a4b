// linnet train CONFIG
#include "cli.h"
#include "console.h"
#include "linnet/text.h"
#include "training.h"

namespace linnet {

namespace {

int train(const std::string& file, const TrainingOptions& o) {
  o.check();
  Config config = load_config(file, o.overrides());
  const Workplace at(config, o);
  Trainer trainer(config, *at.backend, at.data);
  Warnings warnings(o.strict);
  warn(warnings, start_warnings(config, facts_of(trainer.net().params(), at.data.train.size())));
  RunFolder run(o.out.empty() ? new_run_dir(config) : std::filesystem::path(o.out), config, *at.backend, at.data);
  RunCheckpoints checkpoints(run, trainer);
  run.begin();
  tell(fmt::format("{} on {}, {}: {} parameters; {} training, {} validation images; {} steps an epoch\nrun: {}\n",
                   config.model.name, at.backend->info().front().second, config.train.precision,
                   trainer.net().params().count(), at.data.train.size(), at.data.val.size(), trainer.steps_per_epoch(),
                   escaped(run.dir().string(), std::string::npos)));
  return run_training(trainer, run, checkpoints, at, warnings, o);
}

}  // namespace

void add_train(CLI::App& app, Command& command) {
  auto config = std::make_shared<std::string>();
  auto options = std::make_shared<TrainingOptions>();
  CLI::App* verb = app.add_subcommand("train",
                                      "Train what a config file describes.\n\n"
                                      "  linnet train configs/resnet20.toml --seed 3 --set optimizer.lr=0.05");
  verb->add_option("config", *config, "TOML file; `linnet config show FILE` explains its keys")->required();
  options->add_to(*verb, true);
  verb->callback([=, &command] { command = [=] { return train(*config, *options); }; });
}

}  // namespace linnet
