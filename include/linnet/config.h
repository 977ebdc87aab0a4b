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
    bool shuffle = true;
    bool drop_last = true;
    std::vector<double> mean, std;
    int64_t samples = 10000;
    int64_t image_size = 32;
  } data;
  struct {
    int64_t crop_pad = 4;
    bool flip = true;
  } augment;
  struct {
    std::string name = "sgd";
    double lr = 0.1;
    double momentum = 0.9;
    double dampening = 0;
    bool nesterov = false;
    double weight_decay = 1e-4;
    bool decay_norm_and_bias = true;
    double clip_norm = 0;
  } optimizer;
  struct {
    std::string name = "multistep";
    double warmup = 0;
    std::vector<double> milestones;
    double gamma = 0.1;
    double min_lr = 0;
  } schedule;
  struct {
    int64_t epochs = 200;
    int64_t batch_size = 128;
    int64_t eval_batch_size = 500;
    int64_t seed = 0;
    double label_smoothing = 0;
    std::string precision = "auto";
    std::string device = "auto";
  } train;
  struct {
    int64_t interval = 50;
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
};

// Calls f(Key, value) for every key, in the order in which a config file shows them. `C` is Config or const Config.
template <class C, class F>
void visit(C& c, F&& f) {
  using K = Key;
  f(K{.name = "model.name", .doc = "network, by its name in `linnet list models`"}, c.model.name);
  f(K{.name = "model.shortcut",
      .doc = "residual shortcut where the shape changes: A pads with zeros, B is a 1x1 convolution",
      .choices = {"A", "B"},
      .used_by_key = "model.name",
      .used_by = {"resnet20", "resnet32", "resnet44", "resnet56", "resnet110"}},
    c.model.shortcut);
  f(K{.name = "model.dropout",
      .doc = "probability of dropping a feature before the last layer",
      .min = 0,
      .max = 0.999,
      .used_by_key = "model.name",
      .used_by = {"resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "plain20", "plain32", "plain44",
                  "plain56", "plain110", "convnet", "convnet_nobn", "mlp"}},
    c.model.dropout);

  f(K{.name = "data.name", .doc = "data set", .choices = {"cifar10", "synthetic"}}, c.data.name);
  f(K{.name = "data.path",
      .doc = "folder or archive of the data set; empty: $LINNET_DATA, then the cache",
      .used_by_key = "data.name",
      .used_by = {"cifar10"}},
    c.data.path);
  f(K{.name = "data.val", .doc = "training images held out for validation", .min = 0}, c.data.val);
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
      .doc = "height and width of the synthetic images, pixels",
      .min = 4,
      .max = 224,
      .used_by_key = "data.name",
      .used_by = {"synthetic"}},
    c.data.image_size);

  f(K{.name = "augment.crop_pad",
      .doc = "random crop after padding with this many black pixels; 0: off",
      .min = 0,
      .max = 32},
    c.augment.crop_pad);
  f(K{.name = "augment.flip", .doc = "random horizontal flip"}, c.augment.flip);

  f(K{.name = "optimizer.name", .doc = "optimizer, by its name in `linnet list optimizers`"}, c.optimizer.name);
  f(K{.name = "optimizer.lr", .doc = "base learning rate", .min = 0, .max = 1e4, .min_excluded = true}, c.optimizer.lr);
  f(K{.name = "optimizer.momentum",
      .doc = "momentum factor, as in PyTorch's SGD",
      .min = 0,
      .max = 1,
      .max_excluded = true,
      .used_by_key = "optimizer.name",
      .used_by = {"sgd"}},
    c.optimizer.momentum);
  f(K{.name = "optimizer.dampening",
      .doc = "dampening of the momentum, as in PyTorch's SGD",
      .min = 0,
      .max = 1,
      .used_by_key = "optimizer.name",
      .used_by = {"sgd"}},
    c.optimizer.dampening);
  f(K{.name = "optimizer.nesterov",
      .doc = "Nesterov momentum, as in PyTorch's SGD",
      .used_by_key = "optimizer.name",
      .used_by = {"sgd"}},
    c.optimizer.nesterov);
  f(K{.name = "optimizer.weight_decay", .doc = "L2 coefficient added to the gradient", .min = 0, .max = 1},
    c.optimizer.weight_decay);
  f(K{.name = "optimizer.decay_norm_and_bias", .doc = "apply weight decay to batch-norm parameters and biases too"},
    c.optimizer.decay_norm_and_bias);
  f(K{.name = "optimizer.clip_norm", .doc = "clip the gradient to this global norm; 0: off", .min = 0},
    c.optimizer.clip_norm);

  f(K{.name = "schedule.name", .doc = "learning-rate schedule", .choices = {"constant", "multistep", "cosine"}},
    c.schedule.name);
  f(K{.name = "schedule.warmup", .doc = "linear warmup, epochs", .min = 0}, c.schedule.warmup);
  f(K{.name = "schedule.milestones",
      .doc = "epochs after which the learning rate is multiplied by gamma",
      .min = 0,
      .used_by_key = "schedule.name",
      .used_by = {"multistep"}},
    c.schedule.milestones);
  f(K{.name = "schedule.gamma",
      .doc = "factor at each milestone",
      .min = 0,
      .max = 1,
      .min_excluded = true,
      .used_by_key = "schedule.name",
      .used_by = {"multistep"}},
    c.schedule.gamma);
  f(K{.name = "schedule.min_lr",
      .doc = "learning rate at the end of the cosine",
      .min = 0,
      .used_by_key = "schedule.name",
      .used_by = {"cosine"}},
    c.schedule.min_lr);

  f(K{.name = "train.epochs", .doc = "passes over the training split", .min = 1, .max = 1e6}, c.train.epochs);
  f(K{.name = "train.batch_size", .doc = "images per step", .min = 1, .max = 65536}, c.train.batch_size);
  f(K{.name = "train.eval_batch_size",
      .doc = "images per evaluation batch (no effect on the result)",
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
      .doc = "type of activations and of the weights used in the products",
      .choices = {"auto", "f32"}},
    c.train.precision);
  f(K{.name = "train.device", .doc = "where to train", .choices = {"auto", "cpu", "cuda"}}, c.train.device);

  f(K{.name = "log.interval", .doc = "steps between two rows of training metrics", .min = 1}, c.log.interval);
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

// Where the value of each key that has an effect came from: "default", "--set", or "file:line".
using Origins = std::map<std::string, std::string, std::less<>>;
Config load_config(const std::filesystem::path& file, const std::vector<std::string>& overrides, Origins& origins);

}  // namespace linnet
