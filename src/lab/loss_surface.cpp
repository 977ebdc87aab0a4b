#include "src/lab/loss_surface.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/rng.h"
#include "src/lab/checks.h"

namespace linnet {

LossSurface::LossSurface(Net& net, const BatchSource& source, int classes, int64_t images)
    : net_(net),
      source_(source),
      classes_(classes),
      order_(size_t(std::min(images, source.order.numel()))),
      weights_(on_host(net.backend(), net.params().flat().master)),
      buffers_(on_host(net.backend(), net.params().flat().buffers)) {
  std::iota(order_.begin(), order_.end(), 0);
  source_.order = net.pool().empty({int64_t(order_.size())}, DType::i32);
  source_.augment = {};
  net.backend().upload(source_.order, order_.data());
}

LossSurface::~LossSurface() {
  net_.backend().upload(net_.params().flat().master, weights_.data());
  net_.backend().upload(net_.params().flat().buffers, buffers_.data());
}

std::vector<float> LossSurface::direction(uint64_t seed) const {
  std::vector<float> d(weights_.size(), 0.f);
  for (const Param* p : net_.params().params()) {
    if (p->shape.rank() < 2) continue;
    const int64_t rows = p->shape[0], length = p->shape.numel() / rows;
    for (int64_t row = 0; row < rows; ++row) {
      const auto begin = size_t(p->offset + row * length), n = size_t(length);
      for (size_t i = begin; i < begin + n; ++i) {
        const Random4 r = random4(seed, Draw::init, i, 2);
        d[i] = normal_float(r.v[0], r.v[1]);
      }
      const std::span filter = std::span(d).subspan(begin, n);
      const auto scale = float(norm_of(std::span(weights_).subspan(begin, n)) / std::max(norm_of(filter), 1e-30));
      for (float& x : filter) x *= scale;
    }
  }
  return d;
}

void LossSurface::move(const std::vector<float>& d1, double a, const std::vector<float>& d2, double b) {
  std::vector<float> w = weights_;
  for (size_t i = 0; i < d1.size(); ++i) w[i] += float(a) * d1[i];
  for (size_t i = 0; i < d2.size(); ++i) w[i] += float(b) * d2[i];
  net_.backend().upload(net_.params().flat().master, w.data());
  net_.backend().upload(net_.params().flat().buffers, buffers_.data());  // training mode moves them
}

double LossSurface::at(const std::vector<float>& d1, double a, const std::vector<float>& d2, double b) {
  move(d1, a, d2, b);
  return net_.evaluate(source_, 500, classes_).loss;
}

LossSurface::Rise LossSurface::rise(double radius, int count, uint64_t seed) {
  const double here = at({}, 0);
  Rise rise{0, -INFINITY};
  for (int k = 0; k < count; ++k) {
    const double up = at(direction(seed + uint64_t(k)), radius) - here;
    rise.mean += up / count;
    rise.most = std::max(rise.most, up);
  }
  return rise;
}

std::vector<float> LossSurface::gradient_at(const std::vector<float>& d, double a) {
  move(d, a, {}, 0);
  gradients_of(net_, plain_batch(net_, source_, int64_t(order_.size())));
  return on_host(net_.backend(), net_.params().flat().grad);
}

// H v is about (g(w + h v) - g(w - h v)) / 2h; the vector then is H v made one long again.
LossSurface::Top LossSurface::top_eigenvalue(int steps, std::vector<float>* vector) {
  std::vector<float> v(weights_.size(), 0.f);
  for (const Param* p : net_.params().params())
    for (auto i = size_t(p->offset); i < size_t(p->offset + p->shape.numel()); ++i) {
      const Random4 r = random4(1, Draw::init, i, 3);
      v[i] = normal_float(r.v[0], r.v[1]);
    }
  const double h = 1e-3 * std::max(1.0, norm_of(weights_));
  Top top{0, 0, false};
  for (; top.steps < steps && !top.settled; ++top.steps) {
    const double length = norm_of(v);
    if (!(length > 0)) break;  // flat in all directions
    for (float& x : v) x = float(double(x) / length);
    const std::vector<float> above = gradient_at(v, h), below = gradient_at(v, -h);
    double value = 0;
    std::vector<float> next(v.size());
    for (size_t i = 0; i < v.size(); ++i) {
      next[i] = float((double(above[i]) - double(below[i])) / (2 * h));
      value += double(v[i]) * double(next[i]);  // Rayleigh's quotient
    }
    top.settled = top.steps > 0 && std::fabs(value - top.value) < 0.01 * std::fabs(value);
    top.value = value;
    if (vector) *vector = v;
    v = std::move(next);
  }
  return top;
}

}  // namespace linnet
