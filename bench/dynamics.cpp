// What looking at a run costs at the default intervals: a row of metrics with its norms and reversals every
// log.interval steps, the layers' norms and effective learning rates every log.layers steps, by the time of the steps
// between.
//   bench_dynamics --model resnet20 --optimizer adam --looks 50 --json
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>

#include "linnet/dynamics.h"
#include "linnet/trainer.h"

using namespace linnet;

namespace {

struct Options {
  std::string model = "resnet20", optimizer = "sgd", device = "cpu";
  int64_t batch = 128;
  int looks = 30;
  bool json = false;
};

double median_of(std::vector<double> v) {
  std::ranges::sort(v);
  return v[v.size() / 2];
}

int bench(const Options& o) {
  const auto backend = make_backend(o.device);
  Config config = parse_config(
      fmt::format("model.name = '{}'\noptimizer.name = '{}'\n{}data.name = 'synthetic'\ndata.samples = {}\n"
                  "data.val = 0\ntrain.batch_size = {}\n",
                  o.model, o.optimizer, o.optimizer == "sgd" ? "optimizer.momentum = 0.9\n" : "", 4 * o.batch, o.batch),
      "bench");
  const RunData data = load_run_data(config);
  Trainer trainer(config, *backend, data);
  Dynamics dynamics(*backend, trainer.net().params(), trainer.updater(), "");
  int64_t epoch = 0;
  std::vector<double> step, row, layers;
  const auto ms_of = [&](const std::function<void()>& work) {
    backend->synchronize();
    const auto start = std::chrono::steady_clock::now();
    work();
    backend->synchronize();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  };
  const auto one_step = [&] {
    if (trainer.global_step() == epoch * trainer.steps_per_epoch()) trainer.start_epoch(epoch++);
    step.push_back(ms_of([&] { trainer.step(); }));
  };
  for (int i = 0; i < 4; ++i) one_step();  // fill the caches
  step.clear();
  for (int i = 0; i < o.looks; ++i) {
    double copies = 0;
    for (int k = 0; k < 2; ++k) {
      copies += ms_of([&] { dynamics.before_step(trainer.global_step()); });
      one_step();
    }
    StepParams params;
    trainer.updater().fill(params, trainer.global_step() - 1, 1);
    for (const bool with_layers : {false, true})
      (with_layers ? layers : row).push_back(copies + ms_of([&] {
                                               Row out;
                                               dynamics.look(trainer.global_step(), params, trainer.gradient(),
                                                             with_layers);
                                               dynamics.add_to(out);
                                               if (with_layers) dynamics.add_layers(out);
                                             }));
  }
  const double step_ms = median_of(step), row_ms = median_of(row), layers_ms = median_of(layers);
  const auto every_row = double(config.log.interval), every_layers = double(config.log.layers);
  const double share = (row_ms / every_row + (layers_ms - row_ms) / every_layers) / step_ms;
  if (o.json)
    fmt::print("{}\n", nlohmann::ordered_json({{"model", o.model},
                                               {"optimizer", o.optimizer},
                                               {"weights", trainer.net().params().count()},
                                               {"batch", o.batch},
                                               {"looks", o.looks},
                                               {"step_ms", step_ms},
                                               {"row_ms", row_ms},
                                               {"layers_ms", layers_ms},
                                               {"share", share}})
                           .dump());
  else
    fmt::print("{} {}: a step {:.2f} ms, a row {:.2f} ms every {:.0f}, with layers {:.2f} ms every {:.0f}: {:.3f} %\n",
               o.model, o.optimizer, step_ms, row_ms, every_row, layers_ms, every_layers, 100 * share);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app{"What the norms, reversals and effective rates in a run's rows cost, as a share of the steps."};
  app.add_option("--model", o.model, "network")->capture_default_str();
  app.add_option("--optimizer", o.optimizer, "at its defaults, sgd with momentum 0.9")->capture_default_str();
  app.add_option("--device", o.device, "cpu or cuda")->capture_default_str();
  app.add_option("--batch", o.batch, "images per step")->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("--looks", o.looks, "how often it is measured")->check(CLI::Range(3, 10000))->capture_default_str();
  app.add_flag("--json", o.json, "one JSON object");
  CLI11_PARSE(app, argc, argv);
  try {
    return bench(o);
  } catch (const std::exception& e) {
    fmt::print(stderr, "error: {}\n", e.what());
    return 1;
  }
}
