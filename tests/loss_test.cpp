// Losses and the sums of their statistics on every backend.
#include "gradcheck.h"

namespace linnet {
namespace {

// Labels in turn; every fifth row is padding.
std::vector<double> some_labels(int64_t rows, int64_t classes) {
  std::vector<double> labels;
  for (int64_t i = 0; i < rows; ++i) labels.push_back(i % 5 == 3 ? -1 : double(i * 7 % classes));
  return labels;
}

// Central differences of a loss suffer from its being stored as a float: 2^-24 times a mean loss of 3, divided by h =
// 2^-6 and by the gradient's size (1 / rows, 5 rows), is 6e-5; h^2 / 6 f''' adds 4e-6.
OpCase softmax_case(int64_t rows, int64_t classes, float smoothing, bool differences = false) {
  return {.name = fmt::format("softmax_cross_entropy [{},{}] smoothing {}", rows, classes, smoothing),
          .inputs = {{rows, classes}},
          .f =
              [=](Pass& p, const Operands& o) {
                const Tensor labels = tensor_of(p.be, {rows}, DType::i32, some_labels(rows, classes));
                return softmax_cross_entropy(p, o.x[0], labels, smoothing, 1 / float(rows)).loss;
              },
          .h = 0x1p-6,
          .tolerance = differences ? 1e-4 : kFloatTolerance};
}

// Two labels a row; among them equal ones, shares of 0 and 1, and padding.
std::vector<double> some_partners(int64_t rows, int64_t classes) {
  std::vector<double> partners;
  for (int64_t i = 0; i < rows; ++i) partners.push_back(double((i * 7 + (i % 4 ? 1 + i % 3 : 0)) % classes));
  return partners;
}
std::vector<double> some_shares(int64_t rows) {
  std::vector<double> shares;
  for (int64_t i = 0; i < rows; ++i) shares.push_back(double(i % 9) / 8);
  return shares;
}
Target mixed_target(Backend& be, int64_t rows, int64_t classes) {
  return {tensor_of(be, {rows}, DType::i32, some_labels(rows, classes)),
          tensor_of(be, {rows}, DType::i32, some_partners(rows, classes)),
          tensor_of(be, {rows}, DType::f32, some_shares(rows))};
}
OpCase mixed_case(int64_t rows, int64_t classes, float smoothing, bool differences = false) {
  OpCase c = softmax_case(rows, classes, smoothing, differences);
  c.name += ", two labels a row";
  c.f = [=](Pass& p, const Operands& o) {
    return softmax_cross_entropy(p, o.x[0], mixed_target(p.be, rows, classes), smoothing, 1 / float(rows)).loss;
  };
  return c;
}

// A parabola has no third derivative: any h is exact, a large one loses no digits.
OpCase mse_case(const Shape& x) {
  return {.name = fmt::format("mse_loss {}", x),
          .inputs = {x},
          .f =
              [x](Pass& p, const Operands& o) {
                return mse_loss(p, o.x[0], tensor_of(p.be, x, o.x[0].dtype(), random_values(x.numel(), 9)));
              },
          .h = 1};
}

class LossTest : public OpTest {
 protected:
  Target rows_of(const std::vector<double>& values) {
    return tensor_of(be(), {int64_t(values.size())}, DType::i32, values);
  }
};
LINNET_ON_EVERY_BACKEND(LossTest);

std::vector<OpCase> all_cases() {
  std::vector<OpCase> all;
  for (auto [rows, classes] : {std::pair(1, 2), {17, 10}, {33, 100}, {128, 10}, {3, 7}})
    for (float smoothing : {0.f, 0.1f}) {
      all.push_back(softmax_case(rows, classes, smoothing));
      all.push_back(mixed_case(rows, classes, smoothing));
    }
  for (const Shape& x : {Shape{1}, {17, 10}, {3, 5, 7, 3}, {33, 9, 9, 24}}) all.push_back(mse_case(x));
  return all;
}

TEST_P(LossTest, AgainstReference) {
  for (const OpCase& c : all_cases()) check_against_reference(c, be());
}

TEST_P(LossTest, SixteenBits) {
  for (DType dtype : {DType::bf16, DType::fp16})
    for (const OpCase& c : {softmax_case(17, 10, 0.1f), mixed_case(17, 10, 0.1f), mse_case({17, 10})})
      check_against_reference(c, be(), dtype);
}

TEST_P(LossTest, CentralDifferences) {
  for (float smoothing : {0.f, 0.1f}) {
    check_gradients(softmax_case(5, 7, smoothing, true), be());
    check_gradients(mixed_case(5, 7, smoothing, true), be());
  }
  check_gradients(mse_case({3, 5}), be());
}

TEST_P(LossTest, UsedTwice) {
  check_used_twice(softmax_case(17, 10, 0.1f), be());
  check_used_twice(mse_case({17, 10}), be());
}

TEST(Loss, SameBitsForAnyNumberOfThreads) {
  check_same_bits(softmax_case(1000, 100, 0.1f));
  check_same_bits(mixed_case(1000, 100, 0.1f));
  check_same_bits(mse_case({33, 9, 9, 24}));
}

struct SoftmaxResult {
  std::vector<double> loss, stats, dlogits;
};
SoftmaxResult softmax(Backend& be, int64_t rows, int64_t classes, const std::vector<double>& logits,
                      const Target& target, float smoothing) {
  Pool pool(be);
  const Tensor z = tensor_of(be, {rows, classes}, DType::f32, logits);
  const Tensor loss = pool.empty({1}, DType::f32), stats = pool.empty({rows, 2}, DType::f32);
  const Tensor dz = pool.empty(z.shape(), DType::f32);
  be.softmax_loss(loss, stats, dz, z, target, smoothing, 1 / float(rows));
  return {download(be, loss), download(be, stats), download(be, dz)};
}

TEST_P(LossTest, StatisticsAgainstReference) {
  ReferenceBackend reference;
  for (float smoothing : {0.f, 0.1f}) {
    const std::vector<double> logits = random_values(170, 1), labels = some_labels(17, 10);
    const SoftmaxResult got = softmax(be(), 17, 10, logits, rows_of(labels), smoothing);
    const SoftmaxResult want =
        softmax(reference, 17, 10, logits, tensor_of(reference, {17}, DType::i32, labels), smoothing);
    expect_close({{"loss", got.loss}, {"stats", got.stats}}, {{"loss", want.loss}, {"stats", want.stats}},
                 kFloatTolerance);
    for (size_t row = 0; row < 17; ++row)  // padding: no loss, not correct, no gradient
      if (labels[row] < 0) {
        EXPECT_EQ(got.stats[row * 2], 0);
        EXPECT_EQ(got.stats[row * 2 + 1], 0);
        for (size_t c = 0; c < 10; ++c) EXPECT_EQ(got.dlogits[row * 10 + c], 0);
      }
  }
}

TEST_P(LossTest, StatisticsOfTwoLabelsAgainstReference) {
  ReferenceBackend reference;
  const std::vector<double> logits = random_values(450, 1);
  const SoftmaxResult got = softmax(be(), 45, 10, logits, mixed_target(be(), 45, 10), 0.1f);
  const SoftmaxResult want = softmax(reference, 45, 10, logits, mixed_target(reference, 45, 10), 0.1f);
  expect_close({{"loss", got.loss}, {"stats", got.stats}}, {{"loss", want.loss}, {"stats", want.stats}},
               kFloatTolerance);
}

// torch.nn.functional.cross_entropy with probabilities share * onehot(a) + (1 - share) * onehot(b), in double.
TEST_P(LossTest, TwoLabelsAreTorchsSoftTargets) {
  const Target target(tensor_of(be(), {2}, DType::i32, {0, 1}), tensor_of(be(), {2}, DType::i32, {2, 3}),
                      tensor_of(be(), {2}, DType::f32, {0.25, double(0.7f)}));
  const std::vector<double> logits{0.5, -1, 2, 0.25, 1, 1.5, -0.5, 0};
  const std::vector<double> plain{-0.04788258735791889, 0.017207220633060103, -0.029383734629234604,
                                  0.06005910135409342,  0.15433380726722082,  -0.09554656320993454,
                                  0.03443652713185188,  -0.09322377118913822};
  const std::vector<double> smoothed{-0.04788258735791889, 0.004707220633060102, -0.004383734629234637,
                                     0.047559101354093414, 0.1418338072672208,   -0.07304656380598101,
                                     0.021936527131851877, -0.09072377059309178};
  const SoftmaxResult a = softmax(be(), 2, 4, logits, target, 0), b = softmax(be(), 2, 4, logits, target, 0.1f);
  EXPECT_NEAR(a.loss[0], 0.934884639246253, 5e-7);
  EXPECT_NEAR(b.loss[0], 1.0217596383521834, 5e-7);
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(a.dlogits[i], plain[i], 1e-7) << i;
    EXPECT_NEAR(b.dlogits[i], smoothed[i], 1e-7) << i;
  }
  // Right is who names the label with the larger share: class 2 with 3/4, class 1 with 0.7.
  EXPECT_EQ(a.stats[1], 1);
  EXPECT_EQ(a.stats[3], 1);
}

// Two equal labels, or a share of 1, are one label: to the last bit.
TEST_P(LossTest, OneLabelTwiceIsOneLabel) {
  const std::vector<double> logits = random_values(170, 1), labels = some_labels(17, 10);
  const Tensor label = tensor_of(be(), {17}, DType::i32, labels),
               other = tensor_of(be(), {17}, DType::i32, some_partners(17, 10));
  const Tensor shares = tensor_of(be(), {17}, DType::f32, some_shares(17)),
               ones = tensor_of(be(), {17}, DType::f32, std::vector<double>(17, 1));
  const SoftmaxResult one = softmax(be(), 17, 10, logits, label, 0.1f);
  for (const Target& target : {Target(label, label, shares), Target(label, other, ones)}) {
    const SoftmaxResult two = softmax(be(), 17, 10, logits, target, 0.1f);
    EXPECT_EQ(two.loss, one.loss);
    EXPECT_EQ(two.stats, one.stats);
    EXPECT_EQ(two.dlogits, one.dlogits);
  }
}

// A softmax must not overflow, and equal logits are log(classes).
TEST_P(LossTest, ExtremeLogits) {
  const SoftmaxResult even = softmax(be(), 1, 10, std::vector<double>(10, 1000), rows_of({3}), 0.1f);
  EXPECT_NEAR(even.loss[0], std::log(10.0), 1e-6);
  const SoftmaxResult sure = softmax(be(), 2, 2, {500, -500, 500, -500}, rows_of({0, 1}), 0);
  EXPECT_EQ(sure.stats, (std::vector<double>{0, 1, 1000, 0}));
  EXPECT_NEAR(sure.dlogits[2], 0.5, 1e-7);  // scale is 1/2
  const SoftmaxResult lost = softmax(be(), 1, 2, {std::numeric_limits<double>::quiet_NaN(), 1}, rows_of({1}), 0);
  EXPECT_TRUE(std::isnan(lost.loss[0]));
}

// A logit of minus infinity is a class ruled out; it must not spoil the others (as PyTorch without smoothing).
TEST_P(LossTest, RuledOutClass) {
  const double infinity = std::numeric_limits<double>::infinity();
  const SoftmaxResult r = softmax(be(), 1, 3, {1, -infinity, 1}, rows_of({0}), 0);
  EXPECT_NEAR(r.loss[0], std::log(2.0), 1e-6);
  EXPECT_EQ(r.dlogits, (std::vector<double>{-0.5, 0, 0.5}));
  // A label without a share may be ruled out, too.
  const Target target(tensor_of(be(), {2}, DType::i32, {0, 1}), tensor_of(be(), {2}, DType::i32, {1, 0}),
                      tensor_of(be(), {2}, DType::f32, {1, 0}));
  const SoftmaxResult mixed = softmax(be(), 2, 3, {1, -infinity, 1, 1, -infinity, 1}, target, 0);
  EXPECT_NEAR(mixed.loss[0], std::log(2.0), 1e-6);
  EXPECT_EQ(mixed.dlogits, (std::vector<double>{-0.25, 0, 0.25, -0.25, 0, 0.25}));
}

// Totals are added to, over as many batches as an epoch has.
TEST_P(LossTest, AccumulateAddsColumns) {
  const std::vector<double> stats = random_values(66, 1);
  const Tensor totals = tensor_of(be(), {2}, DType::f64, {100, 200}),
               batch = tensor_of(be(), {33, 2}, DType::f32, stats);
  std::vector<double> want{100, 200};
  for (int repeat = 0; repeat < 2; ++repeat) {
    be().accumulate(totals, batch);
    for (size_t i = 0; i < stats.size(); ++i) want[i % 2] += stats[i];
  }
  const std::vector<double> got = download(be(), totals);
  for (size_t c = 0; c < 2; ++c) EXPECT_NEAR(got[c], want[c], 1e-11);  // double sums of floats
}

TEST_P(LossTest, ErrorsNameOpExpectedAndGot) {
  Pool pool(be());
  Pass p{be(), pool};
  const Tensor logits = pool.zeros({4, 3}, DType::f32), labels = pool.zeros({4}, DType::i32);
  const Tensor few = pool.zeros({3}, DType::i32), floats = pool.zeros({4}, DType::f32);
  const auto error = [&](const Tensor& z, const Target& l, float smoothing) {
    return error_of([&] { softmax_cross_entropy(p, z, l, smoothing, 1); });
  };
  EXPECT_EQ(error(floats, labels, 0), "[softmax_cross_entropy] expected logits [n,classes], got [4]");
  EXPECT_EQ(error(logits, few, 0), "[softmax_cross_entropy] expected labels [4] of i32, got [3] of i32");
  EXPECT_EQ(error(logits, floats, 0), "[softmax_cross_entropy] expected labels [4] of i32, got [4] of f32");
  EXPECT_EQ(error(logits, labels, 1), "[softmax_cross_entropy] expected label smoothing in [0, 1), got 1");
  EXPECT_EQ(error(logits, Target(labels, few, floats), 0),
            "[softmax_cross_entropy] expected partner labels [4] of i32, got [3] of i32");
  EXPECT_EQ(error(logits, Target(labels, labels, labels), 0),
            "[softmax_cross_entropy] expected shares [4] of f32, got [4] of i32");
  EXPECT_EQ(error(logits, Target(labels, labels, Tensor()), 0).substr(0, 49),
            "[softmax_cross_entropy] expected shares [4] of f3");
  EXPECT_EQ(error_of([&] { mse_loss(p, logits, floats); }),
            "[mse_loss] expected a target like [4,3] of f32, got [4] of f32");
}

}  // namespace
}  // namespace linnet
