// The warnings that show while training.
#include <algorithm>
#include <cmath>

#include "linnet/optimizer.h"
#include "linnet/warnings.h"

namespace linnet {

namespace {

constexpr double kFlat = 0.01, kFalls = 0.002;    // of a loss near ln C
constexpr double kStands = 0.02, kMuch = 0.9;     // of the first loss; of ln C
constexpr int64_t kWindow = 25, kPatience = 100;  // steps
constexpr double kLow = 0.5;                      // of an accuracy
constexpr size_t kSlow = 5, kLong = 10;

std::vector<float> on_host(Backend& backend, const Tensor& x) {
  std::vector<float> values(static_cast<size_t>(x.numel()));
  backend.download(values.data(), x);
  return values;
}

// "layer1.0.conv1" of "layer1.0.conv1.weight".
std::string layer_of(const std::string& param) { return param.substr(0, param.rfind('.')); }

// Empty: what the table says, which is a larger rate first.
std::string w14_advice(const Config& c) {
  if (const UsualLr usual = usual_lr(c.optimizer); c.optimizer.lr > usual.high)
    return fmt::format("Nothing is learnt, and above {:.4g} a rate is large for {}: use {}", usual.high,
                       c.optimizer.name, shorter_steps(c));
  return "";
}

std::string w13_advice(const Config& c) {
  return fmt::format("Use {}, and check the data: linnet data verify", shorter_steps(c));
}

// Updates that are averages of many gradients seldom turn round: by chance, with momentum b, arccos(b) / pi of them, a
// seventh at 0.9. Where each follows a noisy gradient of its own, half of them do, and it takes more to be a fault.
double reversal_limit(const OptimizerConfig& o, bool full_batch) {
  const bool by_betas = o.name == "adam" || o.name == "adamw" || o.name == "nadam" || o.name == "radam";
  const double average = by_betas ? o.betas[0] : o.name == "lion" ? 0 : o.momentum;
  return full_batch ? 0.3 : average >= 0.8 ? 0.45 : 0.6;  // ResNet-20's published recipe shows 0.25 to 0.37
}

}  // namespace

Watchdog::Watchdog(const Config& config, int classes, std::function<void(const Warning&)> found)
    : config_(config), chance_loss_(std::log(double(classes))), found_(std::move(found)) {}

void Watchdog::raise(const std::string& id, std::string message, std::string advice) {
  if (raised_.insert(id).second) found_({id, std::move(message), false, std::move(advice)});
}

void Watchdog::forget() {
  row_step_ = -1;
  next_look_ = 0;
  look_ = false;
  window_loss_ = 0;
  window_steps_ = 0;
  first_mean_ = window_mean_ = std::numeric_limits<double>::quiet_NaN();
  recent_.clear();
  epochs_.clear();
  layers_.clear();
  best_loss_ = std::numeric_limits<double>::quiet_NaN();
  tenfold_ = gap_ = reversal_ = flat_ = lost_ = {};
}

// ---- Rows ----------------------------------------------------------------------------------------------------------

void Watchdog::on_step(int64_t step, int64_t) {
  if (step <= step_) {  // on_nonfinite = "rewind"
    raise("W13", fmt::format("step {} was not finite, and training went back to step {}", step_, step - 1),
          w13_advice(config_));
    forget();
  }
  step_ = step;
}

void Watchdog::on_row(const Row& row) {
  if (row.kind == "step") {
    judge_loss(row);
    look_ = row.step >= next_look_;
    reversed_share_ = row["reversed_share"];
  }
  if (row.kind == "epoch") {
    epochs_.push_back(row);
    judge_epochs();
  }
}

void Watchdog::judge_loss(const Row& row) {
  const int64_t steps = row_step_ < 0 ? std::min(row.step, config_.log.interval) : row.step - row_step_;
  row_step_ = row.step;
  loss_ = row["train/loss"];

  if (const double skipped = row["skipped"]; skipped > skipped_) {
    raise("W13",
          fmt::format("{} steps so far were not finite and left out, the last before step {}", skipped, row.step),
          w13_advice(config_));
    skipped_ = skipped;
  }
  if (std::isnan(loss_)) return;  // all its steps were left out
  if (double(row.epoch) >= config_.schedule.warmup) judge_flatness(row, steps);

  if (std::isnan(first_loss_)) first_loss_ = loss_;
  // A run that starts from trained weights may start near 0: it is lost when it guesses again.
  if (tenfold_.reaches(2, loss_ > std::max(10 * first_loss_, chance_loss_)))
    raise("W15",
          fmt::format("the training loss is {:.4g} at step {}, and was {:.4g} at first", loss_, row.step, first_loss_),
          "Use " + shorter_steps(config_));
  // One spike is soon forgotten; the third one is a habit. Small losses double by chance, so 0.5 has to come on top.
  if (recent_.size() == kLong) {
    std::vector<double> sorted(recent_.begin(), recent_.end());
    std::ranges::nth_element(sorted, sorted.begin() + kLong / 2);
    const double median = sorted[kLong / 2];
    spikes_ += loss_ > std::max(2 * median, median + 0.5);
    if (spikes_ >= 3)
      raise("W15", fmt::format("the training loss jumps: {:.4g} at step {}, after {:.4g}", loss_, row.step, median),
            "Use " + shorter_steps(config_));
    recent_.pop_front();
  }
  recent_.push_back(loss_);

  if (const double share = row["clipped_share"]; row.step >= 100 && share > 0.5)
    raise("W21", fmt::format("{:.0f} % of the steps up to step {} were clipped", 100 * share, row.step));
}

// Where nothing is learnt the loss need not be ln C: first weights may be sure of something, and wrong.
bool Watchdog::stands(double first, double before, double now) const {
  return std::fabs(now / first - 1) <= kStands && now > (1 - kFalls) * before && now > kMuch * chance_loss_;
}

// Means over windows of steps: the loss of one batch wanders about ln C, and one that falls passes it.
void Watchdog::judge_flatness(const Row& row, int64_t steps) {
  window_loss_ += loss_ * double(steps);
  window_steps_ += steps;
  if (window_steps_ < kWindow) return;
  const double mean = window_loss_ / double(window_steps_), before = std::exchange(window_mean_, mean);
  window_loss_ = 0;
  window_steps_ = 0;
  if (std::isnan(first_mean_)) first_mean_ = mean, first_window_ = row.step;
  const auto near = [&](double loss) { return std::fabs(loss / chance_loss_ - 1) <= kFlat; };
  if (near(before) && near(mean) && mean > (1 - kFalls) * before)
    raise("W14", fmt::format("the training loss stays at {:.3f}, that of guessing, up to step {}", mean, row.step),
          w14_advice(config_));
  if (row.step - first_window_ >= kPatience && stands(first_mean_, before, mean))
    raise("W14",
          fmt::format("the training loss is {:.4g} up to step {}, and was {:.4g} up to step {}", mean, row.step,
                      first_mean_, first_window_),
          w14_advice(config_));
}

void Watchdog::judge_epochs() {
  const Row& now = epochs_.back();
  const double train = now["train/acc"], val = now["val/acc"];  // NaN without validation: nothing holds then
  // Single epochs at a high learning rate may do badly on the validation images.
  if (gap_.reaches(3, train - val > 0.2))
    raise("W18", fmt::format("epoch {}: {:.1f} % of the training images are right, and {:.1f} % of the validation's",
                             now.epoch, 100 * train, 100 * val));

  if (now.epoch >= int64_t(kSlow) && train < kLow && val < kLow) {
    const bool stuck = epochs_.size() > kSlow && train - epochs_[epochs_.size() - 1 - kSlow]["train/acc"] < 0.02;
    if (stuck || now.epoch == config_.train.epochs)
      raise("W19", fmt::format("epoch {}: only {:.1f} % of the training images are right, and {:.1f} % of the "
                               "validation's",
                               now.epoch, 100 * train, 100 * val));
  }

  // The silent failures: no number is wrong, and yet nothing comes of it.
  const double loss = now["train/loss"], best_so_far = best_loss_;
  // Whole epochs speak where a run has too few rows of steps. An epoch of few steps is noise.
  if (epochs_.size() > 1 && double(now.epoch - 1) >= config_.schedule.warmup) {
    const Row &first = epochs_.front(), &before = epochs_[epochs_.size() - 2];
    if (now.step - before.step >= kWindow && stands(first["train/loss"], before["train/loss"], loss))
      raise("W14",
            fmt::format("the training loss is {:.4g} in epoch {}, and was {:.4g} in epoch {}", loss, now.epoch,
                        first["train/loss"], first.epoch),
            w14_advice(config_));
  }
  best_loss_ = std::fmin(best_loss_, loss);
  const bool hot = now["lr"] >= config_.optimizer.lr / 10;  // once it has cooled down, a flat loss is what is wanted
  if (flat_.reaches(int(kSlow), hot && train < 0.9 && loss > (1 - kFalls) * best_so_far))
    raise("W29", fmt::format("epoch {}: the training loss is {:.4g}, and in {} epochs has not come below {:.4g}",
                             now.epoch, loss, kSlow, best_so_far));
  if (lost_.reaches(2, now["val/loss"] > chance_loss_ && loss < chance_loss_ / 2))
    raise("W30",
          fmt::format("epoch {}: the training loss is {:.3g}, and that of the validation {:.3g}, above {:.3g} of "
                      "guessing",
                      now.epoch, loss, now["val/loss"], chance_loss_));

  if (epochs_.size() > kLong && !std::isnan(val)) {
    const auto window = epochs_.end() - kLong;
    const auto best = [](auto first, auto last, const char* name, double sign) {
      double found = -std::numeric_limits<double>::infinity();
      for (; first != last; ++first) found = std::max(found, sign * (*first)[name]);
      return found;
    };
    const auto no_better = [&](const char* name, double sign) {
      return best(window, epochs_.end(), name, sign) <= best(epochs_.begin(), window, name, sign);
    };
    const double before = (*(window - 1))["train/loss"], after = now["train/loss"];
    if (after < 0.9 * before && no_better("val/loss", -1) && no_better("val/acc", 1))
      raise("W20", fmt::format("in the {} epochs up to epoch {} the training loss has fallen from {:.4g} to {:.4g}, "
                               "and the validation has seen no new best",
                               kLong, now.epoch, before, after));
  }
}

// ---- Gradients and directions
// -----------------------------------------------------------------------------------------

void Watchdog::on_boundary(Trainer& trainer, bool) {
  if (look_) {
    next_look_ = trainer.global_step() + kLookEvery;
    look_at_gradients(trainer);
    look_at_reversals(trainer);
    if (++looks_ % 5 == 0) look_at_history(trainer);
  }
  look_ = false;
}

void Watchdog::look_at_gradients(Trainer& trainer) {
  const ParamStore& store = trainer.net().params();
  const std::vector<float> grad = trainer.gradient();
  std::vector<LayerGradient> layers;
  for (const Param* p : store.params()) {
    if (p->group < 0 || p->shape.rank() < 2) continue;
    double squares = 0;
    for (const float g : std::span(grad).subspan(size_t(p->offset), size_t(p->shape.numel())))
      squares += double(g) * double(g);
    layers.push_back({layer_of(p->name), std::sqrt(squares)});
  }
  judge_gradients(layers);
}

void Watchdog::judge_gradients(const std::vector<LayerGradient>& layers) {
  for (const auto& [layer, norm] : layers) {
    if (!std::isfinite(norm)) continue;  // W13's
    LayerStreaks& s = layers_[layer];
    // A norm falls with the loss: a small one is a fault only while there is much to learn.
    const bool small = norm > 0 && norm < 0.01 && loss_ > chance_loss_ / 2;
    const bool dead = s.zero.reaches(3, norm == 0), large = s.large.reaches(5, norm > 10);
    const bool vanishing = s.small.reaches(10, small);
    if (dead || large || vanishing || norm > 1000)
      raise("W16", fmt::format("the gradient of {} has a norm of {:.3g} at step {}{}", layer, norm, step_,
                               norm > 1000 ? "" : ", and for some time before"));
  }
}

void Watchdog::look_at_history(Trainer& trainer) {
  const Progress at = trainer.progress();
  if (at.step - at.phase_step < 100) return;  // a phase may have started the state anew
  const ParamStore& store = trainer.net().params();
  const Flat& flat = store.flat();
  const std::vector<Rule>& rules = trainer.updater().rules();
  std::vector<int> slots;
  for (const Rule& rule : rules) slots.push_back(square_slot(rule));
  if (std::ranges::all_of(slots, [](int slot) { return slot < 0; })) return;

  const std::vector<float> state = on_host(trainer.net().backend(), flat.slots);
  for (const Param* p : store.params()) {
    if (p->group < 0 || slots[size_t(p->group)] < 0) continue;
    const int64_t begin = slots[size_t(p->group)] * flat.n + p->offset;
    const auto squares = std::span(state).subspan(size_t(begin), size_t(p->shape.numel()));
    judge_history(p->name, double(std::ranges::count(squares, 0.f)) / double(squares.size()));
  }
}

void Watchdog::judge_history(const std::string& param, double share) {
  if (share >= 0.1)
    raise("W28", fmt::format("{:.0f} % of {} have never had a gradient up to step {}", 100 * share, param, step_));
}

// Lookahead goes back by design.
void Watchdog::look_at_reversals(Trainer& trainer) {
  if (config_.lookahead.k > 0 || std::isnan(reversed_share_)) return;
  const int64_t phase = trainer.progress().phase;
  const OptimizerConfig& o = phase == 0 ? config_.optimizer : config_.phases[size_t(phase) - 1].optimizer;
  judge_reversals(reversed_share_, reversal_limit(o, config_.train.accumulate == 0));
}

void Watchdog::judge_reversals(double share, double limit) {
  if (reversal_.reaches(5, share > limit))
    raise("W22", fmt::format("{:.0f} % of the weights go back on their last step, at step {}", 100 * share, step_));
}

}  // namespace linnet
