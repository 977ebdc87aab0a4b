// What a training step does besides the model, on every backend: the batch, the clipping of gradients, the update.
#include "op_case.h"

namespace linnet {
namespace {

class StepTest : public OpTest {};
LINNET_ON_EVERY_BACKEND(StepTest);

// -- the batch

struct BatchCase {
  int64_t count, height, width, channels, batch, first;
  int pad;
  bool flip;
};
const BatchCase kBatches[] = {{50, 8, 8, 3, 17, 0, 4, true},
                              {50, 8, 8, 3, 17, 40, 4, true},
                              {9, 5, 7, 1, 9, 0, 0, false},
                              {33, 7, 5, 3, 33, 0, 2, false},
                              {64, 32, 32, 3, 64, 0, 4, true}};

Results make_batch(Backend& be, const BatchCase& c, DType dtype = DType::f32) {
  std::vector<double> pixels, labels, order, table = random_values(256 * c.channels, 1);
  for (int64_t i = 0; i < c.count * c.height * c.width * c.channels; ++i)
    pixels.push_back(double(random4(4, Draw::test, uint64_t(i)).v[0] % 256));
  for (int64_t i = 0; i < c.count; ++i) {
    labels.push_back(double(i % 10));
    order.push_back(double((i * 7 + 3) % c.count));  // 7 divides none of the counts
  }
  const BatchSource source{tensor_of(be, {c.count, c.height, c.width, c.channels}, DType::u8, pixels),
                           tensor_of(be, {c.count}, DType::i32, labels),
                           tensor_of(be, {c.count}, DType::i32, order),
                           tensor_of(be, {256, c.channels}, DType::f32, table),
                           c.pad,
                           c.flip};
  const Tensor step = make_step(be);
  write_step(be, step, {.epoch = 3, .first = c.first, .seed = 42});
  Pool pool(be);
  const Tensor batch = pool.empty({c.batch, c.height, c.width, c.channels}, dtype);
  const Tensor batch_labels = pool.empty({c.batch}, DType::i32), draws = pool.empty({c.batch, 4}, DType::i32);
  be.make_batch(batch, batch_labels, draws, source, step);
  return {{"batch", download(be, batch)}, {"labels", download(be, batch_labels)}, {"draws", download(be, draws)}};
}

TEST_P(StepTest, BatchIsTheReferencesToTheBit) {
  ReferenceBackend reference;
  for (const BatchCase& c : kBatches)
    for (DType dtype : {DType::f32, DType::bf16})
      expect_same_bits(make_batch(be(), c, dtype), make_batch(reference, c, dtype));
}

TEST_P(StepTest, BatchDrawsEveryOffsetAndPadsItsEnd) {
  const Results full = make_batch(be(), kBatches[4]), ragged = make_batch(be(), kBatches[1]);
  std::vector<int> dx(9, 0), dy(9, 0), flips(2, 0);
  for (size_t n = 0; n < 64; ++n) {
    ASSERT_LE(std::abs(full[2].v[n * 4 + 1]), 4);
    ASSERT_LE(std::abs(full[2].v[n * 4 + 2]), 4);
    ++dx[size_t(full[2].v[n * 4 + 1] + 4)];
    ++dy[size_t(full[2].v[n * 4 + 2] + 4)];
    ++flips[size_t(full[2].v[n * 4 + 3])];
  }
  for (size_t i = 0; i < 9; ++i) EXPECT_TRUE(dx[i] > 0 && dy[i] > 0) << i;
  EXPECT_TRUE(flips[0] > 16 && flips[1] > 16);                                    // 4 deviations of a fair coin
  for (size_t n = 0; n < 17; ++n) EXPECT_EQ(ragged[1].v[n] == -1, n >= 10) << n;  // 50 samples, from the 40th on
}

TEST(Step, BatchSameBitsForAnyNumberOfThreads) {
  const Results want = make_batch(*make_cpu_backend(1), kBatches[4]);
  for (int threads : {2, 3, 7}) expect_same_bits(make_batch(*make_cpu_backend(threads), kBatches[4]), want);
}

// -- clipping

std::pair<float, float> clip(Backend& be, int64_t n, float max_norm) {
  const Tensor step = make_step(be), grad = tensor_of(be, {n}, DType::f32, random_values(n, 1));
  be.clip_scale(step, grad, max_norm);
  const StepParams p = read_step(be, step);
  return {p.grad_norm, p.clip_scale};
}

TEST_P(StepTest, ClipScale) {
  ReferenceBackend reference;
  for (int64_t n : {1, 7, 1000, 100001})
    for (float max_norm : {0.f, 0.5f, 1e6f}) {
      const auto [norm, scale] = clip(be(), n, max_norm);
      const auto [want_norm, want_scale] = clip(reference, n, max_norm);
      EXPECT_LE(std::abs(norm - want_norm), 1e-6f * want_norm);  // a double sum, rounded once
      EXPECT_LE(std::abs(scale - want_scale), 1e-6f * want_scale);
    }
  EXPECT_EQ(clip(be(), 1000, 0).second, 1);
}

TEST_P(StepTest, ClipScaleSeesInfinityAndNan) {
  for (double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    const Tensor step = make_step(be());
    std::vector<double> g = random_values(100, 1);
    g[57] = bad;
    be().clip_scale(step, tensor_of(be(), {100}, DType::f32, g), 1);
    EXPECT_FALSE(std::isfinite(read_step(be(), step).grad_norm));
  }
}

TEST(Step, ClipSameBitsForAnyNumberOfThreads) {
  for (int threads : {2, 3, 7})
    EXPECT_EQ(clip(*make_cpu_backend(threads), 100001, 1), clip(*make_cpu_backend(1), 100001, 1));
}

// -- the update

Results sgd_steps(Backend& be, int64_t n, const Sgd& sgd, int64_t steps) {
  const Flat flat{.master = tensor_of(be, {n}, DType::f32, random_values(n, 1)),
                  .grad = tensor_of(be, {n}, DType::f32, random_values(n, 2)),
                  .slots = tensor_of(be, {1, n}, DType::f32, std::vector<double>(size_t(n), 0.0)),
                  .n = n,
                  .n_decay = n / 2};
  const Tensor step = make_step(be);
  for (int64_t s = 0; s < steps; ++s) {
    write_step(be, step, {.lr = 0.1f, .weight_decay = 0.05f, .clip_scale = 0.5f, .step = s});
    be.update(Rule{sgd}, flat, step);
    upload(be, flat.grad, random_values(n, 3 + uint32_t(s)));
  }
  return {{"weights", download(be, flat.master)}, {"momentum", download(be, flat.slots)}};
}

TEST_P(StepTest, SgdAgainstReference) {
  ReferenceBackend reference;
  for (const Sgd& sgd : {Sgd{0, 0, false}, Sgd{0.9f, 0, false}, Sgd{0.9f, 0, true}, Sgd{0.9f, 0.3f, false}})
    for (int64_t n : {1, 17, 100001})
      expect_close(sgd_steps(be(), n, sgd, 4), sgd_steps(reference, n, sgd, 4), 1e-6);  // a dozen roundings of 2^-24
}

// Two steps by hand: lr 0.1, decay 0.05, gradients halved by clipping; the second half is not decayed.
TEST_P(StepTest, SgdDecaysTheFirstPartOnly) {
  const std::vector<double> w = random_values(2, 1), g = random_values(2, 2);
  const Results one = sgd_steps(be(), 2, Sgd{0.9f, 0, false}, 1);
  EXPECT_NEAR(one[0].v[0], w[0] - 0.1 * (0.5 * g[0] + 0.05 * w[0]), 1e-6);
  EXPECT_NEAR(one[0].v[1], w[1] - 0.1 * (0.5 * g[1]), 1e-6);
}

TEST(Step, SgdSameBitsForAnyNumberOfThreads) {
  const Sgd sgd{0.9f, 0, true};
  const Results want = sgd_steps(*make_cpu_backend(1), 100001, sgd, 3);
  for (int threads : {2, 3, 7}) expect_same_bits(sgd_steps(*make_cpu_backend(threads), 100001, sgd, 3), want);
}

}  // namespace
}  // namespace linnet
