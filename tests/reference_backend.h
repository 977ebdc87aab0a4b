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
  void upload(const Tensor& dst, const void* host) override { std::memcpy(dst.raw(), host, dst.bytes()); }
  void download(void* host, const Tensor& src) override { std::memcpy(host, src.raw(), src.bytes()); }
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

  void conv_forward(const Tensor& y, const Tensor& x, const Tensor& w, Conv conv) override {
    Values vy(y.shape()), vx(x), vw(w);
    for_products(vy, vx, vw, conv, [&](int64_t iy, int64_t ix, int64_t iw) { vy[iy] += vx[ix] * vw[iw]; });
    vy.store(y);
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

  void bn_forward(const Tensor& y, const Tensor& saved, const Tensor& x, const Tensor* residual, const BnState& state,
                  Bn bn, bool train) override {
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
                   const Tensor& dy, const Tensor& x, const Tensor& y, const Tensor&, const Tensor& scale,
                   Bn bn) override {
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
                    const Tensor& labels, float smoothing, float scale) override {
    Values z(logits), dz(logits.shape()), s(stats.shape());
    const int64_t rows = logits.dim(0), classes = logits.dim(1);
    double total = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const int32_t label = labels.data<int32_t>()[row];
      if (label < 0) continue;
      const auto first = z.v.begin() + row * classes, top = std::max_element(first, first + classes);
      double sum = 0;
      for (int64_t c = 0; c < classes; ++c) sum += std::exp(first[c] - *top);
      for (int64_t c = 0; c < classes; ++c) {
        const double log_p = first[c] - *top - std::log(sum);
        const double q = double(smoothing) / double(classes) + (c == label ? 1 - double(smoothing) : 0);
        s[row * 2] -= q * log_p;
        dz[row * classes + c] = (std::exp(log_p) - q) * double(scale);
      }
      s[row * 2 + 1] = top - first == label;
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

  // Sample n of the batch is the crop at (dy, dx) of a zero-padded image, then mirrored; black is the byte 0.
  void make_batch(const Tensor& batch, const Tensor& labels, const Tensor& draws, const BatchSource& source,
                  const Tensor& step) override {
    Values out(batch.shape()), images(source.images), table(source.table);
    const int64_t height = batch.dim(1), width = batch.dim(2), channels = batch.dim(3);
    for (int64_t n = 0; n < batch.dim(0); ++n) {
      const int64_t at = params(step)->first + n;
      const bool real = at < source.order.numel();
      int64_t item = -1, dx = 0, dy = 0, flip = 0;
      if (real) {
        item = source.order.data<int32_t>()[at];
        const Random4 r = random4(params(step)->seed, Draw::augment, uint64_t(item), uint32_t(params(step)->epoch));
        dx = int64_t(below(r.v[0], uint32_t(2 * source.crop_pad + 1))) - source.crop_pad;
        dy = int64_t(below(r.v[1], uint32_t(2 * source.crop_pad + 1))) - source.crop_pad;
        flip = source.flip && r.v[2] >= 1u << 31;
      }
      const int64_t drawn[] = {item, dx, dy, flip};
      for (int i = 0; i < 4; ++i) Values::round_to(draws, n * 4 + i, double(drawn[i]));
      Values::round_to(labels, n, real ? Values::load(source.labels, item) : -1);
      for (int64_t h = 0; h < height; ++h)
        for (int64_t w = 0; w < width; ++w)
          for (int64_t c = 0; c < channels; ++c) {
            const int64_t from_h = h + dy, from_w = w + dx, to_w = flip ? width - 1 - w : w;
            const bool inside = real && from_h >= 0 && from_h < height && from_w >= 0 && from_w < width;
            const int64_t byte = inside ? int64_t(images[images.at(item, from_h, from_w, c)]) : 0;
            out[out.at(n, h, to_w, c)] = table[byte * channels + c];
          }
    }
    out.store(batch);
  }
  void clip_scale(const Tensor& step, const Tensor& grad, float max_norm) override {
    Values g(grad);
    double squares = 0;
    for (double e : g.v) squares += e * e;
    const double norm = std::sqrt(squares);
    params(step)->grad_norm = float(norm);
    params(step)->clip_scale = max_norm > 0 ? float(std::min(1.0, double(max_norm) / (norm + 1e-6))) : 1.f;
  }
  // SGD only: what else a rule does, its own test compares with PyTorch's numbers.
  void update(const Rule& rule, const Flat& flat, const Tensor& step) override {
    const Sgd* sgd = std::get_if<Sgd>(&rule);
    require(sgd, "[reference] has no update but SGD's");
    const StepParams& p = *params(step);
    Values w(flat.master), g(flat.grad), buffer(flat.slots);
    for (int64_t i = 0; i < flat.n; ++i) {
      double d = g[i] * double(p.clip_scale) + (i < flat.n_decay ? double(p.weight_decay) * w[i] : 0);
      buffer[i] = p.step == 0 ? d : double(sgd->momentum) * buffer[i] + (1 - double(sgd->dampening)) * d;
      if (sgd->momentum != 0) d = sgd->nesterov ? d + double(sgd->momentum) * buffer[i] : buffer[i];
      w[i] -= double(p.lr) * d;
    }
    w.store(flat.master);
    buffer.store(flat.slots);
  }

 private:
  static StepParams* params(const Tensor& step) { return static_cast<StepParams*>(step.raw()); }

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
