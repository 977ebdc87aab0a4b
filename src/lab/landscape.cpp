#include "src/lab/landscape.h"

#include <algorithm>
#include <cmath>

#include "kernels/rng.h"
#include "linnet/optimizer.h"

namespace linnet {

namespace {

using W = std::vector<double>;

double square(double x) { return x * x; }

// Beale's function (More, Garbow, Hillstrom 1981, no. 5).
double beale_term(int k, const W& w) { return W{1.5, 2.25, 2.625}[size_t(k)] - w[0] * (1 - std::pow(w[1], k + 1)); }

// N(0, 1), the same for the same update.
double noise(int64_t t, int64_t stream) {
  const Random4 r = random4(42, Draw::init, uint64_t(t), uint32_t(stream));
  return double(normal_float(r.v[0], r.v[1]));
}

}  // namespace

const std::vector<Landscape>& landscapes() {
  static const std::vector<Landscape> table = {
      {"bowl",
       "w1^2 + w2^2: the same slope on all sides",
       {4, 2},
       {{0, 0}},
       [](const W& w) { return square(w[0]) + square(w[1]); },
       [](int64_t, const W& w) {
         return W{2 * w[0], 2 * w[1]};
       },
       1e-6,
       {-5, -5},
       {5, 5},
       true},
      {"ravine",
       "w1^2 + 10 w2^2: ten times as steep across as along",
       {4, 2},
       {{0, 0}},
       [](const W& w) { return square(w[0]) + 10 * square(w[1]); },
       [](int64_t, const W& w) {
         return W{2 * w[0], 20 * w[1]};
       },
       1e-6,
       {-5, -3},
       {5, 3},
       true},
      {"rosenbrock",
       "(1 - w1)^2 + 100 (w2 - w1^2)^2: a bent, flat valley to (1, 1)",
       {-1.2, 1},
       {{1, 1}},
       [](const W& w) { return square(1 - w[0]) + 100 * square(w[1] - square(w[0])); },
       [](int64_t, const W& w) {
         const double d = w[1] - square(w[0]);
         return W{-2 * (1 - w[0]) - 400 * w[0] * d, 200 * d};
       },
       1e-6,
       {-2, -1},
       {2, 3},
       true},
      {"saddle",
       "w1^2 - w2^2 + w2^4/4: flat at (0, 0), minima at w2 = +-sqrt 2",
       {1, 0.001},
       {{0, std::sqrt(2)}, {0, -std::sqrt(2)}},
       [](const W& w) { return square(w[0]) - square(w[1]) + square(square(w[1])) / 4; },
       [](int64_t, const W& w) {
         return W{2 * w[0], -2 * w[1] + w[1] * w[1] * w[1]};
       },
       -1 + 1e-6,
       {-2, -2.5},
       {2, 2.5},
       false,
       -1},
      {"beale",
       "Beale's function: plateaus and steep walls, minimum at (3, 0.5)",
       {1, 1},
       {{3, 0.5}},
       [](const W& w) { return square(beale_term(0, w)) + square(beale_term(1, w)) + square(beale_term(2, w)); },
       [](int64_t, const W& w) {
         W g{0, 0};
         for (int k = 0; k < 3; ++k) {
           const double r = beale_term(k, w);
           g[0] += 2 * r * (std::pow(w[1], k + 1) - 1);
           g[1] += 2 * r * w[0] * (k + 1) * std::pow(w[1], k);
         }
         return g;
       },
       1e-6,
       {-1, -1.5},
       {4.5, 1.5},
       true},
      {"bumpy",
       "w^2/20 + 0.5 (1 - cos 3w): one weight, a local minimum in every bump, the deepest at 0",
       {5.2},
       {{0}},
       [](const W& w) { return square(w[0]) / 20 + 0.5 * (1 - std::cos(3 * w[0])); },
       [](int64_t, const W& w) { return W{w[0] / 10 + 1.5 * std::sin(3 * w[0])}; },
       0.01,
       {-7, 0},
       {7, 3.5}},
      {"noisy",
       "0.02 w, a slope whose gradient is 0.02 with noise of deviation 0.01; goal: from 0.5 to 0.2",
       {0.5},
       {},
       [](const W& w) { return 0.02 * w[0]; },
       [](int64_t t, const W&) { return W{0.02 + 0.01 * noise(t, 0)}; },
       0.02 * 0.2,
       {-0.1, -0.002},
       {0.6, 0.012},
       false,
       -1e9},
      {"sparse",
       "(w1^2 + w2^2)/2, where w2 has a gradient in every tenth step only",
       {2, 2},
       {{0, 0}},
       [](const W& w) { return (square(w[0]) + square(w[1])) / 2; },
       [](int64_t t, const W& w) {
         return W{w[0], t % 10 == 0 ? w[1] : 0};
       },
       1e-2,
       {-3, -3},
       {3, 3},
       true},
  };
  return table;
}

Path walk(const Landscape& land, const OptimizerConfig& settings, int64_t steps, const std::vector<double>& start) {
  Path path;
  path.w.push_back(start.empty() ? land.start : start);
  const auto far = [](const W& w) {
    return !std::ranges::all_of(w, [](double x) { return std::fabs(x) < 1e6; });  // also what is not a number
  };
  // After it has left, the gradient is 0: the numbers stay what they are and the rest is cut off.
  bool left = false;
  const int64_t after = std::max<int64_t>(10, steps / 100);
  const Trace trace = trace_rule(make_rule(settings), path.w[0], steps + after,
                                 [&](int64_t t, const W& w) {
                                   left = left || far(w);
                                   return left ? W(w.size(), 0.0) : land.gradient(t, w);
                                 },
                                 {.lr = settings.lr, .weight_decay = settings.weight_decay});
  for (int64_t t = 0; t < steps && !path.diverged; ++t) {
    path.diverged = far(trace.w[size_t(t)]);
    if (!path.diverged) path.w.push_back(trace.w[size_t(t)]);
  }
  for (size_t t = 0; t < path.w.size(); ++t) {
    path.f.push_back(land.f(path.w[t]));
    if (!(path.f[t] < land.goal)) path.converged = int64_t(t) + 1;
  }
  bool stays = !path.diverged && path.converged <= steps;
  for (int64_t t = steps; t < steps + after; ++t) stays = stays && land.f(trace.w[size_t(t)]) < land.goal;
  if (!stays) path.converged = -1;
  // Up to the goal: behind it the steps are rounding, and as many as were asked for.
  const auto end = path.converged < 0 ? path.w.size() : size_t(path.converged) + 1;
  int64_t turns = 0;
  for (size_t t = 1; t < path.w.size(); ++t) {
    const auto step = [&](size_t at, size_t i) { return path.w[at][i] - path.w[at - 1][i]; };
    double length = 0;
    for (size_t i = 0; i < path.w[t].size(); ++i) length += square(step(t, i));
    length = std::sqrt(length);
    path.travelled += length;
    bool turned = false;
    for (size_t i = 0; t > 1 && i < path.w[t].size(); ++i)  // not where a weight only moves by rounding
      turned = turned || (step(t, i) * step(t - 1, i) < 0 && std::fabs(step(t, i)) > 1e-12 * length);
    turns += turned && t < end;
  }
  for (size_t i = 0; i < path.w[0].size(); ++i) path.net += square(path.w.back()[i] - path.w[0][i]);
  path.net = std::sqrt(path.net);
  path.turned = end > 2 ? double(turns) / double(end - 2) : 0;
  return path;
}

std::vector<double> contour_levels(const Landscape& land, int count) {
  double top = -INFINITY, bottom = INFINITY;
  for (int i = 0; i <= 40; ++i)
    for (int j = 0; j <= 40; ++j) {
      const double v = land.f(
          {land.low[0] + (land.high[0] - land.low[0]) * i / 40, land.low[1] + (land.high[1] - land.low[1]) * j / 40});
      top = std::max(top, v), bottom = std::min(bottom, v);
    }
  std::vector<double> levels;
  const double least = std::max(bottom - land.lowest, (top - land.lowest) * 1e-4);
  for (int k = 0; k < count; ++k) {
    const double share = (k + 0.5) / count;
    levels.push_back(land.log_levels ? land.lowest + least * std::pow((top - land.lowest) / least, share)
                                     : bottom + (top - bottom) * share);
  }
  return levels;
}

std::vector<Segment2> contour(const Landscape& land, double level, int n) {
  const auto at = [&](int axis, int i) { return land.low[axis] + (land.high[axis] - land.low[axis]) * i / n; };
  const size_t side = size_t(n) + 1;
  std::vector<double> f(side * side);
  const auto value = [&](int i, int j) -> double& { return f[size_t(j) * side + size_t(i)]; };
  for (int j = 0; j <= n; ++j)
    for (int i = 0; i <= n; ++i) value(i, j) = land.f({at(0, i), at(1, j)}) - level;
  std::vector<Segment2> segments;
  constexpr int kCorner[4][2] = {{0, 0}, {1, 0}, {1, 1}, {0, 1}};
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < n; ++i) {
      double x[4], y[4];
      int crossings = 0;
      for (int e = 0; e < 4; ++e) {
        const int* p = kCorner[e];
        const int* q = kCorner[(e + 1) % 4];
        const double a = value(i + p[0], j + p[1]), b = value(i + q[0], j + q[1]);
        if ((a < 0) == (b < 0)) continue;
        const double s = a / (a - b);
        x[crossings] = at(0, i + p[0]) + s * (at(0, i + q[0]) - at(0, i + p[0]));
        y[crossings++] = at(1, j + p[1]) + s * (at(1, j + q[1]) - at(1, j + p[1]));
      }
      for (int k = 0; k + 1 < crossings; k += 2) segments.push_back({x[k], y[k], x[k + 1], y[k + 1]});
    }
  return segments;
}

}  // namespace linnet
