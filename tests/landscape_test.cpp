// Toy landscapes: their gradients, the specification's worked examples on them, and what section 1.9 says of
// optimizers.
#include "src/lab/landscape.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "linnet/optimizer.h"
#include "tests/golden.h"

namespace linnet {
namespace {

using nlohmann::json;

const Landscape& land(std::string_view name) {
  for (const Landscape& l : landscapes())
    if (l.name == name) return l;
  throw std::runtime_error("no such landscape");
}

OptimizerConfig with(const std::string& name, double lr, double momentum = 0) {
  OptimizerConfig o = default_settings(name, "pytorch");
  o.lr = lr;
  o.momentum = momentum;
  return o;
}

json worked(const char* name) {
  const auto path = golden("goldens.json");
  return json::parse(std::ifstream(path)).at(name).at("correct");
}

TEST(Landscapes, GradientsAreThoseOfTheFunction) {
  for (const Landscape& l : landscapes()) {
    if (l.name == "noisy" || l.name == "sparse") continue;
    for (const double shift : {0.0, 0.3, -0.7}) {
      std::vector<double> w = l.start;
      for (double& x : w) x += shift;
      const std::vector<double> g = l.gradient(1, w);
      for (size_t i = 0; i < w.size(); ++i) {
        std::vector<double> up = w, down = w;
        up[i] += 1e-6, down[i] -= 1e-6;
        EXPECT_NEAR(g[i], (l.f(up) - l.f(down)) / 2e-6, 1e-5 * std::max(1.0, std::fabs(g[i]))) << l.name;
      }
    }
  }
}

TEST(Landscapes, TheRavineTakesTheStepsOfTheSpecification) {
  const json want = worked("s004_ravine_iters");
  const auto steps = [&](const OptimizerConfig& o) { return walk(land("ravine"), o, 1000).converged; };
  EXPECT_EQ(steps(with("sgd", 0.05)), want["gd_lr0.05"]);
  EXPECT_EQ(steps(with("sgd", 0.09)), want["gd_lr0.09"]);
  EXPECT_EQ(steps(with("sgd", 0.0909090909)), want["gd_lr0.0909090909"]);
  EXPECT_EQ(steps(with("sgd", 0.1)), -1);  // w2 is +-2 for ever
  EXPECT_EQ(steps(with("sgd", 0.01, 0.9)), want["mom_lr0.01_b0.9"]);
  EXPECT_EQ(steps(with("sgd", 0.05, 0.5)), want["mom_lr0.05_b0.5"]);
  EXPECT_EQ(steps(with("sgd", 0.11545, 0.27)), want["mom_lr0.11545_b0.27"]);
  EXPECT_EQ(steps(with("nag", 0.01, 0.9)), want["nag_lr0.01_b0.9"]);
  EXPECT_EQ(steps(with("nag", 0.05, 0.5)), want["nag_lr0.05_b0.5"]);
  EXPECT_EQ(steps(with("adam", 0.1)), want["adam_lr0.1"]);
}

TEST(Landscapes, MinimaAreLowestAndFlat) {
  for (const Landscape& l : landscapes())
    for (const std::vector<double>& w : l.minima) {
      EXPECT_NEAR(l.f(w), l.lowest, 1e-12) << l.name;
      for (const double g : l.gradient(10, w)) EXPECT_NEAR(g, 0, 1e-12) << l.name;
    }
}

// Lion's steps keep their length: it swings through the goal, and some step is the last one of a run.
TEST(Landscapes, ALastStepBelowTheGoalIsNoArrival) {
  for (const int64_t steps : {999, 1000, 2001}) EXPECT_EQ(walk(land("bowl"), with("lion", 0.01), steps).converged, -1);
  EXPECT_EQ(walk(land("ravine"), with("sgd", 0.09), 43).converged, 43);  // seen to stay below behind its last step
  EXPECT_EQ(walk(land("ravine"), with("sgd", 0.09), 42).converged, -1);
}

TEST(Landscapes, ReversalsAreCountedUpToTheGoal) {
  const double turned = walk(land("ravine"), with("sgd", 0.09), 1000).turned;
  EXPECT_EQ(turned, 1);  // w2 changes its sign in each step
  EXPECT_EQ(walk(land("ravine"), with("sgd", 0.09), 3000).turned, turned);
  EXPECT_EQ(walk(land("ravine"), with("sgd", 0.1), 50).turned, 1);     // never there: all of them
  EXPECT_EQ(walk(land("ravine"), with("sgd", 0.05), 1000).turned, 0);  // w2 is 0 after a step, but for rounding
}

TEST(Landscapes, TheRavinesFirstStepsAreThoseOfTheSpecification) {
  const json want = worked("s004_ravine_traj");
  const auto expect = [&](const char* name, const OptimizerConfig& o) {
    const Path p = walk(land("ravine"), o, 5);
    for (size_t t = 0; t < 5; ++t)
      for (size_t i = 0; i < 2; ++i) EXPECT_NEAR(p.w[t + 1][i], want[name][t][i], 1e-12) << name;
  };
  expect("gd_lr01", with("sgd", 0.1));
  expect("mom_lr001_b09", with("sgd", 0.01, 0.9));
  expect("nag_lr001_b09", with("nag", 0.01, 0.9));
  expect("adam_lr01", with("adam", 0.1));
}

TEST(Landscapes, RosenbrockExplodesWhereTheSpecificationSays) {
  const json runs = worked("s004_rosenbrock")["runs"]["(-1.2,1)"];
  const Path good = walk(land("rosenbrock"), with("sgd", 0.001), 20000);
  EXPECT_NEAR(good.f.back(), runs["gd_001"]["f"], 1e-12);  // not "stuck"
  for (const double lr : {0.01, 0.1}) EXPECT_TRUE(walk(land("rosenbrock"), with("sgd", lr), 50).diverged);
}

// E29 and section 1.9, each as an ordering.
TEST(Landscapes, MomentumRollsOutOfALocalMinimum) {
  const Path plain = walk(land("bumpy"), with("sgd", 0.02), 2000),
             heavy = walk(land("bumpy"), with("sgd", 0.02, 0.95), 2000);
  EXPECT_EQ(plain.converged, -1);
  EXPECT_GT(plain.f.back(), 0.5);
  EXPECT_LT(heavy.f.back(), plain.f.back());
}

TEST(Landscapes, AdaptiveRatesHelpASparseColumn) {
  const Path sgd = walk(land("sparse"), with("sgd", 0.1), 200),
             adagrad = walk(land("sparse"), with("adagrad", 0.5), 200);
  ASSERT_GE(adagrad.converged, 0);
  EXPECT_TRUE(sgd.converged < 0 || adagrad.converged < sgd.converged);
}

TEST(Landscapes, AdaGradsStepsBecomeShort) {
  const Path p = walk(land("noisy"), with("adagrad", 0.01), 400);
  const auto step = [&](size_t t) { return std::fabs(p.w[t + 1][0] - p.w[t][0]); };
  EXPECT_GT(step(0), 10 * step(398));  // about 1 / sqrt t
}

TEST(Landscapes, NesterovReversesLessThanMomentum) {
  const Path heavy = walk(land("ravine"), with("sgd", 0.04, 0.9), 300),
             nag = walk(land("ravine"), with("nag", 0.04, 0.9), 300);
  EXPECT_LT(nag.travelled, heavy.travelled);
}

TEST(Landscapes, ContoursLieAtTheirHeight) {
  const Landscape& l = land("bowl");
  const std::vector<Segment2> segments = contour(l, 4, 100);
  ASSERT_GT(segments.size(), 100u);
  for (const Segment2& s : segments) EXPECT_NEAR(std::hypot(s.x0, s.y0), 2, 0.01);
}

}  // namespace
}  // namespace linnet
