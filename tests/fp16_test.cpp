// Training in fp16: the number format, the loss scale and what happens when a gradient does not fit. The CPU computes
// it through f32, so that all of it can be tested here; the CUDA backend shares everything but the vendor calls.
#include <cmath>

#include "op_case.h"
#include "tiny_run.h"

namespace linnet {
namespace {

// The value of a half by its definition.
double value_of(uint32_t bits) {
  const int exponent = int(bits >> 10 & 31), fraction = int(bits & 1023);
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

TEST(Fp16, EveryNumberIsReadAndWrittenBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    fp16 h;
    h.bits = uint16_t(bits);
    const double want = value_of(bits);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(float(h)) && std::isnan(float(fp16(float(h))))) << bits;
    } else {
      ASSERT_EQ(double(float(h)), want) << bits;
      ASSERT_EQ(fp16(float(h)).bits, bits);
    }
  }
}

TEST(Fp16, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7BFF; ++bits) {  // between each number and the next one
    const double low = value_of(bits), high = value_of(bits + 1), middle = (low + high) / 2;
    ASSERT_EQ(fp16(float(middle)).bits, bits + (bits & 1)) << bits;
    ASSERT_EQ(fp16(std::nextafter(float(middle), 0.f)).bits, bits) << bits;
    ASSERT_EQ(fp16(std::nextafter(float(middle), 1e9f)).bits, bits + 1) << bits;
    ASSERT_EQ(fp16(-float(middle)).bits, 0x8000 + bits + (bits & 1)) << bits;
  }
  EXPECT_EQ(fp16(65519.996f).bits, 0x7BFF);
  EXPECT_EQ(fp16(65520.f).bits, 0x7C00);
  EXPECT_EQ(fp16(-3e38f).bits, 0xFC00);
  EXPECT_EQ(fp16(INFINITY).bits, 0x7C00);
}

TEST(Fp16, LayersAgainstReference) {
  const auto be = make_cpu_backend(2);
  for (const Conv conv : {Conv{1, 1}, Conv{2, 1}}) {
    const OpCase c{.name = "conv and batch norm",
                   .inputs = {{3, 8, 8, 16}},
                   .params = {{32, 3, 3, 16}},
                   .f = [&](Pass& p, const Operands& o) { return conv2d(p, o.x[0], *o.w[0], conv); }};
    check_against_reference(c, *be, DType::fp16);
    check_same_bits(c, DType::fp16);
  }
  const OpCase norm{.name = "batch norm with a residual",
                    .inputs = {{3, 4, 4, 16}, {3, 4, 4, 16}},
                    .params = {{16}, {16}},
                    .state = {{16}, {16}},
                    .f = [](Pass& p, const Operands& o) {
                      return batch_norm(p, o.x[0], *o.w[0], *o.w[1], *o.state[0], *o.state[1], {.relu = true}, &o.x[1]);
                    }};
  check_against_reference(norm, *be, DType::fp16);
  const OpCase dense{
      .name = "linear", .inputs = {{17, 33}}, .params = {{10, 33}, {10}}, .f = [](Pass& p, const Operands& o) {
        return linear(p, o.x[0], *o.w[0], *o.w[1]);
      }};
  check_against_reference(dense, *be, DType::fp16);
}

Config config_of(const std::string& precision, double loss_scale) {
  Config c = tiny_config("resnet20");
  c.data.image_size = 8;
  c.train.batch_size = 16;
  c.train.precision = precision;
  c.train.loss_scale = loss_scale;
  c.clip = {.norm = 1, .value = 0.5};
  return c;
}

// A power of two goes in and out again without a trace: clipping, norm and loss see the gradient without it.
TEST(Fp16, TheLossScaleLeavesNoTrace) {
  for (const char* precision : {"f32", "bf16"}) {
    if (precision == std::string("bf16") && !cpu_has_bf16()) continue;
    TinyRun plain(config_of(precision, 0)), scaled(config_of(precision, 4096));
    plain.steps(3);
    scaled.steps(3);
    EXPECT_EQ(scaled.trainer.state_hash(), plain.trainer.state_hash()) << precision;
    EXPECT_EQ(scaled.trainer.last_loss(), plain.trainer.last_loss());
    EXPECT_EQ(scaled.trainer.last_result().grad_norm, plain.trainer.last_result().grad_norm);
    EXPECT_EQ(scaled.trainer.gradient(), plain.trainer.gradient());
    EXPECT_GT(plain.trainer.last_result().clipped, 0);
  }
}

TEST(Fp16, TrainsAndFollowsF32) {
  TinyRun half(config_of("fp16", 0)), full(config_of("f32", 0));
  EXPECT_EQ(loss_scale_of(half.config), 1024);
  for (int i = 0; i < 4; ++i) {
    half.steps(1);
    full.steps(1);
    EXPECT_NEAR(half.trainer.last_loss(), full.trainer.last_loss(), 0.02 * double(full.trainer.last_loss())) << i;
  }
  EXPECT_NE(half.trainer.last_loss(), full.trainer.last_loss());
  EXPECT_EQ(half.trainer.batch().dtype(), DType::fp16);
  EXPECT_EQ(half.trainer.last_result().skipped, 0);
  for (const Param* p : half.trainer.net().params().params()) {
    EXPECT_EQ(p->master.dtype(), DType::f32);
    EXPECT_EQ(p->compute.dtype(), DType::fp16);
  }
}

// 2^24 times the gradient is infinite in fp16: the step is left out and counted, the weights stay, and the run goes on,
// although a loss that is not finite would end it.
TEST(Fp16, AnOverflowSkipsTheStep) {
  TinyRun run(config_of("fp16", 16777216));
  const Tensor master = run.trainer.net().params().flat().master;
  const std::vector<double> before = download(*run.backend, master);
  run.steps(3);
  const StepResult result = run.trainer.last_result();
  EXPECT_EQ(result.skipped, 3);
  EXPECT_EQ(result.bad_in_row, 3);
  EXPECT_EQ(result.halted, 0);
  EXPECT_EQ(download(*run.backend, master), before);
  EXPECT_TRUE(std::isfinite(run.trainer.last_loss()));
}

TEST(Fp16, TooManyOverflowsAreAnErrorThatTeaches) {
  Config config = config_of("fp16", 16777216);
  config.train.epochs = 10;
  TinyRun run(config);
  const std::string error = error_of([&] { run.run(); });
  EXPECT_NE(error.find("Use a smaller train.loss_scale (it is 16777216)"), std::string::npos) << error;
  EXPECT_NE(error.find("in 11 steps one after the other from epoch 1, step 1 on; the first value is in gradient of "),
            std::string::npos)
      << error;
  EXPECT_EQ(run.trainer.global_step(), config.train.max_skips + 1);
  EXPECT_EQ(run.last("step")["skipped"], double(config.train.max_skips));
}

TEST(Fp16, TheScaleIsAPowerOfTwo) {
  EXPECT_NE(error_of([] { parse_config("train.loss_scale = 1000", "test"); }).find("power of two"), std::string::npos);
  for (const char* good : {"0", "1", "1024", "0.5"})
    parse_config(fmt::format("train.loss_scale = {}\ntrain.precision = 'fp16'", good), "test");
}

}  // namespace
}  // namespace linnet
