// When a run saves, what, and how it takes that up again.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "linnet/run.h"
#include "linnet/text.h"
#include "linnet/weights.h"
#include "src/core/json.h"

namespace linnet {

namespace {

// Host copies of all of a trainer's tensors: what the training thread pays for a save.
struct Snapshot {
  struct Array {
    std::string name;
    Shape shape;
    std::vector<float> values;
  };
  std::vector<Array> arrays;
  Progress progress;
  RunState run;
  std::string choices;  // Backend::choices()
};

// Of a checkpoint: MANIFEST.json and state.json, and what the file system rounds up.
constexpr uint64_t kSmallFiles = 64 << 10;

// Steps between two checkpoints; 0: none but at the end.
int64_t interval_of(double epochs, const Trainer& trainer) {
  return epochs > 0 ? std::max<int64_t>(1, std::llround(epochs * double(trainer.steps_per_epoch()))) : 0;
}

Snapshot take(Trainer& trainer, const RunFolder& run) {
  Snapshot s;
  for (const auto& [name, tensor] : trainer.tensors()) {
    s.arrays.push_back({name, tensor.shape(), std::vector<float>(static_cast<size_t>(tensor.numel()))});
    trainer.net().backend().download(s.arrays.back().values.data(), tensor);
  }
  s.progress = trainer.progress();
  s.run = run.state();
  s.choices = trainer.net().backend().choices();
  return s;
}

// The weights by their names, for any tool; the rest as the flat arrays that they are (docs/DESIGN.md, "Checkpoints").
Checkpoint to_checkpoint(const Snapshot& s, ParamStore& store, const std::string& config,
                         const std::map<std::string, std::string>& facts) {
  Checkpoint c;
  c.step = s.progress.step;
  c.epoch = s.progress.epoch;
  c.facts = facts;
  c.tensors["model"] = name_weights(store, s.arrays[0].values, s.arrays[1].values);
  SafeTensors& optim = c.tensors["optim"];
  for (const Snapshot::Array& a : std::span(s.arrays).subspan(2)) {
    if (a.values.empty()) continue;
    const char* bytes = reinterpret_cast<const char*>(a.values.data());
    optim.tensors[a.name] = {"F32", {a.shape.begin(), a.shape.end()}, {bytes, bytes + a.values.size() * sizeof(float)}};
  }
  Json state = {{"config", config},
                {"progress", Json::parse(s.progress.to_json())},
                {"run",
                 {{"metrics_bytes", s.run.metrics_bytes},
                  {"metrics_xxh3", s.run.metrics_xxh3},
                  {"timing_bytes", s.run.timing_bytes},
                  {"best_val_acc", s.run.best_val_acc},
                  {"best_epoch", s.run.best_epoch},
                  {"wall_s", s.run.wall_s}}}};
  if (!s.choices.empty()) state["choices"] = s.choices;
  c.state = state.dump(1);
  return c;
}

// Of state.json's "run"; each key by its name where it is not what to_checkpoint() writes.
RunState run_state(const Json& json) {
  const auto value = [&](const char* key, const char* expected, const auto& fits) -> const Json& {
    if (!json.is_object() || !json.contains(key)) fail(Exit::checkpoint, "'run.{}' is missing", key);
    const Json& v = json.at(key);
    if (!fits(v)) fail(Exit::checkpoint, "'run.{}' is {}, expected {}", key, escaped(v.dump()), expected);
    return v;
  };
  const auto count = [&](const char* key) -> int64_t {
    return value(key, "a whole number from 0 on",
                 [](const Json& v) { return v.is_number_integer() && v.get<int64_t>() >= 0; });
  };
  const auto number = [&](const char* key, const char* expected, double least, double most) -> double {
    return value(key, expected,
                 [&](const Json& v) { return v.is_number() && v.get<double>() >= least && v.get<double>() <= most; });
  };
  RunState s;
  s.metrics_bytes = count("metrics_bytes");
  s.metrics_xxh3 = value("metrics_xxh3", "a text", [](const Json& v) { return v.is_string(); });
  s.timing_bytes = count("timing_bytes");
  s.best_val_acc = number("best_val_acc", "-1 to 1", -1, 1);
  s.best_epoch = count("best_epoch");
  s.wall_s = number("wall_s", "seconds", 0, 1e12);
  return s;
}

// Sets the trainer to the state of a checkpoint. Error(Exit::checkpoint) where it holds none that fits.
RunState take_up(Trainer& trainer, const Checkpoint& c, const std::string& origin) {
  for (const char* file : {"model", "optim"})
    if (!c.tensors.contains(file))
      fail(Exit::checkpoint, "{} has no {}.safetensors: it is not one that Linnet wrote for a run", origin, file);
  Backend& backend = trainer.net().backend();
  set_weights(backend, trainer.net().params(), c.tensors.at("model"), origin);
  const SafeTensors& optim = c.tensors.at("optim");
  size_t used = 0;
  for (const auto& [name, tensor] : trainer.tensors()) {
    if (name == "master" || name == "buffers" || tensor.numel() == 0) continue;
    const auto stored = optim.tensors.find(name);
    if (stored == optim.tensors.end() || stored->second.dtype != "F32" || stored->second.bytes.size() != tensor.bytes())
      fail(Exit::checkpoint, "{} has no '{}' of {} bytes: it belongs to another optimizer or model", origin, name,
           tensor.bytes());
    backend.upload(tensor, stored->second.bytes.data());
    ++used;
  }
  if (used != optim.tensors.size())
    fail(Exit::checkpoint, "{} has state that this optimizer does not: it belongs to another config", origin);
  const Json state = parse_json(c.state, origin, Exit::checkpoint);
  try {
    for (const char* part : {"progress", "run"})
      if (!state.is_object() || !state.contains(part)) fail(Exit::checkpoint, "'{}' is missing", part);
    const Progress progress = Progress::from_json(state.at("progress").dump(), "'progress'");
    if (progress.step != c.step || progress.epoch != c.epoch)
      fail(Exit::checkpoint, "'step' and 'epoch' are {} and {}, and {} and {} in MANIFEST.json", progress.step,
           progress.epoch, c.step, c.epoch);
    const RunState run = run_state(state.at("run"));
    const auto choices = state.find("choices");
    if (choices != state.end() && !choices->is_string()) fail(Exit::checkpoint, "'choices' is no text");
    trainer.restore(progress);
    if (choices != state.end()) backend.set_choices(choices->get<std::string>());
    return run;
  } catch (const Error& e) {
    fail(e.exit, "{}: state.json: {}", origin, e.what());
  }
}

// Under which config a checkpoint was saved; nullopt where it does not say so in a way that this version can read.
std::optional<Config> config_of(const Checkpoint& c, const std::string& origin) {
  try {
    return parse_config(parse_json(c.state, origin, Exit::checkpoint).at("config").get<std::string>(), origin);
  } catch (const std::exception&) {
    return {};
  }
}

// Whether a killed run without checkpoints has had one: that of the first boundary was saved before the second one's
// was begun, so rows behind the second one tell. By the run's own config, as the policy may be another from now on.
bool had_checkpoint(const RunFolder& run, const Trainer& trainer) {
  const int64_t interval = interval_of(load_config(run.dir() / "config.toml").checkpoint.epochs, trainer);
  return interval > 0 && run.last_logged_step() > 2 * interval;
}

}  // namespace

RunCheckpoints::RunCheckpoints(RunFolder& run, Trainer& trainer)
    : run_(run),
      config_(to_toml(trainer.config())),
      interval_(interval_of(trainer.config().checkpoint.epochs, trainer)),
      epochs_(trainer.config().train.epochs) {
  const auto& config = trainer.config().checkpoint;
  store_ = std::make_unique<CheckpointStore>(run.dir() / "checkpoints", Retention{int(config.keep), config.every});
  uint64_t bytes = kSmallFiles;
  for (const auto& [name, tensor] : trainer.tensors()) bytes += tensor.bytes();
  const auto saved = int64_t(store_->steps().size());  // of a run that is resumed: they have their place already
  require_free_space(run.dir(), bytes, int(std::max<int64_t>(0, config.keep - saved)));
  writer_ = std::make_unique<CheckpointWriter>(*store_, [this](const CheckpointWriter::Done& done) {
    const std::lock_guard lock(mutex_);
    warning_ += done.warning;
  });
}

RunCheckpoints::~RunCheckpoints() = default;

void RunCheckpoints::submit(Trainer& trainer, bool best, bool stopgap) {
  keep_logs();
  const auto snapshot = std::make_shared<Snapshot>(take(trainer, run_));
  saved_ = {snapshot->progress.step, snapshot->progress.in_epoch};
  writer_->submit(
      [s = snapshot, &store = trainer.net().params(), &run = run_, &config = config_, stopgap] {
        run.sync_logs();  // a checkpoint must not outlive, in a power cut, the lines that belong to it
        Checkpoint c = to_checkpoint(*s, store, config, run.facts());
        c.stopgap = stopgap;
        return c;
      },
      best);
}

void RunCheckpoints::wait() {
  keep_logs();
  tell_warnings();
}

// Waits for the save under way: it syncs what may be replaced here.
void RunCheckpoints::keep_logs() {
  writer_->wait();
  const std::string changed = run_.keep_logs();
  const std::lock_guard lock(mutex_);
  warning_ += changed;
}

void RunCheckpoints::tell_warnings() {
  std::string warning;
  {
    const std::lock_guard lock(mutex_);
    warning.swap(warning_);
  }
  for (size_t at = 0, end; (end = warning.find('\n', at)) != warning.npos; at = end + 1)
    if (const std::string line = warning.substr(at, end - at); told_.insert(line).second && tell_) tell_(line);
}

void RunCheckpoints::on_boundary(Trainer& trainer, bool epoch_done) {
  tell_warnings();
  const RunState run = run_.state();
  const bool best = epoch_done && run.best_val_acc > best_val_acc_;  // of this epoch: each better one is saved
  const bool over = epoch_done && (trainer.progress().epoch >= epochs_ || trainer.progress().stopped);
  const bool due = interval_ > 0 && trainer.global_step() % interval_ == 0;
  if (!due && !over && !(best && interval_ > 0)) return;
  if (epoch_done) best_val_acc_ = std::max(best_val_acc_, run.best_val_acc);
  submit(trainer, best, false);
}

void RunCheckpoints::save_now(Trainer& trainer, bool stopgap) {
  wait();
  const Progress p = trainer.progress();
  if (saved_ == std::pair(p.step, p.in_epoch)) return;
  submit(trainer, false, stopgap);
  wait();
}

bool RunCheckpoints::on_rewind(Trainer& trainer, int64_t newest) {
  try {
    wait();
  } catch (const Error& e) {  // it has not saved weights that are not finite: back to those before
    if (e.exit != Exit::diverged) throw;
    keep_logs();
  }
  if (store_->steps().empty() || !load(trainer, newest)) return false;
  if (!tell_) return true;
  for (const std::string& note : notes_) tell_(note);
  tell_(fmt::format("not finite: training goes back to the checkpoint of step {}, with half the learning rate",
                    trainer.global_step()));
  return true;
}

bool RunCheckpoints::load(Trainer& trainer, int64_t newest) {
  writer_->wait();
  notes_.clear();
  std::vector<Rejected> rejected;
  RunState run;
  const auto use = [&](const Checkpoint& c) {
    const std::string origin = fmt::format("checkpoint {} of {}", c.step, run_.dir().string());
    saved_config_ = config_of(c, origin);
    if (const auto config = c.facts.find("config");
        config != c.facts.end() && config->second != run_.facts().at("config")) {
      const std::string changes = saved_config_ ? unsafe_changes(differences(*saved_config_, trainer.config())) : "";
      fail(Exit::usage,
           "{} was saved under another config: config.toml was changed since, in more than the keys that may change{}. "
           "Put it back, or start a new run from the weights with `linnet fork`",
           origin, changes.empty() ? "" : ": " + changes);
    }
    run = take_up(trainer, c, origin);
    const int64_t in_epoch = trainer.progress().in_epoch;
    if (c.epoch + (in_epoch > 0 ? 1 : 0) > epochs_)
      fail(Exit::usage,
           "{} has {} epochs{} behind it, more than train.epochs = {}; evaluate an earlier checkpoint instead",
           run_.dir().string(), c.epoch, in_epoch > 0 ? fmt::format(" and {} steps of the next", in_epoch) : "",
           epochs_);
  };
  const std::optional<Checkpoint> found = store_->load_latest(rejected, use, newest);
  for (const Rejected& r : rejected) notes_.push_back(fmt::format("checkpoint {} is not used: {}", r.name, r.reason));
  const bool rewinding = newest != kNewest;
  if (!found && rewinding) return false;  // stopgaps at most
  if (!found) {
    if (run_.was_saved() || had_checkpoint(run_, trainer)) {
      const bool none_due = load_config(run_.dir() / "config.toml").checkpoint.epochs == 0;
      fail(Exit::checkpoint,
           "the checkpoints of {} are gone{}, and starting over would lose its weights and metrics; start a new run "
           "from the weights with `linnet fork`",
           run_.dir().string(), none_due ? " (or, with checkpoint.epochs = 0, there were none before its end)" : "");
    }
    run_.restore({});
    return false;
  }
  if (!run_.restore(run))  // from here on the folder changes
    notes_.push_back(fmt::format(
        "metrics.jsonl was changed since step {}: its rows are not all those that were written", found->step));
  saved_ = {found->step, trainer.progress().in_epoch};
  best_val_acc_ = run.best_val_acc;
  // Of an older Linnet's finished run, which says nothing of best weights, the weights are the best ones.
  const bool had_more_epochs = saved_config_ && saved_config_->train.epochs > epochs_;
  if (!rewinding && had_more_epochs && trainer.end_with_best()) submit(trainer, false, false);
  for (const auto& [key, value] : run_.facts()) {
    if (key == "config") continue;
    const auto then = found->facts.find(key);
    if (then != found->facts.end() && then->second != value)
      notes_.push_back(
          fmt::format("{} was {}, is {}: the run continues, but not bit for bit", key, escaped(then->second), value));
  }
  return true;
}

std::string unsafe_changes(const std::vector<ConfigChange>& changes) {
  std::string text;
  for (const ConfigChange& c : changes)
    if (!is_safe_to_change(c.key))
      text += fmt::format("{}{} ({} -> {})", text.empty() ? "" : ", ", c.key, c.from.empty() ? "none" : c.from,
                          c.to.empty() ? "none" : c.to);
  return text;
}

SafeTensors run_weights(const std::filesystem::path& run, std::string& origin, std::vector<std::string>& notes) {
  const std::filesystem::path file = run / "model.safetensors";
  std::error_code error;
  if (std::filesystem::is_directory(run / "checkpoints", error)) {
    std::vector<Rejected> rejected;
    const auto use = [](const Checkpoint& c) {
      if (!c.tensors.contains("model")) fail(Exit::checkpoint, "it has no model.safetensors");
    };
    try {
      if (auto found = load_latest_checkpoint(run / "checkpoints", rejected, use)) {
        for (const Rejected& r : rejected)
          notes.push_back(fmt::format("checkpoint {} is not used: {}", r.name, r.reason));
        if (!rejected.empty()) notes.push_back(fmt::format("the weights are those of step {}", found->step));
        origin = fmt::format("checkpoint {} of {}", found->step, run.string());
        return std::move(found->tensors.at("model"));
      }
    } catch (const Error& e) {  // none is sound: the run's last weights may be
      if (!std::filesystem::exists(file, error)) throw;
      notes.push_back(fmt::format("{}\nThe weights are those of {}, of which nothing tells whether they are whole.",
                                  e.what(), file.string()));
    }
  }
  origin = file.string();
  return read_safetensors(file);
}

}  // namespace linnet
