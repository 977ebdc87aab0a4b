// Training: a model, its data, its optimizer, and the loop. The trainer computes; what is shown or written is the
// business of its observers (src/cli/console.cpp, src/train/run.cpp).
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "linnet/backend.h"
#include "linnet/config.h"
#include "linnet/dataset.h"
#include "linnet/model.h"
#include "linnet/schedule.h"
#include "linnet/tape.h"

namespace linnet {

// The images of a run in host memory. The test set is read when it is asked for, once, at the end.
struct RunData {
  Images train, val;
  std::function<Images()> test;
};
// Loads what [data] asks for, and fills an empty data.mean and data.std of `config` with what is measured on the
// training split. Error(Exit::data) if there is no usable data.
RunData load_run_data(Config& config);

// A data set on a device, in the form that make_batch reads.
BatchSource upload_source(Backend&, const Images&, const std::vector<double>& mean, const std::vector<double>& std);

struct Accuracy {
  double loss = 0, acc = 0;  // means over n images; acc is a fraction
  int64_t n = 0;
  std::vector<double> per_class;  // acc of each class; NaN for a class without images
};

// A model ready to run: layers, parameters and the memory they work in.
class Net {
 public:
  // slots: words of optimizer state per parameter; decay_all: weight decay for biases and normalisation too.
  Net(Backend&, const std::string& model, const ModelOptions&, uint64_t seed, int slots = 0, bool decay_all = false);
  Tensor forward(Pass& pass, const Tensor& x) { return model_->forward(pass, x); }
  // Mean loss (no smoothing) and accuracy over all images of the source. The result does not depend on the batch size.
  Accuracy evaluate(const BatchSource&, int64_t batch_size, int classes);

  Backend& backend() { return backend_; }
  Pool& pool() { return pool_; }
  ParamStore& params() { return params_; }

 private:
  Backend& backend_;
  Pool pool_;
  ParamStore params_;
  std::unique_ptr<Module> model_;
};
ModelOptions model_options(const Config&, const Images& like);

// One row of metrics: "train/loss", "train/acc", "val/loss", "val/acc", "lr", "grad_norm", "test/acc", ..., in a fixed
// order.
struct Row {
  std::string kind;             // "step", "epoch" or "test"
  int64_t epoch = 0, step = 0;  // epochs and steps done so far
  std::vector<std::pair<std::string, double>> values;
  std::string hash;                                // of the whole state, at the end of an epoch
  double img_per_s = 0;                            // kept apart: it differs from run to run
  double operator[](std::string_view name) const;  // NaN if there is none
};

struct Observer {
  virtual ~Observer() = default;
  virtual void on_step(int64_t /*step*/, int64_t /*epoch*/) {
  }  // after every step; nothing may wait for the device here
  virtual void on_row(const Row&) {}
};

enum class Outcome { done, interrupted };

class Trainer {
 public:
  // `config` is complete (load_run_data has filled in mean and std).
  Trainer(const Config&, Backend&, const RunData&);

  // Trains to the end, or until `stop` returns true between two steps. Error(Exit::diverged) when the loss is no longer
  // finite. Afterwards, if it was not interrupted, the test set is read and its row reported.
  Outcome run(
      const std::vector<Observer*>&, const std::function<bool()>& stop = [] { return false; });

  // The parts of a step, for tests and benchmarks.
  void start_epoch(int64_t epoch);
  void step();
  int64_t steps_per_epoch() const { return steps_per_epoch_; }
  int64_t global_step() const { return step_; }
  float learning_rate(int64_t step) const { return schedule_(step); }
  Net& net() { return net_; }
  std::string state_hash();  // XXH3-128 over parameters, optimizer state and buffers
  // Batch memory of the last step, and its loss.
  const Tensor& batch() const { return batch_; }
  const Tensor& labels() const { return labels_; }
  float last_loss();

 private:
  struct Sums {  // over training images
    double loss = 0, correct = 0;
    int64_t images = 0;
    void operator+=(const Sums& s) { loss += s.loss, correct += s.correct, images += s.images; }
    double mean_loss() const { return loss / double(images); }
    double mean_correct() const { return correct / double(images); }
  };
  void compute(int64_t count);
  Sums take_sums();

  Config config_;
  Backend& backend_;
  const RunData& data_;
  Rule rule_;
  Net net_;
  Tape tape_;
  Schedule schedule_;
  BatchSource train_;
  std::optional<BatchSource> val_;
  Tensor params_step_;            // StepParams on the device
  Tensor batch_, labels_, loss_;  // of the last step
  Tensor one_;                    // where backward starts
  Tensor totals_;                 // [2] f64: loss and correct answers since take_sums()
  std::unique_ptr<Replay> replay_;
  int64_t steps_per_epoch_ = 0, eager_steps_ = 0;
  int64_t step_ = 0, epoch_ = 0, in_epoch_ = 0;  // done so far; the current epoch; steps done in it
  int64_t counted_ = 0;                          // images in totals_
};

}  // namespace linnet
