// The optimizer at work on a net's flat buffers: parameter groups, phases, clipping, Lookahead, averages of the
// weights. The formulas are functors (kernels/optim.h, kernels/update.h); here is what a run makes of them.
#pragma once
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "linnet/backend.h"
#include "linnet/config.h"
#include "linnet/param.h"

namespace linnet {

class Updater {
 public:
  // lr_scale multiplies every learning rate (train.lr_scaling). Error(Exit::usage) for settings that do not go
  // together.
  Updater(Backend&, const Config&, double lr_scale);

  // How the parameters have to lie: for ParamStore::seal(). Error(Exit::usage) there if a group matches no parameter.
  Layout layout() const;
  // After seal(): the memory that it works in.
  void attach(ParamStore&);

  // Phase 0 is [optimizer], phase k the k-th [[phase]]; `step` is the first step of it, last_lr_factor that of the step
  // before it, as for fill().
  void start_phase(int phase, int64_t step, double last_lr_factor);
  // What the update of `step` reads; lr_factor is the schedule's learning rate by the phase's base one.
  void fill(StepParams&, int64_t step, double lr_factor) const;
  // The phase's base learning rate, with train.lr_scaling.
  double base_lr() const;

  // In a step: before the first forward pass, and after the last backward pass. step_sums [2], totals [3] f64 are those
  // of CommitSums, `images` how many the step has seen.
  void before_forward(const Tensor& step);
  void apply(const Tensor& step, const Tensor& step_sums, const Tensor& totals, int64_t images);

  // Calls `use` with the moving average in place of the weights and buffers; only if has_average(). `updates`: good
  // steps so far.
  void with_average(int64_t updates, const std::function<void()>& use);
  bool has_average() const { return bool(ema_); }

  // All that it keeps beside the weights, by name, f32: "slots", "slow", "ema", "ema_buffers".
  std::vector<std::pair<std::string, Tensor>> state() const;
  // After state() or the buffers were overwritten: what follows from them. update_start() as it was then.
  void restored(int phase, int64_t update_start);
  // After other first weights were put in.
  void start_from_weights();
  int64_t update_start() const { return first_; }

  const std::vector<Rule>& rules() const { return rules_; }  // of the current phase, by group

 private:
  struct Group {
    double lr = 1, weight_decay = 0;  // lr: by that of the phase
    Rule rule;
  };
  std::vector<Group> groups_of(int phase) const;
  void select(int phase, int64_t step);
  void update_by_muon(const Muon&, int segment, const Tensor& step);

  Backend& backend_;
  Config config_;
  double lr_scale_;
  Clip clip_;
  int slots_ = 0;
  std::vector<Group> groups_;
  std::vector<Rule> rules_;
  int phase_ = 0;
  int64_t first_ = 0;  // the step at which t starts: the phase's, or an earlier one where the state was carried
  ParamStore* store_ = nullptr;
  MuonMemory muon_;
  Tensor slow_, ema_, ema_buffers_, good_buffers_, factor_;
};

}  // namespace linnet
