// linnet resume RUN, linnet fork WEIGHTS CONFIG
#include <fmt/ranges.h>

#include "cli.h"
#include "console.h"
#include "linnet/text.h"
#include "linnet/weights.h"
#include "src/core/file.h"
#include "training.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;

// A safe key may still move the learning rate: a cosine over more epochs is another curve.
std::string learning_rate_note(const Trainer& trainer, const Trainer& before) {
  const int64_t step = trainer.global_step();
  const double was = before.learning_rate(step), is = trainer.learning_rate(step);
  const int64_t last = trainer.steps_per_epoch() * trainer.config().train.epochs - 1;
  return fmt::format("learning rate: {:.6g} at the next step{}, {:.6g} at the last one\n", is,
                     was == is ? " as planned" : fmt::format(" ({:.6g} was planned)", was),
                     trainer.learning_rate(std::max(step, last)));
}

std::string changes_text(const std::vector<ConfigChange>& changes) {
  std::string text;
  for (const ConfigChange& c : changes)
    text += fmt::format("{}: {} -> {}\n", c.key, c.from.empty() ? "none" : c.from, c.to.empty() ? "none" : c.to);
  return text;
}

int resume(const std::string& target, const TrainingOptions& o) {
  o.check();
  const fs::path dir = target;
  if (!fs::exists(dir / "config.toml"))
    fail(Exit::usage, "there is no run in {}: expected a folder with a config.toml", target);
  const InputFile regular(dir / "config.toml", Exit::usage);  // a pipe would be waited for
  if (regular.size() == 0)
    fail(Exit::usage,
         "{} is empty; its text is \"config\" in the state.json of each of the run's checkpoints: put it back, or "
         "start a "
         "new run from the weights with `linnet fork`",
         (dir / "config.toml").string());
  Config then = load_config(dir / "config.toml"), config = load_config(dir / "config.toml", o.overrides());
  for (Config* c : {&then, &config})
    if (c->train.precision == "auto") c->train.precision = "f32";  // of a Linnet that knew nothing else
  const std::vector<ConfigChange> asked = differences(then, config);
  std::string changes = changes_text(asked);
  if (const std::string refused = unsafe_changes(asked); !refused.empty())
    fail(Exit::usage,
         "{} cannot change in the middle of a run; start a new one from its weights:\n  linnet fork {} {} --out NEW "
         "--set ...",
         refused, shell_word(target), shell_word((dir / "config.toml").string()));

  const Workplace at(config, o);
  RunFolder run(dir, config, *at.backend, at.data, RunFolder::Existing{});
  Trainer trainer(config, *at.backend, at.data);
  Warnings warnings(o.strict);
  warn(warnings, start_warnings(config, facts_of(trainer.net().params(), at.data.train.size())));
  RunCheckpoints checkpoints(run, trainer);
  const bool found = checkpoints.load(trainer);
  for (const std::string& note : checkpoints.notes()) tell(note + "\n");
  // Against what the checkpoint was saved under: an edit of config.toml is told, too.
  if (const auto& saved = checkpoints.saved_config()) {
    then = *saved;
    changes = changes_text(differences(then, config));
  }
  tell(changes);
  if (config.train.epochs != then.train.epochs) {
    const Progress p = trainer.progress();
    Trainer before(then, *at.backend, at.data);
    before.restore(p);
    trainer.continue_epochs();
    tell(learning_rate_note(trainer, before));
    if (config.train.patience > 0 && p.epoch == then.train.epochs && !p.best_in_use)
      tell(
          "note: an older Linnet has kept the best weights of this run alone, and it goes on from those: not bit for "
          "bit the run that it would have been with more epochs from the start\n");
  }
  if (found && config.train.eval_batch_size != then.train.eval_batch_size)
    tell("note: with another train.eval_batch_size the last bits of val/loss may be others\n");
  if (found)
    tell(fmt::format("resuming {} at step {}, epoch {} of {}\n", escaped(target, std::string::npos),
                     trainer.global_step(), std::min(trainer.progress().epoch + 1, config.train.epochs),
                     config.train.epochs));
  else
    tell(fmt::format("{} has no checkpoint yet: it starts at step 0\n", escaped(target, std::string::npos)));
  return run_training(trainer, run, checkpoints, at, warnings, o);
}

struct ForkOptions : TrainingOptions {
  std::string source, config;
  bool new_head = false;
};

// Of a run that goes on from another one's folder; a weights file says nothing about its config.
std::vector<Warning> warnings_of_change(const fs::path& source, const Config& now, int64_t images) {
  const fs::path config = source / "config.toml";
  if (!fs::exists(config)) return {};
  try {
    return change_warnings(load_config(config), now, images);
  } catch (const Error& e) {  // of another version of Linnet, say; the weights may be good all the same
    tell(fmt::format("note: {} cannot be read, so nothing is said about the changes: {}\n", config.string(), e.what()));
    return {};
  }
}

int fork_run(const ForkOptions& o) {
  o.check();
  Config config = load_config(o.config, o.overrides());
  std::string weights = o.source;  // read before a folder is made
  std::vector<std::string> notes;
  const SafeTensors tensors =
      fs::is_directory(o.source) ? run_weights(o.source, weights, notes) : read_safetensors(o.source);
  for (const std::string& note : notes) tell("note: " + note + "\n");
  const Workplace at(config, o);
  Trainer trainer(config, *at.backend, at.data);
  trainer.start_from(tensors, weights, o.new_head ? Head::fresh : Head::given);
  Warnings warnings(o.strict);
  std::vector<Warning> known = start_warnings(config, facts_of(trainer.net().params(), at.data.train.size()));
  std::ranges::copy(warnings_of_change(o.source, config, at.data.train.size()), std::back_inserter(known));
  warn(warnings, known);
  RunFolder run(o.out.empty() ? new_run_dir(config) : fs::path(o.out), config, *at.backend, at.data);
  RunCheckpoints checkpoints(run, trainer);
  checkpoints.save_now(trainer, false);  // the run's first state: without it a resume would start from random weights
  run.begin(weights);
  tell(fmt::format("{} from the weights {}\nrun: {}\n", config.model.name, escaped(weights, std::string::npos),
                   escaped(run.dir().string(), std::string::npos)));
  return run_training(trainer, run, checkpoints, at, warnings, o);
}

}  // namespace

void add_resume(CLI::App& app, Command& command) {
  auto target = std::make_shared<std::string>();
  auto options = std::make_shared<TrainingOptions>();
  CLI::App* verb = app.add_subcommand("resume",
                                      "Go on with a run that was stopped, exactly where it stood.\n\n"
                                      "  linnet resume runs/NAME\n"
                                      "  linnet resume runs/NAME --epochs 40");
  verb->add_option("run", *target, "run folder")->required();
  options->add_to(*verb, false);
  verb->callback([=, &command] { command = [=] { return resume(*target, *options); }; });
}

void add_fork(CLI::App& app, Command& command) {
  auto options = std::make_shared<ForkOptions>();
  CLI::App* verb = app.add_subcommand("fork",
                                      "Start a new run from the weights of another, or of a file.\n\n"
                                      "  linnet fork runs/NAME configs/resnet20.toml --out runs/NEW\n"
                                      "  linnet fork net.safetensors mine.toml --new-head    (other classes)");
  verb->add_option("weights", options->source, "run folder or .safetensors file")->required();
  verb->add_option("config", options->config, "TOML file of the new run")->required();
  verb->add_flag("--new-head", options->new_head, "the last layer starts anew, for other classes");
  options->add_to(*verb, true);
  verb->callback([=, &command] { command = [=] { return fork_run(*options); }; });
}

}  // namespace linnet
