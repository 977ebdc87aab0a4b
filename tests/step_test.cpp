// What a training step does besides the model, on every backend: the batch, the clipping of gradients, the update.
#include "flat_run.h"

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

// Item, dx, dy and flip of each sample.
std::vector<double> first_words(const std::vector<double>& draws) {
  std::vector<double> first;
  for (size_t i = 0; i < draws.size(); ++i)
    if (i % kDrawWords < 4) first.push_back(draws[i]);
  return first;
}

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
                           {.crop_pad = c.pad, .flip = c.flip ? Flip::random : Flip::none},
                           {}};
  const Tensor step = make_step(be);
  write_step(be, step, {.epoch = 3, .first = c.first, .seed = 42});
  Pool pool(be);
  const Tensor batch = pool.empty({c.batch, c.height, c.width, c.channels}, dtype);
  const Tensor batch_labels = pool.empty({c.batch}, DType::i32), draws = pool.empty({c.batch, kDrawWords}, DType::i32);
  be.make_batch(batch, batch_labels, draws, source, step, 0);
  return {{"batch", download(be, batch)},
          {"labels", download(be, batch_labels)},
          {"draws", first_words(download(be, draws))}};
}

TEST_P(StepTest, BatchIsTheReferencesToTheBit) {
  ReferenceBackend reference;
  for (const BatchCase& c : kBatches)
    for (DType dtype : {DType::f32, DType::bf16, DType::fp16})
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

StepResult judge(Backend& be, const std::vector<double>& gradient, Clip clip, double loss = 1) {
  const Tensor step = make_step(be), sums(be.allocate(16), {2}, DType::f64);
  const double values[2] = {loss, 0};
  be.upload(sums, values);
  be.judge_step(step, tensor_of(be, {int64_t(gradient.size())}, DType::f32, gradient), nullptr, sums, clip);
  return read_step(be, step);
}
std::pair<float, float> clip(Backend& be, int64_t n, float max_norm) {
  const StepResult r = judge(be, random_values(n, 1), {.norm = max_norm});
  return {r.grad_norm, r.clip_scale};
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

// Clipping by value comes before the norm.
TEST_P(StepTest, ClipByValue) {
  const StepResult r = judge(be(), {3, -4, 0.5}, {.value = 2});
  EXPECT_FLOAT_EQ(r.grad_norm, std::sqrt(8.25f));
  EXPECT_EQ(r.clip_scale, 1);
  EXPECT_FLOAT_EQ(judge(be(), {3, -4, 0.5}, {.norm = 1, .value = 2}).clip_scale, 1 / (std::sqrt(8.25f) + 1e-6f));
}

TEST_P(StepTest, AStepWithInfinityOrNanIsBad) {
  for (double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    std::vector<double> g = random_values(100, 1);
    EXPECT_EQ(judge(be(), g, {.norm = 1}).bad, 0);
    EXPECT_EQ(judge(be(), g, {.norm = 1}, bad).bad, 1);
    g[57] = bad;
    const StepResult r = judge(be(), g, {.norm = 1});
    EXPECT_EQ(r.bad, 1);
    EXPECT_EQ(r.skipped, 1);
    EXPECT_EQ(r.clipped, 0);
    EXPECT_EQ(judge(be(), g, {.value = 0.5}).bad, 1);  // clamping does not hide it
  }
}

// The square of such an element is in the state of most optimizers, where it would be infinite.
TEST_P(StepTest, AStepWhoseSquareIsNoFloatIsBad) {
  std::vector<double> g = random_values(100, 1);
  g[57] = 1.8e19;
  EXPECT_EQ(judge(be(), g, {}).bad, 0);
  g[57] = 1.9e19;
  EXPECT_EQ(judge(be(), g, {}).bad, 1);
  EXPECT_EQ(judge(be(), g, {.norm = 1}).bad, 0);  // what is applied is the clipped gradient
}

TEST_P(StepTest, AStepWithStatisticsThatAreNotFiniteIsBad) {
  const Tensor step = make_step(be()), sums = tensor_of(be(), {2}, DType::f64, {1, 0});
  const Tensor g = tensor_of(be(), {2}, DType::f32, {1, 2});
  for (const double e : {1.0, std::numeric_limits<double>::infinity(), 2.0}) {
    const Tensor buffers = tensor_of(be(), {3}, DType::f32, {1, e, 3});
    be().judge_step(step, g, &buffers, sums, {});
    EXPECT_EQ(read_step(be(), step).bad, !std::isfinite(e));
    StepResult fresh;
    write_result(be(), step, fresh);
  }
}

// A bad step leaves weights, state, buffers, averages and sums as they were; the next good one goes on.
TEST_P(StepTest, ABadStepChangesNothing) {
  for (const Rule& rule : {Rule{Momentum{}}, Rule{Nag{}}}) {
    const std::vector<double> w = random_values(40, 1), g = random_values(40, 2);
    const Flat flat = flat_of(be(), w, g, slots_of(rule), 40);
    const Tensor step = make_step(be());
    update_once(be(), rule, flat, step, 0.1, 0, 1);
    const std::vector<double> before = download(be(), flat.master);
    const std::vector<double> momentum = download(be(), flat.slots.slice(0, {40}));
    update_once(be(), rule, flat, step, 0.1, 0, 2, {}, std::numeric_limits<double>::quiet_NaN());
    EXPECT_EQ(download(be(), flat.master), before);
    EXPECT_EQ(download(be(), flat.slots.slice(0, {40})), momentum);
    EXPECT_EQ(read_step(be(), step).bad_step, 1);

    const Tensor value = tensor_of(be(), {3}, DType::f32, {7, 8, 9}),
                 good = tensor_of(be(), {3}, DType::f32, {1, 2, 3});
    const Tensor average = tensor_of(be(), {3}, DType::f32, {4, 5, 6});
    be().moving_average(average, value, 0.5, step);
    EXPECT_EQ(download(be(), average), (std::vector<double>{4, 5, 6}));
    const double sums[] = {2, 1}, totals[] = {10, 5, 100};
    const Tensor step_sums(be().allocate(16), {2}, DType::f64), all(be().allocate(24), {3}, DType::f64);
    be().upload(step_sums, sums);
    be().upload(all, totals);
    be().commit(value, good, all, step_sums, 32, step);
    EXPECT_EQ(download(be(), value), (std::vector<double>{1, 2, 3}));
    double after[3];
    be().download(after, all);
    EXPECT_EQ(after[2], 100);

    StepResult fine = read_step(be(), step);
    fine.bad = fine.bad_in_row = 0;
    write_result(be(), step, fine);
    upload(be(), value, {7, 8, 9});
    be().commit(value, good, all, step_sums, 32, step);
    be().moving_average(average, value, 0.5, step);
    EXPECT_EQ(download(be(), good), (std::vector<double>{7, 8, 9}));
    EXPECT_EQ(download(be(), average), (std::vector<double>{5.5, 6.5, 7.5}));
    be().download(after, all);
    EXPECT_EQ(after[0], 12);
    EXPECT_EQ(after[2], 132);
  }
}

// Of a run that stops at the first bad step, no later step is applied, however good.
TEST_P(StepTest, AfterTooManyBadStepsNoneIsApplied) {
  const Rule rule{Momentum{}};
  const Flat flat = flat_of(be(), random_values(8, 1), random_values(8, 2), 1, 8);
  const Tensor step = make_step(be());
  const std::vector<double> before = download(be(), flat.master);
  update_once(be(), rule, flat, step, 0.1, 0, 1, {}, std::numeric_limits<double>::infinity());
  update_once(be(), rule, flat, step, 0.1, 0, 2);
  EXPECT_EQ(download(be(), flat.master), before);
  EXPECT_EQ(read_step(be(), step).bad_step, 0);
}

TEST(Step, ClipSameBitsForAnyNumberOfThreads) {
  for (int threads : {2, 3, 7})
    EXPECT_EQ(clip(*make_cpu_backend(threads), 100001, 1), clip(*make_cpu_backend(1), 100001, 1));
}

// -- the update

Results sgd_steps(Backend& be, int64_t n, const Rule& rule, int64_t steps) {
  const Flat flat = flat_of(be, random_values(n, 1), random_values(n, 2), 1, n / 2);
  const Tensor step = make_step(be);
  for (int64_t t = 1; t <= steps; ++t) {
    update_once(be, rule, flat, step, 0.1, 0.05, t, {.norm = 1, .value = 0.75});
    upload(be, flat.grad, random_values(n, 2 + uint32_t(t)));
  }
  return {{"weights", download(be, flat.master)}, {"momentum", download(be, flat.slots)}};
}

Rule momentum(double m, double dampening = 0, bool nesterov = false) {
  Momentum rule;
  rule.momentum = m;
  rule.dampening = dampening;
  rule.nesterov = nesterov;
  return rule;
}

TEST_P(StepTest, SgdAgainstReference) {
  ReferenceBackend reference;
  for (const Rule& sgd : {Rule{Sgd{}}, momentum(0.9), momentum(0.9, 0, true), momentum(0.9, 0.3)})
    for (int64_t n : {1, 17, 100001})
      expect_close(sgd_steps(be(), n, sgd, 4), sgd_steps(reference, n, sgd, 4), 1e-6);  // a dozen roundings of 2^-24
}

// By hand: lr 0.1, decay 0.05, gradients halved by clipping; the second half is not decayed.
TEST_P(StepTest, SgdDecaysTheFirstPartOnly) {
  const Flat flat = flat_of(be(), {0.5, 0.25}, {3, 4}, 1, 1);
  update_once(be(), momentum(0.9), flat, make_step(be()), 0.1, 0.05, 1, {.norm = 2.5});
  const std::vector<double> w = download(be(), flat.master);
  EXPECT_NEAR(w[0], 0.5 - 0.1 * (0.5 * 3 + 0.05 * 0.5), 1e-6);
  EXPECT_NEAR(w[1], 0.25 - 0.1 * (0.5 * 4), 1e-6);
}

// Wide, tall and square matrices, two steps: against the formula in double.
Results muon_steps(Backend& be, int64_t rows, int64_t columns) {
  const int64_t n = rows * columns;
  const Flat flat = flat_of(be, random_values(n, 1), random_values(n, 2), 1, n);
  const auto make = [&](int64_t size) {
    return tensor_of(be, {size}, DType::f32, std::vector<double>(static_cast<size_t>(size), 0.0));
  };
  const int64_t small = std::min(rows, columns);
  const MuonMemory memory{make(n), make(n), make(small * small), make(small * small), make(1)};
  const Tensor step = make_step(be), sums(be.allocate(16), {2}, DType::f64);
  be.zero(sums);
  const Muon rule;
  for (int64_t t = 1; t <= 2; ++t) {
    StepParams params{.step = t - 1};
    params.group[0] = group_step(rule, 0.1, 0.05, t);
    write_step(be, step, params);
    be.judge_step(step, flat.grad, nullptr, sums, {.norm = 1});
    be.muon(rule, flat, {0, rows, columns, true}, 0, {.norm = 1}, memory, step);
    upload(be, flat.grad, random_values(n, 2 + uint32_t(t)));
  }
  return {{"weights", download(be, flat.master)}, {"momentum", download(be, flat.slots)}};
}

TEST_P(StepTest, MuonAgainstReference) {
  ReferenceBackend reference;
  for (const auto& [rows, columns] :
       {std::pair<int64_t, int64_t>{16, 144}, {10, 64}, {64, 10}, {16, 16}, {1, 5}, {5, 1}})
    expect_close(muon_steps(be(), rows, columns), muon_steps(reference, rows, columns), 2e-5);
}

// The direction that Muon takes has singular values near 1, whatever those of the gradient.
TEST_P(StepTest, MuonMovesAllDirectionsAlike) {
  const int64_t rows = 4, columns = 6;
  const Results two = muon_steps(be(), rows, columns);
  EXPECT_EQ(two[0].v.size(), size_t(rows * columns));
  double squares = 0;  // Frobenius norm of the sum of two steps: each has about sqrt(4) singular values of 0.7 to 1.2
  const std::vector<double> w0 = random_values(rows * columns, 1);
  for (size_t i = 0; i < w0.size(); ++i) squares += std::pow(two[0].v[i] - w0[i] * std::pow(1 - 0.1 * 0.05, 2), 2);
  EXPECT_LE(std::sqrt(squares), 0.1 * 2 * 1.25 * 2);
  EXPECT_GE(std::sqrt(squares), 0.1 * 0.6);
}

TEST(Step, MuonSameBitsForAnyNumberOfThreads) {
  for (int threads : {2, 3})
    expect_same_bits(muon_steps(*make_cpu_backend(threads), 64, 576), muon_steps(*make_cpu_backend(1), 64, 576));
}

TEST(Step, SgdSameBitsForAnyNumberOfThreads) {
  const Rule sgd = momentum(0.9, 0, true);
  const Results want = sgd_steps(*make_cpu_backend(1), 100001, sgd, 3);
  for (int threads : {2, 3, 7}) expect_same_bits(sgd_steps(*make_cpu_backend(threads), 100001, sgd, 3), want);
}

}  // namespace
}  // namespace linnet
