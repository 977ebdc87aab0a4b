// What a step does to the flat buffers: which parameters decay, the update for any number of threads, clipping.
#include <gtest/gtest.h>

#include "flat_run.h"

namespace linnet {
namespace {

constexpr double kTolerance = 2e-6;

struct Layers {
  explicit Layers(Backend& backend, const Layout& layout = {}) {
    bias = &store.add("bias", {5}, false, constant(1));
    conv = &store.add("conv", {3, 3, 3, 2}, true, constant(1));
    scale = &store.add("scale", {16}, false, constant(1));
    linear = &store.add("linear", {10, 7}, true, constant(1));
    store.seal(backend, 0, layout);
  }
  ParamStore store;
  Param *bias, *conv, *scale, *linear;
};

int64_t offset(const Layers& l, const Param* p) {
  return (static_cast<const char*>(p->master.raw()) - static_cast<const char*>(l.store.flat().master.raw())) / 4;
}

TEST(Flat, DecayedParametersComeFirst) {
  const auto backend = make_cpu_backend(1);
  const Layers l(*backend);
  EXPECT_EQ(l.store.count(), 5 + 54 + 16 + 70);
  ASSERT_EQ(l.store.flat().segments.size(), 1u);
  EXPECT_EQ(l.store.flat().segments[0].n_decay, 64 + 80);  // each starts on a line of 16 floats
  EXPECT_EQ(l.store.flat().n, 64 + 80 + 16 + 16);
  EXPECT_EQ(offset(l, l.conv), 0);
  EXPECT_EQ(offset(l, l.linear), 64);
  EXPECT_EQ(offset(l, l.bias), 144);
  EXPECT_EQ(offset(l, l.scale), 160);
}

TEST(Flat, OrNoneIsSpared) {
  const auto backend = make_cpu_backend(1);
  const Layers l(*backend, {.decay_all = true});
  EXPECT_EQ(l.store.flat().segments[0].n_decay, l.store.flat().n);
  EXPECT_EQ(l.store.flat().segments[0].n_matrix, 64 + 80);  // matrices come first all the same
  EXPECT_EQ(offset(l, l.bias), 144);
}

// Group by group, in each the decayed ones first; the frozen ones behind all.
TEST(Flat, GroupsAreSegmentsAndFrozenOnesComeLast) {
  const auto backend = make_cpu_backend(1);
  const Layers l(*backend, {.groups = 2, .group = [](const std::string& name) {
                              return name == "conv" ? -1 : name == "linear" || name == "bias" ? 1 : 0;
                            }});
  const Flat& flat = l.store.flat();
  ASSERT_EQ(flat.segments.size(), 2u);
  EXPECT_EQ(flat.segments[0].n, 16);
  EXPECT_EQ(flat.segments[0].n_decay, 0);
  EXPECT_EQ(flat.segments[1].begin, 16);
  EXPECT_EQ(flat.segments[1].n, 80 + 16);
  EXPECT_EQ(flat.segments[1].n_decay, 80);
  EXPECT_EQ(flat.n_trainable, 16 + 96);
  EXPECT_EQ(offset(l, l.scale), 0);
  EXPECT_EQ(offset(l, l.linear), 16);
  EXPECT_EQ(offset(l, l.bias), 96);
  EXPECT_EQ(offset(l, l.conv), 112);
}

TEST(Flat, OnlyDecayedParametersShrink) {
  const auto backend = make_cpu_backend(1);
  const Layers l(*backend);
  update_once(*backend, Sgd{}, l.store.flat(), make_step(*backend), 0.5, 0.25, 1);
  for (const Param* p : l.store.params())
    for (int64_t i = 0; i < p->shape.numel(); ++i)
      ASSERT_EQ(p->master.data<float>()[i], p->decay ? 1 - 0.5f * 0.25f : 1.f) << p->name;
  // The numbers between two parameters are zero and stay so.
  EXPECT_EQ(l.store.flat().master.data<float>()[54], 0.f);
}

TEST(Flat, TheUpdateIsTheScalarRuleForAnyNumberOfThreads) {
  constexpr int64_t n = 100000, n_decay = 40000;
  Momentum rule;
  rule.nesterov = true;
  const std::vector<double> w0 = random_values(n, 0), g = random_values(n, 1);
  const GroupStep at = group_step(rule, 0.1, 0.01, 1);
  std::vector<double> first;
  for (const int threads : {1, 2, 3}) {
    const auto backend = make_cpu_backend(threads);
    const Flat flat = flat_of(*backend, w0, g, 1, n_decay);
    update_once(*backend, rule, flat, make_step(*backend), 0.1, 0.01, 1);
    const std::vector<double> w = download(*backend, flat.master);
    if (first.empty()) first = w;
    EXPECT_EQ(first, w) << threads << " threads";
    for (size_t i = 0; i < size_t(n); i += 7) {
      float s[1] = {0};
      ASSERT_NEAR(double(rule(float(w0[i]), float(g[i]), s, i < size_t(n_decay) ? 0.01f : 0.f, at)), w[i], 2.5e-7)
          << i;  // two roundings of values below 2
    }
  }
}

// ---- Lookahead and averages ----------------------------------------------------------------------------------------

// Golden d_adam_forms, lookahead_sgd_k2_a05: SGD, lr 0.1, k 2, alpha 0.5, gradients 0.2, 0.1, -0.05, 0.2 from 1.
TEST(Flat, LookaheadPullsTheFastWeightsBack) {
  const auto backend = make_cpu_backend(1);
  const Flat flat = flat_of(*backend, {1}, {0}, 0, 1);
  const Tensor slow = tensor_of(*backend, {1}, DType::f32, {1}), step = make_step(*backend);
  const double gradients[] = {0.2, 0.1, -0.05, 0.2}, want[] = {0.98, 0.985, 0.99, 0.9775};
  for (int t = 1; t <= 4; ++t) {
    upload(*backend, flat.grad, {gradients[t - 1]});
    update_once(*backend, Sgd{}, flat, step, 0.1, 0, t);
    backend->lookahead({2, 0.5}, flat.master, slow, step);
    EXPECT_NEAR(download(*backend, flat.master)[0], want[t - 1], kTolerance) << t;
  }
}

// ---- Clipping ------------------------------------------------------------------------------------------------------

StepResult clipped(const std::vector<double>& g, float max_norm) {
  const auto backend = make_cpu_backend(2);
  const Tensor step = make_step(*backend), sums(backend->allocate(16), {2}, DType::f64);
  backend->zero(sums);
  backend->judge_step(step, tensor_of(*backend, {int64_t(g.size())}, DType::f32, g), nullptr, sums, {.norm = max_norm});
  return read_step(*backend, step);
}

// torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6.
TEST(ClipNorm, ScalesALargeGradient) {
  const StepResult p = clipped({3, 4}, 1);
  EXPECT_NEAR(p.grad_norm, 5, 5 * kTolerance);
  EXPECT_NEAR(3 * double(p.clip_scale), 0.599999880000024, kTolerance);
  EXPECT_NEAR(4 * double(p.clip_scale), 0.799999840000032, kTolerance);
  EXPECT_EQ(p.clipped, 1);
  EXPECT_NEAR(clipped({6000, 8000}, 1).clip_scale, 1e-4, 1e-4 * kTolerance);
}

TEST(ClipNorm, LeavesASmallGradientAlone) {
  EXPECT_EQ(clipped({0.3, 0.4}, 1).clip_scale, 1.f);
  EXPECT_EQ(clipped({0, 0}, 1).clip_scale, 1.f);
}

TEST(ClipNorm, ZeroOnlyRecordsTheNorm) {
  const StepResult p = clipped({3000, 4000}, 0);
  EXPECT_EQ(p.clip_scale, 1.f);
  EXPECT_NEAR(p.grad_norm, 5000, 5000 * kTolerance);
}

TEST(ClipNorm, ANormBeyondFloatsSquaresIsExact) {
  EXPECT_NEAR(clipped(std::vector<double>(10000, 1e25), 1).grad_norm, 1e27, 1e27 * kTolerance);
}

}  // namespace
}  // namespace linnet
