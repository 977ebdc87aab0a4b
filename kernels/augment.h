// A training batch from the resident uint8 images. In this order: crop, flip, colour jitter, cutout, normalise, mix.
// First every sample's draw, then every pixel: the draw of a sample can be tested (and computed) alone.
#pragma once
#include "rng.h"
#include "step.h"

namespace linnet {

enum class Padding : int32_t { zero, reflect };  // beyond the image: black, or mirrored without repeating the edge
// alternating (Jordan 2024, airbench): a coin for a sample's first epoch, from then on every other epoch is mirrored.
enum class Flip : int32_t { none, random, alternating };

// What is drawn at random. The default changes nothing.
struct Augment {
  int crop_pad = 0;  // offsets of -crop_pad..crop_pad in both directions
  Padding padding = Padding::zero;
  Flip flip = Flip::none;
  // torchvision's ColorJitter on pixels in [0, 1]: factors from [max(0, 1 - b), 1 + b], the hue shifted by [-h, h] of
  // the circle. Always in this order; torchvision shuffles it per image.
  float brightness = 0, contrast = 0, saturation = 0, hue = 0;
  int cutout = 0;               // side of the square that gets the data's mean (DeVries and Taylor 2017)
  float mixup = 0, cutmix = 0;  // alpha of Beta(alpha, alpha); both: a fair coin per step chooses one

  LINNET_HD bool jitters() const { return brightness > 0 || contrast > 0 || saturation > 0 || hue > 0; }
  LINNET_HD bool mixes() const { return mixup > 0 || cutmix > 0; }
};

// What is not drawn: evaluation asks for the image shifted (output pixel (y, x) shows source (y + dy, x + dx), beyond
// the image Augment::padding) and then mirrored. Added to what is drawn.
struct View {
  bool flip = false;
  int dx = 0, dy = 0;
};

// Rows y0..y1-1, columns x0..x1-1.
struct Box {
  int32_t y0, y1, x0, x1;
  LINNET_HD bool contains(int64_t y, int64_t x) const { return y >= y0 && y < y1 && x >= x0 && x < x1; }
  LINNET_HD bool empty() const { return y0 >= y1 || x0 >= x1; }
};
// The box from (y0, x0) to before (y1, x1), as far as it lies in the image.
LINNET_HD Box clipped(int64_t y0, int64_t y1, int64_t x0, int64_t x1, int64_t height, int64_t width) {
  const auto clip = [](int64_t v, int64_t most) { return int32_t(v < 0 ? 0 : v > most ? most : v); };
  return {clip(y0, height), clip(y1, height), clip(x0, width), clip(x1, width)};
}

// What was drawn for one sample of the batch. item -1: past the end of the order (evaluation pads its last batch).
struct SampleDraw {
  int32_t item, dx, dy, flip;
  float brightness, contrast, saturation, hue;  // factors; hue is the shift
  float grey;                                   // mean of the grey values that contrast starts from: GreyMeans
  Box cutout;
  int32_t partner;  // row of the batch that this one is mixed with; -1: none
  float share;      // of the own label; the partner's has 1 - share
  Box cutmix;       // these pixels are the partner's; empty: all pixels are mixed by share (mixup)
};
inline constexpr int kDrawWords = sizeof(SampleDraw) / 4;  // draws of a batch of n: [n, kDrawWords] i32

// log of a Gamma(alpha, 1) variable: Marsaglia and Tsang 2000, and for alpha < 1 their U^(1/alpha) Gamma(alpha + 1), in
// logarithms because that underflows for small alpha. A try is accepted with probability 0.95 or more; after 16 (1e-21)
// the distribution's centre is taken, so that the loop ends.
LINNET_HD double log_gamma_draw(double alpha, uint64_t seed, uint64_t step, uint32_t stream) {
  const double a = alpha < 1 ? alpha + 1 : alpha, d = a - 1.0 / 3, c = 1 / sqrt(9 * d);
  const auto uniform = [](uint32_t u) { return (double(u) + 0.5) * 0x1p-32; };
  double log_v = 0;
  for (uint32_t k = 0; k < 16; ++k) {
    const Random4 r = random4(seed, Draw::mix, step, 0, stream + k);
    const double x = double(normal_float(r.v[0], r.v[1])), cube_root = 1 + c * x;
    if (cube_root <= 0) continue;
    const double candidate = 3 * log(cube_root), v = cube_root * cube_root * cube_root;
    if (log(uniform(r.v[2])) < 0.5 * x * x + d - d * v + d * candidate) {
      log_v = candidate;
      break;
    }
  }
  const double boost = log(uniform(random4(seed, Draw::mix, step, 0, stream + 16).v[0]));
  return log(d) + log_v + (alpha < 1 ? boost / alpha : 0);
}
// Beta(alpha, alpha) = X / (X + Y) of two Gamma(alpha) variables.
LINNET_HD double beta_draw(double alpha, uint64_t seed, uint64_t step) {
  const double x = log_gamma_draw(alpha, seed, step, 32), y = log_gamma_draw(alpha, seed, step, 64);
  return 1 / (1 + exp(y - x));
}

// What a step mixes by: one for all samples, as in both papers' code, and for all micro-batches of the step.
struct MixDraw {
  float share;
  Box cutmix;
};
LINNET_HD MixDraw draw_mix(const Augment& a, uint64_t seed, uint64_t step, int64_t height, int64_t width) {
  const Random4 r = random4(seed, Draw::mix, step);
  const bool cut = a.cutmix > 0 && !(a.mixup > 0 && r.v[0] >> 31);
  const double lambda = beta_draw(double(cut ? a.cutmix : a.mixup), seed, step);
  if (!cut) return {float(lambda), {0, 0, 0, 0}};
  // Yun et al. 2019: a box of (1 - lambda) of the area, its centre anywhere; lambda corrected to what is left of it.
  const double side = sqrt(1 - lambda);
  const int64_t y = below(r.v[1], uint32_t(height)), half_height = int64_t(double(height) * side) / 2;
  const int64_t x = below(r.v[2], uint32_t(width)), half_width = int64_t(double(width) * side) / 2;
  const Box box = clipped(y - half_height, y + half_height, x - half_width, x + half_width, height, width);
  const int64_t area = int64_t(box.y1 - box.y0) * (box.x1 - box.x0);
  return {float(1 - double(area) / double(height * width)), box};
}

// Over samples of the batch. All but the mix depends on (seed, epoch, item) only, the mix on (seed, step): never on the
// batch or the thread.
struct DrawSamples {
  const int32_t* __restrict__ order;  // the epoch's permutation, `count` long
  const int32_t* __restrict__ labels;
  int64_t count;
  SampleDraw* __restrict__ draws;
  int32_t* __restrict__ batch_labels;
  int32_t* __restrict__ partner_labels;  // these two only if samples are mixed, else null
  float* __restrict__ shares;
  const StepParams* __restrict__ params;
  Augment augment;
  View view;
  int64_t offset;  // of this micro-batch within the step's samples
  int64_t batch, height, width;

  LINNET_HD void operator()(int64_t n) const {
    const int64_t first = params->first + offset, at = first + n;
    SampleDraw d = {-1, 0, 0, 0, 1, 1, 1, 0, 0, {0, 0, 0, 0}, -1, 1, {0, 0, 0, 0}};
    int32_t label = -1, partner_label = -1;
    if (at < count) {
      const int32_t item = d.item = order[at];
      label = partner_label = labels[item];
      draw_place(d);
      if (augment.jitters()) draw_colours(d);
      if (augment.cutout > 0) draw_cutout(d);
      if (augment.mixes()) {  // every sample draws the step's mix anew: cheaper than a launch of its own
        const int64_t rows = count - first < batch ? count - first : batch;
        const MixDraw mix = draw_mix(augment, params->seed, uint64_t(params->step), height, width);
        d.partner = int32_t(rows - 1 - n);  // the samples come shuffled: as good as a permutation
        d.share = mix.share;
        d.cutmix = mix.cutmix;
        partner_label = labels[order[first + d.partner]];
      }
    }
    draws[n] = d;
    batch_labels[n] = label;
    if (partner_labels) {
      partner_labels[n] = partner_label;
      shares[n] = d.share;
    }
  }

 private:
  LINNET_HD Random4 random(Draw purpose, int32_t item, int32_t epoch) const {
    return random4(params->seed, purpose, uint64_t(item), uint32_t(epoch));
  }
  LINNET_HD void draw_place(SampleDraw& d) const {
    const Random4 r = random(Draw::augment, d.item, params->epoch);
    const uint32_t range = uint32_t(2 * augment.crop_pad + 1);
    d.dx = int32_t(below(r.v[0], range)) - augment.crop_pad + view.dx;
    d.dy = int32_t(below(r.v[1], range)) - augment.crop_pad + view.dy;
    int32_t flip = view.flip;
    if (augment.flip == Flip::random) flip ^= int32_t(r.v[2] >> 31);
    // The coin that random flipping throws in epoch 0.
    if (augment.flip == Flip::alternating)
      flip ^= int32_t(random(Draw::augment, d.item, 0).v[2] >> 31) ^ (params->epoch & 1);
    d.flip = flip;
  }
  LINNET_HD void draw_colours(SampleDraw& d) const {
    const Random4 r = random(Draw::jitter, d.item, params->epoch);
    const auto factor = [](uint32_t u, float range) {
      const float low = range < 1 ? 1 - range : 0.f;
      return low + unit_float(u) * (1 + range - low);
    };
    d.brightness = factor(r.v[0], augment.brightness);
    d.contrast = factor(r.v[1], augment.contrast);
    d.saturation = factor(r.v[2], augment.saturation);
    d.hue = (2 * unit_float(r.v[3]) - 1) * augment.hue;
  }
  LINNET_HD void draw_cutout(SampleDraw& d) const {
    const Random4 r = random(Draw::cutout, d.item, params->epoch);
    const int64_t side = augment.cutout, y = int64_t(below(r.v[0], uint32_t(height))) - side / 2,
                  x = int64_t(below(r.v[1], uint32_t(width))) - side / 2;
    d.cutout = clipped(y, y + side, x, x + side, height, width);
  }
};

// Where line (or column) i of a padded image comes from: -1 is black.
template <Padding kPadding>
LINNET_HD int64_t source_line(int64_t i, int64_t size) {
  if (i >= 0 && i < size) return i;
  if (kPadding == Padding::zero) return -1;
  if (size == 1) return 0;
  const int64_t period = 2 * (size - 1), at = (i < 0 ? -i : i) % period;  // to and fro, any number of times
  return at < size ? at : period - at;
}

// The images, and where a sample's output pixel (y, x) comes from: mirrored in x after the crop, as torchvision's
// RandomCrop, RandomHorizontalFlip do. Null: black.
template <Padding kPadding>
struct PixelSource {
  const uint8_t* __restrict__ images;
  const float* __restrict__ table;  // [256, channels]: (v / 255 - mean) / std
  int64_t height, width, channels;
  LINNET_HD const uint8_t* line(const SampleDraw& d, int64_t y) const {
    const int64_t sy = source_line<kPadding>(y + d.dy, height);
    return d.item < 0 || sy < 0 ? nullptr : images + (d.item * height + sy) * width * channels;
  }
  LINNET_HD const uint8_t* at(const SampleDraw& d, const uint8_t* line, int64_t x) const {
    const int64_t sx = source_line<kPadding>((d.flip ? width - 1 - x : x) + d.dx, width);
    return !line || sx < 0 ? nullptr : line + sx * channels;
  }
  LINNET_HD const uint8_t* at(const SampleDraw& d, int64_t y, int64_t x) const { return at(d, line(d, y), x); }
};

// Crop and flip alone, over rows (n, y) of the output and pixels x in a row. Black is black before normalising.
template <class T, Padding kPadding>
struct CropFlipNormalize {
  PixelSource<kPadding> source;
  const SampleDraw* __restrict__ draws;
  T* __restrict__ out;
  LINNET_HD void operator()(int64_t row, int64_t x) const {
    const SampleDraw& d = draws[row / source.height];
    pixel(d, source.line(d, row % source.height), row, x);
  }
  LINNET_HD void row(int64_t row, int64_t width) const {
    const SampleDraw& d = draws[row / source.height];
    const uint8_t* line = source.line(d, row % source.height);
    for (int64_t x = 0; x < width; ++x) pixel(d, line, row, x);
  }

 private:
  LINNET_HD void pixel(const SampleDraw& d, const uint8_t* line, int64_t row, int64_t x) const {
    const int64_t channels = source.channels;
    const uint8_t* src = source.at(d, line, x);
    T* dst = out + (row * source.width + x) * channels;
    for (int64_t c = 0; c < channels; ++c) dst[c] = T(source.table[(src ? src[c] : 0) * channels + c]);
  }
};

// -- colours, of pixels in [0, 1], as torchvision.transforms.functional defines them for float tensors

struct Rgb {
  float r, g, b;
};
LINNET_HD float clamp01(float v) { return v < 0 ? 0.f : v > 1 ? 1.f : v; }
LINNET_HD float blend(float v, float with, float factor) { return clamp01(factor * v + (1 - factor) * with); }
LINNET_HD float grey_of(Rgb p) { return 0.2989f * p.r + 0.587f * p.g + 0.114f * p.b; }

// Hue shifted by `shift` of the circle; value and saturation (as HSV has them) stay.
LINNET_HD Rgb shift_hue(Rgb p, float shift) {
  const float top = fmaxf(p.r, fmaxf(p.g, p.b)), low = fminf(p.r, fminf(p.g, p.b)), range = top - low;
  if (range == 0 || shift == 0) return p;  // grey has no hue
  const float sixth = p.r == top ? (p.g - p.b) / range : p.g == top ? 2 + (p.b - p.r) / range : 4 + (p.r - p.g) / range;
  float h = sixth / 6 + shift;
  h = (h - floorf(h)) * 6;  // 0..6
  // Each colour is a trapezium over the circle: `top` for two sixths, one sixth down, `low` for two, one up.
  const auto colour = [&](float centre) {
    float away = fabsf(h - centre);
    away = away > 3 ? 6 - away : away;
    return low + range * clamp01(2 - away);
  };
  return {colour(0), colour(2), colour(4)};
}

// The grey values' mean over the cropped and brightened image, which contrast blends with. One call a sample, so that
// the sum has one order.
template <Padding kPadding>
struct GreyMeans {
  PixelSource<kPadding> source;
  SampleDraw* draws;
  LINNET_HD void operator()(int64_t n) const {
    const SampleDraw d = draws[n];
    double sum = 0;
    for (int64_t y = 0; y < source.height; ++y)
      for (int64_t x = 0; x < source.width; ++x) {
        const uint8_t* src = source.at(d, y, x);
        if (src) sum += double(grey(src, d.brightness));  // black adds nothing
      }
    draws[n].grey = float(sum / double(source.height * source.width));
  }

 private:
  LINNET_HD float grey(const uint8_t* src, float brightness) const {
    const auto value = [&](int64_t c) { return clamp01(float(src[c]) / 255 * brightness); };
    if (source.channels == 3) return grey_of({value(0), value(1), value(2)});
    float sum = 0;
    for (int64_t c = 0; c < source.channels; ++c) sum += value(c);
    return sum / float(source.channels);
  }
};

// Everything, over rows (n, y) of the output and pixels x in a row. A mixed pixel computes its partner's anew instead
// of waiting for it: no second buffer, and nothing is rounded before the mix.
template <class T, Padding kPadding>
struct AugmentPixels {
  PixelSource<kPadding> source;
  const SampleDraw* __restrict__ draws;
  T* __restrict__ out;
  bool jitter;
  LINNET_HD void operator()(int64_t row, int64_t x) const {
    const int64_t n = row / source.height, y = row % source.height, channels = source.channels;
    const SampleDraw& d = draws[n];
    T* dst = out + (row * source.width + x) * channels;
    const bool swap = d.cutmix.contains(y, x), mix = d.partner >= 0 && d.cutmix.empty();
    // Saturation and hue need a pixel's three colours at once; of images without colours every channel stands alone.
    const int64_t colours = channels == 3 ? 3 : 1;
    for (int64_t c = 0; c < channels; c += colours) {
      float v[3], other[3];
      pixel(draws[swap ? d.partner : n], y, x, c, v);
      if (mix) {
        pixel(draws[d.partner], y, x, c, other);
        for (int64_t k = 0; k < colours; ++k) v[k] = d.share * v[k] + (1 - d.share) * other[k];
      }
      for (int64_t k = 0; k < colours; ++k) dst[c + k] = T(v[k]);
    }
  }

 private:
  // The normalised channel c of a sample's pixel, or all three of a coloured one.
  LINNET_HD void pixel(const SampleDraw& d, int64_t y, int64_t x, int64_t c, float* v) const {
    const int64_t channels = source.channels, colours = channels == 3 ? 3 : 1;
    if (d.cutout.contains(y, x)) {
      for (int64_t k = 0; k < colours; ++k) v[k] = 0;
      return;
    }
    const uint8_t* src = source.at(d, y, x);
    if (!jitter) {
      for (int64_t k = 0; k < colours; ++k) v[k] = source.table[(src ? src[c + k] : 0) * channels + c + k];
      return;
    }
    for (int64_t k = 0; k < colours; ++k)
      v[k] = blend(clamp01((src ? float(src[c + k]) / 255 : 0.f) * d.brightness), d.grey, d.contrast);
    if (colours == 3) {
      const float grey = grey_of({v[0], v[1], v[2]});
      const Rgb p = shift_hue(
          {blend(v[0], grey, d.saturation), blend(v[1], grey, d.saturation), blend(v[2], grey, d.saturation)}, d.hue);
      v[0] = p.r, v[1] = p.g, v[2] = p.b;
    }
    for (int64_t k = 0; k < colours; ++k) {  // the table is a straight line through the bytes
      const float black = source.table[c + k], white = source.table[255 * channels + c + k];
      v[k] = black + v[k] * (white - black);
    }
  }
};

}  // namespace linnet
