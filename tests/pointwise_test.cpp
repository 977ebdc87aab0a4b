// Activations, addition, dropout and flatten on every backend.
#include "gradcheck.h"

namespace linnet {
namespace {

const std::vector<Shape> kShapes = {{1}, {7}, {17, 33}, {3, 5, 7, 3}, {33, 8, 8, 24}};

const std::pair<const char*, Unary> kActivations[] = {{"relu", Relu{}},       {"leaky_relu", LeakyRelu{0.2f}},
                                                      {"sigmoid", Sigmoid{}}, {"tanh", Tanh{}},
                                                      {"silu", Silu{}},       {"gelu", Gelu{}}};

OpCase unary_case(const std::string& name, const Unary& op, const Shape& x) {
  return {.name = fmt::format("{} {}", name, x), .inputs = {x}, .f = [op](Pass& p, const Operands& o) {
            return unary(p, o.x[0], op);
          }};
}
OpCase add_case(const Shape& x) {
  return {.name = fmt::format("add {}", x), .inputs = {x, x}, .f = [](Pass& p, const Operands& o) {
            return add(p, o.x[0], o.x[1]);
          }};
}
OpCase dropout_case(const Shape& x, float probability) {
  return {.name = fmt::format("dropout {} {}", x, probability),
          .inputs = {x},
          .f = [probability](Pass& p, const Operands& o) { return dropout(p, o.x[0], probability, 3); }};
}
OpCase flatten_case(const Shape& x) {
  return {.name = fmt::format("flatten {}", x), .inputs = {x}, .f = [](Pass& p, const Operands& o) {
            return flatten(p, o.x[0]);
          }};
}

std::vector<OpCase> all_cases(const Shape& x) {
  std::vector<OpCase> all{add_case(x), dropout_case(x, 0.3f)};
  for (const auto& [name, op] : kActivations) all.push_back(unary_case(name, op, x));
  return all;
}

class PointwiseTest : public OpTest {};
LINNET_ON_EVERY_BACKEND(PointwiseTest);

TEST_P(PointwiseTest, AgainstReference) {
  for (const Shape& x : kShapes)
    for (const OpCase& c : all_cases(x)) check_against_reference(c, be());
  for (const Shape& x : {Shape{3, 5, 7, 3}, {2, 1}}) check_against_reference(flatten_case(x), be());
}

TEST_P(PointwiseTest, SixteenBits) {
  for (DType dtype : {DType::bf16, DType::fp16})
    for (const OpCase& c : all_cases({17, 5, 5, 7})) check_against_reference(c, be(), dtype);
}

TEST_P(PointwiseTest, CentralDifferences) {
  for (const OpCase& c : all_cases({3, 17})) check_gradients(c, be());
  check_gradients(flatten_case({2, 3, 2, 2}), be());
}

TEST_P(PointwiseTest, UsedTwice) {
  for (const OpCase& c : all_cases({17, 33})) check_used_twice(c, be());
  check_used_twice(flatten_case({3, 2, 2, 5}), be());

  // Gradients of one tensor that come by several ways: dy itself (from add), a view of it (from flatten), a new tensor.
  const auto together = [&](const char* name, std::function<Tensor(Pass&, const Tensor&)> f) {
    const OpCase c{.name = name, .inputs = {{5, 6}}, .f = [f](Pass& p, const Operands& o) { return f(p, o.x[0]); }};
    check_against_reference(c, be());
    check_gradients(c, be());
  };
  together("x + x", [](Pass& p, const Tensor& x) { return add(p, x, x); });
  together("(x + x) + x", [](Pass& p, const Tensor& x) { return add(p, add(p, x, x), x); });
  together("x + tanh(x)", [](Pass& p, const Tensor& x) { return add(p, x, unary(p, x, Tanh{})); });
  together("tanh(x) + x", [](Pass& p, const Tensor& x) { return add(p, unary(p, x, Tanh{}), x); });
  together("(x + tanh(x)) + (tanh(x) + x), shared inside", [](Pass& p, const Tensor& x) {
    const Tensor t = unary(p, x, Tanh{});
    return add(p, add(p, x, t), add(p, t, x));
  });
  together("flatten(x) + flatten(x + x)",
           [](Pass& p, const Tensor& x) { return add(p, flatten(p, x), flatten(p, add(p, x, x))); });
}

TEST(Pointwise, SameBitsForAnyNumberOfThreads) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const OpCase& c : all_cases({33, 8, 8, 24})) check_same_bits(c, dtype);
}

// Shared golden s004_residual_grad: 20 layers of slope 0.1, with and without a shortcut around each.
TEST_P(PointwiseTest, ResidualGradientGolden) {
  const auto slope = [&](bool residual) {
    Pool pool(be());
    Tape tape(be(), pool);
    Pass p{be(), pool, &tape};
    const Tensor x = tape.leaf(tensor_of(be(), {1}, DType::f32, {-1e-6}));
    Tensor y = x;
    for (int layer = 0; layer < 20; ++layer) {
      const Tensor f = unary(p, y, LeakyRelu{0.1f});
      y = residual ? add(p, f, y) : f;
    }
    tape.backward(y, tensor_of(be(), {1}, DType::f32, {1}));
    return download(be(), tape.grad(x))[0];
  };
  EXPECT_NEAR(slope(true), 6.727499949325611, 1e-5);
  EXPECT_NEAR(slope(false), 1e-20, 1e-25);
}

// Beyond the range of exp: finite values and slopes, and a NaN is never hidden.
TEST_P(PointwiseTest, ExtremeInputs) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<double> x{-200, -100, -20, 20, 100, 200, nan};
  for (const auto& [name, op] : kActivations) {
    SCOPED_TRACE(name);
    Pool pool(be());
    const Tensor in = tensor_of(be(), {7}, DType::f32, x), dy = tensor_of(be(), {7}, DType::f32, std::vector(7, 1.0));
    const Tensor y = pool.empty({7}, DType::f32), dx = pool.empty({7}, DType::f32);
    be().unary(op, y, in);
    be().unary_grad(op, dx, dy, in, y);
    const std::vector<double> value = download(be(), y), slope = download(be(), dx);
    for (size_t i = 0; i < 6; ++i) {
      EXPECT_TRUE(std::isfinite(value[i]) && std::isfinite(slope[i])) << x[i];
      const double want = std::visit([&](auto u) { return ReferenceUnary::value(u, x[i]); }, op);
      EXPECT_NEAR(value[i], want, 1e-6 * std::max(1.0, std::abs(want))) << x[i];
    }
    EXPECT_TRUE(std::isnan(value[6]));
  }
}

TEST_P(PointwiseTest, DropoutKeepsTheMeanAndDrawsAnew) {
  Pool pool(be());
  const Tensor step = make_step(be()), x = tensor_of(be(), {100000}, DType::f32, std::vector(100000, 1.0));
  const auto drawn = [&](int64_t at_step, uint32_t layer) {
    write_step(be(), step, {.step = at_step, .seed = 7});
    const Tensor y = pool.empty(x.shape(), DType::f32);
    be().dropout(y, x, 0.25f, layer, step);
    return download(be(), y);
  };
  const std::vector<double> y = drawn(1, 0);
  double sum = 0;
  for (double v : y) {
    ASSERT_TRUE(v == 0 || std::abs(v - 4.0 / 3) < 1e-6) << v;
    sum += v;
  }
  // The mean of n kept or dropped ones deviates by sqrt(p / (1 - p) / n) = 0.0018; five times that.
  EXPECT_NEAR(sum / double(y.size()), 1, 0.009);
  EXPECT_EQ(drawn(1, 0), y);
  EXPECT_NE(drawn(2, 0), y);
  EXPECT_NE(drawn(1, 1), y);
}

TEST_P(PointwiseTest, DropoutIsTheIdentityInEvaluation) {
  Pool pool(be());
  Pass evaluation{be(), pool}, train{be(), pool, nullptr, true};
  const Tensor x = pool.zeros({3}, DType::f32);
  EXPECT_EQ(dropout(evaluation, x, 0.5f, 0).raw(), x.raw());
  EXPECT_EQ(dropout(train, x, 0, 0).raw(), x.raw());
  EXPECT_EQ(error_of([&] { dropout(train, x, 1, 0); }), "[dropout] expected a probability in [0, 1), got 1");
  EXPECT_EQ(error_of([&] { dropout(train, x, 0.5f, 0); }),
            "[dropout] needs Pass::step: its random numbers depend on the step");
}

TEST_P(PointwiseTest, ErrorsNameOpExpectedAndGot) {
  Pool pool(be());
  Pass p{be(), pool};
  const Tensor a = pool.zeros({2, 3}, DType::f32), b = pool.zeros({3, 2}, DType::f32),
               c = pool.zeros({2, 3}, DType::bf16);
  EXPECT_EQ(error_of([&] { add(p, a, b); }), "[add] expected two tensors alike, got [2,3] of f32 and [3,2] of f32");
  EXPECT_EQ(error_of([&] { add(p, a, c); }), "[add] expected two tensors alike, got [2,3] of f32 and [2,3] of bf16");
  EXPECT_EQ(error_of([&] { flatten(p, pool.zeros({4}, DType::f32)); }), "[flatten] expected [n,...], got [4]");
}

TEST_P(PointwiseTest, EmptyBatch) {
  Pool pool(be());
  Pass p{be(), pool};
  const Tensor none = pool.empty({0, 3}, DType::f32), bias = pool.zeros({3}, DType::f32);
  EXPECT_EQ(relu(p, none).numel(), 0);
  EXPECT_EQ(add(p, none, none).numel(), 0);
  EXPECT_EQ(flatten(p, none).shape(), Shape({0, 0}));
  be().bias_add(none, none, bias);
  be().bias_grad(bias, none);
  EXPECT_EQ(download(be(), bias), std::vector<double>(3, 0.0));
}

}  // namespace
}  // namespace linnet
