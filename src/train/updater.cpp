#include "linnet/updater.h"

#include <fnmatch.h>

#include <algorithm>
#include <cmath>

#include "linnet/optimizer.h"
#include "linnet/trainer.h"

namespace linnet {

namespace {

// Whether `name` matches one of the patterns, which are separated by |.
bool matches(const std::string& patterns, const std::string& name) {
  for (size_t at = 0; at <= patterns.size();) {
    const size_t end = std::min(patterns.find('|', at), patterns.size());
    if (fnmatch(patterns.substr(at, end - at).c_str(), name.c_str(), 0) == 0) return true;
    at = end + 1;
  }
  return false;
}

Tensor make(Backend& backend, const Shape& shape) {
  Tensor t(backend.allocate(size_t(shape.numel()) * sizeof(float)), shape, DType::f32);
  backend.zero(t);
  return t;
}

double first_moment_gain(const Rule& rule, const GroupStep& p) {
  return std::visit([&](const auto& r) { return r.first_moment_gain(p); }, rule);
}

}  // namespace

Updater::Updater(Backend& backend, const Config& config, double lr_scale)
    : backend_(backend),
      config_(config),
      lr_scale_(lr_scale),
      clip_{float(config.clip.norm), float(config.clip.value), float(loss_scale_of(config))} {
  for (int phase = 0; phase <= int(config.phases.size()); ++phase)
    for (const Group& group : groups_of(phase)) slots_ = std::max(slots_, slots_of(group.rule));
  for (int phase = 1; phase <= int(config.phases.size()); ++phase) {  // now, not when it comes after hours of training
    if (config.phases[size_t(phase) - 1].state != "carried") continue;
    const std::vector<Group> before = groups_of(phase - 1), after = groups_of(phase);
    for (size_t g = 0; g < after.size(); ++g)
      if (!can_carry(before[g].rule, after[g].rule))
        fail(Exit::usage,
             "[[phase]] {} has state = \"carried\", but from the optimizer before it there is no average of the "
             "gradient, and nothing else, to carry; use state = \"fresh\"",
             phase);
  }
  groups_ = groups_of(0);
  select(0, 0);
}

// Group 0 is [optimizer] or the phase's. In a later phase a [[group]] keeps the ratio of its learning rate, and its own
// optimizer as long as the phase has that of the run.
std::vector<Updater::Group> Updater::groups_of(int phase) const {
  const OptimizerConfig& run = config_.optimizer;
  const OptimizerConfig& now = phase == 0 ? run : config_.phases[size_t(phase) - 1].optimizer;
  std::vector<Group> groups = {{1, now.weight_decay, make_rule(now)}};
  for (const GroupConfig& group : config_.groups) {
    if (group.frozen) continue;
    const OptimizerConfig& o = group.optimizer;
    const bool same_decay = o.weight_decay == run.weight_decay;
    const bool own = phase == 0 || (o.name != run.name && now.name == run.name);
    groups.push_back({o.lr / run.lr, same_decay ? now.weight_decay : o.weight_decay, make_rule(own ? o : now)});
  }
  return groups;
}

Layout Updater::layout() const {
  Layout layout{.slots = slots_,
                .decay_all = config_.optimizer.decay_norm_and_bias,
                .compute = precision_of(config_, backend_),
                .groups = int(groups_.size())};
  if (!config_.groups.empty())
    layout.group = [groups = config_.groups](const std::string& name) {
      int index = 0;
      for (const GroupConfig& group : groups) {
        index += !group.frozen;
        if (matches(group.match, name)) return group.frozen ? -1 : index;
      }
      return 0;
    };
  return layout;
}

void Updater::attach(ParamStore& store) {
  store_ = &store;
  const Flat& flat = store.flat();
  for (const GroupConfig& group : config_.groups)
    if (std::ranges::none_of(store.params(), [&](const Param* p) { return matches(group.match, p->name); }))
      fail(Exit::usage, "the group with match = \"{}\" matches no parameter; they are called {}, {}, ...", group.match,
           store.params().front()->name, store.params().back()->name);
  if (flat.n_trainable == 0) fail(Exit::usage, "every parameter is frozen: there is nothing to train");
  good_buffers_ = make(backend_, flat.buffers.shape());
  factor_ = make(backend_, {1});
  if (config_.lookahead.k > 0) slow_ = make(backend_, flat.master.shape());
  if (config_.ema.decay > 0) {
    ema_ = make(backend_, flat.master.shape());
    ema_buffers_ = make(backend_, flat.buffers.shape());
  }
  int64_t largest = 0, square = 0;
  for (const Param* p : store.params()) {
    const int64_t rows = p->shape[0], columns = p->shape.numel() / rows, small = std::min(rows, columns);
    largest = std::max(largest, p->shape.numel());
    square = std::max(square, small * small);
  }
  const auto uses_muon = [](const Group& group) { return std::holds_alternative<Muon>(group.rule); };
  bool muon = false;
  for (int phase = 0; phase <= int(config_.phases.size()); ++phase)
    muon = muon || std::ranges::any_of(groups_of(phase), uses_muon);
  if (muon)
    muon_ = {make(backend_, {largest}), make(backend_, {largest}), make(backend_, {square}), make(backend_, {square}),
             make(backend_, {1})};
  start_from_weights();
}

void Updater::start_from_weights() {
  const Flat& flat = store_->flat();
  backend_.copy(good_buffers_, flat.buffers);
  if (slow_) backend_.copy(slow_, flat.master);
  if (ema_ && config_.ema.start == "first") {
    backend_.copy(ema_, flat.master);
    backend_.copy(ema_buffers_, flat.buffers);
  }
}

void Updater::select(int phase, int64_t step) {
  phase_ = phase;
  first_ = step;
  groups_ = groups_of(phase);
  rules_.clear();
  for (const Group& group : groups_) rules_.push_back(group.rule);
}

void Updater::start_phase(int phase, int64_t step, double last_lr_factor) {
  const std::vector<Rule> before = rules_;
  StepParams last;
  if (step > first_) fill(last, step - 1, last_lr_factor);
  const int64_t first = first_;
  const bool carried = phase > 0 && config_.phases[size_t(phase) - 1].state == "carried";
  select(phase, step);
  const Flat& flat = store_->flat();
  if (!carried) return backend_.zero(flat.slots);

  first_ = first;  // the state goes on, and so does the count of its updates
  StepParams now;
  fill(now, step - 1, 1);
  for (size_t g = 0; g < rules_.size(); ++g) {
    const Segment& s = flat.segments[g];
    const int from = first_moment_slot(before[g]), to = first_moment_slot(rules_[g]);
    const bool same = rules_[g].index() == before[g].index();
    const auto slot = [&](int k) { return flat.slots.slice(k * flat.n + s.begin, {s.n}); };
    if (!same && from != to) backend_.copy(slot(to), slot(from));
    for (int k = 1; !same && k < slots_; ++k) backend_.zero(slot(k));
    if (from < 0) continue;
    // The average of the gradient stays the same; what a form makes of it (a sum, times lr, ...) changes.
    const double is = first_moment_gain(rules_[g], now.group[g]), was = first_moment_gain(before[g], last.group[g]);
    if (is == was) continue;
    const float factor = was == 0 ? 0 : float(is / was);
    backend_.upload(factor_, &factor);
    backend_.scale_by(slot(to), slot(to), factor_);
  }
}

double Updater::base_lr() const {
  return lr_scale_ * (phase_ == 0 ? config_.optimizer.lr : config_.phases[size_t(phase_) - 1].optimizer.lr);
}

void Updater::fill(StepParams& params, int64_t step, double lr_factor) const {
  for (size_t g = 0; g < groups_.size(); ++g)
    params.group[g] =
        group_step(groups_[g].rule, base_lr() * groups_[g].lr * lr_factor, groups_[g].weight_decay, step - first_ + 1);
}

void Updater::before_forward(const Tensor& step) {
  for (size_t g = 0; g < rules_.size(); ++g) backend_.shift(rules_[g], store_->flat(), int(g), step);
}

void Updater::apply(const Tensor& step, const Tensor& step_sums, const Tensor& totals, int64_t images) {
  const Flat& flat = store_->flat();
  backend_.judge_step(step, flat.grad.slice(0, {flat.n_trainable}), &flat.buffers, step_sums, clip_);
  for (size_t g = 0; g < rules_.size(); ++g)
    if (const Muon* muon = std::get_if<Muon>(&rules_[g]))
      update_by_muon(*muon, int(g), step);
    else
      backend_.update(rules_[g], flat, int(g), clip_, step);
  if (slow_)
    backend_.lookahead({config_.lookahead.k, config_.lookahead.alpha}, flat.master.slice(0, {flat.n_trainable}),
                       slow_.slice(0, {flat.n_trainable}), step);
  if (ema_) {
    backend_.moving_average(ema_, flat.master, config_.ema.decay, step);
    backend_.moving_average(ema_buffers_, flat.buffers, config_.ema.decay, step);
  }
  backend_.commit(flat.buffers, good_buffers_, totals, step_sums, images, step);
}

// Matrices one by one, then the rest of the segment at once.
void Updater::update_by_muon(const Muon& rule, int segment, const Tensor& step) {
  Flat flat = store_->flat();
  const Segment s = flat.segments[size_t(segment)];
  for (const Param* p : store_->params())
    if (p->group == segment && p->shape.rank() >= 2)
      backend_.muon(rule, flat,
                    {p->offset, p->shape[0], p->shape.numel() / p->shape[0], p->offset < s.begin + s.n_decay}, segment,
                    clip_, muon_, step);
  const int64_t rest = s.n_matrix;
  flat.segments[size_t(segment)] = {s.begin + rest, s.n - rest, std::max<int64_t>(0, s.n_decay - rest)};
  backend_.update(rule, flat, segment, clip_, step);
}

void Updater::with_average(int64_t updates, const std::function<void()>& use) {
  const Flat& flat = store_->flat();
  const Tensor saved = make(backend_, flat.master.shape()), saved_buffers = make(backend_, flat.buffers.shape());
  const auto put = [&](const Tensor& master, const Tensor& buffers) {
    backend_.copy(flat.master, master);
    backend_.copy(flat.buffers, buffers);
  };
  backend_.copy(saved, flat.master);
  backend_.copy(saved_buffers, flat.buffers);
  put(ema_, ema_buffers_);
  if (config_.ema.start == "corrected" && updates > 0) {  // what it has seen so far has weight 1 - decay^updates
    const float factor = float(1 / -std::expm1(double(updates) * std::log(config_.ema.decay)));
    backend_.upload(factor_, &factor);
    backend_.scale_by(flat.master, flat.master, factor_);
    backend_.scale_by(flat.buffers, flat.buffers, factor_);
  }
  try {
    use();
  } catch (...) {  // of an average that is not finite: the weights stay what they are all the same
    put(saved, saved_buffers);
    throw;
  }
  put(saved, saved_buffers);
}

std::vector<std::pair<std::string, Tensor>> Updater::state() const {
  std::vector<std::pair<std::string, Tensor>> all = {{"slots", store_->flat().slots}};
  if (slow_) all.emplace_back("slow", slow_);
  if (ema_) all.insert(all.end(), {{"ema", ema_}, {"ema_buffers", ema_buffers_}});
  return all;
}

void Updater::restored(int phase, int64_t first) {
  select(phase, first);
  backend_.copy(good_buffers_, store_->flat().buffers);
}

}  // namespace linnet
