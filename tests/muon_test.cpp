// Muon on matrices against torch.optim.Muon (computed in float64), 100 steps: tests/golden/muon.json, which
// scripts/reference_optim.py writes.
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "flat_run.h"

namespace linnet {
namespace {

class MuonTest : public OpTest {};
LINNET_ON_EVERY_BACKEND(MuonTest);

TEST_P(MuonTest, FollowsPytorch) {
  std::ifstream file("tests/golden/muon.json");
  const auto golden = nlohmann::json::parse(file);
  for (const auto& c : golden["cases"]) {
    const int64_t rows = c["rows"], columns = c["columns"], n = rows * columns, small = std::min(rows, columns);
    SCOPED_TRACE(c["options"].dump());
    Muon rule;
    rule.momentum = c["options"].value("momentum", 0.95);
    rule.nesterov = c["options"].value("nesterov", true);
    rule.iterations = c["options"].value("ns_steps", 5);
    const double weight_decay = c["options"].value("weight_decay", 0.1);
    std::vector<double> w, zeros(static_cast<size_t>(n), 0.0);
    for (int64_t i = 0; i < n; ++i) w.push_back(std::cos(double(i)));
    const Flat flat = flat_of(be(), w, zeros, 1, n);
    const auto make = [&](int64_t size) {
      return tensor_of(be(), {size}, DType::f32, std::vector<double>(static_cast<size_t>(size), 0.0));
    };
    const MuonMemory memory{make(n), make(n), make(small * small), make(small * small), make(1)};
    const Tensor step = make_step(be()), sums(be().allocate(16), {2}, DType::f64);
    be().zero(sums);
    size_t shown = 0;
    for (int64_t t = 1; t <= 100; ++t) {
      std::vector<double> g;
      for (int64_t i = 0; i < n; ++i) g.push_back(std::sin(0.7 * double(i) * double(i) + 1.3 * double(t)));
      upload(be(), flat.grad, g);
      StepParams params{.step = t - 1};
      params.group[0] = group_step(rule, golden["lr"], weight_decay, t);
      write_step(be(), step, params);
      be().judge_step(step, flat.grad, nullptr, sums, {});
      be().muon(rule, flat, {0, rows, columns, true}, 0, {}, memory, step);
      if (golden["shown"][shown] != t) continue;
      const std::vector<double> want = c["w"][shown++], got = download(be(), flat.master);
      // The iteration is in float: a step's direction is off by about 1e-5, times lr, and the steps add up.
      for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-6 + 2e-6 * double(t)) << "step " << t;
    }
    EXPECT_EQ(shown, golden["shown"].size());
  }
}

}  // namespace
}  // namespace linnet
