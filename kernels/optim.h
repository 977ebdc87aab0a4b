// Every optimizer is one struct: how many words of state a parameter has, and the scalar step. Nothing else.
#pragma once
#include <variant>

#include "hd.h"
#include "step.h"

namespace linnet {

// torch.optim.SGD: weight decay is added to the gradient, the first step starts the momentum buffer at the gradient
// itself (undampened), Nesterov looks one momentum step ahead.
struct Sgd {
  static constexpr int kSlots = 1;
  float momentum = 0.9f;
  float dampening = 0;
  bool nesterov = false;
  LINNET_HD float operator()(float w, float g, float (&s)[kSlots], float weight_decay, const StepParams& p) const {
    g += weight_decay * w;
    s[0] = p.step == 0 ? g : momentum * s[0] + (1 - dampening) * g;
    return w - p.lr * (momentum == 0 ? g : nesterov ? g + momentum * s[0] : s[0]);
  }
};

using Rule = std::variant<Sgd>;

// Applies a rule to element i of the flat buffers. Decayed parameters come first.
template <class R>
struct ApplyRule {
  R rule;
  float* __restrict__ w;
  const float* __restrict__ g;
  float* __restrict__ slot[R::kSlots];
  int64_t n_decay;
  const StepParams* __restrict__ p;
  LINNET_HD void operator()(int64_t i) const {
    float s[R::kSlots];
    for (int k = 0; k < R::kSlots; ++k) s[k] = slot[k][i];
    w[i] = rule(w[i], g[i] * p->clip_scale, s, i < n_decay ? p->weight_decay : 0.f, *p);
    for (int k = 0; k < R::kSlots; ++k) slot[k][i] = s[k];
  }
};

// torch.nn.utils.clip_grad_norm_: the factor min(1, max_norm / (norm + 1e-6)). max_norm 0: only the norm is recorded.
struct Square {
  const float* __restrict__ g;
  LINNET_HD double operator()(int64_t i) const { return double(g[i]) * double(g[i]); }
};
struct WriteClipScale {
  StepParams* p;
  float max_norm;
  LINNET_HD void operator()(double sum_of_squares) const {
    const float norm = float(sqrt(sum_of_squares));
    p->grad_norm = norm;
    const float factor = max_norm / (norm + 1e-6f);
    p->clip_scale = max_norm > 0 && factor < 1 ? factor : 1.f;
  }
};

}  // namespace linnet
