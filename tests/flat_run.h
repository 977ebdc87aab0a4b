// A flat buffer of one parameter group, and one update of it under a rule, through the backend.
#pragma once
#include "linnet/optimizer.h"
#include "op_case.h"

namespace linnet {

inline Flat flat_of(Backend& be, const std::vector<double>& w, const std::vector<double>& g, int slots,
                    int64_t n_decay) {
  const int64_t n = int64_t(w.size());
  Flat flat{.master = tensor_of(be, {n}, DType::f32, w),
            .grad = tensor_of(be, {n}, DType::f32, g),
            .slots = tensor_of(be, {slots, n}, DType::f32, std::vector<double>(size_t(slots) * w.size(), 0.0)),
            .segments = {{.begin = 0, .n = n, .n_decay = n_decay}},
            .n = n,
            .n_trainable = n};
  return flat;
}

// Judges the gradient and applies update number t, from 1. `loss` is what the step's loss is said to be.
inline void update_once(Backend& be, const Rule& rule, const Flat& flat, const Tensor& step, double lr,
                        double weight_decay, int64_t t, Clip clip = {}, double loss = 1) {
  StepParams params{.step = t - 1};
  params.group[0] = group_step(rule, lr, weight_decay, t);
  write_step(be, step, params);
  const double sums[2] = {loss, 0};
  const Tensor step_sums(be.allocate(sizeof sums), {2}, DType::f64);
  be.upload(step_sums, sums);
  be.shift(rule, flat, 0, step);
  be.judge_step(step, flat.grad, nullptr, step_sums, clip);
  be.update(rule, flat, 0, clip, step);
}

}  // namespace linnet
