#include "src/lab/range_test.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "linnet/error.h"

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
  RangeTest test{.steps = steps};
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

std::vector<RangeTest> range_tests(Config config, Backend& backend, const RunData& data, double first, double last,
                                   int64_t steps, int64_t seeds) {
  std::vector<RangeTest> tests;
  for (int64_t k = 0; k < seeds; ++k, ++config.train.seed) {
    Trainer trainer(config, backend, data);
    tests.push_back(range_test(trainer, first, last, steps));
  }
  return tests;
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

size_t smoothing_radius(int64_t steps) { return size_t(std::max<int64_t>(2, steps / 30)); }

namespace {

LrRange no_range(std::string doubt, std::string cure) {
  constexpr double none = std::numeric_limits<double>::quiet_NaN();
  return {none, none, none, std::move(doubt), std::move(cure)};
}

// Of rising values, between neighbours where it must be.
double quantile(const std::vector<double>& sorted, double share) {
  const double at = share * double(sorted.size() - 1);
  const auto k = std::min(size_t(at), sorted.size() - 1), next = std::min(k + 1, sorted.size() - 1);
  return sorted[k] + (at - double(k)) * (sorted[next] - sorted[k]);
}

// The curve that never rises and lies nearest to y (squares): where y rises, its mean ("pool adjacent violators").
std::vector<double> falling_fit(std::span<const double> y) {
  struct Level {
    double mean;
    size_t count;
  };
  std::vector<Level> levels;
  for (const double v : y) {
    levels.push_back({v, 1});
    while (levels.size() > 1 && levels[levels.size() - 2].mean < levels.back().mean) {
      const Level last = levels.back();
      levels.pop_back();
      Level& l = levels.back();
      l.mean = (l.mean * double(l.count) + last.mean * double(last.count)) / double(l.count + last.count);
      l.count += last.count;
    }
  }
  std::vector<double> out;
  for (const Level& l : levels) out.insert(out.end(), l.count, l.mean);
  return out;
}

}  // namespace

LrRange lr_range(const RangeTest& test, size_t radius, double chance) {
  const std::vector<double>&lr = test.lr, &loss = test.loss;
  const size_t n = loss.size(), window = 2 * radius + 1, asked = std::max(n, size_t(test.steps)), least = 4 * window;
  if (asked < least)
    return no_range(fmt::format("{} rates are too few: a range is read off means over {} of them, and takes {} or more",
                                asked, window, least),
                    "more --steps");
  const LrRange rises = no_range("the loss rises from the first rates on, before it could fall",
                                 "a smaller --from, or look at linnet check");
  if (n <= window + radius) return rises;
  // Where the loss starts: over the first places the rate is too small to matter. Where it leaps at once, it is not,
  // and what falls later is a peak.
  double start = 0;
  for (size_t i = 0; i < window; ++i) start += loss[i] / double(window);
  if (!(start <= 1.4 * loss[0])) return rises;
  // Up to where it first rises well above its start: a net may come back from there, but not by a rate one wants.
  const std::vector<double> curve = smoothed(loss, radius);
  const auto above = std::ranges::find_if(curve, [&](double y) { return y > 1.3 * start; });
  const auto end = size_t(above - curve.begin());
  if (end <= window) return rises;
  const auto first = curve.begin() + std::ptrdiff_t(radius);  // whole windows only: the others are noisier
  const auto last = curve.begin() + std::ptrdiff_t(std::min(end, n - radius));
  const auto lowest = size_t(std::min_element(first, last) - curve.begin());
  const double fall = start - curve[lowest];
  // The noise of one loss, from its steps between neighbours, and so of a mean over a window. The lowest of many means
  // lies some deviations low by chance: of curves that are only noise, one in a hundred passes 5 (2 to 30 windows).
  double squares = 0;
  for (size_t i = 1; i < end; ++i) squares += (loss[i] - loss[i - 1]) * (loss[i] - loss[i - 1]);
  const double noise = std::sqrt(squares / double(end - 1) / 2 / double(window));
  const double clear = std::max(0.02 * start, 5 * noise);
  if (!(fall > clear))
    return no_range(fmt::format("no clear fall: the loss falls by {:.2g} at most, and below {:.2g} that may be noise",
                                std::max(0.0, fall), clear),
                    "more --steps or --seeds, another --from or --to, or look at linnet check");
  // The lowest mean of a curve that stays at chance seldom lies 3 deviations below it.
  if (const double below = std::max(0.01 * chance, 3 * noise); !(curve[lowest] < chance - below))
    return no_range(
        fmt::format("the loss falls from {:.3g} to {:.3g}, not clearly below the {:.3g} of guessing (by less "
                    "than {:.2g}): it only unlearns its first answers",
                    start, curve[lowest], chance, below),
        "more --steps or --seeds: the loss must come below that of guessing to tell a rate that teaches");
  std::vector<double> fit = falling_fit(std::span(curve).first(lowest + 1));
  for (double& y : fit) y = std::min(y, start);  // what lies above is noise of the first, shorter windows
  const auto fallen = [&](double share) {
    const auto at = std::ranges::find_if(fit, [&](double y) { return y <= start - share * fall; });
    return std::min(size_t(at - fit.begin()), lowest);
  };
  const size_t from = fallen(0.1), to = fallen(0.9);
  // The fall over a decade around each place: over less, noise decides where it is steepest.
  const auto half = size_t(std::max(1.0, std::round(0.5 * double(n - 1) / std::log10(lr[n - 1] / lr[0]))));
  const auto fall_around = [&](size_t i) { return fit[i - std::min(i, half)] - fit[std::min(i + half, lowest)]; };
  size_t steepest = from;
  for (size_t i = from; i <= to; ++i)
    if (fall_around(i) > fall_around(steepest)) steepest = i;
  return {lr[from], lr[steepest], lr[to], "", ""};
}

SeedsRange seeds_range(const std::vector<RangeTest>& tests, size_t radius, double chance) {
  SeedsRange all;
  size_t shortest = SIZE_MAX;
  std::vector<double> ends;  // log10 of where the fall ends, of the seeds that show one by themselves
  for (const RangeTest& test : tests) {
    all.seeds.push_back(lr_range(test, radius, chance));
    if (all.seeds.back().doubt.empty()) ends.push_back(std::log10(all.seeds.back().to));
    all.mean.diverged = all.mean.diverged || test.diverged;
    all.mean.steps = std::max(all.mean.steps, test.steps);
    shortest = std::min(shortest, test.lr.size());
  }
  for (size_t i = 0; i < shortest; ++i) {
    double sum = 0;
    for (const RangeTest& test : tests) sum += test.loss[i];
    all.mean.lr.push_back(tests[0].lr[i]);
    all.mean.loss.push_back(sum / double(tests.size()));
  }
  all.range = lr_range(all.mean, radius, chance);
  if (!all.range.doubt.empty()) return all;
  if (2 * ends.size() < tests.size()) {
    all.range = no_range(
        fmt::format("{} of {} seeds show{} a range alone, fewer than half: what their mean shows may be "
                    "chance",
                    ends.empty() ? "none" : std::to_string(ends.size()), tests.size(), ends.size() == 1 ? "s" : ""),
        "more --steps, so that each curve is clear by itself");
    return all;
  }
  std::ranges::sort(ends);
  if (quantile(ends, 0.75) - quantile(ends, 0.25) > 0.5)
    all.range = no_range(fmt::format("the seeds disagree: the loss falls until {:.2g} to {:.2g}",
                                     std::pow(10, ends.front()), std::pow(10, ends.back())),
                         "more --steps; more --seeds would only show the same spread more exactly");
  return all;
}

}  // namespace linnet
