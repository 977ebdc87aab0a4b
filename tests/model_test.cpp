// The models: sizes, names, first values, shapes, gradients, and that they learn.
#include "linnet/model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "tiny_run.h"

namespace linnet {
namespace {

ModelOptions options(int size, char shortcut = 'A') { return {.height = size, .width = size, .shortcut = shortcut}; }

int64_t count(const std::string& model, char shortcut = 'A') {
  ParamStore store;
  make_model(model, store, options(32, shortcut));
  return store.count();
}

TEST(Model, ResNetsHaveThePapersNumberOfParameters) {
  const std::map<std::string, std::pair<int64_t, int64_t>> expected = {
      {"8", {75290, 78042}},    {"20", {269722, 272474}}, {"32", {464154, 466906}},
      {"44", {658586, 661338}}, {"56", {853018, 855770}}, {"110", {1727962, 1730714}}};
  for (const auto& [depth, counts] : expected) {
    EXPECT_EQ(count("resnet" + depth, 'A'), counts.first) << depth;
    EXPECT_EQ(count("resnet" + depth, 'B'), counts.second) << depth;
    EXPECT_EQ(count("plain" + depth), counts.first) << depth;  // a zero-padded shortcut has no parameters
  }
}

TEST(Model, TheOthersToo) {
  const int64_t convolutions = 9 * (3 * 32 + 32 * 64 + 64 * 128), linear = 4 * 4 * 128 * 10 + 10;
  EXPECT_EQ(count("convnet"), convolutions + 2 * (32 + 64 + 128) + linear);
  EXPECT_EQ(count("convnet_nobn"), convolutions + linear);
  EXPECT_EQ(count("mlp"), 3072 * 100 + 100 + 100 * 10 + 10);
  EXPECT_EQ(count("linear"), 3072 * 10 + 10);
}

TEST(Model, NamesAreThoseOfPyTorchsModules) {
  ParamStore store;
  make_model("resnet20", store, options(32, 'B'));
  std::set<std::string> names;
  for (const Param* p : store.params()) names.insert(p->name);
  for (const Buffer& b : store.buffers()) names.insert(b.name);
  EXPECT_EQ(names.size(), store.params().size() + store.buffers().size());
  for (const char* name :
       {"conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "layer1.0.conv1.weight",
        "layer1.0.bn1.running_var", "layer1.2.conv2.weight", "layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.bias",
        "layer3.0.shortcut.1.running_mean", "layer3.2.bn2.weight", "linear.weight", "linear.bias"})
    EXPECT_TRUE(names.contains(name)) << name;
  // Without a change of shape there is nothing to learn in a shortcut.
  for (const char* name : {"layer1.0.shortcut.0.weight", "layer2.1.shortcut.0.weight"})
    EXPECT_FALSE(names.contains(name)) << name;
}

TEST(Model, WeightsDecayNormAndBiasesNeedNot) {
  ParamStore store;
  make_model("resnet20", store, options(32, 'B'));
  for (const Param* p : store.params()) EXPECT_EQ(p->decay, p->shape.rank() > 1) << p->name;
}

std::vector<float> values(const Tensor& t) { return {t.data<float>(), t.data<float>() + t.numel()}; }

double mean(const std::vector<float>& v) {
  double sum = 0;
  for (const float x : v) sum += double(x);
  return sum / double(v.size());
}
double deviation(const std::vector<float>& v) {
  const double centre = mean(v);
  double sum = 0;
  for (const float x : v) sum += (double(x) - centre) * (double(x) - centre);
  return std::sqrt(sum / double(v.size()));
}

// Fixed seed, so that the bounds (five standard errors) hold for ever or never.
TEST(Model, EveryConvolutionStartsWithHesDeviation) {
  const auto backend = make_cpu_backend(1);
  Net net(*backend, "resnet20", options(32, 'B'), 1);
  std::set<float> first_values;
  int convolutions = 0;
  for (const Param* p : net.params().params()) {
    const std::vector<float> v = values(p->master);
    if (p->shape.rank() != 4) continue;
    ++convolutions;
    first_values.insert(v[0]);
    const double n = double(v.size()), he = std::sqrt(2.0 / double(p->shape[1] * p->shape[2] * p->shape[3]));
    EXPECT_NEAR(deviation(v), he, 5 * he / std::sqrt(2 * n)) << p->name;
    EXPECT_NEAR(mean(v), 0, 5 * he / std::sqrt(n)) << p->name;
  }
  EXPECT_EQ(convolutions, 1 + 18 + 2);
  EXPECT_EQ(first_values.size(), 21u);  // no two layers share their random numbers
}

TEST(Model, NormsStartAsTheIdentityAndTheLastLayerAsPyTorchs) {
  const auto backend = make_cpu_backend(1);
  Net net(*backend, "resnet20", options(32), 1);
  for (const Param* p : net.params().params()) {
    const std::vector<float> v = values(p->master);
    const auto [least, most] = std::ranges::minmax(v);
    if (p->name.find("bn") != std::string::npos) {
      EXPECT_EQ(least, p->name.ends_with("weight") ? 1.f : 0.f) << p->name;
      EXPECT_EQ(most, least) << p->name;
    } else if (p->name.starts_with("linear")) {
      EXPECT_GE(least, -0.125f) << p->name;  // 1 / sqrt(64)
      EXPECT_LE(most, 0.125f) << p->name;
      EXPECT_NEAR(deviation(v), 0.125 / std::sqrt(3.0), v.size() > 100 ? 0.005 : 0.03) << p->name;
    }
  }
  for (const Buffer& b : net.params().buffers())
    for (const float v : values(b.value)) ASSERT_EQ(v, b.name.ends_with("running_var") ? 1.f : 0.f) << b.name;
}

TEST(Model, TheSeedDecidesTheFirstValues) {
  const auto backend = make_cpu_backend(1);
  const auto weights = [&](uint64_t seed) {
    return values(Net(*backend, "mlp", options(8), seed).params().flat().master);
  };
  EXPECT_EQ(weights(1), weights(1));
  EXPECT_NE(weights(1), weights(2));
  EXPECT_NE(weights(1), weights(1 + (uint64_t(1) << 32)));
}

TEST(Model, EveryModelGivesTenLogitsAnImage) {
  const auto backend = make_cpu_backend(2);
  for (const ModelEntry& entry : models())
    for (const int size : {8, 20, 33}) {
      if (size > 8 && entry.name.ends_with("110")) continue;  // slow, and no other code than at 56
      Net net(*backend, entry.name, options(size), 0);
      Pass pass{*backend, net.pool()};
      const Tensor logits = net.forward(pass, net.pool().zeros({2, size, size, 3}, DType::f32));
      EXPECT_EQ(logits.shape(), (Shape{2, 10})) << entry.name << " on " << size;
      for (const float v : values(logits)) ASSERT_TRUE(std::isfinite(v)) << entry.name << " on " << size;
    }
}

// The message of the Error(Exit::usage) that make_model throws.
std::string refused(const std::string& model, const ModelOptions& o) {
  ParamStore store;
  try {
    make_model(model, store, o);
  } catch (const Error& e) {
    EXPECT_EQ(e.exit, Exit::usage);
    return e.what();
  }
  return "";
}

TEST(Model, ImagesThatAreTooSmallAreRefused) {
  for (const char* model : {"resnet8", "plain8", "convnet", "convnet_nobn", "convnet_postbn"}) {
    EXPECT_NE(refused(model, options(7)).find("at least 8x8 pixels, got 7x7"), std::string::npos) << model;
    EXPECT_NE(refused(model, {.height = 32, .width = 4}), "") << model;
  }
}

TEST(Model, AnUnknownNameGetsTheNearest) {
  EXPECT_NE(refused("resnet21", {}).find("did you mean 'resnet20'?"), std::string::npos);
  EXPECT_NE(refused("transformer", {}).find("known are resnet8, "), std::string::npos);
}

Config learning_config(const std::string& model, char shortcut = 'A') {
  Config c = tiny_config(model);
  c.model.shortcut = shortcut;
  return c;
}

TEST(Model, EveryParameterGetsAGradientAndTheFirstLossIsThatOfGuessing) {
  for (const auto& [model, shortcut] : std::vector<std::pair<std::string, char>>{
           {"resnet20", 'A'}, {"resnet20", 'B'}, {"plain20", 'A'}, {"convnet", 'A'}, {"mlp", 'A'}, {"linear", 'A'}}) {
    TinyRun run(learning_config(model, shortcut));
    run.trainer.start_epoch(0);
    run.trainer.step();
    EXPECT_NEAR(run.trainer.last_loss(), std::log(10.0), 0.6) << model;
    for (const Param* p : run.trainer.net().params().params()) {
      double squares = 0;
      for (const float g : values(p->grad)) squares += double(g) * double(g);
      EXPECT_TRUE(std::isfinite(squares)) << model << ' ' << p->name;
      EXPECT_GT(squares, 0) << model << ' ' << p->name;
    }
  }
}

TEST(Model, SixteenImagesAreLearntByHeart) {
  for (const char* model : {"resnet20", "convnet"}) {
    Config c = learning_config(model);
    c.data.samples = c.train.batch_size = 16;
    c.data.val = 0;
    c.data.image_size = 8;
    c.augment = {.crop_pad = 0, .flip = "none"};
    c.train.epochs = 100;  // of one step
    TinyRun run(c);
    EXPECT_EQ(run.run(), Outcome::done);
    EXPECT_GE(run.last("epoch")["train/acc"], 0.95) << model;
    EXPECT_LE(run.last("epoch")["train/loss"], 0.3) << model;
  }
}

}  // namespace
}  // namespace linnet
