#include "linnet/dynamics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "linnet/optimizer.h"
#include "linnet/trainer.h"
#include "linnet/weights.h"

namespace linnet {

namespace {

// Weights whose direction is followed, and those whose rate is counted, at least: shares are off by 0.8 and 0.4 % (1
// sigma) at most.
constexpr int64_t kSample = 4096, kRates = 16384;

// The root of the sum of value(i)^2 in double, in lanes: one sum after the other would wait for each addition.
template <class Value>
double root_of_squares(size_t n, const Value& value) {
  constexpr size_t kLanes = 8;
  double lane[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (size_t j = 0; j < kLanes; ++j) lane[j] += value(i + j) * value(i + j);
  for (; i < n; ++i) lane[0] += value(i) * value(i);
  double sum = 0;
  for (const double l : lane) sum += l;
  return std::sqrt(sum);
}
double norm(std::span<const float> values) {
  return root_of_squares(values.size(), [&](size_t i) { return double(values[i]); });
}
double change(std::span<const float> from, std::span<const float> to) {
  return root_of_squares(from.size(), [&](size_t i) { return double(to[i]) - double(from[i]); });
}

// "layer1.0.conv1" of "layer1.0.conv1.weight".
std::string layer_of(const Param& p) { return p.name.substr(0, p.name.rfind('.')); }

// A weight of a product that is trained.
bool has_update_ratio(const Param* p) { return p->group >= 0 && p->shape.rank() >= 2; }

}  // namespace

Dynamics::Dynamics(Backend& backend, ParamStore& store, const Updater& updater, const std::string& probe)
    : backend_(backend), store_(store), updater_(updater) {
  const Flat& flat = store.flat();
  sample_stride_ = std::max<int64_t>(1, flat.n_trainable / kSample);
  for (Kept* kept : {&older_, &newer_}) {
    const MemoryFor what("the weights before a step");
    kept->weights = Tensor(backend.allocate(flat.master.bytes()), flat.master.shape(), DType::f32);
  }
  if (probe.empty()) return;
  const WeightPlace place = find_weight(store, probe);
  if (place.param->group < 0) fail(Exit::usage, "log.probe: {} is frozen: it does not move", place.param->name);
  probed_ = place.param;
  probe_ = place.offset;
}

std::vector<float> Dynamics::download(const Tensor& x) const {
  std::vector<float> values(static_cast<size_t>(x.numel()));
  backend_.download(values.data(), x);
  return values;
}

void Dynamics::before_step(int64_t done) {
  std::swap(older_, newer_);
  backend_.copy(newer_.weights, store_.flat().master);
  newer_.done = done;
}

void Dynamics::take_back() {
  std::swap(older_, newer_);
  older_.done = -1;
}

std::string Dynamics::directions_between(const std::vector<float>& from, const std::vector<float>& to) const {
  std::string all;
  for (auto i = size_t(0); i < size_t(store_.flat().n_trainable); i += size_t(sample_stride_))
    all += to[i] > from[i] ? '+' : to[i] < from[i] ? '-' : '0';
  return all;
}

std::string Dynamics::directions(int64_t done, const Tensor& weights) {
  if (newer_.done >= 0 && newer_.done == done - 1)
    return directions_between(download(newer_.weights), download(weights));
  return restored_at_ == done ? restored_ : "";
}

void Dynamics::restore(int64_t done, std::string directions, std::vector<double> update_ratios) {
  const auto layers = std::ranges::count_if(store_.params(), has_update_ratio);
  if (!update_ratios.empty() && std::ssize(update_ratios) != layers)
    fail(Exit::checkpoint, "'update_ratios' has {} numbers, expected one for each of {} layers", update_ratios.size(),
         layers);
  older_.done = newer_.done = -1;
  moved_.clear();
  restored_ratios_ = std::move(update_ratios);
  restored_ = std::move(directions);
  restored_at_ = done;
}

double reversed_share(std::string_view before, std::string_view now) {
  int64_t moved = 0, back = 0;
  for (size_t i = 0; i < std::min(before.size(), now.size()); ++i) {
    const bool both = before[i] != '0' && now[i] != '0';
    moved += both;
    back += both && before[i] != now[i];
  }
  return moved > 0 ? double(back) / double(moved) : std::nan("");
}

void Dynamics::look(int64_t done, const StepParams& params, std::vector<float> gradient, bool layers) {
  require(newer_.done == done - 1, "[dynamics] expected before_step({}) before a look at step {}", done - 1, done);
  const Flat& flat = store_.flat();
  const std::vector<Rule>& rules = updater_.rules();
  const std::vector<float> before = download(newer_.weights), after = download(flat.master);
  std::vector<float> slots(size_t(flat.slots.numel()));
  const bool probes_square = probed_ && square_slot(rules[size_t(probed_->group)]) >= 0;
  if (slots.empty()) {
  } else if (layers || probes_square) {
    backend_.download(slots.data(), flat.slots);
  } else {
    for (size_t g = 0; g < rules.size(); ++g)
      if (const int k = first_moment_slot(rules[g]); k >= 0) {
        const Segment& s = flat.segments[g];
        backend_.download(slots.data() + k * flat.n + s.begin, flat.slots.slice(k * flat.n + s.begin, {s.n}));
      }
  }

  moved_.clear();
  double velocity = 0, update = 0;
  bool any_velocity = false;
  for (const Param* p : store_.params()) {
    if (p->group < 0) continue;
    const auto of = [&](const std::vector<float>& x, int64_t slot = 0) {
      return std::span(x).subspan(size_t(slot * flat.n + p->offset), size_t(p->shape.numel()));
    };
    const int k = first_moment_slot(rules[size_t(p->group)]);
    const bool is_layer = p->shape.rank() >= 2;
    moved_.push_back({p, is_layer && layers ? norm(of(gradient)) : std::nan(""),
                      k >= 0 ? norm(of(slots, k)) : std::nan(""), change(of(before), of(after)),
                      is_layer ? norm(of(before)) : std::nan("")});
    update += moved_.back().update * moved_.back().update;
    if (k < 0) continue;
    velocity += moved_.back().velocity * moved_.back().velocity;
    any_velocity = true;
  }
  scalars_ = {{"update_norm", std::sqrt(update)}};
  if (any_velocity) scalars_.emplace_back("velocity_norm", std::sqrt(velocity));

  const bool known = older_.done >= 0 && older_.done == done - 2;
  const std::string last = known                      ? directions_between(download(older_.weights), before)
                           : restored_at_ == done - 1 ? restored_
                                                      : "";
  if (const double share = reversed_share(last, directions_between(before, after)); !std::isnan(share))
    scalars_.emplace_back("reversed_share", share);

  if (probed_) {
    const auto at = size_t(probe_);
    const Rule& rule = rules[size_t(probed_->group)];
    scalars_.insert(scalars_.end(), {{"probe/weight", after[at]}, {"probe/gradient", gradient[at]}});
    if (const int k = first_moment_slot(rule); k >= 0)
      scalars_.emplace_back("probe/velocity", slots[size_t(k * flat.n) + at]);
    if (const int k = square_slot(rule); k >= 0) scalars_.emplace_back("probe/square", slots[size_t(k * flat.n) + at]);
    scalars_.emplace_back("probe/update", double(after[at]) - double(before[at]));
  }
  rates_.clear();
  if (layers) count_rates(params, slots);
}

void Dynamics::count_rates(const StepParams& params, const std::vector<float>& slots) {
  const Flat& flat = store_.flat();
  const int64_t stride = std::max<int64_t>(1, flat.n_trainable / kRates);
  std::map<int, int64_t> counts;  // by decade
  int64_t all = 0;
  for (const Param* p : store_.params()) {
    if (p->group < 0) continue;
    std::visit(
        [&]<class R>(const R& rule) {
          if constexpr (requires(const double* s) { rule.effective_lr(s, params.group[0]); }) {
            const GroupStep& step = params.group[p->group];
            const int64_t end = p->offset + p->shape.numel();
            for (int64_t i = (p->offset + stride - 1) / stride * stride; i < end; i += stride) {
              double s[R::kSlots];
              for (int k = 0; k < R::kSlots; ++k) s[k] = slots[size_t(k * flat.n + i)];
              const double lr = rule.effective_lr(s, step);
              if (lr > 0 && std::isfinite(lr)) ++counts[int(std::floor(std::log10(lr)))];
              ++all;
            }
          }
        },
        updater_.rules()[size_t(p->group)]);
  }
  for (const auto& [decade, n] : counts)
    rates_.emplace_back(fmt::format("effective_lr/1e{:+03}", decade), double(n) / double(all));
}

void Dynamics::add_to(Row& row) const { row.values.insert(row.values.end(), scalars_.begin(), scalars_.end()); }

void Dynamics::add_layers(Row& row) const {
  for (const auto& [name, norm_of] : {std::pair{"grad_norm/", &Moved::gradient},
                                      {"velocity_norm/", &Moved::velocity},
                                      {"update_norm/", &Moved::update}})
    for (const Moved& m : moved_) {
      const bool kept = norm_of != &Moved::velocity || first_moment_slot(updater_.rules()[size_t(m.param->group)]) >= 0;
      if (m.param->shape.rank() >= 2 && kept) row.values.emplace_back(name + layer_of(*m.param), m.*norm_of);
    }
  row.values.insert(row.values.end(), rates_.begin(), rates_.end());
}

void Dynamics::add_update_ratios(Row& row) const {
  const std::vector<double> ratios = update_ratios();
  size_t at = 0;
  for (const Param* p : store_.params())
    if (has_update_ratio(p) && at < ratios.size())
      row.values.emplace_back("update_ratio/" + layer_of(*p), ratios[at++]);
}

std::vector<double> Dynamics::update_ratios() const {
  if (moved_.empty()) return restored_ratios_;
  std::vector<double> ratios;
  for (const Moved& m : moved_)
    if (has_update_ratio(m.param)) ratios.push_back(m.update / m.weights);
  return ratios;
}

}  // namespace linnet
