// Training in bf16: masters, statistics and sums stay f32, activations and the weights of products are bf16.
#include <cmath>

#include "op_case.h"
#include "tiny_run.h"

namespace linnet {
namespace {

// The other ops' tests have bf16 rows of their own; these are the ones whose weights are rounded, too. A result is
// rounded once: kBf16Tolerance. Gradients of weights are f32.
TEST(Bf16, ConvolutionsAgainstReference) {
  struct Row {
    Shape x, w;
    Conv conv;
  };
  for (ConvMethod method : {ConvMethod::fastest, ConvMethod::direct}) {
    const auto be = make_cpu_backend(2, method);
    if (be->best_precision() != DType::bf16) GTEST_SKIP() << "no bf16 instructions here";
    for (const Row& r : {Row{{
                                 5,
                                 8,
                                 8,
                                 16,
                             },
                             {32, 3, 3, 16},
                             {1, 1}},
                         {{3, 9, 7, 32}, {16, 3, 3, 32}, {1, 1}},
                         {{3, 8, 8, 16}, {32, 3, 3, 16}, {2, 1}},
                         {{2, 8, 8, 16}, {32, 1, 1, 16}, {2, 0}},
                         {{5, 8, 8, 3}, {16, 3, 3, 3}, {1, 1}},
                         {{17, 8, 8, 24}, {24, 3, 3, 24}, {1, 1}}}) {
      const OpCase c{.name = fmt::format("conv {} * {}, stride {}", r.x, r.w, r.conv.stride),
                     .inputs = {r.x},
                     .params = {r.w},
                     .f = [&](Pass& p, const Operands& o) { return conv2d(p, o.x[0], *o.w[0], r.conv); }};
      check_against_reference(c, *be, DType::bf16);
      check_same_bits(c, DType::bf16);
    }
  }
}

TEST(Bf16, LinearAgainstReference) {
  const auto be = make_cpu_backend(2);
  const OpCase c{
      .name = "linear", .inputs = {{17, 33}}, .params = {{10, 33}, {10}}, .f = [](Pass& p, const Operands& o) {
        return linear(p, o.x[0], *o.w[0], *o.w[1]);
      }};
  check_against_reference(c, *be, DType::bf16);
  check_same_bits(c, DType::bf16);
}

// A convolution hands its sums to the batch norm that follows.
TEST(Bf16, ConvolutionAndBatchNormAgainstReference) {
  const auto be = make_cpu_backend(2);
  OpCase c{.name = "batch_norm(conv)",
           .inputs = {{5, 8, 8, 16}},
           .params = {{32, 3, 3, 16}, {32}, {32}},
           .state = {{32}, {32}},
           .f = [](Pass& p, const Operands& o) {
             return batch_norm(p, conv2d(p, o.x[0], *o.w[0], {1, 1}), *o.w[1], *o.w[2], *o.state[0], *o.state[1], {});
           }};
  check_against_reference(c, *be);
  check_same_bits(c);
  check_same_bits(c, DType::bf16);
}

TEST(Bf16, CastRoundsToNearestEven) {
  const auto be = make_cpu_backend(2);
  const std::vector<double> values = {0, 1, -1, 1 + 0x1p-8, 1 + 0x3p-8, 1 + 0x1p-9, 3.4e38, -INFINITY, 1e-30, 0.1};
  const Tensor x = tensor_of(*be, {10}, DType::f32, values), y = tensor_of(*be, {10}, DType::bf16, values);
  be->cast(y, x);
  const std::vector<double> want = {
      0, 1, -1, 1, 1 + 0x1p-6, 1, INFINITY, -INFINITY, double(float(bf16(1e-30f))), double(float(bf16(0.1f)))};
  EXPECT_EQ(download(*be, y), want);
  be->cast(x, y);
  EXPECT_EQ(download(*be, x), want);
}

Config tiny(const std::string& precision) {
  return parse_config(fmt::format("model.name = 'resnet20'\ndata.name = 'synthetic'\ndata.samples = 96\n"
                                  "data.val = 32\ndata.image_size = 16\ntrain.batch_size = 16\noptimizer.lr = 0.02\n"
                                  "optimizer.momentum = 0.9\ntrain.epochs = 2\ntrain.precision = '{}'\n",
                                  precision),
                      "tiny");
}

TEST(Bf16, MastersAreFloatsAndTheirCopiesAreRounded) {
  if (!cpu_has_bf16()) GTEST_SKIP() << "no bf16 instructions here";
  TinyRun t(tiny("bf16"));
  t.steps(2);
  EXPECT_EQ(t.trainer.batch().dtype(), DType::bf16);
  for (const Param* p : t.trainer.net().params().params()) {
    EXPECT_EQ(p->master.dtype(), DType::f32);
    EXPECT_EQ(p->grad.dtype(), DType::f32);
    EXPECT_EQ(p->compute.dtype(), DType::bf16);
  }
  // The last update moved masters by less than a bf16 can show, too.
  const std::vector<double> before = download(*t.backend, t.trainer.net().params().flat().master);
  t.steps(1);
  const std::vector<double> after = download(*t.backend, t.trainer.net().params().flat().master);
  int64_t small = 0;
  for (size_t i = 0; i < before.size(); ++i)
    small += before[i] != after[i] && bf16(float(before[i])).bits == bf16(float(after[i])).bits;
  EXPECT_GT(small, int64_t(before.size() / 10));
}

TEST(Bf16, SameBitsForAnyNumberOfThreads) {
  if (!cpu_has_bf16()) GTEST_SKIP() << "no bf16 instructions here";
  TinyRun one(tiny("bf16"), 1);
  one.steps(3);
  for (int threads : {2, 5}) {
    TinyRun many(tiny("bf16"), threads);
    many.steps(3);
    EXPECT_EQ(many.trainer.state_hash(), one.trainer.state_hash()) << threads;
  }
}

TEST(Bf16, GoesOnExactlyWhereItStood) {
  if (!cpu_has_bf16()) GTEST_SKIP() << "no bf16 instructions here";
  TinyRun whole(tiny("bf16"));
  whole.steps(2);
  TinyRun resumed(tiny("bf16"));
  const auto from = whole.trainer.tensors(), to = resumed.trainer.tensors();
  for (size_t i = 0; i < from.size(); ++i)
    upload(*resumed.backend, to[i].second, download(*whole.backend, from[i].second));
  resumed.trainer.restore(whole.trainer.progress());
  whole.steps(2);
  resumed.steps(2);
  EXPECT_EQ(resumed.trainer.state_hash(), whole.trainer.state_hash());
}

// Rounding changes the way, not where it leads: after a few steps the losses agree to a few per cent.
TEST(Bf16, LossFollowsThatOfF32) {
  if (!cpu_has_bf16()) GTEST_SKIP() << "no bf16 instructions here";
  TinyRun half(tiny("bf16")), full(tiny("f32"));
  for (int i = 0; i < 4; ++i) {
    half.steps(1);
    full.steps(1);
    EXPECT_NEAR(half.trainer.last_loss(), full.trainer.last_loss(), 0.05 * double(full.trainer.last_loss())) << i;
  }
  EXPECT_NE(half.trainer.last_loss(), full.trainer.last_loss());
}

TEST(Bf16, AutoTakesWhatTheProcessorHas) {
  const auto be = make_cpu_backend(1);
  EXPECT_EQ(precision_of(tiny("auto"), *be), be->best_precision());
  EXPECT_EQ(precision_of(tiny("f32"), *be), DType::f32);
  EXPECT_EQ(precision_of(tiny("bf16"), *be), DType::bf16);
}

}  // namespace
}  // namespace linnet
