// Images per second of a whole training step: augmentation from the resident bytes, forward, loss, backward, update.
//   bench_step --model resnet20 --batch 128 --seconds 10 --json
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "linnet/run.h"
#include "src/backend/backends.h"

using namespace linnet;

namespace {

struct Options {
  std::string model = "resnet20", device = "cpu";
  int64_t batch = 128;
  int threads = default_threads();
  double seconds = 10;
  bool json = false;
};

std::string info(const Backend& backend, std::string_view key) {
  for (const auto& [name, value] : backend.info())
    if (name == key) return value;
  return "";
}

int bench(const Options& o) {
  const auto backend = o.device == "cpu" ? make_cpu_backend(o.threads) : make_backend(o.device);
  Config config;
  config.model.name = o.model;
  config.train.batch_size = o.batch;
  config.data.name = "synthetic";
  config.data.val = 0;
  config.data.samples = std::max<int64_t>(2048, 8 * o.batch);
  const RunData data = load_run_data(config);
  Trainer trainer(config, *backend, data);

  // A GPU is given a group of steps between two waits, as in training.
  const int64_t group = backend->device() == Device::cuda ? 20 : 1;
  int64_t epoch = 0;
  const auto run_group_ms = [&] {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < group; ++i) {
      if (trainer.global_step() == epoch * trainer.steps_per_epoch()) trainer.start_epoch(epoch++);
      trainer.step();
    }
    backend->synchronize();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count() / double(group);
  };

  for (int i = 0; i < 3; ++i) run_group_ms();  // fills the pool and the caches of plans
  std::vector<double> ms;
  for (double spent = 0; spent < o.seconds * 1e3 || ms.size() < 3; spent += ms.back() * double(group))
    ms.push_back(run_group_ms());
  if (!std::isfinite(trainer.last_loss())) fail(Exit::diverged, "the loss is not finite: these are no training steps");

  std::ranges::sort(ms);
  const double median = ms[ms.size() / 2], least = ms.front();
  const int64_t steps = int64_t(ms.size()) * group;
  const std::string threads = info(*backend, "threads"), device = info(*backend, "device");
  if (o.json) {
    const nlohmann::ordered_json json = {{"images_per_s", double(o.batch) / median * 1e3},
                                         {"ms", median},
                                         {"ms_min", least},
                                         {"steps", steps},
                                         {"threads", threads.empty() ? 0 : std::stoi(threads)},
                                         {"device", device},
                                         {"model", o.model},
                                         {"batch", o.batch},
                                         {"precision", "f32"},
                                         {"version", version()}};
    fmt::print("{}\n", json.dump());
  } else {
    fmt::print("{} batch {}: {:.0f} images/s, {:.2f} ms a step (median of {}), {:.2f} ms at best; {} threads, {}\n",
               o.model, o.batch, double(o.batch) / median * 1e3, median, steps, least, threads.empty() ? "0" : threads,
               device);
  }
  return int(Exit::ok);
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app{"Images per second of a whole training step"};
  app.add_option("--model", o.model, "network (`linnet list models`)");
  app.add_option("--batch", o.batch, "images per step")->check(CLI::PositiveNumber);
  app.add_option("--device", o.device, "cpu, cuda or auto");
  app.add_option("--threads", o.threads, "threads on the CPU")->check(CLI::PositiveNumber);
  app.add_option("--seconds", o.seconds, "how long to measure")->check(CLI::PositiveNumber);
  app.add_flag("--json", o.json, "one JSON object on stdout");
  CLI11_PARSE(app, argc, argv);
  try {
    return bench(o);
  } catch (const Error& e) {
    fmt::print(stderr, "error: {}\n", e.what());
    return int(e.exit);
  }
}
