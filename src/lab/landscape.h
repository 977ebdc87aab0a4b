// Toy landscapes of one or two weights, and the optimizers of training on them (linnet/optim_trace.h).
#pragma once
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "linnet/config.h"
#include "linnet/optim_trace.h"

namespace linnet {

struct Landscape {
  std::string name, summary;
  std::vector<double> start;
  std::vector<std::vector<double>> minima;  // the lowest places; none where f falls for ever
  double (*f)(const std::vector<double>& w);
  // At update t, from 1: a noisy or sparse one depends on it.
  std::vector<double> (*gradient)(int64_t t, const std::vector<double>& w);
  double goal;              // it has converged where f is below this
  double low[2], high[2];   // what a drawing shows: of w1, and of w2 (of f where there is one weight)
  bool log_levels = false;  // contours of f - lowest, geometrically
  double lowest = 0;        // of f
};
const std::vector<Landscape>& landscapes();

struct Path {
  std::vector<std::vector<double>> w;  // the start, then after each step; up to where it left for infinity
  std::vector<double> f;
  int64_t converged = 0;          // steps after which f stays below the goal; -1: it does not
  bool diverged = false;          // not finite, or beyond 1e6
  double turned = 0;              // share of the steps up to the goal that reverse the one before in some weight
  double travelled = 0, net = 0;  // the way's length, and from its start to its end
};
// From `start` (empty: the landscape's), in double. Whether f stays below the goal is seen for another max(10, 1 %)
// steps, which are no part of the path: else one that swings through the goal could end there by chance.
Path walk(const Landscape&, const OptimizerConfig&, int64_t steps, const std::vector<double>& start = {});

// Lines of one height: pieces of two points each, by marching squares over a grid of n x n cells.
struct Segment2 {
  double x0, y0, x1, y1;
};
std::vector<Segment2> contour(const Landscape&, double level, int n = 80);
// Heights of about `count` contours.
std::vector<double> contour_levels(const Landscape&, int count = 14);

}  // namespace linnet
