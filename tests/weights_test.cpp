// Weights as files: PyTorch's names and layouts, and a model that a file does not fit stays as it was.
#include "linnet/weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "linnet/error.h"
#include "linnet/model.h"
#include "tests/temp_dir.h"

namespace linnet {
namespace {

// A convolution, a linear layer and a batch norm, with values of their own.
struct Net {
  explicit Net(uint64_t seed = 1) {
    store.add("conv.weight", {2, 3, 4, 5}, true, uniform(1), Kind::conv_weight);
    store.add("bn.weight", {2}, false, constant(1));
    store.add("linear.weight", {3, 2}, true, uniform(1));
    store.add("linear.bias", {3}, false, uniform(1));
    store.add_buffer("bn.running_mean", {2}, 0.25f);
    store.add_buffer("bn.running_var", {2}, 1);
    store.seal(*backend, seed);
  }
  SafeTensors weights() { return get_weights(*backend, store); }
  void set(const SafeTensors& weights) { set_weights(*backend, store, weights, "test.safetensors"); }
  std::string refusal(const SafeTensors& weights) {
    try {
      set(weights);
    } catch (const Error& error) {
      EXPECT_EQ(error.exit, Exit::checkpoint);
      return error.what();
    }
    return "";
  }

  std::unique_ptr<Backend> backend = make_backend("cpu");
  ParamStore store;
};

std::map<std::string, std::vector<char>> bytes_of(const SafeTensors& weights) {
  std::map<std::string, std::vector<char>> bytes;
  for (const auto& [name, tensor] : weights.tensors) bytes[name] = tensor.bytes;
  return bytes;
}

float float_at(const StoredTensor& t, size_t i) {
  float value;
  std::memcpy(&value, t.bytes.data() + i * sizeof value, sizeof value);
  return value;
}
void set_float(StoredTensor& t, size_t i, float value) {
  std::memcpy(t.bytes.data() + i * sizeof value, &value, sizeof value);
}
StoredTensor zeros(const std::string& dtype, const std::vector<int64_t>& shape, size_t bytes) {
  return {dtype, shape, std::vector<char>(bytes)};
}

TEST(Weights, ConvolutionsAreStoredAsInPyTorch) {
  Net net;
  const Tensor& memory = net.store.params()[0]->master;  // [out, height, width, in] = [2, 3, 4, 5]
  std::vector<float> values(120);
  for (size_t i = 0; i < values.size(); ++i) values[i] = float(i);
  net.backend->upload(memory, values.data());

  SafeTensors weights = net.weights();
  const StoredTensor& file = weights.tensors.at("conv.weight");
  EXPECT_EQ(file.dtype, "F32");
  ASSERT_EQ(file.shape, (std::vector<int64_t>{2, 5, 3, 4}));
  size_t at = 0;
  for (int out = 0; out < 2; ++out)
    for (int in = 0; in < 5; ++in)
      for (int y = 0; y < 3; ++y)
        for (int x = 0; x < 4; ++x, ++at)
          ASSERT_EQ(float_at(file, at), float(out * 60 + y * 20 + x * 5 + in)) << out << in << y << x;

  // And back: the file's [1, 2, 0, 3] belongs at memory's [1, 0, 3, 2].
  set_float(weights.tensors.at("conv.weight"), 60 + 2 * 12 + 0 * 4 + 3, -7);
  net.set(weights);
  std::vector<float> after(120);
  net.backend->download(after.data(), memory);
  values[60 + 0 * 20 + 3 * 5 + 2] = -7;
  EXPECT_EQ(after, values);
}

TEST(Weights, OtherTensorsKeepTheirLayout) {
  Net net;
  const SafeTensors weights = net.weights();
  EXPECT_EQ(weights.tensors.size(), 6u);
  const StoredTensor& linear = weights.tensors.at("linear.weight");
  EXPECT_EQ(linear.shape, (std::vector<int64_t>{3, 2}));
  std::vector<float> memory(6);
  net.backend->download(memory.data(), net.store.params()[2]->master);
  for (size_t i = 0; i < memory.size(); ++i) EXPECT_EQ(float_at(linear, i), memory[i]);
  EXPECT_EQ(float_at(weights.tensors.at("bn.running_mean"), 1), 0.25f);
  EXPECT_EQ(float_at(weights.tensors.at("bn.running_var"), 0), 1.f);
}

TEST(Weights, AFileMakesAnotherModelTheSame) {
  const TempDir dir;
  Net a(1), b(2);
  SafeTensors changed = a.weights();
  set_float(changed.tensors.at("bn.running_var"), 1, 0.f);
  set_float(changed.tensors.at("linear.bias"), 0, -0.f);
  set_float(changed.tensors.at("linear.bias"), 1, std::numeric_limits<float>::denorm_min());
  a.set(changed);
  EXPECT_EQ(bytes_of(a.weights()), bytes_of(changed));
  EXPECT_NE(bytes_of(a.weights()), bytes_of(b.weights()));

  save_weights(dir / "w.safetensors", *a.backend, a.store, {{"model", "test"}});
  load_weights(dir / "w.safetensors", *b.backend, b.store);
  EXPECT_EQ(bytes_of(a.weights()), bytes_of(b.weights()));
  EXPECT_EQ(read_safetensors(dir / "w.safetensors").metadata.at("model"), "test");

  // The whole flat buffer: the numbers between the parameters are still zero.
  std::vector<float> flat_a(size_t(a.store.flat().n)), flat_b(flat_a.size());
  a.backend->download(flat_a.data(), a.store.flat().master);
  b.backend->download(flat_b.data(), b.store.flat().master);
  EXPECT_EQ(std::memcmp(flat_a.data(), flat_b.data(), flat_a.size() * sizeof(float)), 0);
}

TEST(Weights, BatchCountersOfPyTorchAreIgnored) {
  Net net;
  SafeTensors weights = net.weights();
  weights.tensors["bn.num_batches_tracked"] = zeros("I64", {}, 8);
  weights.tensors["num_batches_tracked"] = zeros("I64", {}, 8);
  EXPECT_EQ(net.refusal(weights), "");
  weights.tensors["xnum_batches_tracked"] = zeros("I64", {}, 8);
  EXPECT_NE(net.refusal(weights), "");
}

// PyTorch's order of a flattened picture is channel, height, width; memory has height, width, channel.
TEST(Weights, AFlattenedPictureIsStoredAsInPyTorch) {
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  ParamStore store;
  const Linear layer({store, "linear"}, Shape{2, 3, 4}, 5);
  store.seal(*backend, 1);
  const Tensor& memory = store.params()[0]->master;
  std::vector<float> values(5 * 24);
  for (size_t i = 0; i < values.size(); ++i) values[i] = float(i);
  backend->upload(memory, values.data());
  const SafeTensors weights = get_weights(*backend, store);
  const StoredTensor& file = weights.tensors.at("linear.weight");
  ASSERT_EQ(file.shape, (std::vector<int64_t>{5, 24}));
  size_t at = 0;
  for (int out = 0; out < 5; ++out)
    for (int c = 0; c < 4; ++c)
      for (int y = 0; y < 2; ++y)
        for (int x = 0; x < 3; ++x, ++at)
          ASSERT_EQ(float_at(file, at), float(out * 24 + (y * 3 + x) * 4 + c)) << out << c << y << x;
  backend->zero(memory);
  set_weights(*backend, store, weights, "test");
  std::vector<float> after(values.size());
  backend->download(after.data(), memory);
  EXPECT_EQ(after, values);
}

SafeTensors renamed(const SafeTensors& weights, const std::function<std::string(std::string)>& name) {
  SafeTensors out;
  for (const auto& [old, tensor] : weights.tensors) out.tensors[name(old)] = tensor;
  return out;
}
std::string replaced(std::string name, const std::string& from, const std::string& to) {
  if (const size_t at = name.find(from); at != name.npos) name.replace(at, from.size(), to);
  return name;
}

TEST(Weights, NamesThatPyTorchModelsHaveAreUnderstood) {
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  const auto build = [&](uint64_t seed) {
    auto store = std::make_unique<ParamStore>();
    make_model("resnet20", *store, {.shortcut = 'B'});
    store->seal(*backend, seed);
    return store;
  };
  const auto source = build(1);
  SafeTensors theirs = renamed(get_weights(*backend, *source), [](const std::string& name) {
    return "module." + replaced(replaced(name, "linear.", "fc."), ".shortcut.", ".downsample.");
  });
  theirs.tensors["module.bn1.num_batches_tracked"] = zeros("I64", {}, 8);
  EXPECT_TRUE(weights_facts(theirs).projects);
  EXPECT_EQ(weights_facts(theirs).classes, 10);
  EXPECT_EQ(weights_facts(theirs).channels, 3);
  const auto target = build(2);
  set_weights(*backend, *target, theirs, "theirs");
  EXPECT_EQ(bytes_of(get_weights(*backend, *target)), bytes_of(get_weights(*backend, *source)));

  // A prefix that only some names have is not one; two tensors for one name are not chosen between.
  for (const auto& [name, expected] : {std::pair{"conv1.weight", "'module.bn1.bias' is left over"},
                                       {"module.linear.weight", "'fc.weight' is left over"}}) {
    SafeTensors bad = theirs;
    bad.tensors[name] =
        bad.tensors.at(std::string(name) == "conv1.weight" ? "module.conv1.weight" : "module.fc.weight");
    try {
      set_weights(*backend, *target, bad, "bad");
      ADD_FAILURE() << name;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(expected), std::string::npos) << e.what();
    }
  }
}

TEST(Weights, ANewHeadKeepsItsFirstValues) {
  Net source(1), target(2);
  SafeTensors weights = source.weights();
  const auto head = target.weights().tensors.at("linear.weight").bytes;
  weights.tensors["linear.weight"] = zeros("F32", {7, 2}, 56);  // other classes
  weights.tensors["linear.bias"] = zeros("F32", {7}, 28);
  const std::string message = target.refusal(weights);
  EXPECT_NE(message.find("only the last layer differs: `linnet fork --new-head`"), std::string::npos) << message;
  set_weights(*target.backend, target.store, weights, "test", Head::fresh);
  EXPECT_EQ(target.weights().tensors.at("linear.weight").bytes, head);
  EXPECT_EQ(target.weights().tensors.at("conv.weight").bytes, weights.tensors.at("conv.weight").bytes);
  weights.tensors.erase("conv.weight");  // all but the head is looked at as ever
  EXPECT_THROW(set_weights(*target.backend, target.store, weights, "test", Head::fresh), Error);
}

TEST(Weights, EveryDifferenceIsRefusedAndTheModelUnchanged) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  struct Row {
    std::function<void(std::map<std::string, StoredTensor>&)> change;
    const char* expected;
  };
  const Row rows[] = {
      {[](auto& t) { t.erase("bn.running_var"); }, "'bn.running_var' is missing: expected F32 [2]"},
      {[](auto& t) { t.clear(); }, "6 of its tensors differ"},
      {[](auto& t) { t["extra"] = zeros("F32", {1}, 4); }, "'extra' is left over"},
      {[](auto& t) { t["\x1b[31m"] = zeros("F32", {1}, 4); }, "'\\x1b[31m' is left over"},
      {[](auto& t) {
         t["conv.weight"].shape = {2, 3, 4, 5};
       },
       "expected F32 [2,5,3,4], got F32 [2,3,4,5]"},
      {[](auto& t) {
         t["linear.weight"].shape = {2, 3};
       },
       "expected F32 [3,2], got F32 [2,3]"},
      {[](auto& t) { t["linear.weight"].shape = {6}; }, "expected F32 [3,2], got F32 [6]"},
      {[](auto& t) { t["linear.bias"] = zeros("F16", {3}, 6); }, "expected F32 [3], got F16 [3]"},
      {[](auto& t) { t["bn.weight"] = zeros("BF16", {2}, 4); }, "read in F32 alone: scripts/from_pytorch.py"},
      {[](auto& t) { t["layer2.0.shortcut.0.weight"] = zeros("F32", {1}, 4); }, "only the shortcuts differ: "},
      {[](auto& t) { t["linear.bias"] = zeros("I32", {3}, 12); }, "expected F32 [3], got I32 [3]"},
      {[](auto& t) { t["linear.bias"].bytes.resize(8); }, "'linear.bias': expected 12 bytes, got 8"},
      {[&](auto& t) { set_float(t["conv.weight"], 119, nan); },
       "'conv.weight': expected finite numbers, got nan at 119"},
      {[&](auto& t) { set_float(t["linear.bias"], 0, inf); }, "got inf at 0"},
      {[&](auto& t) { set_float(t["bn.running_mean"], 1, -inf); }, "got -inf at 1"},
      {[&](auto& t) { set_float(t["bn.running_var"], 1, nan); }, "got nan at 1"},
      {[](auto& t) { set_float(t["bn.running_var"], 0, -1e-3f); }, "no variance below 0, got -0.001 at 0"},
  };
  Net net(1), other(2);
  const auto before = bytes_of(net.weights());
  for (const Row& row : rows) {
    SafeTensors weights = other.weights();
    row.change(weights.tensors);
    const std::string message = net.refusal(weights);
    EXPECT_NE(message.find(row.expected), std::string::npos) << row.expected << ": " << message;
    EXPECT_NE(message.find("test.safetensors"), std::string::npos) << message;
    EXPECT_EQ(bytes_of(net.weights()), before) << row.expected;
  }
  EXPECT_EQ(net.refusal(other.weights()), "");  // the control
  EXPECT_EQ(bytes_of(net.weights()), bytes_of(other.weights()));
}

TEST(Weights, AllDifferencesAreListedAtOnce) {
  Net net;
  SafeTensors weights = net.weights();
  weights.tensors.erase("linear.bias");
  weights.tensors["head.bias"] = zeros("F32", {3}, 12);
  weights.tensors["linear.weight"].shape = {2, 3};
  weights.tensors["bn.running_mean"] = zeros("BF16", {2}, 4);
  set_float(weights.tensors["conv.weight"], 5, NAN);
  const std::string message = net.refusal(weights);
  EXPECT_EQ(message,
            "test.safetensors does not fit the model, which is unchanged; 5 of its tensors differ:\n"
            "  'conv.weight': expected finite numbers, got nan at 5\n"
            "  'linear.weight': expected F32 [3,2], got F32 [2,3]\n"
            "  'linear.bias' is missing: expected F32 [3]\n"
            "  'bn.running_mean': expected F32 [2], got BF16 [2]\n"
            "  'head.bias' is left over: the model has no such tensor");
}

TEST(Weights, AMissingOrDamagedFileLeavesTheModelUnchanged) {
  const TempDir dir;
  Net net(1), other(2);
  const auto before = bytes_of(net.weights());
  EXPECT_THROW(load_weights(dir / "missing", *net.backend, net.store), Error);
  save_weights(dir / "w", *other.backend, other.store, {});
  std::filesystem::resize_file(dir / "w", std::filesystem::file_size(dir / "w") - 1);
  EXPECT_THROW(load_weights(dir / "w", *net.backend, net.store), Error);
  EXPECT_EQ(bytes_of(net.weights()), before);
}

TEST(Weights, ResNet20HasPyTorchsNamesAndShapes) {
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  ParamStore store;
  const std::unique_ptr<Module> model = make_model("resnet20", store, {});
  store.seal(*backend, 1);
  const SafeTensors weights = get_weights(*backend, store);
  const auto shape = [&](const std::string& name) {
    return weights.tensors.contains(name) ? weights.tensors.at(name).shape : std::vector<int64_t>{-1};
  };
  using Dims = std::vector<int64_t>;
  EXPECT_EQ(shape("conv1.weight"), (Dims{16, 3, 3, 3}));
  EXPECT_EQ(shape("bn1.running_mean"), (Dims{16}));
  EXPECT_EQ(shape("layer1.0.conv1.weight"), (Dims{16, 16, 3, 3}));
  EXPECT_EQ(shape("layer2.0.conv1.weight"), (Dims{32, 16, 3, 3}));
  EXPECT_EQ(shape("layer3.2.bn2.running_var"), (Dims{64}));
  EXPECT_EQ(shape("linear.weight"), (Dims{10, 64}));
  EXPECT_EQ(shape("linear.bias"), (Dims{10}));
  EXPECT_EQ(weights.tensors.size(), size_t(19 + 19 * 4 + 2));  // 19 convolutions, 19 batch norms, one linear layer
  int64_t numbers = 0;
  for (const auto& [name, tensor] : weights.tensors)
    if (name.find("running") == std::string::npos) numbers += int64_t(tensor.bytes.size() / sizeof(float));
  EXPECT_EQ(numbers, 269722);  // He et al. 2016, table 6: 0.27 M
}

TEST(Weights, AStoreMustBeSealedAndItsNamesUnique) {
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  ParamStore store;
  store.add("x", {1}, true, constant(0));
  store.add_buffer("x", {1}, 0);
  EXPECT_THROW(get_weights(*backend, store), Error);
  EXPECT_THROW(set_weights(*backend, store, {}, "test"), Error);
  store.seal(*backend, 1);
  EXPECT_THROW(get_weights(*backend, store), Error);
}

}  // namespace
}  // namespace linnet
