// Learning rate as a pure function of the step: nothing to save, and a resumed run cannot be wrong about it.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace linnet {

struct Config;

using Schedule = std::function<float(int64_t step)>;  // step is 0-based over the whole run

Schedule constant_lr(float lr);
// lr * gamma^(number of milestones reached): torch.optim.lr_scheduler.MultiStepLR. Milestones in steps.
Schedule multistep_lr(float lr, std::vector<int64_t> milestones, float gamma);
// floor + (lr - floor) (1 + cos(pi t)) / 2 with t from 0 at `begin` to 1 at `end` (Loshchilov and Hutter 2017;
// CosineAnnealingLR); floor from then on.
Schedule cosine_lr(float lr, int64_t begin, int64_t end, float floor);
// lr (step + 1) / steps for the first `steps` steps, `then` after that.
Schedule warmup_lr(float lr, int64_t steps, Schedule then);

struct ScheduleEntry {
  std::string name, summary;
  // warmup and total are in steps; per_epoch is the number of steps in an epoch.
  Schedule (*make)(const Config&, int64_t per_epoch, int64_t warmup, int64_t total);
};
const std::vector<ScheduleEntry>& schedules();

// What [schedule] and [optimizer] ask for; epochs become steps.
Schedule make_schedule(const Config&, int64_t steps_per_epoch);

}  // namespace linnet
