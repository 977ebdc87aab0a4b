// Crop, flip, normalise and the order of an epoch: what is drawn depends on (seed, epoch, sample) alone.
#include "kernels/augment.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <set>

#include "linnet/trainer.h"
#include "src/backend/backends.h"

namespace linnet {
namespace {

struct Batch {
  std::vector<float> pixels;
  std::vector<int32_t> labels;
  std::vector<SampleDraw> draws;
};

class AugmentTest : public testing::Test {
 protected:
  void use(const Images& images, double mean = 0.5, double std = 0.25) {
    const std::vector<double> m(size_t(images.channels), mean), s(size_t(images.channels), std);
    source_ = upload_source(*backend_, images, m, s);
    source_.crop_pad = 4;
    source_.flip = true;
  }
  void set_order(const std::vector<int32_t>& order) {
    source_.order = Tensor(backend_->allocate(order.size() * 4), {int64_t(order.size())}, DType::i32);
    backend_->upload(source_.order, order.data());
  }
  Batch make(int64_t n, const StepParams& at) {
    const Shape image = source_.images.shape();
    const Tensor batch = pool_.empty({n, image[1], image[2], image[3]}, DType::f32);
    const Tensor labels = pool_.empty({n}, DType::i32), draws = pool_.empty({n, 4}, DType::i32);
    write_step(*backend_, step_, at);
    backend_->make_batch(batch, labels, draws, source_, step_);
    Batch out{std::vector<float>(size_t(batch.numel())), std::vector<int32_t>(size_t(n)),
              std::vector<SampleDraw>(size_t(n))};
    backend_->download(out.pixels.data(), batch);
    backend_->download(out.labels.data(), labels);
    backend_->download(out.draws.data(), draws);
    return out;
  }
  // Sample k's picture within a batch.
  std::vector<float> picture(const Batch& b, size_t k) {
    const size_t size = b.pixels.size() / b.labels.size();
    return {b.pixels.begin() + int64_t(k * size), b.pixels.begin() + int64_t((k + 1) * size)};
  }

  std::unique_ptr<Backend> backend_ = make_cpu_backend(2);
  Pool pool_{*backend_};
  Tensor step_ = make_step(*backend_);
  BatchSource source_;
};

// Computed once by another implementation (Python): a run's pictures must not change with the program's version.
TEST_F(AugmentTest, DrawsAsEver) {
  struct Stored {
    uint64_t seed;
    int32_t epoch, item, dx, dy, flip;
  };
  const std::vector<int32_t> labels(50000, 3);
  for (const Stored& s : std::vector<Stored>{{0, 0, 0, -3, -1, 1},
                                             {0, 0, 1, 0, 0, 0},
                                             {0, 1, 0, 0, 2, 0},
                                             {1, 0, 0, -3, -4, 0},
                                             {(uint64_t(1) << 40) + 5, 199, 49999, 1, 4, 0},
                                             {7, 3, 12345, 3, 3, 1}}) {
    const StepParams at{.epoch = s.epoch, .seed = s.seed};
    SampleDraw draw;
    int32_t label;
    DrawSamples{&s.item, labels.data(), 1, &draw, &label, &at, 4, true}(0);
    EXPECT_EQ(draw.item, s.item);
    EXPECT_EQ(draw.dx, s.dx);
    EXPECT_EQ(draw.dy, s.dy);
    EXPECT_EQ(draw.flip, s.flip);
    EXPECT_EQ(label, 3);
  }
}

// The oracle: pad with black, cut out, mirror, then normalise.
TEST_F(AugmentTest, CropsFlipsAndNormalisesLikeTheDefinition) {
  const Images images = make_synthetic(20, Split::train, 0, 9);
  use(images);
  const Batch b = make(20, {.epoch = 3, .seed = 8});
  std::set<int32_t> flips;
  for (int32_t i = 0; i < 20; ++i) {
    const SampleDraw d = b.draws[size_t(i)];
    ASSERT_EQ(d.item, i);
    EXPECT_EQ(b.labels[size_t(i)], images.labels[size_t(i)]);
    flips.insert(d.flip);
    constexpr int pad = 4, side = 9, padded = side + 2 * pad;
    std::array<std::array<std::array<int, 3>, padded>, padded> canvas{};
    for (int y = 0; y < side; ++y)
      for (int x = 0; x < side; ++x)
        for (int c = 0; c < 3; ++c)
          canvas[size_t(y + pad)][size_t(x + pad)][size_t(c)] =
              images.pixels[size_t(((i * side + y) * side + x) * 3 + c)];
    const std::vector<float> got = picture(b, size_t(i));
    for (int y = 0; y < side; ++y)
      for (int x = 0; x < side; ++x)
        for (int c = 0; c < 3; ++c) {
          const int column = d.flip ? side - 1 - x : x;
          const int value = canvas[size_t(y + pad + d.dy)][size_t(column + pad + d.dx)][size_t(c)];
          ASSERT_EQ(got[size_t((y * side + x) * 3 + c)], float((value / 255.0 - 0.5) / 0.25))
              << i << ' ' << y << ' ' << x;
        }
  }
  EXPECT_EQ(flips.size(), 2u);
}

TEST_F(AugmentTest, TheBorderIsBlackBeforeNormalising) {
  Images white{.height = 8, .width = 8, .channels = 1, .classes = 2};
  white.pixels.assign(64 * 40, 255);
  white.labels.assign(40, 0);
  use(white, 0.5, 0.25);
  const Batch b = make(40, {.seed = 1});
  for (size_t i = 0; i < 40; ++i) {
    const std::vector<float> p = picture(b, i);
    const int64_t border = 64 - (8 - std::abs(b.draws[i].dx)) * (8 - std::abs(b.draws[i].dy));
    EXPECT_EQ(std::count(p.begin(), p.end(), -2.f), border);  // (0 - 0.5) / 0.25, not 0
    EXPECT_EQ(std::count(p.begin(), p.end(), 2.f), 64 - border);
  }
}

TEST_F(AugmentTest, ASamplesPictureDoesNotDependOnItsBatch) {
  use(make_synthetic(50, Split::train, 0, 8));
  const Batch whole = make(50, {.epoch = 2, .seed = 9});
  std::vector<int32_t> order(50);
  std::iota(order.begin(), order.end(), 0);
  std::reverse(order.begin(), order.end());
  std::rotate(order.begin(), order.begin() + 17, order.end());
  set_order(order);
  for (const int64_t size : {1, 7, 50})
    for (int64_t first = 0; first + size <= 50; first += size) {
      const Batch b = make(size, {.epoch = 2, .first = first, .step = first + 1000, .seed = 9});
      for (size_t k = 0; k < size_t(size); ++k) {
        const auto item = size_t(order[size_t(first) + k]);
        EXPECT_EQ(b.draws[k].item, int32_t(item));
        EXPECT_EQ(b.labels[k], whole.labels[item]);
        ASSERT_EQ(picture(b, k), picture(whole, item)) << "sample " << item << " in a batch of " << size;
      }
    }
}

TEST_F(AugmentTest, SeedAndEpochChangeThePicture) {
  use(make_synthetic(20, Split::train, 0, 8));
  const std::vector<float> base = make(20, {.epoch = 1, .seed = 1}).pixels;
  EXPECT_EQ(make(20, {.lr = 5, .epoch = 1, .step = 77, .seed = 1}).pixels, base);
  EXPECT_NE(make(20, {.epoch = 2, .seed = 1}).pixels, base);
  EXPECT_NE(make(20, {.epoch = 1, .seed = 2}).pixels, base);
  EXPECT_NE(make(20, {.epoch = 1, .seed = 1 + (uint64_t(1) << 32)}).pixels, base);
}

TEST_F(AugmentTest, SwitchedOffItOnlyNormalises) {
  const Images images = make_synthetic(10, Split::train, 0, 8);
  use(images, 0, 1);
  source_.crop_pad = 0;
  source_.flip = false;
  const Batch b = make(10, {.epoch = 1, .seed = 1});
  for (size_t i = 0; i < b.pixels.size(); ++i) ASSERT_EQ(b.pixels[i], float(images.pixels[i] / 255.0)) << i;
}

TEST_F(AugmentTest, PastTheEndComesPadding) {
  use(make_synthetic(10, Split::train, 0, 8));
  const Batch b = make(4, {.first = 8, .seed = 1});
  EXPECT_EQ(b.labels, (std::vector<int32_t>{8, 9, -1, -1}));
  EXPECT_EQ(b.draws[2].item, -1);
  for (const float v : picture(b, 3)) EXPECT_EQ(v, -2.f);
}

// Fixed seed, so that the bounds (probability 0.001) hold for ever or never.
TEST_F(AugmentTest, OffsetsAreUniformAndHalfIsFlipped) {
  constexpr int n = 40000;
  std::array<std::array<int, 9>, 9> cells{};
  int flipped = 0;
  const std::vector<int32_t> labels(n, 0);
  const StepParams at{.epoch = 5, .seed = 4};
  for (int32_t item = 0; item < n; ++item) {
    SampleDraw d;
    int32_t label;
    DrawSamples{&item, labels.data(), 1, &d, &label, &at, 4, true}(0);
    ASSERT_TRUE(std::abs(d.dx) <= 4 && std::abs(d.dy) <= 4);
    ++cells[size_t(d.dx + 4)][size_t(d.dy + 4)];
    flipped += d.flip;
  }
  const auto chi_square = [](const auto& counts, double expected) {
    double sum = 0;
    for (const int c : counts) sum += (c - expected) * (c - expected) / expected;
    return sum;
  };
  std::array<int, 9> across{}, down{};
  std::vector<int> all;
  for (size_t x = 0; x < 9; ++x)
    for (size_t y = 0; y < 9; ++y) {
      across[x] += cells[x][y];
      down[y] += cells[x][y];
      all.push_back(cells[x][y]);
    }
  EXPECT_LE(chi_square(across, n / 9.0), 26.1);  // 8 degrees of freedom
  EXPECT_LE(chi_square(down, n / 9.0), 26.1);
  EXPECT_LE(chi_square(all, n / 81.0), 124.8);  // 80: the two are independent
  EXPECT_NEAR(flipped, n / 2, 3.3 * std::sqrt(double(n)) / 2);
}

// The samples of an epoch, in the order in which a trainer shows them. Picture i is filled with the value i.
std::vector<int> order_of_epoch(int64_t epoch, int64_t seed, bool shuffle) {
  Config config;
  config.model.name = "linear";
  config.data.name = "synthetic";
  config.data.mean = {0};
  config.data.std = {1};
  config.data.shuffle = shuffle;
  config.train.batch_size = 4;
  config.train.seed = seed;
  RunData data;
  data.train = {.height = 8, .width = 8, .channels = 1, .classes = 10};
  for (int i = 0; i < 12; ++i) {
    data.train.pixels.insert(data.train.pixels.end(), 64, uint8_t(i));
    data.train.labels.push_back(i % 10);
  }
  config.augment.crop_pad = 0;
  const auto backend = make_cpu_backend(1);
  Trainer trainer(config, *backend, data);
  trainer.start_epoch(epoch);
  std::vector<int> order;
  for (int step = 0; step < 3; ++step) {
    trainer.step();
    for (int64_t i = 0; i < 4; ++i) {
      const float pixel = trainer.batch().slice(i * 64, {1}).data<float>()[0];
      order.push_back(int(std::lround(pixel * 255)));
      EXPECT_EQ(trainer.labels().data<int32_t>()[i], order.back() % 10);
    }
  }
  return order;
}

TEST(EpochOrder, IsThePermutationItEverWas) {
  EXPECT_EQ(order_of_epoch(0, 1, true), (std::vector<int>{5, 1, 7, 11, 0, 2, 6, 10, 8, 3, 4, 9}));
  EXPECT_EQ(order_of_epoch(1, 1, true), (std::vector<int>{1, 6, 8, 2, 5, 7, 3, 11, 10, 4, 9, 0}));
}

TEST(EpochOrder, DiffersByEpochAndSeedAndIsAlwaysAPermutation) {
  std::set<std::vector<int>> distinct;
  for (int64_t seed = 0; seed < 3; ++seed)
    for (int64_t epoch = 0; epoch < 5; ++epoch) {
      std::vector<int> order = order_of_epoch(epoch, seed, true);
      distinct.insert(order);
      std::sort(order.begin(), order.end());
      for (int i = 0; i < 12; ++i) EXPECT_EQ(order[size_t(i)], i);
    }
  EXPECT_EQ(distinct.size(), 15u);
}

TEST(EpochOrder, WithoutShufflingItIsTheDatasOwn) {
  for (const int64_t epoch : {0, 1, 7})
    EXPECT_EQ(order_of_epoch(epoch, 1, false), (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}));
}

}  // namespace
}  // namespace linnet
