// Without a GPU: cuDNN makes plans for an H100 that is described to it. Shows that every convolution of the models has
// a plan that obeys Linnet's rules. It does not show that the plans run, or how fast (docs/GPU_TODO.md).
#include <gtest/gtest.h>

#include "src/backend/cuda/cudnn_ops.h"

namespace linnet {
namespace {

const char kH100[] =
    R"({"maxGridSize":[2147483647,65535,65535],"maxBlockSize":[1024,1024,64],"regsPerBlock":65536,)"
    R"("multiProcessorCount":132,"warpSize":32,"maxSharedMemoryPerBlock":49152,"maxSharedMemoryPerBlockOptin":232448,)"
    R"("reservedSharedMemoryPerBlock":1024,"maxRegistersPerSM":65536,"maxCtasPerSM":32,"maxThreadsPerBlock":1024,)"
    R"("maxThreadsPerSM":2048,"pciDeviceId":0,"isTccDriver":0,"supportCoopLaunch":1,"totalGlobalMem":85029158912,)"
    R"("smClockRateKHz":1980000,"memClockRateKHz":2619000,"l2CacheSize":52428800,"cudaDeviceId":0,"deviceVer":900,)"
    R"("driverVer":13000,"deviceName":"NVIDIA H100 80GB HBM3"})";

ConvShape shape(ConvPass pass, int64_t n, int64_t size, int64_t c, int64_t k, int64_t kernel, int64_t stride,
                int64_t pad) {
  const int64_t out = (size + 2 * pad - kernel) / stride + 1;
  return {pass, n, size, size, c, k, kernel, kernel, out, out, stride, pad};
}

constexpr ConvPass kPasses[] = {ConvPass::forward, ConvPass::backward_data, ConvPass::backward_weight};

class CudaPlans : public testing::Test {
 protected:
  void expect_plan(const ConvShape& s) {
    SCOPED_TRACE(to_string(s));
    try {
      const CudnnPlan plan = convolution_plan(s, h100_);
      for (const char* forbidden : {"tensor core", "nondeterministic", "down-converted", "reduced precision", "fft"})
        EXPECT_EQ(plan.engine().find(forbidden), std::string::npos) << plan.engine();
      EXPECT_LE(plan.workspace(), size_t(1) << 30);
      fmt::print("{}: {}, workspace {} KiB\n", to_string(s), plan.engine(), plan.workspace() >> 10);
    } catch (const Error& e) {
      ADD_FAILURE() << e.what();
    }
  }
  CudnnDevice h100_ = CudnnDevice::described_by(kH100);
};

// ResNet-20, 56 and 110 differ in depth only: the stem, three stages, two changes of stage, two projections.
TEST_F(CudaPlans, EveryConvolutionOfTheResNets) {
  for (int64_t n : {128, 1024})
    for (ConvPass pass : kPasses)
      for (const ConvShape& s : {shape(pass, n, 32, 3, 16, 3, 1, 1), shape(pass, n, 32, 16, 16, 3, 1, 1),
                                 shape(pass, n, 32, 16, 32, 3, 2, 1), shape(pass, n, 16, 32, 32, 3, 1, 1),
                                 shape(pass, n, 16, 32, 64, 3, 2, 1), shape(pass, n, 8, 64, 64, 3, 1, 1),
                                 shape(pass, n, 32, 16, 32, 1, 2, 0), shape(pass, n, 16, 32, 64, 1, 2, 0)})
        expect_plan(s);
}

// Ragged batches, odd channels, padding as wide as the kernel, a single pixel: what tests/conv_test.cpp runs.
TEST_F(CudaPlans, OddShapes) {
  for (ConvPass pass : kPasses) {
    for (int64_t n : {1, 17})
      for (int64_t c : {1, 7, 33})
        for (int64_t kernel : {1, 3, 5})
          for (int64_t stride : {1, 2}) expect_plan(shape(pass, n, 9, c, 33, kernel, stride, 2));
    expect_plan(shape(pass, 17, 3, 17, 3, 5, 1, 5));
    expect_plan(shape(pass, 2, 5, 64, 1, 2, 1, 2));
    expect_plan(shape(pass, 3, 11, 7, 3, 7, 3, 3));
    expect_plan(shape(pass, 2, 1, 1, 1, 1, 1, 0));
  }
}

TEST_F(CudaPlans, TheRulesMatter) {
  // At this shape the best offer of the heuristics is a TF32 engine; left to itself cuDNN would take it.
  const ConvShape s = shape(ConvPass::forward, 128, 32, 16, 16, 3, 1, 1);
  EXPECT_NE(convolution_plan(s, h100_, {.tensor_cores = true}).engine().find("tensor core"), std::string::npos);
  EXPECT_EQ(convolution_plan(s, h100_).engine().find("tensor core"), std::string::npos);
  const ConvShape w = shape(ConvPass::backward_weight, 128, 32, 3, 16, 3, 1, 1);
  EXPECT_NE(convolution_plan(w, h100_, {.deterministic = false}).engine().find("nondeterministic"), std::string::npos);
}

TEST_F(CudaPlans, ErrorsSayWhatWasWanted) {
  CudnnGraph graph;  // an output that is too small for its input: cuDNN refuses the operation itself
  const int x = graph.tensor({2, 3, 8, 8}), w = graph.tensor({4, 3, 3, 3}), y = graph.tensor({2, 4, 3, 3});
  try {
    graph.convolution(ConvPass::forward, x, w, y, 1, 1);
    graph.plan(h100_, {}, "a convolution that does not fit");
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.exit, Exit::device);
    EXPECT_NE(std::string(e.what()).find("cudnn"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace linnet
