// Small runs for tests: synthetic 16x16 images, a few steps an epoch.
#pragma once
#include "linnet/trainer.h"
#include "src/backend/backends.h"

namespace linnet {

inline Config tiny_config(const std::string& model) {
  Config c;
  c.model.name = model;
  c.data = {.name = "synthetic", .val = 24, .samples = 120, .image_size = 16};
  c.train.epochs = 2;
  c.train.batch_size = 32;  // 96 training images: 3 steps an epoch
  c.train.eval_batch_size = 16;
  c.train.seed = 1;
  c.optimizer = {.lr = 0.05, .momentum = 0.9, .weight_decay = 1e-4};
  c.log.interval = 1;
  return c;
}

// Whether this processor has instructions for bf16. Ask before a run in bf16 is made: without AVX-512 that is an error.
inline bool cpu_has_bf16() { return make_cpu_backend(1)->best_precision() == DType::bf16; }

// A trainer together with all that it refers to.
struct TinyRun : Observer {
  explicit TinyRun(const Config& given, int threads = 2)
      : config(given),
        backend(make_cpu_backend(threads)),
        data(load_run_data(config)),
        trainer(config, *backend, data) {}
  Outcome run(const std::function<bool()>& stop = [] { return false; }) { return trainer.run({this}, stop); }
  void steps(int n) {
    for (int i = 0; i < n; ++i) trainer.step();
  }
  void on_row(const Row& row) override { rows.push_back(row); }
  const Row& last(const std::string& kind) const {
    for (auto row = rows.rbegin(); row != rows.rend(); ++row)
      if (row->kind == kind) return *row;
    fail(Exit::failure, "there is no row of kind '{}'", kind);
  }

  Config config;
  std::unique_ptr<Backend> backend;
  RunData data;
  Trainer trainer;
  std::vector<Row> rows;
};

}  // namespace linnet
