// A run's progress as JSON text, for checkpoints.
#include <algorithm>
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
  f("rewound_from", p.rewound_from);
  f("rewound_to", p.rewound_to);
  f("stopped", p.stopped);
  f("best_in_use", p.best_in_use);
  f("result.clip_scale", p.result.clip_scale);
  f("result.grad_norm", p.result.grad_norm);
  f("result.bad", p.result.bad);
  f("result.bad_in_row", p.result.bad_in_row);
  f("result.bad_step", p.result.bad_step);
  f("result.clipped", p.result.clipped);
  f("result.skipped", p.result.skipped);
  f("totals", p.totals);
  f("directions", p.directions);
  f("update_ratios", p.update_ratios);
  f("trace", p.trace);
}
// Fields that older checkpoints lack: without them a run goes on all the same, and shows less of what was.
bool is_optional(const std::string& name) {
  return name == "directions" || name == "update_ratios" || name == "trace" || name == "best_in_use" ||
         name.starts_with("rewound_");
}

// JSON has no NaN and no infinity: null stands for NaN, the only one that occurs in a good state.
Json to_value(double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); }
Json to_value(float v) { return to_value(double(v)); }
Json to_value(const std::vector<double>& all) {
  Json json = Json::array();
  for (const double v : all) json.push_back(to_value(v));
  return json;
}
Json to_value(const std::vector<int64_t>& v) { return v; }
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
void from_value(const Json& j, std::vector<double>& all) {
  if (!j.is_array()) throw std::runtime_error("expected an array");
  for (const Json& value : j) from_value(value, all.emplace_back());
}
void from_value(const Json& j, std::vector<StepTrace>& trace) {
  if (j.size() % 5 != 0 || j.size() / 5 > kTraceSteps) throw std::runtime_error("not a trace of the last steps");
  for (size_t i = 0; i < j.size(); i += 5) {
    StepTrace& t = trace.emplace_back(StepTrace{.step = whole<int64_t>(j[i]), .bad = whole<int32_t>(j[i + 4])});
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
  v = whole<T>(j);
  if (v < -1) throw std::runtime_error("expected a number of -1 or more");
}

void from_value(const Json& j, std::vector<int64_t>& all) {
  if (!j.is_array()) throw std::runtime_error("expected an array");
  for (const Json& value : j) from_value(value, all.emplace_back());
}

// What every run's progress obeys, whatever its config; Trainer::restore() knows the rest. The key that does not, and
// why; empty: none.
std::string contradiction(const Progress& p) {
  constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
  const StepResult& r = p.result;
  struct Count {
    const char* key;
    int64_t value, most;
  };
  for (const auto& [key, value, most] : {Count{"step", p.step, kAny},
                                         {"epoch", p.epoch, p.step},
                                         {"in_epoch", p.in_epoch, p.step},
                                         {"phase", p.phase, kAny},
                                         {"phase_step", p.phase_step, p.step},
                                         {"phase_epoch", p.phase_epoch, p.epoch},
                                         {"update_start", p.update_start, p.step},
                                         {"rewinds", p.rewinds, kAny},
                                         {"plateau.bad", p.plateau.bad, kAny},
                                         {"plateau.cooldown", p.plateau.cooldown, kAny},
                                         {"phase_watch.waited", p.phase_watch.waited, kAny},
                                         {"stop_watch.waited", p.stop_watch.waited, kAny},
                                         {"smooth.count", p.smooth.count, kAny},
                                         {"result.clipped", r.clipped, p.step},
                                         {"result.skipped", r.skipped, p.step},
                                         {"result.bad", r.bad, kAny},
                                         {"result.bad_in_row", r.bad_in_row, kAny}})
    if (value < 0 || value > most)
      return fmt::format("'{}' is {}, expected {}", key, value,
                         most == kAny ? "0 or more" : fmt::format("0 to {}, as the other counters are", most));
  if (r.bad_step > p.step) return fmt::format("'result.bad_step' is {}, after step {}", r.bad_step, p.step);
  if (p.totals.size() != 3) return fmt::format("'totals' has {} numbers, expected 3", p.totals.size());
  if (!std::ranges::all_of(p.totals, [](double v) { return std::isfinite(v); })) return "'totals' are not all finite";
  if (!(p.plateau.factor >= 0 && p.plateau.factor <= 1))
    return fmt::format("'plateau.factor' is {}, expected 0 to 1", p.plateau.factor);
  if (p.rewound_to.empty() != (p.rewound_from < 0) || int64_t(p.rewound_to.size()) > p.rewinds ||
      std::ranges::any_of(p.rewound_to, [&](int64_t step) { return step < 0 || step > p.rewound_from; }))
    return "'rewound_to' does not fit 'rewound_from' and 'rewinds'";
  return "";
}

}  // namespace

std::string Progress::to_json() const {
  Json json = Json::object();
  visit_progress(*this, [&](const std::string& name, const auto& field) { json[name] = to_value(field); });
  if (update_ratios.empty()) json.erase("update_ratios");  // an older Linnet does not know it
  return json.dump(1);
}

Progress Progress::from_json(const std::string& text, const std::string& origin) {
  Progress p;
  try {
    const Json json = parse_json(text, origin, Exit::checkpoint);
    size_t fields = 0;
    visit_progress(p, [&](const std::string& name, auto& field) {
      if (is_optional(name) && !json.contains(name)) return;
      try {
        from_value(json.at(name), field);
      } catch (const std::exception& e) {
        throw std::runtime_error(fmt::format("'{}': {}", name, e.what()));
      }
      ++fields;
    });
    if (json.size() != fields) throw std::runtime_error("unknown fields");
    if (const std::string wrong = contradiction(p); !wrong.empty()) throw std::runtime_error(wrong);
  } catch (const std::exception& e) {
    fail(Exit::checkpoint, "{} is not the progress of a run that this version of Linnet wrote: {}", origin, e.what());
  }
  return p;
}

}  // namespace linnet
