// A run's whole configuration. One TOML file is one run; `visit` below is the one place where a key exists: parsing,
// --set, the "unknown key" error, the resolved config that a run keeps and `linnet config show` all walk it.
//
// To add a key: a field with its default, a line in `visit`. Nothing else.
#pragma once
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace linnet {

// [optimizer]. Options bear PyTorch's names. The defaults are those of the chosen optimizer (src/train/optimizer.cpp),
// so what stands here only fills fields that it does not use.
struct OptimizerConfig {
  std::string name = "sgd";
  std::string preset = "pytorch";
  std::string form = "accumulate";
  double lr = 1e-3;
  double momentum = 0;
  double dampening = 0;
  bool nesterov = false;
  std::vector<double> betas = {0.9, 0.999};
  double alpha = 0.99;
  double eps = 1e-8;
  bool centered = false;
  bool amsgrad = false;
  double lr_decay = 0;
  double initial_accumulator_value = 0;
  double momentum_decay = 0.004;
  int64_t ns_steps = 5;
  double weight_decay = 0;
  bool decay_norm_and_bias = true;
};

// [schedule]. Lengths are in epochs and may be fractions.
struct ScheduleConfig {
  std::string name = "multistep";
  std::string interval = "step";
  double warmup = 0;
  std::string warmup_from = "base";
  std::vector<double> milestones;
  double step_size = 30;
  double gamma = 0.1;
  double min_lr = 0;
  double period = 0;
  double period_factor = 1;
  double power = 1;
  double peak = 0.3;
  double div_factor = 25;
  double final_div_factor = 1e4;
  double factor = 0.1;
  int64_t patience = 10;
  double threshold = 1e-4;
  int64_t cooldown = 0;
  std::string metric = "val/loss";
  std::string counting = "pytorch";
};

// [[group]]: parameters with settings of their own. `optimizer` starts as [optimizer]; the table's keys replace some.
struct GroupConfig {
  std::string match;
  bool frozen = false;
  OptimizerConfig optimizer;
};

// [[phase]]: from here on another optimizer (by default the one before it), another schedule (by default none: the
// learning rate stays at the base), or both.
struct PhaseConfig {
  int64_t epoch = 0;
  int64_t plateau = 0;
  std::string state = "fresh";
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
};

struct Config {
  struct {
    std::string name = "resnet20";
    std::string shortcut = "A";
    double dropout = 0;
  } model;
  struct {
    std::string name = "cifar10";
    std::string path;
    int64_t val = 5000;
    int64_t limit = 0;
    bool shuffle = true;
    bool drop_last = true;
    std::vector<double> mean, std;
    int64_t samples = 10000;
    int64_t image_size = 32;
    std::string labels = "fine";
    int64_t channels = 3;
    std::string fit = "crop";
    double val_share = 0.1, test_share = 0.1;
    std::string corrupt = "refuse";
    bool trusted = false;
  } data;
  struct {
    int64_t crop_pad = 4;
    std::string padding = "zero";
    std::string flip = "random";
    double brightness = 0, contrast = 0, saturation = 0, hue = 0;
    int64_t cutout = 0;
    double mixup = 0, cutmix = 0;
  } augment;
  OptimizerConfig optimizer;
  struct {
    int64_t k = 0;
    double alpha = 0.5;
  } lookahead;
  struct {
    double norm = 0, value = 0;
  } clip;
  ScheduleConfig schedule;
  std::vector<GroupConfig> groups;
  std::vector<PhaseConfig> phases;
  struct {
    double decay = 0;
    std::string start = "first";
  } ema;
  struct {
    int64_t epochs = 200;
    int64_t batch_size = 128;
    int64_t accumulate = 1;
    std::string accumulate_tail = "flush";
    std::string lr_scaling = "none";
    int64_t lr_batch_size = 128;
    int64_t eval_batch_size = 128;  // activations that stay in the cache
    int64_t seed = 0;
    double label_smoothing = 0;
    std::string precision = "auto";
    double loss_scale = 0;
    bool tf32 = false, deterministic = true, autotune = true, graph = true;
    std::string conv = "auto";
    std::string device = "auto";
    std::string on_nonfinite = "stop";
    int64_t max_skips = 10;
    int64_t verify_every = 0;
    int64_t patience = 0;
    std::string stop_metric = "val/acc";
    std::string tta = "none";
  } train;
  struct {
    double epochs = 1;
    int64_t keep = 3;
    int64_t every = 0;
  } checkpoint;
  struct {
    int64_t interval = 50;
    int64_t layers = 250;
    std::string probe;
    double smoothing = 0;
    bool tensorboard = true;
  } log;
};

// What a key accepts and when it has an effect. A list of numbers has its range checked element by element.
struct Key {
  std::string_view name;  // "optimizer.lr"
  std::string_view doc;   // one line, with the unit
  double min = -std::numeric_limits<double>::infinity(), max = std::numeric_limits<double>::infinity();
  bool min_excluded = false, max_excluded = false;
  std::vector<std::string_view> choices = {};  // allowed strings; empty: any (a registry knows them)
  // The key is used only while `used_by_key` has one of the values `used_by`; setting it otherwise is an error.
  std::string_view used_by_key = {};
  std::vector<std::string_view> used_by = {};
  // Or: while the model, optimizer or schedule that the key's section names lists it among its keys.
  bool by_entry = false;
};

// The keys of one optimizer: of [optimizer], a [[group]] or a [[phase]]. by_entry: used by the optimizers that name it
// in their table.
template <class O, class F>
void visit_optimizer(O& o, F&& f) {
  using K = Key;
  f(K{.name = "optimizer.name", .doc = "optimizer, by its name in `linnet list optimizers`"}, o.name);
  f(K{.name = "optimizer.preset", .doc = "whose defaults and conventions", .choices = {"pytorch", "keras"}}, o.preset);
  f(K{.name = "optimizer.form", .doc = "which of its formulas: `linnet optim show NAME`", .by_entry = true}, o.form);
  f(K{.name = "optimizer.lr", .doc = "base learning rate", .min = 0, .max = 1e4, .min_excluded = true}, o.lr);
  f(K{.name = "optimizer.momentum",
      .doc = "momentum factor",
      .min = 0,
      .max = 1,
      .max_excluded = true,
      .by_entry = true},
    o.momentum);
  f(K{.name = "optimizer.dampening", .doc = "dampening of the momentum", .min = 0, .max = 1, .by_entry = true},
    o.dampening);
  f(K{.name = "optimizer.nesterov", .doc = "Nesterov momentum, PyTorch's form", .by_entry = true}, o.nesterov);
  f(K{.name = "optimizer.betas",
      .doc = "decay of the averages of the gradient and of its square",
      .min = 0,
      .max = 1,
      .max_excluded = true,
      .by_entry = true},
    o.betas);
  f(K{.name = "optimizer.alpha",
      .doc = "decay of the average of the squared gradient",
      .min = 0,
      .max = 1,
      .max_excluded = true,
      .by_entry = true},
    o.alpha);
  f(K{.name = "optimizer.eps", .doc = "added to the denominator", .min = 1e-10, .max = 1, .by_entry = true}, o.eps);
  f(K{.name = "optimizer.centered", .doc = "subtract the squared mean gradient", .by_entry = true}, o.centered);
  f(K{.name = "optimizer.amsgrad", .doc = "divide by the largest second moment so far", .by_entry = true}, o.amsgrad);
  f(K{.name = "optimizer.lr_decay", .doc = "lr / (1 + (t - 1) lr_decay)", .min = 0, .max = 1e3, .by_entry = true},
    o.lr_decay);
  f(K{.name = "optimizer.initial_accumulator_value",
      .doc = "where the sum of squares starts",
      .min = 0,
      .max = 1e3,
      .by_entry = true},
    o.initial_accumulator_value);
  f(K{.name = "optimizer.momentum_decay",
      .doc = "psi of NAdam's momentum schedule",
      .min = 0,
      .max = 1,
      .by_entry = true},
    o.momentum_decay);
  f(K{.name = "optimizer.ns_steps", .doc = "Newton-Schulz iterations", .min = 1, .max = 20, .by_entry = true},
    o.ns_steps);
  f(K{.name = "optimizer.weight_decay",
      .doc = "weight decay: L2 added to the gradient, or decoupled where the optimizer says so",
      .min = 0,
      .max = 1},
    o.weight_decay);
}

// The keys of one schedule: of [schedule] or a [[phase]].
template <class S, class F>
void visit_schedule(S& s, F&& f) {
  using K = Key;
  f(K{.name = "schedule.name", .doc = "learning-rate schedule, by its name in `linnet list schedules`"}, s.name);
  f(K{.name = "schedule.interval",
      .doc = "the learning rate changes every step, or stays for an epoch",
      .choices = {"step", "epoch"}},
    s.interval);
  f(K{.name = "schedule.warmup", .doc = "linear warmup, epochs", .min = 0}, s.warmup);
  f(K{.name = "schedule.warmup_from",
      .doc = "the warmup's first learning rate: base/W (W its steps or epochs) or 0",
      .choices = {"base", "zero"}},
    s.warmup_from);
  f(K{.name = "schedule.milestones",
      .doc = "epochs after which the learning rate is multiplied by gamma",
      .min = 0,
      .by_entry = true},
    s.milestones);
  f(K{.name = "schedule.step_size",
      .doc = "epochs between two multiplications by gamma",
      .min = 0,
      .min_excluded = true,
      .by_entry = true},
    s.step_size);
  f(K{.name = "schedule.gamma",
      .doc = "factor at each milestone or step, or per epoch",
      .min = 0,
      .max = 1,
      .min_excluded = true,
      .by_entry = true},
    s.gamma);
  f(K{.name = "schedule.min_lr", .doc = "learning rate below which it does not go", .min = 0, .by_entry = true},
    s.min_lr);
  f(K{.name = "schedule.period", .doc = "epochs until the first restart; 0: no restarts", .min = 0, .by_entry = true},
    s.period);
  f(K{.name = "schedule.period_factor",
      .doc = "each period's length by that of the one before",
      .min = 1,
      .max = 100,
      .by_entry = true},
    s.period_factor);
  f(K{.name = "schedule.power",
      .doc = "exponent of the polynomial",
      .min = 0,
      .max = 100,
      .min_excluded = true,
      .by_entry = true},
    s.power);
  f(K{.name = "schedule.peak",
      .doc = "share of the run that the rise takes",
      .min = 0,
      .max = 1,
      .min_excluded = true,
      .max_excluded = true,
      .by_entry = true},
    s.peak);
  f(K{.name = "schedule.div_factor",
      .doc = "the first learning rate is base / div_factor",
      .min = 1,
      .max = 1e12,
      .by_entry = true},
    s.div_factor);
  f(K{.name = "schedule.final_div_factor",
      .doc = "the last one is the first / final_div_factor",
      .min = 1,
      .max = 1e12,
      .by_entry = true},
    s.final_div_factor);
  f(K{.name = "schedule.factor",
      .doc = "factor at each plateau",
      .min = 0,
      .max = 1,
      .min_excluded = true,
      .max_excluded = true,
      .by_entry = true},
    s.factor);
  f(K{.name = "schedule.patience",
      .doc = "epochs without a better metric before the learning rate falls",
      .min = 0,
      .max = 1e6,
      .by_entry = true},
    s.patience);
  f(K{.name = "schedule.threshold",
      .doc = "change that counts as better: relative, with counting = \"keras\" absolute",
      .min = 0,
      .max = 1,
      .by_entry = true},
    s.threshold);
  f(K{.name = "schedule.cooldown",
      .doc = "epochs after a fall in which none is counted",
      .min = 0,
      .max = 1e6,
      .by_entry = true},
    s.cooldown);
  f(K{.name = "schedule.metric",
      .doc = "what the plateau is watched on",
      .choices = {"val/loss", "val/acc"},
      .by_entry = true},
    s.metric);
  f(K{.name = "schedule.counting",
      .doc = "the learning rate falls when the epochs without a better metric exceed patience, or reach it",
      .choices = {"pytorch", "keras"},
      .by_entry = true},
    s.counting);
}

// [[group]]'s own keys; those of the optimizer stand beside them without their prefix.
template <class G, class F>
void visit_group(G& g, F&& f) {
  using K = Key;
  f(K{.name = "group.match", .doc = "parameters whose name matches: * is any text, | separates patterns"}, g.match);
  f(K{.name = "group.frozen", .doc = "they are not trained"}, g.frozen);
}

// [[phase]]'s own keys; it may hold an `optimizer` and a `schedule` table.
template <class P, class F>
void visit_phase(P& p, F&& f) {
  using K = Key;
  f(K{.name = "phase.epoch", .doc = "the phase starts when this many epochs are done", .min = 0, .max = 1e6}, p.epoch);
  f(K{.name = "phase.plateau",
      .doc = "or after so many epochs without a better validation loss; 0: off",
      .min = 0,
      .max = 1e6},
    p.plateau);
  f(K{.name = "phase.state",
      .doc = "the optimizer's state starts at zero, or takes over the average gradient",
      .choices = {"fresh", "carried"}},
    p.state);
}

// Calls f(Key, value) for every key, in the order in which a config file shows them. `C` is Config or const Config.
template <class C, class F>
void visit(C& c, F&& f) {
  using K = Key;
  f(K{.name = "model.name", .doc = "network, by its name in `linnet list models`"}, c.model.name);
  f(K{.name = "model.shortcut",
      .doc = "residual shortcut where the shape changes: A pads with zeros, B is a 1x1 convolution",
      .choices = {"A", "B"},
      .by_entry = true},
    c.model.shortcut);
  f(K{.name = "model.dropout",
      .doc = "probability of dropping a feature before the last layer",
      .min = 0,
      .max = 0.999,
      .by_entry = true},
    c.model.dropout);

  f(K{.name = "data.name", .doc = "data set", .choices = {"cifar10", "cifar100", "folder", "pack", "synthetic"}},
    c.data.name);
  f(K{.name = "data.path",
      .doc = "folder, archive or pack of the data set; empty (CIFAR only): $LINNET_DATA, then the cache",
      .used_by_key = "data.name",
      .used_by = {"cifar10", "cifar100", "folder", "pack"}},
    c.data.path);
  f(K{.name = "data.labels",
      .doc = "of CIFAR-100: the 100 fine ones or the 20 coarse ones",
      .choices = {"fine", "coarse"},
      .used_by_key = "data.name",
      .used_by = {"cifar100"}},
    c.data.labels);
  f(K{.name = "data.val",
      .doc = "training images held out for validation",
      .min = 0,
      .used_by_key = "data.name",
      .used_by = {"cifar10", "cifar100", "synthetic"}},
    c.data.val);
  f(K{.name = "data.val_share",
      .doc = "share of a folder's pictures, chosen by a hash of their names, for validation (unless it has val/)",
      .min = 0,
      .max = 0.9,
      .used_by_key = "data.name",
      .used_by = {"folder"}},
    c.data.val_share);
  f(K{.name = "data.test_share",
      .doc = "likewise for the test at the end (unless it has test/)",
      .min = 0,
      .max = 0.9,
      .used_by_key = "data.name",
      .used_by = {"folder"}},
    c.data.test_share);
  f(K{.name = "data.limit",
      .doc = "use only so many training images, drawn once for all seeds; 0: all",
      .min = 0,
      .max = 1e9,
      .used_by_key = "data.name",
      .used_by = {"cifar10", "cifar100", "folder", "pack"}},
    c.data.limit);
  f(K{.name = "data.shuffle", .doc = "a new order of the training images every epoch"}, c.data.shuffle);
  f(K{.name = "data.drop_last", .doc = "leave out the last, smaller batch of an epoch"}, c.data.drop_last);
  f(K{.name = "data.mean",
      .doc = "per-channel mean of pixel/255; empty: measured on the training split",
      .min = 0,
      .max = 1},
    c.data.mean);
  f(K{.name = "data.std",
      .doc = "per-channel standard deviation of pixel/255; empty: measured on the training split",
      .min = 0,
      .max = 1,
      .min_excluded = true},
    c.data.std);
  f(K{.name = "data.samples",
      .doc = "synthetic training images (a fifth as many test images are made)",
      .min = 10,
      .max = 1e6,
      .used_by_key = "data.name",
      .used_by = {"synthetic"}},
    c.data.samples);
  f(K{.name = "data.image_size",
      .doc = "height and width, pixels, of synthetic images, or that a folder's pictures are brought to",
      .min = 4,
      .max = 224,
      .used_by_key = "data.name",
      .used_by = {"synthetic", "folder"}},
    c.data.image_size);
  f(K{.name = "data.channels",
      .doc = "3: colour, 1: grey",
      .min = 1,
      .max = 3,
      .used_by_key = "data.name",
      .used_by = {"folder"}},
    c.data.channels);
  f(K{.name = "data.fit",
      .doc = "how a picture becomes square: its middle, or stretched",
      .choices = {"crop", "stretch"},
      .used_by_key = "data.name",
      .used_by = {"folder"}},
    c.data.fit);
  f(K{.name = "data.corrupt",
      .doc = "pictures that cannot be read: an error that lists them, or left out with a note",
      .choices = {"refuse", "skip"},
      .used_by_key = "data.name",
      .used_by = {"folder"}},
    c.data.corrupt);
  f(K{.name = "data.trusted",
      .doc = "decode pictures in this process; false: in processes that can do nothing else",
      .used_by_key = "data.name",
      .used_by = {"folder"}},
    c.data.trusted);

  f(K{.name = "augment.crop_pad",
      .doc = "random crop after padding with this many pixels; 0: off",
      .min = 0,
      .max = 32},
    c.augment.crop_pad);
  f(K{.name = "augment.padding",
      .doc = "what the crop is padded with: black, or the image mirrored at its edge",
      .choices = {"zero", "reflect"}},
    c.augment.padding);
  f(K{.name = "augment.flip",
      .doc = "horizontal flip: never, by chance, or every other epoch",
      .choices = {"none", "random", "alternating"}},
    c.augment.flip);
  f(K{.name = "augment.brightness", .doc = "colour jitter: factor from [1-b, 1+b]", .min = 0, .max = 10},
    c.augment.brightness);
  f(K{.name = "augment.contrast", .doc = "colour jitter: factor from [1-c, 1+c]", .min = 0, .max = 10},
    c.augment.contrast);
  f(K{.name = "augment.saturation", .doc = "colour jitter: factor from [1-s, 1+s]", .min = 0, .max = 10},
    c.augment.saturation);
  f(K{.name = "augment.hue", .doc = "colour jitter: shift from [-h, h] of the colour circle", .min = 0, .max = 0.5},
    c.augment.hue);
  f(K{.name = "augment.cutout", .doc = "side of the square that is blanked, pixels; 0: off", .min = 0, .max = 224},
    c.augment.cutout);
  f(K{.name = "augment.mixup", .doc = "mixup's alpha (Zhang et al. 2018); 0: off", .min = 0, .max = 100},
    c.augment.mixup);
  f(K{.name = "augment.cutmix", .doc = "CutMix's alpha (Yun et al. 2019); 0: off", .min = 0, .max = 100},
    c.augment.cutmix);

  visit_optimizer(c.optimizer, f);
  f(K{.name = "optimizer.decay_norm_and_bias", .doc = "apply weight decay to batch-norm parameters and biases too"},
    c.optimizer.decay_norm_and_bias);
  f(K{.name = "optimizer.clip_norm", .doc = "clip the gradient to this global norm; 0: off", .min = 0}, c.clip.norm);
  f(K{.name = "optimizer.clip_value", .doc = "clip each element of the gradient to [-v, v]; 0: off", .min = 0},
    c.clip.value);
  f(K{.name = "lookahead.k",
      .doc = "Lookahead (Zhang et al. 2019): steps between two moves of the slow weights; 0: off",
      .min = 0,
      .max = 1000000},
    c.lookahead.k);
  f(K{.name = "lookahead.alpha",
      .doc = "share of the way to the fast weights that the slow ones go",
      .min = 0,
      .max = 1,
      .min_excluded = true},
    c.lookahead.alpha);

  visit_schedule(c.schedule, f);

  f(K{.name = "ema.decay",
      .doc = "exponential moving average of the weights, evaluated beside them; 0: off",
      .min = 0,
      .max = 1,
      .max_excluded = true},
    c.ema.decay);
  f(K{.name = "ema.start",
      .doc = "the average starts at the first weights, at zero, or at zero with bias correction",
      .choices = {"first", "zero", "corrected"}},
    c.ema.start);

  f(K{.name = "train.epochs", .doc = "passes over the training split", .min = 1, .max = 1e6}, c.train.epochs);
  f(K{.name = "train.batch_size", .doc = "images per forward and backward pass", .min = 1, .max = 65536},
    c.train.batch_size);
  f(K{.name = "train.accumulate",
      .doc = "batches per step, their gradients averaged over the images; 0: all of the epoch (full batch)",
      .min = 0,
      .max = 1e6},
    c.train.accumulate);
  f(K{.name = "train.accumulate_tail",
      .doc = "an epoch's last batches that do not fill a step: one smaller step, or none",
      .choices = {"flush", "drop"}},
    c.train.accumulate_tail);
  f(K{.name = "train.lr_scaling",
      .doc = "times batch/lr_batch_size or its square root; batch: images per step",
      .choices = {"none", "linear", "sqrt"}},
    c.train.lr_scaling);
  f(K{.name = "train.lr_batch_size",
      .doc = "images per step for which optimizer.lr is meant",
      .min = 1,
      .used_by_key = "train.lr_scaling",
      .used_by = {"linear", "sqrt"}},
    c.train.lr_batch_size);
  f(K{.name = "train.eval_batch_size",
      .doc = "images per evaluation batch (of the results, the last bits of a loss at most)",
      .min = 1,
      .max = 65536},
    c.train.eval_batch_size);
  f(K{.name = "train.seed",
      .doc = "seed of initialisation, order and augmentation",
      .min = 0,
      .max = 9007199254740992.0},
    c.train.seed);
  f(K{.name = "train.label_smoothing", .doc = "share of the target spread over all classes", .min = 0, .max = 0.999},
    c.train.label_smoothing);
  f(K{.name = "train.precision",
      .doc = "type of activations and of the weights in products; masters, statistics and sums are f32. auto: bf16 "
             "on a GPU and where the processor has instructions for it",
      .choices = {"auto", "f32", "bf16", "fp16"}},
    c.train.precision);
  f(K{.name = "train.loss_scale",
      .doc = "the gradient is computed of the loss times this, a power of two; 0: 1024 in fp16, else 1",
      .min = 0,
      .max = 16777216},
    c.train.loss_scale);
  f(K{.name = "train.tf32", .doc = "on a GPU: f32 products may round their operands to 10 bits"}, c.train.tf32);
  f(K{.name = "train.deterministic", .doc = "on a GPU: only convolutions that give the same bits every time"},
    c.train.deterministic);
  f(K{.name = "train.autotune",
      .doc = "on a GPU: time the allowed convolutions once and take the fastest (a resumed run repeats the choice); "
             "false: cuDNN's first offer, the same in every run"},
    c.train.autotune);
  f(K{.name = "train.graph", .doc = "on a GPU: from the third step on a step is one captured graph"}, c.train.graph);
  f(K{.name = "train.conv",
      .doc = "convolutions on the CPU: direct (oneDNN), winograd (own, for 3x3 with stride 1), or the faster one",
      .choices = {"auto", "direct", "winograd"}},
    c.train.conv);
  f(K{.name = "train.device",
      .doc = "where to train; check: on the GPU, with every result compared with the CPU's",
      .choices = {"auto", "cpu", "cuda", "check"}},
    c.train.device);
  f(K{.name = "train.on_nonfinite",
      .doc =
          "a loss or gradient that is not finite: end the run, leave the step out, or go back to the last checkpoint",
      .choices = {"stop", "skip", "rewind"}},
    c.train.on_nonfinite);
  f(K{.name = "train.max_skips",
      .doc = "so many bad steps in a row, or rewinds, are allowed; one more ends the run",
      .min = 1,
      .max = 1e6,
      .used_by_key = "train.on_nonfinite",
      .used_by = {"skip", "rewind"}},
    c.train.max_skips);
  f(K{.name = "train.verify_every",
      .doc = "every so many steps, one is computed twice and compared bit by bit: memory or a processor that errs ends "
             "the run; 0: never",
      .min = 0,
      .max = 1e9},
    c.train.verify_every);
  f(K{.name = "train.patience",
      .doc = "early stopping: epochs without a better stop_metric, then the best weights are restored; 0: off",
      .min = 0,
      .max = 1e6},
    c.train.patience);
  f(K{.name = "train.stop_metric", .doc = "what early stopping watches", .choices = {"val/acc", "val/loss"}},
    c.train.stop_metric);
  f(K{.name = "train.tta",
      .doc = "test-time augmentation, reported beside the plain accuracy",
      .choices = {"none", "flip", "flip_shift"}},
    c.train.tta);

  f(K{.name = "checkpoint.epochs",
      .doc = "epochs between two checkpoints (may be a fraction); 0: none but at the end",
      .min = 0,
      .max = 1e6},
    c.checkpoint.epochs);
  f(K{.name = "checkpoint.keep", .doc = "checkpoints that are kept, beside the best", .min = 2, .max = 10000},
    c.checkpoint.keep);
  f(K{.name = "checkpoint.every",
      .doc = "every so many checkpoints one is kept for good; 0: none",
      .min = 0,
      .max = 1e6},
    c.checkpoint.every);

  f(K{.name = "log.interval", .doc = "steps between two rows of training metrics", .min = 1}, c.log.interval);
  f(K{.name = "log.layers",
      .doc = "steps between two rows of each layer's norms and the effective learning rates; 0: none",
      .min = 0},
    c.log.layers);
  f(K{.name = "log.probe", .doc = "one weight to follow, such as conv1.weight[3,0,1,2]; empty: none"}, c.log.probe);
  f(K{.name = "log.smoothing",
      .doc = "bias-corrected moving average of the training loss, its beta; 0: off",
      .min = 0,
      .max = 1,
      .max_excluded = true},
    c.log.smoothing);
  f(K{.name = "log.tensorboard", .doc = "write event files for TensorBoard into the run folder"}, c.log.tensorboard);
}

// Whether images are held out for validation, as far as the config says: of a pack, only the file knows.
inline bool may_validate(const Config& c) {
  return c.data.name == "folder" ? c.data.val_share > 0 : c.data.name == "pack" || c.data.val > 0;
}

// Whether `key` has an effect in this config: data.samples has none while data.name is "cifar10".
bool is_used(const Config&, const Key& key);

// Reads a config file (TOML, at most 64 KiB), then applies `--set key=value` overrides in order; a later one wins.
// A value is typed by its key: 0.1, true, [100, 150], text without quotes; `key=` resets the key to its default.
//
// Every mistake is reported in one pass, in one Error(Exit::usage):
//   error: unknown key 'optimizer.momentun'
//     --> configs/sgd.toml:7:1
//      7 | momentun = 0.9
//        | ^^^^^^^^
//   help: did you mean 'optimizer.momentum'?
// The file is checked as if there were no overrides, then the overrides by themselves. Which keys are unused, and the
// rules between keys (milestones before train.epochs), are checked on what the two give together; they wait for the
// next run where a syntax error hides part of the file.
Config load_config(const std::filesystem::path& file, const std::vector<std::string>& overrides = {});

// The same for a text; `origin` is what messages call it.
Config parse_config(std::string_view text, const std::string& origin, const std::vector<std::string>& overrides = {});

// The resolved config: every key that has an effect, as TOML that load_config reads back to the same values.
// With `docs`, each key carries its one-line description and its range as a comment.
std::string to_toml(const Config&, bool docs = false);

// The keys, with their groups and phases, that have an effect in one of the two and differ; a value as TOML, empty
// where the key has none.
struct ConfigChange {
  std::string key, from, to;
};
std::vector<ConfigChange> differences(const Config& from, const Config& to);

// Whether a key may change in the middle of a run: it changes nothing of what was computed, nor how the next step is.
bool is_safe_to_change(std::string_view key);

// Where the value of each key that has an effect came from: "default", "--set", or "file:line".
using Origins = std::map<std::string, std::string, std::less<>>;
Config load_config(const std::filesystem::path& file, const std::vector<std::string>& overrides, Origins& origins);

}  // namespace linnet
