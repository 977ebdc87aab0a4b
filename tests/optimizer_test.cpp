// The update rules against worked examples in double (tolerance: that of float), their properties, clipping and which
// parameters decay.
#include "linnet/optimizer.h"

#include <gtest/gtest.h>

#include <cstring>

#include "kernels/rng.h"
#include "linnet/config.h"
#include "linnet/error.h"
#include "linnet/param.h"
#include "src/backend/backends.h"

namespace linnet {
namespace {

constexpr double kTolerance = 2e-6;

// One weight under a rule: its value after each step, and the momentum buffer's.
struct Trace {
  std::vector<double> w, momentum;
};
template <class Gradient>
Trace trace(const Sgd& rule, double w0, int steps, double lr, double weight_decay, Gradient gradient) {
  Trace t;
  float w = float(w0), slots[1] = {0};
  for (int step = 0; step < steps; ++step) {
    w = rule(w, float(gradient(step, w)), slots, float(weight_decay), {.lr = float(lr), .step = step});
    t.w.push_back(double(w));
    t.momentum.push_back(double(slots[0]));
  }
  return t;
}
Trace trace(const Sgd& rule, double w0, const std::vector<double>& g, double lr, double weight_decay = 0) {
  return trace(rule, w0, int(g.size()), lr, weight_decay, [&](int step, float) { return g[size_t(step)]; });
}

void expect_close(const std::vector<double>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], kTolerance) << "step " << i;
}

const std::vector<double> kGradients = {0.2, 0.1, -0.05};

TEST(Sgd, MomentumAccumulates) {
  const Trace t = trace({.momentum = 0.9f}, 1, kGradients, 0.1);
  expect_close(t.w, {0.98, 0.952, 0.9318});
  expect_close(t.momentum, {0.2, 0.28, 0.202});
}

// PyTorch's first buffer is the gradient itself, not (1 - dampening) of it.
TEST(Sgd, DampeningSparesTheFirstStep) {
  const Trace t = trace({.momentum = 0.9f, .dampening = 0.9f}, 1, kGradients, 0.1);
  expect_close(t.w, {0.98, 0.961, 0.9444});
  expect_close(t.momentum, {0.2, 0.19, 0.166});
}

// On the loss w^2, from 1.
TEST(Sgd, Nesterov) {
  const Trace t = trace({.momentum = 0.9f, .nesterov = true}, 1, 4, 0.1, 0, [](int, float w) { return 2 * w; });
  expect_close(t.w, {0.62, 0.2224, -0.108352, -0.324823});
}

TEST(Sgd, WeightDecayIsAddedToTheGradient) {
  expect_close(trace({.momentum = 0}, 2, {0.5}, 0.1, 0.0005).w, {1.9499});
  // With momentum, the decay goes through the buffer (the decoupled form would give 0.950021, 0.928871).
  expect_close(trace({.momentum = 0.9f}, 1, kGradients, 0.1, 0.01).w, {0.979, 0.949121, 0.926280779});
}

TEST(Sgd, WithoutMomentumItIsPlainDescent) {
  expect_close(trace({.momentum = 0}, 1, kGradients, 0.1).w, {0.98, 0.97, 0.975});
  const Trace damped = trace({.momentum = 0, .dampening = 0.5f}, 1, kGradients, 0.1);
  expect_close(damped.w, {0.98, 0.97, 0.975});  // dampening belongs to the momentum
}

TEST(Sgd, AConstantGradientReachesItsTerminalVelocity) {
  const std::vector<double> g(300, 0.01);
  const Trace t = trace({.momentum = 0.9f}, 0, g, 0.1);
  EXPECT_NEAR(t.momentum.back(), 0.01 / (1 - 0.9), 1e-6);
}

TEST(Sgd, AZeroGradientLeavesTheWeightAlone) {
  expect_close(trace({.momentum = 0.9f, .nesterov = true}, 0.7, {0, 0, 0}, 0.1).w,
               {double(0.7f), double(0.7f), double(0.7f)});
}

// ---- The flat buffer -----------------------------------------------------------------------------------------------

struct Layers {
  explicit Layers(Backend& backend, bool decay_all = false) {
    bias = &store.add("bias", {5}, false, constant(1));
    conv = &store.add("conv", {3, 3, 3, 2}, true, constant(1));
    scale = &store.add("scale", {16}, false, constant(1));
    linear = &store.add("linear", {10, 7}, true, constant(1));
    store.seal(backend, 0, 1, decay_all);
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
  EXPECT_EQ(l.store.flat().n_decay, 64 + 80);  // each starts on a line of 16 floats
  EXPECT_EQ(l.store.flat().n, 64 + 80 + 16 + 16);
  EXPECT_EQ(offset(l, l.conv), 0);
  EXPECT_EQ(offset(l, l.linear), 64);
  EXPECT_EQ(offset(l, l.bias), 144);
  EXPECT_EQ(offset(l, l.scale), 160);
}

TEST(Flat, OrNoneIsSpared) {
  const auto backend = make_cpu_backend(1);
  const Layers l(*backend, true);
  EXPECT_EQ(l.store.flat().n_decay, l.store.flat().n);
  EXPECT_EQ(offset(l, l.bias), 0);
}

TEST(Flat, OnlyDecayedParametersShrink) {
  const auto backend = make_cpu_backend(1);
  const Layers l(*backend);
  const Tensor step = make_step(*backend);
  write_step(*backend, step, {.lr = 0.5f, .weight_decay = 0.25f});
  backend->update(Sgd{}, l.store.flat(), step);
  for (const Param* p : l.store.params())
    for (int64_t i = 0; i < p->shape.numel(); ++i)
      ASSERT_EQ(p->master.data<float>()[i], p->decay ? 1 - 0.5f * 0.25f : 1.f) << p->name;
  // The numbers between two parameters are zero and stay so.
  EXPECT_EQ(l.store.flat().master.data<float>()[54], 0.f);
}

std::vector<float> random_values(int64_t n, uint32_t stream) {
  std::vector<float> v(static_cast<size_t>(n));
  for (size_t i = 0; i < v.size(); ++i) v[i] = unit_float(random4(3, Draw::test, i, 0, stream).v[0]) - 0.5f;
  return v;
}

TEST(Flat, TheUpdateIsTheScalarRuleForAnyNumberOfThreads) {
  constexpr int64_t n = 100000, n_decay = 40000;
  const Sgd rule{.momentum = 0.9f, .nesterov = true};
  std::vector<float> first;
  for (const int threads : {1, 2, 3}) {
    const auto backend = make_cpu_backend(threads);
    const auto make = [&](const Shape& shape, uint32_t stream) {
      const Tensor t(backend->allocate(size_t(shape.numel()) * 4), shape, DType::f32);
      backend->upload(t, random_values(shape.numel(), stream).data());
      return t;
    };
    const Flat flat{make({n}, 0), make({n}, 1), make({1, n}, 2), n, n_decay};
    const Tensor step = make_step(*backend);
    const StepParams at{.lr = 0.1f, .weight_decay = 0.01f, .clip_scale = 0.5f, .step = 3};
    write_step(*backend, step, at);
    backend->update(rule, flat, step);
    const float* w = flat.master.data<float>();
    if (first.empty()) first.assign(w, w + n);
    EXPECT_EQ(std::memcmp(first.data(), w, n * sizeof(float)), 0) << threads << " threads";
    const std::vector<float> w0 = random_values(n, 0), g = random_values(n, 1), s0 = random_values(n, 2);
    for (size_t i = 0; i < size_t(n); i += 7) {
      float s[1] = {s0[i]};
      ASSERT_NEAR(rule(w0[i], g[i] * 0.5f, s, i < size_t(n_decay) ? 0.01f : 0.f, at), w[i], 1e-7) << i;
    }
  }
}

// ---- Clipping ------------------------------------------------------------------------------------------------------

StepParams clipped(const std::vector<float>& g, float max_norm) {
  const auto backend = make_cpu_backend(2);
  const Tensor grad(backend->allocate(g.size() * 4), {int64_t(g.size())}, DType::f32), step = make_step(*backend);
  backend->upload(grad, g.data());
  write_step(*backend, step, {.lr = 3});
  backend->clip_scale(step, grad, max_norm);
  return read_step(*backend, step);
}

// torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6.
TEST(ClipNorm, ScalesALargeGradient) {
  const StepParams p = clipped({3, 4}, 1);
  EXPECT_NEAR(p.grad_norm, 5, 5 * kTolerance);
  EXPECT_NEAR(3 * double(p.clip_scale), 0.599999880000024, kTolerance);
  EXPECT_NEAR(4 * double(p.clip_scale), 0.799999840000032, kTolerance);
  EXPECT_EQ(p.lr, 3.f);  // the rest is left alone
  EXPECT_NEAR(clipped({6000, 8000}, 1).clip_scale, 1e-4, 1e-4 * kTolerance);
}

TEST(ClipNorm, LeavesASmallGradientAlone) {
  EXPECT_EQ(clipped({0.3f, 0.4f}, 1).clip_scale, 1.f);
  EXPECT_EQ(clipped({0, 0}, 1).clip_scale, 1.f);
}

TEST(ClipNorm, ZeroOnlyRecordsTheNorm) {
  const StepParams p = clipped({3000, 4000}, 0);
  EXPECT_EQ(p.clip_scale, 1.f);
  EXPECT_NEAR(p.grad_norm, 5000, 5000 * kTolerance);
}

TEST(ClipNorm, ANormBeyondFloatsSquaresIsExact) {
  EXPECT_NEAR(clipped(std::vector<float>(10000, 1e25f), 1).grad_norm, 1e27, 1e27 * kTolerance);
}

// ---- By name -------------------------------------------------------------------------------------------------------

TEST(Optimizer, TheConfigMakesTheRule) {
  Config c;
  c.optimizer.momentum = 0.8;
  c.optimizer.dampening = 0.25;
  const auto sgd = std::get<Sgd>(make_rule(c));
  EXPECT_EQ(sgd.momentum, 0.8f);
  EXPECT_EQ(sgd.dampening, 0.25f);
  EXPECT_FALSE(sgd.nesterov);
  EXPECT_EQ(slots_of(make_rule(c)), 1);
  c.optimizer.name = "sgdm";
  try {
    make_rule(c);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.exit, Exit::usage);
    EXPECT_NE(std::string(e.what()).find("did you mean 'sgd'?"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace linnet
