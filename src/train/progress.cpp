// A run's progress as JSON text, for checkpoints.
#include <cmath>
#include <concepts>
#include <limits>

#include "linnet/trainer.h"
#include "src/core/json.h"

namespace linnet {

namespace {

// One list of fields for both directions: f(name, field).
template <class P, class F>
void visit_progress(P& p, F&& f) {
  f("step", p.step);
  f("epoch", p.epoch);
  f("in_epoch", p.in_epoch);
  f("phase", p.phase);
  f("phase_step", p.phase_step);
  f("phase_epoch", p.phase_epoch);
  f("update_start", p.update_start);
  f("epoch_sums.loss", p.epoch_sums.loss);
  f("epoch_sums.correct", p.epoch_sums.correct);
  f("epoch_sums.images", p.epoch_sums.images);
  f("plateau.best", p.plateau.best);
  f("plateau.factor", p.plateau.factor);
  f("plateau.bad", p.plateau.bad);
  f("plateau.cooldown", p.plateau.cooldown);
  for (auto* watch : {&p.phase_watch, &p.stop_watch}) {
    const std::string name = watch == &p.phase_watch ? "phase_watch." : "stop_watch.";
    f(name + "best", watch->best);
    f(name + "epoch", watch->epoch);
    f(name + "waited", watch->waited);
  }
  f("smooth.v", p.smooth.v);
  f("smooth.count", p.smooth.count);
  f("rewinds", p.rewinds);
  f("stopped", p.stopped);
  f("result.clip_scale", p.result.clip_scale);
  f("result.grad_norm", p.result.grad_norm);
  f("result.bad", p.result.bad);
  f("result.bad_in_row", p.result.bad_in_row);
  f("result.bad_step", p.result.bad_step);
  f("result.clipped", p.result.clipped);
  f("result.skipped", p.result.skipped);
  f("totals", p.totals);
  f("directions", p.directions);
  f("trace", p.trace);
}
// Fields that older checkpoints lack: without them a run goes on all the same, and shows less of its last steps.
bool is_optional(const std::string& name) { return name == "directions" || name == "trace"; }

// JSON has no NaN and no infinity: null stands for NaN, the only one that occurs in a good state.
Json to_value(double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); }
Json to_value(float v) { return to_value(double(v)); }
Json to_value(const std::vector<double>& v) { return v; }
Json to_value(const std::vector<StepTrace>& trace) {  // five numbers a step
  Json all = Json::array();
  for (const StepTrace& t : trace)
    for (const Json& value : {Json(t.step), to_value(t.loss), to_value(t.lr), to_value(t.grad_norm), Json(t.bad)})
      all.push_back(value);
  return all;
}
template <class T>
Json to_value(T v) {
  return v;
}

void from_value(const Json& j, double& v) { v = j.is_null() ? std::nan("") : j.get<double>(); }
void from_value(const Json& j, float& v) { v = j.is_null() ? std::nanf("") : j.get<float>(); }
void from_value(const Json& j, std::vector<StepTrace>& trace) {
  if (j.size() % 5 != 0 || j.size() / 5 > kTraceSteps) throw std::runtime_error("not a trace of the last steps");
  for (size_t i = 0; i < j.size(); i += 5) {
    StepTrace& t = trace.emplace_back(StepTrace{.step = j[i], .bad = j[i + 4]});
    from_value(j[i + 1], t.loss);
    from_value(j[i + 2], t.lr);
    from_value(j[i + 3], t.grad_norm);
    if (t.step < 0) throw std::runtime_error("a step below 0");
  }
}
template <class T>
void from_value(const Json& j, T& v) {
  v = j.get<T>();
}
// A number that the field cannot hold would become another one.
template <std::signed_integral T>
void from_value(const Json& j, T& v) {
  const int64_t whole = j.is_number_integer() ? j.get<int64_t>() : INT64_MIN;
  if (whole < -1 || whole > std::numeric_limits<T>::max()) throw std::runtime_error("expected a whole number in range");
  v = T(whole);
}

// What every run's progress obeys, whatever its config; Trainer::restore() knows the rest.
bool is_progress(const Progress& p) {
  const StepResult& r = p.result;
  for (const int64_t count : {p.epoch, p.in_epoch, p.phase, p.phase_step, p.phase_epoch, p.update_start, p.rewinds,
                              p.plateau.bad, p.plateau.cooldown, p.phase_watch.waited, p.stop_watch.waited,
                              p.smooth.count, r.clipped, r.skipped, int64_t(r.bad), int64_t(r.bad_in_row)})
    if (count < 0) return false;
  return p.epoch <= p.step && p.in_epoch <= p.step && p.totals.size() == 3 && p.plateau.factor >= 0 &&
         p.plateau.factor <= 1 && p.phase_step <= p.step && p.phase_epoch <= p.epoch && p.update_start <= p.step &&
         r.bad_step <= p.step && r.clipped <= p.step && r.skipped <= p.step;
}

}  // namespace

std::string Progress::to_json() const {
  Json json = Json::object();
  visit_progress(*this, [&](const std::string& name, const auto& field) { json[name] = to_value(field); });
  return json.dump(1);
}

Progress Progress::from_json(const std::string& text, const std::string& origin) {
  Progress p;
  try {
    const Json json = parse_json(text, origin, Exit::checkpoint);
    size_t fields = 0;
    visit_progress(p, [&](const std::string& name, auto& field) {
      if (is_optional(name) && !json.contains(name)) return;
      from_value(json.at(name), field);
      ++fields;
    });
    if (json.size() != fields) throw std::runtime_error("unknown fields");
    if (!is_progress(p)) throw std::runtime_error("counters that contradict each other");
  } catch (const std::exception& e) {
    fail(Exit::checkpoint, "{} is not the progress of a run that this version of Linnet wrote: {}", origin, e.what());
  }
  return p;
}

}  // namespace linnet
