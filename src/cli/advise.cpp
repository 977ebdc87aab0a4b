// linnet noise CONFIG, linnet advise CONFIG
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "console.h"
#include "linnet/optimizer.h"
#include "linnet/schedule.h"
#include "linnet/text.h"
#include "linnet/warnings.h"
#include "src/lab/checks.h"
#include "src/lab/noise.h"
#include "src/lab/range_test.h"

namespace linnet {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string config;
  std::vector<std::string> set;
  std::vector<int64_t> batches = {16, 32, 64, 128};
  int64_t steps = 100, samples = 24;
  bool json = false;
};

// Of advise's range test: images of its own, so that what it says follows from the config that it is made with.
constexpr int64_t kRangeSteps = 100, kRangeSeeds = 3;

// A config, its images, and a net that can be trained for some steps.
struct Ground {
  Config config;
  RunData all, data;
  std::unique_ptr<Backend> backend;
  std::optional<Trainer> trainer;
  Config trained;        // by `trainer`
  bool own_rate = true;  // it is the config's, not one in its place
  BatchSource plain;

  explicit Ground(const Options& o) : config(load_config(o.config, o.set)), all(load_run_data(config)) {
    backend = make_backend(config.train.device, backend_options(config));
    const int64_t largest = std::ranges::max(o.batches);
    data = some_of(all.train, std::max(o.samples * largest, o.steps * config.train.batch_size));
    if (data.train.size() < 2 * largest)
      fail(Exit::usage, "{} training images are not two batches of {}: use smaller ones (--batch)", data.train.size(),
           largest);
    trained = at_first_lr(plain_config(config), all.train.size(), data.train.size());
    trained.train.precision = "f32";
    trainer.emplace(trained, *backend, data);
    plain = upload_source(*backend, data.train, config.data.mean, config.data.std);
  }
  // As training goes; Error(Exit::diverged) where it diverges.
  void train(int64_t steps) {
    if (const ShortRun run = train_steps(*trainer, steps); !run.diverged.empty())
      fail(Exit::diverged, "{}: look at it with linnet check", run.diverged);
  }
  // The same, at the middle of the usual rates where the config's own is outside of them or diverges, and then at a
  // tenth of that. How it diverged at the config's own; empty: it did not, or was not tried.
  std::string train_at_a_sound_rate(int64_t steps) {
    const UsualLr usual = usual_lr(config.optimizer);
    std::string own, last;
    if (usual.holds(config.optimizer.lr)) {
      own = train_steps(*trainer, steps).diverged;
      if (own.empty()) return "";
    }
    own_rate = false;
    trained.train.lr_scaling = "none";
    for (const double rate : {usual.middle(), usual.middle() / 10}) {
      for (GroupConfig& group : trained.groups) group.optimizer.lr *= rate / trained.optimizer.lr;
      trained.optimizer.lr = rate;
      trainer.emplace(trained, *backend, data);
      last = train_steps(*trainer, steps).diverged;
      if (last.empty()) return own;
    }
    fail(Exit::diverged, "{}, at a rate of {:.3g}: look at it with linnet check", last, trained.optimizer.lr);
  }
  std::vector<BatchNoise> measure(const Options& o) {
    std::vector<BatchNoise> all_sizes;
    for (const int64_t batch : o.batches) all_sizes.push_back(measure_noise(trainer->net(), plain, batch, o.samples));
    return all_sizes;
  }
};

Json json_of(const std::vector<BatchNoise>& sizes) {
  Json out = Json::array();
  for (const BatchNoise& n : sizes)
    out.push_back({{"batch", n.batch},
                   {"batches", n.batches},
                   {"norm", std::sqrt(std::max(0.0, n.norm2))},
                   {"deviation", std::sqrt(n.variance)},
                   {"snr", n.snr()},
                   {"noise_scale", n.noise_scale()}});
  return out;
}

void print_noise(const std::vector<BatchNoise>& sizes, const std::string& when, int64_t images) {
  fmt::print("{}\n{:>8}{:>10}{:>13}{:>13}{:>10}{:>8}{:>14}\n", when, "batch", "|mean|", "deviation", "by the law",
             "ratio", "SNR", "noise scale");
  const double sigma2 = sizes[0].variance * double(sizes[0].batch);
  for (const BatchNoise& n : sizes) {
    const double law = std::sqrt(batch_variance(sigma2, n.batch, images));
    fmt::print("{:>8}{:>10.3g}{:>13.3g}{:>13.3g}{:>10.2f}{:>8.2f}{:>14.0f}\n", n.batch,
               std::sqrt(std::max(0.0, n.norm2)), std::sqrt(n.variance), law, std::sqrt(n.variance) / law, n.snr(),
               n.noise_scale());
  }
}

int noise(const Options& o) {
  Ground ground(o);
  const auto start = ground.measure(o);
  ground.train(o.steps);
  const auto later = ground.measure(o);
  if (o.json) {
    fmt::print("{}\n", Json{{"start", json_of(start)}, {"steps", o.steps}, {"later", json_of(later)}}.dump());
    return int(Exit::ok);
  }
  print_noise(start, "before the first step", ground.data.train.size());
  print_noise(later, fmt::format("\nafter {}", counted(o.steps, "step")), ground.data.train.size());
  fmt::print(
      "\nby the law: sigma / sqrt(B), from the smallest batch. Noise scale: about the batch beyond which twice the "
      "images "
      "no longer halve the steps; it grows while training goes on. Where |mean| is lost in the noise it is "
      "infinite.\n");
  return int(Exit::ok);
}

// ---- Advice --------------------------------------------------------------------------------------------------------

// A step of more images would make the range test one of many minutes.
constexpr int64_t kMostPerStep = 1024;

// Of a step of the config: several batches, where train.accumulate says so.
int64_t images_per_step(Config c, int64_t images) {
  c.train.lr_scaling = "linear";  // by the rule of the learning rate itself, which then is what it is asked for
  c.train.lr_batch_size = 1;
  return std::llround(scaled_lr(c, 1, images));
}

// The range test of `config` at its images per step; in doubt where that would take too long.
LrRange advise_range(const Ground& ground, const Config& config) {
  const int64_t batch = config.train.batch_size, per_step = images_per_step(config, ground.all.train.size());
  if (per_step > std::max(batch, kMostPerStep))
    return {NAN, NAN, NAN, fmt::format("a step has {} images (train.accumulate), too many for a short test", per_step),
            fmt::format("linnet lr-find with --batch {}", kMostPerStep)};
  Config c = at_constant_lr(plain_config(config));
  c.train.accumulate = std::max<int64_t>(1, per_step / batch);
  c.train.lr_scaling = "none";  // the rates are those of the test
  c.train.precision = "f32";
  const RunData data = some_of(ground.all.train, kRangeSteps * per_step);
  std::vector<RangeTest> tests;
  for (int64_t k = 0; k < kRangeSeeds; ++k, ++c.train.seed) {
    tell(fmt::format("range test {} of {}: {} of {} images ...\n", k + 1, kRangeSeeds, counted(kRangeSteps, "step"),
                     per_step));
    tests.push_back(range_tests(c, *ground.backend, data, 1e-6, 10, kRangeSteps, 1)[0]);
  }
  return seeds_range(tests, smoothing_radius(kRangeSteps), std::log(double(data.train.classes))).range;
}

struct Advice {
  std::string key, now, value, reason;  // value empty: as it is
};

// The batch: near the noise scale, a power of two, what batch norm needs at least, and enough steps an epoch. Advised
// values are set in `advised`, here and below: what comes later is measured with them.
Advice advise_batch(Ground& ground, const Options& o, const std::vector<BatchNoise>& noise, Config& advised) {
  const RunFacts facts = facts_of(ground.trainer->net().params(), ground.all.train.size());
  std::vector<double> scales;
  for (const BatchNoise& n : noise) scales.push_back(n.noise_scale());
  std::ranges::sort(scales);
  const double scale = scales[scales.size() / 2];
  const double least = facts.batch_norm ? 32 : 8;
  const double most = std::clamp(double(facts.images) / 50, least, 512.0);  // 50 steps an epoch at least
  const double wish = std::pow(2, std::round(std::log2(std::clamp(scale, least, most))));
  const auto batch = int64_t(std::isfinite(wish) ? wish : most);
  const auto now = ground.config.train.batch_size;
  const int64_t per_step = images_per_step(ground.config, facts.images);
  const int64_t accumulate = std::max<int64_t>(1, per_step / now);
  const bool fits = double(per_step) > double(batch) / 3 && double(per_step) < double(batch) * 3;
  const int64_t wanted = std::max(int64_t(least), batch / accumulate);
  if (!fits) advised.train.batch_size = wanted;
  const std::string updates =
      fits || wanted == now
          ? ""
          : fmt::format("; an epoch then has {}", counted(steps_per_epoch(advised, facts.images), "update"));
  const std::string others =
      ground.own_rate ? ""
                      : fmt::format(" at a rate of {:.2g}, as the config's is not sound,", ground.trained.optimizer.lr);
  return {
      "train.batch_size", std::to_string(now), fits || wanted == now ? "" : std::to_string(wanted),
      fmt::format("the gradient's noise scale after {}{} is about {:.0f} images ({:.0f} to {:.0f} by the batch that it "
                  "is measured with){}: beyond it larger batches are less and less worth their time; a step of a "
                  "third to three times as many is left as it is{}{}",
                  counted(o.steps, "step"), others, scale, scales.front(), scales.back(),
                  accumulate > 1 ? fmt::format(", and a step has {} (train.accumulate)", per_step) : "",
                  facts.batch_norm ? "; batch norm wants 32 or more" : "", updates)};
}

// The optimizer: the specification's sources agree on no more than this (section 1.12).
Advice advise_optimizer(const Config& c, Config& advised) {
  const std::string& name = c.optimizer.name;
  const bool adaptive = name == "adam" || name == "nadam" || name == "radam";
  if (adaptive && c.optimizer.weight_decay > 0) {
    advised.optimizer = default_settings("adamw", "pytorch");
    advised.optimizer.lr = c.optimizer.lr;
    advised.optimizer.weight_decay = c.optimizer.weight_decay;
    return {"optimizer.name", name, "adamw",
            fmt::format(
                "weight decay in Adam passes through its moments: AdamW keeps it apart{}",
                c.optimizer.weight_decay < 0.005 ? ", and wants a larger optimizer.weight_decay: 0.01 is usual" : "")};
  }
  if (name == "sgd" && c.optimizer.momentum == 0) {
    advised.optimizer.momentum = 0.9;
    return {"optimizer.momentum", "0", "0.9",
            "momentum costs one more word a weight and saves most of the steps; at the same rate they are ten times as "
            "long, so the rate below is judged with it"};
  }
  if (name == "adagrad")
    return {"optimizer.name", name, "sgd or adam",
            "AdaGrad's steps shrink as 1 / sqrt t: for sparse features, not for convolutions"};
  return {"optimizer.name", name, "",
          adaptive || name == "adamw"
              ? "good for a first result; SGD with momentum, tuned and scheduled, often ends higher"
              : "a sound choice with a tuned rate and a schedule that falls"};
}

// The learning rate: one within reach of where the loss falls is left alone; no other is advised without a clear fall.
// The test's rates are those of the steps: compared with what train.lr_scaling makes of the config's. `diverged`: how
// training at the config's rate did; empty: it did not.
Advice advise_lr(const Config& c, int64_t images, const LrRange& range, const std::string& diverged) {
  const double factor = scaled_lr(c, 1, images), lr = c.optimizer.lr * factor;
  const std::string scaled = factor == 1 ? "" : fmt::format(", which train.lr_scaling makes {:.3g}", lr);
  const std::string now = fmt::format("{:g}", c.optimizer.lr);
  const std::string fell = diverged.empty() ? "" : fmt::format("training at {:g} diverged: {}; ", lr, diverged);
  if (!range.doubt.empty()) {
    const UsualLr usual = usual_lr(c.optimizer);
    const bool known = usual.holds(c.optimizer.lr);
    const double value = known ? std::min(usual.middle(), c.optimizer.lr / 10) : usual.middle();
    return {"optimizer.lr", now, known && diverged.empty() ? "" : fmt::format("{:.3g}", value),
            fmt::format("{}the range test ({} seeds) advises no rate: {}. Usual for {} are {:.4g} to {:.4g}{}. Try in "
                        "linnet lr-find: {}",
                        fell, kRangeSeeds, range.doubt, c.optimizer.name, usual.low, usual.high,
                        known ? "" : ", and the middle of these is a start", range.cure)};
  }
  const bool low = lr<range.steepest / 2, high = lr> 10 * range.to || !diverged.empty();
  const double value = range.to / factor, digit = std::pow(10, std::floor(std::log10(value)));
  return {
      "optimizer.lr", now, low || high ? fmt::format("{:.3g}", std::round(value / digit) * digit) : "",
      fmt::format("{}with {}{} and {} images a step the loss falls fastest at {:.2g} and until {:.2g} (range test, {} "
                  "seeds), and {:g}{} is {}. From half the former to ten times the latter a rate that does not "
                  "diverge is left as it is: a warmup, or a schedule that falls, bears more than the test shows",
                  fell, c.optimizer.name,
                  c.optimizer.momentum > 0 ? fmt::format(", momentum {:g}", c.optimizer.momentum) : "",
                  images_per_step(c, images), range.steepest, range.to, kRangeSeeds, c.optimizer.lr, scaled,
                  low                  ? "below half the former"
                  : lr > 10 * range.to ? "above ten times the latter"
                                       : "between half the former and ten times the latter")};
}

int run_advise(const Options& o) {
  Ground ground(o);
  const Config& c = ground.config;
  const int64_t images = ground.all.train.size();
  tell(fmt::format("{}, then the gradient's noise ...\n", counted(o.steps, "step")));
  const std::string diverged = ground.train_at_a_sound_rate(o.steps);
  const std::vector<BatchNoise> noise = ground.measure(o);
  Config advised = c;
  std::vector<Advice> all = {advise_batch(ground, o, noise, advised), advise_optimizer(c, advised)};
  const LrRange range = advise_range(ground, advised);
  all.push_back(advise_lr(advised, images, range, diverged));
  const RunFacts facts = facts_of(ground.trainer->net().params(), images);
  if (c.schedule.name == "constant")
    all.push_back({"schedule.name", "constant", "cosine", "a rate that falls to 0 ends lower than any fixed one"});
  if (facts.depth >= 50 && c.schedule.warmup == 0)
    all.push_back(
        {"schedule.warmup", "0", "1", fmt::format("{} layers: the first steps are the rough ones", facts.depth)});
  if (o.json) {
    Json out = Json::array();
    for (const Advice& a : all)
      out.push_back(
          {{"key", a.key}, {"now", a.now}, {"advised", a.value.empty() ? a.now : a.value}, {"reason", a.reason}});
    fmt::print("{}\n", Json{{"advice", out},
                            {"noise", json_of(noise)},
                            {"lr",
                             {{"from", range.from},
                              {"steepest", range.steepest},
                              {"to", range.to},
                              {"doubt", range.doubt.empty() ? Json() : Json(range.doubt)}}}}
                           .dump());
    return int(Exit::ok);
  }
  const auto width = size_t(std::clamp(stdout_terminal().columns, 24, 120) - 4);
  for (const Advice& a : all) {
    fmt::print("{}: {}\n", a.key, a.value.empty() ? a.now + ", as it is" : a.now + " -> " + a.value);
    const std::string text = wrap_words(a.reason, width);
    for (size_t at = 0; at < text.size();) {
      const size_t end = text.find('\n', at);
      fmt::print("    {}\n", text.substr(at, end - at));
      at = end + 1;
    }
  }
  return int(Exit::ok);
}

void add_options(CLI::App* verb, Options& o) {
  add_config_options(*verb, o.config, o.set);
  verb->add_option("--batch", o.batches, "batch sizes to measure at, with commas between")
      ->delimiter(',')
      ->check(CLI::Range(1, 8192));
  verb->add_option("--steps", o.steps, "steps of training before the measurement")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  verb->add_option("--samples", o.samples, "batches of each size")->check(CLI::Range(2, 10000))->capture_default_str();
  verb->add_flag("--json", o.json, "JSON on stdout");
}

}  // namespace

void add_noise(CLI::App& app, Command& command) {
  auto o = std::make_shared<Options>();
  CLI::App* verb =
      app.add_subcommand("noise",
                         "How noisy a batch's gradient is: deviation, SNR, noise scale, and the variance law.\n\n"
                         "  linnet noise configs/resnet20.toml --steps 200 --batch 16,32,64,128");
  add_options(verb, *o);
  verb->callback([o, &command] { command = [o] { return noise(*o); }; });
}

void add_advise(CLI::App& app, Command& command) {
  auto o = std::make_shared<Options>();
  CLI::App* verb =
      app.add_subcommand("advise",
                         "What to set batch size, optimizer and learning rate to, each with the reason: measured in "
                         "a minute.\n\n  linnet advise configs/convnet.toml");
  add_options(verb, *o);
  verb->callback([o, &command] { command = [o] { return run_advise(*o); }; });
}

}  // namespace linnet
