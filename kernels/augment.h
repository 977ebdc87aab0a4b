// A training batch from the resident uint8 images: gather, random crop, random flip, normalise. Two functors, so that
// the draw of a sample can be tested (and computed) alone.
#pragma once
#include "rng.h"
#include "step.h"

namespace linnet {

// What was drawn for one sample of the batch. item -1: past the end of the order (evaluation pads its last batch).
struct SampleDraw {
  int32_t item, dx, dy, flip;
};

// Over samples of the batch. The draw depends on (seed, epoch, item) only, never on the batch or the thread.
struct DrawSamples {
  const int32_t* __restrict__ order;  // the epoch's permutation, `count` long
  const int32_t* __restrict__ labels;
  int64_t count;
  SampleDraw* __restrict__ draws;
  int32_t* __restrict__ batch_labels;
  const StepParams* __restrict__ params;
  int crop_pad;
  bool flip;
  LINNET_HD void operator()(int64_t n) const {
    const int64_t at = params->first + n;
    if (at >= count) {
      draws[n] = {-1, 0, 0, 0};
      batch_labels[n] = -1;
      return;
    }
    const int32_t item = order[at];
    const Random4 r = random4(params->seed, Draw::augment, uint64_t(item), uint32_t(params->epoch));
    const uint32_t range = uint32_t(2 * crop_pad + 1);
    draws[n] = {item, int32_t(below(r.v[0], range)) - crop_pad, int32_t(below(r.v[1], range)) - crop_pad,
                flip ? int32_t(r.v[2] >> 31) : 0};
    batch_labels[n] = labels[item];
  }
};

// Over rows (n, y) of the output and pixels x in a row. Output pixel (y, x) shows source (y + dy, x + dx), mirrored in
// x after the crop as torchvision's RandomCrop, RandomHorizontalFlip do; outside the image it is black, before
// normalising.
template <class T>
struct CropFlipNormalize {
  const uint8_t* __restrict__ images;
  const SampleDraw* __restrict__ draws;
  const float* __restrict__ table;  // [256, channels]: (v / 255 - mean) / std
  T* __restrict__ out;
  int64_t height, width, channels;
  LINNET_HD void operator()(int64_t row, int64_t x) const {
    const int64_t n = row / height, y = row % height;
    const SampleDraw d = draws[n];
    const int64_t sy = y + d.dy, sx = (d.flip ? width - 1 - x : x) + d.dx;
    const bool inside = d.item >= 0 && sy >= 0 && sy < height && sx >= 0 && sx < width;
    const uint8_t* src = images + (inside ? ((d.item * height + sy) * width + sx) * channels : 0);
    T* dst = out + (row * width + x) * channels;
    for (int64_t c = 0; c < channels; ++c) dst[c] = T(table[(inside ? src[c] : 0) * channels + c]);
  }
};

}  // namespace linnet
