// The learning-rate range test (Smith 2017, "Cyclical Learning Rates"): train while the rate rises geometrically, and
// see where the loss begins to fall and where it rises again.
#pragma once
#include <vector>

#include "linnet/trainer.h"

namespace linnet {

struct RangeTest {
  std::vector<double> lr, loss;  // of each batch, before its step; as many as were finite and not too large
  bool diverged = false;         // it ended before the last rate
};

// `steps` steps from rate `first` to rate `last`, both included. The trainer is afterwards what it was before: weights,
// state, data order. It ends early when a loss is not finite or above `worst` times the first one.
RangeTest range_test(Trainer&, double first, double last, int64_t steps, double worst = 10);

// The mean over the points at most `radius` places away: it does not lag behind, as a running average does.
std::vector<double> smoothed(const std::vector<double>& y, size_t radius);

// What a curve says. `from`: a tenth of the fall is done; `steepest`: the loss falls fastest against log lr; `to`: nine
// tenths are done, beyond which steps become too large soon. NaN: the loss does not fall by 2 %.
struct LrRange {
  double from, steepest, to;
};
LrRange lr_range(const std::vector<double>& lr, const std::vector<double>& smooth_loss);

}  // namespace linnet
