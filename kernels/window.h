// Pooling and the parameter-free shortcut, over NHWC. Functors over (pixel, channel); the gradients gather (one call
// owns one input element), so no two calls ever add to the same place. row(pixel, channels) is the same for all
// channels of a pixel: the form whose loops a CPU runs with vector instructions.
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
  LINNET_HD void row(int64_t pixel, int64_t channels) const {
    const PixelAt at(pixel, s.out_height, s.out_width);
    T* __restrict__ best = y + pixel * channels;
    int32_t* __restrict__ best_at = where + pixel * channels;
    bool fresh = true;
    for (int i = 0; i < s.size_h; ++i)
      for (int j = 0; j < s.size_w; ++j) {
        const int64_t h = at.row * s.stride - s.pad + i, w = at.column * s.stride - s.pad + j;
        if (h < 0 || h >= s.height || w < 0 || w >= s.width) continue;
        const T* __restrict__ v = x + ((at.image * s.height + h) * s.width + w) * channels;
        const int32_t here = int32_t(h * s.width + w);
        if (fresh) {
          for (int64_t c = 0; c < channels; ++c) best[c] = v[c];
          for (int64_t c = 0; c < channels; ++c) best_at[c] = here;
        }
        // Comparisons without short cuts, and floats to choose from: what vector instructions can do.
        for (int64_t c = 0; !fresh && c < channels; ++c) {
          const float old = float(best[c]), now = float(v[c]);
          const bool take = bool(int(now > old) | int(now != now));
          best[c] = T(take ? now : old);
          best_at[c] = take ? here : best_at[c];
        }
        fresh = false;
      }
    for (int64_t c = 0; fresh && c < channels; ++c) {
      best[c] = T(0.f);
      best_at[c] = -1;
    }
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
  LINNET_HD void row(int64_t pixel, int64_t channels) const {
    const PixelAt at(pixel, s.height, s.width);
    int64_t h0, h1, w0, w1;
    windows_over(at.row, s.size_h, s.stride, s.pad, s.out_height, &h0, &h1);
    windows_over(at.column, s.size_w, s.stride, s.pad, s.out_width, &w0, &w1);
    if (h0 != h1 || w0 != w1) {  // none, or several
      for (int64_t c = 0; c < channels; ++c) (*this)(pixel, c);
      return;
    }
    const int64_t o = ((at.image * s.out_height + h0) * s.out_width + w0) * channels;
    const T* __restrict__ g = dy + o;
    const int32_t* __restrict__ from = where + o;
    T* __restrict__ out = dx + pixel * channels;
    const int32_t here = int32_t(at.row * s.width + at.column);
    for (int64_t c = 0; c < channels; ++c) out[c] = T(from[c] == here ? float(g[c]) : 0.f);
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
  LINNET_HD void row(int64_t pixel, int64_t channels) const {
    constexpr int64_t kTogether = 16;
    int64_t first = 0;
    for (; first + kTogether <= channels; first += kTogether) several<kTogether>(pixel, first);
    for (; first < channels; ++first) (*this)(pixel, first);
  }

 private:
  // The same sums for `kCount` channels at once.
  template <int64_t kCount>
  LINNET_HD void several(int64_t pixel, int64_t first) const {
    const PixelAt at(pixel, s.out_height, s.out_width);
    float sum[kCount] = {};
    for (int i = 0; i < s.size_h; ++i)
      for (int j = 0; j < s.size_w; ++j) {
        const int64_t h = at.row * s.stride - s.pad + i, w = at.column * s.stride - s.pad + j;
        if (h < 0 || h >= s.height || w < 0 || w >= s.width) continue;
        const T* __restrict__ v = x + ((at.image * s.height + h) * s.width + w) * s.channels + first;
        for (int64_t c = 0; c < kCount; ++c) sum[c] += float(v[c]);
      }
    T* __restrict__ out = y + pixel * s.channels + first;
    for (int64_t c = 0; c < kCount; ++c) out[c] = T(sum[c] / float(s.size_h * s.size_w));
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
    float sum = 0;
    for (int64_t oh = h0; oh <= h1; ++oh)
      for (int64_t ow = w0; ow <= w1; ++ow)
        sum += float(dy[((n * s.out_height + oh) * s.out_width + ow) * s.channels + c]);
    dx[pixel * s.channels + c] = T(sum / area);
  }
  LINNET_HD void row(int64_t pixel, int64_t channels) const {
    const PixelAt at(pixel, s.height, s.width);
    int64_t h0, h1, w0, w1;
    windows_over(at.row, s.size_h, s.stride, s.pad, s.out_height, &h0, &h1);
    windows_over(at.column, s.size_w, s.stride, s.pad, s.out_width, &w0, &w1);
    if (h0 != h1 || w0 != w1) {  // none, or several
      for (int64_t c = 0; c < channels; ++c) (*this)(pixel, c);
      return;
    }
    const T* __restrict__ g = dy + ((at.image * s.out_height + h0) * s.out_width + w0) * channels;
    T* __restrict__ out = dx + pixel * channels;
    const float area = float(s.size_h * s.size_w);
    for (int64_t c = 0; c < channels; ++c) out[c] = T(float(g[c]) / area);
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
  LINNET_HD void row(int64_t pixel, int64_t channels) const {
    const PixelAt at(pixel, s.out_height, s.out_width);
    const T* __restrict__ from =
        x + ((at.image * s.height + at.row * s.stride) * s.width + at.column * s.stride) * s.channels;
    T* __restrict__ out = y + pixel * channels;
    __builtin_memset(out, 0, uint64_t(s.shift) * sizeof(T));  // all bits 0: 0 in every type
    __builtin_memcpy(out + s.shift, from, uint64_t(s.channels) * sizeof(T));
    const int64_t end = s.shift + s.channels;
    __builtin_memset(out + end, 0, uint64_t(channels - end) * sizeof(T));
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
  LINNET_HD void row(int64_t pixel, int64_t channels) const {
    const PixelAt at(pixel, s.height, s.width);
    const int64_t line = at.row / s.stride, column = at.column / s.stride;
    const bool taken = line * s.stride == at.row && column * s.stride == at.column;
    T* __restrict__ out = dx + pixel * channels;
    const T* __restrict__ from =
        dy + ((at.image * s.out_height + line) * s.out_width + column) * s.out_channels + s.shift;
    if (taken)
      __builtin_memcpy(out, from, uint64_t(channels) * sizeof(T));
    else
      __builtin_memset(out, 0, uint64_t(channels) * sizeof(T));
  }
};

}  // namespace linnet
