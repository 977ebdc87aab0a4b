// Losses. Each functor computes a row's loss and its gradient at once.
#pragma once
#include "hd.h"

namespace linnet {

// Softmax cross-entropy with label smoothing (torch.nn.functional.cross_entropy): with p = softmax(z) and the target
// q = (1 - s) * onehot + s / C, loss = -sum q log p and d loss / dz = p - q. A mixed row has two labels: the onehot is
// share * onehot(label) + (1 - share) * onehot(partner). A row whose label is -1 is padding: no loss, no gradient, not
// counted.
template <class T>
struct SoftmaxLoss {  // over rows
  const T* __restrict__ logits;
  const int32_t* __restrict__ labels;
  const int32_t* __restrict__ partners;  // both null: no second label
  const float* __restrict__ shares;
  T* __restrict__ dlogits;
  float* __restrict__ stats;  // [rows, 2]: loss, 1 if the largest logit is the label's with the larger share
  int64_t classes;
  float smoothing, scale;  // scale multiplies the gradient: 1 / batch for a mean
  LINNET_HD void operator()(int64_t row) const {
    const T* z = logits + row * classes;
    T* dz = dlogits + row * classes;
    const int32_t label = labels[row];
    if (label < 0) {
      for (int64_t c = 0; c < classes; ++c) dz[c] = T(0.f);
      stats[row * 2] = stats[row * 2 + 1] = 0;
      return;
    }
    float top = float(z[0]);
    int64_t best = 0;
    for (int64_t c = 1; c < classes; ++c)
      if (float(z[c]) > top) {
        top = float(z[c]);
        best = c;
      }
    float sum = 0, sum_z = 0;
    for (int64_t c = 0; c < classes; ++c) {
      sum += expf(float(z[c]) - top);
      sum_z += float(z[c]) - top;
    }
    const float log_sum = logf(sum), even = smoothing / float(classes);
    // -sum q log p, with log p_c = z_c - top - log_sum
    float hit = float(z[label]) - top - log_sum;
    const int32_t partner = partners ? partners[row] : label;
    // Of two equal labels one has the whole share.
    const float share = partner == label ? 1.f : shares[row];
    if (share < 1) hit = (share > 0 ? share * hit : 0.f) + (1 - share) * (float(z[partner]) - top - log_sum);
    // Without smoothing the other classes stay out: one of them may be ruled out by a logit of minus infinity.
    const float others = smoothing > 0 ? even * (sum_z - float(classes) * log_sum) : 0.f;
    stats[row * 2] = -(1 - smoothing) * hit - others;
    stats[row * 2 + 1] = best == (share < 0.5f ? partner : label) ? 1.f : 0.f;
    const auto grad = [&](int64_t c, float of_labels) {
      const float p = expf(float(z[c]) - top - log_sum);
      return T((p - even - (1 - smoothing) * of_labels) * scale);
    };
    for (int64_t c = 0; c < classes; ++c) dz[c] = grad(c, c == label ? share : 0.f);
    if (share < 1) dz[partner] = grad(partner, 1 - share);
  }
};

// loss[0] = scale * sum over rows of stats[row, 0], rows in order.
struct LossOfStats {
  const float* __restrict__ stats;
  float* __restrict__ loss;
  int64_t rows;
  float scale;
  LINNET_HD void operator()(int64_t) const {
    double sum = 0;
    for (int64_t r = 0; r < rows; ++r) sum += double(stats[r * 2]);
    loss[0] = float(sum * double(scale));
  }
};

// totals[c] += sum over rows of stats[row, c]: what an epoch's metrics are read from.
struct AccumulateStats {  // over columns
  const float* __restrict__ stats;
  double* __restrict__ totals;
  int64_t rows, columns;
  LINNET_HD void operator()(int64_t c) const {
    double sum = 0;
    for (int64_t r = 0; r < rows; ++r) sum += double(stats[r * columns + c]);
    totals[c] += sum;
  }
};

// Mean squared error (torch.nn.functional.mse_loss): mean over all elements of (x - t)^2.
template <class T>
struct SquaredError {
  const T* __restrict__ x;
  const T* __restrict__ target;
  LINNET_HD double operator()(int64_t i) const {
    const double d = double(float(x[i])) - double(float(target[i]));
    return d * d;
  }
};
template <class T>
struct SquaredErrorGrad {
  const T* __restrict__ x;
  const T* __restrict__ target;
  T* __restrict__ dx;
  float scale;  // 2 / n
  LINNET_HD void operator()(int64_t i) const { dx[i] = T(scale * (float(x[i]) - float(target[i]))); }
};
struct WriteScaled {
  float* out;
  double scale;
  LINNET_HD void operator()(double total) const { out[0] = float(total * scale); }
};

}  // namespace linnet
