// What rows of metrics say of single steps: each number against the weights and the state themselves, seen from
// outside.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "linnet/dynamics.h"
#include "linnet/optimizer.h"
#include "linnet/weights.h"
#include "tiny_run.h"

namespace linnet {
namespace {

std::vector<float> values_of(Backend& backend, const Tensor& x) {
  std::vector<float> values(size_t(x.numel()));
  backend.download(values.data(), x);
  return values;
}

double norm_between(const std::vector<float>& a, const std::vector<float>& b, size_t begin, size_t end) {
  double sum = 0;
  for (size_t i = begin; i < end; ++i) sum += std::pow(double(b[i]) - double(a[i]), 2);
  return std::sqrt(sum);
}

// Weights after each step, and state and gradient of the last one.
struct Witness : Observer {
  explicit Witness(TinyRun& r) : run(r) { keep(); }
  void keep() { weights.push_back(values_of(*run.backend, run.trainer.net().params().flat().master)); }
  void on_step(int64_t, int64_t) override {
    keep();
    slots = values_of(*run.backend, run.trainer.net().params().flat().slots);
    gradient = run.trainer.gradient();
  }
  void on_row(const Row& row) override {
    if (row.kind == "layers") layers = row;
    if (row.kind == "step") steps.push_back(row);
  }
  TinyRun& run;
  std::vector<std::vector<float>> weights;
  std::vector<float> slots, gradient;
  std::vector<Row> steps;
  Row layers;
};

TEST(Dynamics, NormsAndReversalsAreThoseOfTheWeights) {
  Config config = tiny_config("convnet_nobn");
  TinyRun run(config);
  Witness seen(run);
  ASSERT_EQ(run.trainer.run({&seen}), Outcome::done);
  ASSERT_EQ(seen.steps.size(), 6u);
  const auto n = size_t(run.trainer.net().params().flat().n_trainable);
  const auto stride = std::max<size_t>(1, n / 4096);
  EXPECT_TRUE(std::isnan(seen.steps[0]["reversed_share"]));  // there was no step before
  for (size_t s = 0; s < seen.steps.size(); ++s) {
    const Row& row = seen.steps[s];
    EXPECT_NEAR(row["update_norm"], norm_between(seen.weights[s], seen.weights[s + 1], 0, n), 1e-9);
    if (s == 0) continue;
    double moved = 0, back = 0;
    for (size_t i = 0; i < n; i += stride) {
      const float was = seen.weights[s][i] - seen.weights[s - 1][i], is = seen.weights[s + 1][i] - seen.weights[s][i];
      moved += was != 0 && is != 0;
      back += was * is < 0;
    }
    EXPECT_DOUBLE_EQ(row["reversed_share"], back / moved);
  }
  double velocity = 0;
  for (const float v : seen.slots) velocity += double(v) * double(v);
  EXPECT_NEAR(seen.steps.back()["velocity_norm"], std::sqrt(velocity), 1e-6);

  const std::vector<float> zero(seen.gradient.size());
  int layers = 0;
  for (const Param* p : run.trainer.net().params().params()) {
    if (p->shape.rank() < 2) continue;
    ++layers;
    const std::string layer = p->name.substr(0, p->name.rfind('.'));
    const auto begin = size_t(p->offset), end = begin + size_t(p->shape.numel());
    EXPECT_NEAR(seen.layers["grad_norm/" + layer], norm_between(zero, seen.gradient, begin, end), 1e-6) << layer;
    EXPECT_NEAR(seen.layers["velocity_norm/" + layer], norm_between(zero, seen.slots, begin, end), 1e-6) << layer;
    EXPECT_NEAR(seen.layers["update_norm/" + layer], norm_between(seen.weights[5], seen.weights[6], begin, end), 1e-9);
    EXPECT_GT(seen.layers["update_norm/" + layer], 0) << layer;
  }
  EXPECT_EQ(layers, 4);
  EXPECT_EQ(seen.layers.values.size(), 12u);  // plain momentum has no effective rates
}

TEST(Dynamics, LookingChangesNoBit) {
  std::string hash;
  for (const int64_t interval : {1000, 1}) {
    Config config = tiny_config("convnet");
    config.optimizer = default_settings("adam", "pytorch");
    config.log.interval = interval;
    config.log.layers = interval == 1 ? 1 : 0;
    config.log.probe = interval == 1 ? "conv1.weight[0,0,0,0]" : "";
    TinyRun run(config);
    run.run();
    if (interval == 1000) hash = run.trainer.state_hash();
    EXPECT_EQ(run.trainer.state_hash(), hash);
  }
}

// Stopped anywhere, the rows are those of a run that was not: also where the step before a row is on the other side.
TEST(Dynamics, RowsDoNotDependOnAStop) {
  Config config = tiny_config("mlp");
  config.data.samples = 24 + 10 * 32;  // 10 steps an epoch
  config.log.interval = 4;
  config.log.layers = 5;
  config.train.on_nonfinite = "skip";
  TinyRun straight(config);
  straight.run();
  std::vector<int64_t> due;
  for (const Row& row : straight.rows)
    if (row.kind == "step") due.push_back(row.step);
  EXPECT_EQ(due, (std::vector<int64_t>{1, 2, 3, 4, 8, 10, 12, 16, 20}));  // how a run begins is told step by step

  for (int64_t stop = 1; stop < 12; ++stop) {
    TinyRun first(config), second(config);
    ASSERT_EQ(first.run([&] { return first.trainer.global_step() == stop; }), Outcome::interrupted);
    const std::string state = first.trainer.progress().to_json();
    const auto from = first.trainer.tensors(), to = second.trainer.tensors();
    for (size_t i = 0; i < from.size(); ++i)
      if (from[i].second.numel() > 0)
        second.backend->upload(to[i].second, values_of(*first.backend, from[i].second).data());
    second.trainer.restore(Progress::from_json(state, "test"));
    EXPECT_EQ(second.trainer.progress().to_json(), state) << stop;
    second.run();
    std::vector<Row> rows = first.rows;
    rows.insert(rows.end(), second.rows.begin(), second.rows.end());
    ASSERT_EQ(rows.size(), straight.rows.size()) << stop;
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_EQ(rows[i].values, straight.rows[i].values) << stop << " " << rows[i].kind << rows[i].step;
      EXPECT_EQ(rows[i].hash, straight.rows[i].hash);
    }
    EXPECT_EQ(second.trainer.progress().to_json(), straight.trainer.progress().to_json()) << stop;
  }
}

TEST(Dynamics, ACheckpointOfAnOlderLinnetIsRead) {
  TinyRun run(tiny_config("linear"));
  run.run([&] { return run.trainer.global_step() == 2; });
  std::string text = run.trainer.progress().to_json();
  const size_t at = text.find("\"directions\"");
  ASSERT_NE(at, text.npos);
  text = text.substr(0, text.rfind(',', at)) + "}";
  EXPECT_EQ(Progress::from_json(text, "test").step, 2);
  EXPECT_TRUE(Progress::from_json(text, "test").trace.empty());
}

TEST(Dynamics, NothingIsAllocatedInTheSteadyState) {
  Config config = tiny_config("convnet");
  config.train.epochs = 4;
  config.log.layers = 1;
  TinyRun run(config);
  struct Count : Observer {
    explicit Count(Backend& b) : backend(b) {}
    void on_step(int64_t, int64_t) override { allocations.push_back(backend.counters().allocations); }
    Backend& backend;
    std::vector<int64_t> allocations;
  } count(*run.backend);
  run.trainer.run({&count});
  ASSERT_EQ(count.allocations.size(), 12u);
  EXPECT_EQ(count.allocations[9],
            count.allocations[11]);  // the last epoch: rows of steps and of layers after each step
}

// ---- Effective learning rates ---------------------------------------------------------------------------------------

// w - w' of a step without decay is the effective rate times the average of the gradient, as far as it is corrected.
TEST(EffectiveLr, IsWhatTheAverageIsMultipliedWith) {
  const auto check = [](const char* name, std::vector<std::string> set, auto average) {
    set.push_back(std::string("optimizer.name=") + name);
    const Rule rule = make_rule(parse_config("", "", set).optimizer);
    std::visit(
        [&]<class R>(const R& r) {
          if constexpr (requires(const double* s, GroupStep p) { r.effective_lr(s, p); }) {
            double s[3] = {}, w = 0;
            for (int t = 1; t <= 8; ++t) {
              const GroupStep p = group_step(rule, 0.01, 0, t);
              const double g = std::cos(double(t)), before = w;
              w = r(w, g, s, 0.0, p);
              EXPECT_NEAR(before - w, r.effective_lr(s, p) * average(g, s, t), 1e-12) << name << t;
            }
          } else {
            ADD_FAILURE() << name << " has none";
          }
        },
        rule);
  };
  const auto corrected = [](double, const double* s, int t) { return s[0] / (1 - std::pow(0.9, t)); };
  check("adagrad", {}, [](double g, const double*, int) { return g; });
  check("rmsprop", {}, [](double g, const double*, int) { return g; });
  check("rmsprop", {"optimizer.centered=true"}, [](double g, const double*, int) { return g; });
  for (const char* form : {"standard", "eps_hat"}) check("adam", {std::string("optimizer.form=") + form}, corrected);
  check("adam", {"optimizer.form=uncorrected"}, [](double, const double* s, int) { return s[0]; });
  check("adam", {"optimizer.amsgrad=true"}, corrected);
  check("radam", {}, corrected);
}

// Of every fourth of these weights, or so: at least 16,384 are counted.
TEST(EffectiveLr, TheHistogramCountsASample) {
  Config config = tiny_config("mlp");
  config.optimizer = default_settings("adam", "pytorch");
  TinyRun run(config);
  Witness seen(run);
  run.trainer.run({&seen});
  const Flat& flat = run.trainer.net().params().flat();
  std::map<std::string, double> wanted;
  double all = 0;
  const int64_t stride = flat.n_trainable / 16384;
  ASSERT_GT(stride, 1);
  for (const Param* p : run.trainer.net().params().params())
    for (int64_t i = p->offset; i < p->offset + p->shape.numel(); ++i) {
      if (i % stride != 0) continue;
      ++all;
      const double v = double(seen.slots[size_t(flat.n + i)]) / (1 - std::pow(0.999, 6));
      const double lr = 0.001 / (std::sqrt(v) + 1e-8);
      ++wanted[fmt::format("effective_lr/1e{:+03}", int(std::floor(std::log10(lr))))];
    }
  ASSERT_GE(wanted.size(), 2u);
  double sum = 0;
  for (const auto& [name, count] : wanted) {
    EXPECT_NEAR(seen.layers[name], count / all, 2 / all) << name;
    sum += seen.layers[name];
  }
  EXPECT_NEAR(sum, 1, 1e-12);
}

// ---- One weight -----------------------------------------------------------------------------------------------------

TEST(Probe, FindsAWeightAsTheFileHasIt) {
  TinyRun run(tiny_config("convnet"));
  ParamStore& store = run.trainer.net().params();
  const std::vector<float> master = values_of(*run.backend, store.flat().master);
  const SafeTensors file = get_weights(*run.backend, store);
  const auto in_file = [&](const std::string& name, int64_t index) {
    float v;
    std::memcpy(&v, file.tensors.at(name).bytes.data() + index * 4, 4);
    return v;
  };
  const StoredTensor& conv = file.tensors.at("conv2.weight");
  const int64_t in = conv.shape[1], kernel = conv.shape[2];
  EXPECT_EQ(master[size_t(find_weight(store, "conv2.weight[3,2,1,0]").offset)],
            in_file("conv2.weight", ((3 * in + 2) * kernel + 1) * kernel + 0));
  const StoredTensor& last = file.tensors.at("linear.weight");
  EXPECT_EQ(master[size_t(find_weight(store, "linear.weight[7,77]").offset)],
            in_file("linear.weight", 7 * last.shape[1] + 77));
}

TEST(Probe, AWrongPlaceIsAnError) {
  TinyRun run(tiny_config("convnet"));
  ParamStore& store = run.trainer.net().params();
  for (const char* text : {"conv1.weight", "conv1.weight[0]", "conv1.weight[0,0,0,3]", "conv1.weight[-1,0,0,0]",
                           "conv1.weight[0,0,0,0", "conv1.weight[0,0,0,0]x", "conv1.weight[0,0,0,0,0]", "[0]", "",
                           "conv1.wieght[0,0,0,0]", "conv1.weight[,,,]", "conv1.weight[0;0,0,0]"})
    EXPECT_THROW(find_weight(store, text), Error) << text;
}

TEST(Probe, FollowsOneWeight) {
  Config config = tiny_config("linear");
  config.log.probe = "linear.weight[2,5]";
  config.optimizer = default_settings("adam", "pytorch");
  TinyRun run(config);
  Witness seen(run);
  run.trainer.run({&seen});
  const auto at = size_t(find_weight(run.trainer.net().params(), config.log.probe).offset);
  const size_t n = size_t(run.trainer.net().params().flat().n);
  const Row& row = seen.steps.back();
  EXPECT_EQ(row["probe/weight"], seen.weights.back()[at]);
  EXPECT_EQ(row["probe/gradient"], seen.gradient[at]);
  EXPECT_EQ(row["probe/velocity"], seen.slots[at]);
  EXPECT_EQ(row["probe/square"], seen.slots[n + at]);
  EXPECT_EQ(row["probe/update"], double(seen.weights[6][at]) - double(seen.weights[5][at]));
  EXPECT_NE(row["probe/update"], 0);
}

// ---- The last steps -------------------------------------------------------------------------------------------------

TEST(Trace, HoldsTheLastHundredSteps) {
  Config config = tiny_config("linear");
  config.train.epochs = 40;
  TinyRun run(config);
  run.run();
  const std::vector<StepTrace> trace = run.trainer.progress().trace;
  ASSERT_EQ(trace.size(), size_t(kTraceSteps));
  std::vector<Row> steps;
  for (const Row& row : run.rows)
    if (row.kind == "step") steps.push_back(row);
  ASSERT_EQ(steps.size(), 120u);
  for (size_t i = 0; i < trace.size(); ++i) {
    const Row& row = steps[20 + i];
    EXPECT_EQ(trace[i].step + 1, row.step);
    EXPECT_DOUBLE_EQ(trace[i].loss / 32, row["train/loss"]);
    EXPECT_EQ(double(trace[i].grad_norm), row["grad_norm"]);
    EXPECT_DOUBLE_EQ(trace[i].lr, row["lr"]);
    EXPECT_EQ(trace[i].bad, 0);
  }
}

}  // namespace
}  // namespace linnet
