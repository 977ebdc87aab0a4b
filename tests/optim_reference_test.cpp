// 100 steps of six weights, against what PyTorch's and Keras' own optimizers do in float64 for every option that they
// have (scripts/reference_optim.py), and of every rule in float against double.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "linnet/config.h"
#include "linnet/optim_trace.h"
#include "linnet/optimizer.h"
#include "tests/golden.h"

namespace linnet {
namespace {

using nlohmann::json;
using Doubles = std::vector<double>;

json reference(const std::string& name) { return json::parse(std::ifstream(golden("optimizers_" + name + ".json"))); }

// A case's [optimizer] keys, as the config reader takes them.
OptimizerConfig settings(const json& keys) {
  std::vector<std::string> overrides;
  for (const auto& [key, value] : keys.items())
    overrides.push_back("optimizer." + key + "=" + (value.is_string() ? value.get<std::string>() : value.dump()));
  return parse_config("", "test", overrides).optimizer;
}

Trace trace(const json& file, const OptimizerConfig& o, bool f64) {
  const auto g = file["g"].get<std::vector<Doubles>>();
  const auto factor = file["lr_factor"].get<Doubles>();
  return trace_rule(make_rule(o), file["w0"], int64_t(g.size()),
                    [&](int64_t t, const Doubles&) { return g[size_t(t - 1)]; },
                    {.lr = o.lr,
                     .weight_decay = o.weight_decay,
                     .lr_factor = [&](int64_t t) { return factor[size_t(t - 1)]; },
                     .f64 = f64});
}

// Each weight relative to the largest value that it has had.
void expect_follows(const json& file, const json& c) {
  const Trace t = trace(file, settings(c["settings"]), true);
  const auto want = c["w"].get<std::vector<Doubles>>();
  const auto shown = file["shown"].get<std::vector<size_t>>();
  ASSERT_EQ(want.size(), shown.size());
  for (size_t i = 0; i < 6; ++i) {
    double largest = std::fabs(file["w0"][i].get<double>());
    for (size_t k = 0; k < shown.size(); ++k) {
      largest = std::max(largest, std::fabs(want[k][i]));
      ASSERT_NEAR(t.w[shown[k] - 1][i], want[k][i], 1e-12 * largest)
          << c["settings"] << " weight " << i << ", step " << shown[k];
    }
  }
}

void expect_all_follow(const std::string& name, size_t cases) {
  const json file = reference(name);
  ASSERT_EQ(file["cases"].size(), cases);
  for (const json& c : file["cases"]) expect_follows(file, c);
}

TEST(OptimizerReference, EveryOptionFollowsPytorch) { expect_all_follow("torch", 86); }
TEST(OptimizerReference, EveryPresetFollowsKeras) { expect_all_follow("keras", 52); }

// Rounding adds up over 100 steps, and v - m^2 of a centered rule loses digits.
TEST(OptimizerReference, FloatFollowsDouble) {
  const json file = reference("torch");
  for (const OptimizerEntry& entry : optimizers())
    for (size_t form = 0; form < std::max<size_t>(1, entry.forms.size()); ++form)
      for (const bool option : {false, true}) {
        OptimizerConfig o = default_settings(entry.name, "pytorch");
        if (!entry.forms.empty()) o.form = entry.forms[form];
        o.amsgrad = option || o.form.starts_with("amsgrad");
        if (entry.name.starts_with("sgd")) o.momentum = 0.9;
        if (entry.name == "rmsprop") {
          o.momentum = option || o.form == "plain_momentum" ? 0.9 : 0;
          o.centered = option && o.form != "accumulate" && o.form != "corrected";
        }
        o.weight_decay = 0.01;
        const Trace f64 = trace(file, o, true), f32 = trace(file, o, false);
        for (size_t i = 0; i < 6; ++i) {
          double largest = 0;
          for (const Doubles& w : f64.w) largest = std::max(largest, std::fabs(w[i]));
          for (size_t t = 0; t < f64.w.size(); ++t)
            ASSERT_NEAR(f32.w[t][i], f64.w[t][i], (o.centered ? 1e-3 : 2e-5) * largest)
                << entry.name << " " << o.form << " weight " << i << ", step " << t + 1;
        }
      }
}

}  // namespace
}  // namespace linnet
