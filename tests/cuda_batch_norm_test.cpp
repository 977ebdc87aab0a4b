// The CUDA backend's batch norm on the CPU's executor: the same functors, the same launches, without a GPU.
#include "kernels/exec_cpu.h"
#include "op_case.h"
#include "src/backend/batch_norm_with.h"

namespace linnet {
namespace {

struct Sample {
  Tensor x, residual, dy, scale, bias, mean, var, y, saved, dx, dresidual, dscale, dbias;
  Sample(Backend& be, const Shape& shape, DType dtype, double offset) {
    std::vector<double> values = random_values(shape.numel(), 1);
    for (double& v : values) v += offset;
    const auto full = [&](uint32_t stream) {
      return tensor_of(be, shape, dtype, stream == 1 ? values : random_values(shape.numel(), stream));
    };
    const Shape channels{shape[-1]};
    const auto vector = [&](uint32_t stream) {
      return tensor_of(be, channels, DType::f32, random_values(channels.numel(), stream));
    };
    x = full(1), residual = full(2), dy = full(3), y = full(4), dx = full(5), dresidual = full(6);
    scale = vector(7), bias = vector(8), mean = vector(9), dscale = vector(10), dbias = vector(11);
    std::vector<double> positive = random_values(channels.numel(), 12);
    for (double& v : positive) v = 0.5 + v * v;
    var = tensor_of(be, channels, DType::f32, positive);
    saved = tensor_of(be, {4, shape[-1]}, DType::f32, random_values(4 * shape[-1], 13));
  }
  BnState state() const { return {scale, bias, mean, var}; }
  Results results(Backend& be, bool train) const {
    Results r{{"y", download(be, y)}, {"mean", download(be, mean)}, {"var", download(be, var)}};
    if (train)
      for (const auto& [name, t] :
           {std::pair("saved", saved), {"dx", dx}, {"dresidual", dresidual}, {"dscale", dscale}, {"dbias", dbias}})
        r.push_back({name, download(be, t)});
    return r;
  }
};

Results with_functors(int threads, const Shape& shape, DType dtype, bool relu, bool residual, bool train,
                      double offset = 0) {
  const auto be = make_cpu_backend(1);
  ThreadPool pool(threads);
  const CpuExec exec{&pool};
  const Sample s(*be, shape, dtype, offset);
  const Bn bn{.relu = relu};
  // NaN in the scratch memory: a sum that nobody wrote would show.
  std::vector<double> scratch(BnScratch::bytes(bn_shape(s.x)) / sizeof(double) + 1,
                              std::numeric_limits<double>::quiet_NaN());
  const auto run = [&]<class T>(T) {
    bn_forward_with<T>(exec, scratch.data(), s.y, s.saved, s.x, residual ? &s.residual : nullptr, s.state(), bn, train);
    if (train)
      bn_backward_with<T>(exec, scratch.data(), s.dx, &s.dresidual, s.dscale, s.dbias, s.dy, s.x, s.y, s.saved, s.scale,
                          bn);
  };
  if (dtype == DType::bf16)
    run(bf16{});
  else
    run(float{});
  return s.results(*be, train);
}

Results with_reference(const Shape& shape, DType dtype, bool relu, bool residual, bool train, double offset = 0) {
  ReferenceBackend be;
  const Sample s(be, shape, dtype, offset);
  const Bn bn{.relu = relu};
  be.bn_forward(s.y, s.saved, s.x, residual ? &s.residual : nullptr, s.state(), bn, train, nullptr);
  if (train)
    be.bn_backward(s.dx, &s.dresidual, s.dscale, s.dbias, s.dy, s.x, s.y, s.saved, s.scale, bn, nullptr, nullptr);
  return s.results(be, train);
}

// Fewer rows than a segment, exactly one, one more, many; one channel, odd channels, many.
const Shape kShapes[] = {{7, 1},       {31, 5},        {32, 16},       {33, 3},          {65, 7},
                         {2, 5, 7, 3}, {17, 8, 8, 33}, {33, 9, 9, 24}, {16, 32, 32, 16}, {5, 300}};

TEST(CudaBatchNorm, AgainstReference) {
  for (const Shape& shape : kShapes)
    for (bool relu : {false, true})
      for (bool residual : {false, true})
        for (bool train : {false, true}) {
          SCOPED_TRACE(fmt::format("{} relu {} residual {} train {}", shape, relu, residual, train));
          expect_close(with_functors(2, shape, DType::f32, relu, residual, train),
                       with_reference(shape, DType::f32, relu, residual, train), kFloatTolerance);
        }
}

TEST(CudaBatchNorm, Bf16AgainstReference) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(fmt::format("{}", shape));
    expect_close(with_functors(2, shape, DType::bf16, true, true, true),
                 with_reference(shape, DType::bf16, true, true, true), kBf16Tolerance);
  }
}

TEST(CudaBatchNorm, SameBitsForAnyNumberOfThreads) {
  const Results want = with_functors(1, {33, 9, 9, 24}, DType::f32, true, true, true);
  for (int threads : {2, 3, 7})
    expect_same_bits(with_functors(threads, {33, 9, 9, 24}, DType::f32, true, true, true), want);
}

TEST(CudaBatchNorm, LargeMeansKeepTheirDigits) {
  Results got = with_functors(2, {33, 8, 8, 9}, DType::f32, false, false, true, 1000);
  Results want = with_reference({33, 8, 8, 9}, DType::f32, false, false, true, 1000);
  for (Results* r : {&got, &want}) {  // saved: the means, then 1 / deviation
    ASSERT_EQ((*r)[3].name, "saved");
    *r = {{"1 / deviation", std::vector<double>((*r)[3].v.begin() + 9, (*r)[3].v.end())}};
  }
  expect_close(got, want, 1e-6);
}

TEST(CudaBatchNorm, SumsCoverEveryRowOnce) {
  for (int64_t rows :
       {int64_t(1), int64_t(31), int64_t(32), int64_t(33), int64_t(1024), int64_t(131072), (int64_t(1) << 31) + 1}) {
    const BnShape s{rows, 16};
    EXPECT_GE(s.segments() * s.kSegment, rows);
    EXPECT_LT((s.segments() - 1) * s.kSegment, rows);
    EXPECT_GE(s.groups() * s.fan(), s.segments());
    EXPECT_LT((s.groups() - 1) * s.fan(), s.segments());
    EXPECT_LE(s.groups(), s.fan());  // both levels are short
  }
}

}  // namespace
}  // namespace linnet
