// The own 3x3 convolutions against the direct sum in double precision, for every instruction set that this processor
// has.
#include "src/backend/cpu/conv3x3.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>

namespace linnet {
namespace {

using Floats = std::vector<float>;

std::vector<Simd> all_simd() {
  std::vector<Simd> all = {Simd::avx2};
  for (Simd simd : {Simd::avx512, Simd::avx512_bf16, Simd::amx})
    if (simd <= best_simd()) all.push_back(simd);
  return all;
}

std::string name_of(const Conv3x3Shape& s, Simd simd) {
  return fmt::format("{}x{}x{}, {} to {} channels, {}", s.n, s.h, s.w, s.c, s.k, linnet::name_of(simd));
}

Floats noise(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Floats v(static_cast<size_t>(count));
  for (float& x : v) x = normal(random);
  return v;
}

// Numbers in memory of their own as f32 or bf16.
struct Memory : Block {
  explicit Memory(size_t size) : words(size / 2 + 1) { data = words.data(), bytes = size; }
  std::vector<uint16_t> words;
};
Tensor tensor_of(const Floats& values, const Shape& shape, DType type) {
  Tensor t(std::make_shared<Memory>(values.size() * size_of(type)), shape, type);
  if (type == DType::f32) std::copy(values.begin(), values.end(), t.data<float>());
  if (type == DType::bf16)
    std::transform(values.begin(), values.end(), t.data<bf16>(), [](float v) { return bf16(v); });
  return t;
}
Floats floats_of(const Tensor& t) {
  Floats values(static_cast<size_t>(t.numel()));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = t.dtype() == DType::f32 ? t.data<float>()[i] : float(t.data<bf16>()[i]);
  return values;
}

// Data, and room for results, which starts as NaN: what is not written fails every comparison.
struct Case {
  explicit Case(const Conv3x3Shape& shape, DType type = DType::f32)
      : s(shape),
        type(type),
        x(noise(s.n * s.h * s.w * s.c, 1)),
        dy(noise(s.n * s.h * s.w * s.k, 2)),
        w(noise(s.k * 9 * s.c, 3)),
        y(dy.size(), std::numeric_limits<float>::quiet_NaN()),
        dx(x.size(), std::numeric_limits<float>::quiet_NaN()),
        dw(w.size(), std::numeric_limits<float>::quiet_NaN()),
        moments(size_t(2 * s.k), std::numeric_limits<double>::quiet_NaN()) {
    if (type == DType::bf16)  // what a bf16 holds exactly
      for (Floats* v : {&x, &dy, &w})
        for (float& e : *v) e = float(bf16(e));
  }

  // All passes; then both gradients at once, which must give the same bits as one by one.
  void run(Conv3x3& conv) {
    const Shape in{s.n, s.h, s.w, s.c}, out{s.n, s.h, s.w, s.k}, weights{s.k, 3, 3, s.c};
    const Tensor tx = tensor_of(x, in, type), tw = tensor_of(w, weights, type), tdy = tensor_of(dy, out, type);
    const Tensor ty = tensor_of(y, out, type), tdx = tensor_of(dx, in, type), tdw = tensor_of(dw, weights, DType::f32);
    const Tensor again = tensor_of(y, out, type), dx2 = tensor_of(dx, in, type),
                 dw2 = tensor_of(dw, weights, DType::f32);
    conv.forward(ty, tx, tw, moments.data());
    conv.backward_data(tdx, tdy, tw);
    conv.backward_weight(tdw, tdy, tx);
    conv.forward(again, tx, tw);
    conv.backward(dx2, dw2, tdy, tx, tw);
    y = floats_of(ty), dx = floats_of(tdx), dw = floats_of(tdw);
    const auto same = [](const Floats& a, const Floats& b) {
      return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
    };
    EXPECT_TRUE(same(floats_of(again), y)) << "with and without moments";
    EXPECT_TRUE(same(floats_of(dx2), dx) && same(floats_of(dw2), dw)) << "both gradients at once";
  }

  Conv3x3Shape s;
  DType type;
  Floats x, dy, w, y, dx, dw;
  std::vector<double> moments;
};

struct Reference {
  std::vector<double> y, dx, dw;
  explicit Reference(const Case& t) : y(t.y.size()), dx(t.dx.size()), dw(t.dw.size()) {
    const Conv3x3Shape& s = t.s;
    for (int64_t n = 0; n < s.n; ++n)
      for (int64_t i = 0; i < s.h; ++i)
        for (int64_t j = 0; j < s.w; ++j)
          for (int64_t tap = 0; tap < 9; ++tap) {
            const int64_t row = i + tap / 3 - 1, column = j + tap % 3 - 1;
            if (row < 0 || row >= s.h || column < 0 || column >= s.w) continue;
            const size_t in = size_t(((n * s.h + row) * s.w + column) * s.c),
                         out = size_t(((n * s.h + i) * s.w + j) * s.k);
            for (int64_t k = 0; k < s.k; ++k) add_pixel(t, in, out + size_t(k), size_t((k * 9 + tap) * s.c));
          }
  }
  void add_pixel(const Case& t, size_t in, size_t out, size_t weight) {
    const double g = double(t.dy[out]);
    double sum = 0;
    for (size_t c = 0; c < size_t(t.s.c); ++c) {
      sum += double(t.x[in + c]) * double(t.w[weight + c]);
      dx[in + c] += g * double(t.w[weight + c]);
      dw[weight + c] += g * double(t.x[in + c]);
    }
    y[out] += sum;
  }
};

// The largest error by the largest value; NaN if there is one.
double error(const Floats& got, const std::vector<double>& wanted) {
  double worst = 0, scale = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double difference = std::abs(double(got[i]) - wanted[i]);
    if (!(difference <= worst)) worst = difference;
    if (std::isnan(worst)) return worst;
    scale = std::max(scale, std::abs(wanted[i]));
  }
  return worst / scale;
}

// The moments of a result's channels: against those of the reference, whose rounding they do not share.
void expect_moments(const Case& run, const std::vector<double>& y, double tolerance) {
  const int64_t k = run.s.k;
  const double n = double(y.size()) / double(k);
  for (int64_t c = 0; c < k && n > 0; ++c) {
    double mean = 0, m2 = 0;
    for (size_t i = size_t(c); i < y.size(); i += size_t(k)) mean += y[i] / n;
    for (size_t i = size_t(c); i < y.size(); i += size_t(k)) m2 += (y[i] - mean) * (y[i] - mean);
    const double deviation = std::sqrt(m2 / n) + 1e-3 * std::abs(mean);
    EXPECT_NEAR(run.moments[size_t(c)], mean, tolerance * deviation);
    EXPECT_NEAR(run.moments[size_t(k + c)], m2, tolerance * (m2 + deviation * deviation));
  }
}

void expect_right(const Conv3x3Shape& shape, DType type) {
  SCOPED_TRACE(name_of(type));
  Case t(shape, type);
  const Reference wanted(t);
  // f32: the points 2 and -2 (winograd_kernel.h). bf16: the result is rounded once, by half a unit of 2^-8 at most.
  const double tolerance = type == DType::f32 ? 1e-5 : 0x1p-8;
  ThreadPool pool(2);
  for (Simd simd : all_simd()) {
    SCOPED_TRACE(name_of(shape, simd));
    Case run = t;
    Conv3x3 conv(pool, simd);
    run.run(conv);
    EXPECT_LE(error(run.y, wanted.y), tolerance);
    EXPECT_LE(error(run.dx, wanted.dx), tolerance);
    EXPECT_LE(error(run.dw, wanted.dw), 2e-5);
    expect_moments(run, wanted.y, 1e-4);
  }
}

void expect_right(const Conv3x3Shape& shape) {
  expect_right(shape, DType::f32);
  expect_right(shape, DType::bf16);
}

TEST(Conv3x3, EveryPairOfChannels) {
  for (int64_t c : {16, 32, 48, 64})
    for (int64_t k : {16, 32, 48, 64}) expect_right({5, 8, 9, c, k});
}

TEST(Conv3x3, EveryImageSize) {
  for (int64_t h : {1, 2, 3, 4, 5, 7, 8, 9, 16})
    for (int64_t w : {1, 2, 3, 4, 5, 7, 8, 9, 16}) expect_right({5, h, w, 16, 32});
}

TEST(Conv3x3, EveryBatch) {
  for (int64_t n : {1, 2, 3, 5, 16, 17, 33}) {
    expect_right({n, 4, 4, 16, 16});
    expect_right({n, 7, 9, 48, 16});
  }
}

TEST(Conv3x3, LargeImages) {
  expect_right({1, 32, 32, 16, 16});
  expect_right({17, 32, 32, 16, 16});
  expect_right({5, 32, 16, 64, 48});
  expect_right({17, 16, 16, 32, 32});
  expect_right({17, 8, 8, 64, 64});
  expect_right({1, 37, 50, 32, 16});
}

TEST(Conv3x3, ThreadsDoNotChangeTheBits) {
  for (Simd simd : all_simd())
    for (DType type : {DType::f32, DType::bf16})
      for (const Conv3x3Shape& shape : {Conv3x3Shape{17, 16, 16, 32, 48}, {5, 9, 7, 16, 16}, {33, 8, 8, 64, 64}}) {
        SCOPED_TRACE(name_of(shape, simd) + ", " + name_of(type));
        ThreadPool alone(1);
        Conv3x3 one(alone, simd);
        Case wanted(shape, type);
        wanted.run(one);
        for (int threads : {2, 3, 5}) {
          ThreadPool pool(threads);
          Conv3x3 many(pool, simd);
          Case got(shape, type);
          got.run(many);
          EXPECT_EQ(got.y, wanted.y) << threads << " threads";
          EXPECT_EQ(got.dx, wanted.dx) << threads << " threads";
          EXPECT_EQ(got.dw, wanted.dw) << threads << " threads";
        }
      }
}

// AVX512_BF16 rounds by one instruction: to nearest, ties to even, a NaN stays one, as simd.h does it in integers.
TEST(Conv3x3, RoundingToBf16ByOneInstructionGivesTheSameBits) {
  if (best_simd() < Simd::avx512_bf16) GTEST_SKIP() << "this processor has no AVX512_BF16";
  ThreadPool pool(2);
  for (float scale : {1.f, 1e30f, 1e-30f, 1e38f}) {
    Case wanted({17, 32, 32, 16, 16}, DType::bf16);  // 278,528 results, of which some four are ties
    for (float& x : wanted.x) x = float(bf16(scale * x));
    wanted.x[5] = std::numeric_limits<float>::quiet_NaN();
    Case got = wanted;
    Conv3x3 integers(pool, Simd::avx512), one(pool, Simd::avx512_bf16);
    wanted.run(integers);
    got.run(one);
    EXPECT_TRUE(std::isnan(got.y[0]));
    const auto same = [](float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); };
    EXPECT_TRUE(std::equal(got.y.begin(), got.y.end(), wanted.y.begin(), same)) << scale;
    EXPECT_TRUE(std::equal(got.dx.begin(), got.dx.end(), wanted.dx.begin(), same)) << scale;
  }
}

// Workspaces are kept: what an earlier, larger convolution left there, NaN too, must not show.
TEST(Conv3x3, WorkspaceOfAnotherShapeDoesNotShow) {
  for (Simd simd : all_simd())
    for (DType type : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(name_of(type));
      ThreadPool pool(2);
      Conv3x3 fresh(pool, simd), used(pool, simd);
      Case bad({17, 16, 16, 64, 64}, type);
      for (Floats* v : {&bad.x, &bad.dy, &bad.w})
        std::fill(v->begin(), v->end(), std::numeric_limits<float>::quiet_NaN());
      bad.run(used);
      EXPECT_TRUE(std::isnan(bad.y[0]) && std::isnan(bad.dx[0]) && std::isnan(bad.dw[0]));
      for (const Conv3x3Shape& shape : {Conv3x3Shape{3, 5, 6, 32, 16}, {7, 2, 3, 16, 48}, {9, 8, 8, 64, 64}}) {
        Case wanted(shape, type), got(shape, type);
        wanted.run(fresh);
        got.run(used);
        EXPECT_EQ(got.y, wanted.y);
        EXPECT_EQ(got.dx, wanted.dx);
        EXPECT_EQ(got.dw, wanted.dw);
      }
    }
}

// With a batch norm below: the same bits behind the ReLU's mask, and sums over them.
TEST(Conv3x3, SumsForTheBatchNormThatMadeItsInput) {
  ThreadPool pool(2), alone(1);
  for (Simd simd : all_simd())
    for (DType type : {DType::f32, DType::bf16})
      for (const Conv3x3Shape& s : {Conv3x3Shape{1, 4, 4, 16, 16},
                                    {17, 16, 16, 32, 32},
                                    {5, 9, 7, 16, 48},
                                    {3, 3, 5, 64, 16},
                                    {33, 8, 8, 64, 64}}) {
        SCOPED_TRACE(name_of(s, simd) + ", " + name_of(type));
        const Case t(s, type);
        const Shape in{s.n, s.h, s.w, s.c}, out{s.n, s.h, s.w, s.k}, weights{s.k, 3, 3, s.c};
        const Tensor y = tensor_of(t.x, in, type), w = tensor_of(t.w, weights, type), dy = tensor_of(t.dy, out, type);
        const Tensor plus = tensor_of(noise(in.numel(), 4), in, type), x = tensor_of(noise(in.numel(), 5), in, type);
        const Tensor saved = tensor_of(noise(4 * s.c, 6), {4, s.c}, DType::f32);
        const Tensor dx = tensor_of(t.dx, in, type), dw = tensor_of(t.dw, weights, DType::f32);
        for (const Tensor* p : {static_cast<const Tensor*>(nullptr), &plus}) {
          Conv3x3 conv(pool, simd), again(alone, simd);
          conv.backward(dx, dw, dy, y, w, p);
          Floats want = floats_of(dx), want_dw = floats_of(dw), xs = floats_of(x), means = floats_of(saved);
          std::vector<double> sums(size_t(2 * s.c)), sizes(sums.size());  // sizes: of the terms
          for (size_t i = 0; i < want.size(); ++i) {
            if (!(t.x[i] > 0)) want[i] = 0;
            const size_t c = i % size_t(s.c);
            const double g = double(want[i]), product = g * (double(xs[i]) - double(means[c]));
            sums[c] += g, sums[size_t(s.c) + c] += product;
            sizes[c] += std::abs(g), sizes[size_t(s.c) + c] += std::abs(product);
          }
          for (Conv3x3* one : {&conv, &again}) {
            const Tensor got_sums = tensor_of(Floats(size_t(2 * s.c)), {2, s.c}, DType::f64);
            const InputBn input{x, saved, got_sums};
            if (!one->backward(dx, dw, dy, y, w, p, &input)) {
              EXPECT_TRUE(simd == Simd::amx && type == DType::bf16);
              continue;
            }
            EXPECT_EQ(floats_of(dx), want);
            EXPECT_EQ(floats_of(dw), want_dw);
            // Sums take g before it is rounded to bf16, by half a unit of 2^-8 at most.
            for (size_t i = 0; i < sums.size(); ++i)
              EXPECT_NEAR(got_sums.data<double>()[i], sums[i], (type == DType::bf16 ? 0x1.02p-9 : 1e-6) * sizes[i]);
          }
        }
      }
}

// What batch norms leave to a convolution, against the same with tensors in which it was done; in f32 that differs by
// how a product and a sum are rounded, at most. (norm_test: not at all, in one build.)
TEST(Conv3x3, WhatBatchNormsLeaveToIt) {
  ThreadPool pool(2);
  for (Simd simd : all_simd())
    for (DType type : {DType::f32, DType::bf16})
      for (const Conv3x3Shape& s : {Conv3x3Shape{1, 4, 4, 16, 16},
                                    {17, 16, 16, 32, 32},
                                    {5, 9, 7, 16, 48},
                                    {33, 8, 8, 64, 64},
                                    {5, 8, 8, 64, 80}}) {
        SCOPED_TRACE(name_of(s, simd) + ", " + name_of(type));
        Conv3x3 conv(pool, simd);
        if (!conv.knows_batch_norm(type)) continue;
        const Case t(s, type);
        const Shape in{s.n, s.h, s.w, s.c}, out{s.n, s.h, s.w, s.k}, weights{s.k, 3, 3, s.c};
        const auto of = [](const Floats& v, const Shape& shape, DType d) { return tensor_of(v, shape, d); };
        const Tensor x = of(t.x, in, type), w = of(t.w, weights, type), g = of(t.dy, out, type);
        const Tensor saved = of(noise(4 * s.c, 6), {4, s.c}, DType::f32);
        const Tensor factors = of(noise(4 * s.k, 7), {4, s.k}, DType::f32), y = of(noise(out.numel(), 8), out, type);
        // Done in f32: the wanted results are those of f32 kernels.
        Floats applied = floats_of(x), behind = floats_of(g);
        const Floats a = floats_of(saved), f = floats_of(factors), vy = floats_of(y), wide_w = floats_of(w);
        for (size_t i = 0, c = size_t(s.c); i < applied.size(); ++i)
          applied[i] = std::max(0.f, std::fma(applied[i], a[2 * c + i % c], a[3 * c + i % c]));
        for (size_t i = 0, k = size_t(s.k); i < behind.size(); ++i)
          behind[i] = std::fma(f[i % k], behind[i], std::fma(f[k + i % k], vy[i] - f[2 * k + i % k], f[3 * k + i % k]));
        const Tensor x2 = of(applied, in, DType::f32), w2 = of(wide_w, weights, DType::f32);
        const auto room = [&](const Shape& shape, DType d) { return of(Floats(size_t(shape.numel())), shape, d); };
        const auto expect = [&](const Tensor& got, const Tensor& want) {
          const Floats v = floats_of(want);
          EXPECT_LE(error(floats_of(got), {v.begin(), v.end()}), type == DType::f32 ? 1e-5 : 0x1p-8);
        };

        const Tensor got = room(out, type), want = room(out, DType::f32);
        conv.forward(got, x, w, nullptr, &saved);
        conv.forward(want, x2, w2);
        expect(got, want);

        const Tensor dx = room(in, type), dw = room(weights, DType::f32), dx2 = room(in, DType::f32),
                     dw2 = room(weights, DType::f32), sums = room({2, s.c}, DType::f64),
                     sums2 = room({2, s.c}, DType::f64);
        const bool takes = conv.takes_output_bn(w.shape(), type);
        EXPECT_EQ(takes, s.c * s.k <= (simd == Simd::avx2 ? 4096 : 2048)) << "where both gradients are one call";
        const InputBn input{x, saved, sums, false}, input2{of(floats_of(x), in, DType::f32), saved, sums2, true};
        const OutputBn output{y, factors};
        EXPECT_TRUE(conv.backward(dx, dw, g, x, w, nullptr, &input, takes ? &output : nullptr));
        const Tensor dy2 = of(takes ? behind : floats_of(g), out, DType::f32);
        EXPECT_TRUE(conv.backward(dx2, dw2, dy2, x2, w2, nullptr, &input2));
        expect(dx, dx2);
        expect(dw, dw2);
        const Floats vdx = floats_of(dx2);
        const double largest = double(*std::max_element(vdx.begin(), vdx.end()));
        for (int64_t i = 0; i < 2 * s.c; ++i) {
          const double pixels = double(in.numel() / s.c), factor = i < s.c ? 1 : 10;  // |x - mean| is below 10
          EXPECT_NEAR(sums.data<double>()[i], sums2.data<double>()[i], 1e-5 * largest * pixels * factor);
        }

        const Tensor residual = of(noise(out.numel(), 9), out, type);
        const Floats r = floats_of(residual);
        conv.forward(want, of(floats_of(x), in, DType::f32), w2);
        for (const bool relu : {false, true}) {
          conv.forward_bn(got, x, w, &residual, {f.data(), f.data() + s.k, relu});
          Floats normed = floats_of(want);
          for (size_t i = 0, k = size_t(s.k); i < normed.size(); ++i) {
            normed[i] = std::fma(normed[i], f[i % k], f[k + i % k]) + r[i];
            if (relu) normed[i] = std::max(0.f, normed[i]);
          }
          expect(got, of(normed, out, DType::f32));
        }
      }
}

TEST(Conv3x3, AnEmptyBatchHasNoWeightGradient) {
  ThreadPool pool(2);
  Conv3x3 conv(pool);
  Case t({0, 8, 8, 16, 16});
  t.run(conv);
  EXPECT_EQ(t.dw, Floats(t.dw.size(), 0.f));
}

TEST(Conv3x3, TakesOnlyWhatItCanCompute) {
  EXPECT_TRUE(Conv3x3::takes({32, 3, 3, 16}, {.stride = 1, .pad = 1}));
  EXPECT_FALSE(Conv3x3::takes({32, 3, 3, 16}, {.stride = 2, .pad = 1}));
  EXPECT_FALSE(Conv3x3::takes({32, 3, 3, 16}, {.stride = 1, .pad = 0}));
  EXPECT_FALSE(Conv3x3::takes({32, 1, 1, 16}, {.stride = 1, .pad = 1}));
  EXPECT_FALSE(Conv3x3::takes({32, 3, 3, 3}, {.stride = 1, .pad = 1}));
  EXPECT_FALSE(Conv3x3::takes({24, 3, 3, 16}, {.stride = 1, .pad = 1}));
}

}  // namespace
}  // namespace linnet
