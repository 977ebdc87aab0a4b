// Temperature and calibration error, against numbers worked out by hand.
#include "linnet/calibration.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "kernels/rng.h"
#include "linnet/error.h"
#include "tests/temp_dir.h"

namespace linnet {
namespace {

TEST(Calibration, ProbabilitiesAreTheSoftmax) {
  const std::vector<double> p = probabilities(std::vector<float>{1000, 1000 + std::log(3.f)}, 1);
  EXPECT_NEAR(p[0], 0.25, 1e-5);
  EXPECT_NEAR(p[1], 0.75, 1e-5);
  EXPECT_NEAR(probabilities(std::vector<float>{0, 2}, 2)[1], 1 / (1 + std::exp(-1.0)), 1e-12);
}

TEST(Calibration, TheErrorIsTheGapBetweenConfidenceAndAccuracy) {
  // Two bins: confidence 0.9, 3 of 4 right; confidence 0.6, both right.
  std::vector<float> logits;
  for (int i = 0; i < 4; ++i) logits.insert(logits.end(), {std::log(9.f), 0});
  for (int i = 0; i < 2; ++i) logits.insert(logits.end(), {0, std::log(1.5f)});
  const std::vector<int32_t> labels = {0, 0, 0, 1, 1, 1};
  EXPECT_NEAR(calibration_error(logits, labels), (4 * 0.15 + 2 * 0.4) / 6, 1e-6);
  EXPECT_NEAR(mean_nll(logits, labels), -(3 * std::log(0.9) + std::log(0.1) + 2 * std::log(0.6)) / 6, 1e-6);
}

TEST(Calibration, TheTemperatureThatMadeTheLogitsIsFound) {
  // Labels are drawn from softmax(z); the logits given are 3 z, so the temperature is 3.
  std::vector<float> logits;
  std::vector<int32_t> labels;
  for (uint64_t i = 0; i < 20000; ++i) {
    const Random4 r = random4(1, Draw::test, i);
    const float z = 2 * normal_float(r.v[0], r.v[1]);
    logits.insert(logits.end(), {3 * z, 0});
    labels.push_back(unit_float(r.v[2]) < 1 / (1 + std::exp(-z)) ? 0 : 1);
  }
  const Calibration c = calibrate(logits, labels, {});
  EXPECT_NEAR(c.temperature, 3, 0.15);
  EXPECT_LT(c.nll_after, c.nll_before);
  EXPECT_LT(c.ece_after, 0.01);
  EXPECT_GT(c.ece_before, 0.05);
}

TEST(Calibration, APerfectClassifierStaysWithinTheBounds) {
  const std::vector<float> logits = {5, 0, 0, 5};
  EXPECT_NEAR(fit_temperature(logits, std::vector<int32_t>{0, 1}), 0.05, 1e-3);
  EXPECT_NEAR(fit_temperature(logits, std::vector<int32_t>{1, 0}), 20, 1e-2);
  EXPECT_THROW(fit_temperature(logits, std::vector<int32_t>{2, 0}), Error);
}

TEST(Calibration, AFileIsReadBackOrRefused) {
  const TempDir dir;
  EXPECT_FALSE(read_calibration(dir.path()));
  write_calibration(dir.path(), {1.5, 100, 0.5, 0.25, 0.125, 0.0625, "abc"});
  const Calibration c = *read_calibration(dir.path());
  EXPECT_EQ(c.temperature, 1.5);
  EXPECT_EQ(c.images, 100);
  EXPECT_EQ(c.ece_after, 0.0625);
  EXPECT_EQ(c.weights, "abc");
  for (const char* bad :
       {"", "{}", "[]", "{\"temperature\": \"hot\"}",
        R"({"temperature":0,"images":1,"nll":{"before":1,"after":1},"ece":{"before":1,"after":1},"weights":""})",
        R"({"temperature":1,"images":1.5,"nll":{"before":1,"after":1},"ece":{"before":1,"after":1},"weights":""})"}) {
    std::ofstream(dir / "calibration.json") << bad;
    EXPECT_THROW(read_calibration(dir.path()), Error) << bad;
  }
}

}  // namespace
}  // namespace linnet
