#include "linnet/schedule.h"

#include <cmath>

#include "linnet/config.h"
#include "linnet/registry.h"

namespace linnet {

namespace {
int64_t to_steps(double epochs, int64_t per_epoch) { return int64_t(std::llround(epochs * double(per_epoch))); }
}  // namespace

// Each formula is computed in double and rounded once.

Schedule constant_lr(float lr) {
  return [=](int64_t) { return lr; };
}

Schedule multistep_lr(float lr, std::vector<int64_t> milestones, float gamma) {
  return [=](int64_t step) {
    double factor = 1;
    for (const int64_t milestone : milestones)
      if (step >= milestone) factor *= double(gamma);
    return float(double(lr) * factor);
  };
}

Schedule cosine_lr(float lr, int64_t begin, int64_t end, float floor) {
  return [=](int64_t step) {
    if (step >= end) return floor;
    const double t = double(step - begin) / double(end - begin);
    return float(double(floor) + (double(lr) - double(floor)) * (1 + std::cos(3.14159265358979323846 * t)) / 2);
  };
}

Schedule warmup_lr(float lr, int64_t steps, Schedule then) {
  return [=, then = std::move(then)](int64_t step) {
    return step < steps ? float(double(lr) * double(step + 1) / double(steps)) : then(step);
  };
}

const std::vector<ScheduleEntry>& schedules() {
  static const std::vector<ScheduleEntry> table = {
      {"constant", "the base learning rate throughout",
       [](const Config& c, int64_t, int64_t, int64_t) { return constant_lr(float(c.optimizer.lr)); }},
      {"multistep", "times gamma at each milestone",
       [](const Config& c, int64_t per_epoch, int64_t, int64_t) {
         std::vector<int64_t> milestones;
         for (const double epoch : c.schedule.milestones) milestones.push_back(to_steps(epoch, per_epoch));
         return multistep_lr(float(c.optimizer.lr), std::move(milestones), float(c.schedule.gamma));
       }},
      {"cosine", "half a cosine from the base learning rate to min_lr, from the end of the warmup on",
       [](const Config& c, int64_t, int64_t warmup, int64_t total) {
         return cosine_lr(float(c.optimizer.lr), warmup, total, float(c.schedule.min_lr));
       }},
  };
  return table;
}

Schedule make_schedule(const Config& c, int64_t steps_per_epoch) {
  const int64_t warmup = to_steps(c.schedule.warmup, steps_per_epoch), total = c.train.epochs * steps_per_epoch;
  const ScheduleEntry& entry = find_entry(schedules(), "schedule", c.schedule.name);
  return warmup_lr(float(c.optimizer.lr), warmup, entry.make(c, steps_per_epoch, warmup, total));
}

}  // namespace linnet
