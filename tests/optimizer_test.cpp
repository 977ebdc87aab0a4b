// The update rules: the worked examples of tests/golden/goldens.json, in double to 1e-12 and in float to 2e-6, and
// their properties; then the table of optimizers. (The flat buffers: flat_test.cpp.)
#include "linnet/optimizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/rng.h"
#include "linnet/config.h"
#include "linnet/error.h"
#include "linnet/optim_trace.h"
#include "tests/golden.h"

namespace linnet {
namespace {

using nlohmann::json;
using Doubles = std::vector<double>;
using Keys = std::vector<std::string>;  // "momentum=0.9", of [optimizer]

// What the config reader makes of [optimizer] with these keys, the name first.
OptimizerConfig settings(Keys keys) {
  for (std::string& key : keys) key = "optimizer." + key;
  return parse_config("", "test", keys).optimizer;
}

const json& goldens() {
  static const json all = json::parse(std::ifstream(golden("goldens.json")));
  return all;
}
// "s001_gd10/correct": the number or numbers at that place.
Doubles golden(const std::string& place) {
  const json& at = goldens().at(json::json_pointer("/" + place));
  return at.is_array() ? at.get<Doubles>() : Doubles{at.get<double>()};
}
double number(const std::string& place) { return golden(place).at(0); }

// Relative to the largest number of the row: an update near zero is a difference of larger ones.
void expect_close(const Doubles& got, const Doubles& want, double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double largest = 0;
  for (double x : want) largest = std::max(largest, std::fabs(x));
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], tolerance * largest) << what << ", step " << i;
}

Doubles of_first(const std::vector<Doubles>& steps) {
  Doubles row;
  for (const Doubles& step : steps) row.push_back(step[0]);
  return row;
}

// One weight on given gradients.
Trace run(const Keys& keys, double w0, const Doubles& g, double lr, bool f64 = true) {
  const OptimizerConfig o = settings(keys);
  return trace_rule(make_rule(o), {w0}, int64_t(g.size()),
                    [&](int64_t t, const Doubles&) { return Doubles{g[size_t(t - 1)]}; },
                    {.lr = lr, .weight_decay = o.weight_decay, .f64 = f64});
}
Doubles weights(const Keys& keys, double w0, const Doubles& g, double lr) { return of_first(run(keys, w0, g, lr).w); }
// Weights on a loss, given by its gradient.
Trace descend(const Keys& keys, const Doubles& w0, int64_t steps, double lr,
              const std::function<Doubles(const Doubles&)>& gradient) {
  return trace_rule(make_rule(settings(keys)), w0, steps, [&](int64_t, const Doubles& w) { return gradient(w); },
                    {.lr = lr});
}

// ---- Worked examples: one weight, given gradients ------------------------------------------------------------------

struct Example {
  Keys keys;
  double w0;
  std::string g;  // where the gradients stand
  double lr;
  std::string w;                                                // where the weights after each step stand
  std::vector<std::pair<std::string, std::string>> state = {};  // slots, and where they stand
};

const Doubles kThree = {0.2, 0.1, -0.05};

std::vector<Example> examples() {
  const std::string g3 = "s000_adam_tiny/inputs/g", g10 = "s001_gd10/inputs/g", adam1 = "s001_adam10_w1/inputs/g",
                    adam2 = "s001_adam10_w2/inputs/g", rms = "s001_rms_gd10/inputs/",
                    same = "s001_same_scenario_first3/", cat = "s001_catdog_gd6/inputs/g",
                    forms = "d_momentum_forms/correct/", adagrad = "d_adagrad_forms/correct/",
                    rmsprop = "d_rmsprop_forms/correct/", ams = "d_amsgrad_forms/", adam = "d_adam_forms/correct/",
                    effect = "s001_adam_bias_effect/";
  const Keys rms999 = {"name=rmsprop", "alpha=0.999"}, rms9 = {"name=rmsprop", "alpha=0.9"};
  const auto with = [](Keys keys, const Keys& more) {
    keys.insert(keys.end(), more.begin(), more.end());
    return keys;
  };
  const Keys sgd = {"name=sgd"}, mom = {"name=sgd", "momentum=0.9"};
  const Keys ams9 = {"name=adam", "betas=[0.9, 0.9]", "amsgrad=true"};
  return {
      // SGD and momentum
      {sgd, 0.25, "s001_sgd_b1/inputs/g", 0.1, "s001_sgd_b1/correct"},
      {sgd, 0.25, "s001_minibatch_updates/inputs/g", 0.1, "s001_minibatch_updates/correct/w"},
      {sgd, 0.5, g10, 0.1, "s001_gd10/correct"},
      {sgd, 0.25, cat, 0.1, "s001_catdog_gd6/correct"},
      {sgd, 0.5, rms + "g1", 0.001, "s001_rms_gd10/correct/w1"},
      {sgd, 0.5, rms + "g2", 0.001, "s001_rms_gd10/correct/w2"},
      {sgd, 0.5, same + "inputs/g", 0.001, same + "correct/gd"},
      {with(mom, {"form=inside"}),
       0,
       "s000_momentum_steps/inputs/g",
       0.01,
       "s000_momentum_steps/correct/theta",
       {{"v", "s000_momentum_steps/correct/v"}}},
      {with(mom, {"form=ewa"}),
       0.5,
       g10,
       0.1,
       "s001_mom10_ewa_form/correct/w",
       {{"v", "s001_mom10_ewa_form/correct/v"}}},
      {mom, 0.5, g10, 0.1, "s001_mom10_accumulate_form/correct/w", {{"v", "s001_mom10_accumulate_form/correct/v"}}},
      {mom, 0.25, cat, 0.1, "s001_catdog_momentum6/correct/w", {{"v", "s001_catdog_momentum6/correct/v"}}},
      {mom, 0, "s001_ravine_velocity/inputs/g1", 0.1, "", {{"v", "s001_ravine_velocity/correct/v1"}}},
      {mom, 0, "s001_ravine_velocity/inputs/g2", 0.1, "", {{"v", "s001_ravine_velocity/correct/v2"}}},
      {with(mom, {"form=ewa"}), 0.5, same + "inputs/g", 0.001, same + "correct/momentum_ewa"},
      {mom, 0.5, same + "inputs/g", 0.001, same + "correct/momentum_acc"},
      {with(mom, {"form=ewa_corrected"}),
       0.25,
       "s001_ewa_gradients/inputs/g",
       0.1,
       "s001_ewa_gradients/correct/w",
       {{"v", "s001_ewa_gradients/correct/v"}}},
      {with(mom, {"form=accumulate_corrected"}),
       0.5,
       g10,
       0.1,
       "s001_manual_momentum_bias_corrected/correct/w",
       {{"v", "s001_manual_momentum_bias_corrected/correct/v"}}},
      {mom, 1, g3, 0.1, forms + "accumulate/0", {{"v", forms + "accumulate/1"}}},
      {with(mom, {"form=ewa"}), 1, g3, 0.1, forms + "ewa/0", {{"v", forms + "ewa/1"}}},
      {with(mom, {"form=ewa_corrected"}), 1, g3, 0.1, forms + "ewa_corrected/0", {{"v", forms + "ewa_corrected/1"}}},
      {with(mom, {"form=inside"}), 1, g3, 0.1, forms + "inside/0", {{"v", forms + "inside/1"}}},
      {with(mom, {"dampening=0.9"}),
       1,
       g3,
       0.1,
       forms + "torch_dampening_09/0",
       {{"v", forms + "torch_dampening_09/1"}}},
      {with(mom, {"weight_decay=0.01"}), 1, g3, 0.1, "d_sgdm_l2_vs_decoupled/correct/l2_torch"},
      {{"name=sgdw", "momentum=0.9", "weight_decay=0.01"}, 1, g3, 0.1, "d_sgdm_l2_vs_decoupled/correct/decoupled_sgdw"},
      // AdaGrad
      {{"name=adagrad", "form=inside", "eps=1e-8"},
       1,
       g3,
       0.1,
       adagrad + "eps_inside_1e8/0",
       {{"G", adagrad + "eps_inside_1e8/1"}}},
      {{"name=adagrad"},
       1,
       g3,
       0.1,
       adagrad + "eps_outside_1e10_torch/0",
       {{"G", adagrad + "eps_outside_1e10_torch/1"}}},
      {{"name=adagrad", "preset=keras"},
       1,
       g3,
       0.1,
       adagrad + "keras_acc01_eps1e7_inside/0",
       {{"G", adagrad + "keras_acc01_eps1e7_inside/1"}}},
      // RMSProp
      {with(rms9, {"form=inside"}),
       0,
       "s000_rmsprop_tiny/inputs/g",
       0.1,
       "s000_rmsprop_tiny/correct/theta",
       {{"v", "s000_rmsprop_tiny/correct/v"}}},
      {with(rms999, {"form=corrected"}),
       0.5,
       rms + "g1",
       0.001,
       "s001_rms10_bias_corrected/correct/p1/w",
       {{"v", "s001_rms10_bias_corrected/correct/p1/s"}}},
      {with(rms999, {"form=corrected"}),
       0.5,
       rms + "g2",
       0.001,
       "s001_rms10_bias_corrected/correct/p2/w",
       {{"v", "s001_rms10_bias_corrected/correct/p2/s"}}},
      {rms999,
       0.5,
       rms + "g1",
       0.001,
       "s001_rms10_uncorrected/correct/p1/w",
       {{"v", "s001_rms10_uncorrected/correct/p1/s"}}},
      {rms999,
       0.5,
       rms + "g2",
       0.001,
       "s001_rms10_uncorrected/correct/p2/w",
       {{"v", "s001_rms10_uncorrected/correct/p2/s"}}},
      {with(rms999, {"form=accumulate"}),
       0.5,
       rms + "g1",
       0.001,
       "s001_rms10_no_one_minus_beta/correct/p1/w",
       {{"v", "s001_rms10_no_one_minus_beta/correct/p1/s"}}},
      {with(rms999, {"form=accumulate"}),
       0.5,
       rms + "g2",
       0.001,
       "s001_rms10_no_one_minus_beta/correct/p2/w",
       {{"v", "s001_rms10_no_one_minus_beta/correct/p2/s"}}},
      {rms999, 0.5, same + "inputs/g", 0.001, same + "correct/rmsprop"},
      {with(rms999, {"form=corrected"}), 0.5, same + "inputs/g", 0.001, same + "correct/rmsprop_bc"},
      {with(rms9, {"form=inside"}), 1, g3, 0.1, rmsprop + "eps_inside"},
      {rms9, 1, g3, 0.1, rmsprop + "eps_outside"},
      {with(rms9, {"form=corrected"}), 1, g3, 0.1, rmsprop + "corrected"},
      {with(rms9, {"centered=true"}), 1, g3, 0.1, rmsprop + "centered_outside_torch"},
      {{"name=rmsprop", "preset=keras", "centered=true"}, 1, g3, 0.1, rmsprop + "centered_inside_keras_eps1e7"},
      {with(rms9, {"momentum=0.9"}), 1, g3, 0.1, rmsprop + "momentum_torch"},
      {{"name=rmsprop", "preset=keras", "momentum=0.9"}, 1, g3, 0.1, rmsprop + "momentum_keras"},
      {with(rms9, {"momentum=0.9", "form=plain_momentum"}), 1, g3, 0.1, rmsprop + "momentum_seed001"},
      {with(rms9, {"momentum=0.9", "centered=true"}), 1, g3, 0.1, rmsprop + "centered_momentum_torch"},
      // Adam and its kin
      {{"name=adam"},
       0,
       g3,
       0.1,
       "s000_adam_tiny/correct/w",
       {{"m", "s000_adam_tiny/correct/m"}, {"v", "s000_adam_tiny/correct/v"}}},
      {{"name=adam"},
       0.5,
       adam1,
       0.001,
       "s001_adam10_w1/correct/w",
       {{"m", "s001_adam10_w1/correct/m"}, {"v", "s001_adam10_w1/correct/v"}}},
      {{"name=adam"},
       0.5,
       adam2,
       0.001,
       "s001_adam10_w2/correct/w",
       {{"m", "s001_adam10_w2/correct/m"}, {"v", "s001_adam10_w2/correct/v"}}},
      {{"name=adam"}, 0, "s001_adam_oscillation_m/inputs/g", 0.001, "", {{"m", "s001_adam_oscillation_m/correct/m"}}},
      {{"name=adam"},
       0.5,
       same + "inputs/g",
       0.001,
       same + "correct/adam",
       {{"m", same + "correct/adam_m"}, {"v", same + "correct/adam_v"}}},
      {{"name=adam"}, 0, effect + "inputs/g", 0.001, effect + "correct/corrected/w"},
      {{"name=adam", "form=uncorrected"}, 0, effect + "inputs/g", 0.001, effect + "correct/uncorrected/w"},
      {{"name=adam"}, 1, g3, 0.1, adam + "adam"},
      {{"name=adam", "preset=keras"}, 1, g3, 0.1, adam + "keras_eps1e7"},
      {{"name=adam", "form=uncorrected"}, 1, g3, 0.1, adam + "no_correction"},
      {{"name=adam", "betas=[0.9, 0.99]"}, 1, g3, 0.1, adam + "b2_099"},
      {{"name=adam", "weight_decay=0.01"}, 1, g3, 0.1, adam + "adam_l2_001"},
      {{"name=adamw"}, 1, g3, 0.1, adam + "adamw_001"},
      {{"name=adam", "amsgrad=true"}, 1, g3, 0.1, adam + "amsgrad_torch"},
      {{"name=nadam"}, 1, g3, 0.1, adam + "nadam_torch"},
      {{"name=nadam", "form=simple"}, 1, g3, 0.1, adam + "nadam_simple"},
      {{"name=adam", "betas=[0.9, 0.9]"}, 1, ams + "inputs/g", 0.1, ams + "correct/adam"},
      {ams9, 1, ams + "inputs/g", 0.1, ams + "correct/torch"},
      {with(ams9, {"form=amsgrad_paper"}), 1, ams + "inputs/g", 0.1, ams + "correct/paper"},
      {with(ams9, {"form=amsgrad_corrected"}), 1, ams + "inputs/g", 0.1, ams + "correct/maxhat"},
  };
}

void expect_example(const Example& e, bool f64) {
  const Trace t = run(e.keys, e.w0, golden(e.g), e.lr, f64);
  // v - m^2 loses digits
  const bool centered = std::ranges::find(e.keys, "centered=true") != e.keys.end();
  const double tolerance = f64 ? 1e-12 : centered ? 1e-5 : 2e-6;
  if (!e.w.empty()) expect_close(of_first(t.w), golden(e.w), tolerance, e.w);
  const auto names = slot_names(make_rule(settings(e.keys)));
  for (const auto& [slot, place] : e.state) {
    const size_t k = size_t(std::ranges::find(names, slot) - names.begin());
    ASSERT_LT(k, names.size()) << place;
    expect_close(of_first(t.state[k]), golden(place), tolerance, place);
  }
}

TEST(OptimizerGolden, WorkedExamplesInDouble) {
  for (const Example& e : examples()) expect_example(e, true);
}
TEST(OptimizerGolden, WorkedExamplesInFloat) {
  for (const Example& e : examples()) expect_example(e, false);
}

// A tiny gradient shows where each form adds eps.
TEST(OptimizerGolden, WhereEpsStands) {
  const std::vector<std::pair<std::string, Keys>> forms = {{"outside_1e8", {"name=adam"}},
                                                           {"outside_1e7_keras_default", {"name=adam", "eps=1e-7"}},
                                                           {"keras_epsilon_hat_1e7", {"name=adam", "preset=keras"}},
                                                           {"keras_epsilon_hat_1e8", {"name=adam", "form=eps_hat"}},
                                                           {"inside_1e8", {"name=adam", "form=eps_inside"}},
                                                           {"no_correction", {"name=adam", "form=uncorrected"}}};
  for (const auto& [form, keys] : forms)
    expect_close(weights(keys, 0, {1e-7}, 0.001), golden("d_adam_eps_forms/correct/" + form), 1e-12, form);
}

TEST(OptimizerGolden, RectifiedAdam) {
  const Doubles g = {0.2, 0.1, -0.05, 0.2, 0.1, -0.05, 0.2, 0.1, -0.05}, rho = golden("d_adam_forms/correct/radam_rho");
  expect_close(weights({"name=radam"}, 1, g, 0.1), golden("d_adam_forms/correct/radam_torch"), 1e-12, "radam");
  for (size_t t = 0; t < rho.size(); ++t) EXPECT_NEAR(Radam{}.rho(int64_t(t) + 1), rho[t], 1e-11) << t;
}

TEST(OptimizerGolden, LookaheadAroundSgd) {
  const Doubles want = golden("d_adam_forms/correct/lookahead_sgd_k2_a05"), g = {0.2, 0.1, -0.05, 0.2};
  const Trace t = trace_rule(make_rule(settings({"name=sgd"})), {1}, 4,
                             [&](int64_t step, const Doubles&) { return Doubles{g[size_t(step - 1)]}; },
                             {.lr = 0.1, .lookahead = {.k = 2, .alpha = 0.5}});
  expect_close(of_first(t.w), want, 1e-12, "lookahead");
}

// The learning rate inside the velocity or outside it: the same until it changes.
TEST(OptimizerGolden, AFallingLearningRate) {
  const auto at = [](const char* form) {
    const Trace t = trace_rule(make_rule(settings({"name=sgd", "momentum=0.9", form})), {1}, 6,
                               [](int64_t, const Doubles&) { return Doubles{0.2}; },
                               {.lr = 0.1, .lr_factor = [](int64_t t) { return t <= 3 ? 1 : 0.1; }});
    return of_first(t.w);
  };
  expect_close(at("form=inside"), golden("d_momentum_lr_drop/correct/inside"), 1e-12, "inside");
  expect_close(at("form=accumulate"), golden("d_momentum_lr_drop/correct/outside"), 1e-12, "outside");
}

// On the loss w^2, from 1.
TEST(OptimizerGolden, NesterovsForms) {
  const auto slope = [](const Doubles& w) { return Doubles{2 * w[0]}; };
  const Trace inside = descend({"name=nag", "form=inside"}, {1}, 5, 0.1, slope),
              outside = descend({"name=nag"}, {1}, 5, 0.1, slope),
              torch = descend({"name=sgd", "momentum=0.9", "nesterov=true"}, {1}, 4, 0.1, slope);
  const auto head = [](const std::vector<Doubles>& steps, size_t from) {
    const Doubles row = of_first(steps);
    return Doubles(row.begin() + long(from), row.begin() + long(from) + 4);
  };
  expect_close(head(inside.w, 0), golden("d_nag_forms/correct/true_inside"), 1e-12, "inside");
  expect_close(head(outside.w, 0), golden("d_nag_forms/correct/true_outside"), 1e-12, "outside");
  expect_close(of_first(torch.w), golden("d_nag_forms/correct/torch_keras"), 1e-12, "torch");
  // sgd's nesterov is nag seen from its look-ahead points.
  expect_close(head(outside.at, 1), of_first(torch.w), 1e-12, "points");
  expect_close(head(outside.at, 1), golden("d_nag_forms/correct/lookahead_points_of_true_form"), 1e-12, "points");
}

// One step from a velocity of 0.08, with the gradient 0.5 w: of plain momentum, and taken at the look-ahead point.
TEST(OptimizerGolden, NesterovFromAGivenVelocity) {
  const std::string base = "s001_nag_fixed/correct/";
  double v[2] = {0.08, 0};
  const Momentum plain{.momentum = 0.9};
  GroupStep p{.lr = 0.1, .t = 7};
  plain.factors(p);
  EXPECT_NEAR(plain(0.1, 0.05, v, 0., p), number(base + "std/w"), 1e-13);
  EXPECT_NEAR(v[0], number(base + "std/v"), 1e-13);
  v[0] = 0.08;
  const Nag nag{.momentum = 0.9};
  nag.factors(p);
  const double look = nag.shift(0.1, v, p);
  EXPECT_NEAR(look, number(base + "look"), 1e-13);
  EXPECT_NEAR(nag(look, 0.5 * look, v, 0., p), number(base + "nag/w"), 1e-13);
  EXPECT_NEAR(v[0], number(base + "nag/v"), 1e-13);
  // The text's own numbers: a velocity of -0.08 with the wrong sign, and a gradient that no minimum at 0 has.
  v[0] = -0.08;
  EXPECT_NEAR(nag.shift(0.1, v, p), number("s001_nag_literal/correct/look"), 1e-13);
  EXPECT_NEAR(nag(0.1072, -0.03, v, 0., p), number("s001_nag_literal/correct/nag_w"), 1e-13);
  EXPECT_NEAR(v[0], number("s001_nag_literal/correct/nag_v"), 1e-13);
}

TEST(OptimizerGolden, SingleSteps) {
  EXPECT_NEAR(weights({"name=sgd"}, 0.25, {0.812 / 128}, 0.1)[0], number("s001_fullbatch/correct/w"), 1e-13);
  EXPECT_NEAR(weights({"name=sgd"}, 3, {6}, 0.1)[0], number("s004_quad/correct/w"), 1e-13);
  EXPECT_NEAR(weights({"name=sgd", "weight_decay=0.0005"}, 2, {0.5}, 0.1)[0], number("s004_weight_decay/correct/l2"),
              1e-13);
  EXPECT_NEAR(weights({"name=sgdw", "weight_decay=0.0005"}, 2, {0.5}, 0.1)[0],
              number("s004_weight_decay/correct/decoupled"), 1e-13);
  const Keys rms = {"name=rmsprop", "alpha=0.9"};
  EXPECT_NEAR(weights(rms, 0.5, {0.002}, 0.1)[0], number("s001_rms_batch1_b09/correct/w1"), 1e-13);
  EXPECT_EQ(weights(rms, 0.5, {0}, 0.1)[0], number("s001_rms_batch1_b09/correct/w2"));
  const Doubles three = weights({"name=sgd", "momentum=0.9"}, 0, {1, 1, 1}, 0.1),
                moved = golden("s004_momentum_const/correct");
  EXPECT_NEAR(-three[0], moved[0], 1e-13);
  EXPECT_NEAR(three[0] - three[1], moved[1], 1e-13);
  EXPECT_NEAR(three[1] - three[2], moved[2], 1e-13);
  EXPECT_NEAR(seen(0.9, 1), number("s000_bias_factor/correct"), 1e-16);
  EXPECT_NEAR(std::pow(0.9, 10), number("s004_old_weight/correct"), 1e-15);
  const Trace adam = run({"name=adam"}, 0, {1}, 0.1);
  EXPECT_NEAR(adam.state[0][0][0], number("s004_bias_t1/correct/m"), 1e-15);
  EXPECT_NEAR(adam.state[1][0][0], number("s004_bias_t1/correct/v"), 1e-15);
}

// A 3x4 matrix under softmax and cross-entropy: one step of SGD and of Adam.
TEST(OptimizerGolden, OneStepOfALayer) {
  for (const std::string id : {"s002_numpy_example", "s002_pytorch_example"}) {
    const json& golden = goldens().at(id);
    for (const std::string name : {"sgd", "adam"})
      for (size_t r = 0; r < 3; ++r) {
        const auto row = [&](const char* what) { return golden["correct"][what][r].get<Doubles>(); };
        const Trace t = trace_rule(make_rule(settings({"name=" + name})), golden["inputs"]["W"][r].get<Doubles>(), 1,
                                   [&](int64_t, const Doubles&) { return row("grad_W"); }, {.lr = 0.1});
        expect_close(t.w[0], row(name == "sgd" ? "W_sgd" : "W_adam"), 1e-12, id + " " + name);
      }
  }
}

// ---- Worked examples: losses ---------------------------------------------------------------------------------------

Doubles ravine(const Doubles& w) { return {2 * w[0], 20 * w[1]}; }  // of w1^2 + 10 w2^2

TEST(OptimizerGolden, TheRavine) {
  const std::vector<std::tuple<std::string, Keys, double>> runs = {
      {"gd_lr01", {"name=sgd"}, 0.1},
      {"gd_lr009", {"name=sgd"}, 0.09},
      {"mom_lr001_b09", {"name=sgd", "momentum=0.9"}, 0.01},
      {"nag_lr001_b09", {"name=nag"}, 0.01},
      {"rms_lr01_b09_epsin", {"name=rmsprop", "alpha=0.9", "form=inside"}, 0.1},
      {"adam_lr01", {"name=adam"}, 0.1}};
  for (const auto& [name, keys, lr] : runs) {
    const json& want = goldens()["s004_ravine_traj"]["correct"][name];
    const Trace t = descend(keys, {4, 2}, 5, lr, ravine);
    for (size_t i = 0; i < 5; ++i) expect_close(t.w[i], want[i].get<Doubles>(), 1e-12, name);
  }
}

// Steps until the loss is below 1e-6 and stays there for 50 more.
TEST(OptimizerGolden, StepsThroughTheRavine) {
  const auto steps = [](const Keys& keys, double lr) -> json {
    const Trace t = descend(keys, {4, 2}, 1000, lr, ravine);
    int64_t below = 0;
    for (size_t i = 0; i < t.w.size(); ++i) {
      below = t.w[i][0] * t.w[i][0] + 10 * t.w[i][1] * t.w[i][1] < 1e-6 ? below + 1 : 0;
      if (below == 51) return int64_t(i) + 1 - 50;
    }
    return nullptr;
  };
  const json& want = goldens()["s004_ravine_iters"]["correct"];
  for (const auto& [name, count] : want.items()) {
    const size_t at = name.find("lr") + 2, beta = name.find("_b");
    const double lr = std::stod(name.substr(at));
    Keys keys = {name.starts_with("adam") ? "name=adam" : name.starts_with("nag") ? "name=nag" : "name=sgd"};
    if (beta != name.npos) keys.push_back("momentum=" + name.substr(beta + 2));
    EXPECT_EQ(steps(keys, lr), count) << name;
  }
}

TEST(OptimizerGolden, TheRavinesVelocity) {
  const Trace t = run({"name=sgd", "momentum=0.9"}, 0, Doubles(100, 0.01), 1);
  EXPECT_NEAR(-t.w.back()[0], number("s001_ravine_velocity/correct/w1_after_100_abs"), 1e-12);
}

TEST(OptimizerGolden, Rosenbrock) {
  const auto slope = [](const Doubles& w) {
    const double e = w[1] - w[0] * w[0];
    return Doubles{-2 * (1 - w[0]) - 400 * w[0] * e, 200 * e};
  };
  EXPECT_NEAR(slope({-1.2, 1})[0], number("s004_rosenbrock/correct/grad/0"), 1e-12);
  const std::vector<std::tuple<std::string, Keys, double>> runs = {
      {"gd_001", {"name=sgd"}, 0.001},
      {"gd_01", {"name=sgd"}, 0.01},
      {"gd_1", {"name=sgd"}, 0.1},
      {"mom_0001_b09", {"name=sgd", "momentum=0.9"}, 0.0001},
      {"mom_001_b09", {"name=sgd", "momentum=0.9"}, 0.001},
      {"nag_0005_b09", {"name=nag"}, 0.0005}};
  for (const auto& [start, from] : std::map<std::string, Doubles>{{"(-1.2,1)", {-1.2, 1}}, {"(0,0)", {0, 0}}})
    for (const auto& [name, keys, lr] : runs) {
      const json& want = goldens()["s004_rosenbrock"]["correct"]["runs"][start][name];
      const Trace t = descend(keys, from, want["steps"], lr, slope);
      if (want["diverged"].get<bool>()) {
        EXPECT_FALSE(std::fabs(t.w.back()[0]) < 1e6) << name;
      } else {
        expect_close(t.w.back(), want["w"].get<Doubles>(), 1e-9, name);
      }
    }
}

// Momentum on a parabola of curvature h / lr: the distance falls by the modulus of the largest root, or oscillates.
TEST(OptimizerGolden, TheModesOfMomentum) {
  for (const auto& [name, mode] : goldens()["d_heavyball_modes"]["correct"].items()) {
    const double beta = std::stod(name.substr(1)), h = std::stod(name.substr(name.find("_h") + 2));
    Keys keys = {"name=sgd"};
    if (beta > 0) keys.push_back(fmt::format("momentum={}", beta));
    const Doubles x = of_first(descend(keys, {1}, 4, 1, [h](const Doubles& w) { return Doubles{h * w[0]}; }).w);
    // x_(k+1) = trace x_k - product x_(k-1), with the sum and the product of the two roots.
    const bool real = mode["kind"] == "real";
    const Doubles roots = real ? mode["roots"].get<Doubles>() : Doubles{};
    const double modulus = real ? 0 : mode["modulus"].get<double>();
    const double sum = real ? roots[0] + roots[1] : 2 * modulus * std::cos(2 * M_PI / mode["period"].get<double>()),
                 product = real ? roots[0] * roots[1] : modulus * modulus;
    for (size_t k = 1; k + 1 < x.size(); ++k) EXPECT_NEAR(x[k + 1], sum * x[k] - product * x[k - 1], 1e-11) << name;
  }
}

// ---- Properties ----------------------------------------------------------------------------------------------------

Doubles noise(size_t n, uint32_t stream = 0) {
  Doubles g(n);
  for (size_t i = 0; i < n; ++i) g[i] = double(unit_float(random4(3, Draw::test, i, 0, stream).v[0])) - 0.4;
  return g;
}

TEST(OptimizerProperty, TheFirstStepInUnitsOfTheLearningRate) {
  const std::string at = "d_first_step_rule/correct/";
  const std::vector<std::pair<std::string, Keys>> rules = {{"adam", {"name=adam"}},
                                                           {"adam_uncorrected", {"name=adam", "form=uncorrected"}},
                                                           {"rmsprop_b09", {"name=rmsprop", "alpha=0.9"}},
                                                           {"rmsprop_b099", {"name=rmsprop"}},
                                                           {"rmsprop_b0999", {"name=rmsprop", "alpha=0.999"}},
                                                           {"adagrad", {"name=adagrad"}},
                                                           {"amsgrad", {"name=adam", "amsgrad=true"}},
                                                           {"nadam_simple", {"name=nadam", "form=simple"}}};
  for (const auto& [name, keys] : rules)
    for (const double g : {1e3, 1., -2., -1e3}) {
      const double step = -weights(keys, 0, {g}, 0.01)[0] / 0.01 * (g > 0 ? 1 : -1);
      EXPECT_NEAR(step, number(at + name), 1e-6 * number(at + name)) << name << " " << g;
    }
}

TEST(OptimizerProperty, AStepOfAdamIsBounded) {
  const double bound = number("s001_adam_step_bound/correct/worst_case_over_lr_inf");
  // The worst case: gradients in proportion to the weights that m gives them by those that v does, the last the
  // largest.
  for (const auto& [steps, want] : goldens()["s001_adam_step_bound"]["correct"]["worst_case_over_lr_t"].items()) {
    const size_t n = size_t(std::stoi(steps));
    Doubles g(n);
    for (size_t i = 0; i < n; ++i) g[i] = 1e3 * std::pow(0.9 / 0.999, double(n - 1 - i));
    const Doubles w = weights({"name=adam"}, 0, g, 1);
    const double last = w[n - 1] - (n > 1 ? w[n - 2] : 0);
    EXPECT_NEAR(-last, want.get<double>(), 1e-6) << n;
    EXPECT_LT(-last, bound);
  }
  // One gradient after many zeros.
  Doubles g(5000, 0);
  g.back() = 1;
  const Doubles w = weights({"name=adam"}, 0, g, 1);
  EXPECT_NEAR(-w.back(), number("s001_adam_step_bound/correct/sparse_bound_over_lr"), 0.03);
  double before = 0;
  for (const double now : weights({"name=adam"}, 0, noise(2000), 1)) {
    EXPECT_LE(std::fabs(now - before), bound);
    before = now;
  }
}

TEST(OptimizerProperty, SameOnPaper) {
  const Doubles g = noise(50);
  const auto same = [&](const Keys& a, double lr_a, const Keys& b, double lr_b) {
    expect_close(weights(a, 1, g, lr_a), weights(b, 1, g, lr_b), 1e-12, a.back() + " and " + b.back());
  };
  const Keys mom = {"name=sgd", "momentum=0.9"};
  same(mom, 0.01, {"name=sgd", "momentum=0.9", "form=ewa"}, 0.1);
  same(mom, 0.01, {"name=sgd", "momentum=0.9", "form=inside"}, 0.01);
  same({"name=sgd", "momentum=0.9", "form=accumulate_corrected"}, 0.01,
       {"name=sgd", "momentum=0.9", "form=ewa_corrected"}, 0.1);
  same({"name=sgd", "momentum=0.9", "nesterov=true"}, 0.01,
       {"name=sgd", "momentum=0.9", "nesterov=true", "form=inside"}, 0.01);
  same({"name=adamw", "weight_decay=0"}, 0.01, {"name=adam"}, 0.01);
  same({"name=adam", "amsgrad=true", "form=uncorrected"}, 0.01, {"name=adam", "amsgrad=true", "form=amsgrad_paper"},
       0.01);
  same({"name=sgd", "weight_decay=0.1"}, 0.01, {"name=sgdw", "weight_decay=0.1"}, 0.01);
  same({"name=nag"}, 0.01, {"name=nag", "form=inside"}, 0.01);
  same({"name=rmsprop", "momentum=0.9", "alpha=0.9", "form=inside", "eps=1e-7"}, 0.01,
       {"name=rmsprop", "preset=keras", "momentum=0.9"}, 0.01);
}

TEST(OptimizerProperty, NotTheSame) {
  const Doubles g = noise(50);
  const auto differ = [&](const Keys& a, const Keys& b) {
    EXPECT_GT(std::fabs(weights(a, 1, g, 0.01).back() - weights(b, 1, g, 0.01).back()), 1e-5)
        << a.back() << " and " << b.back();
  };
  differ({"name=sgd", "momentum=0.9", "weight_decay=0.1"}, {"name=sgdw", "momentum=0.9", "weight_decay=0.1"});
  differ({"name=adam", "weight_decay=0.1"}, {"name=adamw", "weight_decay=0.1"});
  differ({"name=sgd", "momentum=0.9", "dampening=0.9"}, {"name=sgd", "momentum=0.9", "form=ewa"});
  differ({"name=rmsprop", "momentum=0.9"}, {"name=rmsprop", "momentum=0.9", "form=plain_momentum"});
}

// AdamW's decay follows lr; the paper's follows what the schedule makes of it.
TEST(OptimizerProperty, ScheduledDecay) {
  OptimizerConfig o = settings({"name=adamw", "form=scheduled_decay", "weight_decay=0.01", "lr=0.1"});
  const auto shrink = [&](double factor) {
    return trace_rule(make_rule(o), {1}, 1, [](int64_t, const Doubles&) { return Doubles{0}; },
                      {.lr = 0.1, .weight_decay = 0.01, .lr_factor = [factor](int64_t) { return factor; }})
        .w[0][0];
  };
  EXPECT_NEAR(shrink(1), 1 - 0.01, 1e-15);
  EXPECT_NEAR(shrink(0.5), 1 - 0.005, 1e-15);
  o.form = "standard";
  EXPECT_NEAR(shrink(0.5), 1 - 0.05 * 0.01, 1e-15);
}

TEST(OptimizerProperty, AmsgradIsAdamWhileTheSecondMomentGrows) {
  Doubles g(60);
  for (size_t i = 0; i < g.size(); ++i) g[i] = 0.1 * double(i + 1);
  expect_close(weights({"name=adam", "amsgrad=true"}, 1, g, 0.01), weights({"name=adam"}, 1, g, 0.01), 1e-14,
               "growing");
  g.back() = 1e-3;
  g.push_back(1e-3);
  EXPECT_GT(weights({"name=adam", "amsgrad=true"}, 1, g, 0.01).back(), weights({"name=adam"}, 1, g, 0.01).back());
}

TEST(OptimizerProperty, ACenteredStepIsNoSmaller) {
  const Doubles g = noise(200);
  const Doubles plain = weights({"name=rmsprop"}, 0, g, 0.01),
                centered = weights({"name=rmsprop", "centered=true"}, 0, g, 0.01);
  for (size_t i = 1; i < g.size(); ++i)
    EXPECT_GE(std::fabs(centered[i] - centered[i - 1]), std::fabs(plain[i] - plain[i - 1]) - 1e-15) << i;
}

TEST(OptimizerProperty, ACorrectedAverageOfAConstantIsTheConstant) {
  double before = 0;
  for (const double w : weights({"name=sgd", "momentum=0.98", "form=ewa_corrected"}, 0, Doubles(100, 0.3), 1)) {
    EXPECT_NEAR(before - w, 0.3, 1e-12);
    before = w;
  }
}

// For a change of optimizer: what the first moment of a constant gradient comes to, by its formula and by running it.
TEST(OptimizerProperty, TheGainOfTheFirstMoment) {
  for (const Keys& keys : std::vector<Keys>{{"name=sgd", "momentum=0.9"},
                                            {"name=sgd", "momentum=0.9", "dampening=0.3"},
                                            {"name=sgd", "momentum=0.9", "form=ewa"},
                                            {"name=sgd", "momentum=0.9", "form=ewa_corrected"},
                                            {"name=sgd", "momentum=0.9", "form=inside"},
                                            {"name=sgd", "momentum=0.9", "form=accumulate_corrected"},
                                            {"name=nag"},
                                            {"name=nag", "form=inside"},
                                            {"name=rmsprop", "centered=true"},
                                            {"name=rmsprop", "centered=true", "momentum=0.9"},
                                            {"name=rmsprop", "momentum=0.9", "form=plain_momentum"},
                                            {"name=adam"},
                                            {"name=nadam"},
                                            {"name=radam"},
                                            {"name=lion"}}) {
    const Rule rule = make_rule(settings(keys));
    const Trace t = run(keys, 0, Doubles(7, 2.), 0.1);
    const auto [slot, gain] = std::visit(
        [](const auto& r) {
          GroupStep p{.lr = 0.1, .t = 7};
          r.factors(p);
          return std::pair(r.kFirstMoment, r.first_moment_gain(p));
        },
        rule);
    ASSERT_GE(slot, 0) << keys.back();
    EXPECT_NEAR(t.state[size_t(slot)].back()[0], 2 * gain, 1e-13) << keys.front() << " " << keys.back();
  }
}

TEST(OptimizerProperty, AZeroGradientLeavesANewWeightAlone) {
  for (const OptimizerEntry& entry : optimizers()) {
    const OptimizerConfig o = default_settings(entry.name, "pytorch");
    for (const bool f64 : {false, true}) {
      const Trace t = trace_rule(make_rule(o), {0.7, -0.7, 0}, 3,
                                 [](int64_t, const Doubles&) { return Doubles(3, 0.); }, {.lr = 0.1, .f64 = f64});
      EXPECT_EQ(t.w.back(), t.at.front()) << entry.name;
    }
  }
}

// On an old state it does not: Adam's m outlives the gradient.
TEST(OptimizerProperty, AdamMovesOnWithoutAGradient) {
  const Doubles w = weights({"name=adam"}, 0.5, golden("s001_adam10_w2/inputs/g"), 0.001);
  EXPECT_LT(w[9], w[8]);
  EXPECT_NEAR(w[9], 0.49598608, 1e-8);
}

TEST(OptimizerProperty, GradientDescentOnTheRavineSwingsForEver) {
  const Trace t = descend({"name=sgd"}, {4, 2}, 1000, 0.1, ravine);
  for (size_t i = 0; i < t.w.size(); ++i) ASSERT_NEAR(t.w[i][1], i % 2 == 0 ? -2 : 2, 1e-9);
}

TEST(OptimizerProperty, TheSignAloneMovesLion) {
  const Doubles w = weights({"name=lion"}, 1, {100, 1e-9, 0, -1e4}, 0.1);
  expect_close(w, {0.9, 0.8, 0.7, 0.8}, 1e-12, "lion");
}

TEST(OptimizerProperty, TheSignOfZeroMovesNothing) { EXPECT_EQ(weights({"name=lion"}, 1, {0}, 0.1)[0], 1); }

TEST(OptimizerProperty, LionByHand) {
  // m: 0.01 0.2, then 0.99 of it + 0.01 (-0.018); directions: 0.02 > 0, 0.9 0.002 - 0.1 0.018 = 0, 0.1 0.5 > 0.
  const Trace t = run({"name=lion", "weight_decay=0.1"}, 1, {0.2, -0.018, 0.5}, 0.1);
  expect_close(of_first(t.state[0]), {0.002, 0.0018, 0.006782}, 1e-12, "m");
  EXPECT_NEAR(t.w[0][0], 0.99 - 0.1, 1e-14);
}

// ---- By name -------------------------------------------------------------------------------------------------------

std::string refused(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.exit, Exit::usage);
    return e.what();
  }
  ADD_FAILURE() << "not refused";
  return "";
}
void expect_has(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), text.npos) << "no '" << part << "' in: " << text;
}

TEST(OptimizerTable, DefaultsArePytorchs) {
  const auto d = [](const char* name) { return default_settings(name, "pytorch"); };
  EXPECT_EQ(d("sgd").lr, 1e-3);
  EXPECT_EQ(d("sgd").momentum, 0);
  EXPECT_EQ(d("adagrad").lr, 1e-2);
  EXPECT_EQ(d("adagrad").eps, 1e-10);
  EXPECT_EQ(d("rmsprop").lr, 1e-2);
  EXPECT_EQ(d("rmsprop").alpha, 0.99);
  EXPECT_EQ(d("rmsprop").eps, 1e-8);
  EXPECT_EQ(d("adam").lr, 1e-3);
  EXPECT_EQ(d("adam").betas, (Doubles{0.9, 0.999}));
  EXPECT_EQ(d("adam").weight_decay, 0);
  EXPECT_EQ(d("adamw").weight_decay, 1e-2);
  EXPECT_EQ(d("nadam").lr, 2e-3);
  EXPECT_EQ(d("nadam").momentum_decay, 4e-3);
  EXPECT_EQ(d("radam").lr, 1e-3);
  EXPECT_EQ(d("lion").lr, 1e-4);
  EXPECT_EQ(d("lion").betas, (Doubles{0.9, 0.99}));
}

TEST(OptimizerTable, EveryFormIsMadeAndDiffersFromTheDefault) {
  const Doubles g = noise(30);
  for (const OptimizerEntry& entry : optimizers()) {
    EXPECT_FALSE(entry.summary.empty() || entry.formula.empty() || entry.notes.empty()) << entry.name;
    for (const auto& form : entry.forms) {
      if (form == entry.forms[0]) continue;
      OptimizerConfig o = default_settings(entry.name, "pytorch"), plain = o;
      o.form = form;
      o.amsgrad = plain.amsgrad = form.starts_with("amsgrad");
      if (entry.name.starts_with("sgd") || form == "plain_momentum") o.momentum = plain.momentum = 0.9;
      o.eps = plain.eps = 1e-3;
      const auto last = [&](const OptimizerConfig& c) {
        return trace_rule(make_rule(c), {1}, 30, [&](int64_t t, const Doubles&) { return Doubles{g[size_t(t - 1)]}; },
                          {.lr = 0.01, .weight_decay = 0.3, .lr_factor = [](int64_t t) { return t > 9 ? 0.5 : 1; }})
            .w.back()[0];
      };
      if (form == "paper") continue;  // RadamsThresholds
      EXPECT_NE(last(o), last(plain)) << entry.name << " " << form;
    }
  }
}

TEST(OptimizerTable, RadamsThresholds) {
  // rho at t = 5 is 4.996: above 4, below 5.
  const Doubles g(5, 0.1);
  const Doubles five = weights({"name=radam"}, 0, g, 0.1), four = weights({"name=radam", "form=paper"}, 0, g, 0.1);
  EXPECT_EQ(five[3], four[3]);
  EXPECT_GT(std::fabs(five[4] - four[4]), 1e-3);
}

TEST(OptimizerTable, WordsOfState) {
  const auto slots = [](const Keys& keys) { return slot_names(make_rule(settings(keys))); };
  using Names = std::vector<std::string>;
  EXPECT_EQ(slots({"name=sgd"}), Names{});
  EXPECT_EQ(slots({"name=sgd", "momentum=0.9"}), Names{"v"});
  EXPECT_EQ(slots({"name=nag"}), (Names{"v", "w"}));
  EXPECT_EQ(slots({"name=adagrad"}), Names{"G"});
  EXPECT_EQ(slots({"name=rmsprop"}), Names{"v"});
  EXPECT_EQ(slots({"name=rmsprop", "centered=true"}), (Names{"v", "m"}));
  EXPECT_EQ(slots({"name=rmsprop", "momentum=0.9"}), (Names{"v", "b"}));
  EXPECT_EQ(slots({"name=rmsprop", "centered=true", "momentum=0.9"}), (Names{"v", "m", "b"}));
  EXPECT_EQ(slots({"name=adam"}), (Names{"m", "v"}));
  EXPECT_EQ(slots({"name=adamw", "amsgrad=true"}), (Names{"m", "v", "vmax"}));
  EXPECT_EQ(slots({"name=lion"}), Names{"m"});
  EXPECT_EQ(slots_of(make_rule(settings({"name=adam"}))), 2);
  // 100 million parameters of 4 bytes with Adam, in MB: the state, and with weights and gradients.
  EXPECT_EQ(slots_of(make_rule(settings({"name=adam"}))) * 400, number("s001_adam_memory/correct/adam_state_MB"));
  EXPECT_EQ((slots_of(make_rule(settings({"name=adam"}))) + 2) * 400, number("s001_adam_memory/correct/with_grads_MB"));
}

TEST(OptimizerTable, SettingsThatDoNotGoTogether) {
  const std::vector<std::pair<Keys, std::string>> wrong = {
      {{"name=sgd", "nesterov=true"}, "momentum above 0"},
      {{"name=sgd", "dampening=0.5"}, "momentum above 0"},
      {{"name=sgd", "form=ewa"}, "momentum above 0"},
      {{"name=sgd", "momentum=0.9", "nesterov=true", "dampening=0.5"}, "dampening = 0"},
      {{"name=sgd", "momentum=0.9", "nesterov=true", "form=ewa_corrected"}, "no form"},
      {{"name=sgd", "momentum=0.9", "dampening=0.5", "form=ewa"}, "accumulate"},
      {{"name=nag", "momentum=0"}, "momentum above 0"},
      {{"name=rmsprop", "form=accumulate", "centered=true"}, "centered"},
      {{"name=rmsprop", "form=corrected", "centered=true"}, "centered"},
      {{"name=rmsprop", "form=plain_momentum"}, "momentum above 0"},
      {{"name=adam", "form=amsgrad_paper"}, "amsgrad = true"},
      {{"name=adam", "betas=[0.9]"}, "two numbers"},
      {{"name=adam", "betas=[0.9, 1]"}, "< 1"},
      {{"name=adam", "eps=1e-11"}, ">= 1e-10"},
      {{"name=adam", "momentum=0.9"}, "momentum"},
      {{"name=adam", "form=eps_hot"}, "did you mean 'eps_hat'?"},
      {{"name=nadam", "form=simple", "momentum_decay=0.1"}, "momentum_decay"},
      {{"name=radam", "preset=keras"}, "no Keras preset"},
      {{"name=adamm"}, "did you mean 'adam'?"}};
  for (const auto& [keys, message] : wrong) expect_has(refused([&] { settings(keys); }), message);
}

TEST(OptimizerTable, ARuleIsNotMadeOfWrongSettings) {
  OptimizerConfig o = default_settings("sgd", "pytorch");
  o.nesterov = true;
  expect_has(refused([&] { make_rule(o); }), "momentum above 0");
  o = default_settings("adam", "pytorch");
  o.form = "eps_hot";
  expect_has(refused([&] { make_rule(o); }), "did you mean 'eps_hat'?");
  o.name = "adan";
  expect_has(refused([&] { make_rule(o); }), "did you mean 'adam'?");
  expect_has(refused([] { default_settings("radam", "keras"); }), "Keras");
}

}  // namespace
}  // namespace linnet
