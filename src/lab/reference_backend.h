// The oracle: every operation of the seam in the plainest loops, one thread, double precision. It shares no code with
// kernels/ except the Philox bits, where the draw itself is the definition. Elements of any float type are read as
// doubles and rounded once, when they are stored; on f64 tensors nothing is rounded, which central differences need
// (gradcheck.h).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/augment.h"
#include "linnet/backend.h"

namespace linnet {

// A tensor's elements as doubles.
struct Values {
  Shape shape;
  std::vector<double> v;

  explicit Values(const Shape& s) : shape(s), v(size_t(s.numel()), 0.0) {}
  explicit Values(const Tensor& t) : Values(t.shape()) {
    for (int64_t i = 0; i < t.numel(); ++i) (*this)[i] = load(t, i);
  }
  double& operator[](int64_t i) { return v[size_t(i)]; }
  int64_t size() const { return int64_t(v.size()); }
  // Where the element (n, h, w, c) of an NHWC tensor lies.
  int64_t at(int64_t n, int64_t h, int64_t w, int64_t c) const {
    return ((n * shape[1] + h) * shape[2] + w) * shape[3] + c;
  }
  void store(const Tensor& t) const {
    for (int64_t i = 0; i < t.numel(); ++i) round_to(t, i, v[size_t(i)]);
  }

  static double load(const Tensor& t, int64_t i) {
    switch (t.dtype()) {
      case DType::u8:
        return t.data<uint8_t>()[i];
      case DType::i32:
        return t.data<int32_t>()[i];
      case DType::f32:
        return double(t.data<float>()[i]);
      case DType::bf16:
        return double(float(t.data<bf16>()[i]));
      case DType::fp16:
        return double(float(t.data<fp16>()[i]));
      case DType::f64:
        return t.data<double>()[i];
    }
    fail(Exit::failure, "[reference] unknown element type");
  }
  static void round_to(const Tensor& t, int64_t i, double x) {
    switch (t.dtype()) {
      case DType::u8:
        t.data<uint8_t>()[i] = uint8_t(x);
        return;
      case DType::i32:
        t.data<int32_t>()[i] = int32_t(x);
        return;
      case DType::f32:
        t.data<float>()[i] = float(x);
        return;
      case DType::bf16:
        t.data<bf16>()[i] = bf16(float(x));
        return;
      case DType::fp16:
        t.data<fp16>()[i] = fp16(float(x));
        return;
      case DType::f64:
        t.data<double>()[i] = x;
        return;
    }
  }
};

// Activations: value f(x) and slope f'(x).
struct ReferenceUnary {
  static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
  static double value(Relu, double x) { return std::max(0.0, x); }
  static double slope(Relu, double x) { return x > 0; }
  static double value(LeakyRelu u, double x) { return x > 0 ? x : double(u.negative_slope) * x; }
  static double slope(LeakyRelu u, double x) { return x > 0 ? 1 : double(u.negative_slope); }
  static double value(Sigmoid, double x) { return sigmoid(x); }
  static double slope(Sigmoid, double x) { return sigmoid(x) * sigmoid(-x); }
  static double value(Tanh, double x) { return std::tanh(x); }
  static double slope(Tanh, double x) { return 1 / (std::cosh(x) * std::cosh(x)); }
  static double value(Silu, double x) { return x * sigmoid(x); }
  static double slope(Silu, double x) { return sigmoid(x) * (1 + x * sigmoid(-x)); }
  static double value(Gelu, double x) { return x * 0.5 * std::erfc(-x / std::sqrt(2.0)); }
  static double slope(Gelu, double x) {
    return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
  }
};

class ReferenceBackend : public Backend {
 public:
  Device device() const override { return Device::cpu; }
  std::vector<std::pair<std::string, std::string>> info() const override { return {{"device", "reference"}}; }

  struct HostBlock : Block {
    explicit HostBlock(size_t size) : memory(size + 1) {
      data = memory.data();
      bytes = size;
    }
    std::vector<char> memory;
  };
  std::shared_ptr<Block> allocate(size_t bytes) override { return std::make_shared<HostBlock>(bytes); }
  // An empty vector's data() may be null, which memcpy forbids.
  void upload(const Tensor& dst, const void* host) override {
    if (dst.bytes() > 0) std::memcpy(dst.raw(), host, dst.bytes());
  }
  void download(void* host, const Tensor& src) override {
    if (src.bytes() > 0) std::memcpy(host, src.raw(), src.bytes());
  }
  void copy(const Tensor& dst, const Tensor& src) override { std::memcpy(dst.raw(), src.raw(), src.bytes()); }
  void zero(const Tensor& dst) override { std::memset(dst.raw(), 0, dst.bytes()); }
  void synchronize() override {}
  std::unique_ptr<Replay> capture(std::function<void()> step) override {
    struct Call : Replay {
      std::function<void()> step;
      void run() override { step(); }
    };
    auto call = std::make_unique<Call>();
    call->step = std::move(step);
    return call;
  }

  bool conv_forward(const Tensor& y, const Tensor& x, const Tensor& w, Conv conv, const Tensor*) override {
    Values vy(y.shape()), vx(x), vw(w);
    for_products(vy, vx, vw, conv, [&](int64_t iy, int64_t ix, int64_t iw) { vy[iy] += vx[ix] * vw[iw]; });
    vy.store(y);
    return false;
  }
  void conv_backward_data(const Tensor& dx, const Tensor& dy, const Tensor& w, Conv conv) override {
    Values vx(dx.shape()), vy(dy), vw(w);
    for_products(vy, vx, vw, conv, [&](int64_t iy, int64_t ix, int64_t iw) { vx[ix] += vy[iy] * vw[iw]; });
    vx.store(dx);
  }
  void conv_backward_weight(const Tensor& dw, const Tensor& dy, const Tensor& x, Conv conv) override {
    Values vw(dw.shape()), vy(dy), vx(x);
    for_products(vy, vx, vw, conv, [&](int64_t iy, int64_t ix, int64_t iw) { vw[iw] += vy[iy] * vx[ix]; });
    vw.store(dw);
  }

  bool conv_backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w, Conv conv,
                     const Tensor* plus, const InputBn*, const OutputBn*) override {
    const Values before = plus ? Values(*plus) : Values(dx.shape());
    conv_backward_weight(dw, dy, x, conv);
    Values vx(dx.shape()), vy(dy), vw(w);
    for_products(vy, vx, vw, conv, [&](int64_t iy, int64_t ix, int64_t iw) { vx[ix] += vy[iy] * vw[iw]; });
    for (size_t i = 0; i < vx.v.size(); ++i) vx.v[i] += before.v[i];
    vx.store(dx);
    return false;
  }

  void bn_forward(const Tensor& y, const Tensor& saved, const Tensor& x, const Tensor* residual, const BnState& state,
                  Bn bn, bool train, const Tensor*) override {
    Values vx(x), vy(x.shape()), scale(state.scale), bias(state.bias), mean(state.mean), var(state.var);
    Values r = residual ? Values(*residual) : Values(x.shape());
    const int64_t channels = x.dim(-1), rows = x.numel() / channels;
    for (int64_t c = 0; c < channels; ++c) {
      double m = mean[c], v = var[c];
      if (train) {
        mean_and_variance(vx, c, m, v);
        Values::round_to(saved, c, m);
        Values::round_to(saved, channels + c, 1 / std::sqrt(v + double(bn.eps)));
        mean[c] = (1 - double(bn.momentum)) * mean[c] + double(bn.momentum) * m;
        var[c] = (1 - double(bn.momentum)) * var[c] + double(bn.momentum) * v * double(rows) / double(rows - 1);
      }
      for (int64_t i = c; i < x.numel(); i += channels) {
        vy[i] = scale[c] * (vx[i] - m) / std::sqrt(v + double(bn.eps)) + bias[c] + r[i];
        if (bn.relu) vy[i] = std::max(0.0, vy[i]);
      }
    }
    vy.store(y);
    mean.store(state.mean);
    var.store(state.var);
  }
  void bn_backward(const Tensor& dx, const Tensor* dresidual, const Tensor& dscale, const Tensor& dbias,
                   const Tensor& dy, const Tensor& x, const Tensor& y, const Tensor&, const Tensor& scale, Bn bn,
                   const Tensor*, const Tensor*) override {
    Values g(dy), vx(x), vdx(x.shape()), gamma(scale), vscale(scale.shape()), vbias(scale.shape());
    for (int64_t i = 0; bn.relu && i < g.size(); ++i)
      if (!(Values::load(y, i) > 0)) g[i] = 0;
    const int64_t channels = x.dim(-1);
    const double rows = double(x.numel() / channels);
    for (int64_t c = 0; c < channels; ++c) {
      double mean, var;
      mean_and_variance(vx, c, mean, var);
      const double inv_std = 1 / std::sqrt(var + double(bn.eps));
      for (int64_t i = c; i < x.numel(); i += channels) {
        vbias[c] += g[i];
        vscale[c] += g[i] * (vx[i] - mean) * inv_std;
      }
      for (int64_t i = c; i < x.numel(); i += channels) {
        const double xhat = (vx[i] - mean) * inv_std;
        vdx[i] = gamma[c] * inv_std * (g[i] - vbias[c] / rows - xhat * vscale[c] / rows);
      }
    }
    vdx.store(dx);
    vscale.store(dscale);
    vbias.store(dbias);
    if (dresidual) g.store(*dresidual);
  }

  void matmul(const Tensor& c, const Tensor& a, bool ta, const Tensor& b, bool tb) override {
    Values vc(c.shape()), va(a), vb(b);
    const int64_t m = c.dim(0), n = c.dim(1), inner = a.dim(ta ? 0 : 1);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j)
        for (int64_t k = 0; k < inner; ++k)
          vc[i * n + j] += va[ta ? k * m + i : i * inner + k] * vb[tb ? j * inner + k : k * n + j];
    vc.store(c);
  }

  void cast(const Tensor& y, const Tensor& x) override { Values(x).store(y); }
  void unary(const Unary& u, const Tensor& y, const Tensor& x) override {
    Values v(x);
    for (double& e : v.v) e = std::visit([&](auto op) { return ReferenceUnary::value(op, e); }, u);
    v.store(y);
  }
  void unary_grad(const Unary& u, const Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor&) override {
    Values v(dy), vx(x);
    for (int64_t i = 0; i < v.size(); ++i)
      v[i] *= std::visit([&](auto op) { return ReferenceUnary::slope(op, vx[i]); }, u);
    v.store(dx);
  }
  void add(const Tensor& y, const Tensor& a, const Tensor& b) override {
    Values v(a), vb(b);
    for (int64_t i = 0; i < v.size(); ++i) v[i] += vb[i];
    v.store(y);
  }
  void scale_by(const Tensor& y, const Tensor& x, const Tensor& factor) override {
    Values v(x);
    for (double& e : v.v) e *= Values::load(factor, 0);
    v.store(y);
  }
  void bias_add(const Tensor& y, const Tensor& x, const Tensor& bias) override {
    Values v(x), b(bias);
    for (int64_t i = 0; i < v.size(); ++i) v[i] += b[i % b.size()];
    v.store(y);
  }
  void bias_grad(const Tensor& dbias, const Tensor& dy) override {
    Values b(dbias.shape()), v(dy);
    for (int64_t i = 0; i < v.size(); ++i) b[i % b.size()] += v[i];
    b.store(dbias);
  }

  void max_pool(const Tensor& y, const Tensor& where, const Tensor& x, Window window) override {
    Values vy(y.shape()), vx(x), at(y.shape());
    std::fill(at.v.begin(), at.v.end(), -1.0);
    for_windows(vy, vx, window, [&](int64_t iy, int64_t ix, int64_t pixel) {
      if (at[iy] >= 0 && !(vx[ix] > vy[iy]) && !std::isnan(vx[ix])) return;
      vy[iy] = vx[ix];
      at[iy] = double(pixel);
    });
    vy.store(y);
    at.store(where);
  }
  void max_pool_grad(const Tensor& dx, const Tensor& dy, const Tensor& where, Window window) override {
    Values vx(dx.shape()), vy(dy), at(where);
    for_windows(vy, vx, window, [&](int64_t iy, int64_t ix, int64_t pixel) {
      if (at[iy] == double(pixel)) vx[ix] += vy[iy];
    });
    vx.store(dx);
  }
  void avg_pool(const Tensor& y, const Tensor& x, Window window) override {
    Values vy(y.shape()), vx(x);
    const double area = window.height * window.width;
    for_windows(vy, vx, window, [&](int64_t iy, int64_t ix, int64_t) { vy[iy] += vx[ix] / area; });
    vy.store(y);
  }
  void avg_pool_grad(const Tensor& dx, const Tensor& dy, Window window) override {
    Values vx(dx.shape()), vy(dy);
    const double area = window.height * window.width;
    for_windows(vy, vx, window, [&](int64_t iy, int64_t ix, int64_t) { vx[ix] += vy[iy] / area; });
    vx.store(dx);
  }
  void shortcut(const Tensor& y, const Tensor& x, int stride) override {
    Values vy(y.shape()), vx(x);
    for_shortcut(vy, vx, stride, [&](int64_t iy, int64_t ix) { vy[iy] = vx[ix]; });
    vy.store(y);
  }
  void shortcut_grad(const Tensor& dx, const Tensor& dy, int stride) override {
    Values vx(dx.shape()), vy(dy);
    for_shortcut(vy, vx, stride, [&](int64_t iy, int64_t ix) { vx[ix] = vy[iy]; });
    vx.store(dx);
  }
  void dropout(const Tensor& y, const Tensor& x, float p, uint32_t layer, const Tensor& step) override {
    Values v(x);
    for (int64_t i = 0; i < v.size(); ++i) {
      const Random4 r =
          random4(params(step)->seed, Draw::dropout, uint64_t(i / 4), uint32_t(params(step)->step), layer);
      v[i] = unit_float(r.v[i % 4]) >= p ? v[i] / (1 - double(p)) : 0;
    }
    v.store(y);
  }

  void group_norm(const Tensor& y, const Tensor& saved, const Tensor& x, const Tensor& scale, const Tensor& bias,
                  int groups, float eps) override {
    Values v(x), gamma(scale), beta(bias);
    const int64_t channels = x.dim(-1), rows = x.numel() / channels / x.dim(0), width = channels / groups;
    for (int64_t item = 0; item < x.dim(0) * groups; ++item) {
      const std::vector<int64_t> members = group_members(item, rows, channels, groups);
      double mean = 0, var = 0;
      for (int64_t i : members) mean += v[i] / double(members.size());
      for (int64_t i : members) var += (v[i] - mean) * (v[i] - mean) / double(rows * width);
      const double inv_std = 1 / std::sqrt(var + double(eps));
      for (int64_t i : members) v[i] = gamma[i % channels] * (v[i] - mean) * inv_std + beta[i % channels];
      Values::round_to(saved, item * 2, mean);
      Values::round_to(saved, item * 2 + 1, inv_std);
    }
    v.store(y);
  }
  void group_norm_grad(const Tensor& dx, const Tensor& dscale, const Tensor& dbias, const Tensor& dy, const Tensor& x,
                       const Tensor& scale, const Tensor& saved, int groups) override {
    Values vx(x), g(dy), vdx(x.shape()), gamma(scale), vscale(scale.shape()), vbias(scale.shape());
    const int64_t channels = x.dim(-1), rows = x.numel() / channels / x.dim(0);
    for (int64_t item = 0; item < x.dim(0) * groups; ++item) {
      const std::vector<int64_t> members = group_members(item, rows, channels, groups);
      const double mean = Values::load(saved, item * 2), inv_std = Values::load(saved, item * 2 + 1);
      double mean_g = 0, mean_gx = 0;  // of dy * scale, and of that times xhat
      for (int64_t i : members) {
        const int64_t c = i % channels;
        const double xhat = (vx[i] - mean) * inv_std;
        vbias[c] += g[i];
        vscale[c] += g[i] * xhat;
        mean_g += g[i] * gamma[c] / double(members.size());
        mean_gx += g[i] * gamma[c] * xhat / double(members.size());
      }
      for (int64_t i : members)
        vdx[i] = inv_std * (g[i] * gamma[i % channels] - mean_g - (vx[i] - mean) * inv_std * mean_gx);
    }
    vdx.store(dx);
    vscale.store(dscale);
    vbias.store(dbias);
  }

  void softmax_loss(const Tensor& loss, const Tensor& stats, const Tensor& dlogits, const Tensor& logits,
                    const Target& target, float smoothing, float scale) override {
    Values z(logits), dz(logits.shape()), s(stats.shape());
    const int64_t rows = logits.dim(0), classes = logits.dim(1);
    double total = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const int32_t label = target.label.data<int32_t>()[row];
      if (label < 0) continue;
      const int32_t partner = target.partner ? target.partner.data<int32_t>()[row] : label;
      const double share = target.partner ? double(target.share.data<float>()[row]) : 1;
      const auto first = z.v.begin() + row * classes, top = std::max_element(first, first + classes);
      double sum = 0;
      for (int64_t c = 0; c < classes; ++c) sum += std::exp(first[c] - *top);
      for (int64_t c = 0; c < classes; ++c) {
        const double log_p = first[c] - *top - std::log(sum);
        const double of_labels = (c == label ? share : 0) + (c == partner ? 1 - share : 0);
        const double q = double(smoothing) / double(classes) + (1 - double(smoothing)) * of_labels;
        if (q > 0) s[row * 2] -= q * log_p;
        dz[row * classes + c] = (std::exp(log_p) - q) * double(scale);
      }
      s[row * 2 + 1] = top - first == (share < 0.5 ? partner : label);
      total += s[row * 2];
    }
    s.store(stats);
    dz.store(dlogits);
    Values::round_to(loss, 0, total * double(scale));
  }
  void mse_loss(const Tensor& loss, const Tensor& dx, const Tensor& x, const Tensor& target) override {
    Values v(x), t(target);
    const double n = double(v.size());
    double sum = 0;
    for (int64_t i = 0; i < v.size(); ++i) {
      const double difference = v[i] - t[i];
      sum += difference * difference / n;
      v[i] = 2 * difference / n;
    }
    v.store(dx);
    Values::round_to(loss, 0, sum);
  }
  void accumulate(const Tensor& totals, const Tensor& stats) override {
    Values t(totals), s(stats);
    for (int64_t i = 0; i < s.size(); ++i) t[i % t.size()] += s[i];
    t.store(totals);
  }

  // Whole images, one operation after the other. Bits and the step's lambda come from kernels/: the draw is the
  // definition (augment_test.cpp has its distributions).
  void make_batch(const Tensor& batch, const Target& target, const Tensor& draws, const BatchSource& source,
                  const Tensor& step, int64_t offset) override {
    const StepParams& at = *params(step);
    const Augment& a = source.augment;
    Values out(batch.shape());
    const int64_t rows = batch.dim(0), first = at.first + offset;
    const int64_t real = std::clamp<int64_t>(source.order.numel() - first, 0, rows);
    const int64_t size = out.size() / rows, height = batch.dim(1), width = batch.dim(2), channels = batch.dim(3);
    for (int64_t n = 0; n < rows; ++n) {
      int64_t drawn[] = {-1, 0, 0, 0};
      Values image({1, height, width, channels});
      if (n < real)
        image = augmented(source, source.order.data<int32_t>()[first + n], at, drawn);
      else
        for (int64_t i = 0; i < size; ++i) image[i] = Values::load(source.table, i % channels);
      std::copy(image.v.begin(), image.v.end(), out.v.begin() + n * size);
      for (int i = 0; i < 4; ++i) Values::round_to(draws, n * kDrawWords + i, double(drawn[i]));
      Values::round_to(target.label, n, n < real ? Values::load(source.labels, drawn[0]) : -1);
    }
    if (a.mixes()) {
      const MixDraw mix = draw_mix(a, at.seed, uint64_t(at.step), height, width);
      const Values pure = out;
      for (int64_t n = 0; n < rows; ++n) {
        const int64_t partner = real - 1 - n;
        Values::round_to(target.partner, n, partner < 0 ? -1 : Values::load(target.label, partner));
        Values::round_to(target.share, n, partner < 0 ? 1 : double(mix.share));
        if (partner < 0) continue;
        for (int64_t i = 0; i < size; ++i) {
          const double own = pure.v[size_t(n * size + i)], other = pure.v[size_t(partner * size + i)];
          const bool in_box = mix.cutmix.contains(i / channels / width, i / channels % width);
          out[n * size + i] =
              !mix.cutmix.empty() ? (in_box ? other : own) : double(mix.share) * own + (1 - double(mix.share)) * other;
        }
      }
    }
    out.store(batch);
  }
  void judge_step(const Tensor& step, const Tensor& grad, const Tensor* buffers, const Tensor& sums,
                  Clip clip) override {
    Values g(grad);
    double squares = 0;
    bool finite = true;
    if (buffers)
      for (double e : Values(*buffers).v) finite = finite && std::isfinite(e);
    for (double e : g.v) {
      if (!std::isfinite(e)) squares = e - e;
      const double taken = unscaled_and_clamped(clip, e);
      squares += taken * taken;
    }
    const double norm = std::sqrt(squares);
    StepResult& r = memory(step)->result;
    const bool halted = r.halted != 0;
    r.grad_norm = float(norm);
    r.clip_scale = clip.norm > 0 ? float(std::min(1.0, double(clip.norm) / (norm + 1e-6))) : 1.f;
    const bool diverged = !finite || !std::isfinite(sums.data<double>()[0]);
    r.bad = halted || diverged || !std::isfinite(float(squares * r.clip_scale * r.clip_scale));
    if (halted) return;
    const StepParams& p = *params(step);
    memory(step)->trace[p.step % kTraceSteps] = {p.step, sums.data<double>()[0], p.group[0].lr, r.grad_norm, r.bad};
    if (r.bad && r.bad_in_row == 0) r.bad_step = params(step)->step;
    r.bad_in_row = r.bad ? r.bad_in_row + 1 : 0;
    r.halted = r.bad_in_row > (diverged ? params(step)->max_bad_in_row : params(step)->max_overflows_in_row);
    r.skipped += r.bad;
    r.clipped += !r.bad && r.clip_scale < 1;
  }
  static double unscaled_and_clamped(Clip clip, double g) {
    g /= double(clip.loss_scale);
    return clip.value > 0 ? std::clamp(g, -double(clip.value), double(clip.value)) : g;
  }
  void shift(const Rule&, const Flat&, int, const Tensor&) override {}
  // SGD as PyTorch has it: what else a rule does, its own tests compare with PyTorch's numbers.
  void update(const Rule& rule, const Flat& flat, int segment, Clip clip, const Tensor& step) override {
    const Momentum* m = std::get_if<Momentum>(&rule);
    require(m || std::holds_alternative<Sgd>(rule), "[reference] has no update but SGD's");
    if (memory(step)->result.bad) return;
    const GroupStep& p = params(step)->group[segment];
    const Segment& part = flat.segments[size_t(segment)];
    Values w(flat.master), g(flat.grad), buffer(flat.slots);
    for (int64_t i = part.begin; i < part.begin + part.n; ++i) {
      double d = unscaled_and_clamped(clip, g[i]);
      d = d * double(memory(step)->result.clip_scale) + (i - part.begin < part.n_decay ? p.weight_decay * w[i] : 0);
      if (m) {
        buffer[i] = p.t == 1 ? d : m->momentum * buffer[i] + (1 - m->dampening) * d;
        d = m->nesterov ? d + m->momentum * buffer[i] : buffer[i];
      }
      w[i] -= p.lr * d;
    }
    w.store(flat.master);
    if (m) buffer.store(flat.slots);
  }
  void muon(const Muon& rule, const Flat& flat, const Matrix& at, int segment, Clip clip, const MuonMemory&,
            const Tensor& step) override {
    if (memory(step)->result.bad) return;
    const GroupStep& p = params(step)->group[segment];
    Values w(flat.master), g(flat.grad), v(flat.slots);
    const int64_t rows = at.rows, columns = at.columns;
    std::vector<double> x(size_t(rows * columns));
    double squares = 0;
    for (int64_t i = 0; i < rows * columns; ++i) {
      const double e = double(clip.clamp(float(g[at.offset + i]))) * double(memory(step)->result.clip_scale);
      double& moment = v[at.offset + i];
      moment = rule.momentum * moment + (1 - rule.momentum) * e;
      x[size_t(i)] = rule.nesterov ? rule.momentum * moment + (1 - rule.momentum) * e : moment;
      squares += x[size_t(i)] * x[size_t(i)];
    }
    for (double& e : x) e /= std::max(std::sqrt(squares), 1e-7);
    // X <- a X + (b A + c A^2) X, A = X X^T, as it is written: rows by rows.
    for (int k = 0; k < rule.iterations; ++k) {
      std::vector<double> a(size_t(rows * rows)), next(x.size());
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < rows; ++j)
          for (int64_t c = 0; c < columns; ++c)
            a[size_t(i * rows + j)] += x[size_t(i * columns + c)] * x[size_t(j * columns + c)];
      std::vector<double> b(a.size());
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < rows; ++j) {
          double square = 0;
          for (int64_t c = 0; c < rows; ++c) square += a[size_t(i * rows + c)] * a[size_t(c * rows + j)];
          b[size_t(i * rows + j)] = -4.7750 * a[size_t(i * rows + j)] + 2.0315 * square;
        }
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t c = 0; c < columns; ++c) {
          double product = 0;
          for (int64_t j = 0; j < rows; ++j) product += b[size_t(i * rows + j)] * x[size_t(j * columns + c)];
          next[size_t(i * columns + c)] = 3.4445 * x[size_t(i * columns + c)] + product;
        }
      x = next;
    }
    const double size = std::sqrt(std::max(1.0, double(rows) / double(columns)));
    for (int64_t i = 0; i < rows * columns; ++i) {
      double& e = w[at.offset + i];
      e = e * (1 - p.lr * (at.decays ? p.weight_decay : 0)) - p.lr * size * x[size_t(i)];
    }
    w.store(flat.master);
    v.store(flat.slots);
  }
  void lookahead(const Lookahead& rule, const Tensor& w, const Tensor& slow, const Tensor& step) override {
    if (memory(step)->result.bad || (params(step)->step + 1) % rule.k != 0) return;
    Values fast(w), back(slow);
    for (int64_t i = 0; i < fast.size(); ++i) fast[i] = back[i] += rule.alpha * (fast[i] - back[i]);
    fast.store(w);
    back.store(slow);
  }
  void moving_average(const Tensor& average, const Tensor& value, double decay, const Tensor& step) override {
    if (memory(step)->result.bad) return;
    Values a(average), v(value);
    for (int64_t i = 0; i < a.size(); ++i) a[i] = decay * a[i] + (1 - decay) * v[i];
    a.store(average);
  }
  void commit(const Tensor& buffers, const Tensor& good, const Tensor& totals, const Tensor& sums, int64_t images,
              const Tensor& step) override {
    const bool bad = memory(step)->result.bad != 0;
    Values now(buffers), last(good), t(totals), s(sums);
    (bad ? last : now).store(buffers);
    (bad ? last : now).store(good);
    if (bad) return;
    t[0] += s[0];
    t[1] += s[1];
    t[2] += double(images);
    t.store(totals);
  }

 private:
  static StepMemory* memory(const Tensor& step) { return static_cast<StepMemory*>(step.raw()); }
  static const StepParams* params(const Tensor& step) { return &memory(step)->params; }

  // One sample's image before mixing, normalised; drawn gets item, dx, dy, flip.
  static Values augmented(const BatchSource& source, int64_t item, const StepParams& at, int64_t* drawn) {
    const Augment& a = source.augment;
    const Values images(source.images), table(source.table);
    const int64_t height = images.shape[1], width = images.shape[2], channels = images.shape[3];
    const auto bits = [&](Draw purpose, int32_t epoch) {
      return random4(at.seed, purpose, uint64_t(item), uint32_t(epoch));
    };
    const Random4 place = bits(Draw::augment, at.epoch);
    const int64_t dx = int64_t(below(place.v[0], uint32_t(2 * a.crop_pad + 1))) - a.crop_pad + source.view.dx;
    const int64_t dy = int64_t(below(place.v[1], uint32_t(2 * a.crop_pad + 1))) - a.crop_pad + source.view.dy;
    bool flip = source.view.flip;
    if (a.flip == Flip::random) flip ^= place.v[2] >= 1u << 31;
    if (a.flip == Flip::alternating) flip ^= (bits(Draw::augment, 0).v[2] >= 1u << 31) != (at.epoch % 2 == 1);
    const int64_t values[] = {item, dx, dy, flip};
    std::copy(values, values + 4, drawn);

    // Bytes, -1 beyond a black border; then colours in 0..1.
    Values v({1, height, width, channels});
    const auto folded = [&](int64_t i, int64_t size) {
      if (a.padding == Padding::reflect)
        while (i < 0 || i >= size) i = size == 1 ? 0 : i < 0 ? -i : 2 * (size - 1) - i;
      return i;
    };
    for (int64_t h = 0; h < height; ++h)
      for (int64_t w = 0; w < width; ++w)
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t from_h = folded(h + dy, height), from_w = folded(w + dx, width);
          const bool inside = from_h >= 0 && from_h < height && from_w >= 0 && from_w < width;
          v[v.at(0, h, flip ? width - 1 - w : w, c)] =
              inside ? images.v[size_t(images.at(item, from_h, from_w, c))] : 0;
        }
    if (a.jitters()) {
      const Random4 r = bits(Draw::jitter, at.epoch);
      const auto factor = [](uint32_t u, float range) {
        const double low = std::max(0.0, 1 - double(range));
        return low + double(unit_float(u)) * (1 + double(range) - low);
      };
      for (double& e : v.v) e /= 255;
      jitter(v, factor(r.v[0], a.brightness), factor(r.v[1], a.contrast), factor(r.v[2], a.saturation),
             (2 * double(unit_float(r.v[3])) - 1) * double(a.hue));
      for (int64_t i = 0; i < v.size(); ++i)
        v[i] = table.v[size_t(i % channels)] * (1 - v[i]) + table.v[size_t(255 * channels + i % channels)] * v[i];
    } else {
      for (int64_t i = 0; i < v.size(); ++i) v[i] = table.v[size_t(int64_t(v[i]) * channels + i % channels)];
    }
    if (a.cutout > 0) {
      const Random4 r = bits(Draw::cutout, at.epoch);
      const int64_t top = int64_t(below(r.v[0], uint32_t(height))) - a.cutout / 2,
                    left = int64_t(below(r.v[1], uint32_t(width))) - a.cutout / 2;
      for (int64_t h = 0; h < height; ++h)
        for (int64_t w = 0; w < width; ++w)
          for (int64_t c = 0; c < channels; ++c)
            if (h >= top && h < top + a.cutout && w >= left && w < left + a.cutout) v[v.at(0, h, w, c)] = 0;
    }
    return v;
  }
  // torchvision.transforms.functional on an image of 0..1: adjust_brightness, _contrast, _saturation, _hue in turn, the
  // last by its definition over HSV (Python's colorsys has the same formulas).
  static void jitter(Values& v, double brightness, double contrast, double saturation, double hue) {
    const int64_t channels = v.shape[3], pixels = v.size() / channels;
    const auto clamp = [](double x) { return std::clamp(x, 0.0, 1.0); };
    const auto grey = [&](int64_t p) {
      if (channels == 3) return 0.2989 * v[p * 3] + 0.587 * v[p * 3 + 1] + 0.114 * v[p * 3 + 2];
      double sum = 0;
      for (int64_t c = 0; c < channels; ++c) sum += v[p * channels + c];
      return sum / double(channels);
    };
    for (double& e : v.v) e = clamp(e * brightness);
    double mean = 0;
    for (int64_t p = 0; p < pixels; ++p) mean += grey(p) / double(pixels);
    for (double& e : v.v) e = clamp(contrast * e + (1 - contrast) * mean);
    if (channels != 3) return;
    for (int64_t p = 0; p < pixels; ++p) {
      const double g = grey(p);
      for (int64_t c = 0; c < 3; ++c) v[p * 3 + c] = clamp(saturation * v[p * 3 + c] + (1 - saturation) * g);
      double &r = v[p * 3], &green = v[p * 3 + 1], &b = v[p * 3 + 2];
      const double value = std::max({r, green, b}), range = value - std::min({r, green, b});
      if (range == 0) continue;
      const double s = range / value;
      double h = r == value ? (green - b) / range : green == value ? 2 + (b - r) / range : 4 + (r - green) / range;
      h = h / 6 + hue;
      h -= std::floor(h);
      const int sector = int(h * 6);
      const double f = h * 6 - sector;
      const double p0 = value * (1 - s), q = value * (1 - s * f), t = value * (1 - s * (1 - f));
      const double table[6][3] = {{value, t, p0}, {q, value, p0}, {p0, value, t},
                                  {p0, q, value}, {t, p0, value}, {value, p0, q}};
      r = table[sector % 6][0], green = table[sector % 6][1], b = table[sector % 6][2];
    }
  }

  // f(index in y, in x, in w) for every product of a convolution.
  template <class F>
  static void for_products(const Values& y, const Values& x, const Values& w, Conv conv, const F& f) {
    for (int64_t n = 0; n < y.shape[0]; ++n)
      for (int64_t oh = 0; oh < y.shape[1]; ++oh)
        for (int64_t ow = 0; ow < y.shape[2]; ++ow)
          for (int64_t i = 0; i < w.shape[1]; ++i)
            for (int64_t j = 0; j < w.shape[2]; ++j) {
              const int64_t h = oh * conv.stride - conv.pad + i, v = ow * conv.stride - conv.pad + j;
              if (h < 0 || h >= x.shape[1] || v < 0 || v >= x.shape[2]) continue;
              for (int64_t k = 0; k < w.shape[0]; ++k)
                for (int64_t c = 0; c < w.shape[3]; ++c) f(y.at(n, oh, ow, k), x.at(n, h, v, c), w.at(k, i, j, c));
            }
  }
  // f(index in y, in x, pixel of the image) for every element of every window, rows first.
  template <class F>
  static void for_windows(const Values& y, const Values& x, Window window, const F& f) {
    for (int64_t n = 0; n < y.shape[0]; ++n)
      for (int64_t oh = 0; oh < y.shape[1]; ++oh)
        for (int64_t ow = 0; ow < y.shape[2]; ++ow)
          for (int64_t i = 0; i < window.height; ++i)
            for (int64_t j = 0; j < window.width; ++j) {
              const int64_t h = oh * window.stride - window.pad + i, w = ow * window.stride - window.pad + j;
              if (h < 0 || h >= x.shape[1] || w < 0 || w >= x.shape[2]) continue;
              for (int64_t c = 0; c < y.shape[3]; ++c) f(y.at(n, oh, ow, c), x.at(n, h, w, c), h * x.shape[2] + w);
            }
  }
  // f(index in y, in x) for every element that the shortcut passes on.
  template <class F>
  static void for_shortcut(const Values& y, const Values& x, int stride, const F& f) {
    const int64_t front = (y.shape[3] - x.shape[3]) / 2;
    for (int64_t n = 0; n < x.shape[0]; ++n)
      for (int64_t h = 0; h < x.shape[1]; h += stride)
        for (int64_t w = 0; w < x.shape[2]; w += stride)
          for (int64_t c = 0; c < x.shape[3]; ++c) f(y.at(n, h / stride, w / stride, c + front), x.at(n, h, w, c));
  }
  static void mean_and_variance(Values& x, int64_t c, double& mean, double& var) {
    const int64_t channels = x.shape[-1];
    const double rows = double(x.size() / channels);
    mean = var = 0;
    for (int64_t i = c; i < x.size(); i += channels) mean += x[i] / rows;
    for (int64_t i = c; i < x.size(); i += channels) var += (x[i] - mean) * (x[i] - mean) / rows;
  }
  // The elements of (sample, group) number `item` of x [batch, rows, channels].
  static std::vector<int64_t> group_members(int64_t item, int64_t rows, int64_t channels, int groups) {
    const int64_t sample = item / groups, group = item % groups, width = channels / groups;
    std::vector<int64_t> members;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t c = group * width; c < (group + 1) * width; ++c)
        members.push_back((sample * rows + row) * channels + c);
    return members;
  }
};

}  // namespace linnet
