// Two backends side by side, and a fault that is found in the very call that makes it. Here the CPU is the one that is
// tested and the naive oracle is trusted; `--backend check` makes the same pair of the GPU and the CPU.
#include "op_case.h"
#include "tiny_run.h"

namespace linnet {
namespace {

Config config_of(const std::string& precision) {
  return parse_config(fmt::format("model.name = 'resnet20'\ndata.name = 'synthetic'\ndata.samples = 24\ndata.val = 4\n"
                                  "data.image_size = 8\ntrain.batch_size = 4\ntrain.epochs = 1\noptimizer.lr = 0.02\n"
                                  "optimizer.momentum = 0.9\ntrain.precision = '{}'\nmodel.shortcut = 'B'\n",
                                  precision),
                      "test");
}

// The Error of some steps and an evaluation on these two; empty: there was none.
std::string difference(std::unique_ptr<Backend> tested, std::unique_ptr<Backend> trusted, const std::string& precision,
                       int steps) {
  Config config = config_of(precision);
  const RunData data = load_run_data(config);
  const auto both = make_check_backend(std::move(tested), std::move(trusted));
  Trainer trainer(config, *both, data);
  const std::string error = error_of([&] {
    for (int i = 0; i < steps; ++i) trainer.step();
    const BatchSource source = upload_source(*both, data.val, config.data.mean, config.data.std);
    trainer.net().evaluate(source, 4, data.train.classes);
    fail(Exit::failure, "none");
  });
  return error == "none" ? "" : error;
}

TEST(CheckBackend, TheCpuAgreesWithTheOracle) {
  for (const char* precision : {"f32", "bf16", "fp16"}) {
    if (precision == std::string("bf16") && !cpu_has_bf16()) continue;
    const int steps = precision == std::string("f32") ? 2 : 1;
    EXPECT_EQ(difference(make_cpu_backend(2), std::make_unique<ReferenceBackend>(), precision, steps), "") << precision;
  }
}

TEST(CheckBackend, ResultsAreThoseOfTheTestedOne) {
  Config config = config_of("f32");
  const RunData data = load_run_data(config);
  const auto alone = make_cpu_backend(2);
  const auto both = make_check_backend(make_cpu_backend(2), make_cpu_backend(1, ConvMethod::direct));
  Trainer a(config, *alone, data), b(config, *both, data);
  for (int i = 0; i < 4; ++i) a.step(), b.step();
  EXPECT_EQ(b.state_hash(), a.state_hash());
  EXPECT_EQ(both->info().back().first, "checked against");
}

// A backend with one fault each.
struct WrongAdd : ReferenceBackend {
  void scale_by(const Tensor& y, const Tensor& x, const Tensor& factor) override {
    ReferenceBackend::scale_by(y, x, factor);
    y.data<float>()[3] += 0.01f;
  }
};
struct NanInGradient : ReferenceBackend {
  bool conv_backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w, Conv conv,
                     const Tensor* plus, const InputBn* input, const OutputBn* output) override {
    const bool summed = ReferenceBackend::conv_backward(dx, dw, dy, x, w, conv, plus, input, output);
    if (conv.stride == 2) dw.data<float>()[7] = std::numeric_limits<float>::quiet_NaN();
    return summed;
  }
};
struct ForgetsRunningMean : ReferenceBackend {
  void bn_forward(const Tensor& y, const Tensor& saved, const Tensor& x, const Tensor* residual, const BnState& state,
                  Bn bn, bool train, const Tensor* moments) override {
    const std::vector<double> before = linnet::download(*this, state.mean);
    ReferenceBackend::bn_forward(y, saved, x, residual, state, bn, train, moments);
    linnet::upload(*this, state.mean, before);
  }
};
struct NoDecay : ReferenceBackend {
  void update(const Rule& rule, const Flat& flat, int segment, Clip clip, const Tensor& step) override {
    Flat wrong = flat;
    wrong.segments[0].n_decay = 0;
    clip.loss_scale = 2;
    ReferenceBackend::update(rule, wrong, segment, clip, step);
  }
};
struct BadVerdict : ReferenceBackend {
  void judge_step(const Tensor& step, const Tensor& grad, const Tensor* buffers, const Tensor& sums,
                  Clip clip) override {
    ReferenceBackend::judge_step(step, grad, buffers, sums, clip);
    StepResult result = read_step(*this, step);
    result.grad_norm *= 1.001f;
    write_result(*this, step, result);
  }
};

TEST(CheckBackend, APlantedFaultIsFoundWhereItIs) {
  const auto of = [](std::unique_ptr<Backend> faulty) {
    return difference(std::move(faulty), make_cpu_backend(2), "f32", 1);
  };
  const std::string scale = of(std::make_unique<WrongAdd>());
  EXPECT_EQ(scale.find("[check] scale_by (y [4,10] f32, x [4,10] f32, factor [1] f32): element 3 of y is "), 0u)
      << scale;
  EXPECT_NE(scale.find("they differ by 0.01"), std::string::npos) << scale;
  EXPECT_EQ(of(std::make_unique<NanInGradient>()).find("[check] conv_backward ("), 0u);
  EXPECT_NE(of(std::make_unique<NanInGradient>()).find("element 7 of dw is nan on reference"), std::string::npos);
  EXPECT_NE(of(std::make_unique<ForgetsRunningMean>()).find("of running mean"), std::string::npos);
  EXPECT_NE(of(std::make_unique<NoDecay>()).find("[check] update ("), std::string::npos);
  EXPECT_NE(of(std::make_unique<BadVerdict>()).find("of step's result"), std::string::npos);
}

}  // namespace
}  // namespace linnet
