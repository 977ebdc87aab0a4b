// The checks `flow`, `gradient` and `updates`: what one step does in every layer.
#include <algorithm>
#include <cmath>
#include <map>

#include "kernels/rng.h"
#include "linnet/warnings.h"
#include "src/lab/checks.h"
#include "src/lab/reference_backend.h"

namespace linnet {

namespace {

// Names of layers for a message: the first few, and how many more there are.
std::string list_of(const std::vector<std::string>& names) {
  std::string out;
  for (size_t i = 0; i < names.size() && i < 4; ++i) out += (i > 0 ? ", " : "") + names[i];
  return out + (names.size() > 4 ? fmt::format(" and {} more", names.size() - 4) : "");
}

// Norms and ratios span decades.
std::string log_bars(const std::vector<Bar>& bars, const Terminal& terminal) {
  return "(the bars are logarithmic)\n" + draw_bars(bars, terminal, true);
}

// The share of an activation's channels that are 0 for every image and place.
double dead_share(Backend& backend, const Tensor& y) {
  const std::vector<float> values = on_host(backend, y);
  const auto channels = size_t(y.dim(-1));
  std::vector<char> alive(channels, 0);
  for (size_t i = 0; i < values.size(); ++i)
    if (values[i] != 0) alive[i % channels] = 1;
  return double(std::ranges::count(alive, 0)) / double(channels);
}

}  // namespace

// Healthy norms are about 0.1 to 10; 0 is dead, 1000 explodes (section 1.8 of the specification).
CheckResult check_flow(const Subject& s) {
  constexpr double kExploding = 1000, kDeadUnits = 0.9;
  const RunData data = some_of(s.data.train, 128);
  const BatchSource source = upload_source(s.backend, data.train, s.config.data.mean, s.config.data.std);
  Net net(s.backend, s.config.model.name, model_options(s.config, data.train), uint64_t(s.config.train.seed));
  const Batch batch = plain_batch(net, source, data.train.size());
  std::vector<std::string> dead, exploding, closed;
  std::string last;
  gradients_of(net, batch, [&](const Tensor& y, Op op) {
    const std::string_view name = op.name;
    if (op.param) last = layer_name(op.param->name);
    if (name != "activation" && name != "batch_norm" && name != "group_norm") return;
    if (dead_share(s.backend, y) > kDeadUnits) closed.push_back(last);
  });
  std::vector<Bar> bars;
  double least = INFINITY, most = 0;
  for (const Param* p : net.params().params()) {
    const double norm = norm_of(on_host(s.backend, p->grad));
    const bool weight = p->shape.rank() >= 2;
    const bool bad = !(norm > 0) || !(norm < kExploding);
    if (!weight && !bad) continue;
    if (!(norm > 0)) dead.push_back(weight ? layer_name(p->name) : p->name);
    if (norm > 0 && bad) exploding.push_back(p->name);
    least = std::min(least, norm), most = std::max(most, norm);
    bars.push_back({weight ? layer_name(p->name) : p->name, norm,
                    norm == 0          ? "DEAD"
                    : std::isnan(norm) ? "NaN"
                    : bad              ? "EXPLODING"
                                       : ""});
  }
  std::string text;
  const auto fault = [&](const std::string& what, const std::vector<std::string>& names) {
    if (!names.empty()) text += (text.empty() ? "" : "; ") + what + list_of(names);
  };
  fault("no gradient in ", dead);
  fault("exploding in ", exploding);
  fault("more than 90 % of the units never open in ", closed);
  const bool passed = text.empty();
  return verdict(passed,
                 passed ? fmt::format("norms of the layers' gradients from {:.3g} to {:.3g}", least, most) : text,
                 log_bars(bars, s.terminal));
}

namespace {

// Mean cross-entropy in double, from the oracle's logits (which it computes in double).
double oracle_loss(Net& net, const Batch& batch) {
  Pass pass{net.backend(), net.pool(), nullptr, true};
  const Tensor logits = logits_of(pass, net, batch);
  const auto* z = logits.data<double>();
  const auto* labels = batch.labels.data<int32_t>();
  const int64_t rows = logits.dim(0), classes = logits.dim(1);
  double sum = 0;
  for (int64_t r = 0; r < rows; ++r, z += classes) {
    const double top = *std::max_element(z, z + classes);
    double total = 0;
    for (int64_t c = 0; c < classes; ++c) total += std::exp(z[c] - top);
    sum += top + std::log(total) - z[labels[r]];
  }
  return sum / double(rows);
}

// Moves a parameter of the oracle's net by `h` times `direction`, and returns where it then is: a float cannot hold
// every such place.
std::vector<float> moved(const std::vector<float>& from, const std::vector<double>& direction, double h) {
  std::vector<float> to(from.size());
  for (size_t i = 0; i < from.size(); ++i) to[i] = float(double(from[i]) + h * direction[i]);
  return to;
}

}  // namespace

// For each parameter w with gradient g: the loss at w + h d less that at w - h d, from the oracle's forward pass in
// double, against the sum of g times the way between the two points. d is g's own direction and a random one, so that a
// wrong size and a wrong direction both show.
CheckResult check_gradient(const Subject& s) {
  constexpr double kStep = 1e-5, kTolerance = 0.02;
  constexpr int64_t kImages = 2;
  Config config = s.config;
  config.model.dropout = 0;
  const RunData data = some_of(s.data.train, kImages);
  const ModelOptions options = model_options(config, data.train);
  const auto seed = uint64_t(config.train.seed);

  Net net(s.backend, config.model.name, options, seed);
  const BatchSource source = upload_source(s.backend, data.train, config.data.mean, config.data.std);
  gradients_of(net, plain_batch(net, source, data.train.size()));

  ReferenceBackend reference;
  Net oracle(reference, config.model.name, options, seed, {.compute = DType::f64});
  const BatchSource images = upload_source(reference, data.train, config.data.mean, config.data.std);
  const Batch batch = plain_batch(oracle, images, data.train.size());

  struct Line {
    std::string name;
    double norm, error;  // error: of the slope, absolute
  };
  std::vector<Line> lines;
  double largest = 0;
  for (size_t k = 0; k < net.params().params().size(); ++k) {
    const Param &p = *net.params().params()[k], &o = *oracle.params().params()[k];
    const std::vector<float> g = on_host(s.backend, p.grad), w = on_host(reference, o.master);
    const double norm = norm_of(g), scale = std::max(norm_of(w), 1e-2 * std::sqrt(double(w.size())));
    std::vector<double> direction(g.size());
    for (size_t i = 0; i < g.size(); ++i) {
      const bool plus = random4(seed, Draw::init, i, 1, uint32_t(k)).v[3] & 1;
      direction[i] = ((plus ? 1 : -1) / std::sqrt(double(g.size())) + (norm > 0 ? double(g[i]) / norm : 0)) * scale;
    }
    const std::vector<float> above = moved(w, direction, kStep), below = moved(w, direction, -kStep);
    reference.upload(o.master, above.data());
    const double up = oracle_loss(oracle, batch);
    reference.upload(o.master, below.data());
    const double down = oracle_loss(oracle, batch);
    reference.upload(o.master, w.data());
    double expected = 0, way = 0;
    for (size_t i = 0; i < g.size(); ++i) {
      const double d = double(above[i]) - double(below[i]);
      expected += double(g[i]) * d;
      way += d * d;
    }
    lines.push_back({p.name, norm, std::fabs(up - down - expected) / std::sqrt(way)});
    largest = std::max(largest, norm);
  }

  std::vector<std::string> wrong;
  std::vector<Bar> bars;
  double worst = 0;
  for (const Line& l : lines) {
    // A gradient that is 0 but for rounding (a bias before batch norm) is judged beside those of the others.
    const double error = l.error / std::max(l.norm, 1e-3 * largest);
    const bool bad = !(error < kTolerance);
    if (bad) wrong.push_back(l.name);
    worst = std::isnan(error) ? error : std::max(worst, error);
    if (bad || l.name.ends_with(".weight")) bars.push_back({l.name, error, bad ? "WRONG" : ""});
  }
  return verdict(wrong.empty(),
                 wrong.empty() ? fmt::format("{} parameters in double precision: relative error {:.1e} at most",
                                             lines.size(), worst)
                               : fmt::format("wrong by more than 2 %: {}", list_of(wrong)),
                 log_bars(bars, s.terminal));
}

CheckResult check_updates(const Subject& s) {
  constexpr int64_t kSteps = 20;
  constexpr double kOverwritten = 30;  // RMSProp's first step is 10 lr a weight, and harmless where batch norm follows
  const Config config = at_constant_lr(plain_config(s.config));
  const RunData data = some_of(s.data.train, kSteps * config.train.batch_size);
  Trainer trainer(config, s.backend, data);
  const ParamStore& store = trainer.net().params();
  std::map<std::string, std::vector<double>> ratios;
  std::vector<std::string> order;
  std::vector<float> before = on_host(s.backend, store.flat().master);
  std::string diverged;
  for (int64_t step = 0; step < kSteps && diverged.empty(); ++step) {
    if (step > 0 && step % trainer.steps_per_epoch() == 0) trainer.start_epoch(step / trainer.steps_per_epoch());
    trainer.step();
    if (trainer.last_result().bad_in_row > 0) diverged = fmt::format("; step {} is not finite", step + 1);
    if (!diverged.empty() && step > 0) break;  // it was not applied
    const std::vector<float> after = on_host(s.backend, store.flat().master);
    for (const Param* p : store.params()) {
      if (p->group < 0 || p->shape.rank() < 2) continue;
      const auto at = size_t(p->offset), n = size_t(p->shape.numel());
      std::vector<float> change(n);
      for (size_t i = 0; i < n; ++i) change[i] = after[at + i] - before[at + i];
      const std::string layer = layer_name(p->name);
      if (step == 0) order.push_back(layer);
      ratios[layer].push_back(norm_of(change) / norm_of(std::span(before).subspan(at, n)));
    }
    before = after;
  }
  if (order.empty()) return verdict(false, "no layer is trained: all of them are frozen");
  std::vector<std::string> still, overwritten;
  std::vector<Bar> bars;
  double least = INFINITY, most = 0;
  for (const std::string& layer : order) {
    std::vector<double> v = ratios[layer];
    const double first = std::ranges::max(v);
    std::ranges::sort(v);
    const double middle = v[v.size() / 2];
    if (!(middle > 0)) still.push_back(layer);
    if (!(first < kOverwritten)) overwritten.push_back(layer);
    least = std::min(least, middle), most = std::max(most, middle);
    bars.push_back({layer, middle,
                    !(middle > 0)             ? "STILL"
                    : !(first < kOverwritten) ? fmt::format("OVERWRITTEN: {:.3g} in one step", first)
                                              : ""});
  }
  std::string text = fmt::format("median of {} steps from {:.2g} to {:.2g} of a layer's weights",
                                 ratios[order[0]].size(), least, most);
  if (most > 0.1) text += " (large: 1e-3 is usual)";
  if (!still.empty()) text += "; not trained: " + list_of(still);
  if (!overwritten.empty())
    text += fmt::format("; a step beyond {} times the weights in {}", kOverwritten, list_of(overwritten));
  // Where the rate is far off, it is the rate: so short a step is lost in a float's last digit, so long a one is no
  // step.
  std::string cure;
  if (!usual_lr(config.optimizer).holds(config.optimizer.lr))
    cure = lr_beside_usual(config.optimizer) + ": begin there";
  else if (still.size() == order.size())
    cure = "no weight has a gradient: look at the check `flow`";
  return verdict(still.empty() && overwritten.empty() && diverged.empty(), text + diverged, log_bars(bars, s.terminal),
                 cure);
}

}  // namespace linnet
