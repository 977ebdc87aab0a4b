// Training: a model, its data, its optimizer, and the loop. The trainer computes; what is shown or written is the
// business of its observers (src/cli/console.cpp, src/train/run.cpp).
#pragma once
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "linnet/average.h"
#include "linnet/backend.h"
#include "linnet/config.h"
#include "linnet/dataset.h"
#include "linnet/dynamics.h"
#include "linnet/model.h"
#include "linnet/safetensors.h"
#include "linnet/schedule.h"
#include "linnet/tape.h"
#include "linnet/updater.h"
#include "linnet/weights.h"

namespace linnet {

// The images of a run in host memory. The test set is read when it is asked for, once, at the end.
struct RunData {
  Images train, val;
  std::function<Images()> test;
  std::vector<std::string> notes;  // what a person should know of the data, a line each
};
// Loads what [data] asks for, and fills an empty data.mean and data.std of `config` with what is measured on the
// training split (a pack brings its own). Error(Exit::data) if there is no usable data.
RunData load_run_data(Config& config);
// How a folder of pictures is read, and what a person should know of what was read.
FolderOptions folder_options(const Config&);
std::vector<std::string> notes_of(const DataSet&);

// Keys of [train] as the code has them. precision "auto" is what is fastest on `backend`.
DType precision_of(const Config& config, const Backend& backend);
BackendOptions backend_options(const Config& config);
double loss_scale_of(const Config& config);

// A data set on a device, in the form that make_batch reads.
BatchSource upload_source(Backend&, const Images&, const std::vector<double>& mean, const std::vector<double>& std);

// What a net says of one image.
struct Prediction {
  int32_t label = 0, predicted = 0;
  float probability = 0;  // that it gives the predicted class
};

struct Accuracy {
  double loss = 0, acc = 0;  // means over n images; acc is a fraction
  int64_t n = 0;
  std::vector<double> per_class;        // acc of each class; NaN for a class without images
  std::vector<Prediction> predictions;  // of each image, in the source's order
};

// train.tta: "none", "flip" (the image and its mirror image), "flip_shift" (both, also moved by one pixel along each
// diagonal).
std::vector<View> test_views(const std::string& tta);

// A model ready to run: layers, parameters and the memory they work in.
class Net {
 public:
  Net(Backend&, const std::string& model, const ModelOptions&, uint64_t seed, const Layout& = {});
  // x is of type(). The masters may have been changed since the last time.
  Tensor forward(Pass& pass, const Tensor& x);
  // Mean loss (no smoothing) and accuracy over all images of the source. The result does not depend on the batch size.
  // Several views of an image: the mean of their logits is judged.
  // `logits`, if given, gets that mean: [images, classes] row by row. What `before_batch` throws ends it.
  Accuracy evaluate(const BatchSource&, int64_t batch_size, int classes, const std::vector<View>& views = {View{}},
                    std::vector<float>* logits = nullptr, const std::function<void()>& before_batch = {});
  // The logits of all images of the source, [images, classes] row by row. A row does not depend on the batch size.
  std::vector<float> logits(const BatchSource&, int64_t batch_size);

  Backend& backend() { return backend_; }
  Pool& pool() { return pool_; }
  ParamStore& params() { return params_; }
  DType type() const { return type_; }  // of activations

 private:
  void each_batch(const BatchSource&, int64_t batch_size, const std::vector<View>& views,
                  const std::function<void()>& before_batch,
                  const std::function<void(const Tensor& logits, const Tensor& labels, int64_t images)>&);

  Backend& backend_;
  DType type_;
  Pool pool_;
  ParamStore params_;
  std::unique_ptr<Module> model_;
};
ModelOptions model_options(const Config&, const Images& like);

// One row of metrics: "train/loss", "train/acc", "val/loss", "val/acc", "lr", "grad_norm", "update_ratio/LAYER",
// "test/acc", ..., in a fixed order.
struct Row {
  std::string kind;             // "step", "layers", "epoch" or "test"
  int64_t epoch = 0, step = 0;  // epochs and steps done so far
  std::vector<std::pair<std::string, double>> values;
  std::string hash;                                // of the whole state, at the end of an epoch
  double img_per_s = 0;                            // kept apart: it differs from run to run
  double operator[](std::string_view name) const;  // NaN if there is none
};

class Trainer;

struct Observer {
  virtual ~Observer() = default;
  // After every step; nothing may wait for the device here.
  virtual void on_step(int64_t /*step*/, int64_t /*epoch*/) {}
  virtual void on_row(const Row&) {}
  // Between two steps, when all of the last one's rows are out: a state that may be saved.
  virtual void on_boundary(Trainer&, bool /*epoch_done*/) {}
  // A step was bad and train.on_nonfinite = "rewind": whether the trainer was set back to an earlier state, if there is
  // one to that of step `newest` or before.
  virtual bool on_rewind(Trainer&, int64_t /*newest*/) { return false; }
};

enum class Outcome { done, interrupted };

// Sums over training images.
struct Sums {
  double loss = 0, correct = 0, images = 0;
  void operator+=(const Sums& s) { loss += s.loss, correct += s.correct, images += s.images; }
  double mean_loss() const { return loss / images; }
  double mean_correct() const { return correct / images; }
};

// The best value of a metric so far, and for how many epochs there was none better.
struct Watch {
  double best = std::numeric_limits<double>::quiet_NaN();
  int64_t epoch = -1, waited = 0;
  bool update(double value, bool larger, int64_t at_epoch);  // whether it is better
};

// Where a run stands between two steps. Together with the tensors of Trainer::tensors() it is the whole of its state.
struct Progress {
  int64_t step = 0, epoch = 0, in_epoch = 0;           // done so far; the current epoch; steps done in it
  int64_t phase = 0, phase_step = 0, phase_epoch = 0;  // the current [[phase]] and where it began
  int64_t update_start = 0;                            // the step from which its rules count their updates
  Sums epoch_sums;                                     // of the current epoch, up to the last row
  PlateauState plateau = {};
  Watch phase_watch, stop_watch;
  EwaState smooth;
  int64_t rewinds = 0, rewound_from = -1;  // how often; the furthest bad step that one began at
  std::vector<int64_t> rewound_to;         // the steps that they went back to
  bool stopped = false;                    // early stopping has ended the training
  bool best_in_use = false;                // at its end, with train.patience: weights and "best" have changed places
  StepResult result;
  std::vector<double> totals;         // since the last row
  std::string directions;             // Dynamics::directions(), if the next step gets a row
  std::vector<double> update_ratios;  // of an epoch whose last step is done, and which is not evaluated yet
  std::vector<StepTrace> trace;       // of the last steps

  std::string to_json() const;
  // Error(Exit::checkpoint) for a text that to_json() did not write.
  static Progress from_json(const std::string& text, const std::string& origin);
};

// A tensor of a step: the largest magnitude among its finite numbers, and how many are not finite.
struct TensorLook {
  std::string what;  // "conv2d conv1.weight", "gradient of conv1.weight"
  double largest = 0;
  int64_t nonfinite = 0, numbers = 0;
};

// A step whose loss or gradient is not finite, and where that was first seen.
struct BadStep {
  int64_t step = 0, epoch = 0;  // both 0-based
  double loss = 0;
  std::string where;  // "batch_norm bn1.weight", "gradient of layer1.0.conv1.weight", ...
  std::vector<int32_t> samples;
  std::vector<TensorLook> tensors;  // images, results of the forward pass and gradients of layers, in their order
  std::vector<StepTrace> steps;     // the last ones up to this; loss: mean over the step's images
};
class Diverged : public Error {
 public:
  Diverged(const std::string& message, BadStep s) : Error(Exit::diverged, message), bad(std::move(s)) {}
  BadStep bad;
};

class Trainer {
 public:
  // `config` is complete (load_run_data has filled in mean and std).
  Trainer(const Config&, Backend&, const RunData&);

  // Trains from where it stands to the end, or until `stop` returns true between two steps; on a CPU also between two
  // batches of one, or of an evaluation, which is then as if it had not begun. Diverged when a step is bad
  // and train.on_nonfinite does not help. Afterwards, if it was not interrupted, the test set is read and its row
  // reported.
  Outcome run(
      const std::vector<Observer*>&, const std::function<bool()>& stop = [] { return false; });

  // The state between two steps: what progress() says, and these tensors. After the tensors were overwritten,
  // restore() goes on from there.
  Progress progress();
  std::vector<std::pair<std::string, Tensor>> tensors();
  void restore(const Progress&);
  // A state from the way of a run with more epochs, where this one's last epoch is over: with early stopping the best
  // weights come into use. Whether that has changed anything.
  bool end_with_best();
  // The other way round: a state from a run's end, where there are more epochs now, goes on from its last weights, in
  // the phase that is due. run() does it, too; of any other state nothing changes.
  void continue_epochs();
  // Before the first step: these weights instead of random ones. Errors are those of set_weights.
  void start_from(const SafeTensors&, const std::string& origin, Head = Head::given);

  // The parts of a step, for tests and benchmarks.
  void start_epoch(int64_t epoch);
  void step();
  int64_t steps_per_epoch() const { return steps_per_epoch_; }
  int64_t global_step() const { return at_.step; }
  // Of the current phase's schedule; a plateau's falls so far are in it.
  double learning_rate(int64_t step) const;
  // Another rule for the learning rate, until a phase begins or restore() is called: for experiments.
  void use_schedule(Schedule schedule) { schedule_ = std::move(schedule); }
  Net& net() { return net_; }
  Updater& updater() { return updater_; }
  const Config& config() const { return config_; }
  std::string state_hash();  // XXH3-128 over parameters, optimizer state and buffers
  // Of the plain weights, once the test set was read; empty before.
  const std::vector<Prediction>& test_predictions() const { return test_predictions_; }
  // The last step's gradient, without the loss scale that is still in Flat::grad. On the host, as it lies in Flat.
  std::vector<float> gradient();
  // Batch memory of the last step, and its loss; of the last full one where a GPU replays steps of several sizes.
  const Tensor& batch() const { return batch_; }
  const Tensor& labels() const { return labels_; }
  float last_loss();
  StepResult last_result() { return read_step(backend_, step_memory_); }

 private:
  void begin_epoch();
  void enter_phase(int64_t phase, bool restored);
  int64_t batches_of(int64_t in_epoch) const;
  int64_t images_of(int64_t in_epoch) const;
  void write_params();
  void compute(int64_t batches, int64_t images);
  void verified_step();
  void stoppable_compute(int64_t batches, int64_t images);
  Sums take_sums();
  bool row_due(int64_t ahead) const;
  bool layers_due(int64_t ahead) const;
  Row step_row(double seconds);
  Row epoch_row(double seconds);
  bool end_epoch(const Row&);
  void begin_next_epoch();
  Accuracy evaluate(const BatchSource&, int classes, const std::vector<View>& views = {View{}});
  void exchange_best();
  void check_result();
  bool rewind(const std::vector<Observer*>&, const BadStep&);
  Diverged after_rewinds(const Diverged&) const;
  Outcome run_steps(const std::vector<Observer*>&, const std::function<bool()>& stop);
  BadStep examine_bad_step(int64_t step);
  std::vector<StepTrace> last_steps();
  Row test_row();

  Config config_;
  Backend& backend_;
  const RunData& data_;
  int64_t batches_per_epoch_, accumulate_, steps_per_epoch_;
  float loss_scale_;  // in all gradients until the update takes it out
  Updater updater_;
  Net net_;
  std::optional<Dynamics> dynamics_;
  StepParams params_;  // of the last step
  Tape tape_;
  Schedule schedule_;
  std::optional<Plateau> plateau_;
  std::optional<Ewa> smooth_;
  BatchSource train_;
  std::optional<BatchSource> val_;
  std::vector<int32_t> order_;    // the epoch's
  int64_t batch_of_step_ = 0;     // which of its batches a step is at
  Tensor step_memory_;            // StepMemory on the device
  Tensor batch_, labels_, loss_;  // of the last forward pass
  Tensor one_;                    // where backward starts
  Tensor step_sums_, totals_;     // [2], [3] f64: of this step; since take_sums()
  Tensor best_, best_buffers_;    // of early stopping
  std::vector<Tensor> begin_;     // where a step of several batches began: it may be given up
  std::vector<Prediction> test_predictions_;
  struct Repeated {
    int64_t eager = 0;  // how often it was run
    std::unique_ptr<Replay> replay;
  };
  std::map<int64_t, Repeated> repeated_;  // steps of so many images
  int64_t known_good_ = 0;                // the last step after which the device has answered
  std::function<bool()> stop_;            // asked between the batches of a step, too, while run() runs on a CPU
  double images_before_ = 0;              // of this epoch, before a resume: not of this sitting's time
  Progress at_;
};

}  // namespace linnet
