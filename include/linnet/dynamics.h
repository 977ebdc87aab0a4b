// What a step does to the weights, looked at where a row of metrics is due: norms of gradient, velocity and update, how
// many weights turn round, the learning rate that each of them has in effect, and one weight under a lens. It copies
// and downloads, between two steps: no bit of a run depends on it, and a captured step stays one graph.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "linnet/param.h"
#include "linnet/updater.h"

namespace linnet {

struct Row;

class Dynamics {
 public:
  // `probe`: log.probe, or empty. Error(Exit::usage) if there is no such weight, or it is frozen.
  Dynamics(Backend&, ParamStore&, const Updater&, const std::string& probe);

  // Before a step that will be looked at, and before the step that comes before it. `done`: steps so far.
  void before_step(int64_t done);
  void take_back();  // the last before_step(): the step was given up
  // After that step, which had these parameters. gradient: Trainer::gradient(). `layers`: add_layers() will be called.
  void look(int64_t done, const StepParams&, std::vector<float> gradient, bool layers);

  // Of the last look:
  // update_norm; velocity_norm (of what the optimizer keeps as first moment, if it does); reversed_share, of a sample
  // of the weights, those that moved in the last two steps; probe/weight, gradient, velocity, square, update.
  void add_to(Row&) const;
  // Of each weight of a product: grad_norm/LAYER, velocity_norm/LAYER, update_norm/LAYER. Under a rule that divides by
  // a root also effective_lr/1e-04, the share of the weights whose learning rate is in [1e-4, 1e-3), and so on.
  void add_layers(Row&) const;
  // update_ratio/LAYER: |update| / |weights before it|; about 1e-3 is usual.
  void add_update_ratios(Row&) const;
  std::vector<double> update_ratios() const;

  // For a checkpoint: where the sample went in the last step, '+', '-' or '0' each; empty if that is not known.
  // `weights`: those that the last step left.
  std::string directions(int64_t done, const Tensor& weights);
  // Error(Exit::checkpoint) where there are ratios and not as many as there are such layers.
  void restore(int64_t done, std::string directions, std::vector<double> update_ratios);

 private:
  struct Moved {  // of one parameter: L2 norms
    const Param* param;
    double gradient, velocity, update, weights;  // velocity: NaN where the rule keeps none; weights: before the step
  };
  std::vector<float> download(const Tensor&) const;
  std::string directions_between(const std::vector<float>& from, const std::vector<float>& to) const;
  void count_rates(const StepParams&, const std::vector<float>& slots);

  Backend& backend_;
  const ParamStore& store_;
  const Updater& updater_;
  const Param* probed_ = nullptr;
  int64_t probe_ = 0, sample_stride_ = 1;
  struct Kept {
    Tensor weights;
    int64_t done = -1;  // after so many steps; -1: nothing yet
  } older_, newer_;
  std::string restored_;
  std::vector<double> restored_ratios_;  // until the next look
  int64_t restored_at_ = -1;

  std::vector<Moved> moved_;
  std::vector<std::pair<std::string, double>> scalars_, rates_;
};

// The share of weights that go back in a step on what they did in the one before, of those that moved in both; NaN if
// none did.
double reversed_share(std::string_view before, std::string_view now);

}  // namespace linnet
