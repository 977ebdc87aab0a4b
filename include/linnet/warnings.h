// What can be wrong with a run although it runs: the warnings W1 to W30 of `linnet list warnings`. Some follow from the
// config, the model and the data; the others show while training (class Watchdog).
#pragma once
#include <cmath>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "linnet/trainer.h"

namespace linnet {

struct WarningEntry {
  std::string_view id;         // "W6"
  std::string_view kind;       // seen at the "start", in "training", or an "error" that no run survives
  std::string_view condition;  // when it is given
  std::string_view advice;     // what to do
};
const std::vector<WarningEntry>& warning_table();

struct Warning {
  std::string id, message;  // message: what was found, with its numbers
  bool note = false;        // worth knowing, and no error with --strict
  std::string advice = {};  // what to do in this run; empty: what the table says
};

// The warnings of one run: each is told once.
class Warnings {
 public:
  explicit Warnings(bool strict) : strict_(strict) {}
  // The line to print, such as "warning W6: ...", with the advice; empty if this one was told before.
  std::string tell_once(const Warning&);
  // Whether --strict ends the run, and why.
  bool fatal() const { return strict_ && !told_.empty(); }
  std::string reason() const;
  const std::vector<std::string>& told() const { return told_; }  // without the notes

 private:
  bool strict_;
  std::set<std::string> seen_;
  std::vector<std::string> told_;
};

// ---- Before training -----------------------------------------------------------------------------------------------

// What the rules need to know beside the config.
struct RunFacts {
  int64_t images = 0;       // of the training split
  int64_t parameters = 0;   // numbers in all
  int64_t depth = 0;        // layers with weights: convolutions and linear ones
  bool batch_norm = false;  // statistics over the batch
};
RunFacts facts_of(ParamStore&, int64_t images);

// What makes steps that are too long shorter, without what the config has already: "a smaller optimizer.lr,
// schedule.warmup = 1 or optimizer.clip_norm = 1".
std::string shorter_steps(const Config&);

// The learning rates that are usual for an optimizer (W2), as its settings count them: where momentum takes an average,
// whose steps are shorter, they are 1 / (1 - momentum) times those of a sum.
struct UsualLr {
  double low, high;
  double middle() const { return std::sqrt(low * high); }  // in decades: where a text would begin
  bool holds(double lr) const;                             // low and high included
};
UsualLr usual_lr(const OptimizerConfig&);

// One for each id, in their order. Error(Exit::usage) for data.mean and data.std that make the input infinite (W27).
std::vector<Warning> start_warnings(const Config&, const RunFacts&);

// What a run that goes on from the weights of another one changed without what belongs to it (W12, W23). `images`: of
// the training split.
std::vector<Warning> change_warnings(const Config& before, const Config& now, int64_t images);

// ---- While training ------------------------------------------------------------------------------------------------

// Watches rows, and gradients with the optimizer's state. Those are looked at with a row of metrics, at most every
// kLookEvery steps. A value that one noisy batch could give has to come several times in a row; each rule says how
// often. Nothing of it is kept in a checkpoint: a resumed run is watched anew.
class Watchdog : public Observer {
 public:
  // Calls `found` for each warning, once per id. `classes`: of the data.
  Watchdog(const Config&, int classes, std::function<void(const Warning&)> found);

  void on_step(int64_t step, int64_t epoch) override;
  void on_row(const Row&) override;
  void on_boundary(Trainer&, bool epoch_done) override;

  // What on_boundary does with what it has measured.
  struct LayerGradient {
    std::string layer;
    double norm;  // L2
  };
  void judge_gradients(const std::vector<LayerGradient>&);
  void judge_reversals(double share, double limit);            // of the weights that moved
  void judge_history(const std::string& param, double share);  // of it that never had a gradient

  static constexpr int64_t kLookEvery = 10;

 private:
  // How often something was true without a break.
  struct Streak {
    int count = 0;
    bool reaches(int needed, bool holds) {
      count = holds ? count + 1 : 0;
      return count >= needed;
    }
  };
  struct LayerStreaks {
    Streak zero, large, small;
  };

  void raise(const std::string& id, std::string message, std::string advice = {});
  void forget();
  void judge_loss(const Row&);
  void judge_flatness(const Row&, int64_t steps);
  bool stands(double first, double before, double now) const;  // training losses
  void judge_epochs();
  void look_at_gradients(Trainer&);
  void look_at_history(Trainer&);
  void look_at_reversals(Trainer&);

  const Config config_;
  const double chance_loss_;  // ln C: that of a net that says nothing
  std::function<void(const Warning&)> found_;
  std::set<std::string> raised_;

  int64_t step_ = 0, row_step_ = -1, next_look_ = 0, looks_ = 0;
  bool look_ = false;  // at the next boundary
  double loss_ = std::numeric_limits<double>::quiet_NaN(), first_loss_ = loss_, reversed_share_ = loss_, skipped_ = 0;
  // Sum over the window at hand; means of the first one and of the one before.
  double window_loss_ = 0, first_mean_ = loss_, window_mean_ = loss_;
  int64_t window_steps_ = 0, first_window_ = 0;  // first_window_: the step at which it was full
  int spikes_ = 0;
  std::deque<double> recent_;  // training losses
  Streak tenfold_, gap_, reversal_, flat_, lost_;
  double best_loss_ = std::numeric_limits<double>::quiet_NaN();  // of an epoch's training, so far
  std::map<std::string, LayerStreaks> layers_;
  std::vector<Row> epochs_;
};

}  // namespace linnet
