// What a step does to the flat buffers, element by element: clip, update, Lookahead, averages of the weights. A step
// whose loss or gradient is not finite leaves everything as it was.
#pragma once
#include "optim.h"

namespace linnet {

struct Clip {
  float norm = 0;   // global L2 norm; 0: off
  float value = 0;  // of each element; 0: off
  // What the loss was multiplied with before backward, a power of two; it is taken out before anything else is done.
  float loss_scale = 1;
  LINNET_HD float unscaled(float g) const { return g * (1 / loss_scale); }  // exact, as the factor is
  LINNET_HD float clamp(float g) const {
    g = unscaled(g);
    return value > 0 ? (g > value ? value : g < -value ? -value : g) : g;
  }
};

// The step's gradient: its norm, whether it and the loss are finite, the factor that clips it
// (torch.nn.utils.clip_grad_norm_: min(1, max_norm / (norm + 1e-6))).
struct Square {
  const float* __restrict__ g;
  Clip clip;
  LINNET_HD double operator()(int64_t i) const {
    const double e = double(clip.clamp(g[i]));
    return e * e + double(g[i] - g[i]);  // 0, but NaN where g is infinite, which clamping would hide
  }
};
// Sums to 0, but to NaN where an element is not finite.
struct Residue {
  const float* __restrict__ x;
  LINNET_HD double operator()(int64_t i) const { return double(x[i] - x[i]); }
};
struct StoreResidue {
  StepMemory* m;
  LINNET_HD void operator()(double sum) const { m->result.residue = sum; }
};
struct JudgeStep {
  static constexpr double kLargestFloat = 3.4028234663852886e38;
  StepMemory* m;
  const double* sums;  // [2] of this step: loss, correct answers
  Clip clip;
  LINNET_HD void operator()(double sum_of_squares) const {
    StepResult& r = m->result;
    const float norm = float(sqrt(sum_of_squares));
    const float factor = clip.norm / (norm + 1e-6f);
    r.grad_norm = norm;
    r.clip_scale = clip.norm > 0 && factor < 1 ? factor : 1.f;
    // A gradient whose square is no float would make the state of an optimizer infinite.
    const double square = sum_of_squares * r.clip_scale * r.clip_scale;
    const bool overflow = !(square <= kLargestFloat), diverged = !is_finite(sums[0]) || !is_finite(r.residue);
    // After more bad steps in a row than allowed, every further one is left out: the host will see it.
    const bool halted = r.halted != 0;
    r.bad = halted || overflow || diverged;
    if (halted) return;
    const StepParams& p = m->params;
    m->trace[p.step % kTraceSteps] = {p.step, sums[0], p.group[0].lr, norm, r.bad};
    if (r.bad && r.bad_in_row == 0) r.bad_step = m->params.step;
    r.bad_in_row = r.bad ? r.bad_in_row + 1 : 0;
    r.halted = r.bad_in_row > (diverged ? m->params.max_bad_in_row : m->params.max_overflows_in_row);
    r.skipped += r.bad;
    r.clipped += !r.bad && r.clip_scale < 1;
  }
};

// Element i of a group's part of the flat buffers under its rule; the first n_decay ones are decayed. kMixed: not all
// of them alike, which costs a comparison for every element.
template <class R, bool kMixed>
struct ApplyRule {
  R rule;
  float* __restrict__ w;
  const float* __restrict__ g;
  float* __restrict__ slot[R::kSlots > 0 ? R::kSlots : 1];
  int64_t n_decay;
  Clip clip;
  const StepMemory* m;
  int group;
  static constexpr int kSlots = R::kSlots > 0 ? R::kSlots : 1;

  // The loop's body with all that it reads from the step in registers.
  struct Local {
    R rule;
    float* __restrict__ w;
    const float* __restrict__ g;
    float* __restrict__ slot[R::kSlots > 0 ? R::kSlots : 1];
    float limit, scale, weight_decay;  // the gradient is clamped to [-limit, limit], then scaled; both know loss_scale
    bool bad;
    int64_t n_decay;
    GroupStep p;
    // Without branches, so that the CPU's loop can use vector instructions.
    LINNET_HD void operator()(int64_t i) const {
      float s[kSlots], before[kSlots], clamped = g[i] < limit ? g[i] : limit;
      clamped = clamped > -limit ? clamped : -limit;
      for (int k = 0; k < R::kSlots; ++k) s[k] = before[k] = slot[k][i];
      float good = w[i];
      if constexpr (R::kShifts) good = before[R::kTrueWeight];
      const float wd = kMixed && i >= n_decay ? 0.f : weight_decay;
      const float next = rule(w[i], clamped * scale, s, wd, p);
      w[i] = bad ? good : next;
      for (int k = 0; k < R::kSlots; ++k) slot[k][i] = bad ? before[k] : s[k];
    }
  };
  LINNET_HD Local local() const {
    const GroupStep& p = m->params.group[group];
    Local l{rule,
            w,
            g,
            {},
            clip.value > 0 ? clip.value * clip.loss_scale : HUGE_VALF,
            clip.unscaled(m->result.clip_scale),
            n_decay > 0 ? float(p.weight_decay) : 0,
            m->result.bad != 0,
            n_decay,
            p};
    for (int k = 0; k < R::kSlots; ++k) l.slot[k] = slot[k];
    return l;
  }
};

// Moves the weights to where a true look-ahead rule wants the gradient taken.
template <class R>
struct ApplyShift {
  R rule;
  float* __restrict__ w;
  float* __restrict__ slot[R::kSlots > 0 ? R::kSlots : 1];
  const StepMemory* m;
  int group;
  LINNET_HD void operator()(int64_t i) const {
    float s[R::kSlots > 0 ? R::kSlots : 1];
    for (int k = 0; k < R::kSlots; ++k) s[k] = slot[k][i];
    w[i] = rule.shift(w[i], s, m->params.group[group]);
    for (int k = 0; k < R::kSlots; ++k) slot[k][i] = s[k];
  }
};

// Muon's parts for one matrix: the direction x and its norm, a sum of two tensors, the step.
struct MuonDirection {
  Muon rule;
  const float* __restrict__ g;
  float* __restrict__ v;
  float* __restrict__ x;
  Clip clip;
  const StepMemory* m;
  LINNET_HD void operator()(int64_t i) const {
    float next = v[i];
    x[i] = rule.direction(clip.clamp(g[i]) * m->result.clip_scale, next);
    if (!m->result.bad) v[i] = next;
  }
};
struct WriteInverseNorm {
  float* inverse;
  LINNET_HD void operator()(double sum_of_squares) const {
    const double norm = sqrt(sum_of_squares);
    inverse[0] = float(1 / (norm > 1e-7 ? norm : 1e-7));
  }
};
struct WeightedSum {  // y = a x + b z; y may be x or z
  const float* x;
  const float* z;
  float* y;
  float a, b;
  LINNET_HD void operator()(int64_t i) const { y[i] = a * x[i] + b * z[i]; }
};
struct MuonApply {
  Muon rule;
  float* __restrict__ w;
  const float* __restrict__ x;
  bool decays;
  float size;  // sqrt(max(1, rows / columns)): a tall matrix moves as far as a square one
  const StepMemory* m;
  int group;
  LINNET_HD void operator()(int64_t i) const {
    if (m->result.bad) return;
    const GroupStep& p = m->params.group[group];
    float none = 0, next = w[i];
    rule.decay(next, none, decays ? float(p.weight_decay) : 0.f, p);
    w[i] = next - float(p.lr) * size * x[i];
  }
};

// Lookahead (Zhang et al. 2019): every k steps the slow weights go a share alpha of the way to the fast ones, and those
// start there again. They start where training does.
struct Lookahead {
  int64_t k = 5;
  double alpha = 0.5;
  // After update t, from 1.
  template <class T>
  LINNET_HD T operator()(T w, T& slow, int64_t t) const {
    if (t % k != 0) return w;
    slow += T(alpha) * (w - slow);
    return slow;
  }
};
struct ApplyLookahead {
  Lookahead rule;
  float* __restrict__ w;
  float* __restrict__ slow;
  const StepMemory* m;
  LINNET_HD void operator()(int64_t i) const {
    if (!m->result.bad) w[i] = rule(w[i], slow[i], m->params.step + 1);
  }
};

// average <- decay average + (1 - decay) value: the exponential moving average of the weights.
struct MovingAverage {
  float* __restrict__ average;
  const float* __restrict__ value;
  float decay, rest;  // rest = 1 - decay, computed in double
  const StepMemory* m;
  LINNET_HD void operator()(int64_t i) const {
    if (!m->result.bad) average[i] = decay * average[i] + rest * value[i];
  }
};

// The forward pass has changed the running statistics before the step is judged: a bad one's are taken back.
struct CommitBuffers {
  float* __restrict__ value;
  float* __restrict__ good;
  const StepMemory* m;
  LINNET_HD void operator()(int64_t i) const {
    if (m->result.bad)
      value[i] = good[i];
    else
      good[i] = value[i];
  }
};
// totals [3]: loss, correct answers and images since the last row of metrics.
struct CommitSums {
  double* totals;
  const double* sums;
  double images;
  const StepMemory* m;
  LINNET_HD void operator()(int64_t) const {
    if (m->result.bad) return;
    totals[0] += sums[0];
    totals[1] += sums[1];
    totals[2] += images;
  }
};

}  // namespace linnet
