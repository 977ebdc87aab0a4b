// Learning rates as pure functions of the step: nothing to save, and a resumed run cannot be wrong about them. Only the
// plateau depends on what training measures; its few numbers are in the checkpoint. All of it is computed in double.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "linnet/config.h"

namespace linnet {

using Schedule = std::function<double(int64_t step)>;  // step is 0-based over the run, or over its phase

// The lengths behind a schedule, in ticks: a tick is a step, or an epoch with interval = "epoch".
struct Span {
  int64_t per_epoch, warmup, total;
};

struct ScheduleEntry {
  std::string name, summary;
  std::vector<std::string_view> keys;  // of [schedule] that it uses, beside name, interval, warmup and warmup_from
  // The learning rate at a tick after the warmup; `lr` is the base rate.
  Schedule (*make)(const ScheduleConfig&, double lr, const Span&);
};
const std::vector<ScheduleEntry>& schedules();

// The learning rate of a run or phase of so many epochs. Lengths in epochs are rounded to whole ticks. With interval =
// "epoch" all steps of an epoch have the value of its first one, as PyTorch's per-epoch schedulers give it. The warmup
// is part of the run: milestones and step_size count from the run's start, what falls without them (exponential,
// cosine, linear, polynomial) starts at the warmup's end. Error(Exit::usage) for an unknown name.
Schedule make_schedule(const ScheduleConfig&, double base_lr, int64_t steps_per_epoch, int64_t total_epochs);

// What is wrong between the keys of a schedule over so many epochs, each with the keys at fault. `length` is what a
// message calls the number of epochs.
using ScheduleProblems = std::vector<std::pair<std::vector<std::string_view>, std::string>>;
ScheduleProblems schedule_problems(const ScheduleConfig&, double base_lr, int64_t epochs,
                                   std::string_view length = "train.epochs");

// The part of the run over which a schedule stretches, in epochs.
struct PhaseSpan {
  int64_t first_epoch, epochs;
};
// Of [schedule] (index 0) or of phase index - 1, begun at `first_epoch`: until the next phase of a fixed epoch, or the
// end. A phase that waits for a plateau ends nobody's span: when it comes is not known.
PhaseSpan phase_span(const Config&, size_t index, int64_t first_epoch);

// ---- Plateau ----

// Finite from the start, so that JSON holds them.
struct PlateauState {
  double best, factor = 1;
  int64_t bad = 0, cooldown = 0;
};

// Multiplies the learning rate by `factor` when the metric has not become better for a while. Better is: by more than
// threshold, relative (counting "pytorch") or absolute ("keras"); NaN never is.
//   pytorch  the rate falls when the bad epochs exceed patience; epochs of a cooldown are not counted. Falls of less
//            than 1e-8 are left out (torch.optim.lr_scheduler.ReduceLROnPlateau, threshold_mode "rel").
//   keras    it falls when they reach patience: one epoch earlier; the last epoch of a cooldown counts.
class Plateau {
 public:
  Plateau(const ScheduleConfig&, double base_lr);
  // After an epoch, with its metric; whether the rate falls.
  bool update(double metric);
  // What the schedule's rate is to be multiplied by.
  double factor() const { return state_.factor; }
  const PlateauState& state() const { return state_; }
  void restore(const PlateauState& state) { state_ = state; }

 private:
  bool better(double metric) const;

  ScheduleConfig config_;
  double base_lr_;
  bool keras_, larger_;  // larger_: a larger metric is better
  PlateauState state_;
};

// ---- Batch sizes ----

// law "linear": lr batch / base_batch; "sqrt": its square root, usual for Adam; "none": lr. Batches are images per
// step.
double scaled_lr(double lr, const std::string& law, int64_t batch, int64_t base_batch);

int64_t batches_per_epoch(int64_t images, int64_t batch_size, bool drop_last);
// Steps of the optimizer. accumulate: batches per step, 0: all of the epoch; flush: a last, smaller step for the rest.
int64_t steps_per_epoch(int64_t batches, int64_t accumulate, bool flush);
// Of a run on so many training images.
int64_t steps_per_epoch(const Config&, int64_t images);
// optimizer.lr (of [optimizer] or of a phase) scaled as train.lr_scaling says. A step of a full batch holds all images.
double scaled_lr(const Config&, double lr, int64_t images);

// The learning rate of batch k of n in a range test (Smith 2017): from `first` to `last`, geometrically. Batch n - 1
// has `last`; the form with n in the exponent's denominator, often seen, never gets there.
double range_test_lr(double first, double last, int64_t k, int64_t n);

}  // namespace linnet
