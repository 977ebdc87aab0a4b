// linnet lr-find CONFIG
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "console.h"
#include "linnet/error.h"
#include "linnet/optimizer.h"
#include "linnet/text.h"
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
  SeedsRange found;
};

Setting run_setting(const Options& o, const Config& config, const RunData& data, Backend& backend) {
  const double chance = std::log(double(data.train.classes));
  Setting s{.name = fmt::format("{}, batch {}", config.optimizer.name, config.train.batch_size),
            .batch = config.train.batch_size,
            .tests = range_tests(config, backend, data, o.from, o.to, o.steps, o.seeds),
            .found = {}};
  s.found = seeds_range(s.tests, smoothing_radius(o.steps), chance);
  return s;
}

nlohmann::ordered_json json_of(const LrRange& r) {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text);
  };
  return {{"from", r.from},  // NaN is null
          {"steepest", r.steepest},
          {"to", r.to},
          {"doubt", or_null(r.doubt)},
          {"cure", or_null(r.cure)}};
}

// The names between commas of all the texts, each of which must be an optimizer's: known before anything is trained.
std::vector<OptimizerConfig> optimizers_of(const std::vector<std::string>& texts) {
  std::vector<OptimizerConfig> all;
  for (const std::string& text : texts)
    for (size_t at = 0; at <= text.size();) {
      const size_t end = std::min(text.find(',', at), text.size());
      if (end == at)
        fail(Exit::usage, "--optimizer '{}': expected names with commas between, got an empty one", escaped(text));
      all.push_back(default_settings(text.substr(at, end - at), "pytorch"));
      at = end + 1;
    }
  return all;
}

// What each seed says by itself: told also where the seeds together are in doubt.
std::string by_seed(const SeedsRange& found) {
  std::string text;
  for (const LrRange& one : found.seeds)
    text += one.doubt.empty() ? fmt::format("  {:.2g} to {:.2g}", one.steepest, one.to) : "  -";
  return text;
}

void print_ranges(const std::vector<Setting>& settings) {
  fmt::print("{:<28}{:>12}{:>12}{:>12}  steepest to until, by seed\n", "", "falls from", "steepest", "until");
  std::vector<std::string> cures;
  size_t doubts = 0;
  for (const Setting& s : settings) {
    const LrRange& r = s.found.range;
    if (r.doubt.empty()) {
      fmt::print("{:<28}{:>12.2g}{:>12.2g}{:>12.2g}{}\n", s.name, r.from, r.steepest, r.to, by_seed(s.found));
      continue;
    }
    ++doubts;
    fmt::print("{:<28}{:>12}{:>12}{:>12}{}\n    {}\n", s.name, "-", "-", "-", by_seed(s.found), r.doubt);
    if (std::ranges::find(cures, r.cure) == cures.end()) cures.push_back(r.cure);
  }
  if (doubts < settings.size())
    fmt::print(
        "\nA rate between `steepest` and `until` is worth a try; with a warmup, or a schedule that falls, the upper "
        "end.\n");
  if (doubts > 0)
    fmt::print("\n{} rate follows. Try:\n", doubts < settings.size() ? "Where there is no such range, no" : "No");
  for (const std::string& cure : cures) fmt::print("    {}\n", cure);
}

int lr_find(const Options& o) {
  if (!(o.from < o.to) || !std::isfinite(o.to))
    fail(Exit::usage, "expected --from below --to, both finite, got {} and {}", o.from, o.to);
  if (!o.svg.empty()) require_replaceable(o.svg, kSvgBeginning, "SVG drawing");
  const std::vector<OptimizerConfig> optimizers = optimizers_of(o.optimizers);
  Config config = load_config(o.config, o.set);
  const RunData all = load_run_data(config);
  const auto backend = make_backend(config.train.device, backend_options(config));
  Config plain = at_constant_lr(plain_config(config));
  plain.train.lr_scaling = "none";  // the rates are those of the test
  plain.train.precision = name_of(precision_of(config, *backend));

  std::vector<int64_t> batches = o.batches;
  if (batches.empty()) batches = {config.train.batch_size};
  for (auto b = batches.begin(); b != batches.end();)  // named twice, it is one curve
    b = std::find(batches.begin(), b, *b) != b ? batches.erase(b) : b + 1;
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
  if (optimizers.empty()) run(plain);
  for (const OptimizerConfig& optimizer : optimizers) {
    Config c = plain;
    c.optimizer = optimizer;
    c.groups.clear();
    run(c);
  }

  Plot plot{.title = fmt::format("range test of {}: {}, {}", config.model.name, counted(o.steps, "step"),
                                 counted(o.seeds, "seed")),
            .x_label = "learning rate",
            .y_label = "loss, smoothed",
            .series = {},
            .marks = {},
            .log_x = true};
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  std::vector<Series> means;
  double ceiling = 0;  // beyond it a curve only says that it has diverged
  for (const Setting& s : settings) {
    means.push_back({s.name, s.found.mean.lr, smoothed(s.found.mean.loss, smoothing_radius(o.steps))});
    if (!means.back().y.empty()) ceiling = std::max(ceiling, 1.5 * means.back().y.front());
  }
  for (size_t k = 0; k < settings.size(); ++k) {
    const Setting& s = settings[k];
    plot.series.push_back(means[k]);
    for (double& y : plot.series.back().y)
      if (y > ceiling) y = NAN;
    nlohmann::ordered_json seeds = nlohmann::ordered_json::array();
    for (size_t i = 0; i < s.tests.size(); ++i) {
      seeds.push_back({{"lr", s.tests[i].lr}, {"loss", s.tests[i].loss}, {"diverged", s.tests[i].diverged}});
      seeds.back().update(json_of(s.found.seeds[i]));
    }
    json.push_back({{"setting", s.name}, {"batch", s.batch}});
    json.back().update(json_of(s.found.range));
    json.back()["seeds"] = seeds;
  }
  if (!o.svg.empty()) write_file_atomically(o.svg, draw_svg(plot), Exit::checkpoint);
  if (o.json) {
    fmt::print("{}\n", json.dump());
    return int(Exit::ok);
  }
  fmt::print("{}\n", draw_text(plot, stdout_terminal(), 14));
  print_ranges(settings);
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
                   "optimizers at their defaults, with commas between (default: the config's)");
  verb->add_option("--from", o->from, "first rate")->check(above_zero())->capture_default_str();
  verb->add_option("--to", o->to, "last rate")->check(above_zero())->capture_default_str();
  verb->add_option("--steps", o->steps, "batches of a test")->check(CLI::Range(10, 100000))->capture_default_str();
  verb->add_option("--seeds", o->seeds, "tests with other first weights and another order")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  verb->add_option("--svg", o->svg, "write the chart to this file")->check(file_name());
  verb->add_flag("--json", o->json, "all curves and ranges as JSON on stdout");
  verb->callback([o, &command] { command = [o] { return lr_find(*o); }; });
}

}  // namespace linnet
