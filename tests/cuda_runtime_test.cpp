// What a backend with a device of its own can get wrong: copies in pieces, work that is still under way, a captured
// step. Runs on every backend.
#include "flat_run.h"

namespace linnet {
namespace {

class RuntimeTest : public OpTest {
 protected:
  Tensor bytes(int64_t n) { return Tensor(be().allocate(size_t(n)), {n}, DType::u8); }
};
LINNET_ON_EVERY_BACKEND(RuntimeTest);

std::vector<uint8_t> random_bytes(int64_t n, uint32_t stream) {
  std::vector<uint8_t> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) v[size_t(i)] = uint8_t(random4(5, Draw::test, uint64_t(i), 0, stream).v[0]);
  return v;
}

// Around the size of a pinned slot (1 MiB) and beyond all slots together.
TEST_P(RuntimeTest, CopiesOfAnySize) {
  constexpr int64_t kMiB = int64_t(1) << 20;
  for (int64_t n : {int64_t(0), int64_t(1), kMiB - 1, kMiB, kMiB + 1, 5 * kMiB + 3}) {
    SCOPED_TRACE(n);
    const std::vector<uint8_t> sent = random_bytes(n, 1);
    const Tensor a = bytes(n), b = bytes(n);
    std::vector<uint8_t> got(static_cast<size_t>(n), 7);
    be().upload(a, sent.data());
    be().zero(b);
    be().copy(b, a);
    be().download(got.data(), b);
    EXPECT_TRUE(got == sent);
    be().zero(b);
    be().download(got.data(), b);
    EXPECT_TRUE(got == std::vector<uint8_t>(size_t(n), 0));
  }
}

// The caller's memory is free once upload returns, whether or not the bytes have arrived.
TEST_P(RuntimeTest, UploadsDoNotWaitForTheirSource) {
  std::vector<Tensor> targets;
  std::vector<uint8_t> source;
  for (uint32_t i = 0; i < 20; ++i) {
    targets.push_back(bytes(100000));
    source = random_bytes(100000, i);
    be().upload(targets.back(), source.data());
    std::fill(source.begin(), source.end(), uint8_t(0xEE));
  }
  for (uint32_t i = 0; i < 20; ++i) {
    std::vector<uint8_t> got(100000);
    be().download(got.data(), targets[i]);
    EXPECT_TRUE(got == random_bytes(100000, i)) << i;
  }
}

TEST_P(RuntimeTest, OutOfMemoryIsAnErrorAndNotTheEnd) {
  if (be().device() == Device::cpu) GTEST_SKIP() << "the address sanitizer ends the program instead";
  try {
    be().allocate(size_t(1) << 50);
    ADD_FAILURE() << "a pebibyte was granted";
  } catch (const Error& e) {
    EXPECT_EQ(e.exit, Exit::device);
    EXPECT_NE(std::string(e.what()).find("1073741824 MiB"), std::string::npos) << e.what();
  }
  const Tensor small = bytes(4);
  be().zero(small);
  uint32_t got = 1;
  be().download(&got, small);
  EXPECT_EQ(got, 0u);
}

// A step that is captured once follows the parameters that are written before each replay.
TEST_P(RuntimeTest, ReplayFollowsTheStepParameters) {
  constexpr int64_t n = 1000;
  const auto weights = [&](bool captured) {
    const Rule rule{Momentum{}};
    const Flat flat = flat_of(be(), random_values(n, 1), random_values(n, 2), 1, n / 2);
    const Tensor step = make_step(be()), sums(be().allocate(16), {2}, DType::f64);
    be().zero(sums);
    const auto compute = [&] {
      be().judge_step(step, flat.grad, nullptr, sums, {.norm = 1});
      be().update(rule, flat, 0, {.norm = 1}, step);
    };
    const std::unique_ptr<Replay> replay = captured ? be().capture(compute) : nullptr;
    for (int64_t k = 0; k < 5; ++k) {
      StepParams params{.step = k};
      params.group[0] = group_step(rule, 0.1 * double(k + 1), 0.01, k + 1);
      write_step(be(), step, params);
      captured ? replay->run() : compute();
    }
    return Results{{"weights", download(be(), flat.master)}, {"momentum", download(be(), flat.slots)}};
  };
  expect_same_bits(weights(true), weights(false));
}

// Vendor calls, sums and scratch memory inside a captured step: the same bits as outside one. A larger shape between
// the replays makes the shared scratch memory grow.
TEST_P(RuntimeTest, ReplayOfALayerIsTheLayer) {
  const auto train = [&](bool captured) {
    const Shape in{4, 8, 8, 16}, filters{16, 3, 3, 16}, channels{16};
    const auto values = [&](const Shape& s, uint32_t stream) {
      return tensor_of(be(), s, DType::f32, random_values(s.numel(), stream));
    };
    const Tensor x = values(in, 1), w = values(filters, 2), dz = values(in, 3), y = values(in, 4), z = values(in, 5),
                 dy = values(in, 6), dx = values(in, 7), dw = values(filters, 8), scale = values(channels, 9),
                 bias = values(channels, 10), dscale = values(channels, 11), dbias = values(channels, 12),
                 saved = values({4, 16}, 13);
    const std::vector<double> ones(16, 1.0);
    const BnState state{scale, bias, tensor_of(be(), channels, DType::f32, ones),
                        tensor_of(be(), channels, DType::f32, ones)};
    const Bn bn{.relu = true};
    const auto layer = [&] {
      be().conv_forward(y, x, w, {1, 1}, nullptr);
      be().bn_forward(z, saved, y, nullptr, state, bn, true, nullptr);
      be().bn_backward(dy, nullptr, dscale, dbias, dz, y, z, saved, scale, bn, nullptr, nullptr);
      be().conv_backward_data(dx, dy, w, {1, 1});
      be().conv_backward_weight(dw, dy, x, {1, 1});
    };
    layer();
    const std::unique_ptr<Replay> replay = captured ? be().capture(layer) : nullptr;
    for (int k = 0; k < 3; ++k) {
      captured ? replay->run() : layer();
      if (k == 0) {
        const Shape larger{32, 16, 16, 16};
        const Tensor a = values(larger, 14), b = values(larger, 15);
        be().conv_forward(b, a, w, {1, 1}, nullptr);
        be().conv_backward_data(a, b, w, {1, 1});
      }
    }
    return Results{
        {"z", download(be(), z)},           {"dx", download(be(), dx)},           {"dw", download(be(), dw)},
        {"dscale", download(be(), dscale)}, {"mean", download(be(), state.mean)}, {"var", download(be(), state.var)}};
  };
  expect_same_bits(train(true), train(false));
  expect_same_bits(train(false), train(false));
}

TEST_P(RuntimeTest, AFailedCaptureLeavesTheBackendUsable) {
  EXPECT_EQ(error_of([&] { be().capture([] { fail(Exit::failure, "in the step"); })->run(); }), "in the step");
  const Tensor t = bytes(3);
  be().zero(t);
  be().synchronize();
}

}  // namespace
}  // namespace linnet
