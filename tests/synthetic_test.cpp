#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "linnet/dataset.h"
#include "linnet/error.h"

namespace linnet {
namespace {

// FNV-1a over the pixels.
uint64_t hash(const Images& images) {
  uint64_t h = 14695981039346656037u;
  for (const uint8_t byte : images.pixels) h = (h ^ byte) * 1099511628211u;
  return h;
}

TEST(Synthetic, HasTheSameBitsEverywhere) {
  // Stored once; another compiler, processor or optimisation level must give the same.
  EXPECT_EQ(hash(make_synthetic(50, Split::train, 0)), 12726553094556376485u);
  EXPECT_EQ(hash(make_synthetic(20, Split::test, 7, 45)), 2190983905034830742u);
}

TEST(Synthetic, AnImageDependsOnSeedSplitAndIndexAlone) {
  const Images few = make_synthetic(13, Split::train, 3), many = make_synthetic(40, Split::train, 3);
  EXPECT_TRUE(std::equal(few.pixels.begin(), few.pixels.end(), many.pixels.begin()));
  EXPECT_NE(hash(few), hash(make_synthetic(13, Split::train, 4)));
  EXPECT_NE(hash(few), hash(make_synthetic(13, Split::train, 3 + (uint64_t(1) << 32))));
  EXPECT_NE(hash(few), hash(make_synthetic(13, Split::test, 3)));
}

TEST(Synthetic, IsBalancedAndComplete) {
  const Images images = make_synthetic(1000, Split::test, 0, 16);
  EXPECT_EQ(images.height, 16);
  EXPECT_EQ(images.width, 16);
  EXPECT_EQ(images.channels, 3);
  EXPECT_EQ(images.classes, 10);
  EXPECT_EQ(images.class_names.size(), 10u);
  EXPECT_EQ(images.pixels.size(), size_t(1000 * 16 * 16 * 3));
  for (int label = 0; label < 10; ++label)
    EXPECT_EQ(std::count(images.labels.begin(), images.labels.end(), label), 100) << label;
  std::set<std::string> distinct;
  for (int64_t i = 0; i < images.size(); ++i) {
    const auto first = images.pixels.begin() + i * images.image_bytes();
    distinct.emplace(first, first + images.image_bytes());
  }
  EXPECT_EQ(distinct.size(), 1000u);
}

TEST(Synthetic, ColourDoesNotTellTheClass) {
  const Images images = make_synthetic(10000, Split::train, 0);
  const ChannelStats all = channel_stats(images);
  for (int label = 0; label < 10; ++label) {
    std::vector<int32_t> indices;
    for (int32_t i = label; i < images.size(); i += 10) indices.push_back(i);
    const ChannelStats one = channel_stats(subset(images, indices));
    for (int c = 0; c < 3; ++c) {
      EXPECT_NEAR(one.mean[c], all.mean[c], 0.03) << "class " << label << ", channel " << c;
      EXPECT_NEAR(one.std[c], all.std[c], 0.03) << "class " << label << ", channel " << c;
    }
  }
}

TEST(Synthetic, TheSmallestAndTheLargestSize) {
  for (const int size : {4, 224})
    EXPECT_EQ(make_synthetic(30, Split::train, 0, size).pixels.size(), size_t(90 * size * size));
}

TEST(Synthetic, RefusesWhatItCannotMake) {
  EXPECT_THROW(make_synthetic(0, Split::train, 0), Error);
  EXPECT_THROW(make_synthetic(-1, Split::train, 0), Error);
  EXPECT_THROW(make_synthetic(int64_t(1) << 40, Split::train, 0), Error);
  EXPECT_THROW(make_synthetic(1, Split::train, 0, 3), Error);
  EXPECT_THROW(make_synthetic(1, Split::train, 0, 225), Error);
}

}  // namespace
}  // namespace linnet
