#include "linnet/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace linnet {

namespace {

double bytes_of(std::initializer_list<const Tensor*> operands) {
  double sum = 0;
  for (const Tensor* t : operands) sum += t ? double(t->bytes()) : 0;
  return sum;
}

std::string note_of(const Shape& w, Conv conv) {
  return fmt::format("{}x{}, {} to {}, stride {}", w[1], w[2], w[3], w[0], conv.stride);
}

class Profiler final : public Backend {
 public:
  Profiler(std::unique_ptr<Backend> inner, std::shared_ptr<CallLog> log)
      : inner_(std::move(inner)), log_(std::move(log)) {}

  Device device() const override { return inner_->device(); }
  std::vector<std::pair<std::string, std::string>> info() const override { return inner_->info(); }
  DType best_precision() const override { return inner_->best_precision(); }
  std::string choices() const override { return inner_->choices(); }
  void set_choices(const std::string& choices) override { inner_->set_choices(choices); }
  Counters counters() const override { return inner_->counters(); }

  std::shared_ptr<Block> allocate(size_t bytes) override { return inner_->allocate(bytes); }
  void upload(const Tensor& dst, const void* host) override { inner_->upload(dst, host); }
  void download(void* host, const Tensor& src) override { inner_->download(host, src); }
  void copy(const Tensor& dst, const Tensor& src) override {
    note("copy", {&dst, &src}, [&] { inner_->copy(dst, src); });
  }
  void zero(const Tensor& dst) override {
    note("zero", {&dst}, [&] { inner_->zero(dst); });
  }
  void synchronize() override { inner_->synchronize(); }
  std::unique_ptr<Replay> capture(std::function<void()> step) override { return inner_->capture(std::move(step)); }

  bool conv_forward(const Tensor& y, const Tensor& x, const Tensor& w, Conv conv, const Tensor* moments) override {
    bool known = false;
    note(
        "conv_forward", {&y, &x, &w}, [&] { known = inner_->conv_forward(y, x, w, conv, moments); }, w.raw(),
        flops(y, w), note_of(w.shape(), conv));
    return known;
  }
  bool conv_of_bn_forward(const Tensor& y, const Tensor& x, const Tensor& saved, const Tensor& w, Conv conv,
                          const Tensor* moments) override {
    bool known = false;
    note(
        "conv_of_bn", {&y, &x, &w}, [&] { known = inner_->conv_of_bn_forward(y, x, saved, w, conv, moments); }, w.raw(),
        flops(y, w), note_of(w.shape(), conv));
    return known;
  }
  bool takes_unapplied_bn(const Tensor& x, const Shape& w, Conv conv) const override {
    return inner_->takes_unapplied_bn(x, w, conv);
  }
  void conv_backward_data(const Tensor& dx, const Tensor& dy, const Tensor& w, Conv conv) override {
    note(
        "conv_backward_data", {&dx, &dy, &w}, [&] { inner_->conv_backward_data(dx, dy, w, conv); }, w.raw(),
        flops(dy, w), note_of(w.shape(), conv));
  }
  void conv_backward_weight(const Tensor& dw, const Tensor& dy, const Tensor& x, Conv conv) override {
    note(
        "conv_backward_weight", {&dw, &dy, &x}, [&] { inner_->conv_backward_weight(dw, dy, x, conv); }, dw.raw(),
        flops(dy, dw), note_of(dw.shape(), conv));
  }
  bool conv_backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w, Conv conv,
                     const Tensor* plus, const InputBn* input, const OutputBn* output) override {
    bool summed = false;
    note(
        "conv_backward",
        {&dx, &dw, &dy, &x, &w, plus, input && input->applied ? &input->x : nullptr, output ? &output->y : nullptr},
        [&] { summed = inner_->conv_backward(dx, dw, dy, x, w, conv, plus, input, output); }, w.raw(), 2 * flops(dy, w),
        note_of(w.shape(), conv));
    return summed;
  }
  bool takes_output_bn(const Tensor& x, const Shape& w, Conv conv) const override {
    return inner_->takes_output_bn(x, w, conv);
  }
  void bn_forward(const Tensor& y, const Tensor& saved, const Tensor& x, const Tensor* residual, const BnState& state,
                  Bn bn, bool train, const Tensor* moments) override {
    const auto call = [&] { inner_->bn_forward(y, saved, x, residual, state, bn, train, moments); };
    if (!y && moments) return note("bn_forward", {&saved, moments}, call, state.scale.raw());  // x is not read
    note("bn_forward", {&x, y ? &y : nullptr, residual}, call, state.scale.raw());
  }
  void bn_backward(const Tensor& dx, const Tensor* dresidual, const Tensor& dscale, const Tensor& dbias,
                   const Tensor& dy, const Tensor& x, const Tensor& y, const Tensor& saved, const Tensor& scale, Bn bn,
                   const Tensor* sums, const Tensor* factors) override {
    const auto call = [&] {
      inner_->bn_backward(dx, dresidual, dscale, dbias, dy, x, y, saved, scale, bn, sums, factors);
    };
    if (factors) return note("bn_backward", {factors, sums}, call, scale.raw());  // of dx nothing is computed
    note("bn_backward", {&dx, dresidual, &dy, &x, bn.relu && !sums ? &y : nullptr}, call, scale.raw());
  }
  bool conv_bn(const Tensor& y, const Tensor& x, const Tensor& w, Conv conv, const Tensor* residual,
               const BnState& state, Bn bn) override {
    const int64_t begin = now_ns();
    if (!inner_->conv_bn(y, x, w, conv, residual, state, bn)) return false;
    note(
        "conv_bn", {&y, &x, &w, residual}, [] {}, w.raw(), flops(y, w), note_of(w.shape(), conv), begin);
    return true;
  }
  void matmul(const Tensor& c, const Tensor& a, bool ta, const Tensor& b, bool tb) override {
    note(
        "matmul", {&c, &a, &b}, [&] { inner_->matmul(c, a, ta, b, tb); }, nullptr,
        2.0 * double(c.numel()) * double(ta ? a.dim(0) : a.dim(1)));
  }

  void cast(const Tensor& y, const Tensor& x) override {
    note("cast", {&y, &x}, [&] { inner_->cast(y, x); });
  }
  void unary(const Unary& u, const Tensor& y, const Tensor& x) override {
    note("unary", {&y, &x}, [&] { inner_->unary(u, y, x); });
  }
  void unary_grad(const Unary& u, const Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& y) override {
    note("unary_grad", {&dx, &dy, &x, &y}, [&] { inner_->unary_grad(u, dx, dy, x, y); });
  }
  void add(const Tensor& y, const Tensor& a, const Tensor& b) override {
    note("add", {&y, &a, &b}, [&] { inner_->add(y, a, b); });
  }
  void scale_by(const Tensor& y, const Tensor& x, const Tensor& factor) override {
    note("scale_by", {&y, &x}, [&] { inner_->scale_by(y, x, factor); });
  }
  void bias_add(const Tensor& y, const Tensor& x, const Tensor& bias) override {
    note(
        "bias_add", {&y, &x}, [&] { inner_->bias_add(y, x, bias); }, bias.raw());
  }
  void bias_grad(const Tensor& dbias, const Tensor& dy) override {
    note(
        "bias_grad", {&dbias, &dy}, [&] { inner_->bias_grad(dbias, dy); }, dbias.raw());
  }
  void max_pool(const Tensor& y, const Tensor& where, const Tensor& x, Window w) override {
    note("max_pool", {&y, &where, &x}, [&] { inner_->max_pool(y, where, x, w); });
  }
  void max_pool_grad(const Tensor& dx, const Tensor& dy, const Tensor& where, Window w) override {
    note("max_pool_grad", {&dx, &dy, &where}, [&] { inner_->max_pool_grad(dx, dy, where, w); });
  }
  void avg_pool(const Tensor& y, const Tensor& x, Window w) override {
    note("avg_pool", {&y, &x}, [&] { inner_->avg_pool(y, x, w); });
  }
  void avg_pool_grad(const Tensor& dx, const Tensor& dy, Window w) override {
    note("avg_pool_grad", {&dx, &dy}, [&] { inner_->avg_pool_grad(dx, dy, w); });
  }
  void shortcut(const Tensor& y, const Tensor& x, int stride) override {
    note("shortcut", {&y, &x}, [&] { inner_->shortcut(y, x, stride); });
  }
  void shortcut_grad(const Tensor& dx, const Tensor& dy, int stride) override {
    note("shortcut_grad", {&dx, &dy}, [&] { inner_->shortcut_grad(dx, dy, stride); });
  }
  void dropout(const Tensor& y, const Tensor& x, float p, uint32_t layer, const Tensor& step) override {
    note("dropout", {&y, &x}, [&] { inner_->dropout(y, x, p, layer, step); });
  }
  void group_norm(const Tensor& y, const Tensor& saved, const Tensor& x, const Tensor& scale, const Tensor& bias,
                  int groups, float eps) override {
    note(
        "group_norm", {&y, &x}, [&] { inner_->group_norm(y, saved, x, scale, bias, groups, eps); }, scale.raw());
  }
  void group_norm_grad(const Tensor& dx, const Tensor& dscale, const Tensor& dbias, const Tensor& dy, const Tensor& x,
                       const Tensor& scale, const Tensor& saved, int groups) override {
    note(
        "group_norm_grad", {&dx, &dy, &x},
        [&] { inner_->group_norm_grad(dx, dscale, dbias, dy, x, scale, saved, groups); }, scale.raw());
  }
  void softmax_loss(const Tensor& loss, const Tensor& stats, const Tensor& dlogits, const Tensor& logits,
                    const Target& target, float smoothing, float scale) override {
    note("softmax_loss", {&dlogits, &logits},
         [&] { inner_->softmax_loss(loss, stats, dlogits, logits, target, smoothing, scale); });
  }
  void mse_loss(const Tensor& loss, const Tensor& dx, const Tensor& x, const Tensor& target) override {
    note("mse_loss", {&dx, &x, &target}, [&] { inner_->mse_loss(loss, dx, x, target); });
  }
  void accumulate(const Tensor& totals, const Tensor& stats) override {
    note("accumulate", {&totals, &stats}, [&] { inner_->accumulate(totals, stats); });
  }
  void make_batch(const Tensor& batch, const Target& target, const Tensor& draws, const BatchSource& source,
                  const Tensor& step, int64_t offset) override {
    note("make_batch", {&batch}, [&] { inner_->make_batch(batch, target, draws, source, step, offset); });
  }

  void judge_step(const Tensor& step, const Tensor& grad, const Tensor* buffers, const Tensor& sums,
                  Clip clip) override {
    note("judge_step", {&grad, buffers}, [&] { inner_->judge_step(step, grad, buffers, sums, clip); });
  }
  void shift(const Rule& rule, const Flat& flat, int segment, const Tensor& step) override {
    note("shift", {&flat.master, &flat.slots}, [&] { inner_->shift(rule, flat, segment, step); });
  }
  void update(const Rule& rule, const Flat& flat, int segment, Clip clip, const Tensor& step) override {
    note("update", {&flat.master, &flat.grad, &flat.slots}, [&] { inner_->update(rule, flat, segment, clip, step); });
  }
  void muon(const Muon& rule, const Flat& flat, const Matrix& at, int segment, Clip clip, const MuonMemory& memory,
            const Tensor& step) override {
    note("muon", {&memory.x, &memory.y}, [&] { inner_->muon(rule, flat, at, segment, clip, memory, step); });
  }
  void lookahead(const Lookahead& rule, const Tensor& w, const Tensor& slow, const Tensor& step) override {
    note("lookahead", {&w, &slow}, [&] { inner_->lookahead(rule, w, slow, step); });
  }
  void moving_average(const Tensor& average, const Tensor& value, double decay, const Tensor& step) override {
    note("moving_average", {&average, &value}, [&] { inner_->moving_average(average, value, decay, step); });
  }
  void commit(const Tensor& buffers, const Tensor& good, const Tensor& totals, const Tensor& sums, int64_t images,
              const Tensor& step) override {
    note("commit", {&buffers, &good}, [&] { inner_->commit(buffers, good, totals, sums, images, step); });
  }

 private:
  static double flops(const Tensor& y, const Tensor& w) { return 2 * double(y.numel()) * double(w.numel() / w.dim(0)); }

  template <class F>
  void note(const char* call, std::initializer_list<const Tensor*> operands, const F& f, const void* param = nullptr,
            double flops = 0, const std::string& about = {}, int64_t began = 0) {
    if (!log_->on()) return f();
    const Tensor* largest = *operands.begin();
    for (const Tensor* t : operands)
      if (t && t->numel() > largest->numel()) largest = t;
    CallSpan span{call, param, largest->shape(), about, flops, bytes_of(operands)};
    span.begin_ns = began > 0 ? began : now_ns();  // began: the call was made already
    f();
    inner_->synchronize();
    span.ns = now_ns() - span.begin_ns;
    log_->add(std::move(span));
  }

  std::unique_ptr<Backend> inner_;
  std::shared_ptr<CallLog> log_;
};

}  // namespace

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::unique_ptr<Backend> make_profiler(std::unique_ptr<Backend> inner, std::shared_ptr<CallLog> log) {
  return std::make_unique<Profiler>(std::move(inner), std::move(log));
}

std::string layer_of(const void* param, const ParamStore& store) {
  for (const Param* p : store.params())
    if (param && (param == p->compute.raw() || param == p->master.raw() || param == p->grad.raw()))
      return p->name.substr(0, p->name.rfind('.'));
  return "";
}

std::string chrome_trace(const std::vector<CallSpan>& spans, const ParamStore& store,
                         const std::vector<PhaseTime>& phases) {
  const int64_t zero = !phases.empty() ? phases.front().begin_ns : spans.empty() ? 0 : spans.front().begin_ns;
  const auto us = [&](int64_t ns) { return double(ns) / 1e3; };
  std::string text = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
  const auto event = [&](const std::string& name, const char* kind, int64_t begin, int64_t ns, int thread,
                         const std::string& args) {
    text += fmt::format(
        "{{\"name\": \"{}\", \"cat\": \"{}\", \"ph\": \"X\", \"ts\": {:.3f}, \"dur\": {:.3f}, \"pid\": 1, \"tid\": {}, "
        "\"args\": {{{}}}}},\n",
        name, kind, us(begin - zero), us(ns), thread, args);
  };
  for (const PhaseTime& p : phases) event(p.name, "step", p.begin_ns, p.ns, 1, "");
  for (const CallSpan& s : spans) {
    const std::string layer = layer_of(s.param, store);
    std::string args = fmt::format("\"shape\": \"{}\", \"bytes\": {:.0f}", s.shape, s.bytes);
    if (!layer.empty()) args += fmt::format(", \"layer\": \"{}\"", layer);
    if (!s.note.empty()) args += fmt::format(", \"about\": \"{}\"", s.note);
    if (s.flops > 0) args += fmt::format(", \"GFLOP/s\": {:.1f}", s.flops / double(std::max<int64_t>(s.ns, 1)));
    event(s.call, "op", s.begin_ns, s.ns, 2, args);
  }
  for (const auto& [thread, name] : {std::pair(1, "steps"), std::pair(2, "operations")})
    text += fmt::format(
        "{{\"name\": \"thread_name\", \"ph\": \"M\", \"pid\": 1, \"tid\": {}, \"args\": {{\"name\": \"{}\"}}}}{}\n",
        thread, name, thread == 1 ? "," : "");
  return text + "]}\n";
}

}  // namespace linnet
