// What the epochs of a run say together: whether the net fits its images too well or not well enough, and how long it
// took to which accuracy.
#pragma once
#include <string>
#include <vector>

#include "linnet/trainer.h"

namespace linnet {

// An epoch's accuracies (fractions) and losses; NaN where there are no validation images.
struct EpochResult {
  int64_t epoch;
  double train_loss, train_acc, val_loss, val_acc;
};
EpochResult epoch_result(const Row&);

// kind: "overfitting" (the training accuracy is 20 points above the validation's, or the validation loss has risen by a
// tenth from its best), "still learning" (the training accuracy rises by a point an epoch), "underfitting" (both below
// 50 %), "balanced"; "unknown" without a validation. text: the numbers, and what to do. Empty without an epoch.
struct Verdict {
  std::string kind, text;
};
Verdict judge_fit(const std::vector<EpochResult>&);

// The first epoch whose validation accuracy (training accuracy, where there is no validation) is at least 50, 60, 70,
// 80, 90, 95 and 99 %, of those that were reached.
struct Reached {
  double acc;
  int64_t epoch;
};
std::vector<Reached> epochs_to(const std::vector<EpochResult>&);

}  // namespace linnet
