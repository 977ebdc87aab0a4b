#include "src/lab/noise.h"

#include <algorithm>
#include <cmath>

#include "src/lab/checks.h"

namespace linnet {

double batch_variance(double sigma2, int64_t batch, int64_t n) {
  const double law = sigma2 / double(batch);
  return n == 0 ? law : n == 1 ? 0 : law * double(n - batch) / double(n - 1);
}

double BatchNoise::snr() const { return std::sqrt(std::max(0.0, norm2) / variance); }

double BatchNoise::noise_scale() const {
  return norm2 > 0 ? variance * double(batch) / norm2 : std::numeric_limits<double>::infinity();
}

BatchNoise batch_noise(int64_t batch, int64_t batches, const std::vector<double>& sum, double squares) {
  const auto k = double(batches);
  double mean2 = 0;
  for (const double s : sum) mean2 += s / k * (s / k);
  BatchNoise noise{.batch = batch, .batches = batches};
  noise.variance = (squares / k - mean2) * k / (k - 1);
  noise.norm2 = mean2 - noise.variance / k;  // the mean of k noisy gradients is too long by this
  return noise;
}

BatchNoise measure_noise(Net& net, const BatchSource& source, int64_t batch, int64_t batches) {
  batches = std::min(batches, source.order.numel() / batch);
  require(batches >= 2, "[noise] {} images are not two batches of {}", source.order.numel(), batch);
  std::vector<double> sum(size_t(net.params().flat().n_trainable), 0.0);
  double squares = 0;
  for (int64_t k = 0; k < batches; ++k) {
    gradients_of(net, plain_batch(net, source, batch, k * batch));
    const std::vector<float> g = on_host(net.backend(), net.params().flat().grad);
    for (size_t i = 0; i < sum.size(); ++i) {
      sum[i] += double(g[i]);
      squares += double(g[i]) * double(g[i]);
    }
  }
  return batch_noise(batch, batches, sum, squares);
}

}  // namespace linnet
