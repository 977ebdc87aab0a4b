#include "plain_convolution.h"

#include <algorithm>

namespace linnet {

namespace {

// In NHWC a row of the window is one run of memory in the image, and one in the weights. Calls run(output, pixels,
// weights, count) for every output element and row of its window that lies in the image: offsets into y, x and weights.
template <class F>
void for_runs(const PlainShape& p, int64_t first, int64_t end, const F& run) {
  for (int64_t n = first; n < end; ++n)
    for (int64_t oh = 0; oh < p.oh; ++oh)
      for (int64_t ow = 0; ow < p.ow; ++ow)
        for (int64_t i = 0; i < p.r; ++i) {
          const int64_t h = oh * p.stride - p.pad + i, left = ow * p.stride - p.pad;
          const int64_t from = std::max<int64_t>(0, -left), to = std::min(p.s, p.w - left);
          if (h < 0 || h >= p.h || from >= to) continue;
          const int64_t pixels = ((n * p.h + h) * p.w + left + from) * p.c, count = (to - from) * p.c;
          for (int64_t k = 0; k < p.k; ++k)
            run(((n * p.oh + oh) * p.ow + ow) * p.k + k, pixels, ((k * p.r + i) * p.s + from) * p.c, count);
        }
}

}  // namespace

void plain_forward(float* y, const float* x, const float* weights, const PlainShape& p, int64_t first, int64_t end) {
  const int64_t image = p.oh * p.ow * p.k;
  std::fill(y + first * image, y + end * image, 0.f);
  for_runs(p, first, end, [&](int64_t out, int64_t pixels, int64_t w, int64_t count) {
    constexpr int kSums = 8;  // of their own, so that the loop can use vectors
    float sums[kSums] = {};
    int64_t i = 0;
    for (; i + kSums <= count; i += kSums)
      for (int lane = 0; lane < kSums; ++lane) sums[lane] += x[pixels + i + lane] * weights[w + i + lane];
    for (; i < count; ++i) sums[0] += x[pixels + i] * weights[w + i];
    float sum = 0;
    for (const float s : sums) sum += s;
    y[out] += sum;
  });
}

void plain_backward_data(float* dx, const float* dy, const float* weights, const PlainShape& p, int64_t first,
                         int64_t end) {
  const int64_t image = p.h * p.w * p.c;
  std::fill(dx + first * image, dx + end * image, 0.f);
  for_runs(p, first, end, [&](int64_t out, int64_t pixels, int64_t w, int64_t count) {
    for (int64_t i = 0; i < count; ++i) dx[pixels + i] += dy[out] * weights[w + i];
  });
}

void plain_backward_weight(float* dw, const float* dy, const float* x, const PlainShape& p, int64_t first,
                           int64_t end) {
  std::fill_n(dw, p.k * p.r * p.s * p.c, 0.f);
  for_runs(p, first, end, [&](int64_t out, int64_t pixels, int64_t w, int64_t count) {
    for (int64_t i = 0; i < count; ++i) dw[w + i] += dy[out] * x[pixels + i];
  });
}

}  // namespace linnet
