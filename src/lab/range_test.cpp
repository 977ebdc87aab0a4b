#include "src/lab/range_test.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace linnet {

namespace {

// Everything that a step changes, kept aside.
class Snapshot {
 public:
  explicit Snapshot(Trainer& trainer) : trainer_(trainer), progress_(trainer.progress()) {
    for (const auto& [name, tensor] : trainer.tensors()) {
      bytes_.emplace_back(tensor.bytes());
      trainer.net().backend().download(bytes_.back().data(), tensor);
    }
  }
  ~Snapshot() {
    size_t k = 0;
    for (const auto& [name, tensor] : trainer_.tensors()) trainer_.net().backend().upload(tensor, bytes_[k++].data());
    trainer_.restore(progress_);
  }
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;

 private:
  Trainer& trainer_;
  Progress progress_;
  std::vector<std::vector<char>> bytes_;
};

}  // namespace

RangeTest range_test(Trainer& trainer, double first, double last, int64_t steps, double worst) {
  const Snapshot before(trainer);
  const int64_t begin = trainer.global_step();
  trainer.use_schedule([=](int64_t step) { return range_test_lr(first, last, step - begin, steps); });
  RangeTest test;
  for (int64_t k = 0; k < steps; ++k) {
    if (k > 0 && k % trainer.steps_per_epoch() == 0) trainer.start_epoch(trainer.progress().epoch + 1);
    const double lr = trainer.learning_rate(begin + k);
    trainer.step();
    const auto loss = double(trainer.last_loss());
    // A NaN compares false with everything: the question is whether it is good, not whether it is bad.
    const bool good = test.loss.empty() ? std::isfinite(loss) : loss < worst * test.loss.front();
    if (!good || trainer.last_result().bad_in_row > 0) {
      test.diverged = true;
      break;
    }
    test.lr.push_back(lr);
    test.loss.push_back(loss);
  }
  return test;
}

std::vector<double> smoothed(const std::vector<double>& y, size_t radius) {
  std::vector<double> out;
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t r = std::min({radius, i, y.size() - 1 - i});  // the same number on both sides, also at the ends
    double sum = 0;
    for (size_t k = i - r; k <= i + r; ++k) sum += y[k];
    out.push_back(sum / double(2 * r + 1));
  }
  return out;
}

LrRange lr_range(const std::vector<double>& lr, const std::vector<double>& loss) {
  constexpr double none = std::numeric_limits<double>::quiet_NaN();
  LrRange range{none, none, none};
  if (loss.size() < 5) return range;
  // Where the loss starts: over the first twentieth the rate is too small to matter.
  double start = 0;
  const size_t few = std::max<size_t>(3, loss.size() / 20);
  for (size_t i = 0; i < few; ++i) start += loss[i] / double(few);
  // Up to where it first rises well above its start: a net may come back from there, but not by a rate one wants.
  const auto end = std::ranges::find_if(loss, [&](double y) { return y > 1.3 * start; });
  const auto lowest = size_t(std::min_element(loss.begin(), end) - loss.begin());
  const double fall = start - loss[lowest];
  if (!(fall > 0.02 * start)) return range;
  // The last places above these heights, before the lowest one: noise makes the first ones early.
  const auto last_above = [&](double share) {
    size_t at = 0;
    for (size_t i = 0; i < lowest; ++i)
      if (loss[i] > start - share * fall) at = i;
    return lr[at];
  };
  range.from = last_above(0.1);
  range.to = last_above(0.9);
  const size_t step = std::max<size_t>(1, loss.size() / 20);
  double most = 0;
  for (size_t i = step; i + step <= lowest; ++i) {
    const double slope = (loss[i - step] - loss[i + step]) / std::log(lr[i + step] / lr[i - step]);
    if (slope > most) most = slope, range.steepest = lr[i];
  }
  if (std::isnan(range.steepest)) range.steepest = std::sqrt(range.from * range.to);
  return range;
}

}  // namespace linnet
