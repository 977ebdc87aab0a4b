// Linnet against PyTorch: tests/golden/*.safetensors hold what PyTorch computes in float64, written by
// scripts/reference_torch.py, which explains the numbers. Inputs and first weights are drawn here as they are there.
#include "flat_run.h"
#include "linnet/optimizer.h"
#include "linnet/safetensors.h"
#include "linnet/trainer.h"
#include "tests/golden.h"

namespace linnet {
namespace {

using Doubles = std::vector<double>;

uint32_t random_word(std::string_view name, int64_t item, int64_t epoch = 0) {
  uint32_t stream = 0x811C9DC5;  // FNV-1a
  for (const char byte : name) stream = (stream ^ uint8_t(byte)) * 0x01000193;
  return random4(1, Draw::test, uint64_t(item), uint32_t(epoch), stream).v[0];
}

// offset + scale * uniform in [-1, 1), rounded to float.
Doubles draw(std::string_view name, int64_t count, double scale = 1, double offset = 0, int64_t epoch = 0) {
  Doubles v(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    v[size_t(i)] = double(float(offset + scale * (double(random_word(name, i, epoch) >> 8) * 0x1p-23 - 1)));
  return v;
}

Doubles draw_labels(std::string_view name, int64_t count, int64_t epoch = 0) {
  Doubles v(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) v[size_t(i)] = below(random_word(name, i, epoch), 10);
  return v;
}

// PyTorch's [n,c,h,w] in Linnet's order [n,h,w,c] and back: rows and columns of n matrices exchanged.
Doubles transpose(const Doubles& v, int64_t n, int64_t rows, int64_t columns) {
  Doubles out(v.size());
  for (int64_t i = 0; i < n; ++i)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c)
        out[size_t((i * columns + c) * rows + r)] = v[size_t((i * rows + r) * columns + c)];
  return out;
}
// `s` is Linnet's shape in both. Only four extents differ.
Doubles to_torch(const Doubles& v, const Shape& s) { return s.rank() == 4 ? transpose(v, s[0], s[1] * s[2], s[3]) : v; }
Doubles from_torch(const Doubles& v, const Shape& s) {
  return s.rank() == 4 ? transpose(v, s[0], s[3], s[1] * s[2]) : v;
}

class Golden {
 public:
  explicit Golden(const std::string& name) : file_(read_safetensors(golden(name + ".safetensors"))) {}
  bool has(const std::string& name) const { return file_.tensors.count(name) > 0; }
  size_t size() const { return file_.tensors.size(); }
  Doubles operator[](const std::string& name) const {
    const StoredTensor& t = file_.tensors.at(name);
    require(t.dtype == "F64", "[golden] {} is {}, expected F64", name, t.dtype);
    Doubles v(t.bytes.size() / sizeof(double));
    std::memcpy(v.data(), t.bytes.data(), t.bytes.size());
    return v;
  }

 private:
  SafeTensors file_;
};

class PytorchTest : public OpTest {};
LINNET_ON_EVERY_BACKEND(PytorchTest);

// ---- ResNet-20: one step, ten steps ----

// 2 distinct images, each 64 times: a ReLU input near 0 changes its sign from rounding alone, and one that does changes
// a gradient by 1e-3, so the batches are chosen to have none (128 distinct images always have some: there PyTorch's own
// f32 is 2e-3 from its f64). lr is 0.01 because ten steps at 0.1 amplify rounding to above 1e-2, PyTorch's too.
constexpr int64_t kBatch = 128, kDistinct = 2, kSteps = 10;
constexpr double kIssueTolerance = 1e-4;

// [128,32,32,3]: coarse blocks of 8x8 pixels and fine noise.
Doubles images(int64_t batch) {
  const Doubles coarse = draw("coarse", kDistinct * 3 * 4 * 4, 1, 0, batch);
  Doubles v = draw("fine", kDistinct * 3 * 32 * 32, 1, 0, batch);
  for (int64_t i = 0; i < int64_t(v.size()); ++i) {
    const int64_t x = i % 32, y = i / 32 % 32, plane = i / (32 * 32);
    v[size_t(i)] += coarse[size_t((plane * 4 + y / 8) * 4 + x / 8)];
  }
  v = from_torch(v, {kDistinct, 32, 32, 3});
  Doubles all;
  for (int64_t k = 0; k < kBatch / kDistinct; ++k) all.insert(all.end(), v.begin(), v.end());
  return all;
}

Doubles first_weights(const Param& p) {
  const int64_t n = p.shape.numel();
  if (p.name.starts_with("linear")) return draw(p.name, n, 0.125);
  if (p.kind == Kind::conv_weight) return from_torch(draw(p.name, n, std::sqrt(6.0 / double(n / p.shape[0]))), p.shape);
  return draw(p.name, n, 0.25, p.name.ends_with("weight") ? 1 : 0);
}

// How far `got` (in PyTorch's order) is from a fingerprint: 64 elements or all, 8 sums under random signs, the L2 norm,
// the largest magnitude. Elements relative to the largest magnitude, sums relative to the norm.
double relative_error(const std::string& name, const Doubles& got, const Doubles& want) {
  const int64_t n = int64_t(got.size()), samples = std::min<int64_t>(n, 64);
  EXPECT_EQ(int64_t(want.size()), samples + 10) << name;
  if (int64_t(want.size()) != samples + 10) return std::numeric_limits<double>::infinity();
  const double *sums = want.data() + samples, norm = sums[8], largest = sums[9];
  double worst = 0;
  const auto compare = [&](double a, double b, double scale) {
    const double error = std::abs(a - b) / scale;
    worst = std::max(worst, error >= 0 ? error : std::numeric_limits<double>::infinity());  // a NaN is an error too
  };
  for (int64_t i = 0; i < samples; ++i)
    compare(got[size_t(n <= 64 ? i : below(random_word("at " + name, i), uint32_t(n)))], want[size_t(i)], largest);
  double mine[8] = {}, squares = 0, top = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double v = got[size_t(i)];
    const uint32_t signs = random_word("signs", i);
    for (int k = 0; k < 8; ++k) mine[k] += signs >> k & 1 ? v : -v;
    squares += v * v;
    top = std::max(top, std::abs(v));
  }
  for (int k = 0; k < 8; ++k) compare(mine[k], sums[k], norm);
  compare(std::sqrt(squares), norm, norm);
  compare(top, largest, largest);
  return worst;
}

void check_resnet(Backend& be, char option) {
  const Golden golden(fmt::format("resnet20_{}", option == 'A' ? 'a' : 'b'));
  ModelOptions options;
  options.shortcut = option;
  Net net(be, "resnet20", options, 0, {.slots = Momentum::kSlots, .decay_all = true});
  Momentum rule;
  rule.nesterov = true;
  const std::vector<Param*>& params = net.params().params();
  for (const Param* p : params) upload(be, p->master, first_weights(*p));

  size_t compared = 3;  // losses, batches, lr
  std::map<std::string, double> worst;
  const auto compare = [&](const std::string& kind, const std::string& name, const Tensor& t) {
    const std::string full = kind + " " + name;
    ASSERT_TRUE(golden.has(full)) << full;
    const double error = relative_error(full, to_torch(download(be, t), t.shape()), golden[full]);
    EXPECT_LE(error, kIssueTolerance) << full;
    worst[kind] = std::max(worst[kind], error);
    ++compared;
  };

  Tape tape(be, net.pool());
  const Tensor step = make_step(be), one = tensor_of(be, {1}, DType::f32, {1});
  for (int64_t k = 0; k < kSteps; ++k) {
    const int64_t batch = int64_t(golden["batches"][size_t(k)]);
    tape.begin_step();
    Pass pass{be, net.pool(), &tape, true, step};
    const Tensor logits = net.forward(pass, tensor_of(be, {kBatch, 32, 32, 3}, DType::f32, images(batch)));
    const Tensor labels = tensor_of(be, {kBatch}, DType::i32, draw_labels("labels", kBatch, batch));
    const Loss loss = softmax_cross_entropy(pass, logits, labels, 0, 1.f / float(kBatch));
    tape.backward(loss.loss, one);
    tape.end_step(params);

    const double want = golden["losses"][size_t(k)], error = std::abs(download(be, loss.loss)[0] - want) / want;
    EXPECT_LE(error, kIssueTolerance) << "loss of step " << k;
    worst["loss"] = std::max(worst["loss"], error);
    if (k == 0) {
      for (const Param* p : params) compare("gradient", p->name, p->grad);
      for (const Buffer& b : net.params().buffers()) compare("first", b.name, b.value);
    }
    update_once(be, rule, net.params().flat(), step, golden["lr"][0], 1e-4, k + 1);
  }
  for (const Param* p : params) compare("last", p->name, p->master);
  for (const Buffer& b : net.params().buffers()) compare("last", b.name, b.value);
  EXPECT_EQ(compared, golden.size()) << "tensors of the golden that nothing was compared with";
  for (const auto& [kind, error] : worst) testing::Test::RecordProperty(kind, fmt::format("{:.1e}", error));
}

TEST_P(PytorchTest, ResNet20ShortcutA) { check_resnet(be(), 'A'); }
TEST_P(PytorchTest, ResNet20ShortcutB) { check_resnet(be(), 'B'); }

// ---- Single operations ----

constexpr double kOpTolerance = 2e-6;  // of the largest element

struct Drawn {
  std::string name;
  Shape shape;  // Linnet's
  double scale = 1, offset = 0;

  Tensor upload_to(Backend& be) const { return tensor_of(be, shape, DType::f32, values()); }
  Doubles values() const { return from_torch(draw(name, shape.numel(), scale, offset), shape); }
};

struct TorchCase {
  std::string name;
  Drawn x;
  std::function<Tensor(Pass&, const Operands&)> f;
  std::vector<Drawn> params = {};
};

class TorchOps {
 public:
  explicit TorchOps(Backend& be) : be_(be) {}

  void check(const TorchCase& c) {
    SCOPED_TRACE(c.name);
    Pool pool(be_);
    Tape tape(be_, pool);
    ParamStore store;
    Operands operands;
    for (const Drawn& w : c.params) operands.w.push_back(&store.add(w.name, w.shape, true, constant(0)));
    for (const auto& [name, fill] : {std::pair("mean", 0.f), {"var", 1.f}})
      operands.state.push_back(&store.add_buffer(name, {8}, fill));
    store.seal(be_, 0);
    for (size_t i = 0; i < c.params.size(); ++i) upload(be_, operands.w[i]->master, c.params[i].values());

    tape.begin_step();
    operands.x.push_back(tape.leaf(c.x.upload_to(be_)));
    Pass pass{be_, pool, &tape, true};
    const Tensor y = c.f(pass, operands);
    tape.backward(y, Drawn{c.name + " dy", y.shape()}.upload_to(be_));
    compare(c.name + ".y", y);
    compare(c.name + ".dx0", tape.grad(operands.x[0]));
    for (size_t i = 0; i < c.params.size(); ++i) compare(fmt::format("{}.dw{}", c.name, i), operands.w[i]->grad);
    for (const Buffer* b : operands.state)
      if (golden_.has(c.name + "." + b->name)) compare(c.name + "." + b->name, b->value);
  }

 private:
  void compare(const std::string& name, const Tensor& t) {
    ASSERT_TRUE(golden_.has(name)) << name;
    expect_close({{name, to_torch(download(be_, t), t.shape())}}, {{name, golden_[name]}}, kOpTolerance);
  }

  Backend& be_;
  Golden golden_{"operations"};
};

TEST_P(PytorchTest, Activations) {
  TorchOps ops(be());
  for (const auto& [name, op] : {std::pair<const char*, Unary>{"relu", Relu{}},
                                 {"leaky_relu", LeakyRelu{0.125f}},
                                 {"sigmoid", Sigmoid{}},
                                 {"tanh", Tanh{}},
                                 {"silu", Silu{}},
                                 {"gelu", Gelu{}}})
    ops.check({name, {fmt::format("{} x", name), {20, 15}, 8}, [op = op](Pass& p, const Operands& o) {
                 return unary(p, o.x[0], op);
               }});
}

TEST_P(PytorchTest, Pooling) {
  TorchOps ops(be());
  const Drawn x{"pool x", {2, 7, 9, 3}};
  for (const Window w : {Window{2, 2, 2, 0}, {3, 3, 2, 1}, {3, 2, 1, 1}}) {
    const std::string name = fmt::format("{}{}{}{}", w.height, w.width, w.stride, w.pad);
    ops.check({"max_pool " + name, x, [w](Pass& p, const Operands& o) { return max_pool(p, o.x[0], w); }});
    ops.check({"avg_pool " + name, x, [w](Pass& p, const Operands& o) { return avg_pool(p, o.x[0], w); }});
  }
  ops.check({"global_avg_pool", x, [](Pass& p, const Operands& o) { return global_avg_pool(p, o.x[0]); }});
}

TEST_P(PytorchTest, Products) {
  TorchOps ops(be());
  for (const auto& [kernel, conv] : {std::pair(3, Conv{1, 1}), {3, {2, 1}}, {1, {2, 0}}, {5, {1, 2}}})
    ops.check({fmt::format("conv2d {}{}{}", kernel, conv.stride, conv.pad),
               {"conv x", {2, 7, 6, 5}},
               [conv = conv](Pass& p, const Operands& o) { return conv2d(p, o.x[0], *o.w[0], conv); },
               {{"conv w", {4, kernel, kernel, 5}}}});
  ops.check({"linear",
             {"linear x", {9, 13}},
             [](Pass& p, const Operands& o) { return linear(p, o.x[0], *o.w[0], *o.w[1]); },
             {{"linear w", {5, 13}}, {"linear b", {5}}}});
}

TEST_P(PytorchTest, Normalisation) {
  TorchOps ops(be());
  const std::vector<Drawn> params = {{"norm scale", {8}, 1, 1}, {"norm bias", {8}}};
  const Drawn x{"norm x", {3, 5, 4, 8}, 4, 2};
  for (const int groups : {1, 4, 8})
    ops.check({fmt::format("group_norm {}", groups), x,
               [groups](Pass& p, const Operands& o) { return group_norm(p, o.x[0], *o.w[0], *o.w[1], groups); },
               params});
  ops.check({"layer_norm",
             {"row x", {6, 8}, 4, 2},
             [](Pass& p, const Operands& o) { return layer_norm(p, o.x[0], *o.w[0], *o.w[1]); },
             params});
  ops.check({"batch_norm", x,
             [](Pass& p, const Operands& o) {
               return batch_norm(p, o.x[0], *o.w[0], *o.w[1], *o.state[0], *o.state[1], Bn{});
             },
             params});
}

TEST_P(PytorchTest, Losses) {
  TorchOps ops(be());
  Doubles targets = draw_labels("targets", 16);
  targets[3] = -1;
  for (const float smoothing : {0.f, 0.125f, 0.5f})
    ops.check({fmt::format("cross_entropy {:g}", smoothing), {"logits", {16, 10}, 8}, [&](Pass& p, const Operands& o) {
                 const Tensor labels = tensor_of(p.be, {16}, DType::i32, targets);
                 return softmax_cross_entropy(p, o.x[0], labels, smoothing, 1.f / 15).loss;
               }});
  ops.check({"mse_loss", {"mse x", {7, 5}}, [](Pass& p, const Operands& o) {
               return mse_loss(p, o.x[0], Drawn{"mse target", {7, 5}}.upload_to(p.be));
             }});
}

// ---- Rules over many steps ----

TEST_P(PytorchTest, HundredStepsOfSgd) {
  constexpr int64_t n = 32;
  const Golden golden("operations");
  struct Case {
    float momentum, dampening;
    bool nesterov;
    float decay;
  };
  for (const Case c : {Case{0, 0, false, 0},
                       {0.9f, 0, false, 0},
                       {0.9f, 0.5f, false, 0.01f},
                       {0.9f, 0, true, 0.01f},
                       {0, 0, false, 0.1f}}) {
    const std::string name = fmt::format("sgd {:g} {:g} {:d} {:g}", c.momentum, c.dampening, c.nesterov, c.decay);
    const Flat flat = flat_of(be(), draw("sgd w", n), Doubles(n), 1, n);
    Rule rule = Sgd{};
    if (c.momentum > 0) {
      Momentum& momentum = rule.emplace<Momentum>();
      momentum.momentum = double(c.momentum);
      momentum.dampening = double(c.dampening);
      momentum.nesterov = c.nesterov;
    }
    const Tensor params = make_step(be());
    Doubles path;
    for (int64_t step = 0; step < 100; ++step) {
      upload(be(), flat.grad, draw("sgd g", n, 1, 0, step));
      update_once(be(), rule, flat, params, 0.05, double(c.decay), step + 1);
      const Doubles w = download(be(), flat.master);
      path.insert(path.end(), w.begin(), w.end());
    }
    expect_close({{name, path}}, {{name, golden[name]}}, kOpTolerance);
  }
}

TEST_P(PytorchTest, ClippingByNorm) {
  const Golden golden("operations");
  for (const float max_norm : {0.5f, 100.f}) {
    const std::string name = fmt::format("clip {:g}", max_norm);
    Doubles g = draw("clip g", 300);
    const Tensor step = make_step(be()), sums(be().allocate(16), {2}, DType::f64);
    be().zero(sums);
    be().judge_step(step, tensor_of(be(), {300}, DType::f32, g), nullptr, sums, {.norm = max_norm});
    const StepResult after = read_step(be(), step);
    for (double& e : g) e *= double(after.clip_scale);
    const Doubles want = golden[name];
    expect_close({{name, g}}, {{name, Doubles(want.begin(), want.end() - 1)}}, kOpTolerance);
    EXPECT_NEAR(double(after.grad_norm), want.back(), kOpTolerance * want.back());
  }
}

}  // namespace
}  // namespace linnet
