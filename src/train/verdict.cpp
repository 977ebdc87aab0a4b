#include "linnet/verdict.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace linnet {

namespace {

constexpr double kGap = 0.2, kLow = 0.5, kRise = 0.01;  // of accuracies; the rise is an epoch's
constexpr double kPastBest = 1.1;                       // of a validation loss, by its best

}  // namespace

EpochResult epoch_result(const Row& row) {
  return {row.epoch, row["train/loss"], row["train/acc"], row["val/loss"], row["val/acc"]};
}

Verdict judge_fit(const std::vector<EpochResult>& epochs) {
  if (epochs.empty()) return {};
  const EpochResult& last = epochs.back();
  const auto by_loss = [](const EpochResult& a, const EpochResult& b) { return a.val_loss < b.val_loss; };
  const EpochResult& best = *std::ranges::min_element(epochs, by_loss);
  std::string text = fmt::format("{:.1f} % of the training images are right", 100 * last.train_acc);
  if (std::isnan(last.val_acc))
    return {"unknown", text + "; without validation images nobody knows what that is worth"};
  text += fmt::format(" and {:.1f} % of the validation's", 100 * last.val_acc);

  const double gap = last.train_acc - last.val_acc;
  const bool past_best = last.val_loss > kPastBest * best.val_loss && last.train_loss < best.train_loss;
  if (gap > kGap || (past_best && gap > kGap / 4)) {
    if (best.epoch < last.epoch) text += fmt::format("; the validation loss was best in epoch {}", best.epoch);
    return {"overfitting", text + ". More augmentation or weight_decay, train.patience, or a smaller model"};
  }
  // A mean over up to three epochs: one alone wanders.
  const size_t back = std::min<size_t>(3, epochs.size() - 1);
  const double rise = back > 0 ? (last.train_acc - epochs[epochs.size() - 1 - back].train_acc) / double(back) : 0;
  if (rise > kRise)
    return {"still learning", text + fmt::format(", {:+.1f} points an epoch. Train longer", 100 * rise)};
  if (last.train_acc < kLow && last.val_acc < kLow)
    return {"underfitting",
            text + (back > 0 ? ". A larger model, another learning rate, or less augmentation" : ". Train longer")};
  return {"balanced", text};
}

std::vector<Reached> epochs_to(const std::vector<EpochResult>& epochs) {
  std::vector<Reached> all;
  for (const double target : {0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99}) {
    const auto found = std::ranges::find_if(
        epochs, [&](const EpochResult& e) { return (std::isnan(e.val_acc) ? e.train_acc : e.val_acc) >= target; });
    if (found != epochs.end()) all.push_back({target, found->epoch});
  }
  return all;
}

}  // namespace linnet
