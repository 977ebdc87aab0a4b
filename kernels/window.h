// Pooling and the parameter-free shortcut, over NHWC. Functors over (pixel, channel); the gradients gather (one call
// owns one input element), so no two calls ever add to the same place.
#pragma once
#include "hd.h"

namespace linnet {

// Pixel number `pixel` of images of height x width. No branches: what does not depend on the channel is computed once
// for a pixel's loop over channels only if it may be computed in any case.
struct PixelAt {
  int64_t image, row, column;
  LINNET_HD PixelAt(int64_t pixel, int64_t height, int64_t width) {
    const int64_t line = pixel / width;
    column = pixel - line * width;
    image = line / height;
    row = line - image * height;
  }
};

// The geometry of a window that slides over [batch, height, width, channels].
struct WindowShape {
  int64_t height, width, channels;  // of the input
  int64_t out_height, out_width;
  int size_h, size_w, stride, pad;
};

template <class T>
struct MaxPool {
  WindowShape s;
  const T* __restrict__ x;
  T* __restrict__ y;
  int32_t* __restrict__ where;  // h * width + w of the maximum; the first one wins, a NaN always does (as PyTorch)
  LINNET_HD void operator()(int64_t pixel, int64_t c) const {
    const PixelAt at(pixel, s.out_height, s.out_width);
    const int64_t ow = at.column, oh = at.row, image = at.image * s.height * s.width;
    float best = 0;
    int32_t best_at = -1;
    for (int i = 0; i < s.size_h; ++i)
      for (int j = 0; j < s.size_w; ++j) {
        const int64_t h = oh * s.stride - s.pad + i, w = ow * s.stride - s.pad + j;
        if (h < 0 || h >= s.height || w < 0 || w >= s.width) continue;
        const float v = float(x[(image + h * s.width + w) * s.channels + c]);
        if (best_at < 0 || v > best || v != v) {
          best = v;
          best_at = int32_t(h * s.width + w);
        }
      }
    y[pixel * s.channels + c] = T(best);
    where[pixel * s.channels + c] = best_at;
  }
};

// The range of output positions whose window covers input position `at`.
LINNET_HD void windows_over(int64_t at, int size, int stride, int pad, int64_t out, int64_t* first, int64_t* last) {
  const int64_t reach = at + pad - size + 1;
  *first = (reach > 0 ? reach + stride - 1 : 0) / stride;
  const int64_t end = (at + pad) / stride;
  *last = end < out - 1 ? end : out - 1;
}

template <class T>
struct MaxPoolGrad {
  WindowShape s;
  const T* __restrict__ dy;
  const int32_t* __restrict__ where;
  T* __restrict__ dx;
  LINNET_HD void operator()(int64_t pixel, int64_t c) const {
    const PixelAt at(pixel, s.height, s.width);
    const int64_t w = at.column, h = at.row, n = at.image;
    int64_t h0, h1, w0, w1;
    windows_over(h, s.size_h, s.stride, s.pad, s.out_height, &h0, &h1);
    windows_over(w, s.size_w, s.stride, s.pad, s.out_width, &w0, &w1);
    float sum = 0;
    for (int64_t oh = h0; oh <= h1; ++oh)
      for (int64_t ow = w0; ow <= w1; ++ow) {
        const int64_t o = ((n * s.out_height + oh) * s.out_width + ow) * s.channels + c;
        if (where[o] == int32_t(h * s.width + w)) sum += float(dy[o]);
      }
    dx[pixel * s.channels + c] = T(sum);
  }
};

// Mean over the whole window, padding counted as zeros (PyTorch's count_include_pad = True).
template <class T>
struct AvgPool {
  WindowShape s;
  const T* __restrict__ x;
  T* __restrict__ y;
  LINNET_HD void operator()(int64_t pixel, int64_t c) const {
    const PixelAt at(pixel, s.out_height, s.out_width);
    const int64_t ow = at.column, oh = at.row, image = at.image * s.height * s.width;
    float sum = 0;
    for (int i = 0; i < s.size_h; ++i)
      for (int j = 0; j < s.size_w; ++j) {
        const int64_t h = oh * s.stride - s.pad + i, w = ow * s.stride - s.pad + j;
        if (h < 0 || h >= s.height || w < 0 || w >= s.width) continue;
        sum += float(x[(image + h * s.width + w) * s.channels + c]);
      }
    y[pixel * s.channels + c] = T(sum / float(s.size_h * s.size_w));
  }
};
template <class T>
struct AvgPoolGrad {
  WindowShape s;
  const T* __restrict__ dy;
  T* __restrict__ dx;
  LINNET_HD void operator()(int64_t pixel, int64_t c) const {
    const PixelAt at(pixel, s.height, s.width);
    const int64_t w = at.column, h = at.row, n = at.image;
    int64_t h0, h1, w0, w1;
    windows_over(h, s.size_h, s.stride, s.pad, s.out_height, &h0, &h1);
    windows_over(w, s.size_w, s.stride, s.pad, s.out_width, &w0, &w1);
    const float area = float(s.size_h * s.size_w);
    if (h0 == h1 && w0 == w1) {  // the usual case, and one whose loop over channels uses vectors
      dx[pixel * s.channels + c] = T(float(dy[((n * s.out_height + h0) * s.out_width + w0) * s.channels + c]) / area);
      return;
    }
    float sum = 0;
    for (int64_t oh = h0; oh <= h1; ++oh)
      for (int64_t ow = w0; ow <= w1; ++ow)
        sum += float(dy[((n * s.out_height + oh) * s.out_width + ow) * s.channels + c]);
    dx[pixel * s.channels + c] = T(sum / area);
  }
};

// Shortcut "A" of He et al. 2016: every stride-th pixel, new channels zero. As the common CIFAR code does, half of the
// new channels go in front: output channel c is input channel c - shift.
struct ShortcutShape {
  int64_t height, width, channels;  // of the input
  int64_t out_height, out_width, out_channels;
  int stride;
  int64_t shift;
};
template <class T>
struct Shortcut {
  ShortcutShape s;
  const T* __restrict__ x;
  T* __restrict__ y;
  LINNET_HD void operator()(int64_t pixel, int64_t c) const {
    const PixelAt at(pixel, s.out_height, s.out_width);
    const int64_t ow = at.column, oh = at.row, from = c - s.shift;
    const int64_t in = ((at.image * s.height + oh * s.stride) * s.width + ow * s.stride) * s.channels + from;
    y[pixel * s.out_channels + c] = from >= 0 && from < s.channels ? x[in] : T(0.f);
  }
};
template <class T>
struct ShortcutGrad {
  ShortcutShape s;
  const T* __restrict__ dy;
  T* __restrict__ dx;
  LINNET_HD void operator()(int64_t pixel, int64_t c) const {
    const PixelAt at(pixel, s.height, s.width);
    const int64_t w = at.column, h = at.row, n = at.image;
    const bool taken = h % s.stride == 0 && w % s.stride == 0;
    const int64_t out = ((n * s.out_height + h / s.stride) * s.out_width + w / s.stride) * s.out_channels + c + s.shift;
    dx[pixel * s.channels + c] = taken ? dy[out] : T(0.f);
  }
};

}  // namespace linnet
