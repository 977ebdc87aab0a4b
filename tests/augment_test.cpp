// Augmentation and the order of an epoch: what is drawn depends on (seed, epoch, sample) alone, a mix on (seed, step).
#include "kernels/augment.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <set>

#include "linnet/trainer.h"
#include "op_case.h"

namespace linnet {
namespace {

struct Batch {
  std::vector<float> pixels;
  std::vector<int32_t> labels;
  std::vector<SampleDraw> draws;
  std::vector<int32_t> partners;
  std::vector<float> shares;
};

SampleDraw draw_one(int32_t item, const StepParams& at, const Augment& augment, int64_t side = 32) {
  const std::vector<int32_t> labels(size_t(item) + 1, 3);
  SampleDraw draw;
  int32_t label;
  DrawSamples{&item, labels.data(), 1, &draw, &label, nullptr, nullptr, &at, augment, {}, 0, 1, side, side}(0);
  EXPECT_EQ(draw.item, item);
  EXPECT_EQ(label, 3);
  return draw;
}
// Samples 0..n-1.
std::vector<SampleDraw> draw_many(int32_t n, const StepParams& at, const Augment& augment, int64_t side = 32) {
  std::vector<int32_t> order(static_cast<size_t>(n)), labels(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::vector<SampleDraw> draws(static_cast<size_t>(n));
  const DrawSamples draw{
      order.data(), labels.data(), n, draws.data(), labels.data(), nullptr, nullptr, &at, augment, {}, 0, n,
      side,         side};
  for (int64_t i = 0; i < n; ++i) draw(i);
  return draws;
}
double chi_square(const auto& counts, double expected) {
  double sum = 0;
  for (const int c : counts) sum += (c - expected) * (c - expected) / expected;
  return sum;
}

const Augment kCropFlip{.crop_pad = 4, .flip = Flip::random};
const Augment kColours{.brightness = 0.4f, .contrast = 0.5f, .saturation = 0.6f, .hue = 0.5f};
const Augment kEverything{.crop_pad = 3,
                          .padding = Padding::reflect,
                          .flip = Flip::alternating,
                          .brightness = 0.2f,
                          .contrast = 0.2f,
                          .saturation = 0.2f,
                          .hue = 0.1f,
                          .cutout = 4,
                          .mixup = 1,
                          .cutmix = 1};

class AugmentTest : public testing::Test {
 protected:
  void use(const Images& images, double mean = 0.5, double std = 0.25) {
    const std::vector<double> m(size_t(images.channels), mean), s(size_t(images.channels), std);
    source_ = upload_source(*backend_, images, m, s);
    source_.augment = kCropFlip;
  }
  void set_order(const std::vector<int32_t>& order) {
    source_.order = Tensor(backend_->allocate(order.size() * 4), {int64_t(order.size())}, DType::i32);
    backend_->upload(source_.order, order.data());
  }
  Batch make(int64_t n, const StepParams& at, int64_t offset = 0) {
    const Shape image = source_.images.shape();
    const Tensor batch = pool_.empty({n, image[1], image[2], image[3]}, DType::f32);
    const Target target(pool_.empty({n}, DType::i32), pool_.empty({n}, DType::i32), pool_.empty({n}, DType::f32));
    const Tensor draws = pool_.empty({n, kDrawWords}, DType::i32);
    write_step(*backend_, step_, at);
    backend_->make_batch(batch, target, draws, source_, step_, offset);
    const auto size = size_t(n);
    Batch out{std::vector<float>(size_t(batch.numel())), std::vector<int32_t>(size), std::vector<SampleDraw>(size),
              std::vector<int32_t>(size), std::vector<float>(size)};
    backend_->download(out.pixels.data(), batch);
    backend_->download(out.labels.data(), target.label);
    backend_->download(out.draws.data(), draws);
    backend_->download(out.partners.data(), target.partner);
    backend_->download(out.shares.data(), target.share);
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
  for (const Stored& s : std::vector<Stored>{{0, 0, 0, -3, -1, 1},
                                             {0, 0, 1, 0, 0, 0},
                                             {0, 1, 0, 0, 2, 0},
                                             {1, 0, 0, -3, -4, 0},
                                             {(uint64_t(1) << 40) + 5, 199, 49999, 1, 4, 0},
                                             {7, 3, 12345, 3, 3, 1}}) {
    const SampleDraw draw = draw_one(s.item, {.epoch = s.epoch, .seed = s.seed}, kCropFlip);
    EXPECT_EQ(draw.dx, s.dx);
    EXPECT_EQ(draw.dy, s.dy);
    EXPECT_EQ(draw.flip, s.flip);
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
  source_.augment = kEverything;
  source_.augment.mixup = source_.augment.cutmix = 0;
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
  EXPECT_EQ(make(20, {.epoch = 1, .step = 77, .seed = 1}).pixels, base);
  EXPECT_NE(make(20, {.epoch = 2, .seed = 1}).pixels, base);
  EXPECT_NE(make(20, {.epoch = 1, .seed = 2}).pixels, base);
  EXPECT_NE(make(20, {.epoch = 1, .seed = 1 + (uint64_t(1) << 32)}).pixels, base);
}

TEST_F(AugmentTest, SwitchedOffItOnlyNormalises) {
  const Images images = make_synthetic(10, Split::train, 0, 8);
  use(images, 0, 1);
  source_.augment = {};
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
  const std::vector<SampleDraw> draws = draw_many(n, {.epoch = 5, .seed = 4}, kCropFlip);
  for (const SampleDraw& d : draws) {
    ASSERT_TRUE(std::abs(d.dx) <= 4 && std::abs(d.dy) <= 4);
    ++cells[size_t(d.dx + 4)][size_t(d.dy + 4)];
    flipped += d.flip;
  }
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

// -- every augmentation against whole images in double, on every backend

class AugmentOpTest : public OpTest {};
LINNET_ON_EVERY_BACKEND(AugmentOpTest);

struct AugmentCase {
  Augment augment;
  Shape batch;  // [n, height, width, channels]
  int64_t count = 50, first = 0, offset = 0;
  View view = {};
  uint64_t seed = 42;
};
Results run_case(Backend& be, const AugmentCase& c, DType dtype = DType::f32) {
  const Shape s = c.batch;
  std::vector<double> pixels, labels, order, table;
  for (int64_t i = 0; i < c.count * s[1] * s[2] * s[3]; ++i)
    pixels.push_back(double(random4(4, Draw::test, uint64_t(i)).v[0] % 256));
  for (int64_t i = 0; i < c.count; ++i) {
    labels.push_back(double(i % 10));
    order.push_back(double((i * 7 + 3) % c.count));
  }
  for (int64_t v = 0; v < 256; ++v)
    for (int64_t channel = 0; channel < s[3]; ++channel)
      table.push_back((double(v) / 255 - 0.4 - 0.05 * double(channel)) / 0.25);
  const BatchSource source{tensor_of(be, {c.count, s[1], s[2], s[3]}, DType::u8, pixels),
                           tensor_of(be, {c.count}, DType::i32, labels),
                           tensor_of(be, {c.count}, DType::i32, order),
                           tensor_of(be, {256, s[3]}, DType::f32, table),
                           c.augment,
                           c.view};
  const Tensor step = make_step(be);
  write_step(be, step, {.epoch = 3, .first = c.first, .step = 21, .seed = c.seed});
  Pool pool(be);
  Target target = pool.empty({s[0]}, DType::i32);
  if (c.augment.mixes()) target = {target.label, pool.empty({s[0]}, DType::i32), pool.empty({s[0]}, DType::f32)};
  const Tensor batch = pool.empty(s, dtype), draws = pool.empty({s[0], kDrawWords}, DType::i32);
  be.make_batch(batch, target, draws, source, step, c.offset);
  Results out{{"batch", download(be, batch)}, {"labels", download(be, target.label)}};
  if (c.augment.mixes()) {
    out.push_back({"partners", download(be, target.partner)});
    out.push_back({"shares", download(be, target.share)});
  }
  return out;
}

std::vector<AugmentCase> augment_cases() {
  const Shape usual{17, 12, 12, 3};
  std::vector<AugmentCase> all;
  for (const Augment& a : std::vector<Augment>{kCropFlip,
                                               {.crop_pad = 4, .padding = Padding::reflect, .flip = Flip::alternating},
                                               {.brightness = 0.4f},
                                               {.contrast = 2},
                                               {.saturation = 0.6f},
                                               {.hue = 0.5f},
                                               kColours,
                                               {.cutout = 5},
                                               {.mixup = 0.2f},
                                               {.cutmix = 1},
                                               kEverything})
    all.push_back({a, usual});
  all.push_back({kEverything, {17, 9, 7, 1}});                                     // without colours
  all.push_back({kEverything, {6, 5, 8, 2}});                                      // neither one nor three
  all.push_back({kEverything, {9, 2, 1, 3}});                                      // reflected to and fro
  all.push_back({kEverything, usual, 50, 40});                                     // past the end
  all.push_back({kEverything, usual, 50, 10, 17});                                 // the second micro-batch
  all.push_back({kEverything, usual, 50, 33, 17});                                 // nothing is left
  all.push_back({{.padding = Padding::reflect}, usual, 50, 0, 0, {true, 2, -3}});  // a view
  all.push_back({{}, usual, 50, 0, 0, {false, -14, 1}});                           // all black but the border
  for (uint64_t seed = 0; seed < 6; ++seed) all.push_back({kEverything, usual, 50, 0, 0, {}, seed});
  return all;
}

// Colours take a dozen float operations on 0..1, divided by the deviation 0.25 at last: 12 * 2^-24 / 0.25 = 3e-6, of
// values up to 2.4. Without colours and blending, the bits are the table's.
TEST_P(AugmentOpTest, AgainstReference) {
  ReferenceBackend reference;
  for (const AugmentCase& c : augment_cases()) {
    const Augment& a = c.augment;
    SCOPED_TRACE(fmt::format("[{}] jitter {} cutout {} mix {} first {} offset {} seed {}", c.batch, a.jitters(),
                             a.cutout, a.mixes(), c.first, c.offset, c.seed));
    Results got = run_case(be(), c), want = run_case(reference, c);
    if (!a.jitters() && a.mixup == 0) expect_same_bits(got, want);
    expect_close({got[0]}, {want[0]}, 3e-6);
    expect_close({run_case(be(), c, DType::bf16)[0]}, {run_case(reference, c, DType::bf16)[0]}, kBf16Tolerance);
    got.erase(got.begin());
    want.erase(want.begin());
    expect_same_bits(got, want);
  }
}

TEST(Augment, SameBitsForAnyNumberOfThreads) {
  for (const Augment& a : {kEverything, kColours}) {
    const AugmentCase c{a, {50, 16, 16, 3}};
    const Results want = run_case(*make_cpu_backend(1), c);
    for (int threads : {2, 3, 7}) expect_same_bits(run_case(*make_cpu_backend(threads), c), want);
  }
}

// -- colours

// torchvision 0.15.1 in double: adjust_brightness, adjust_contrast, adjust_saturation and adjust_hue one after the
// other on an image of 2 x 3 pixels. Ours is in float.
TEST(Augment, ColoursAreTorchvisions) {
  const std::vector<uint8_t> image{200, 30, 60, 10, 250, 90, 0, 0, 0, 255, 255, 255, 120, 119, 121, 33, 66, 199};
  std::vector<float> table;
  for (int v = 0; v < 256; ++v) table.insert(table.end(), 3, float(v) / 255);
  const auto jittered = [&](float brightness, float contrast, float saturation, float hue) {
    SampleDraw d{.brightness = brightness, .contrast = contrast, .saturation = saturation, .hue = hue, .partner = -1};
    std::vector<float> out(18);
    const PixelSource<Padding::zero> source{image.data(), table.data(), 2, 3, 3};
    GreyMeans<Padding::zero>{source, &d}(0);
    const AugmentPixels<float, Padding::zero> pixels{source, &d, out.data(), true};
    for (int64_t y = 0; y < 2; ++y)
      for (int64_t x = 0; x < 3; ++x) pixels(y, x);
    return out;
  };
  const std::vector<double> first{0.9762179, 0.5336297, 0.2138648, 0.0528011, 0.8815067, 0.9069188,
                                  0.2032819, 0.2032819, 0.2032819, 0.8033119, 0.8033119, 0.8033119,
                                  0.5756708, 0.5664943, 0.5747531, 0.5438965, 0.2461556, 0.9947438};
  const std::vector<double> second{0.1631122, 0.2122380, 0.2915824, 0.5788146, 0.4191158, 0.4119130,
                                   0,         0,         0,         0.8536553, 0.8536553, 0.8536553,
                                   0.3326504, 0.3341877, 0.3330809, 0.1717204, 0.2458776, 0.1182855};
  const std::vector<float> a = jittered(1.3f, 0.6f, 1.5f, 0.1f), b = jittered(0.7f, 1.4f, 0.2f, -0.37f);
  for (size_t i = 0; i < 18; ++i) {
    EXPECT_NEAR(a[i], first[i], 5e-7) << i;
    EXPECT_NEAR(b[i], second[i], 5e-7) << i;
  }
  // Factors of one and no shift change nothing.
  const std::vector<float> same = jittered(1, 1, 1, 0);
  for (size_t i = 0; i < 18; ++i) EXPECT_EQ(same[i], float(image[i]) / 255) << i;
  // A whole turn of the hue is none; half a turn of red is cyan.
  const std::vector<float> turned = jittered(1, 1, 1, -1), half = jittered(1, 1, 1, 0.5f);
  for (size_t i = 0; i < 18; ++i) EXPECT_NEAR(turned[i], float(image[i]) / 255, 1e-6) << i;
  EXPECT_NEAR(half[0], 30 / 255.0, 1e-6);
  EXPECT_NEAR(half[1], 200 / 255.0, 1e-6);
}

// Computed by another implementation (Python), like DrawsAsEver.
TEST(Augment, FurtherDrawsAsEver) {
  struct Stored {
    uint64_t seed;
    int32_t epoch, item;
    double brightness, contrast, saturation, hue;
    int y, x;  // centre of the cutout
  };
  const Augment a{.brightness = 0.2f, .contrast = 0.2f, .saturation = 0.2f, .hue = 0.1f, .cutout = 2};
  for (const Stored& s :
       std::vector<Stored>{{0, 0, 0, 1.1757457, 1.1756247, 0.9769859, 0.0218438, 6, 0},
                           {(uint64_t(1) << 40) + 5, 199, 49999, 0.8550555, 0.9673600, 1.1434927, -0.0263452, 7, 4},
                           {7, 3, 12345, 0.9765376, 0.8466171, 0.8717885, 0.0535394, 4, 16}}) {
    const SampleDraw d = draw_one(s.item, {.epoch = s.epoch, .seed = s.seed}, a);
    EXPECT_NEAR(d.brightness, s.brightness, 2e-7);
    EXPECT_NEAR(d.contrast, s.contrast, 2e-7);
    EXPECT_NEAR(d.saturation, s.saturation, 2e-7);
    EXPECT_NEAR(d.hue, s.hue, 1e-7);
    EXPECT_EQ(d.cutout.y1, s.y + 1);
    EXPECT_EQ(d.cutout.x1, s.x + 1);
  }
}
TEST(Augment, MixesAsEver) {
  struct Stored {
    uint64_t seed, step;
    double beta02, beta1, beta3;
    Box box;  // of CutMix with alpha 1 on 32 x 32
    double share;
    bool mixup;  // of the two
  };
  for (const Stored& s : std::vector<Stored>{
           {0, 0, 0.9876182951631749, 0.36424008493598425, 0.41668703776380084, {19, 32, 0, 22}, 0.720703125, false},
           {1, 77, 0.9992036287820869, 0.5661524287329301, 0.5294807787701066, {12, 32, 2, 22}, 0.609375, false},
           {(uint64_t(1) << 40) + 5,
            (uint64_t(1) << 33) + 9,
            0.5699482239622735,
            0.7536590182276607,
            0.6474100669802446,
            {10, 24, 19, 32},
            0.822265625,
            true}}) {
    EXPECT_NEAR(beta_draw(double(0.2f), s.seed, s.step), s.beta02, 1e-12);
    EXPECT_NEAR(beta_draw(1, s.seed, s.step), s.beta1, 1e-12);
    EXPECT_NEAR(beta_draw(3, s.seed, s.step), s.beta3, 1e-12);
    const MixDraw cut = draw_mix({.cutmix = 1}, s.seed, s.step, 32, 32);
    EXPECT_EQ(std::tie(cut.cutmix.y0, cut.cutmix.y1, cut.cutmix.x0, cut.cutmix.x1),
              std::tie(s.box.y0, s.box.y1, s.box.x0, s.box.x1));
    EXPECT_EQ(cut.share, float(s.share));
    const MixDraw up = draw_mix({.mixup = 1}, s.seed, s.step, 32, 32);
    EXPECT_TRUE(up.cutmix.empty());
    EXPECT_EQ(up.share, float(s.beta1));
    EXPECT_EQ(draw_mix({.mixup = 1, .cutmix = 1}, s.seed, s.step, 32, 32).cutmix.empty(), s.mixup);
  }
}

// -- distributions, with fixed seeds: the bounds hold for ever or never

TEST(Augment, FactorsAreUniformInTorchvisionsRanges) {
  constexpr int n = 20000;
  const Augment a{.brightness = 0.4f, .contrast = 2, .saturation = 0.1f, .hue = 0.3f};
  const std::vector<SampleDraw> draws = draw_many(n, {.epoch = 2, .seed = 3}, a);
  const auto check = [&](auto value, double low, double high) {
    std::array<int, 10> cells{};
    for (const SampleDraw& d : draws) {
      const double v = double(value(d));
      ASSERT_TRUE(v >= low - 1e-7 && v <= high + 1e-7) << v;
      ++cells[size_t(std::clamp((v - low) / (high - low) * 10, 0.0, 9.0))];
    }
    EXPECT_LE(chi_square(cells, n / 10.0), 27.9);  // 9 degrees of freedom, probability 0.001
  };
  check([](const SampleDraw& d) { return d.brightness; }, 0.6, 1.4);
  check([](const SampleDraw& d) { return d.contrast; }, 0, 3);  // max(0, 1 - 2)
  check([](const SampleDraw& d) { return d.saturation; }, 0.9, 1.1);
  check([](const SampleDraw& d) { return d.hue; }, -0.3, 0.3);
  double product = 0;  // brightness and contrast are independent
  for (const SampleDraw& d : draws) product += double(d.brightness - 1) * double(d.contrast - 1.5f);
  EXPECT_NEAR(product / n, 0, 3.3 * (0.8 / std::sqrt(12)) * (3 / std::sqrt(12)) / std::sqrt(n));
}

// Mean 1/2 and variance 1 / (4 (2 alpha + 1)); alpha 1 is uniform, alpha 1/2 the arcsine distribution.
TEST(Augment, BetaHasItsMomentsAndShape) {
  constexpr int n = 20000;
  const auto cells_of = [](double alpha, auto distribution) {
    std::array<int, 10> cells{};
    for (uint64_t step = 0; step < n; ++step)
      ++cells[size_t(std::clamp(distribution(beta_draw(alpha, 9, step)) * 10, 0.0, 9.0))];
    return cells;
  };
  for (const double alpha : {0.01, 0.2, 0.5, 1.0, 2.0, 8.0, 100.0}) {
    double sum = 0, squares = 0, fourth = 0;
    for (uint64_t step = 0; step < n; ++step) {
      const double x = beta_draw(alpha, 8, step);
      ASSERT_TRUE(x >= 0 && x <= 1) << x;
      sum += x - 0.5;
      squares += (x - 0.5) * (x - 0.5);
      fourth += std::pow(x - 0.5, 4);
    }
    const double var = 1 / (4 * (2 * alpha + 1)), spread = std::sqrt(fourth / n - var * var);
    EXPECT_NEAR(sum / n, 0, 3.3 * std::sqrt(var / n)) << alpha;
    EXPECT_NEAR(squares / n, var, 3.3 * spread / std::sqrt(n) + 1e-12) << alpha;
  }
  EXPECT_LE(chi_square(cells_of(1, [](double x) { return x; }), n / 10.0), 27.9);
  EXPECT_LE(chi_square(cells_of(0.5, [](double x) { return 2 / M_PI * std::asin(std::sqrt(x)); }), n / 10.0), 27.9);
}

TEST(Augment, EachOfTwoMixesComesHalfOfTheTime) {
  int cut = 0;
  for (uint64_t step = 0; step < 4000; ++step)
    cut += draw_mix({.mixup = 1, .cutmix = 0.01f}, 1, step, 1000, 1000).share !=
           draw_mix({.mixup = 1}, 1, step, 1000, 1000).share;
  EXPECT_NEAR(cut, 2000, 3.3 * std::sqrt(4000) / 2);
}

// -- flips, borders, views

TEST(Augment, AlternatingFlipsMirrorEveryOtherEpoch) {
  const Augment a{.crop_pad = 4, .flip = Flip::alternating};
  int flipped = 0;
  for (int32_t item = 0; item < 2000; ++item) {
    const auto draw = [&](int32_t epoch, const Augment& augment) {
      return draw_one(item, {.epoch = epoch, .seed = 6}, augment);
    };
    const int32_t start = draw(0, a).flip;
    flipped += start;
    EXPECT_EQ(start, draw(0, kCropFlip).flip);  // the very coin of random flipping
    for (int32_t epoch : {1, 2, 3, 100, 101}) {
      ASSERT_EQ(draw(epoch, a).flip, start ^ (epoch & 1)) << item;
      ASSERT_EQ(draw(epoch, a).dx, draw(epoch, kCropFlip).dx);  // the crop is drawn as ever
    }
  }
  EXPECT_NEAR(flipped, 1000, 3.3 * std::sqrt(2000) / 2);
}

// torch.nn.functional.pad(arange(12) [3,4], 2 on each side, mode="reflect"): every view of it up to 2 pixels off.
TEST_F(AugmentTest, ReflectsAsPyTorch) {
  constexpr int padded[7][8] = {{10, 9, 8, 9, 10, 11, 10, 9}, {6, 5, 4, 5, 6, 7, 6, 5},     {2, 1, 0, 1, 2, 3, 2, 1},
                                {6, 5, 4, 5, 6, 7, 6, 5},     {10, 9, 8, 9, 10, 11, 10, 9}, {6, 5, 4, 5, 6, 7, 6, 5},
                                {2, 1, 0, 1, 2, 3, 2, 1}};
  Images image{.height = 3, .width = 4, .channels = 1, .classes = 2};
  image.pixels = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  image.labels = {0};
  use(image, 0, 1 / 255.0);
  for (const bool flip : {false, true})
    for (int dy = -2; dy <= 2; ++dy)
      for (int dx = -2; dx <= 2; ++dx) {
        source_.augment = {.padding = Padding::reflect};
        source_.view = {flip, dx, dy};
        const std::vector<float> reflected = make(1, {}).pixels;
        source_.augment = {};
        const std::vector<float> black = make(1, {}).pixels;
        for (int y = 0; y < 3; ++y)
          for (int x = 0; x < 4; ++x) {
            const int column = flip ? 3 - x : x;
            ASSERT_NEAR(reflected[size_t(y * 4 + x)], padded[y + dy + 2][column + dx + 2], 1e-5);
            const bool inside = y + dy >= 0 && y + dy < 3 && column + dx >= 0 && column + dx < 4;
            ASSERT_NEAR(black[size_t(y * 4 + x)], inside ? (y + dy) * 4 + column + dx : 0, 1e-5);
          }
      }
}

// -- cutout

TEST_F(AugmentTest, CutoutIsASquareOfTheMeanClippedAtTheBorder) {
  Images white{.height = 12, .width = 10, .channels = 3, .classes = 2};
  white.pixels.assign(size_t(12 * 10 * 3 * 400), 255);
  white.labels.assign(400, 0);
  use(white);
  for (const int side : {1, 4, 5, 30}) {
    source_.augment = {.cutout = side};
    const Batch b = make(400, {.seed = 2});
    std::set<std::pair<int, int>> centres;
    bool whole = false, cut = false;
    for (size_t i = 0; i < 400; ++i) {
      const Box box = b.draws[i].cutout;
      const std::vector<float> p = picture(b, i);
      for (int y = 0; y < 12; ++y)
        for (int x = 0; x < 10; ++x)
          for (int c = 0; c < 3; ++c)
            ASSERT_EQ(p[size_t((y * 10 + x) * 3 + c)],
                      y >= box.y0 && y < box.y1 && x >= box.x0 && x < box.x1 ? 0.f : 2.f);
      ASSERT_TRUE(box.y0 >= 0 && box.x0 >= 0 && box.y1 <= 12 && box.x1 <= 10 && !box.empty());
      ASSERT_TRUE(box.y1 - box.y0 <= side && box.x1 - box.x0 <= side);
      const int area = (box.y1 - box.y0) * (box.x1 - box.x0);
      whole |= area == side * side;
      cut |= area < side * side;
      if (side == 1) centres.insert({box.y0, box.x0});
    }
    EXPECT_EQ(whole, side < 30);
    EXPECT_EQ(cut, side > 1);
    if (side == 1) {
      EXPECT_GE(centres.size(), 110u);  // of 120, by 400 draws: 116 on average
    }
  }
}

// -- mixes

// Sample i is filled with the value i, its label is i.
Images numbered(int count) {
  Images images{.height = 8, .width = 6, .channels = 1, .classes = 50};
  for (int i = 0; i < count; ++i) {
    images.pixels.insert(images.pixels.end(), 48, uint8_t(i));
    images.labels.push_back(i);
  }
  return images;
}

TEST_F(AugmentTest, MixupBlendsPixelsAndLabelsByTheSameShare) {
  use(numbered(50), 0, 1 / 255.0);
  source_.augment = {.mixup = 1};
  std::set<float> shares;
  for (int64_t step = 0; step < 20; ++step) {
    const Batch b = make(20, {.first = 7, .step = step, .seed = 1});
    shares.insert(b.shares[0]);
    for (size_t n = 0; n < 20; ++n) {
      EXPECT_EQ(b.labels[n], int(7 + n));
      EXPECT_EQ(b.partners[n], int(7 + 19 - n));
      EXPECT_EQ(b.shares[n], b.shares[0]);
      const double want = double(b.shares[n]) * double(7 + n) + (1 - double(b.shares[n])) * double(26 - n);
      for (const float v : picture(b, n)) ASSERT_NEAR(v, want, 1e-5);
    }
  }
  EXPECT_EQ(shares.size(), 20u);
}

TEST_F(AugmentTest, CutmixWeighsLabelsByTheAreaThatIsShown) {
  use(numbered(50), 0, 1 / 255.0);
  source_.augment = {.cutmix = 1};
  std::set<float> shares;
  for (int64_t step = 0; step < 40; ++step) {
    const Batch b = make(20, {.step = step, .seed = 1});
    shares.insert(b.shares[0]);
    for (size_t n = 0; n < 20; ++n) {
      const std::vector<float> p = picture(b, n);
      int64_t own = 0, others = 0;
      for (const float v : p) (std::lround(v) == int64_t(n) ? own : others) += 1;
      EXPECT_EQ(b.shares[n], float(own / 48.0));
      EXPECT_EQ(others, 48 - own);
      for (const float v : p) ASSERT_TRUE(std::lround(v) == int64_t(n) || std::lround(v) == b.partners[n]);
    }
  }
  EXPECT_GE(shares.size(), 5u);
}

TEST_F(AugmentTest, AnOddBatchsMiddleAndAPaddedEndAreMixedWithNobodyElse) {
  use(numbered(10), 0, 1 / 255.0);
  source_.augment = {.mixup = 1};
  const Batch b = make(5, {.first = 7, .seed = 1});
  EXPECT_EQ(b.labels, (std::vector<int32_t>{7, 8, 9, -1, -1}));
  EXPECT_EQ(b.partners, (std::vector<int32_t>{9, 8, 7, -1, -1}));
  for (const float v : picture(b, 1)) EXPECT_NEAR(v, 8, 1e-5);
  for (const float v : picture(b, 4)) EXPECT_EQ(v, 0);
  EXPECT_EQ(b.shares[4], 1);
}

TEST_F(AugmentTest, AMicroBatchIsItsPartOfTheStep) {
  use(make_synthetic(50, Split::train, 0, 8));
  const Batch whole = make(24, {.first = 10, .seed = 3});
  for (const int64_t offset : {0, 8, 16}) {
    const Batch part = make(8, {.first = 10, .seed = 3}, offset);
    for (size_t n = 0; n < 8; ++n) {
      EXPECT_EQ(part.labels[n], whole.labels[size_t(offset) + n]);
      ASSERT_EQ(picture(part, n), picture(whole, size_t(offset) + n));
    }
  }
  source_.augment.mixup = 1;  // one share for all of a step
  EXPECT_EQ(make(8, {.step = 4, .seed = 3}, 16).shares, make(8, {.step = 4, .seed = 3}).shares);
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
  config.train.precision = "f32";
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
