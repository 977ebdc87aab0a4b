// Convolution and matrix products on every backend.
#include "gradcheck.h"
#include "linnet/layers.h"

namespace linnet {
namespace {

OpCase conv_case(int64_t n, int64_t h, int64_t w, int64_t in, int64_t out, int64_t kernel, Conv conv) {
  return {.name = fmt::format("conv [{},{},{},{}] -> {}, kernel {}, stride {}, pad {}", n, h, w, in, out, kernel,
                              conv.stride, conv.pad),
          .inputs = {{n, h, w, in}},
          .params = {{out, kernel, kernel, in}},
          .f = [conv](Pass& p, const Operands& o) { return conv2d(p, o.x[0], *o.w[0], conv); }};
}

// Number `i` of an endless list of odd shapes.
OpCase random_conv(uint32_t i) {
  const Random4 a = random4(2, Draw::test, i), b = random4(3, Draw::test, i);
  const auto pick = [](uint32_t u, std::initializer_list<int64_t> of) {
    return of.begin()[below(u, uint32_t(of.size()))];
  };
  const int64_t kernel = pick(a.v[0], {1, 3, 5}), pad = pick(a.v[1], {0, 1, 2}), stride = pick(a.v[2], {1, 2});
  const int64_t least = std::max<int64_t>(1, kernel - 2 * pad);
  return conv_case(pick(a.v[3], {1, 2, 17, 33}), least + below(b.v[0], 9), least + below(b.v[1], 9),
                   pick(b.v[2], {1, 3, 7, 8, 16, 24, 33}), pick(b.v[3], {1, 3, 7, 8, 16, 24, 33}), kernel,
                   {int(stride), int(pad)});
}

class ConvTest : public OpTest {};
LINNET_ON_EVERY_BACKEND(ConvTest);

TEST_P(ConvTest, RandomShapesAgainstReference) {
  for (uint32_t i = 0; i < 80; ++i) check_against_reference(random_conv(i), be());
}

TEST_P(ConvTest, ShapesOfTheModels) {
  for (const OpCase& c : {conv_case(2, 32, 32, 3, 16, 3, {1, 1}), conv_case(3, 32, 32, 16, 16, 3, {1, 1}),
                          conv_case(2, 32, 32, 16, 32, 3, {2, 1}), conv_case(2, 16, 16, 32, 32, 3, {1, 1}),
                          conv_case(2, 16, 16, 32, 64, 1, {2, 0}), conv_case(5, 8, 8, 64, 64, 3, {1, 1})})
    check_against_reference(c, be());
}

// Padding as wide as the kernel, few filters: oneDNN has no fast implementation for these.
TEST_P(ConvTest, OddShapes) {
  for (const OpCase& c : {conv_case(17, 3, 14, 17, 3, 5, {1, 5}), conv_case(2, 5, 6, 64, 1, 2, {1, 2}),
                          conv_case(1, 6, 3, 33, 1, 2, {1, 5}), conv_case(3, 11, 20, 7, 3, 7, {3, 3}),
                          conv_case(2, 1, 1, 1, 1, 1, {1, 0})})
    check_against_reference(c, be());
}

TEST_P(ConvTest, CentralDifferences) {
  for (const OpCase& c : {conv_case(2, 5, 4, 3, 2, 3, {1, 1}), conv_case(1, 6, 6, 2, 3, 3, {2, 1}),
                          conv_case(3, 5, 7, 1, 3, 5, {2, 2}), conv_case(2, 5, 4, 3, 3, 1, {2, 0})})
    check_gradients(c, be());
}

TEST_P(ConvTest, UsedTwice) {
  for (uint32_t i = 0; i < 12; ++i) check_used_twice(random_conv(100 + i), be());
  OpCase chain = conv_case(2, 5, 4, 3, 3, 3, {1, 1});
  chain.name = "conv(conv(x)) + x with one weight";
  chain.f = [](Pass& p, const Operands& o) {
    const Tensor once = conv2d(p, o.x[0], *o.w[0], {1, 1}), again = conv2d(p, once, *o.w[0], {1, 1});
    return add(p, again, o.x[0]);
  };
  check_against_reference(chain, be());
  check_gradients(chain, be());
}

TEST_P(ConvTest, SixteenBits) {
  const OpCase c = conv_case(17, 8, 8, 16, 24, 3, {1, 1});
  check_against_reference(c, be(), DType::fp16);
  if (!check_in_bf16(c, be())) GTEST_SKIP() << "no AVX-512: bf16 was refused";
}

TEST_P(ConvTest, EmptyBatch) {
  Pool pool(be());
  const Tensor none = pool.empty({0, 4, 4, 3}, DType::f32), out = pool.empty({0, 4, 4, 2}, DType::f32);
  const Tensor dw = tensor_of(be(), {2, 3, 3, 3}, DType::f32, std::vector<double>(54, 1.0));
  be().conv_forward(out, none, dw, {1, 1}, nullptr);
  be().conv_backward_data(none, out, dw, {1, 1});
  be().conv_backward_weight(dw, out, none, {1, 1});
  EXPECT_EQ(download(be(), dw), std::vector<double>(54, 0.0));
}

TEST_P(ConvTest, ErrorsNameOpExpectedAndGot) {
  const OpCase c = conv_case(1, 4, 4, 3, 2, 5, {});
  OpRun run(c, be());
  Pool pool(be());
  Pass p{be(), pool};
  const Param& w = *run.operands().w[0];
  const auto error = [&](const Shape& shape, Conv conv) {
    return error_of([&] { conv2d(p, pool.empty(shape, DType::f32), w, conv); });
  };
  EXPECT_EQ(error({1, 4, 4, 2}, {}), "[conv2d] expected NHWC input with 3 channels, got [1,4,4,2]");
  EXPECT_EQ(error({4, 4, 3}, {}), "[conv2d] expected NHWC input [n,h,w,c], got [4,4,3]");
  EXPECT_EQ(error({1, 4, 4, 3}, {}), "[conv2d] a window of 5 with stride 1 and padding 0 does not fit an extent of 4");
  EXPECT_EQ(error({1, 8, 8, 3}, {0, 0}),
            "[conv2d] a window of 5 with stride 0 and padding 0 does not fit an extent of 8");
}

TEST(Conv, SameBitsForAnyNumberOfThreads) {
  for (const OpCase& c : {conv_case(17, 8, 8, 16, 24, 3, {1, 1}), conv_case(33, 9, 7, 3, 8, 3, {2, 1}),
                          conv_case(20, 8, 8, 33, 7, 1, {2, 0}), conv_case(17, 8, 8, 7, 16, 5, {1, 2})})
    check_same_bits(c);
}

// -- matrix products

std::vector<double> product(Backend& be, int64_t m, int64_t n, int64_t k, bool ta, bool tb) {
  const Shape as = ta ? Shape{k, m} : Shape{m, k}, bs = tb ? Shape{n, k} : Shape{k, n};
  const Tensor a = tensor_of(be, as, DType::f32, random_values(m * k, 1));
  const Tensor b = tensor_of(be, bs, DType::f32, random_values(n * k, 2));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor c = tensor_of(be, {m, n}, DType::f32, std::vector<double>(size_t(m * n), nan));
  be.matmul(c, a, ta, b, tb);
  return download(be, c);
}

TEST_P(ConvTest, MatmulAllTransposes) {
  ReferenceBackend reference;
  for (bool ta : {false, true})
    for (bool tb : {false, true})
      for (auto [m, n, k] :
           {std::tuple(1, 1, 1), {1, 10, 64}, {17, 10, 33}, {33, 7, 130}, {128, 10, 64}, {10, 64, 128}}) {
        SCOPED_TRACE(fmt::format("{}x{}x{} {} {}", m, n, k, ta, tb));
        expect_close({{"c", product(be(), m, n, k, ta, tb)}}, {{"c", product(reference, m, n, k, ta, tb)}},
                     kFloatTolerance);
      }
  EXPECT_EQ(product(be(), 2, 3, 0, true, false), std::vector<double>(6, 0.0));  // an empty sum
}

TEST(Conv, MatmulSameBitsForAnyNumberOfThreads) {
  const std::vector<double> want = product(*make_cpu_backend(1), 130, 33, 257, true, false);
  for (int threads : {2, 3, 7}) EXPECT_EQ(product(*make_cpu_backend(threads), 130, 33, 257, true, false), want);
}

// -- linear

OpCase linear_case(int64_t n, int64_t in, int64_t out) {
  return {.name = fmt::format("linear [{},{}] -> {}", n, in, out),
          .inputs = {{n, in}},
          .params = {{out, in}, {out}},
          .f = [](Pass& p, const Operands& o) { return linear(p, o.x[0], *o.w[0], *o.w[1]); }};
}

TEST_P(ConvTest, Linear) {
  for (const OpCase& c :
       {linear_case(1, 1, 1), linear_case(17, 33, 10), linear_case(33, 64, 7), linear_case(128, 3, 10)}) {
    check_against_reference(c, be());
    check_used_twice(c, be());
  }
  check_gradients(linear_case(3, 4, 5), be());
  check_same_bits(linear_case(33, 64, 7));
}

// y = Wx + b, L = (y - t)^2: shared golden s004_linear_layer_grad.
TEST_P(ConvTest, LinearGolden) {
  ParamStore store;
  const auto values = [](std::vector<float> v) {
    return [v](std::span<float> to, uint64_t, uint32_t) { std::copy(v.begin(), v.end(), to.begin()); };
  };
  Param& w = store.add("weight", {1, 2}, true, values({0.5f, -0.2f}));
  Param& b = store.add("bias", {1}, false, values({0.1f}));
  store.seal(be(), 0);
  Pool pool(be());
  Tape tape(be(), pool);
  Pass p{be(), pool, &tape};
  const Tensor loss = mse_loss(p, linear(p, tensor_of(be(), {1, 2}, DType::f32, {1, 2}), w, b),
                               tensor_of(be(), {1, 1}, DType::f32, {1}));
  tape.backward(loss, tensor_of(be(), {1}, DType::f32, {1}));
  expect_close({{"loss", download(be(), loss)}, {"dw", download(be(), w.grad)}, {"db", download(be(), b.grad)}},
               {{"loss", {0.64}}, {"dw", {-1.6, -3.2}}, {"db", {-1.6}}}, 1e-6);
}

TEST_P(ConvTest, LinearErrors) {
  const OpCase c = linear_case(2, 3, 4);
  OpRun run(c, be());
  Pool pool(be());
  Pass p{be(), pool};
  const std::vector<Param*>& w = run.operands().w;
  const Tensor wrong = pool.empty({2, 5}, DType::f32), right = pool.empty({2, 3}, DType::f32);
  EXPECT_EQ(error_of([&] { linear(p, wrong, *w[0], *w[1]); }), "[linear] expected input [n,3], got [2,5]");
  EXPECT_EQ(error_of([&] { linear(p, right, *w[1], *w[1]); }), "[linear] expected a weight [out,in], got [4]");
  EXPECT_EQ(error_of([&] { linear(p, right, *w[0], *w[0]); }), "[linear] expected a bias [4], got [4,3]");
}

}  // namespace
}  // namespace linnet
