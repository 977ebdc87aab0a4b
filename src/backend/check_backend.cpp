// Two backends side by side: every call runs on both, on the same operands, and the results are compared at once. So an
// error is found in the call that makes it, whatever came before. For finding faults: each call copies its operands.
#include <cmath>
#include <cstring>
#include <map>
#include <utility>

#include "backends.h"

namespace linnet {

namespace {

// Of the largest magnitude in a result. f32: sums of 10^6 terms in another order differ by some 10^-5. 16 bits: one
// unit in the last place, twice.
double tolerance_of(DType dtype, bool tf32) {
  switch (dtype) {
    case DType::bf16:
      return 0x1p-6;
    case DType::fp16:
      return 0x1p-9;
    case DType::f32:
      return tf32 ? 0x1p-8 : 1e-4;
    default:
      return 0;
  }
}

// A tensor's elements as doubles.
std::vector<double> values_of(Backend& backend, const Tensor& t) {
  std::vector<char> bytes(t.bytes());
  backend.download(bytes.data(), t);
  std::vector<double> values(size_t(t.numel()));
  const auto read = [&]<class T>(T element) {
    for (size_t i = 0; i < values.size(); ++i) {
      std::memcpy(&element, bytes.data() + i * sizeof element, sizeof element);
      if constexpr (std::is_arithmetic_v<T>)
        values[i] = double(element);
      else
        values[i] = double(float(element));
    }
  };
  switch (t.dtype()) {
    case DType::u8:
      read(uint8_t{});
      break;
    case DType::i32:
      read(int32_t{});
      break;
    case DType::f32:
      read(float{});
      break;
    case DType::bf16:
      read(bf16{});
      break;
    case DType::fp16:
      read(fp16{});
      break;
    case DType::f64:
      read(double{});
      break;
  }
  return values;
}

std::vector<double> values_of(const StepResult& r) {
  return {double(r.clip_scale), double(r.grad_norm), r.residue,         double(r.bad),    double(r.bad_in_row),
          double(r.halted),     double(r.bad_step),  double(r.clipped), double(r.skipped)};
}

std::string device_of(const Backend& backend) {
  for (const auto& [key, value] : backend.info())
    if (key == "device") return value;
  return "?";
}

class CheckBackend final : public Backend {
 public:
  CheckBackend(std::unique_ptr<Backend> tested, std::unique_ptr<Backend> trusted, bool tf32)
      : tested_(std::move(tested)), trusted_(std::move(trusted)), tf32_(tf32) {}

  Device device() const override { return tested_->device(); }
  std::vector<std::pair<std::string, std::string>> info() const override {
    auto lines = tested_->info();
    lines.emplace_back("checked against", device_of(*trusted_));
    return lines;
  }
  DType best_precision() const override { return tested_->best_precision(); }
  std::string choices() const override { return tested_->choices(); }
  void set_choices(const std::string& choices) override { tested_->set_choices(choices); }
  Counters counters() const override { return tested_->counters(); }

  std::shared_ptr<Block> allocate(size_t bytes) override { return tested_->allocate(bytes); }
  void upload(const Tensor& dst, const void* host) override { tested_->upload(dst, host); }
  void download(void* host, const Tensor& src) override { tested_->download(host, src); }
  void synchronize() override { tested_->synchronize(); }
  // Nothing is captured: in a replay no result could be looked at.
  std::unique_ptr<Replay> capture(std::function<void()> step) override {
    struct Again : Replay {
      std::function<void()> step;
      void run() override { step(); }
    };
    auto again = std::make_unique<Again>();
    again->step = std::move(step);
    return again;
  }

  void copy(const Tensor& dst, const Tensor& src) override {
    Call c(*this, "copy");
    const Tensor d = c.out("dst", dst), s = c.in("src", src);
    c.run([&](Backend& b, bool t) { b.copy(t ? dst : d, t ? src : s); });
  }
  void zero(const Tensor& dst) override {
    Call c(*this, "zero");
    const Tensor d = c.out("dst", dst);
    c.run([&](Backend& b, bool t) { b.zero(t ? dst : d); });
  }

  // takes_unapplied_bn is false: a result that is never written could not be compared. In bf16 the tested backend alone
  // then rounds less (InputBn::applied).

  // -- In the lambdas `t` is true for the backend that is tested: it gets the caller's tensors, the other one their
  // twins, which bear their first letter or a 2.
  bool conv_forward(const Tensor& y, const Tensor& x, const Tensor& w, Conv conv, const Tensor* moments) override {
    Call c(*this, "conv_forward");
    const Tensor y2 = c.out("y", y), x2 = c.in("x", x), w2 = c.in("w", w);
    bool known = false;
    c.run([&](Backend& b, bool t) {
      if (t)
        known = b.conv_forward(y, x, w, conv, moments);
      else
        b.conv_forward(y2, x2, w2, conv, nullptr);  // it takes the moments of y itself: the batch norm shows these
    });
    return known;
  }
  void conv_backward_data(const Tensor& dx, const Tensor& dy, const Tensor& w, Conv conv) override {
    Call c(*this, "conv_backward_data");
    const Tensor dx2 = c.out("dx", dx), dy2 = c.in("dy", dy), w2 = c.in("w", w);
    c.run([&](Backend& b, bool t) { b.conv_backward_data(t ? dx : dx2, t ? dy : dy2, t ? w : w2, conv); });
  }
  void conv_backward_weight(const Tensor& dw, const Tensor& dy, const Tensor& x, Conv conv) override {
    Call c(*this, "conv_backward_weight");
    const Tensor dw2 = c.out("dw", dw), dy2 = c.in("dy", dy), x2 = c.in("x", x);
    c.run([&](Backend& b, bool t) { b.conv_backward_weight(t ? dw : dw2, t ? dy : dy2, t ? x : x2, conv); });
  }
  bool conv_backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w, Conv conv,
                     const Tensor* plus, const InputBn* input, const OutputBn* output) override {
    Call c(*this, "conv_backward");
    const Tensor plus2 = plus ? c.in("plus", *plus) : Tensor();
    const Tensor dx2 = c.out("dx", dx), dw2 = c.out("dw", dw), dy2 = output ? added_up(dy, *output) : c.in("dy", dy),
                 x2 = c.in("x", x), w2 = c.in("w", w);
    bool summed = false;
    c.run([&](Backend& b, bool t) {
      if (!t)  // it takes the sums itself: the batch norm shows these
        b.conv_backward(dx2, dw2, dy2, x2, w2, conv, plus ? &plus2 : nullptr, nullptr, nullptr);
      else if ((summed = b.conv_backward(dx, dw, dy, x, w, conv, plus, input, output)))
        trusted_->unary_grad(Relu{}, dx2, dx2, x2, x2);
    });
    return summed;
  }
  bool takes_output_bn(const Tensor& x, const Shape& w, Conv conv) const override {
    return tested_->takes_output_bn(x, w, conv);
  }
  void bn_forward(const Tensor& y, const Tensor& saved, const Tensor& x, const Tensor* residual, const BnState& state,
                  Bn bn, bool train, const Tensor* moments) override {
    Call c(*this, "bn_forward");
    const Tensor r2 = residual ? c.in("residual", *residual) : Tensor();
    const Tensor y2 = c.out("y", y), x2 = c.in("x", x);
    const BnState state2{c.in("scale", state.scale), c.in("bias", state.bias), c.out("running mean", state.mean),
                         c.out("running var", state.var)};
    Tensor saved2;
    if (train) {  // two of its rows are the backend's own: each backward pass gets what its own forward pass has kept
      saved2 = twin(saved);
      saved_[saved.raw()] = saved2;
      const Shape common{2, x.dim(-1)};
      c.compare_too("saved", saved.slice(0, common), saved2.slice(0, common));
    }
    c.run([&](Backend& b, bool t) {
      if (t)
        b.bn_forward(y, saved, x, residual, state, bn, train, moments);
      else
        b.bn_forward(y2, saved2, x2, residual ? &r2 : nullptr, state2, bn, train, nullptr);
    });
  }
  bool conv_bn(const Tensor& y, const Tensor& x, const Tensor& w, Conv conv, const Tensor* residual,
               const BnState& state, Bn bn) override {
    Call c(*this, "conv_bn");
    const Tensor r2 = residual ? c.in("residual", *residual) : Tensor();
    const Tensor y2 = c.in("y", y), x2 = c.in("x", x), w2 = c.in("w", w);
    const BnState state2{c.in("scale", state.scale), c.in("bias", state.bias), c.in("running mean", state.mean),
                         c.in("running var", state.var)};
    if (!tested_->conv_bn(y, x, w, conv, residual, state, bn)) return false;
    const Tensor between = twin(y);
    trusted_->conv_forward(between, x2, w2, conv, nullptr);
    trusted_->bn_forward(y2, Tensor(), between, residual ? &r2 : nullptr, state2, bn, false, nullptr);
    c.compare("y", values_of(*tested_, y), values_of(*trusted_, y2), tolerance_of(y.dtype(), tf32_));
    return true;
  }
  void bn_backward(const Tensor& dx, const Tensor* dresidual, const Tensor& dscale, const Tensor& dbias,
                   const Tensor& dy, const Tensor& x, const Tensor& y, const Tensor& saved, const Tensor& scale, Bn bn,
                   const Tensor* sums, const Tensor* factors) override {
    Call c(*this, "bn_backward");
    const Tensor r2 = dresidual ? c.out("dresidual", *dresidual) : Tensor();
    const Tensor dx2 = factors ? twin(x) : c.out("dx", dx), s2 = c.out("dscale", dscale), b2 = c.out("dbias", dbias),
                 dy2 = c.in("dy", dy), x2 = c.in("x", x), y2 = sums ? Tensor() : c.in("y", y),
                 scale2 = c.in("scale", scale);
    Bn behind = bn;
    if (sums) behind.relu = false;  // dy is behind it already
    const auto kept = saved_.find(saved.raw());
    const Tensor saved2 = kept != saved_.end() ? kept->second : c.in("saved", saved);
    c.run([&](Backend& b, bool t) {
      if (t)
        b.bn_backward(dx, dresidual, dscale, dbias, dy, x, y, saved, scale, bn, sums, factors);
      else
        b.bn_backward(dx2, dresidual ? &r2 : nullptr, s2, b2, dy2, x2, y2, saved2, scale2, behind, nullptr, nullptr);
    });
    if (factors)
      c.compare("dx", values_of(*trusted_, added_up(dy, {x, *factors})), values_of(*trusted_, dx2),
                tolerance_of(x.dtype(), false));
  }
  void matmul(const Tensor& out, const Tensor& a, bool ta, const Tensor& b, bool tb) override {
    Call c(*this, "matmul");
    const Tensor c2 = c.out("c", out), a2 = c.in("a", a), b2 = c.in("b", b);
    c.run([&](Backend& be, bool t) { be.matmul(t ? out : c2, t ? a : a2, ta, t ? b : b2, tb); });
  }

  void cast(const Tensor& y, const Tensor& x) override {
    Call c(*this, "cast");
    const Tensor y2 = c.out("y", y), x2 = c.in("x", x);
    c.run([&](Backend& b, bool t) { b.cast(t ? y : y2, t ? x : x2); });
  }
  void unary(const Unary& u, const Tensor& y, const Tensor& x) override {
    Call c(*this, "unary");
    const Tensor y2 = c.out("y", y), x2 = c.in("x", x);
    c.run([&](Backend& b, bool t) { b.unary(u, t ? y : y2, t ? x : x2); });
  }
  void unary_grad(const Unary& u, const Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& y) override {
    Call c(*this, "unary_grad");
    const Tensor dx2 = c.out("dx", dx), dy2 = c.in("dy", dy), x2 = c.in("x", x), y2 = c.in("y", y);
    c.run([&](Backend& b, bool t) { b.unary_grad(u, t ? dx : dx2, t ? dy : dy2, t ? x : x2, t ? y : y2); });
  }
  void add(const Tensor& y, const Tensor& a, const Tensor& b) override {
    Call c(*this, "add");
    const Tensor y2 = c.out("y", y), a2 = c.in("a", a), b2 = c.in("b", b);
    c.run([&](Backend& be, bool t) { be.add(t ? y : y2, t ? a : a2, t ? b : b2); });
  }
  void scale_by(const Tensor& y, const Tensor& x, const Tensor& factor) override {
    Call c(*this, "scale_by");
    const Tensor y2 = c.out("y", y), x2 = c.in("x", x), f2 = c.in("factor", factor);
    c.run([&](Backend& b, bool t) { b.scale_by(t ? y : y2, t ? x : x2, t ? factor : f2); });
  }
  void bias_add(const Tensor& y, const Tensor& x, const Tensor& bias) override {
    Call c(*this, "bias_add");
    const Tensor y2 = c.out("y", y), x2 = c.in("x", x), b2 = c.in("bias", bias);
    c.run([&](Backend& b, bool t) { b.bias_add(t ? y : y2, t ? x : x2, t ? bias : b2); });
  }
  void bias_grad(const Tensor& dbias, const Tensor& dy) override {
    Call c(*this, "bias_grad");
    const Tensor d2 = c.out("dbias", dbias), dy2 = c.in("dy", dy);
    c.run([&](Backend& b, bool t) { b.bias_grad(t ? dbias : d2, t ? dy : dy2); });
  }
  void max_pool(const Tensor& y, const Tensor& where, const Tensor& x, Window w) override {
    Call c(*this, "max_pool");
    const Tensor y2 = c.out("y", y), where2 = c.out("where", where), x2 = c.in("x", x);
    c.run([&](Backend& b, bool t) { b.max_pool(t ? y : y2, t ? where : where2, t ? x : x2, w); });
  }
  void max_pool_grad(const Tensor& dx, const Tensor& dy, const Tensor& where, Window w) override {
    Call c(*this, "max_pool_grad");
    const Tensor dx2 = c.out("dx", dx), dy2 = c.in("dy", dy), where2 = c.in("where", where);
    c.run([&](Backend& b, bool t) { b.max_pool_grad(t ? dx : dx2, t ? dy : dy2, t ? where : where2, w); });
  }
  void avg_pool(const Tensor& y, const Tensor& x, Window w) override {
    Call c(*this, "avg_pool");
    const Tensor y2 = c.out("y", y), x2 = c.in("x", x);
    c.run([&](Backend& b, bool t) { b.avg_pool(t ? y : y2, t ? x : x2, w); });
  }
  void avg_pool_grad(const Tensor& dx, const Tensor& dy, Window w) override {
    Call c(*this, "avg_pool_grad");
    const Tensor dx2 = c.out("dx", dx), dy2 = c.in("dy", dy);
    c.run([&](Backend& b, bool t) { b.avg_pool_grad(t ? dx : dx2, t ? dy : dy2, w); });
  }
  void shortcut(const Tensor& y, const Tensor& x, int stride) override {
    Call c(*this, "shortcut");
    const Tensor y2 = c.out("y", y), x2 = c.in("x", x);
    c.run([&](Backend& b, bool t) { b.shortcut(t ? y : y2, t ? x : x2, stride); });
  }
  void shortcut_grad(const Tensor& dx, const Tensor& dy, int stride) override {
    Call c(*this, "shortcut_grad");
    const Tensor dx2 = c.out("dx", dx), dy2 = c.in("dy", dy);
    c.run([&](Backend& b, bool t) { b.shortcut_grad(t ? dx : dx2, t ? dy : dy2, stride); });
  }
  void dropout(const Tensor& y, const Tensor& x, float p, uint32_t layer, const Tensor& step) override {
    Call c(*this, "dropout");
    const Tensor y2 = c.out("y", y), x2 = c.in("x", x), step2 = c.in("step", step);
    c.run([&](Backend& b, bool t) { b.dropout(t ? y : y2, t ? x : x2, p, layer, t ? step : step2); });
  }
  void group_norm(const Tensor& y, const Tensor& saved, const Tensor& x, const Tensor& scale, const Tensor& bias,
                  int groups, float eps) override {
    Call c(*this, "group_norm");
    const Tensor y2 = c.out("y", y), saved2 = c.out("saved", saved), x2 = c.in("x", x), s2 = c.in("scale", scale),
                 b2 = c.in("bias", bias);
    c.run([&](Backend& b, bool t) {
      b.group_norm(t ? y : y2, t ? saved : saved2, t ? x : x2, t ? scale : s2, t ? bias : b2, groups, eps);
    });
  }
  void group_norm_grad(const Tensor& dx, const Tensor& dscale, const Tensor& dbias, const Tensor& dy, const Tensor& x,
                       const Tensor& scale, const Tensor& saved, int groups) override {
    Call c(*this, "group_norm_grad");
    const Tensor dx2 = c.out("dx", dx), ds2 = c.out("dscale", dscale), db2 = c.out("dbias", dbias),
                 dy2 = c.in("dy", dy), x2 = c.in("x", x), s2 = c.in("scale", scale), saved2 = c.in("saved", saved);
    c.run([&](Backend& b, bool t) {
      b.group_norm_grad(t ? dx : dx2, t ? dscale : ds2, t ? dbias : db2, t ? dy : dy2, t ? x : x2, t ? scale : s2,
                        t ? saved : saved2, groups);
    });
  }
  void softmax_loss(const Tensor& loss, const Tensor& stats, const Tensor& dlogits, const Tensor& logits,
                    const Target& target, float smoothing, float scale) override {
    Call c(*this, "softmax_loss");
    const Tensor loss2 = c.out("loss", loss), stats2 = c.out("stats", stats), d2 = c.out("dlogits", dlogits),
                 logits2 = c.in("logits", logits);
    const Target target2(c.in("label", target.label), c.in("partner", target.partner), c.in("share", target.share));
    c.run([&](Backend& b, bool t) {
      b.softmax_loss(t ? loss : loss2, t ? stats : stats2, t ? dlogits : d2, t ? logits : logits2, t ? target : target2,
                     smoothing, scale);
    });
  }
  void mse_loss(const Tensor& loss, const Tensor& dx, const Tensor& x, const Tensor& target) override {
    Call c(*this, "mse_loss");
    const Tensor loss2 = c.out("loss", loss), dx2 = c.out("dx", dx), x2 = c.in("x", x), t2 = c.in("target", target);
    c.run([&](Backend& b, bool t) { b.mse_loss(t ? loss : loss2, t ? dx : dx2, t ? x : x2, t ? target : t2); });
  }
  void accumulate(const Tensor& totals, const Tensor& stats) override {
    Call c(*this, "accumulate");
    const Tensor t2 = c.out("totals", totals), stats2 = c.in("stats", stats);
    c.run([&](Backend& b, bool t) { b.accumulate(t ? totals : t2, t ? stats : stats2); });
  }
  // What was drawn shows in the batch: how a backend notes it is its own business.
  void make_batch(const Tensor& batch, const Target& target, const Tensor& draws, const BatchSource& source,
                  const Tensor& step, int64_t offset) override {
    Call c(*this, "make_batch");
    const Tensor batch2 = c.out("batch", batch), draws2 = twin(draws), step2 = c.in("step", step);
    const Target target2(c.out("label", target.label), c.out("partner", target.partner), c.out("share", target.share));
    BatchSource source2 = source;
    source2.images = c.in("images", source.images);
    source2.labels = c.in("labels", source.labels);
    source2.order = c.in("order", source.order);
    source2.table = c.in("table", source.table);
    c.run([&](Backend& b, bool t) {
      b.make_batch(t ? batch : batch2, t ? target : target2, t ? draws : draws2, t ? source : source2, t ? step : step2,
                   offset);
    });
  }

  void judge_step(const Tensor& step, const Tensor& grad, const Tensor* buffers, const Tensor& sums,
                  Clip clip) override {
    Call c(*this, "judge_step");
    const Tensor step2 = c.in("step", step), g2 = c.in("grad", grad), sums2 = c.in("sums", sums);
    const Tensor buffers2 = buffers ? c.in("buffers", *buffers) : Tensor();
    c.run([&](Backend& b, bool t) {
      b.judge_step(t ? step : step2, t ? grad : g2, t ? buffers : (buffers ? &buffers2 : nullptr), t ? sums : sums2,
                   clip);
    });
    const auto got = values_of(read_step(*tested_, step)), want = values_of(read_step(*trusted_, step2));
    for (size_t i = 0; i < got.size(); ++i)
      c.compare("step's result", {got[i]}, {want[i]}, tolerance_of(DType::f32, false));
  }
  void shift(const Rule& rule, const Flat& flat, int segment, const Tensor& step) override {
    Call c(*this, "shift");
    const Flat flat2 = c.out(flat);
    const Tensor step2 = c.in("step", step);
    c.run([&](Backend& b, bool t) { b.shift(rule, t ? flat : flat2, segment, t ? step : step2); });
  }
  void update(const Rule& rule, const Flat& flat, int segment, Clip clip, const Tensor& step) override {
    Call c(*this, "update");
    const Flat flat2 = c.out(flat);
    const Tensor step2 = c.in("step", step);
    c.run([&](Backend& b, bool t) { b.update(rule, t ? flat : flat2, segment, clip, t ? step : step2); });
  }
  void muon(const Muon& rule, const Flat& flat, const Matrix& at, int segment, Clip clip, const MuonMemory& memory,
            const Tensor& step) override {
    Call c(*this, "muon");
    const Flat flat2 = c.out(flat);
    const Tensor step2 = c.in("step", step);
    const MuonMemory memory2{twin(memory.x), twin(memory.y), twin(memory.a), twin(memory.b), twin(memory.norm)};
    c.run([&](Backend& b, bool t) {
      b.muon(rule, t ? flat : flat2, at, segment, clip, t ? memory : memory2, t ? step : step2);
    });
  }
  void lookahead(const Lookahead& rule, const Tensor& w, const Tensor& slow, const Tensor& step) override {
    Call c(*this, "lookahead");
    const Tensor w2 = c.out("w", w), slow2 = c.out("slow", slow), step2 = c.in("step", step);
    c.run([&](Backend& b, bool t) { b.lookahead(rule, t ? w : w2, t ? slow : slow2, t ? step : step2); });
  }
  void moving_average(const Tensor& average, const Tensor& value, double decay, const Tensor& step) override {
    Call c(*this, "moving_average");
    const Tensor a2 = c.out("average", average), v2 = c.in("value", value), step2 = c.in("step", step);
    c.run([&](Backend& b, bool t) { b.moving_average(t ? average : a2, t ? value : v2, decay, t ? step : step2); });
  }
  void commit(const Tensor& buffers, const Tensor& good, const Tensor& totals, const Tensor& sums, int64_t images,
              const Tensor& step) override {
    Call c(*this, "commit");
    const Tensor b2 = c.out("buffers", buffers), good2 = c.out("good", good), t2 = c.out("totals", totals),
                 s2 = c.in("sums", sums), step2 = c.in("step", step);
    c.run([&](Backend& b, bool t) {
      b.commit(t ? buffers : b2, t ? good : good2, t ? totals : t2, t ? sums : s2, images, t ? step : step2);
    });
  }

 private:
  // Memory of the trusted backend with the same contents as `t`.
  Tensor twin(const Tensor& t) {
    if (!t) return {};
    std::vector<char> bytes(t.bytes());
    tested_->download(bytes.data(), t);
    const Tensor copy(trusted_->allocate(t.bytes()), t.shape(), t.dtype());
    trusted_->upload(copy, bytes.data());
    return copy;
  }

  // The gradient that `bn` stands for, in the trusted backend's memory.
  Tensor added_up(const Tensor& g, const OutputBn& bn) {
    const std::vector<double> vg = values_of(*tested_, g), vy = values_of(*tested_, bn.y),
                              f = values_of(*tested_, bn.factors);
    const size_t channels = f.size() / 4;
    std::vector<float> sum(vg.size());
    for (size_t i = 0; i < sum.size(); ++i) {
      const double *a = &f[i % channels], *b = a + channels, *mean = b + channels, *c = mean + channels;
      sum[i] = float(*a * vg[i] + *b * (vy[i] - *mean) + *c);
    }
    const Tensor wide(trusted_->allocate(sum.size() * sizeof(float)), g.shape(), DType::f32);
    trusted_->upload(wide, sum.data());
    if (g.dtype() == DType::f32) return wide;
    const Tensor rounded(trusted_->allocate(g.bytes()), g.shape(), g.dtype());
    trusted_->cast(rounded, wide);
    return rounded;
  }

  // One call: its operands' twins, then the call on both, then the comparison of what it has written.
  class Call {
   public:
    Call(CheckBackend& both, const char* name) : both_(both), name_(name) {}

    Tensor in(const char* name, const Tensor& t) {
      if (!t) return {};
      tolerance_ = std::max(tolerance_, tolerance_of(t.dtype(), both_.tf32_));
      operands_ +=
          fmt::format("{}{} {} {}", operands_.empty() ? "" : ", ", name, t.shape(), linnet::name_of(t.dtype()));
      const auto [at, fresh] = twins_.emplace(t.raw(), Tensor());  // an operand may be there twice: in place
      if (fresh) at->second = both_.twin(t);
      return at->second.reshape(t.shape());
    }
    Tensor out(const char* name, const Tensor& t) {
      const Tensor copy = in(name, t);
      if (t) compare_too(name, t, copy);
      return copy;
    }
    Flat out(const Flat& flat) {
      Flat copy = flat;
      copy.master = out("weights", flat.master);
      copy.grad = in("gradient", flat.grad);
      copy.slots = out("optimizer state", flat.slots);
      copy.compute = copy.buffers = {};
      return copy;
    }
    void compare_too(const char* name, const Tensor& t, const Tensor& copy) { results_.push_back({name, t, copy}); }

    // f(backend, whether it is the tested one)
    template <class F>
    void run(const F& f) {
      f(*both_.trusted_, false);
      f(*both_.tested_, true);
      for (const auto& [name, t, copy] : results_)
        compare(name, values_of(*both_.tested_, t), values_of(*both_.trusted_, copy),
                t.dtype() == DType::i32 || t.dtype() == DType::u8
                    ? 0
                    : std::max(tolerance_, tolerance_of(DType::f32, false)));
    }

    void compare(const char* name, const std::vector<double>& got, const std::vector<double>& want, double tolerance) {
      double largest = 0;
      for (const double v : want)
        if (std::isfinite(v)) largest = std::max(largest, std::abs(v));
      const double allowed = tolerance * largest;
      for (size_t i = 0; i < got.size(); ++i) {
        if (got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i]))) continue;
        const double error = std::abs(got[i] - want[i]);
        if (error <= allowed) continue;  // never true of a NaN
        fail(Exit::failure,
             "[check] {} ({}): element {} of {} is {} on {} and {} on {}: they differ by {:.3g}, and {:.3g} is allowed",
             name_, operands_, i, name, got[i], device_of(*both_.tested_), want[i], device_of(*both_.trusted_), error,
             allowed);
      }
    }

   private:
    struct Written {
      const char* name;
      Tensor tensor, copy;
    };
    CheckBackend& both_;
    const char* name_;
    std::string operands_;
    double tolerance_ = 0;
    std::map<const void*, Tensor> twins_;
    std::vector<Written> results_;
  };

  std::unique_ptr<Backend> tested_, trusted_;
  bool tf32_;
  std::map<const void*, Tensor> saved_;  // of the trusted backend's batch norms, by the tested one's memory
};

}  // namespace

std::unique_ptr<Backend> make_check_backend(std::unique_ptr<Backend> tested, std::unique_ptr<Backend> trusted,
                                            bool tf32) {
  return std::make_unique<CheckBackend>(std::move(tested), std::move(trusted), tf32);
}

}  // namespace linnet
