// What every data set can do once it lies in memory.
#include "linnet/dataset.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/rng.h"
#include "linnet/error.h"

namespace linnet {

std::string digest(const Images& images) {
  const uint64_t labels = XXH3_64bits(images.labels.data(), images.labels.size() * sizeof(int32_t));
  return fmt::format("{:016x}", XXH3_64bits_withSeed(images.pixels.data(), images.pixels.size(), labels));
}

ChannelStats channel_stats(const Images& images) {
  const int channels = images.channels;
  require(channels >= 1 && images.size() >= 1 && int64_t(images.pixels.size()) == images.size() * images.image_bytes(),
          "[channel_stats] expected at least one image of {}x{}x{}, got {} labels and {} pixel bytes", images.height,
          images.width, channels, images.size(), images.pixels.size());

  // A histogram keeps the sums exact, whatever the number of images.
  std::vector<std::array<int64_t, 256>> counts(channels);
  for (size_t i = 0; i < images.pixels.size(); i += channels)
    for (int c = 0; c < channels; ++c) ++counts[c][images.pixels[i + c]];

  ChannelStats stats;
  const double n = double(images.pixels.size() / channels);
  for (const auto& count : counts) {
    double mean = 0, variance = 0;
    for (int v = 0; v < 256; ++v) mean += v * (count[v] / n);
    for (int v = 0; v < 256; ++v) variance += (v - mean) * (v - mean) * (count[v] / n);
    stats.mean.push_back(float(mean / 255));
    stats.std.push_back(float(std::sqrt(variance) / 255));
  }
  return stats;
}

HoldOut hold_out(int64_t n, int64_t val_count) {
  if (n < 1 || n > std::numeric_limits<int32_t>::max() || val_count < 0 || val_count >= n)
    fail(Exit::usage, "data.val: cannot hold out {} of {} training images; expected 0 to {}", val_count, n, n - 1);

  // The first val_count places of a Fisher-Yates shuffle with a seed of its own; then both parts in rising order.
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = 0; i < val_count; ++i)
    std::swap(order[i], order[i + below(random4(0, Draw::split, uint64_t(i)).v[0], uint32_t(n - i))]);
  HoldOut split;
  split.val.assign(order.begin(), order.begin() + val_count);
  split.train.assign(order.begin() + val_count, order.end());
  std::sort(split.val.begin(), split.val.end());
  std::sort(split.train.begin(), split.train.end());
  return split;
}

Images subset(const Images& images, const std::vector<int32_t>& indices) {
  Images out{.height = images.height,
             .width = images.width,
             .channels = images.channels,
             .classes = images.classes,
             .class_names = images.class_names};
  out.pixels.reserve(indices.size() * images.image_bytes());
  out.labels.reserve(indices.size());
  for (const int32_t i : indices) {
    require(i >= 0 && i < images.size(), "[subset] expected indices in [0, {}), got {}", images.size(), i);
    const auto first = images.pixels.begin() + i * images.image_bytes();
    out.pixels.insert(out.pixels.end(), first, first + images.image_bytes());
    out.labels.push_back(images.labels[i]);
  }
  return out;
}

}  // namespace linnet
