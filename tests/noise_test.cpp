// The noise of a batch's gradient: the laws, and what is measured where the answer is known.
#include "src/lab/noise.h"

#include <gtest/gtest.h>

#include <random>

#include "tiny_run.h"

namespace linnet {
namespace {

// s001_grad_variance_vs_B of the specification: g = .023, -.018, .031, .019.
TEST(Noise, TheVarianceOfAMeanFallsWithTheBatch) {
  const double sigma2 = 0.0003546875;
  EXPECT_NEAR(batch_variance(sigma2, 2), 0.00017734375, 1e-15);
  EXPECT_NEAR(batch_variance(sigma2, 4), 8.8671875e-05, 1e-15);
  EXPECT_NEAR(batch_variance(sigma2, 2, 4), 0.00011822916666666667, 1e-15);
  EXPECT_NEAR(batch_variance(sigma2, 3, 4), 3.9409722222222222e-05, 1e-15);
  EXPECT_EQ(batch_variance(sigma2, 4, 4), 0);
}

// s001_noise_scale_from_table: mean .00622, deviation of single images .0892.
TEST(Noise, TheScaleIsTheVarianceByTheSquaredMean) {
  const BatchNoise n{.batch = 1, .batches = 100, .norm2 = 0.00622 * 0.00622, .variance = 0.0892 * 0.0892};
  EXPECT_NEAR(n.noise_scale(), 205.65958, 1e-4);
  EXPECT_NEAR(n.snr(), 0.00622 / 0.0892, 1e-12);
}

TEST(Noise, IsFoundAgainInDrawnGradients) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  const size_t weights = 400;
  const int64_t batches = 200, batch = 8;
  std::vector<double> sum(weights, 0.0);
  double squares = 0;
  for (int64_t k = 0; k < batches; ++k)
    for (double& s : sum) {
      const double g = 0.1 + 2 / std::sqrt(double(batch)) * normal(random);  // of an image: mean 0.1, deviation 2
      s += g, squares += g * g;
    }
  const BatchNoise n = batch_noise(batch, batches, sum, squares);
  EXPECT_NEAR(n.variance * double(batch), weights * 4.0, weights * 4 * 0.03);
  EXPECT_NEAR(n.norm2, weights * 0.01, weights * 0.01 * 0.3);
  EXPECT_NEAR(n.noise_scale(), 400, 120);
}

TEST(Noise, OfANetFollowsTheLaw) {
  Config config = tiny_config("linear");  // no batch norm: its gradients are plain means
  config.data.samples = 600;
  config.train.precision = "f32";
  TinyRun run(config);
  const BatchSource source = upload_source(*run.backend, run.data.train, run.config.data.mean, run.config.data.std);
  const BatchNoise small = measure_noise(run.trainer.net(), source, 8, 72),
                   large = measure_noise(run.trainer.net(), source, 32, 18);
  EXPECT_NEAR(small.variance / large.variance, 4, 1);
  EXPECT_GT(large.snr(), small.snr());
  EXPECT_NEAR(small.norm2 / large.norm2, 1, 0.5);
}

}  // namespace
}  // namespace linnet
