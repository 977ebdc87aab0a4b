// What a person does before a long run: small experiments on a net, its data and its optimizer, each with a verdict.
// For `linnet check`; models of one's own (add_model) are checked like the others.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "linnet/trainer.h"
#include "src/report/plot.h"

namespace linnet {

// What is checked: a complete config (load_run_data has filled it in), its images, and what computes.
struct Subject {
  const Config& config;
  Backend& backend;
  const RunData& data;
  Terminal terminal;    // for the pictures
  bool colours = true;  // may they have colours
};

struct CheckResult {
  enum class Verdict { pass, fail, skipped } verdict;
  std::string text;         // what was found, with its numbers
  std::string picture;      // lines for a terminal; may be empty
  std::string advice = {};  // what to do about this fault; empty: what the check's entry says
};
inline CheckResult verdict(bool passed, std::string text, std::string picture = "", std::string advice = "") {
  return {passed ? CheckResult::Verdict::pass : CheckResult::Verdict::fail, std::move(text), std::move(picture),
          std::move(advice)};
}

struct CheckEntry {
  std::string_view name, summary;
  std::string_view advice;  // what to do when it fails; empty: the result says it, for each fault
  CheckResult (*run)(const Subject&);
};
// In the order in which they are best read: each takes for granted what those before it have shown.
const std::vector<CheckEntry>& checks();

// src/lab/check_data.cpp
CheckResult check_data(const Subject&);
CheckResult check_batch(const Subject&);
// src/lab/check_net.cpp
CheckResult check_flow(const Subject&);
CheckResult check_gradient(const Subject&);
CheckResult check_updates(const Subject&);
// src/lab/check_learning.cpp
CheckResult check_loss(const Subject&);
CheckResult check_overfit(const Subject&);
CheckResult check_labels(const Subject&);
CheckResult check_eval(const Subject&);

// ---- What they share -----------------------------------------------------------------------------------------------

// The config with what disturbs a short experiment left out: phases, early stopping, averages, files; log.interval = 1.
Config plain_config(const Config&);
// The config's learning rate from the first step on; or as its schedule begins, on `subset` of its `images`.
Config at_constant_lr(Config);
Config at_first_lr(Config, int64_t images, int64_t subset);
// `count` images as `train` and `held` others as `val`, the same ones every time; fewer where there are not so many.
RunData some_of(const Images&, int64_t count, int64_t held = 0);

// The rows of some steps of training. `diverged`: why it ended early; empty: it did not.
struct ShortRun {
  std::vector<Row> steps;
  std::string diverged;
  std::vector<double> column(std::string_view name) const;
};
// Stops when `enough` says so of the last row.
ShortRun train_steps(Trainer&, int64_t steps, const std::function<bool(const Row&)>& enough = {});

// `count` images of a source from the `first` on, without augmentation, and their labels.
struct Batch {
  Tensor images, labels;
};
Batch plain_batch(Net&, const BatchSource&, int64_t count, int64_t first = 0);
// The net's output; `pass` says in which mode, and is given a step of its own.
Tensor logits_of(Pass&, Net&, const Batch&);
// Mean loss of a batch in training mode (`train`: batch statistics, which also updates the running ones) or not.
double loss_of(Net&, const Batch&, bool train);
// One forward and one backward pass in training mode; the gradients are in the parameters afterwards. `watch` looks at
// each result of the forward pass.
double gradients_of(Net&, const Batch&, const Tape::Watcher& watch = {});

std::vector<float> on_host(Backend&, const Tensor&);  // f32
double norm_of(std::span<const float>);
// "optimizer.lr is 1e-12; usual for sgd are 0.001 to 0.1".
std::string lr_beside_usual(const OptimizerConfig&);
// "layer1.0.conv1" of "layer1.0.conv1.weight".
std::string layer_name(const std::string& param);
// Images side by side and below each other, small enough for the terminal's width.
std::string draw_images(const std::vector<std::vector<uint8_t>>& rgb, int width, int height, const Terminal&,
                        bool colours);

}  // namespace linnet
