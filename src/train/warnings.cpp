// The table of warnings, and those that follow from the config, the model and the data alone.
#include "linnet/warnings.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

namespace linnet {

const std::vector<WarningEntry>& warning_table() {
  static const std::vector<WarningEntry> table = {
      {"W1", "start", "betas[0] is not below betas[1]",
       "The average of the squares has to be the longer one: betas = [0.9, 0.999] (lion: [0.9, 0.99])"},
      {"W2", "start",
       "optimizer.lr is out of the usual range: adam, adamw, nadam, radam and rmsprop 1e-4 to 1e-2; sgd, sgdw, nag, "
       "adagrad and muon 1e-3 to 0.1 (form ewa: lr (1 - momentum)); lion 1e-5 to 1e-3",
       "Start in the usual range, and search by factors of 3 from there"},
      {"W3", "start", "betas[1] is below 0.99 in adam, adamw, nadam or radam",
       "The step size then follows the noise of single batches: use 0.99 to 0.999"},
      {"W4", "start",
       "a note: a beta, momentum or alpha is below 0.5 (0 is a choice, not a mistake). 1 and more is an error of the "
       "config",
       "So short an average holds hardly more than the last gradient: usual are 0.9 to 0.999"},
      {"W5", "error", "optimizer.eps is below 1e-10: an error of the config",
       "In single precision so small an eps no longer bounds the step: use 1e-8"},
      {"W6", "start", "adam, nadam or radam with weight_decay as L2, which passes through the moments",
       "Use adamw, or form = \"decoupled\" of nadam and radam: there the decay is not divided by the gradient's size"},
      {"W7", "start", "rmsprop with alpha of 0.999 or more and without correction",
       "Its first steps are lr / sqrt(1 - alpha), 32 times lr: use form = \"corrected\", or alpha = 0.99"},
      {"W8", "start", "fewer than 8 or more than 256 images in a step (train.batch_size times train.accumulate)",
       "Usual are 32 to 128. A small batch makes noisy steps, a large one few; change the learning rate with it "
       "(train.lr_scaling)"},
      {"W9", "start",
       "batch norm with train.batch_size below 16; below 32 a note. One value per channel (a batch of 1 after a linear "
       "layer) is an error",
       "The statistics of so few images are noise: use a batch of 32 or more, or a model without batch norm"},
      {"W10", "start", "data.shuffle is off, with more than one step an epoch",
       "Batches that are the same in every epoch, in the order of the files, bias the steps: data.shuffle = true"},
      {"W11", "start", "batch norm, and data.drop_last = false with images left over for a smaller last batch",
       "Its statistics are noisier than all others and weigh as much: data.drop_last = true"},
      {"W12", "start",
       "a fork whose images per step differ by 1.5 times or more from those of the run it comes from, at the same "
       "learning rate",
       "Change the learning rate with the batch: train.lr_scaling = \"linear\" (\"sqrt\" for adam and its kin)"},
      {"W13", "training",
       "the loss or a gradient is not finite. train.on_nonfinite = \"stop\": an error with the step and the layer; "
       "\"skip\" and \"rewind\": this warning",
       "Use a smaller optimizer.lr, optimizer.clip_norm = 1 or a longer schedule.warmup, and check the data: linnet "
       "data verify"},
      {"W14", "training",
       "in two successive windows of 25 steps (or a row, if that is longer) the mean training loss is within 1 % of "
       "ln(classes) and does not fall by 0.2 %; or it does not fall by 0.2 %, is within 2 % of the first window's 100 "
       "steps later (of the first epoch's, in epochs of 25 steps or more), and above 0.9 ln(classes); the warmup is "
       "not counted",
       "Nothing is learnt: try 3 to 10 times the learning rate, and check the labels, frozen groups and the first "
       "layers' gradients"},
      {"W15", "training",
       "the training loss is above 10 times its first value in two rows, or jumps above twice the median of the last "
       "10 rows (by 0.5 at least) for the third time",
       "Use a smaller optimizer.lr, optimizer.clip_norm = 1 or a longer schedule.warmup"},
      {"W16", "training",
       "the gradient of a layer's weights has a norm of 0 three times in a row, above 10 five times, above 1000 once, "
       "or below 0.01 ten times while the loss is above half of ln(classes)",
       "Exploding: a smaller optimizer.lr or optimizer.clip_norm. Vanishing: batch norm, shortcuts, another "
       "initialisation or activation. 0: the layer is cut off, or its ReLUs are dead"},
      {"W17", "error", "no parameter can be trained: an error", "Leave one [[group]] without frozen = true"},
      {"W18", "training",
       "the training accuracy is more than 20 points above that of the validation for three epochs in a row",
       "The net learns its images by heart: more augmentation, a larger weight_decay, train.patience, a smaller batch"},
      {"W19", "training",
       "both accuracies are below 50 %, and at epoch 5 or later the run ends or the training accuracy has risen by "
       "less "
       "than 2 points in 5 epochs",
       "Use a larger model, more epochs, another learning rate or less regularisation"},
      {"W20", "training",
       "in 10 epochs the training loss has fallen by more than 10 %, and neither validation loss nor accuracy has come "
       "to a new best",
       "What is learnt now does not carry over: stop early (train.patience), regularise more, or change to sgd by a "
       "[[phase]]"},
      {"W21", "training", "more than half of the steps were clipped, after 100 steps",
       "Clipping has become the step size: a smaller optimizer.lr, or a larger optimizer.clip_norm"},
      {"W22", "training",
       "more than 30 % of the weights go back in a step on what they did in the one before, five looks in a row; 45 % "
       "with momentum and batches, 60 % where each step follows one noisy gradient (no momentum or beta of 0.8, lion): "
       "half is chance there. Not looked at under Lookahead, which goes back by design",
       "The steps zigzag: optimizer.momentum = 0.9, a smaller optimizer.lr or a larger batch"},
      {"W23", "start",
       "a [[phase]] or a fork changes the momentum at the same lr, so that lr / (1 - momentum) jumps by 1.5 times or "
       "more",
       "Keep lr / (1 - momentum): from momentum 0.9 to 0, ten times the lr"},
      {"W24", "error", "evaluation in training mode: cannot happen, batch norm refuses it", "Nothing to do"},
      {"W25", "error",
       "a checkpoint without the state of the optimizer, of the schedule or of the random numbers: an error",
       "Start a new run from its weights: linnet fork"},
      {"W26", "start", "56 or more layers, or more than a million parameters, without warmup",
       "schedule.warmup = 1 or more"},
      {"W27", "error", "data.mean and data.std make values of the input that are not finite: an error",
       "Leave data.mean and data.std out: they are measured"},
      {"W28", "training",
       "after 100 steps, a tenth of a parameter has never had a gradient: its rate is lr / eps. Also at the start, "
       "where "
       "lr / eps is 1e7 or more (adam and its kin, rmsprop)",
       "A first gradient, however small, makes a whole step: use a usual lr (W2) or a larger eps (1e-8 to 1e-4), and "
       "look for dead units"},
      {"W29", "training",
       "in five epochs in a row the training loss has not come 0.2 % below its best so far, with less than 90 % of "
       "the "
       "images right and a learning rate above a tenth of optimizer.lr",
       "Nothing more is learnt at this rate: let the schedule lower it, or use 3 to 10 times less (or more, where the "
       "loss has hardly fallen at all)"},
      {"W30", "training",
       "in two epochs in a row the validation loss is above that of guessing, ln(classes), and the training loss below "
       "half of it",
       "The net is sure, and wrong about what it has not seen: check that both splits have the same labels and "
       "preprocessing, batch norm's statistics (linnet check --only eval), and regularise more"},
  };
  return table;
}

std::string Warnings::tell_once(const Warning& w) {
  if (!seen_.insert(w.id).second) return "";
  if (!w.note) told_.push_back(w.id);
  const auto entry = std::ranges::find(warning_table(), w.id, &WarningEntry::id);
  require(entry != warning_table().end(), "[warnings] there is no {}", w.id);
  return fmt::format("{} {}: {}. {}.", w.note ? "note" : "warning", w.id, w.message,
                     w.advice.empty() ? entry->advice : std::string_view(w.advice));
}

std::string shorter_steps(const Config& c) {
  std::vector<std::string_view> ways = {"a smaller optimizer.lr",
                                        c.schedule.warmup > 0 ? "a longer schedule.warmup" : "schedule.warmup = 1"};
  if (c.clip.norm == 0 || c.clip.norm > 1) ways.emplace_back("optimizer.clip_norm = 1");
  const std::string_view last = ways.back();
  ways.pop_back();
  return fmt::format("{} or {}", fmt::join(ways, ", "), last);
}

std::string Warnings::reason() const {
  return fmt::format("--strict: {} {} an error (`linnet list warnings` says what each means)", fmt::join(told_, ", "),
                     told_.size() == 1 ? "is" : "are");
}

namespace {

bool is_one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::ranges::find(names, name) != names.end();
}
bool is_adam(const OptimizerConfig& o) { return is_one_of(o.name, {"adam", "adamw", "nadam", "radam"}); }
bool has_betas(const OptimizerConfig& o) { return is_adam(o) || o.name == "lion"; }
bool has_momentum(const OptimizerConfig& o) {
  return is_one_of(o.name, {"sgd", "sgdw", "nag", "rmsprop", "muon"}) && o.momentum > 0;
}
bool is_average(const OptimizerConfig& o) { return is_one_of(o.form, {"ewa", "ewa_corrected"}); }

// What momentum makes of a constant gradient of 1: a step of so many lr.
double momentum_gain(const OptimizerConfig& o) {
  if (!has_momentum(o) || is_average(o) || o.name == "muon") return 1;
  return (1 - o.dampening) / (1 - o.momentum);
}

int64_t images_per_step(const Config& c, int64_t images) {
  return c.train.accumulate > 0 ? std::min(c.train.batch_size * c.train.accumulate, images) : images;
}

// W1 to W7 and W28, of one optimizer; f(id, message, note).
template <class F>
void judge_optimizer(const OptimizerConfig& o, F&& f) {
  if (has_betas(o) && o.betas[0] >= o.betas[1])
    f("W1", fmt::format("betas[0] = {} is not below betas[1] = {}", o.betas[0], o.betas[1]), false);

  if (const UsualLr usual = usual_lr(o); !usual.holds(o.lr))
    f("W2",
      fmt::format("lr = {} is out of the range usual for {}, {:.4g} to {:.4g}", o.lr, o.name, usual.low, usual.high),
      false);

  if (is_adam(o) && o.betas[1] < 0.99) f("W3", fmt::format("betas[1] = {} is below 0.99", o.betas[1]), false);

  const auto is_short = [&](const char* name, double beta) {
    if (beta > 0 && beta < 0.5) f("W4", fmt::format("{} = {} is below 0.5", name, beta), true);
  };
  if (has_betas(o)) {
    is_short("betas[0]", o.betas[0]);
    is_short("betas[1]", o.betas[1]);
  }
  if (has_momentum(o)) is_short("momentum", o.momentum);
  if (o.name == "rmsprop") is_short("alpha", o.alpha);

  const bool l2 = is_one_of(o.name, {"adam", "nadam", "radam"}) && o.form != "decoupled" && o.preset != "keras";
  if (l2 && o.weight_decay > 0)
    f("W6", fmt::format("{} adds weight_decay = {} to the gradient", o.name, o.weight_decay), false);

  if (o.name == "rmsprop" && o.alpha >= 0.999 && !is_one_of(o.form, {"corrected", "accumulate"}))
    f("W7", fmt::format("rmsprop with alpha = {} and form '{}' corrects no start", o.alpha, o.form), false);

  const double divisor = is_one_of(o.form, {"inside", "eps_inside"}) ? std::sqrt(o.eps) : o.eps;
  if ((is_adam(o) || o.name == "rmsprop") && o.lr / divisor >= 1e7)
    f("W28", fmt::format("without gradients so far, a parameter's rate is lr / eps = {:.3g}", o.lr / divisor), false);
}

// Whether the momentum of `now` makes other steps than that of `before`, and lr does not make up for it.
std::string momentum_jump(const OptimizerConfig& before, const OptimizerConfig& now) {
  const auto family = [](const OptimizerConfig& o) {
    return is_one_of(o.name, {"sgd", "sgdw", "nag"}) ? "sgd" : o.name == "rmsprop" ? "rmsprop" : "";
  };
  const double was = momentum_gain(before), is = momentum_gain(now), ratio = is / was;
  const bool same_lr = std::fabs(now.lr / before.lr - 1) < 0.01;
  if (*family(now) == 0 || std::string_view(family(now)) != family(before) || !same_lr) return "";
  if (ratio < 1.5 && ratio > 1 / 1.5) return "";
  return fmt::format("at the same lr = {}, momentum {} after {} makes the steps {:.3g} times as long", now.lr,
                     now.momentum, before.momentum, ratio);
}

}  // namespace

UsualLr usual_lr(const OptimizerConfig& o) {
  const double longer = has_momentum(o) && is_average(o) ? 1 / (1 - o.momentum) : 1;
  const auto range = [&](double low, double high) { return UsualLr{low * longer, high * longer}; };
  if (is_adam(o) || o.name == "rmsprop") return range(1e-4, 1e-2);
  if (o.name == "lion") return range(1e-5, 1e-3);
  return range(1e-3, 1e-1);
}

bool UsualLr::holds(double lr) const {
  constexpr double kRounding = 1e-9;  // 0.1 / (1 - 0.9) is 1, or a bit less
  return lr >= low * (1 - kRounding) && lr <= high * (1 + kRounding);
}

RunFacts facts_of(ParamStore& store, int64_t images) {
  RunFacts facts{.images = images, .parameters = store.count()};
  for (const Param* p : store.params()) facts.depth += p->shape.rank() >= 2;
  for (const Buffer& b : store.buffers()) facts.batch_norm |= b.name.ends_with("running_var");
  return facts;
}

std::vector<Warning> start_warnings(const Config& c, const RunFacts& facts) {
  for (size_t i = 0; i < c.data.mean.size(); ++i)
    for (const double pixel : {0., 1.})
      if (const auto value = float((pixel - c.data.mean[i]) / c.data.std[i]); !std::isfinite(value))
        fail(Exit::usage,
             "W27: data.mean = {} and data.std = {} make input values of {}. Leave both out: they are "
             "measured",
             c.data.mean[i], c.data.std[i], value);

  std::vector<Warning> all;
  // Of several places with the same fault, all are in one message.
  const auto add = [&](const std::string& id, const std::string& message, bool note = false) {
    const auto same = std::ranges::find(all, id, &Warning::id);
    if (same == all.end()) return all.push_back({id, message, note});
    same->message += "; " + message;
    same->note = same->note && note;
  };
  // Groups and phases take over what they do not set: the same fault is told of the first only.
  std::set<std::pair<std::string, std::string>> known;
  const auto judge = [&](const std::string& place, const OptimizerConfig& o) {
    judge_optimizer(o, [&](const char* id, const std::string& message, bool note) {
      if (known.insert({id, message}).second) add(id, place + message, note);
    });
  };
  judge("", c.optimizer);
  for (const GroupConfig& g : c.groups)
    if (!g.frozen) judge(fmt::format("[[group]] {}: ", g.match), g.optimizer);
  for (size_t i = 0; i < c.phases.size(); ++i) judge(fmt::format("[[phase]] {}: ", i + 1), c.phases[i].optimizer);

  const int64_t batch = c.train.batch_size, per_step = images_per_step(c, facts.images);
  if (per_step < 8 || per_step > 256) add("W8", fmt::format("{} images in a step", per_step));
  if (facts.batch_norm && batch < 32)
    add("W9", fmt::format("batch norm over batches of {} images", batch), batch >= 16);
  if (!c.data.shuffle && steps_per_epoch(c, facts.images) > 1) add("W10", "data.shuffle is off");
  if (const int64_t rest = facts.images % batch; facts.batch_norm && !c.data.drop_last && rest > 0)
    add("W11", fmt::format("batch norm, and a last batch of {} images instead of {}", rest, batch));
  for (size_t i = 0; i < c.phases.size(); ++i) {
    const std::string jump = momentum_jump(i == 0 ? c.optimizer : c.phases[i - 1].optimizer, c.phases[i].optimizer);
    if (!jump.empty()) add("W23", fmt::format("[[phase]] {}: {}", i + 1, jump));
  }
  const bool warm = c.schedule.warmup > 0 || c.schedule.name == "one_cycle";  // which starts with a rise of its own
  if ((facts.depth >= 56 || facts.parameters > 1'000'000) && !warm)
    add("W26", fmt::format("{} layers and {} parameters start without warmup", facts.depth, facts.parameters));
  std::ranges::stable_sort(all, {}, [](const Warning& w) { return std::stoi(w.id.substr(1)); });
  return all;
}

std::vector<Warning> change_warnings(const Config& before, const Config& now, int64_t images) {
  std::vector<Warning> all;
  const double was = double(images_per_step(before, images)), is = double(images_per_step(now, images));
  const double lr_was = scaled_lr(before, before.optimizer.lr, images), lr = scaled_lr(now, now.optimizer.lr, images);
  if (std::max(is / was, was / is) >= 1.5 && std::fabs(lr / lr_was - 1) < 0.01)
    all.push_back({"W12", fmt::format("{} images in a step, and {} before, at the same lr = {}", is, was, lr)});
  if (const std::string jump = momentum_jump(before.optimizer, now.optimizer); !jump.empty())
    all.push_back({"W23", jump});
  return all;
}

}  // namespace linnet
