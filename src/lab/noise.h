// How noisy a batch's gradient is, and how large a batch is therefore worth its time: McCandlish, Kaplan, Amodei, "An
// Empirical Model of Large-Batch Training" (2018).
#pragma once
#include <vector>

#include "linnet/trainer.h"

namespace linnet {

// E |mean of B - mean|^2 of B out of n values of total variance sigma2, drawn without replacement: at B = n there is no
// noise. n = 0: with replacement, sigma2 / B.
double batch_variance(double sigma2, int64_t batch, int64_t n = 0);

// Of batches of one size, at fixed weights.
struct BatchNoise {
  int64_t batch = 0, batches = 0;
  double norm2 = 0;            // |mean gradient|^2, the noise's own share taken off; below 0 where there is only noise
  double variance = 0;         // E |g - mean|^2, summed over the weights: tr(Sigma) / batch
  double snr() const;          // |mean| / deviation
  double noise_scale() const;  // tr(Sigma) / |mean|^2, in images: the critical batch size
};
// From gradients of batches of `batch` images, one after another: their sum, and the sum of their squared norms.
BatchNoise batch_noise(int64_t batch, int64_t batches, const std::vector<double>& sum, double squares);

// At the weights of `net`, in training mode (batch norm uses each batch's own statistics), over `batches` batches of
// the source, without augmentation. Leaves the weights as they are; the running statistics move. At least 2 batches.
BatchNoise measure_noise(Net&, const BatchSource&, int64_t batch, int64_t batches);

}  // namespace linnet
