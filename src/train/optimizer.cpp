// The table of optimizers: names, defaults, what their settings may not be, and which functor they ask for.
#include "linnet/optimizer.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "linnet/config.h"
#include "linnet/registry.h"

namespace linnet {

namespace {

using Settings = OptimizerConfig;

// Keras takes weight decay off the weights themselves, whatever the optimizer; PyTorch adds it to the gradient.
Decay l2_unless_keras(const Settings& s) { return s.preset == "keras" ? kDecoupled : kL2; }

std::string nothing(const Settings&) { return ""; }

// ---- SGD, SGDW, NAG ------------------------------------------------------------------------------------------------

const std::vector<std::string_view> kMomentumForms = {"accumulate", "ewa", "ewa_corrected", "inside",
                                                      "accumulate_corrected"};

std::string check_momentum(const Settings& s) {
  const bool corrected = s.form == "ewa_corrected" || s.form == "accumulate_corrected";
  if (s.momentum == 0) {
    if (s.nesterov) return "nesterov = true needs a momentum above 0";
    if (s.dampening != 0) return "dampening needs a momentum above 0";
    if (s.form != "accumulate" && s.preset != "keras")
      return fmt::format("form = '{}' needs a momentum above 0", s.form);
  }
  if (s.nesterov && s.dampening != 0) return "nesterov = true needs dampening = 0, as in PyTorch";
  if (s.nesterov && corrected) return fmt::format("nesterov = true has no form '{}'", s.form);
  if (s.dampening != 0 && s.form != "accumulate") return "dampening needs form = 'accumulate'";
  return "";
}

Rule momentum_rule(const Settings& s, Decay decay) {
  if (s.momentum == 0) return Sgd{.decay = decay};
  const MomentumForm form = s.form == "ewa"                    ? MomentumForm::ewa
                            : s.form == "ewa_corrected"        ? MomentumForm::ewa_corrected
                            : s.form == "inside"               ? MomentumForm::inside
                            : s.form == "accumulate_corrected" ? MomentumForm::accumulate_corrected
                                                               : MomentumForm::accumulate;
  return Momentum{
      .momentum = s.momentum, .dampening = s.dampening, .nesterov = s.nesterov, .form = form, .decay = decay};
}

const std::string kMomentumFormula =
    "momentum = 0:          w <- w - lr g\n"
    "accumulate:            v <- momentum v + (1 - dampening) g  (v = g in update 1);  w <- w - lr v\n"
    "ewa:                   v <- momentum v + (1 - momentum) g;  w <- w - lr v\n"
    "ewa_corrected:         v as ewa;  w <- w - lr v / (1 - momentum^t)\n"
    "inside:                v <- momentum v - lr g;  w <- w + v\n"
    "accumulate_corrected:  v <- momentum v + g;  w <- w - lr v / (1 - momentum^t)\n"
    "nesterov:              in the step, momentum v + (what g adds to v) stands in the place of v:\n"
    "                       accumulate: w <- w - lr (g + momentum v)\n";

const OptimizerEntry kSgd = {
    .name = "sgd",
    .summary = "stochastic gradient descent with momentum, dampening, Nesterov (torch.optim.SGD)",
    .keys = {"form", "momentum", "dampening", "nesterov"},
    .forms = kMomentumForms,
    .formula = "g <- g + weight_decay w\n" + kMomentumFormula,
    .notes =
        "Keras: form 'inside', which is the same until the learning rate changes (then its velocity still carries "
        "the old one), lr 0.01, decoupled weight decay. ewa at lr / (1 - momentum) is accumulate at lr. "
        "accumulate_corrected is no standard optimizer: its first step is 1 / (1 - momentum) times lr g.",
    .defaults = [](Settings& s) { s.lr = 1e-3; },
    .keras =
        [](Settings& s) {
          s.lr = 1e-2;
          s.form = "inside";
        },
    .check = check_momentum,
    .make = [](const Settings& s) { return momentum_rule(s, l2_unless_keras(s)); },
};

const OptimizerEntry kSgdw = {
    .name = "sgdw",
    .summary = "SGD with decoupled weight decay (Loshchilov & Hutter 2019)",
    .keys = {"form", "momentum", "dampening", "nesterov"},
    .forms = kMomentumForms,
    .formula = "w <- (1 - lr weight_decay) w\n" + kMomentumFormula,
    .notes = "Neither PyTorch nor Keras has it by name; defaults as sgd. Without momentum it equals sgd.",
    .defaults = [](Settings& s) { s.lr = 1e-3; },
    .keras = nullptr,
    .check = check_momentum,
    .make = [](const Settings& s) { return momentum_rule(s, kDecoupled); },
};

const OptimizerEntry kNag = {
    .name = "nag",
    .summary = "Nesterov's accelerated gradient as published: the gradient is taken at the look-ahead point",
    .keys = {"form", "momentum"},
    .forms = {"outside", "inside"},
    .formula =
        "outside:  g at w - lr momentum v;  v <- momentum v + g;     w <- w - lr v\n"
        "inside:   g at w - momentum v;     v <- momentum v + lr g;  w <- w - v\n"
        "g includes weight_decay times the look-ahead point\n",
    .notes =
        "The weights are moved before the forward pass and put back after it: no second pass. The two forms are "
        "the same until the learning rate changes. sgd with nesterov = true, the form of PyTorch and Keras, is "
        "this method seen at its look-ahead points.",
    .defaults =
        [](Settings& s) {
          s.lr = 1e-2;
          s.momentum = 0.9;
        },
    .keras = nullptr,
    .check = [](const Settings& s) -> std::string {
      return s.momentum == 0 ? "nag needs a momentum above 0; without it, it is sgd" : "";
    },
    .make = [](const Settings& s) -> Rule { return Nag{.momentum = s.momentum, .inside = s.form == "inside"}; },
};

// ---- AdaGrad, RMSProp ----------------------------------------------------------------------------------------------

const OptimizerEntry kAdagrad = {
    .name = "adagrad",
    .summary = "AdaGrad: divides by the root of the sum of all squared gradients (torch.optim.Adagrad)",
    .keys = {"form", "eps", "lr_decay", "initial_accumulator_value"},
    .forms = {"outside", "inside"},
    .formula =
        "g <- g + weight_decay w\n"
        "lr <- lr / (1 + (t - 1) lr_decay)\n"
        "G <- G + g^2, from initial_accumulator_value\n"
        "outside:  w <- w - lr g / (sqrt(G) + eps)\n"
        "inside:   w <- w - lr g / sqrt(G + eps)\n",
    .notes =
        "Keras: form 'inside', eps 1e-7, initial_accumulator_value 0.1, lr 0.001, decoupled weight decay. The "
        "step shrinks like 1/sqrt(t); that it \"can never converge\" is not so.",
    .defaults =
        [](Settings& s) {
          s.lr = 1e-2;
          s.eps = 1e-10;
        },
    .keras =
        [](Settings& s) {
          s.lr = 1e-3;
          s.eps = 1e-7;
          s.initial_accumulator_value = 0.1;
          s.form = "inside";
        },
    .check = nothing,
    .make = [](const Settings& s) -> Rule {
      const bool inside = s.form == "inside";
      return Adagrad{.eps_outside = inside ? 0 : s.eps,
                     .eps_inside = inside ? s.eps : 0,
                     .lr_decay = s.lr_decay,
                     .initial = s.initial_accumulator_value,
                     .decay = l2_unless_keras(s)};
    },
};

template <RmsMomentum M>
Rule rms_rule(const RmsSettings& set, bool centered) {
  if (centered) return RmsProp<true, M>{.set = set};
  return RmsProp<false, M>{.set = set};
}

const OptimizerEntry kRmsprop = {
    .name = "rmsprop",
    .summary = "RMSProp: divides by the root of the average squared gradient (torch.optim.RMSprop)",
    .keys = {"form", "alpha", "eps", "centered", "momentum"},
    .forms = {"outside", "inside", "corrected", "accumulate", "plain_momentum"},
    .formula =
        "g <- g + weight_decay w\n"
        "v <- alpha v + (1 - alpha) g^2;  root = sqrt(v) + eps;  w <- w - lr g / root\n"
        "inside:          root = sqrt(v + eps)\n"
        "corrected:       root = sqrt(v / (1 - alpha^t)) + eps\n"
        "accumulate:      v <- alpha v + g^2\n"
        "centered:        m <- alpha m + (1 - alpha) g;  max(v - m^2, 0) in the place of v under the root\n"

        "momentum:        b <- momentum b + g / root;     w <- w - lr b   (PyTorch)\n"
        "  inside:        b <- momentum b + lr g / root;  w <- w - b      (Keras)\n"
        "  plain_momentum: b <- momentum b + g;           w <- w - lr b / root\n",
    .notes =
        "Keras: form 'inside', alpha 0.9, eps 1e-7, lr 0.001, decoupled weight decay. The first step is "
        "lr / sqrt(1 - alpha): 3.2 lr at alpha 0.9, 10 lr at 0.99, 32 lr at 0.999; use 'corrected' for the last.",
    .defaults = [](Settings& s) { s.lr = 1e-2; },
    .keras =
        [](Settings& s) {
          s.lr = 1e-3;
          s.alpha = 0.9;
          s.eps = 1e-7;
          s.form = "inside";
        },
    .check = [](const Settings& s) -> std::string {
      if (s.form == "accumulate" && s.centered)
        return "form = 'accumulate' keeps a sum, no average: it cannot be centered";
      if (s.form == "corrected" && s.centered)
        return "form = 'corrected' cannot be centered: the corrected variance of a first gradient is 0";
      if (s.form == "plain_momentum" && s.momentum == 0) return "form = 'plain_momentum' needs a momentum above 0";
      return "";
    },
    .make = [](const Settings& s) -> Rule {
      const bool inside = s.form == "inside";
      const RmsSettings set{.alpha = s.alpha,
                            .eps_outside = inside ? 0 : s.eps,
                            .eps_inside = inside ? s.eps : 0,
                            .corrected = s.form == "corrected",
                            .accumulate = s.form == "accumulate",
                            .lr_inside = inside,
                            .momentum = s.momentum,
                            .decay = l2_unless_keras(s)};
      if (s.momentum == 0) return rms_rule<RmsMomentum::none>(set, s.centered);
      if (s.form == "plain_momentum") return rms_rule<RmsMomentum::plain>(set, s.centered);
      return rms_rule<RmsMomentum::scaled>(set, s.centered);
    },
};

// ---- Adam and its kin ----------------------------------------------------------------------------------------------

std::string check_betas(const Settings& s) {
  return s.betas.size() == 2 ? ""
                             : fmt::format("betas must be two numbers, such as [0.9, 0.999], got {}", s.betas.size());
}

std::string check_adam(const Settings& s) {
  if (s.form.starts_with("amsgrad") && !s.amsgrad) return fmt::format("form = '{}' needs amsgrad = true", s.form);
  return check_betas(s);
}

Rule adam_rule(const Settings& s, Decay decay) {
  const AdamForm form = s.form == "uncorrected"         ? AdamForm::uncorrected
                        : s.form == "eps_hat"           ? AdamForm::eps_hat
                        : s.form == "eps_inside"        ? AdamForm::eps_inside
                        : s.form == "amsgrad_paper"     ? AdamForm::amsgrad_paper
                        : s.form == "amsgrad_corrected" ? AdamForm::amsgrad_corrected
                                                        : AdamForm::standard;
  if (s.amsgrad)
    return Adam<true>{.beta1 = s.betas[0], .beta2 = s.betas[1], .eps = s.eps, .form = form, .decay = decay};
  return Adam<false>{.beta1 = s.betas[0], .beta2 = s.betas[1], .eps = s.eps, .form = form, .decay = decay};
}

const std::string kMoments = "m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2\n";
const std::string kAdamFormula =
    kMoments +
    "standard:     w <- w - lr M / (sqrt(V) + eps),  M = m / (1 - beta1^t),  V = v / (1 - beta2^t)\n"
    "uncorrected:  w <- w - lr m / (sqrt(v) + eps)\n"
    "eps_hat:      w <- w - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)\n"
    "eps_inside:   w <- w - lr M / sqrt(V + eps)\n"
    "amsgrad:      vmax <- max(vmax, v) stands in the place of v from there on (PyTorch, Keras)\n"
    "  amsgrad_paper:      as uncorrected, with vmax\n"
    "  amsgrad_corrected:  vmax <- max(vmax, V);  w <- w - lr M / (sqrt(vmax) + eps)\n";
const std::string kAdamNotes =
    "eps_hat's eps is sqrt(1 - beta2^t) times smaller than it looks: that shows where |g| is near eps. uncorrected "
    "starts with steps that are too large (3.2 lr), not too small. A step is at most 7.27 lr. While g = 0 the weights "
    "keep moving, m is not 0 yet.";

void keras_adam(Settings& s) {
  s.eps = 1e-7;
  s.form = "eps_hat";
}

const OptimizerEntry kAdam = {
    .name = "adam",
    .summary = "Adam, and AMSGrad with amsgrad = true (torch.optim.Adam)",
    .keys = {"form", "betas", "eps", "amsgrad"},
    .forms = {"standard", "uncorrected", "eps_hat", "eps_inside", "amsgrad_paper", "amsgrad_corrected"},
    .formula = "g <- g + weight_decay w\n" + kAdamFormula,
    .notes =
        "Keras: form 'eps_hat', eps 1e-7, decoupled weight decay. L2 passes through the moments and is divided by "
        "sqrt(v): for real weight decay use adamw. " +
        kAdamNotes,
    .defaults = [](Settings& s) { s.lr = 1e-3; },
    .keras = keras_adam,
    .check = check_adam,
    .make = [](const Settings& s) { return adam_rule(s, l2_unless_keras(s)); },
};

const OptimizerEntry kAdamw = {
    .name = "adamw",
    .summary = "Adam with decoupled weight decay (torch.optim.AdamW)",
    .keys = {"form", "betas", "eps", "amsgrad"},
    .forms = {"standard", "scheduled_decay", "uncorrected", "eps_hat", "eps_inside", "amsgrad_paper",
              "amsgrad_corrected"},
    .formula = "w <- (1 - lr weight_decay) w\n" + kAdamFormula +
               "scheduled_decay:  as standard, but w <- (1 - s weight_decay) w, where s is lr by optimizer.lr\n",
    .notes =
        "Keras: form 'eps_hat', eps 1e-7, weight_decay 0.004. scheduled_decay is the formula of the paper "
        "(Loshchilov & Hutter 2019): its weight_decay is lr times that of PyTorch. " +
        kAdamNotes,
    .defaults =
        [](Settings& s) {
          s.lr = 1e-3;
          s.weight_decay = 1e-2;
        },
    .keras =
        [](Settings& s) {
          keras_adam(s);
          s.weight_decay = 4e-3;
        },
    .check = check_adam,
    .make =
        [](const Settings& s) {
          return adam_rule(s, s.form == "scheduled_decay" ? Decay{0, 1 / s.lr} : kDecoupled);
        },
};

const OptimizerEntry kNadam = {
    .name = "nadam",
    .summary = "Adam with Nesterov momentum (torch.optim.NAdam)",
    .keys = {"form", "betas", "eps", "momentum_decay"},
    .forms = {"standard", "simple", "decoupled"},
    .formula = "g <- g + weight_decay w    (decoupled: w <- (1 - lr weight_decay) w)\n" + kMoments +
               "w <- w - lr (a g + b m) / (sqrt(v / (1 - beta2^t)) + eps)\n"
               "standard:  mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2)\n"
               "           a = (1 - mu_t) / (1 - mu_1 ... mu_t),  b = mu_(t+1) / (1 - mu_1 ... mu_(t+1))\n"
               "simple:    a = (1 - beta1) / (1 - beta1^t),       b = beta1 / (1 - beta1^(t+1))\n"
               "decoupled: as standard (torch.optim.NAdam(decoupled_weight_decay=True))\n",
    .notes =
        "Keras: momentum_decay 1, eps 1e-7, lr 0.001, decoupled weight decay. PyTorch 1.13 multiplied by mu_t "
        "twice in b's product; here as PyTorch does now.",
    .defaults = [](Settings& s) { s.lr = 2e-3; },
    .keras =
        [](Settings& s) {
          s.lr = 1e-3;
          s.eps = 1e-7;
          s.momentum_decay = 1;
        },
    .check = [](const Settings& s) -> std::string {
      if (s.form == "simple" && s.momentum_decay != default_settings(s.name, s.preset).momentum_decay)
        return "form = 'simple' has no momentum_decay";
      return check_betas(s);
    },
    .make = [](const Settings& s) -> Rule {
      const Decay decay = s.form == "decoupled" ? kDecoupled : l2_unless_keras(s);
      return Nadam{.beta1 = s.betas[0],
                   .beta2 = s.betas[1],
                   .eps = s.eps,
                   .psi = s.momentum_decay,
                   .simple = s.form == "simple",
                   .decay = decay};
    },
};

const OptimizerEntry kRadam = {
    .name = "radam",
    .summary = "rectified Adam: no second moment while too few gradients have been seen (torch.optim.RAdam)",
    .keys = {"form", "betas", "eps"},
    .forms = {"standard", "paper", "decoupled"},
    .formula = "g <- g + weight_decay w    (decoupled: w <- (1 - lr weight_decay) w)\n" + kMoments +
               "rho_inf = 2 / (1 - beta2) - 1;  rho = rho_inf - 2 t beta2^t / (1 - beta2^t)\n"
               "r = sqrt((rho - 4) (rho - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho))\n"
               "rho > 5:  w <- w - lr r sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)\n"
               "else:     w <- w - lr m / (1 - beta1^t)\n"
               "paper:    rho > 4\n"
               "decoupled: as standard (torch.optim.RAdam(decoupled_weight_decay=True))\n",
    .notes = "Keras has none.",
    .defaults = [](Settings& s) { s.lr = 1e-3; },
    .keras = nullptr,
    .check = check_betas,
    .make = [](const Settings& s) -> Rule {
      return Radam{.beta1 = s.betas[0],
                   .beta2 = s.betas[1],
                   .eps = s.eps,
                   .threshold = s.form == "paper" ? 4. : 5.,
                   .decay = s.form == "decoupled" ? kDecoupled : kL2};
    },
};

const OptimizerEntry kLion = {
    .name = "lion",
    .summary = "Lion: steps of one size, in the direction of the sign (Chen et al. 2023)",
    .keys = {"betas"},
    .forms = {},
    .formula =
        "w <- (1 - lr weight_decay) w\n"
        "w <- w - lr sign(beta1 m + (1 - beta1) g);  m <- beta2 m + (1 - beta2) g\n",
    .notes =
        "Not in PyTorch; defaults of the paper. Keras: the same, lr 0.001. Its step is as large as Adam's largest: "
        "take 3 to 10 times less lr and as much more weight_decay than with adamw.",
    .defaults =
        [](Settings& s) {
          s.lr = 1e-4;
          s.betas = {0.9, 0.99};
        },
    .keras = [](Settings& s) { s.lr = 1e-3; },
    .check = check_betas,
    .make = [](const Settings& s) -> Rule { return Lion{.beta1 = s.betas[0], .beta2 = s.betas[1]}; },
};

const OptimizerEntry kMuon = {
    .name = "muon",
    .summary = "Muon: momentum made orthogonal, for weight matrices (Jordan et al. 2024)",
    .keys = {"momentum", "nesterov", "ns_steps"},
    .forms = {},
    .formula =
        "v <- momentum v + (1 - momentum) g;  u = v, or nesterov: momentum v + (1 - momentum) g\n"
        "a matrix [out, rest]:  X = u / |u|, ns_steps times: A = X X^T, X <- 3.4445 X + (-4.7750 A + 2.0315 A^2) X\n"
        "  w <- (1 - lr weight_decay) w;  w <- w - lr sqrt(max(1, out / rest)) X\n"
        "a bias or normalisation:  w <- (1 - lr weight_decay) w;  w <- w - lr u\n",
    .notes =
        "torch.optim.Muon (2.9) takes matrices only and computes in bfloat16; here convolutions count as [out, in "
        "kernel_h "
        "kernel_w], all is float32, and what is no matrix goes by SGD with Nesterov momentum at the same lr: give it a "
        "[[group]] with another optimizer where that does not fit. The trace of a single number shows this SGD. Keras "
        "3: "
        "weight decay and AdamW for the rest.",
    .defaults =
        [](Settings& s) {
          s.lr = 1e-3;
          s.momentum = 0.95;
          s.nesterov = true;
          s.weight_decay = 0.1;
        },
    .keras = nullptr,
    .check = [](const Settings&) -> std::string { return ""; },
    .make = [](const Settings& s) -> Rule {
      Muon rule;
      rule.momentum = s.momentum;
      rule.nesterov = s.nesterov;
      rule.iterations = int(s.ns_steps);
      return rule;
    },
};

}  // namespace

const std::vector<OptimizerEntry>& optimizers() {
  static const std::vector<OptimizerEntry> table = {kSgd,   kNag,   kSgdw,  kAdagrad, kRmsprop, kAdam,
                                                    kAdamw, kNadam, kRadam, kLion,    kMuon};
  return table;
}

OptimizerConfig default_settings(const std::string& name, const std::string& preset) {
  const OptimizerEntry& entry = find_entry(optimizers(), "optimizer", name);
  OptimizerConfig settings;
  settings.name = name;
  settings.preset = preset;
  if (!entry.forms.empty()) settings.form = entry.forms[0];
  entry.defaults(settings);
  if (preset == "keras") {
    if (!entry.keras) fail(Exit::usage, "Keras has no optimizer '{}': leave preset out", name);
    entry.keras(settings);
  }
  return settings;
}

Rule make_rule(const OptimizerConfig& settings) {
  const OptimizerEntry& entry = find_entry(optimizers(), "optimizer", settings.name);
  if (!entry.forms.empty() && std::ranges::find(entry.forms, settings.form) == entry.forms.end()) {
    const std::string near = nearest(settings.form, {entry.forms.begin(), entry.forms.end()});
    fail(Exit::usage, "optimizer {} has no form '{}'{}; its forms are {}", entry.name, escaped(settings.form),
         near.empty() ? "" : fmt::format(": did you mean '{}'?", near), fmt::join(entry.forms, ", "));
  }
  if (const std::string wrong = entry.check(settings); !wrong.empty())
    fail(Exit::usage, "optimizer {}: {}", entry.name, wrong);
  return entry.make(settings);
}

int slots_of(const Rule& rule) {
  return std::visit([](const auto& r) { return r.kSlots; }, rule);
}

std::vector<std::string> slot_names(const Rule& rule) {
  return std::visit([](const auto& r) { return std::vector<std::string>(r.kNames, r.kNames + r.kSlots); }, rule);
}

int first_moment_slot(const Rule& rule) {
  return std::visit([]<class R>(const R&) { return R::kFirstMoment; }, rule);
}

int square_slot(const Rule& rule) {
  return std::visit(
      []<class R>(const R&) {
        for (int k = 0; k < R::kSlots; ++k) {
          const std::string_view name = R::kNames[k];
          if ((name == "v" || name == "G") && k != R::kFirstMoment) return k;
        }
        return -1;
      },
      rule);
}

int words_moved(const Rule& rule) {
  // A look-ahead rule also reads weight and velocity to move the weight, which it writes twice.
  return std::visit([](const auto& r) { return 3 + 2 * r.kSlots + (r.kShifts ? 4 : 0); }, rule);
}

bool can_carry(const Rule& from, const Rule& to) {
  const auto moment = [](const Rule& rule) {
    return std::visit([]<class R>(const R&) { return R::kFirstMoment; }, rule);
  };
  return from.index() == to.index() || (moment(from) >= 0 && moment(to) == 0 && slots_of(to) == 1);
}

GroupStep group_step(const Rule& rule, double lr, double weight_decay, int64_t t) {
  GroupStep p{.lr = lr, .weight_decay = weight_decay, .t = t};
  std::visit([&](const auto& r) { r.factors(p); }, rule);
  return p;
}

}  // namespace linnet
