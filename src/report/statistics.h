// The statistics of a comparison of few runs. Distributions are Boost.Math's; tests/statistics_test.cpp holds them to
// SciPy's and statsmodels' numbers.
#pragma once
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace linnet {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();  // what cannot be said

// Mean of n values, their standard deviation (n - 1), and the half width of the mean's 95 % interval by Student's t.
// Fewer than two values have neither.
struct Spread {
  int64_t n = 0;
  double mean = kNone, sd = kNone, half = kNone;
};
Spread spread(std::span<const double> values);

// The middle value, where infinity stands for "not reached yet": infinity if half of them or more are.
double median(std::vector<double> values);

// Student's paired t test of a[i] - b[i], two-sided. p is kNone below two pairs; without any spread it is 1 for no
// difference and 0 for one.
struct PairedTest {
  Spread difference;
  double p = kNone;
};
PairedTest paired_test(std::span<const double> a, std::span<const double> b);

// Holm's (1979) step-down correction: p values of a family of tests, adjusted so that below 0.05 the chance of even one
// false claim in the family is below 5 %. kNone is no test and stays.
std::vector<double> holm(const std::vector<double>& p);

// So many pairs a paired t test at `alpha` needs to find a difference of this mean and standard deviation with a chance
// of `power`; -1: more than 10,000.
int64_t pairs_needed(double mean, double sd, double alpha = 0.05, double power = 0.8);

// Wilson's (1927) 95 % interval of a share, from `right` of n.
struct Interval {
  double low, high;
};
Interval wilson(double right, double n);

// Standard error of a share measured on n independent images: no run can be known better than that.
double binomial_error(double share, double n);

}  // namespace linnet
