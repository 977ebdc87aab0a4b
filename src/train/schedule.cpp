#include "linnet/schedule.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "linnet/error.h"
#include "linnet/registry.h"

namespace linnet {

namespace {

constexpr double kPi = 3.14159265358979323846;

// From a (t = 0) to b (t = 1) along half a cosine.
double cosine(double a, double b, double t) { return b + (a - b) * (1 + std::cos(kPi * t)) / 2; }

int64_t to_ticks(double epochs, const Span& span) { return std::llround(epochs * double(span.per_epoch)); }

Schedule constant(const ScheduleConfig&, double lr, const Span&) {
  return [=](int64_t) { return lr; };
}

Schedule step(const ScheduleConfig& c, double lr, const Span& span) {
  return [=, gamma = c.gamma, size = std::max<int64_t>(to_ticks(c.step_size, span), 1)](int64_t tick) {
    return lr * std::pow(gamma, double(tick / size));
  };
}

Schedule multistep(const ScheduleConfig& c, double lr, const Span& span) {
  std::vector<int64_t> milestones;
  for (const double epoch : c.milestones) milestones.push_back(to_ticks(epoch, span));
  return [=, gamma = c.gamma](int64_t tick) {
    const auto reached = std::ranges::count_if(milestones, [&](int64_t m) { return tick >= m; });
    return lr * std::pow(gamma, double(reached));
  };
}

Schedule exponential(const ScheduleConfig& c, double lr, const Span& span) {
  return [=, gamma = c.gamma, floor = c.min_lr](int64_t tick) {
    return floor + (lr - floor) * std::pow(gamma, double(tick - span.warmup) / double(span.per_epoch));
  };
}

// min_lr + (lr - min_lr) (1 - t)^power, t from 0 at the warmup's end to 1 at the run's.
Schedule falling(double lr, double floor, double power, const Span& span) {
  return [=](int64_t tick) {
    if (tick >= span.total) return floor;
    return floor + (lr - floor) * std::pow(double(span.total - tick) / double(span.total - span.warmup), power);
  };
}
Schedule linear(const ScheduleConfig& c, double lr, const Span& span) { return falling(lr, c.min_lr, 1, span); }
Schedule polynomial(const ScheduleConfig& c, double lr, const Span& span) {
  return falling(lr, c.min_lr, c.power, span);
}

Schedule cosine_annealing(const ScheduleConfig& c, double lr, const Span& span) {
  if (c.period == 0)
    return [=, floor = c.min_lr](int64_t tick) {
      if (tick >= span.total) return floor;
      return cosine(lr, floor, double(tick - span.warmup) / double(span.total - span.warmup));
    };
  // SGDR (Loshchilov and Hutter 2017): period i has period * period_factor^i ticks.
  const auto first = double(std::max<int64_t>(to_ticks(c.period, span), 1));
  return [=, floor = c.min_lr, factor = c.period_factor](int64_t tick) {
    auto since = double(tick - span.warmup);
    double period = first;
    if (factor == 1) since = std::fmod(since, period);
    while (since >= period) {
      since -= period;
      period *= factor;
    }
    return cosine(lr, floor, since / period);
  };
}

// torch.optim.lr_scheduler.OneCycleLR (Smith and Topin 2018): up to lr, then down to almost nothing.
Schedule one_cycle(const ScheduleConfig& c, double lr, const Span& span) {
  const double first = lr / c.div_factor, last = first / c.final_div_factor;
  const auto end = double(span.total - 1);
  const double top = std::max(c.peak * double(span.total) - 1, 0.0);
  return [=](int64_t tick) {
    const auto t = double(tick);
    if (t < top) return cosine(first, lr, t / top);
    return t < end ? cosine(lr, last, (t - top) / (end - top)) : last;
  };
}

}  // namespace

const std::vector<ScheduleEntry>& schedules() {
  static const std::vector<ScheduleEntry> table = {
      {"constant", "the base learning rate throughout", {}, constant},
      {"step", "times gamma every step_size epochs", {"step_size", "gamma"}, step},
      {"multistep", "times gamma at each milestone", {"milestones", "gamma"}, multistep},
      {"exponential",
       "its distance from min_lr times gamma an epoch: a moving average on its way to min_lr",
       {"gamma", "min_lr"},
       exponential},
      {"cosine",
       "half a cosine from the base learning rate to min_lr, once or with warm restarts",
       {"min_lr", "period", "period_factor"},
       cosine_annealing},
      {"linear", "straight down to min_lr", {"min_lr"}, linear},
      {"polynomial", "down to min_lr along (1 - t)^power", {"min_lr", "power"}, polynomial},
      {"one_cycle",
       "up from base / div_factor to the base learning rate and down, in two half cosines",
       {"peak", "div_factor", "final_div_factor"},
       one_cycle},
      {"plateau",
       "times factor when the metric no longer becomes better",
       {"factor", "patience", "threshold", "cooldown", "min_lr", "metric", "counting"},
       constant},
  };
  return table;
}

Schedule make_schedule(const ScheduleConfig& c, double base_lr, int64_t steps_per_epoch, int64_t total_epochs) {
  const bool by_epoch = c.interval == "epoch";
  Span span{.per_epoch = by_epoch ? 1 : steps_per_epoch};
  span.warmup = to_ticks(c.warmup, span);
  span.total = total_epochs * span.per_epoch;
  const int64_t steps_per_tick = by_epoch ? steps_per_epoch : 1;
  const int64_t first = c.warmup_from == "zero" ? 0 : 1;  // the numerator of the first step: 0/W or 1/W
  const Schedule after = find_entry(schedules(), "schedule", c.name).make(c, base_lr, span);
  return [=](int64_t step) {
    const int64_t tick = step / steps_per_tick;
    return tick < span.warmup ? base_lr * double(tick + first) / double(span.warmup) : after(tick);
  };
}

ScheduleProblems schedule_problems(const ScheduleConfig& c, double base_lr, int64_t epochs, std::string_view length) {
  ScheduleProblems problems;
  const auto rule = [&](bool holds, std::vector<std::string_view> keys, std::string message) {
    if (!holds) problems.emplace_back(std::move(keys), std::move(message));
  };
  const bool by_epoch = c.interval == "epoch";
  rule(c.warmup <= double(epochs), {"schedule.warmup", "train.epochs"},
       fmt::format("schedule.warmup = {} is longer than {} = {}", c.warmup, length, epochs));
  rule(!by_epoch || c.warmup == std::floor(c.warmup), {"schedule.warmup", "schedule.interval"},
       fmt::format("schedule.warmup = {} must be whole epochs with schedule.interval = \"epoch\"", c.warmup));
  rule(!by_epoch || c.warmup == 0 || c.warmup_from != "zero", {"schedule.warmup_from", "schedule.interval"},
       "a warmup from zero with schedule.interval = \"epoch\" trains the first epoch with a learning rate of 0; use "
       "schedule.interval = \"step\" or schedule.warmup_from = \"base\"");
  const auto uses = [&](std::string_view key) {
    for (const ScheduleEntry& entry : schedules())
      if (entry.name == c.name) return std::ranges::find(entry.keys, key) != entry.keys.end();
    return false;  // an unknown name is reported by itself
  };
  if (uses("milestones")) {
    const auto& steps = c.milestones;
    const std::string listed = fmt::format("[{}]", fmt::join(steps, ", "));
    const bool increase = std::ranges::adjacent_find(steps, std::ranges::greater_equal()) == steps.end();
    rule(increase, {"schedule.milestones"}, fmt::format("schedule.milestones must increase strictly, got {}", listed));
    rule(steps.empty() || std::ranges::max(steps) < double(epochs), {"schedule.milestones", "train.epochs"},
         fmt::format("schedule.milestones must be below {} = {}, got {}", length, epochs, listed));
    rule(
        steps.empty() || std::ranges::min(steps) >= c.warmup, {"schedule.milestones", "schedule.warmup"},
        fmt::format("schedule.milestones must lie after the warmup of {} epochs, got {}; they count from its beginning",
                    c.warmup, listed));
  }
  if (uses("min_lr"))
    rule(c.min_lr <= base_lr, {"schedule.min_lr", "optimizer.lr"},
         fmt::format("schedule.min_lr = {} is above optimizer.lr = {}", c.min_lr, base_lr));
  if (uses("step_size"))
    rule(!by_epoch || c.step_size == std::floor(c.step_size), {"schedule.step_size", "schedule.interval"},
         fmt::format("schedule.step_size = {} must be whole epochs with schedule.interval = \"epoch\"", c.step_size));
  if (uses("period")) {
    rule(!by_epoch || c.period == std::floor(c.period), {"schedule.period", "schedule.interval"},
         fmt::format("schedule.period = {} must be whole epochs with schedule.interval = \"epoch\"", c.period));
    rule(c.period > 0 || c.period_factor == 1, {"schedule.period_factor"},
         fmt::format("schedule.period_factor = {} has no effect without a schedule.period", c.period_factor));
  }
  if (c.name == "one_cycle")
    rule(c.warmup == 0, {"schedule.warmup"},
         fmt::format("schedule.warmup = {}: one_cycle rises by itself, over schedule.peak of the run", c.warmup));
  return problems;
}

PhaseSpan phase_span(const Config& c, size_t index, int64_t first_epoch) {
  int64_t end = c.train.epochs;
  for (size_t i = c.phases.size(); i-- > index;)
    if (c.phases[i].plateau == 0) end = c.phases[i].epoch;
  return {first_epoch, end - first_epoch};
}

// ---- Plateau ----

Plateau::Plateau(const ScheduleConfig& c, double base_lr)
    : config_(c), base_lr_(base_lr), keras_(c.counting == "keras"), larger_(c.metric == "val/acc") {
  using Limits = std::numeric_limits<double>;
  state_.best = larger_ ? Limits::lowest() : Limits::max();
}

bool Plateau::better(double metric) const {
  const double sign = larger_ ? 1 : -1;
  const double bar = keras_ ? state_.best + sign * config_.threshold : state_.best * (1 + sign * config_.threshold);
  return larger_ ? metric > bar : metric < bar;
}

bool Plateau::update(double metric) {
  PlateauState& s = state_;
  const bool improved = better(metric), cooling = s.cooldown > 0;
  if (improved) s.best = metric;
  if (cooling) --s.cooldown;
  const bool counted = !improved && (keras_ ? s.cooldown == 0 : !cooling);
  if (improved || cooling) s.bad = 0;
  if (counted) ++s.bad;
  if (!counted || s.bad < config_.patience + (keras_ ? 0 : 1)) return false;

  s.bad = 0;
  s.cooldown = config_.cooldown;
  const double next = std::max(s.factor * config_.factor, config_.min_lr / base_lr_);
  const double least = keras_ ? 1e-12 * s.factor : 1e-8 / base_lr_;  // for Keras any, but a rounding error is none
  if (!(s.factor - next > least)) return false;
  s.factor = next;
  return true;
}

// ---- Batch sizes ----

double scaled_lr(double lr, const std::string& law, int64_t batch, int64_t base_batch) {
  const double ratio = double(batch) / double(base_batch);
  if (law == "linear") return lr * ratio;
  if (law == "sqrt") return lr * std::sqrt(ratio);
  if (law != "none") fail(Exit::usage, "unknown law '{}' of the learning rate; known are none, linear, sqrt", law);
  return lr;
}

int64_t batches_per_epoch(int64_t images, int64_t batch_size, bool drop_last) {
  return drop_last ? images / batch_size : (images + batch_size - 1) / batch_size;
}

int64_t steps_per_epoch(int64_t batches, int64_t accumulate, bool flush) {
  if (accumulate == 0) return std::min<int64_t>(batches, 1);
  return flush ? (batches + accumulate - 1) / accumulate : batches / accumulate;
}

int64_t steps_per_epoch(const Config& c, int64_t images) {
  return steps_per_epoch(batches_per_epoch(images, c.train.batch_size, c.data.drop_last), c.train.accumulate,
                         c.train.accumulate_tail == "flush");
}

double scaled_lr(const Config& c, double lr, int64_t images) {
  const int64_t batches = batches_per_epoch(images, c.train.batch_size, c.data.drop_last);
  const int64_t all = std::min(images, batches * c.train.batch_size);
  const int64_t per_step = c.train.accumulate == 0 ? all : std::min(all, c.train.accumulate * c.train.batch_size);
  return scaled_lr(lr, c.train.lr_scaling, per_step, c.train.lr_batch_size);
}

double range_test_lr(double first, double last, int64_t k, int64_t n) {
  return n < 2 ? first : first * std::pow(last / first, double(k) / double(n - 1));
}

}  // namespace linnet
