// linnet lr-find CONFIG
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "console.h"
#include "linnet/optimizer.h"
#include "src/core/file.h"
#include "src/lab/checks.h"
#include "src/lab/range_test.h"

namespace linnet {

namespace {

struct Options {
  std::string config, svg;
  std::vector<std::string> set, optimizers;
  std::vector<int64_t> batches;
  double from = 1e-6, to = 10;
  int64_t steps = 100, seeds = 2;
  bool json = false;
};

// The seeds of one optimizer and batch size.
struct Setting {
  std::string name;
  int64_t batch;
  std::vector<RangeTest> tests;
  std::vector<LrRange> ranges;
  Series mean;  // of the smoothed curves, where all seeds have one

  double median(double LrRange::*field) const {
    std::vector<double> v;
    for (const LrRange& r : ranges)
      if (!std::isnan(r.*field)) v.push_back(r.*field);
    if (v.empty()) return NAN;
    std::ranges::sort(v);
    return v.size() % 2 ? v[v.size() / 2] : std::sqrt(v[v.size() / 2 - 1] * v[v.size() / 2]);
  }
};

Setting run_setting(const Options& o, Config config, const RunData& data, Backend& backend) {
  Setting s{.name = fmt::format("{}, batch {}", config.optimizer.name, config.train.batch_size),
            .batch = config.train.batch_size,
            .tests = {},
            .ranges = {},
            .mean = {}};
  s.mean.name = s.name;
  const auto radius = size_t(std::max<int64_t>(2, o.steps / 30));
  std::vector<std::vector<double>> curves;
  size_t shortest = SIZE_MAX;
  for (int64_t seed = 0; seed < o.seeds; ++seed) {
    Config c = config;
    c.train.seed += seed;
    Trainer trainer(c, backend, data);
    s.tests.push_back(range_test(trainer, o.from, o.to, o.steps));
    const RangeTest& test = s.tests.back();
    curves.push_back(smoothed(test.loss, radius));
    s.ranges.push_back(lr_range(test.lr, curves.back()));
    shortest = std::min(shortest, test.lr.size());
  }
  for (size_t i = 0; i < shortest; ++i) {
    double sum = 0;
    for (const auto& curve : curves) sum += curve[i];
    s.mean.x.push_back(s.tests[0].lr[i]);
    s.mean.y.push_back(sum / double(curves.size()));
  }
  return s;
}

int lr_find(const Options& o) {
  if (!(o.from < o.to)) fail(Exit::usage, "--from {} is not below --to {}", o.from, o.to);
  if (!o.svg.empty()) require_replaceable(o.svg, kSvgBeginning, "SVG drawing");
  Config config = load_config(o.config, o.set);
  const RunData all = load_run_data(config);
  const auto backend = make_backend(config.train.device, backend_options(config));
  Config plain = at_constant_lr(plain_config(config));
  plain.train.lr_scaling = "none";  // the rates are those of the test
  plain.train.precision = name_of(precision_of(config, *backend));

  std::vector<int64_t> batches = o.batches;
  if (batches.empty()) batches = {config.train.batch_size};
  const int64_t largest = std::ranges::max(batches);
  if (largest > all.train.size())
    fail(Exit::usage, "a batch of {} is more than the {} training images", largest, all.train.size());
  const RunData data = some_of(all.train, o.steps * largest);
  std::vector<Setting> settings;
  const auto run = [&](const Config& base) {
    for (const int64_t batch : batches) {
      Config c = base;
      c.train.batch_size = batch;
      settings.push_back(run_setting(o, c, data, *backend));
      if (!o.json) tell(fmt::format("{}: done\n", settings.back().name));
    }
  };
  if (o.optimizers.empty()) run(plain);
  for (const std::string& name : o.optimizers) {
    Config c = plain;
    c.optimizer = default_settings(name, "pytorch");
    c.groups.clear();
    run(c);
  }

  Plot plot{.title = fmt::format("range test of {}: {} steps, {} seeds", config.model.name, o.steps, o.seeds),
            .x_label = "learning rate",
            .y_label = "loss, smoothed",
            .series = {},
            .marks = {},
            .log_x = true};
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  double ceiling = 0;  // beyond it a curve only says that it has diverged
  for (const Setting& s : settings)
    if (!s.mean.y.empty()) ceiling = std::max(ceiling, 1.5 * s.mean.y.front());
  for (const Setting& s : settings) {
    plot.series.push_back(s.mean);
    for (double& y : plot.series.back().y)
      if (y > ceiling) y = NAN;
    nlohmann::ordered_json seeds = nlohmann::ordered_json::array();
    for (size_t k = 0; k < s.tests.size(); ++k)
      seeds.push_back({{"lr", s.tests[k].lr},
                       {"loss", s.tests[k].loss},
                       {"diverged", s.tests[k].diverged},
                       {"from", s.ranges[k].from},
                       {"steepest", s.ranges[k].steepest},
                       {"to", s.ranges[k].to}});
    json.push_back({{"setting", s.name},
                    {"batch", s.batch},
                    {"from", s.median(&LrRange::from)},
                    {"steepest", s.median(&LrRange::steepest)},
                    {"to", s.median(&LrRange::to)},
                    {"seeds", seeds}});
  }
  if (!o.svg.empty()) write_file_atomically(o.svg, draw_svg(plot), Exit::failure);
  if (o.json) {
    fmt::print("{}\n", json.dump());
    return int(Exit::ok);
  }
  fmt::print("{}\n", draw_text(plot, stdout_terminal(), 14));
  fmt::print("{:<28}{:>12}{:>12}{:>12}  steepest, by seed\n", "", "falls from", "steepest", "until");
  for (const Setting& s : settings) {
    std::string spread;
    for (const LrRange& r : s.ranges)
      spread += (spread.empty() ? "" : " ") + (std::isnan(r.steepest) ? "-" : fmt::format("{:.2g}", r.steepest));
    if (std::isnan(s.median(&LrRange::to))) {
      fmt::print("{:<28}the loss does not fall: more --steps, or look at linnet check\n", s.name);
      continue;
    }
    fmt::print("{:<28}{:>12.2g}{:>12.2g}{:>12.2g}  {}\n", s.name, s.median(&LrRange::from),
               s.median(&LrRange::steepest), s.median(&LrRange::to), spread);
  }
  fmt::print(
      "\nA rate between `steepest` and `until` is worth a try; with a warmup, or a schedule that falls, the upper "
      "end.\n");
  return int(Exit::ok);
}

}  // namespace

void add_lr_find(CLI::App& app, Command& command) {
  auto o = std::make_shared<Options>();
  CLI::App* verb =
      app.add_subcommand("lr-find",
                         "The range test: train while the learning rate rises, and see where the loss falls.\n\n"
                         "  linnet lr-find configs/resnet20.toml\n"
                         "  linnet lr-find configs/convnet.toml --batch 16,32,64,128 --seeds 3 --svg range.svg\n"
                         "  linnet lr-find configs/convnet.toml --optimizer sgd,adam,muon");
  add_config_options(*verb, o->config, o->set);
  verb->add_option("--batch", o->batches, "batch sizes, with commas between (default: the config's)")
      ->delimiter(',')
      ->check(CLI::Range(1, 65536));
  verb->add_option("--optimizer", o->optimizers,
                   "optimizers at their defaults, with commas between (default: the config's)")
      ->delimiter(',');
  verb->add_option("--from", o->from, "first rate")->check(CLI::PositiveNumber)->capture_default_str();
  verb->add_option("--to", o->to, "last rate")->check(CLI::PositiveNumber)->capture_default_str();
  verb->add_option("--steps", o->steps, "batches of a test")->check(CLI::Range(10, 100000))->capture_default_str();
  verb->add_option("--seeds", o->seeds, "tests with other first weights and another order")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  verb->add_option("--svg", o->svg, "write the chart to this file");
  verb->add_flag("--json", o->json, "all curves and ranges as JSON on stdout");
  verb->callback([o, &command] { command = [o] { return lr_find(*o); }; });
}

}  // namespace linnet
