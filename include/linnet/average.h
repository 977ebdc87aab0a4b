// Moving averages of numbers: smoothed metrics, and what a plateau is seen on.
#pragma once
#include <cmath>
#include <cstdint>
#include <deque>
#include <limits>

namespace linnet {

// How an exponentially weighted average begins: at zero (too small at first: its weights sum to 1 - beta^t), at the
// first value, or at zero and divided by that sum (pandas' ewm(alpha = 1 - beta), Adam's bias correction).
enum class EwaStart { zero, first, corrected };

// What a checkpoint stores of an average.
struct EwaState {
  double v = 0;
  int64_t count = 0;
};

// v = beta v + (1 - beta) x. beta is in [0, 1); near 1 is smooth and slow.
class Ewa {
 public:
  explicit Ewa(double beta, EwaStart start = EwaStart::corrected) : beta_(beta), start_(start) {}

  // Returns the new value.
  double update(double x) {
    s_.v = s_.count++ == 0 && start_ == EwaStart::first ? x : beta_ * s_.v + (1 - beta_) * x;
    return value();
  }
  // NaN before the first update.
  double value() const {
    if (s_.count == 0) return std::numeric_limits<double>::quiet_NaN();
    return start_ == EwaStart::corrected ? s_.v / weight_sum() : s_.v;
  }
  // The sum of the weights of an average that began at zero: 1 - beta^t.
  double weight_sum() const { return 1 - std::pow(beta_, double(s_.count)); }
  int64_t count() const { return s_.count; }
  const EwaState& state() const { return s_; }
  void restore(const EwaState& s) { s_ = s; }
  // Over about how many values it averages.
  double window() const { return 1 / (1 - beta_); }

 private:
  double beta_;
  EwaStart start_;
  EwaState s_;
};

// The mean of the last n values, or of all there are while they are fewer.
class MovingMean {
 public:
  explicit MovingMean(int64_t n) : n_(n) {}

  double update(double x) {
    values_.push_back(x);
    if (int64_t(values_.size()) > n_) values_.pop_front();
    return value();
  }
  // NaN before the first update. Summed anew each time: no rounding is carried along.
  double value() const {
    double sum = 0;
    for (const double x : values_) sum += x;
    return sum / double(values_.size());
  }
  bool full() const { return int64_t(values_.size()) == n_; }

 private:
  int64_t n_;
  std::deque<double> values_;
};

}  // namespace linnet
