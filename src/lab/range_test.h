// The learning-rate range test (Smith 2017, "Cyclical Learning Rates"): train while the rate rises geometrically, and
// see where the loss begins to fall and where it rises again.
#pragma once
#include <string>
#include <vector>

#include "linnet/trainer.h"

namespace linnet {

struct RangeTest {
  std::vector<double> lr, loss;  // of each batch, before its step; as many as were finite and not too large
  bool diverged = false;         // it ended before the last rate
  int64_t steps = 0;             // as many as were asked for
};

// `steps` steps from rate `first` to rate `last`, both included. The trainer is afterwards what it was before: weights,
// state, data order. It ends early when a loss is not finite or above `worst` times the first one.
RangeTest range_test(Trainer&, double first, double last, int64_t steps, double worst = 10);

// The test with train.seed and the `seeds` - 1 after it: other first weights, another order.
std::vector<RangeTest> range_tests(Config, Backend&, const RunData&, double first, double last, int64_t steps,
                                   int64_t seeds);

// The mean over the points at most `radius` places away: it does not lag behind, as a running average does.
std::vector<double> smoothed(const std::vector<double>& y, size_t radius);
size_t smoothing_radius(int64_t steps);

// What a curve says. `from`: a tenth of the fall is done; `steepest`: the loss falls fastest against log lr; `to`: nine
// tenths are done, beyond which steps become too large soon. from <= steepest <= to; or all are NaN, `doubt` says why
// no rate follows from the curve, and `cure` what may help.
struct LrRange {
  double from, steepest, to;
  std::string doubt, cure;
};
// The loss as measured: its noise must be seen, as a fall counts only where it is larger. `chance`: the loss of
// guessing, ln(classes). A fall down to that has unlearnt a first, too sure answer, and says nothing of the rate that
// teaches.
LrRange lr_range(const RangeTest&, size_t radius, double chance);

// The tests of several seeds together: the mean of their curves as far as all of them go, and what it says. A doubt,
// too: fewer than half of the seeds show a range by themselves; or they disagree on `to`, which advice is made of: the
// middle half of them lies further apart than half a decade (as of two or three seeds that are a decade apart).
struct SeedsRange {
  RangeTest mean;
  LrRange range;
  std::vector<LrRange> seeds;  // each by itself
};
SeedsRange seeds_range(const std::vector<RangeTest>&, size_t radius, double chance);

}  // namespace linnet
