// Every optimizer is one struct: its hyperparameters, the words of state that a parameter has, and the scalar step.
//
// Everything is computed in T, float in training and double in tests; hyperparameters are double and each constant is
// rounded to T once (T(1 - beta2), never T(1) - T(beta2)). What is the same for all parameters in a step, such as a
// bias correction, comes from factors(), which the host calls once a step. That is also where most forms of a formula
// differ, so that the loop over the parameters has no branches and can use vector instructions.
//
// effective_lr(), of the rules that divide by a root, is what an averaged gradient is multiplied with.
//
// In comments: w weight, g gradient, t the number of the update, from 1.
#pragma once
#include <variant>

#include "hd.h"
#include "step.h"

namespace linnet {

// Weight decay, with the weight_decay `wd` of the parameter at hand (0: it does not decay).
struct Decay {
  double l2 = 1;  // 1: g <- g + wd w, the gradient of wd/2 |w|^2, which then passes through the optimizer
  double decoupled =
      0;  // 1: w <- (1 - lr wd) w, beside the optimizer's own step. 1 / base lr: only the schedule counts
  template <class T>
  LINNET_HD void operator()(T& w, T& g, T wd, const GroupStep& p) const {
    g += T(l2) * wd * w;
    w -= T(p.lr * decoupled) * wd * w;
  }
};
inline constexpr Decay kL2{1, 0}, kDecoupled{0, 1};

// 1 - beta^t: what an average that started at zero has seen of its weights by update t.
inline double seen(double beta, int64_t t) { return 1 - std::pow(beta, double(t)); }

// What is true of most rules; those for which it is not say so themselves.
struct RuleBase {
  static constexpr int kSlots = 0;
  static constexpr const char* kNames[] = {""};  // of the slots; at least one entry
  static constexpr int kFirstMoment = -1;        // the slot with the averaged or accumulated gradient, -1: none
  static constexpr bool kShifts = false;         // shift() moves the weights before the gradient is taken
  // The first moment of a gradient of 1 at all updates so far. It turns one optimizer's first moment into another's.
  double first_moment_gain(const GroupStep&) const { return 1; }
  void factors(GroupStep&) const {}
};

// w <- w - lr g.
struct Sgd : RuleBase {
  Decay decay;
  template <class T>
  LINNET_HD T operator()(T w, T g, T*, T wd, const GroupStep& p) const {
    decay(w, g, wd, p);
    return w - T(p.lr) * g;
  }
};

// SGD with momentum: v <- momentum v + gain g; w <- w + step v. Nesterov, as PyTorch and Keras have it, moves by one
// more momentum step: w <- w + step (momentum v + gain g).
enum class MomentumForm {
  accumulate,            // gain 1 - dampening (1 in the first update), step -lr: PyTorch's
  ewa,                   // gain 1 - momentum, step -lr: v is an average of the gradients
  ewa_corrected,         // gain 1 - momentum, step -lr / (1 - momentum^t)
  inside,                // gain -lr, step 1: Keras'. The same as accumulate while lr stays the same
  accumulate_corrected,  // gain 1, step -lr / (1 - momentum^t): the first steps are 1 / (1 - momentum) times larger
};
struct Momentum : RuleBase {
  static constexpr int kSlots = 1;
  static constexpr const char* kNames[] = {"v"};
  static constexpr int kFirstMoment = 0;
  double momentum = 0.9, dampening = 0;
  bool nesterov = false;
  MomentumForm form = MomentumForm::accumulate;
  Decay decay;
  void factors(GroupStep& p) const {
    const bool ewa = form == MomentumForm::ewa || form == MomentumForm::ewa_corrected;
    const bool inside = form == MomentumForm::inside;
    const bool corrected = form == MomentumForm::ewa_corrected || form == MomentumForm::accumulate_corrected;
    p.c[0] = ewa ? 1 - momentum : inside ? -p.lr : p.t == 1 ? 1 : 1 - dampening;
    const double step = inside ? 1 : corrected ? -p.lr / seen(momentum, p.t) : -p.lr;
    p.c[1] = nesterov ? step * momentum : step;
    p.c[2] = nesterov ? step : 0;
  }
  double first_moment_gain(const GroupStep& p) const {
    const double average = seen(momentum, p.t), sum = average / (1 - momentum);
    switch (form) {
      case MomentumForm::ewa:
      case MomentumForm::ewa_corrected:
        return average;
      case MomentumForm::inside:
        return -p.lr * sum;
      case MomentumForm::accumulate_corrected:
        return sum;
      case MomentumForm::accumulate:
        break;
    }
    return (1 - dampening) * sum + dampening * std::pow(momentum, double(p.t - 1));
  }
  template <class T>
  LINNET_HD T operator()(T w, T g, T* s, T wd, const GroupStep& p) const {
    decay(w, g, wd, p);
    const T pull = T(p.c[0]) * g;
    s[0] = T(momentum) * s[0] + pull;
    return w + (T(p.c[1]) * s[0] + T(p.c[2]) * pull);
  }
};

// Nesterov's method as it was published: the gradient is that of the point to which the momentum alone would lead.
//   outside: g at w - lr momentum v;  v <- momentum v + g;     w <- w - lr v
//   inside:  g at w - momentum v;     v <- momentum v + lr g;  w <- w - v
// While lr stays the same, its look-ahead points are the weights of Momentum with nesterov.
struct Nag : RuleBase {
  static constexpr int kSlots = 2;
  static constexpr const char* kNames[] = {"v", "w"};
  static constexpr int kFirstMoment = 0;
  static constexpr bool kShifts = true;
  static constexpr int kTrueWeight = 1;  // the slot that holds w while the weights are elsewhere
  double momentum = 0.9;
  bool inside = false;
  void factors(GroupStep& p) const {
    p.c[0] = inside ? p.lr : 1;
    p.c[1] = inside ? 1 : p.lr;
  }
  double first_moment_gain(const GroupStep& p) const {
    return (inside ? p.lr : 1) * seen(momentum, p.t) / (1 - momentum);
  }
  template <class T>
  LINNET_HD T shift(T w, T* s, const GroupStep& p) const {
    s[1] = w;
    return w - T(p.c[1] * momentum) * s[0];
  }
  template <class T>
  LINNET_HD T operator()(T w, T g, T* s, T wd, const GroupStep& p) const {
    g += wd * w;  // at the look-ahead point, like all of the gradient
    s[0] = T(momentum) * s[0] + T(p.c[0]) * g;
    return s[1] -= T(p.c[1]) * s[0];
  }
};

// AdaGrad: G <- G + g^2;  w <- w - lr g / (sqrt(G) + eps), or with eps inside: sqrt(G + eps).
struct Adagrad : RuleBase {
  static constexpr int kSlots = 1;
  static constexpr const char* kNames[] = {"G"};
  double eps_outside = 1e-10, eps_inside = 0;
  double lr_decay = 0, initial = 0;
  Decay decay;
  void factors(GroupStep& p) const {
    p.c[0] = p.lr / (1 + double(p.t - 1) * lr_decay);
    p.c[1] = p.t == 1 ? initial : 0;  // state is born as zero
  }
  template <class T>
  LINNET_HD T operator()(T w, T g, T* s, T wd, const GroupStep& p) const {
    decay(w, g, wd, p);
    s[0] += T(p.c[1]) + g * g;
    return w - T(p.c[0]) * g / (std::sqrt(s[0] + T(eps_inside)) + T(eps_outside));
  }
  double effective_lr(const double* s, const GroupStep& p) const {
    return p.c[0] / (std::sqrt(s[0] + eps_inside) + eps_outside);
  }
};

// RMSProp: v <- alpha v + (1 - alpha) g^2;  w <- w - lr g / (sqrt(v) + eps), or with eps inside: sqrt(v + eps).
//   corrected: v / (1 - alpha^t) under the root.     accumulate: v <- alpha v + g^2.
//   centered: v - m^2 under the root, where m <- alpha m + (1 - alpha) g.
enum class RmsMomentum {
  none,
  scaled,  // b <- momentum b + gain g / root;  w <- w - step b. PyTorch: gain 1, step lr. Keras: gain lr, step 1
  plain,   // b <- momentum b + g;              w <- w - lr b / root
};
struct RmsSettings {
  double alpha = 0.99, eps_outside = 1e-8, eps_inside = 0;
  bool corrected = false, accumulate = false, lr_inside = false;
  double momentum = 0;
  Decay decay;
};
template <bool Centered, RmsMomentum M>
struct RmsProp : RuleBase {
  static constexpr int kSlots = 1 + Centered + (M != RmsMomentum::none);
  static constexpr int kMean = 1, kBuffer = 1 + Centered;
  static constexpr const char* kNames[] = {"v", Centered ? "m" : "b", "b"};
  static constexpr int kFirstMoment = M == RmsMomentum::plain ? kBuffer : Centered ? kMean : -1;
  RmsSettings set;
  void factors(GroupStep& p) const {
    p.c[0] = set.accumulate ? 1 : 1 - set.alpha;
    p.c[1] = set.corrected ? 1 / seen(set.alpha, p.t) : 1;
    p.c[2] = set.lr_inside ? p.lr : 1;
    p.c[3] = set.lr_inside ? 1 : p.lr;
  }
  double first_moment_gain(const GroupStep& p) const {
    return M == RmsMomentum::plain ? seen(set.momentum, p.t) / (1 - set.momentum) : seen(set.alpha, p.t);
  }
  template <class T>
  LINNET_HD T operator()(T w, T g, T* s, T wd, const GroupStep& p) const {
    set.decay(w, g, wd, p);
    s[0] = T(set.alpha) * s[0] + T(p.c[0]) * g * g;
    T v = T(p.c[1]) * s[0];
    if constexpr (Centered) {
      s[kMean] = T(set.alpha) * s[kMean] + T(1 - set.alpha) * g;
      const T variance = v - s[kMean] * s[kMean];
      v = variance > 0 ? variance : T(0);  // rounding may have made it negative
    }
    const T root = std::sqrt(v + T(set.eps_inside)) + T(set.eps_outside);
    if constexpr (M == RmsMomentum::none) return w - T(p.lr) * g / root;
    if constexpr (M == RmsMomentum::scaled) {
      s[kBuffer] = T(set.momentum) * s[kBuffer] + T(p.c[2]) * g / root;
      return w - T(p.c[3]) * s[kBuffer];
    }
    if constexpr (M == RmsMomentum::plain) {
      s[kBuffer] = T(set.momentum) * s[kBuffer] + g;
      return w - T(p.lr) * s[kBuffer] / root;
    }
  }
  double effective_lr(const double* s, const GroupStep& p) const {
    const double mean = Centered ? s[kMean] : 0, v = p.c[1] * s[0] - mean * mean;
    return p.lr / (std::sqrt((v > 0 ? v : 0) + set.eps_inside) + set.eps_outside);
  }
};

// Adam: m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;  w <- w - lr a m / (sqrt(b v + eps_in) +
// eps_out) AMSGrad divides by the largest v so far: u <- max(u, d v), and u stands in the place of v.
enum class AdamForm {
  standard,           // a = 1 / (1 - beta1^t), b = 1 / (1 - beta2^t)
  uncorrected,        // a = b = 1
  eps_hat,            // a = sqrt(1 - beta2^t) / (1 - beta1^t), b = 1: Keras', eps is not corrected with v
  eps_inside,         // as standard, eps under the root
  amsgrad_paper,      // a = b = d = 1
  amsgrad_corrected,  // a = 1 / (1 - beta1^t), d = 1 / (1 - beta2^t), b = 1: the largest of the corrected v
};
template <bool AmsGrad>
struct Adam : RuleBase {
  static constexpr int kSlots = AmsGrad ? 3 : 2;
  static constexpr const char* kNames[] = {"m", "v", "vmax"};
  static constexpr int kFirstMoment = 0;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  AdamForm form = AdamForm::standard;
  Decay decay;
  void factors(GroupStep& p) const {
    const double seen1 = seen(beta1, p.t), seen2 = seen(beta2, p.t);
    const bool raw = form == AdamForm::uncorrected || form == AdamForm::amsgrad_paper;
    const bool hat = form == AdamForm::eps_hat, corrected_max = form == AdamForm::amsgrad_corrected;
    p.c[0] = p.lr * (raw ? 1 : hat ? std::sqrt(seen2) / seen1 : 1 / seen1);
    p.c[1] = raw || hat || corrected_max ? 1 : 1 / seen2;
    p.c[2] = corrected_max ? 1 / seen2 : 1;
    p.c[3] = form == AdamForm::eps_inside ? eps : 0;
  }
  double first_moment_gain(const GroupStep& p) const { return seen(beta1, p.t); }
  template <class T>
  LINNET_HD T operator()(T w, T g, T* s, T wd, const GroupStep& p) const {
    decay(w, g, wd, p);
    s[0] = T(beta1) * s[0] + T(1 - beta1) * g;
    s[1] = T(beta2) * s[1] + T(1 - beta2) * g * g;
    T v = s[1];
    if constexpr (AmsGrad) {
      const T candidate = T(p.c[2]) * v;
      s[2] = s[2] > candidate ? s[2] : candidate;
      v = s[2];
    }
    const T root = std::sqrt(T(p.c[1]) * v + T(p.c[3])) + T(eps - p.c[3]);
    return w - T(p.c[0]) * s[0] / root;
  }
  double effective_lr(const double* s, const GroupStep& p) const {
    const double lr = form == AdamForm::eps_hat ? p.c[0] * seen(beta1, p.t) : p.lr;
    return lr / (std::sqrt(p.c[1] * s[AmsGrad ? 2 : 1] + p.c[3]) + eps - p.c[3]);
  }
};

// NAdam: Adam with Nesterov momentum. m and v as Adam's;  w <- w - lr (a g + b m) / (sqrt(v / (1 - beta2^t)) + eps)
//   with mu_t = beta1 (1 - 0.96^(t psi) / 2):  a = (1 - mu_t) / (1 - mu_1 ... mu_t),
//                                              b = mu_(t+1) / (1 - mu_1 ... mu_(t+1))
//   simple, mu_t = beta1 always:               a = (1 - beta1) / (1 - beta1^t), b = beta1 / (1 - beta1^(t+1))
struct Nadam : RuleBase {
  static constexpr int kSlots = 2;
  static constexpr const char* kNames[] = {"m", "v"};
  static constexpr int kFirstMoment = 0;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, psi = 0.004;
  bool simple = false;
  Decay decay;
  double mu(int64_t t) const { return simple ? beta1 : beta1 * (1 - 0.5 * std::pow(0.96, double(t) * psi)); }
  void factors(GroupStep& p) const {
    double product = 1;
    for (int64_t t = 1; t <= p.t && product > 1e-20; ++t) product *= mu(t);  // below, 1 - product is 1
    p.c[0] = p.lr * (1 - mu(p.t)) / (1 - product);
    p.c[1] = p.lr * mu(p.t + 1) / (1 - product * mu(p.t + 1));
    p.c[2] = 1 / seen(beta2, p.t);
  }
  double first_moment_gain(const GroupStep& p) const { return seen(beta1, p.t); }
  template <class T>
  LINNET_HD T operator()(T w, T g, T* s, T wd, const GroupStep& p) const {
    decay(w, g, wd, p);
    s[0] = T(beta1) * s[0] + T(1 - beta1) * g;
    s[1] = T(beta2) * s[1] + T(1 - beta2) * g * g;
    return w - (T(p.c[0]) * g + T(p.c[1]) * s[0]) / (std::sqrt(T(p.c[2]) * s[1]) + T(eps));
  }
  double effective_lr(const double* s, const GroupStep& p) const { return p.lr / (std::sqrt(p.c[2] * s[1]) + eps); }
};

// RAdam: Adam without its second moment while too few gradients have been seen to trust it. m and v as Adam's;
//   rho_inf = 2 / (1 - beta2) - 1, rho = rho_inf - 2 t beta2^t / (1 - beta2^t)
//   rho > threshold: w <- w - lr r sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)
//                    r = sqrt((rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho))
//   else:            w <- w - lr m / (1 - beta1^t)
struct Radam : RuleBase {
  static constexpr int kSlots = 2;
  static constexpr const char* kNames[] = {"m", "v"};
  static constexpr int kFirstMoment = 0;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, threshold = 5;
  Decay decay;
  double rho_inf() const { return 2 / (1 - beta2) - 1; }
  double rho(int64_t t) const { return rho_inf() - 2 * double(t) * std::pow(beta2, double(t)) / seen(beta2, t); }
  void factors(GroupStep& p) const {
    const double now = rho(p.t), end = rho_inf();
    const bool rectified = now > threshold;
    p.c[0] = p.lr / seen(beta1, p.t);
    if (rectified) p.c[0] *= std::sqrt((now - 4) * (now - 2) * end / ((end - 4) * (end - 2) * now) * seen(beta2, p.t));
    p.c[1] = rectified ? 1 : 0;
    p.c[2] = rectified ? eps : 1;  // root = c1 sqrt(v) + c2
  }
  double first_moment_gain(const GroupStep& p) const { return seen(beta1, p.t); }
  template <class T>
  LINNET_HD T operator()(T w, T g, T* s, T wd, const GroupStep& p) const {
    decay(w, g, wd, p);
    s[0] = T(beta1) * s[0] + T(1 - beta1) * g;
    s[1] = T(beta2) * s[1] + T(1 - beta2) * g * g;
    return w - T(p.c[0]) * s[0] / (T(p.c[1]) * std::sqrt(s[1]) + T(p.c[2]));
  }
  double effective_lr(const double* s, const GroupStep& p) const {
    return p.c[0] * seen(beta1, p.t) / (p.c[1] * std::sqrt(s[1]) + p.c[2]);
  }
};

// Lion (Chen et al. 2023): w <- w - lr sign(beta1 m + (1 - beta1) g), then m <- beta2 m + (1 - beta2) g.
struct Lion : RuleBase {
  static constexpr int kSlots = 1;
  static constexpr const char* kNames[] = {"m"};
  static constexpr int kFirstMoment = 0;
  double beta1 = 0.9, beta2 = 0.99;
  Decay decay = kDecoupled;
  double first_moment_gain(const GroupStep& p) const { return seen(beta2, p.t); }
  template <class T>
  LINNET_HD T operator()(T w, T g, T* s, T wd, const GroupStep& p) const {
    decay(w, g, wd, p);
    const T direction = T(beta1) * s[0] + T(1 - beta1) * g;
    s[0] = T(beta2) * s[0] + T(1 - beta2) * g;
    return w - T(p.lr) * (T(direction > 0) - T(direction < 0));
  }
};

// Muon (Jordan et al. 2024, torch.optim.Muon): the momentum of a weight matrix is made orthogonal before it is applied,
// so that all of its directions move alike. That takes matrix products: Backend::muon. This functor is for what is no
// matrix, biases and normalisation: SGD with Nesterov momentum, at the same learning rate.
struct Muon : RuleBase {
  static constexpr int kSlots = 1;
  static constexpr const char* kNames[] = {"v"};
  static constexpr int kFirstMoment = 0;
  double momentum = 0.95;
  bool nesterov = true;
  int iterations = 5;  // of Newton and Schulz
  Decay decay = kDecoupled;
  double first_moment_gain(const GroupStep& p) const { return seen(momentum, p.t); }
  // v <- momentum v + (1 - momentum) g. Returns what is to be made orthogonal, or applied.
  template <class T>
  LINNET_HD T direction(T g, T& v) const {
    v = T(momentum) * v + T(1 - momentum) * g;
    return nesterov ? T(momentum) * v + T(1 - momentum) * g : v;
  }
  template <class T>
  LINNET_HD T operator()(T w, T g, T* s, T wd, const GroupStep& p) const {
    decay(w, g, wd, p);
    return w - T(p.lr) * direction(g, s[0]);
  }
};
// X <- a X + (b A + c A^2) X with A = X X^T drives all singular values of X towards 1; these coefficients fast, and not
// quite to 1 (Jordan's).
inline constexpr double kMuonA = 3.4445, kMuonB = -4.7750, kMuonC = 2.0315;

using Rule = std::variant<Sgd, Momentum, Nag, Adagrad, RmsProp<false, RmsMomentum::none>,
                          RmsProp<true, RmsMomentum::none>, RmsProp<false, RmsMomentum::scaled>,
                          RmsProp<true, RmsMomentum::scaled>, RmsProp<false, RmsMomentum::plain>,
                          RmsProp<true, RmsMomentum::plain>, Adam<false>, Adam<true>, Nadam, Radam, Lion, Muon>;

}  // namespace linnet
