// The report's statistics, beside SciPy's and statsmodels' (scripts/reference_stats.py wrote the golden numbers).
#include "src/report/statistics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "src/core/json.h"

namespace linnet {
namespace {

const Json& golden() {
  static const Json all = read_json("tests/golden/statistics.json", Exit::failure);
  return all;
}

void expect_near(double got, double want, const std::string& what) {
  EXPECT_TRUE(std::fabs(got - want) <= 1e-9 * std::max(1.0, std::fabs(want)) && std::isfinite(got))
      << what << ": " << got << " instead of " << want;
}

// Relative: a p value of 1e-9 has to be right, too.
void expect_close(double got, double want, const std::string& what) {
  EXPECT_TRUE(std::fabs(got / want - 1) <= 1e-6) << what << ": " << got << " instead of " << want;
}

TEST(Statistics, MeansAndIntervalsAreScipys) {
  for (const auto& [name, sample] : golden()["samples"].items()) {
    const Spread s = spread(sample["values"].get<std::vector<double>>());
    expect_near(s.mean, sample["mean"], name);
    expect_close(s.sd, sample["sd"], name);
    expect_close(s.half, sample["half"], name);
  }
}

TEST(Statistics, PairedTestsAreScipys) {
  const Json all = golden();
  int n = 0;
  for (const Json& pair : all["pairs"]) {
    const auto values = [&](const char* side) {
      return all["samples"][pair[side].get<std::string>()]["values"].get<std::vector<double>>();
    };
    const PairedTest t = paired_test(values("a"), values("b"));
    const std::string what = pair["a"].get<std::string>() + " - " + pair["b"].get<std::string>();
    expect_near(t.difference.mean, pair["mean"], what);
    expect_close(t.difference.half, pair["half"], what);
    expect_close(t.p, pair["p"], what);
    ++n;
  }
  EXPECT_GE(n, 4);
}

TEST(Statistics, HolmsCorrectionIsStatsmodels) {
  for (const Json& family : golden()["holm"]) {
    const auto p = family["p"].get<std::vector<double>>(), want = family["adjusted"].get<std::vector<double>>();
    const std::vector<double> got = holm(p);
    for (size_t i = 0; i < p.size(); ++i) expect_near(got[i], want[i], "p " + std::to_string(i));
    // What is no test changes nothing, wherever it stands.
    std::vector<double> with_gap = p;
    with_gap.insert(with_gap.begin(), kNone);
    const std::vector<double> again = holm(with_gap);
    EXPECT_TRUE(std::isnan(again[0]));
    for (size_t i = 0; i < p.size(); ++i) expect_near(again[i + 1], want[i], "with a gap");
  }
}

TEST(Statistics, PairsNeededHaveThePower) {
  for (const Json& c : golden()["pairs_needed"])
    EXPECT_EQ(pairs_needed(c["mean"], c["sd"], c["alpha"], c["power"]), c["n"].get<int64_t>()) << c;
  EXPECT_EQ(pairs_needed(0, 0.1), -1);
  EXPECT_EQ(pairs_needed(0.1, 0), -1);
  EXPECT_EQ(pairs_needed(1e-6, 0.1), -1);
  EXPECT_EQ(pairs_needed(-0.004, 0.005), pairs_needed(0.004, 0.005));
  EXPECT_EQ(pairs_needed(1, 1e-4), 2);
}

TEST(Statistics, WilsonsIntervalIsStatsmodels) {
  for (const Json& c : golden()["wilson"]) {
    const Interval w = wilson(c["right"], c["n"]);
    expect_near(w.low, c["low"], c.dump());
    expect_near(w.high, c["high"], c.dump());
  }
  expect_near(100 * binomial_error(0.92, 10000), 0.2712931993250107, "sqrt(0.92 * 0.08 / 10000)");
}

TEST(Statistics, OfTooFewValuesNothingIsSaid) {
  EXPECT_TRUE(std::isnan(spread({}).mean));
  const std::vector<double> one = {0.5}, other = {0.4};
  EXPECT_EQ(spread(one).mean, 0.5);
  EXPECT_TRUE(std::isnan(spread(one).sd));
  EXPECT_TRUE(std::isnan(spread(one).half));
  EXPECT_TRUE(std::isnan(paired_test(one, other).p));
  const std::vector<double> same = {0.5, 0.6}, shifted = {0.75, 0.85};
  EXPECT_EQ(paired_test(same, same).p, 1);
  EXPECT_LT(paired_test(shifted, same).p, 1e-12);  // no spread but for rounding
}

TEST(Statistics, TheMedianCountsWhatWasNeverReachedAsLate) {
  constexpr double kNever = std::numeric_limits<double>::infinity();
  EXPECT_EQ(median({3, 1, 2}), 2);
  EXPECT_EQ(median({4, 1, 2, 3}), 2.5);
  EXPECT_EQ(median({kNever, 1, 2}), 2);
  EXPECT_EQ(median({kNever, 1, 2, kNever}), kNever);
  EXPECT_EQ(median({kNever, kNever, kNever, kNever}), kNever);
  EXPECT_EQ(median({kNever, kNever, 1}), kNever);
  EXPECT_TRUE(std::isnan(median({})));
}

}  // namespace
}  // namespace linnet
