// Without a GPU: cuDNN makes plans for an H100 that is described to it. Shows that every convolution of the models has
// a plan that obeys Linnet's rules. It does not show that the plans run, or how fast (docs/GPU_TODO.md).
#include <gtest/gtest.h>

#include "src/backend/cuda/cublas_library.h"
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
  // `most` plans for a shape under a run's options, each of which obeys them.
  std::vector<CudnnPlan> expect_plans(const ConvShape& s, const BackendOptions& options = {}, size_t most = 1) {
    SCOPED_TRACE(to_string(s));
    try {
      const std::vector<CudnnPlan> plans = convolution_plans(s, h100_, rules_for(s.type, options), most);
      for (const CudnnPlan& plan : plans) {
        expect_none(plan, {"reduced precision", "fft"});
        if (options.deterministic) expect_none(plan, {"nondeterministic"});
        if (s.type == DType::f32 && !options.tf32) expect_none(plan, {"tensor core", "down-converted"});
      }
      EXPECT_LE(plans.at(0).workspace(), size_t(1) << 30);
      fmt::print("{}: {}, workspace {} KiB\n", to_string(s), plans[0].engine(), plans[0].workspace() >> 10);
      return plans;
    } catch (const Error& e) {
      ADD_FAILURE() << e.what();
      return {};
    }
  }
  static void expect_none(const CudnnPlan& plan, const std::vector<std::string>& notes) {
    for (const std::string& note : notes) EXPECT_EQ(plan.engine().find(note), std::string::npos) << plan.engine();
  }
  CudnnDevice h100_ = CudnnDevice::described_by(kH100);
};

// ResNet-20, 56 and 110 differ in depth only: the stem, three stages, two changes of stage, two projections. The first
// layer's image gets no gradient.
std::vector<ConvShape> resnet_shapes(int64_t n, ConvPass pass, DType type) {
  std::vector<ConvShape> all = {shape(pass, n, 32, 3, 16, 3, 1, 1),  shape(pass, n, 32, 16, 16, 3, 1, 1),
                                shape(pass, n, 32, 16, 32, 3, 2, 1), shape(pass, n, 16, 32, 32, 3, 1, 1),
                                shape(pass, n, 16, 32, 64, 3, 2, 1), shape(pass, n, 8, 64, 64, 3, 1, 1),
                                shape(pass, n, 32, 16, 32, 1, 2, 0), shape(pass, n, 16, 32, 64, 1, 2, 0)};
  for (ConvShape& s : all) s.type = type;
  return all;
}

class CudaPlansOf : public CudaPlans, public testing::WithParamInterface<DType> {};
INSTANTIATE_TEST_SUITE_P(Of, CudaPlansOf, testing::Values(DType::f32, DType::bf16, DType::fp16),
                         [](const auto& i) { return std::string(name_of(i.param)); });

TEST_P(CudaPlansOf, EveryConvolutionOfTheResNets) {
  for (int64_t n : {128, 1024})
    for (ConvPass pass : kPasses)
      for (const ConvShape& s : resnet_shapes(n, pass, GetParam())) expect_plans(s);
}

// An epoch's last batch, and the evaluation's.
TEST_P(CudaPlansOf, OtherBatchSizes) {
  for (int64_t n : {1, 80, 500})
    for (ConvPass pass : kPasses)
      for (const ConvShape& s : resnet_shapes(n, pass, GetParam())) expect_plans(s);
}

// What a run with autotune times: several plans, each found again by its tag, and by it alone.
TEST_P(CudaPlansOf, AChoiceIsFoundAgain) {
  for (ConvPass pass : kPasses)
    for (size_t i : {0, 1, 2}) {  // the stem, 3x3 with stride 1 and 2
      const ConvShape s = resnet_shapes(128, pass, GetParam())[i];
      SCOPED_TRACE(to_string(s));
      const CudnnRules rules = rules_for(s.type, {});
      std::map<std::string, int> tags;
      for (const CudnnPlan& plan : convolution_plans(s, h100_, rules, 8)) {
        ++tags[plan.tag()];
        const auto again = convolution_plans(s, h100_, rules, 1, plan.tag());
        ASSERT_EQ(again.size(), 1u) << plan.tag();
        EXPECT_EQ(again[0].tag(), plan.tag());
        EXPECT_EQ(again[0].engine(), plan.engine());
        EXPECT_EQ(again[0].workspace(), plan.workspace());
      }
      for (const auto& [tag, count] : tags) EXPECT_EQ(count, 1) << tag;
      EXPECT_TRUE(convolution_plans(s, h100_, rules, 1, "99999:").empty());
    }
}

// Ragged batches, odd channels, padding as wide as the kernel, a single pixel: what tests/conv_test.cpp runs.
TEST_F(CudaPlans, OddShapes) {
  for (ConvPass pass : kPasses) {
    for (int64_t n : {1, 17})
      for (int64_t c : {1, 7, 33})
        for (int64_t kernel : {1, 3, 5})
          for (int64_t stride : {1, 2}) expect_plans(shape(pass, n, 9, c, 33, kernel, stride, 2));
    expect_plans(shape(pass, 17, 3, 17, 3, 5, 1, 5));
    expect_plans(shape(pass, 2, 5, 64, 1, 2, 1, 2));
    expect_plans(shape(pass, 3, 11, 7, 3, 7, 3, 3));
    expect_plans(shape(pass, 2, 1, 1, 1, 1, 1, 0));
  }
}

TEST_F(CudaPlans, TheRulesMatter) {
  // At this shape the best offer of the heuristics is a TF32 engine; left to itself cuDNN would take it.
  const ConvShape s = shape(ConvPass::forward, 128, 32, 16, 16, 3, 1, 1);
  EXPECT_NE(expect_plans(s, {.tf32 = true}).at(0).engine().find("tensor core"), std::string::npos);
  EXPECT_EQ(expect_plans(s).at(0).engine().find("tensor core"), std::string::npos);
  const ConvShape w = shape(ConvPass::backward_weight, 128, 32, 3, 16, 3, 1, 1);
  EXPECT_NE(expect_plans(w, {.deterministic = false}).at(0).engine().find("nondeterministic"), std::string::npos);
  // There is something to choose from.
  ConvShape half = s;
  half.type = DType::bf16;
  EXPECT_GT(expect_plans(half, {}, 8).size(), 1u);
}

TEST(PlanChoices, GoThroughTextAndBelongToTheirDevice) {
  PlanChoices a{.by = "cuDNN 91900 on NVIDIA H100", .tags = {{"conv2d forward of 8 images, in bf16", "28:2=1,7=0"}}};
  a.tags["conv2d backward_data of 8 images, in f32"] = "4:";
  EXPECT_EQ(PlanChoices{.by = a.by}.text(), "");
  PlanChoices b{.by = a.by}, other{.by = "cuDNN 92000 on NVIDIA H100"};
  b.take(a.text());
  other.take(a.text());
  EXPECT_EQ(b.tags, a.tags);
  EXPECT_TRUE(other.tags.empty());
  for (const char* damaged : {"", "\n", "cuDNN 91900 on NVIDIA H100", "cuDNN 91900 on NVIDIA H100\nno-space"}) {
    PlanChoices c{.by = a.by};
    c.take(damaged);
    EXPECT_TRUE(c.tags.empty()) << damaged;
  }
}

TEST_F(CudaPlans, ErrorsSayWhatWasWanted) {
  CudnnGraph graph;  // an output that is too small for its input: cuDNN refuses the operation itself
  const auto tensor = [&](const std::array<int64_t, 4>& nchw) { return graph.tensor(nchw, DType::f32); };
  const int x = tensor({2, 3, 8, 8}), w = tensor({4, 3, 3, 3}), y = tensor({2, 4, 3, 3});
  try {
    graph.convolution(ConvPass::forward, x, w, y, 1, 1);
    graph.plans(h100_, {}, "a convolution that does not fit", 1);
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.exit, Exit::device);
    EXPECT_NE(std::string(e.what()).find("cudnn"), std::string::npos) << e.what();
  }
}

// It is no part of the program: every function is found by its name.
TEST(CublasLibrary, IsLoadedWhenItIsAskedFor) {
  EXPECT_STREQ(cublas().status_name(CUBLAS_STATUS_ALLOC_FAILED), "CUBLAS_STATUS_ALLOC_FAILED");
}

}  // namespace
}  // namespace linnet
