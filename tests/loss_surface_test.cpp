// The loss around a net: directions, what is put back, and a Hessian whose largest eigenvalue is known otherwise.
#include "src/lab/loss_surface.h"

#include <gtest/gtest.h>

#include "src/lab/checks.h"
#include "tiny_run.h"

namespace linnet {
namespace {

struct SurfaceTest : testing::Test {
  explicit SurfaceTest(const char* model = "convnet") : run(settings(model)) {
    for (int i = 0; i < 3; ++i) run.trainer.step();
    source = upload_source(*run.backend, run.data.train, run.config.data.mean, run.config.data.std);
  }
  static Config settings(const char* model) {
    Config c = tiny_config(model);
    c.train.precision = "f32";
    return c;
  }
  TinyRun run;
  BatchSource source;
};
struct LinearSurface : SurfaceTest {
  LinearSurface() : SurfaceTest("linear") {}
};

TEST_F(SurfaceTest, DirectionsHaveTheFiltersLengths) {
  LossSurface surface(run.trainer.net(), source, 10, 32);
  const auto d = surface.direction(1), other = surface.direction(2);
  const auto w = on_host(*run.backend, run.trainer.net().params().flat().master);
  for (const Param* p : run.trainer.net().params().params()) {
    const auto rows = size_t(p->shape[0]), n = size_t(p->shape.numel()) / rows;
    for (size_t r = 0; r < rows; ++r) {
      const auto part = [&](const std::vector<float>& v) { return std::span(v).subspan(size_t(p->offset) + r * n, n); };
      EXPECT_NEAR(norm_of(part(d)), p->shape.rank() < 2 ? 0 : norm_of(part(w)), 1e-5) << p->name;
    }
  }
  EXPECT_NE(d, other);
}

TEST_F(SurfaceTest, WeightsAndStatisticsAreThereAgain) {
  const std::string before = run.trainer.state_hash();
  {
    LossSurface surface(run.trainer.net(), source, 10, 32);
    const double here = surface.at({}, 0);
    EXPECT_GT(surface.at(surface.direction(1), 3), here);
    surface.top_eigenvalue(2);
    EXPECT_EQ(surface.at({}, 0), here);
    EXPECT_GE(surface.rise(0.5, 3, 1).most, surface.rise(0.5, 3, 1).mean);
  }
  EXPECT_EQ(run.trainer.state_hash(), before);
}

TEST_F(LinearSurface, TheTopEigenvalueIsTheCurvatureAlongItsVector) {
  LossSurface surface(run.trainer.net(), source, 10, 64);
  std::vector<float> v;
  const LossSurface::Top top = surface.top_eigenvalue(100, &v);
  ASSERT_TRUE(top.settled);
  const auto curvature = [&](const std::vector<float>& d, double h) {
    return (surface.at(d, h) - 2 * surface.at({}, 0) + surface.at(d, -h)) / (h * h);
  };
  EXPECT_NEAR(curvature(v, 0.02), top.value, 0.07 * top.value);
  std::vector<float> d = surface.direction(3);  // no direction of length 1 bends more
  const auto length = float(norm_of(d));
  for (float& x : d) x /= length;
  EXPECT_LT(curvature(d, 0.05), top.value);
}

}  // namespace
}  // namespace linnet
