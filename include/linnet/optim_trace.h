// An optimizer on a few numbers, outside of any network: the functor of training, step by step. For `linnet optim
// trace`, toy landscapes and tests.
#pragma once
#include <functional>
#include <vector>

#include "kernels/update.h"

namespace linnet {

struct TraceOptions {
  double lr = 1e-3;
  double weight_decay = 0;
  std::function<double(int64_t t)> lr_factor = {};  // of update t, from 1; empty: always 1
  Lookahead lookahead = {.k = 0};                   // k = 0: none
  bool f64 = true;                                  // all arithmetic in double, else in float as in training
};

struct Trace {
  std::vector<std::vector<double>> w, at;               // after each step; where its gradient was taken
  std::vector<std::vector<std::vector<double>>> state;  // [slot][step][weight], slots as in slot_names()
};

// The gradient at `point` for update t, from 1: one number a weight.
using GradientOf = std::function<std::vector<double>(int64_t t, const std::vector<double>& point)>;

Trace trace_rule(const Rule&, const std::vector<double>& w0, int64_t steps, const GradientOf&, const TraceOptions&);

}  // namespace linnet
