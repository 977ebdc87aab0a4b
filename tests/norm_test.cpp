// Batch, group and layer norm on every backend.
#include <map>

#include "gradcheck.h"
#include "linnet/profile.h"

namespace linnet {
namespace {

OpCase bn_case(const Shape& x, bool relu, bool residual, bool train = true) {
  OpCase c{.name = fmt::format("batch_norm {}{}{}{}", x, relu ? " relu" : "", residual ? " residual" : "",
                               train ? "" : " eval"),
           .inputs = {x},
           .params = {{x[-1]}, {x[-1]}},
           .state = {{x[-1]}, {x[-1]}},
           .f =
               [=](Pass& p, const Operands& o) {
                 return batch_norm(p, o.x[0], *o.w[0], *o.w[1], *o.state[0], *o.state[1], {.relu = relu},
                                   residual ? &o.x[1] : nullptr);
               },
           .train = train};
  if (residual) c.inputs.push_back(x);
  return c;
}

OpCase gn_case(const Shape& x, int groups) {
  return {.name = fmt::format("group_norm {} in {} groups", x, groups),
          .inputs = {x},
          .params = {{x[-1]}, {x[-1]}},
          .f = [groups](Pass& p, const Operands& o) { return group_norm(p, o.x[0], *o.w[0], *o.w[1], groups); }};
}

class NormTest : public OpTest {
 protected:
  // A parameter of one value for every channel.
  Param& param(ParamStore& store, int64_t channels, float value) {
    return store.add("param " + std::to_string(store.params().size()), {channels}, false, constant(value));
  }
};
LINNET_ON_EVERY_BACKEND(NormTest);

const std::vector<Shape> kShapes = {{1, 3, 3, 1},  {2, 5, 7, 3},   {17, 4, 4, 8},  {33, 3, 5, 7},   {2, 9, 9, 16},
                                    {3, 8, 8, 24}, {17, 8, 8, 33}, {33, 9, 9, 24}, {128, 4, 4, 16}, {37, 10}};

TEST_P(NormTest, BatchNormAgainstReference) {
  for (const Shape& x : kShapes)
    for (bool relu : {false, true})
      for (bool residual : {false, true})
        for (bool train : {false, true}) check_against_reference(bn_case(x, relu, residual, train), be());
}

TEST_P(NormTest, BatchNormInSixteenBits) {
  for (const Shape& x : kShapes)
    for (bool relu : {false, true})
      for (DType dtype : {DType::bf16, DType::fp16}) check_against_reference(bn_case(x, relu, true), be(), dtype);
}

TEST_P(NormTest, BatchNormCentralDifferences) {
  for (bool relu : {false, true})
    for (bool residual : {false, true}) {
      check_gradients(bn_case({3, 2, 3, 3}, relu, residual), be());
      check_gradients(bn_case({5, 9}, relu, residual), be());
    }
}

TEST_P(NormTest, UsedTwice) {
  for (bool relu : {false, true}) check_used_twice(bn_case({17, 4, 4, 24}, relu, true), be());
  check_used_twice(gn_case({3, 4, 4, 24}, 8), be());

  OpCase c = bn_case({3, 2, 3, 3}, true, false);  // the residual is the input itself
  c.name = "relu(bn(x) + x)";
  c.f = [](Pass& p, const Operands& o) {
    return batch_norm(p, o.x[0], *o.w[0], *o.w[1], *o.state[0], *o.state[1], {.relu = true}, &o.x[0]);
  };
  check_against_reference(c, be());
  check_gradients(c, be());
}

// A convolution that follows may take the ReLU and the sums over the gradient upon itself (Backend::conv_backward), but
// only where it is the last to add to that gradient.
OpCase bn_conv_case(const char* name, const Shape& x, bool residual, Tensor (*f)(Pass&, const Tensor& y, Param& w)) {
  const int64_t c = x[-1];
  OpCase chain = bn_case(x, true, residual);
  chain.name = fmt::format("{} of {}{}", name, x, residual ? " + residual" : "");
  chain.params.push_back({c, 3, 3, c});
  chain.f = [residual, f](Pass& p, const Operands& o) {
    return f(
        p,
        batch_norm(p, o.x[0], *o.w[0], *o.w[1], *o.state[0], *o.state[1], {.relu = true}, residual ? &o.x[1] : nullptr),
        *o.w[2]);
  };
  return chain;
}
const std::vector<std::pair<const char*, Tensor (*)(Pass&, const Tensor&, Param&)>> kUsesOfBn = {
    {"conv(y)",
     [](Pass& p, const Tensor& y, Param& w) {
       return conv2d(p, y, w, {1, 1});
     }},
    {"conv(y) + relu(y)",
     [](Pass& p, const Tensor& y, Param& w) {
       const Tensor z = conv2d(p, y, w, {1, 1});
       return add(p, z, relu(p, y));
     }},
    {"conv(y) + y, which share a gradient",
     [](Pass& p, const Tensor& y, Param& w) {
       return add(p, conv2d(p, y, w, {1, 1}), y);
     }},
    {"tanh(y) + conv(y), which is the second use",
     [](Pass& p, const Tensor& y, Param& w) {
       const Tensor z = unary(p, y, Tanh{});
       return add(p, z, conv2d(p, y, w, {1, 1}));
     }},
    {"conv(y) + conv(y)",
     [](Pass& p, const Tensor& y, Param& w) {
       const Tensor z = conv2d(p, y, w, {1, 1});
       return add(p, z, conv2d(p, y, w, {1, 1}));
     }},
    {"conv(conv(y)) + y",
     [](Pass& p, const Tensor& y, Param& w) {
       return add(p, conv2d(p, conv2d(p, y, w, {1, 1}), w, {1, 1}), y);
     }},
};

// And the convolution before it may take the last step of the batch norm's gradient upon itself (OutputBn), but only
// where nothing else is added to that.
OpCase conv_bn_conv_case(const char* name, const Shape& x, Tensor (*f)(Pass&, const Operands&)) {
  const int64_t c = x[-1];
  OpCase chain = bn_case(x, true, false);
  chain.name = fmt::format("{} of {}", name, x);
  chain.params.insert(chain.params.end(), 2, {c, 3, 3, c});
  chain.f = f;
  return chain;
}
Tensor bn_relu(Pass& p, const Operands& o, const Tensor& x, const Tensor* residual = nullptr) {
  return batch_norm(p, x, *o.w[0], *o.w[1], *o.state[0], *o.state[1], {.relu = true}, residual);
}
const std::vector<std::pair<const char*, Tensor (*)(Pass&, const Operands&)>> kChains = {
    {"conv(bn(conv(x)))",
     [](Pass& p, const Operands& o) {
       return conv2d(p, bn_relu(p, o, conv2d(p, relu(p, o.x[0]), *o.w[2], {1, 1})), *o.w[3], {1, 1});
     }},
    {"h = bn(conv(x) + x), conv(h) + h",
     [](Pass& p, const Operands& o) {
       const Tensor x = relu(p, o.x[0]), h = bn_relu(p, o, conv2d(p, x, *o.w[2], {1, 1}), &x);
       const Tensor z = conv2d(p, h, *o.w[3], {1, 1});
       return add(p, z, relu(p, h));
     }},
    {"z = conv(x), conv(bn(z)) + z",
     [](Pass& p, const Operands& o) {
       const Tensor z = conv2d(p, relu(p, o.x[0]), *o.w[2], {1, 1});
       return add(p, conv2d(p, bn_relu(p, o, z), *o.w[3], {1, 1}), z);
     }},
    {"z = conv(x), a = tanh(z), conv(bn(z)) + a",
     [](Pass& p, const Operands& o) {
       const Tensor z = conv2d(p, relu(p, o.x[0]), *o.w[2], {1, 1}), a = unary(p, z, Tanh{});
       return add(p, conv2d(p, bn_relu(p, o, z), *o.w[3], {1, 1}), a);
     }},
    {"z = conv(x), conv(relu(bn(z) + z))",
     [](Pass& p, const Operands& o) {
       const Tensor z = conv2d(p, relu(p, o.x[0]), *o.w[2], {1, 1});
       return conv2d(p, bn_relu(p, o, z, &z), *o.w[3], {1, 1});
     }},
};

TEST_P(NormTest, BatchNormBetweenConvolutions) {
  for (const auto& [name, f] : kChains)
    for (const Shape& x : {Shape{3, 6, 5, 16}, {17, 8, 8, 32}, {2, 5, 9, 64}}) {
      OpCase chain = conv_bn_conv_case(name, x, f);
      chain.tolerance = 5 * kFloatTolerance;  // three sums after each other, with a ReLU's kinks between
      check_against_reference(chain, be());
    }
}

TEST_P(NormTest, BatchNormBetweenConvolutionsCentralDifferences) {
  for (const auto& [name, f] : kChains) check_gradients(conv_bn_conv_case(name, {2, 3, 2, 16}, f), be());
}

TEST_P(NormTest, BatchNormBehindAConvolution) {
  for (const auto& [name, f] : kUsesOfBn)
    for (bool residual : {false, true})
      for (const Shape& x : {Shape{3, 6, 5, 16}, {17, 8, 8, 16}, {2, 5, 9, 64}}) {
        check_against_reference(bn_conv_case(name, x, residual, f), be());
        check_against_reference(bn_conv_case(name, x, residual, f), be(), DType::bf16);
      }
}

TEST_P(NormTest, BatchNormBehindAConvolutionCentralDifferences) {
  for (const auto& [name, f] : kUsesOfBn) check_gradients(bn_conv_case(name, {2, 3, 2, 16}, true, f), be());
}

// A convolution whose kernels are our own: in bf16 it is refused nowhere.
bool own(int64_t channels, Conv conv) { return channels % 16 == 0 && conv.stride == 1; }

// In training a batch norm may be left to the convolution that follows; in f32 that changes no bit.
TEST_P(NormTest, BatchNormReluConv) {
  for (const bool train : {true, false})
    for (const auto& [x, conv] : {std::pair(Shape{3, 6, 5, 16}, Conv{1, 1}),
                                  {Shape{17, 8, 8, 32}, Conv{1, 1}},
                                  {Shape{5, 8, 8, 64}, Conv{1, 1}},
                                  {Shape{2, 7, 9, 5}, Conv{1, 1}},
                                  {Shape{2, 8, 8, 16}, Conv{2, 1}}}) {
      OpCase fused = bn_case(x, true, false, train), apart = fused;
      for (OpCase* c : {&fused, &apart}) {
        c->name = fmt::format("conv(relu(bn(conv({}))))", x);
        c->params.insert(c->params.end(), 2, {x[-1], 3, 3, x[-1]});
      }
      const Conv geometry = conv;
      fused.f = [=](Pass& p, const Operands& o) {
        return batch_norm_relu_conv(p, conv2d(p, o.x[0], *o.w[3], {1, 1}), *o.w[0], *o.w[1], *o.state[0], *o.state[1],
                                    *o.w[2], geometry);
      };
      apart.f = [=](Pass& p, const Operands& o) {
        return conv2d(p, bn_relu(p, o, conv2d(p, o.x[0], *o.w[3], {1, 1})), *o.w[2], geometry);
      };
      SCOPED_TRACE(fused.name);
      expect_same_bits(OpRun(fused, be()).run(), OpRun(apart, be()).run());
      fused.tolerance = 5 * kFloatTolerance;  // three sums after each other
      check_against_reference(fused, be());
      if (train && x[1] < 8) check_gradients(fused, be());
      fused.f = [=](Pass& p, const Operands& o) {  // one convolution alone, whose input is rounded once
        return batch_norm_relu_conv(p, o.x[0], *o.w[0], *o.w[1], *o.state[0], *o.state[1], *o.w[2], geometry);
      };
      fused.params.pop_back();
      EXPECT_TRUE(check_in_bf16(fused, be()) || !own(x[-1], geometry));
    }
  OpCase threads = bn_case({33, 9, 9, 32}, true, false);
  threads.params.push_back({32, 3, 3, 32});
  threads.f = [](Pass& p, const Operands& o) {
    return batch_norm_relu_conv(p, o.x[0], *o.w[0], *o.w[1], *o.state[0], *o.state[1], *o.w[2], {1, 1});
  };
  for (DType dtype : {DType::f32, DType::bf16}) check_same_bits(threads, dtype);
}

// What is fused must be: if it were not, all results would be right, and only the speed would go.
TEST(Norm, TheCpuFusesWhatItCan) {
  const auto log = std::make_shared<CallLog>();
  const auto be = make_profiler(make_cpu_backend(2), log);
  const auto calls = [&](const OpCase& c) {  // "conv_forward 2, ..."; a bn_backward of factors is told apart
    log->clear();
    log->start();
    OpRun(c, *be).run();
    log->stop();
    std::map<std::string, int> count;
    for (const CallSpan& s : log->spans())
      if (s.param || std::string_view(s.call).starts_with("conv"))
        ++count[std::string(s.call) +
                (s.shape.rank() == 2 && std::string_view(s.call) == "bn_backward" ? " (left)" : "")];
    return count;
  };
  const auto chain = [](auto f, bool train = true) {
    OpCase c = conv_bn_conv_case("chain", {3, 8, 8, 16}, f);
    c.train = train;
    return c;
  };
  const auto left = [](Pass& p, const Operands& o) {
    const Tensor z = conv2d(p, relu(p, o.x[0]), *o.w[2], {1, 1});
    return batch_norm_relu_conv(p, z, *o.w[0], *o.w[1], *o.state[0], *o.state[1], *o.w[3], {1, 1});
  };
  auto got = calls(chain(left));
  EXPECT_EQ(got["conv_of_bn"], 1) << "relu(bn(x)) made by the convolution behind it";
  EXPECT_EQ(got["bn_backward (left)"], 1) << "sums from the one behind, the last step to the one before";
  EXPECT_EQ(got["bn_backward"], 0);
  got = calls(chain(kChains[0].second));  // apart: the same of the gradient
  EXPECT_EQ(got["conv_of_bn"], 0);
  EXPECT_EQ(got["bn_backward (left)"], 1);
  for (const size_t not_alone : {2, 3, 4}) {  // somebody else adds to the gradient
    got = calls(chain(kChains[not_alone].second));
    EXPECT_EQ(got["bn_backward (left)"], 0) << kChains[not_alone].first;
    EXPECT_EQ(got["bn_backward"], 1) << kChains[not_alone].first;
  }
  got = calls(chain(
      [](Pass& p, const Operands& o) {
        return conv_batch_norm(p, o.x[0], *o.w[2], {1, 1}, *o.w[0], *o.w[1], *o.state[0], *o.state[1], {});
      },
      false));
  EXPECT_EQ(got["conv_bn"], 1) << "in evaluation";
  EXPECT_EQ(got["bn_forward"], 0);
}

// Whoever watches results sees all of them.
TEST_P(NormTest, BatchNormReluConvIsWatchedInParts) {
  OpCase c = bn_case({3, 6, 5, 16}, true, false);
  c.params.push_back({16, 3, 3, 16});
  std::vector<std::string> seen;
  c.f = [&](Pass& p, const Operands& o) {
    p.tape->watch([&](const Tensor& y, Op op) { seen.push_back(fmt::format("{} {}", op.name, download(be(), y)[0])); });
    const Tensor y = batch_norm_relu_conv(p, o.x[0], *o.w[0], *o.w[1], *o.state[0], *o.state[1], *o.w[2], {1, 1});
    p.tape->watch({});
    return y;
  };
  const Results watched = OpRun(c, be()).run();
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_TRUE(seen[0].starts_with("batch_norm ") && seen[1].starts_with("conv2d ")) << seen[0] << ", " << seen[1];
  EXPECT_FALSE(seen[0].starts_with("batch_norm -")) << "not behind the ReLU: " << seen[0];
}

// And whoever watches gradients sees them whole: nothing behind a mask that is not its own, no stand-in.
TEST_P(NormTest, GradientsOfConvolutionsAndBatchNormsAreWatchedWhole) {
  for (const size_t chain : {0, 1}) {
    OpCase c = conv_bn_conv_case(kChains[chain].first, {3, 6, 5, 16}, kChains[chain].second);
    const auto gradients = [&](Backend& on) {
      std::vector<Result> seen;
      OpCase watched = c;
      watched.f = [&](Pass& p, const Operands& o) {
        p.tape->watch_gradients([&](int64_t var, const Tensor& dy) {
          seen.push_back({fmt::format("result {}", var), download(on, dy)});
        });
        return kChains[chain].second(p, o);
      };
      OpRun(watched, on).run();
      return seen;
    };
    ReferenceBackend reference;
    const std::vector<Result> got = gradients(be()), want = gradients(reference);
    ASSERT_GE(want.size(), 4u);
    expect_close(got, want, 5 * kFloatTolerance);
  }
}

// In evaluation a convolution and its batch norm may be one call; in f32 that changes no bit.
TEST_P(NormTest, ConvBatchNorm) {
  for (const bool train : {false, true})
    for (const bool relu : {false, true})
      for (const bool residual : {false, true})
        for (const auto& [in, conv] : {std::pair(Shape{3, 6, 5, 16}, Conv{1, 1}),
                                       {Shape{17, 8, 8, 64}, Conv{1, 1}},
                                       {Shape{2, 7, 9, 5}, Conv{1, 1}},
                                       {Shape{2, 8, 8, 16}, Conv{2, 1}}}) {
          const int64_t c = in[-1], out = c == 16 ? 32 : c, stride = conv.stride;
          OpCase fused = bn_case({in[0], (in[1] + stride - 1) / stride, (in[2] + stride - 1) / stride, out}, relu,
                                 residual, train);
          fused.name = fmt::format("conv + {}", fused.name);
          fused.inputs.insert(fused.inputs.begin(), in);
          fused.inputs.pop_back();  // bn_case has its input and the residual
          fused.params.push_back({out, 3, 3, c});
          OpCase apart = fused;
          const Conv geometry = conv;
          fused.f = [=](Pass& p, const Operands& o) {
            return conv_batch_norm(p, o.x[0], *o.w[2], geometry, *o.w[0], *o.w[1], *o.state[0], *o.state[1],
                                   {.relu = relu}, residual ? &o.x[1] : nullptr);
          };
          apart.f = [=](Pass& p, const Operands& o) {
            return batch_norm(p, conv2d(p, o.x[0], *o.w[2], geometry), *o.w[0], *o.w[1], *o.state[0], *o.state[1],
                              {.relu = relu}, residual ? &o.x[1] : nullptr);
          };
          SCOPED_TRACE(fused.name);
          expect_same_bits(OpRun(fused, be()).run(), OpRun(apart, be()).run());
          if (train) continue;
          check_against_reference(fused, be());
          EXPECT_TRUE(check_in_bf16(fused, be()) || !own(c, geometry));
        }
}

TEST_P(NormTest, ConvBatchNormSaysWhatDoesNotFit) {
  OpCase c = bn_case({2, 4, 4, 16}, true, false, false);
  c.params.push_back({16, 3, 3, 16});
  const auto refusal = [&](int weight, int scale) -> std::string {
    OpCase wrong = c;
    wrong.params[2] = {16, 3, 3, weight};
    wrong.params[0] = {scale};
    wrong.f = [](Pass& p, const Operands& o) {
      return conv_batch_norm(p, o.x[0], *o.w[2], {1, 1}, *o.w[0], *o.w[1], *o.state[0], *o.state[1], {});
    };
    try {
      OpRun(wrong, be()).run();
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_TRUE(refusal(8, 16).starts_with("[conv2d] expected NHWC input with 8 channels")) << refusal(8, 16);
  EXPECT_TRUE(refusal(16, 8).starts_with("[batch_norm] expected a scale")) << refusal(16, 8);
}

TEST(Norm, SameBitsForAnyNumberOfThreads) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (const Shape& x : {Shape{33, 9, 9, 32}, {33, 8, 8, 64}})
      check_same_bits(bn_conv_case("conv(y)", x, true, kUsesOfBn[0].second), dtype);
    check_same_bits(conv_bn_conv_case("chain", {33, 9, 9, 32}, kChains[1].second), dtype);
    check_same_bits(bn_case({33, 9, 9, 24}, true, true), dtype);
    check_same_bits(bn_case({64, 16, 16, 7}, false, false), dtype);
    check_same_bits(gn_case({17, 9, 9, 24}, 8), dtype);
  }
}

// Large means must not cost the variance its digits: x = 1000 + N(0, 1).
TEST_P(NormTest, BatchNormOfLargeMeans) {
  const Shape shape{33, 8, 8, 9};
  std::vector<double> values = random_values(shape.numel(), 1);
  for (double& v : values) v = 1000 + v;
  const auto saved_of = [&](Backend& on) {
    const std::vector<double> one(9, 1.0);
    const Tensor x = tensor_of(on, shape, DType::f32, values), y(on.allocate(x.bytes()), shape, DType::f32);
    const Tensor saved(on.allocate(144), {4, 9}, DType::f32);
    const BnState state{tensor_of(on, {9}, DType::f32, one), tensor_of(on, {9}, DType::f32, one),
                        tensor_of(on, {9}, DType::f32, one), tensor_of(on, {9}, DType::f32, one)};
    on.bn_forward(y, saved, x, nullptr, state, {}, true, nullptr);
    std::vector<double> all = download(on, saved);
    all = {all.begin() + 9, all.begin() + 18};  // its second row
    return Results{{"1 / deviation", all}};
  };
  ReferenceBackend reference;
  expect_close(saved_of(be()), saved_of(reference), 1e-6);
}

// Shared golden s004_batchnorm (PyTorch): scale 1.5, bias 0.5, momentum 0.1.
TEST_P(NormTest, BatchNormGolden) {
  ParamStore store;
  const Param &scale = param(store, 1, 1.5f), &bias = param(store, 1, 0.5f);
  const Buffer &mean = store.add_buffer("mean", {1}, 0), &var = store.add_buffer("var", {1}, 1);
  store.seal(be(), 0);
  Pool pool(be());
  Tape tape(be(), pool);
  Pass p{be(), pool, &tape, true};
  const Tensor x = tape.leaf(tensor_of(be(), {4, 1}, DType::f32, {1, 2, 3, 4}));
  const Tensor y = batch_norm(p, x, scale, bias, mean, var, {});
  tape.backward(y, tensor_of(be(), {4, 1}, DType::f32, {0.1, -0.2, 0.3, 0.4}));
  const Results got{{"y", download(be(), y)},
                    {"dx", download(be(), tape.grad(x))},
                    {"dscale", download(be(), scale.grad)},
                    {"dbias", download(be(), bias.grad)},
                    {"running mean", download(be(), mean.value)},
                    {"running variance", download(be(), var.value)}};
  const Results want{{"y", {-1.51245312995339, -0.17081770998446344, 1.1708177099844634, 2.51245312995339}},
                     {"dx", {0.2146594132655542, -0.3756586689011243, 0.10733158490733881, 0.05366767072823131}},
                     {"dscale", {0.6260965293188326}},
                     {"dbias", {0.6}},
                     {"running mean", {0.25}},
                     {"running variance", {1.0666666666666667}}};  // the unbiased one, 5/3
  expect_close(got, want, 1e-6);

  Pass evaluation{be(), pool};  // with the running statistics just written
  std::vector<double> expected;
  for (double v : {1, 2, 3, 4}) expected.push_back(1.5 * (v - 0.25) / std::sqrt(1.0666666666666667 + 1e-5) + 0.5);
  expect_close({{"y", download(be(), batch_norm(evaluation, x, scale, bias, mean, var, {}))}}, {{"y", expected}}, 1e-6);
  EXPECT_NEAR(download(be(), mean.value)[0], 0.25, 1e-7) << "evaluation must not touch the running statistics";
}

TEST_P(NormTest, GroupNormAgainstReference) {
  for (const Shape& x : {Shape{1, 3, 3, 1}, {2, 5, 7, 3}, {17, 4, 4, 8}, {3, 8, 8, 24}, {17, 12}, {5, 3, 3, 33}})
    for (int groups : {1, 3, 4, 8, int(x[-1])})
      if (x[-1] % groups == 0 && x.numel() / x[0] / groups > 1) check_against_reference(gn_case(x, groups), be());
}

TEST_P(NormTest, GroupNormBf16) {
  check_against_reference(gn_case({17, 4, 4, 8}, 2), be(), DType::bf16);
  check_against_reference(gn_case({3, 5, 5, 24}, 1), be(), DType::bf16);
}

TEST_P(NormTest, GroupNormCentralDifferences) {
  check_gradients(gn_case({2, 3, 2, 6}, 2), be());
  check_gradients(gn_case({3, 2, 2, 3}, 1), be());
  check_gradients(gn_case({3, 2, 2, 3}, 3), be());
  check_gradients(gn_case({4, 6}, 2), be());
}

// Shared golden s001_groupnorm (PyTorch): one sample, 4 channels of 2 pixels.
TEST_P(NormTest, GroupNormGolden) {
  ParamStore store;
  const Param &scale = param(store, 4, 1), &bias = param(store, 4, 0);
  store.seal(be(), 0);
  Pool pool(be());
  Pass p{be(), pool};
  const Tensor x = tensor_of(be(), {1, 1, 2, 4}, DType::f32, {1, 5, 2, 4, 3, 7, 2, 8});  // channels last
  const std::tuple<int, std::vector<double>> goldens[] = {
      {1,
       {-1.2792031352222502, 0.4264010450740834, -0.8528020901481668, 0.0,  //
        -0.4264010450740834, 1.2792031352222502, -0.8528020901481668, 1.7056041802963335}},
      {2,
       {-1.3416394448610998, 0.4472131482870333, -0.8164959005147592, 0.0,  //
        -0.4472131482870333, 1.3416394448610998, -0.8164959005147592, 1.6329918010295184}},
      {4,
       {-0.9999950000374997, -0.9999950000374997, 0.0, -0.9999987500023437,  //
        0.9999950000374997, 0.9999950000374997, 0.0, 0.9999987500023437}}};
  for (const auto& [groups, want] : goldens)
    expect_close({{"y", download(be(), group_norm(p, x, scale, bias, groups))}}, {{"y", want}}, 1e-6);
}

TEST_P(NormTest, ErrorsNameOpExpectedAndGot) {
  ParamStore store;
  const Param &three = param(store, 3, 1), &four = param(store, 4, 1);
  const Buffer &mean = store.add_buffer("mean", {3}, 0), &wide = store.add_buffer("var", {4}, 1);
  store.seal(be(), 0);
  Pool pool(be());
  Tape tape(be(), pool);
  Pass train{be(), pool, &tape, true}, taped_evaluation{be(), pool, &tape};
  const Tensor x = pool.zeros({2, 5, 5, 3}, DType::f32), small = pool.zeros({1, 1, 1, 3}, DType::f32);
  const auto bn = [&](Pass& p, const Tensor& in, const Param& scale, const Buffer& var, const Tensor* residual) {
    return error_of([&] { batch_norm(p, in, scale, three, mean, var, {}, residual); });
  };
  EXPECT_EQ(bn(train, x, four, mean, nullptr),
            "[batch_norm] expected a scale of shape [3] for input [2,5,5,3], got [4]");
  EXPECT_EQ(bn(train, x, three, wide, nullptr),
            "[batch_norm] expected a running variance of shape [3] for input [2,5,5,3], got [4]");
  EXPECT_EQ(bn(train, x, three, mean, &small), "[batch_norm] expected a residual of shape [2,5,5,3], got [1,1,1,3]");
  EXPECT_EQ(bn(train, small, three, mean, nullptr),
            "[batch_norm] expected more than 1 value per channel when training, got [1,1,1,3]; use a larger batch");
  EXPECT_EQ(bn(taped_evaluation, x, three, mean, nullptr),
            "[batch_norm] has no gradient in evaluation mode; set Pass::train or leave the tape out");
  EXPECT_EQ(error_of([&] { group_norm(train, x, three, three, 2); }),
            "[group_norm] 3 channels do not divide into 2 groups");
  EXPECT_EQ(error_of([&] { group_norm(train, x, three, four, 1); }),
            "[group_norm] expected a bias of shape [3] for input [2,5,5,3], got [4]");
}

TEST_P(NormTest, EmptyBatch) {
  ParamStore store;
  const Param& three = param(store, 3, 1);
  const Buffer& state = store.add_buffer("state", {3}, 1);
  store.seal(be(), 0);
  Pool pool(be());
  Pass evaluation{be(), pool};
  const Tensor none = pool.empty({0, 4, 4, 3}, DType::f32);
  EXPECT_EQ(batch_norm(evaluation, none, three, three, state, state, {}).numel(), 0);
  EXPECT_EQ(group_norm(evaluation, none, three, three, 3).numel(), 0);
}

}  // namespace
}  // namespace linnet
