#include "src/lab/checks.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "linnet/warnings.h"

namespace linnet {

const std::vector<CheckEntry>& checks() {
  static const std::vector<CheckEntry> table = {
      {"data", "classes, constant images, and images that are in two splits",
       "look at the images (linnet data stats), remove what is double or empty, add images of the rare classes",
       check_data},
      {"batch", "the images as the net gets them, augmented and normalised: finite, mean near 0, deviation near 1", "",
       check_batch},
      {"flow", "one backward pass: a gradient in every layer, none exploding, no dead units",
       "a layer at 0 is detached or dead: look at its place in forward(), its first weights, ReLUs that never open; "
       "exploding: batch norm, He initialisation, a smaller first scale",
       check_flow},
      {"gradient", "the gradient of every parameter against differences of the loss in double precision",
       "the backward pass of the named layer is wrong: compare it with its formula (tests/gradcheck.h)",
       check_gradient},
      {"updates", "how much of its weights a step changes in each layer; about 1e-3 is usual",
       "divide optimizer.lr by 10 where the weights are overwritten; a layer at 0 is detached, or its group is frozen",
       check_updates},
      {"loss", "the first loss is about ln C, and 50 to 250 batches bring it below that of guessing", "", check_loss},
      {"overfit", "16 images are learnt by heart, 95 % of them in at most 100 steps",
       "architecture, gradient or optimizer are broken: see `flow` and `gradient`, then try another optimizer.lr",
       check_overfit},
      {"labels", "100 to 400 steps with the true labels beat chance on images not seen; with shuffled ones they do not",
       "", check_labels},
      {"eval", "after 100 steps, batch norm's running statistics tell what the batch's own tell",
       "a larger train.batch_size, or batch norm's momentum; a dropout of 0.5 or more does it, too", check_eval},
  };
  return table;
}

Config plain_config(const Config& given) {
  Config c = given;
  c.phases.clear();
  c.ema.decay = 0;
  c.lookahead.k = 0;
  c.log.interval = 1;
  c.log.layers = 0;
  c.log.smoothing = 0;
  c.train.patience = 0;
  c.train.accumulate = 1;
  c.train.on_nonfinite = "stop";
  c.train.epochs = 1'000'000;                                      // it is stopped after some steps
  if (c.schedule.name == "plateau") c.schedule.name = "constant";  // it needs validation images
  return c;
}

Config at_constant_lr(Config c) {
  c.schedule = {};
  c.schedule.name = "constant";
  return c;
}

Config at_first_lr(Config c, int64_t images, int64_t subset) {
  const ScheduleConfig given = c.schedule;
  c = at_constant_lr(std::move(c));
  if (given.name == "one_cycle") {
    c.optimizer.lr /= given.div_factor;
    for (GroupConfig& group : c.groups) group.optimizer.lr /= given.div_factor;
  }
  c.schedule.warmup = given.warmup * double(images) / double(subset);  // it counts epochs, and these are shorter
  c.schedule.warmup_from = given.warmup_from;
  return c;
}

RunData some_of(const Images& all, int64_t count, int64_t held) {
  const Images images =
      all.size() <= count + held ? all : subset(all, hold_out(all.size(), count + held).val);  // at random, but fixed
  const HoldOut split = hold_out(images.size(), std::min(held, images.size() / 2));
  RunData data;
  data.train = subset(images, split.train);
  data.val = subset(images, split.val);
  data.test = [] { return Images{}; };
  return data;
}

std::vector<double> ShortRun::column(std::string_view name) const {
  std::vector<double> out;
  for (const Row& row : steps) out.push_back(row[name]);
  return out;
}

ShortRun train_steps(Trainer& trainer, int64_t steps, const std::function<bool(const Row&)>& enough) {
  struct Rows : Observer {
    ShortRun* run = nullptr;
    void on_row(const Row& row) override {
      if (row.kind == "step") run->steps.push_back(row);
    }
  } rows;
  ShortRun run;
  rows.run = &run;
  try {
    trainer.run({&rows}, [&] {
      return int64_t(run.steps.size()) >= steps || (enough && !run.steps.empty() && enough(run.steps.back()));
    });
  } catch (const Diverged& e) {
    run.diverged =
        fmt::format("the loss is {:.4g} after {} steps, first seen in {}", e.bad.loss, e.bad.step, e.bad.where);
  }
  return run;
}

Batch plain_batch(Net& net, const BatchSource& given, int64_t count, int64_t first) {
  Backend& be = net.backend();
  BatchSource source = given;
  source.augment = {};
  const Shape image = source.images.shape();
  Batch batch{net.pool().empty({count, image[1], image[2], image[3]}, net.type()),
              net.pool().empty({count}, DType::i32)};
  const Tensor step = make_step(be), draws = net.pool().empty({count, kDrawWords}, DType::i32);
  write_step(be, step, {.first = first});
  be.make_batch(batch.images, batch.labels, draws, source, step, 0);
  return batch;
}

Tensor logits_of(Pass& pass, Net& net, const Batch& batch) {
  const Tensor step = make_step(net.backend());
  write_step(net.backend(), step, {});
  pass.step = step;
  return net.forward(pass, batch.images);
}

double loss_of(Net& net, const Batch& batch, bool train) {
  Pass pass{net.backend(), net.pool(), nullptr, train};
  const Tensor logits = logits_of(pass, net, batch);
  const Loss loss = softmax_cross_entropy(pass, logits, batch.labels, 0, 1.f / float(batch.labels.numel()));
  float value;
  net.backend().download(&value, loss.loss);
  return double(value);
}

double gradients_of(Net& net, const Batch& batch, const Tape::Watcher& watch) {
  Backend& be = net.backend();
  Tape tape(be, net.pool());
  if (watch) tape.watch(watch);
  Pass pass{be, net.pool(), &tape, true};
  tape.begin_step();
  const Tensor logits = logits_of(pass, net, batch);
  const Loss loss = softmax_cross_entropy(pass, logits, batch.labels, 0, 1.f / float(batch.labels.numel()));
  const Tensor one = net.pool().empty({1}, DType::f32);
  const float from = 1;
  be.upload(one, &from);
  tape.backward(loss.loss, one);
  tape.end_step(net.params().params());
  float value;
  be.download(&value, loss.loss);
  return double(value);
}

std::vector<float> on_host(Backend& backend, const Tensor& t) {
  std::vector<float> values(static_cast<size_t>(t.numel()));
  backend.download(values.data(), t);
  return values;
}

double norm_of(std::span<const float> v) {
  double sum = 0;
  for (const float x : v) sum += double(x) * double(x);
  return std::sqrt(sum);
}

std::string lr_beside_usual(const OptimizerConfig& o) {
  const auto [low, high] = usual_lr(o);
  return fmt::format("optimizer.lr is {:g}; usual for {} are {:.4g} to {:.4g}", o.lr, o.name, low, high);
}

std::string layer_name(const std::string& param) { return param.substr(0, param.rfind('.')); }

}  // namespace linnet
