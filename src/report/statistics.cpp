#include "src/report/statistics.h"

#include <algorithm>
#include <boost/math/distributions/chi_squared.hpp>
#include <boost/math/distributions/normal.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <numeric>

#include "linnet/error.h"

namespace linnet {

namespace bm = boost::math;

constexpr double kTail = 0.025;  // of a 95 % interval, on each side

Spread spread(std::span<const double> values) {
  Spread s{.n = int64_t(values.size())};
  if (values.empty()) return s;
  const auto n = double(values.size());
  s.mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  if (values.size() < 2) return s;
  double squares = 0;
  for (const double v : values) squares += (v - s.mean) * (v - s.mean);
  s.sd = std::sqrt(squares / (n - 1));
  s.half = bm::quantile(bm::complement(bm::students_t(n - 1), kTail)) * s.sd / std::sqrt(n);
  return s;
}

double median(std::vector<double> values) {
  if (values.empty()) return kNone;
  std::ranges::sort(values);
  const size_t n = values.size();
  if (n % 2 || std::isinf(values[n / 2])) return values[n / 2];
  return (values[n / 2 - 1] + values[n / 2]) / 2;
}

PairedTest paired_test(std::span<const double> a, std::span<const double> b) {
  require(a.size() == b.size(), "[paired_test] expected as many values on both sides, got {} and {}", a.size(),
          b.size());
  std::vector<double> difference(a.size());
  std::ranges::transform(a, b, difference.begin(), std::minus());
  PairedTest test{spread(difference)};
  const Spread& d = test.difference;
  if (d.n < 2) return test;
  if (d.sd == 0)
    test.p = d.mean == 0 ? 1 : 0;
  else
    test.p = 2 * bm::cdf(bm::complement(bm::students_t(double(d.n - 1)),
                                        std::fabs(d.mean) / (d.sd / std::sqrt(double(d.n)))));
  return test;
}

std::vector<double> holm(const std::vector<double>& p) {
  std::vector<size_t> order;
  for (size_t i = 0; i < p.size(); ++i)
    if (!std::isnan(p[i])) order.push_back(i);
  std::ranges::stable_sort(order, {}, [&](size_t i) { return p[i]; });
  std::vector<double> adjusted(p.size(), kNone);
  double largest = 0;
  for (size_t rank = 0; rank < order.size(); ++rank) {
    largest = std::max(largest, std::min(1.0, double(order.size() - rank) * p[order[rank]]));
    adjusted[order[rank]] = largest;
  }
  return adjusted;
}

namespace {

// P(T > limit) of a non-central t: the mean, over the deviation's distribution, of a normal tail. Boost 1.74's own (and
// SciPy's, which is Boost's) errs by 0.6 in the far tail: 0.9 for P = 0.31 at 2 degrees, shift 8.66, limit 14.09.
double non_central_tail(double degrees, double shift, double limit) {
  constexpr int kPoints = 1000;
  const bm::chi_squared squares(degrees);
  double sum = 0;
  for (int i = 0; i < kPoints; ++i) {
    const double deviation = std::sqrt(bm::quantile(squares, (i + 0.5) / kPoints) / degrees);
    sum += bm::cdf(bm::normal(), shift - limit * deviation);
  }
  return sum / kPoints;
}

}  // namespace

int64_t pairs_needed(double mean, double sd, double alpha, double power) {
  if (!(sd > 0) || mean == 0 || !std::isfinite(mean)) return -1;
  const double effect = std::fabs(mean) / sd;
  const auto reaches = [&](int64_t n) {
    const double limit = bm::quantile(bm::complement(bm::students_t(double(n - 1)), alpha / 2));
    return non_central_tail(double(n - 1), effect * std::sqrt(double(n)), limit) >= power;
  };
  constexpr int64_t kMost = 10000;
  int64_t low = 1, high = 2;  // not enough, enough
  for (; !reaches(high); high *= 2) {
    if (high > kMost) return -1;
    low = high;
  }
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (reaches(middle) ? high : low) = middle;
  }
  return high <= kMost ? high : -1;
}

Interval wilson(double right, double n) {
  const double z = bm::quantile(bm::complement(bm::normal(), kTail)), z2 = z * z, p = right / n;
  const double middle = (p + z2 / (2 * n)) / (1 + z2 / n);
  const double half = z / (1 + z2 / n) * std::sqrt(p * (1 - p) / n + z2 / (4 * n * n));
  return {std::max(0.0, middle - half), std::min(1.0, middle + half)};
}

double binomial_error(double share, double n) { return std::sqrt(share * (1 - share) / n); }

}  // namespace linnet
