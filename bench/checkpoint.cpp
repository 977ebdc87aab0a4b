// What a checkpoint costs the thread that trains (it copies the state; another thread writes it), and what the writing
// takes.
//   bench_checkpoint --model resnet20 --optimizer adam --saves 50 --json
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "linnet/run.h"
#include "src/backend/backends.h"

using namespace linnet;
namespace fs = std::filesystem;

namespace {

struct Options {
  std::string model = "resnet20", optimizer = "sgd", device = "cpu", folder = fs::temp_directory_path();
  int saves = 50;
  bool json = false;
};

double ms_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

int bench(const Options& o) {
  std::string dir = (fs::path(o.folder) / "linnet-bench-XXXXXX").string();
  if (!mkdtemp(dir.data())) fail(Exit::checkpoint, "cannot make a folder like {}", dir);
  std::vector<double> submit, write;
  uint64_t bytes = 0;
  {
    const auto backend = make_backend(o.device);
    Config config =
        parse_config(fmt::format("model.name = '{}'\noptimizer.name = '{}'\n{}"
                                 "data.name = 'synthetic'\ndata.samples = 64\ndata.val = 0\n"
                                 "train.batch_size = 32\ncheckpoint.epochs = 1e-6\n",  // after every step
                                 o.model, o.optimizer, o.optimizer == "sgd" ? "optimizer.momentum = 0.9\n" : ""),
                     "bench");
    const RunData data = load_run_data(config);
    Trainer trainer(config, *backend, data);
    RunFolder run(dir, config, *backend, data);
    RunCheckpoints checkpoints(run, trainer);
    run.begin();
    trainer.step();
    for (const auto& [name, tensor] : trainer.tensors()) bytes += tensor.bytes();
    for (int i = 0; i < o.saves; ++i) {
      submit.push_back(ms_of([&] { checkpoints.on_boundary(trainer, false); }));
      write.push_back(ms_of([&] { checkpoints.wait(); }));
    }
  }
  fs::remove_all(dir);

  std::ranges::sort(submit);
  std::ranges::sort(write);
  const size_t middle = submit.size() / 2;
  if (o.json) {
    fmt::print("{}\n", nlohmann::ordered_json({{"model", o.model},
                                               {"optimizer", o.optimizer},
                                               {"bytes", bytes},
                                               {"saves", o.saves},
                                               {"train_ms", submit[middle]},
                                               {"train_ms_min", submit.front()},
                                               {"train_ms_max", submit.back()},
                                               {"write_ms", write[middle]}})
                           .dump());
    return 0;
  }
  fmt::print("{} {}: {:.1f} MB; the training thread {:.2f} ms (min {:.2f}, max {:.2f}), the writer {:.1f} ms\n",
             o.model, o.optimizer, double(bytes) / 1e6, submit[middle], submit.front(), submit.back(), write[middle]);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app{"What a checkpoint costs the thread that trains: median, least and most of some saves."};
  app.add_option("--model", o.model)->capture_default_str();
  app.add_option("--optimizer", o.optimizer)->capture_default_str();
  app.add_option("--device", o.device)->capture_default_str();
  app.add_option("--folder", o.folder, "where to save")->capture_default_str();
  app.add_option("--saves", o.saves)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_flag("--json", o.json);
  CLI11_PARSE(app, argc, argv);
  try {
    return bench(o);
  } catch (const Error& e) {
    fmt::print(stderr, "error: {}\n", e.what());
    return int(e.exit);
  }
}
