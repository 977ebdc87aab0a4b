// The checks of `linnet check`: a sound net passes each of them, and each fails on a net that deserves it.
#include "src/lab/checks.h"

#include <gtest/gtest.h>

#include <cctype>
#include <sstream>

#include "linnet/optimizer.h"
#include "tiny_run.h"

namespace linnet {
namespace {

// Two convolutions, batch norm or not, and a linear layer; one thing in it may be wrong.
enum class Fault { none, dead_relu, detached, wrong_gradient, wild_start, stale_statistics };

template <Fault fault>
struct Sample : Module {
  Sample(const Scope& s, const ModelOptions& o)
      : conv1(s / "conv1", o.channels, 8, 3, {2, 1}),
        bn1(s / "bn1", 8),
        conv2(s / "conv2", 8, 16, 3, {2, 1}),
        bn2(s / "bn2", 16),
        spare(s / "spare", Shape{4, 4, 16}, 16, true),
        linear(s / "linear", 16, o.classes) {
    if (fault == Fault::wild_start)
      for (Param* p : s.store.params())
        if (p->name == "linear.weight") p->init = constant_by_sign();
  }
  static Init constant_by_sign() {
    return [](std::span<float> values, uint64_t, uint32_t) {
      for (size_t i = 0; i < values.size(); ++i) values[i] = i % 7 < 3 ? 40.f : -30.f;
    };
  }
  static Tensor below_zero(Pass& p, const Tensor& x) {  // a ReLU that never opens
    const Tensor shift = p.pool.zeros(x.shape(), x.dtype());
    const std::vector<float> low(size_t(x.numel()), -1e4f);
    if (x.dtype() == DType::f32) p.be.upload(shift, low.data());
    return relu(p, add(p, x, shift));
  }
  // The value of x, with a gradient twice as large.
  static Tensor wrong(Pass& p, const Tensor& x) {
    if (!p.tape) return x;
    Tensor y = p.pool.empty(x.shape(), x.dtype());
    p.be.copy(y, x);
    return p.tape->track(y, {"wrong"}, [&be = p.be, &pool = p.pool, tape = p.tape, x](const Tensor& dy) {
      Tensor dx = pool.empty(dy.shape(), dy.dtype());
      be.add(dx, dy, dy);
      tape->add_grad(x, std::move(dx));
    });
  }

  Tensor forward(Pass& p, const Tensor& x) override {
    Tensor h = bn1.relu(p, conv1.forward(p, x));
    if (fault == Fault::wrong_gradient) h = wrong(p, h);
    h = conv2.forward(p, h);
    for (int i = 0; fault == Fault::stale_statistics && !p.train && i < 6; ++i) h = add(p, h, h);
    h = bn2.relu(p, h);
    if (fault == Fault::dead_relu) h = below_zero(p, h);
    h = fault == Fault::detached ? global_avg_pool(p, h) : relu(p, spare.forward(p, flatten(p, h)));
    return linear.forward(p, h);
  }
  Conv2d conv1;
  BatchNorm2d bn1;
  Conv2d conv2;
  BatchNorm2d bn2;
  Linear spare, linear;
};

template <Fault fault>
void add_sample(const std::string& name) {
  add_model({name, "for tests", {}, [](const Scope& s, const ModelOptions& o) -> std::unique_ptr<Module> {
               return std::make_unique<Sample<fault>>(s, o);
             }});
}

const CheckEntry& entry(std::string_view name) {
  for (const CheckEntry& e : checks())
    if (e.name == name) return e;
  throw std::runtime_error("no such check");
}

class Checks : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    add_sample<Fault::none>("sound");
    add_sample<Fault::dead_relu>("dead_relu");
    add_sample<Fault::detached>("detached");
    add_sample<Fault::wrong_gradient>("wrong_gradient");
    add_sample<Fault::wild_start>("wild_start");
    add_sample<Fault::stale_statistics>("stale_statistics");
  }

  Config config(const std::string& model = "sound") {
    Config c = tiny_config(model);
    c.data.samples = 1000;
    c.data.val = 0;
    c.augment.crop_pad = 1;
    c.train.precision = "f32";
    c.optimizer.weight_decay = 0;
    return c;
  }
  CheckResult run(std::string_view check, Config c, void (*change)(RunData&) = nullptr) {
    RunData data = load_run_data(c);
    for (int64_t i = 0; i < data.train.size(); ++i)  // classes that a small net sees at once: a grey stripe
      std::fill_n(data.train.pixels.begin() + i * data.train.image_bytes(), 300,
                  uint8_t(25 * data.train.labels[size_t(i)]));
    if (change) change(data);
    return entry(check).run({c, *backend_, data, {}});
  }
  void expect(CheckResult::Verdict want, std::string_view check, const Config& c, const std::string& part = "",
              void (*change)(RunData&) = nullptr) {
    const CheckResult r = run(check, c, change);
    EXPECT_EQ(r.verdict, want) << check << " of " << c.model.name << ": " << r.text << "\n" << r.picture;
    EXPECT_NE(r.text.find(part), r.text.npos) << r.text;
  }
  static constexpr auto pass = CheckResult::Verdict::pass, fail = CheckResult::Verdict::fail;
  std::unique_ptr<Backend> backend_ = make_cpu_backend(2);
};

TEST_F(Checks, ASoundNetPassesEachOfThem) {
  for (const CheckEntry& e : checks()) expect(pass, e.name, config());
}

TEST_F(Checks, EveryOptimizersDefaultPassesWhatDependsOnIt) {
  for (const OptimizerEntry& o : optimizers()) {
    Config c = config();
    c.optimizer = default_settings(o.name, "pytorch");
    for (const char* check : {"updates", "loss", "overfit"}) {
      SCOPED_TRACE(o.name);
      expect(pass, check, c);
    }
  }
}

TEST_F(Checks, ADeadReluIsNamed) {
  expect(fail, "flow", config("dead_relu"), "no gradient in conv1");
  expect(fail, "flow", config("dead_relu"), "never open in");
  expect(fail, "overfit", config("dead_relu"));
}

TEST_F(Checks, ADetachedLayerIsNamed) {
  expect(fail, "flow", config("detached"), "no gradient in spare");
  expect(fail, "updates", config("detached"), "not trained: spare");
}

TEST_F(Checks, AWrongGradientIsNamed) { expect(fail, "gradient", config("wrong_gradient"), "conv1.weight"); }

// Each fault of the loss with its own cure, and no other.
void expect_advice(const CheckResult& r, const std::string& part, const std::vector<std::string>& others) {
  EXPECT_NE(r.advice.find(part), r.advice.npos) << r.advice;
  for (const std::string& other : others) EXPECT_EQ(r.advice.find(other), r.advice.npos) << r.advice;
}

TEST_F(Checks, AFirstLossFarFromChanceIsSeen) {
  expect(fail, "loss", config("wild_start"), "far from chance");
  Config c = config("wild_start");
  c.optimizer.lr = 1e-3;
  expect_advice(run("loss", c), "smaller first weights", {"clip_norm", "multiply"});
}

TEST_F(Checks, ALearningRateOf100IsSeen) {
  Config c = config();
  c.optimizer.lr = 100;
  expect(fail, "loss", c);
  const CheckResult loss = run("loss", c);
  expect_advice(loss, "optimizer.clip_norm = 1", {"first weights", "multiply"});
  Config clipped = c;  // what is set already is no advice
  clipped.clip.norm = 1;
  clipped.schedule.warmup = 1;
  if (const CheckResult r = run("loss", clipped); r.verdict == fail && r.advice.find("it rises") != r.advice.npos)
    expect_advice(r, "a longer schedule.warmup", {"clip_norm", "schedule.warmup = 1"});
  // Rounded: no number has more than 6 digits in a row.
  for (size_t at = 0, digits = 0; at < loss.text.size(); ++at) {
    digits = std::isdigit(static_cast<unsigned char>(loss.text[at])) ? digits + 1 : 0;
    EXPECT_LE(digits, 6u) << loss.text;
  }
  expect(fail, "updates", c, "linear");
  expect(fail, "overfit", c);
}

TEST_F(Checks, ALearningRateOfNothingIsFlat) {
  Config c = config();
  c.optimizer.lr = 1e-9;
  expect(fail, "loss", c, "flat");
  expect_advice(run("loss", c), "usual for sgd are 0.001 to 0.1", {"first weights", "clip_norm"});
}

// 2.5 falls to ln 10 and stays there: that is no learning. At its own rate the loss rises at first, and is given time.
TEST_F(Checks, ARateThatOnlyUnlearnsTheFirstAnswersIsSeen) {
  const auto loss_at = [&](const std::string& lr) {
    Config c = load_config("configs/smoke.toml", {"data.samples=1400", "data.image_size=8", "optimizer.lr=" + lr});
    const RunData data = load_run_data(c);
    return entry("loss").run({c, *backend_, data, {}});
  };
  const CheckResult r = loss_at("1");
  EXPECT_EQ(r.verdict, fail) << r.text;
  EXPECT_NE(r.text.find("near the loss of guessing"), r.text.npos) << r.text;
  EXPECT_NE(r.advice.find("optimizer.lr is 1; usual for sgd are 0.001 to 0.1"), r.advice.npos) << r.advice;
  // A warmup does not hide the rate that it leads to.
  Config warm = load_config("configs/smoke.toml", {"data.samples=1400", "data.image_size=8", "optimizer.lr=1",
                                                   "schedule.warmup=20", "train.epochs=30"});
  const RunData data = load_run_data(warm);
  const CheckResult hidden = entry("loss").run({warm, *backend_, data, {}});
  EXPECT_EQ(hidden.verdict, fail) << hidden.text;
  const CheckResult own = loss_at("0.01");
  EXPECT_EQ(own.verdict, pass) << own.text;
}

TEST_F(Checks, ARateBelowAFloatsLastDigitIsNamed) {
  Config c = config();
  c.optimizer.lr = 1e-12;
  for (const char* check : {"updates", "overfit"}) {
    const CheckResult r = run(check, c);
    EXPECT_EQ(r.verdict, fail) << r.text;
    EXPECT_NE(r.advice.find("usual for sgd"), r.advice.npos) << r.advice;
  }
}

TEST_F(Checks, ShuffledLabelsTeachNothing) {
  expect(fail, "labels", config(), "teach nothing", [](RunData& data) {
    for (size_t i = 0; i < data.train.labels.size(); ++i) data.train.labels[i] = int32_t((i * 2654435761u >> 7) % 10);
  });
}

// One image in 15 shows its class: more than chance, and less than 4 sigma of it.
TEST_F(Checks, AccuraciesNearChanceAreSkipped) {
  expect(CheckResult::Verdict::skipped, "labels", config(), "too few images to tell", [](RunData& data) {
    for (size_t i = 0; i < data.train.labels.size(); ++i)
      if (i % 15 != 0) data.train.labels[i] = int32_t((i * 2654435761u >> 7) % 10);
  });
}

// Few pictures that say little of their class: 100 steps are not enough, and it is the user's first config.
TEST_F(Checks, TheSmokeTestPasses) {
  Config c =
      load_config("configs/smoke.toml", {"data.samples=1400", "data.image_size=16", "train.seed=3"});  // and faster
  const RunData data = load_run_data(c);
  const CheckResult r = entry("labels").run({c, *backend_, data, {}});
  EXPECT_EQ(r.verdict, pass) << r.text;
  EXPECT_NE(r.text.find("after 400 steps"), r.text.npos) << r.text;
}

TEST(Pictures, FitTheTerminalAndHaveColoursWhereTheyAreWanted) {
  const std::vector<std::vector<uint8_t>> images(8, std::vector<uint8_t>(32 * 32 * 3, 255));
  const auto lines_of = [&](int columns) {
    std::vector<std::string> lines;
    std::istringstream text(draw_images(images, 32, 32, {.columns = columns}, true));
    for (std::string line; std::getline(text, line);) lines.push_back(line);
    return lines;
  };
  for (const int columns : {1, 11, 28, 78, 200})
    for (const std::string& line : lines_of(columns)) EXPECT_LE(line.size(), size_t(columns));
  const std::string image(18, '@'), row = image + " " + image + " " + image + " " + image;
  const std::vector<std::string> wide = lines_of(78);
  ASSERT_EQ(wide.size(), 9u + 1 + 9);  // two rows of four
  EXPECT_EQ(wide[0], row);
  EXPECT_EQ(wide[9], "");
  EXPECT_EQ(wide[18], row);
  const Terminal utf8{.columns = 78, .utf8 = true};
  EXPECT_NE(draw_images(images, 32, 32, utf8, true).find("\x1b[38;2;255;255;255;"), std::string::npos);
  EXPECT_EQ(draw_images(images, 32, 32, utf8, false), draw_images(images, 32, 32, {.columns = 78}, true));
}

TEST_F(Checks, LogarithmicBarsSayIt) {
  for (const char* check : {"flow", "updates", "gradient"})
    EXPECT_NE(run(check, config()).picture.find("logarithmic"), std::string::npos) << check;
}

TEST_F(Checks, StatisticsThatAreNotUsedAreSeen) { expect(fail, "eval", config("stale_statistics")); }

TEST_F(Checks, DataWithFaultsIsSeen) {
  expect(fail, "data", config(), "constant images",
         [](RunData& data) { std::fill_n(data.train.pixels.begin(), 40 * data.train.image_bytes(), uint8_t(7)); });
  expect(fail, "data", config(), "of test are in train",
         [](RunData& data) { data.test = [images = data.train] { return images; }; });
  expect(fail, "data", config(), "such as image 0 of test is 0 of train; image 1 of test",
         [](RunData& data) { data.test = [images = data.train] { return images; }; });
  expect(fail, "data", config(), "no training image", [](RunData& data) {
    for (int32_t& label : data.train.labels) label = label == 3 ? 4 : label;
  });
  Config c = config();
  c.data.mean = {0, 0, 0};
  c.data.std = {0.01, 0.01, 0.01};
  expect(fail, "batch", c);
  EXPECT_NE(run("batch", c).advice.find("do not fit these images"), std::string::npos);
}

}  // namespace
}  // namespace linnet
