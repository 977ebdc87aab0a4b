#include "linnet/optim_trace.h"

#include "linnet/error.h"
#include "linnet/optimizer.h"

namespace linnet {

namespace {

template <class T, class R>
Trace run(const R& rule, const std::vector<double>& w0, int64_t steps, const GradientOf& gradient,
          const TraceOptions& o) {
  const size_t n = w0.size();
  std::vector<T> w(w0.begin(), w0.end()), slow = w;
  std::vector<std::vector<T>> slots(R::kSlots, std::vector<T>(n, 0));
  Trace trace;
  trace.state.resize(R::kSlots);
  for (int64_t t = 1; t <= steps; ++t) {
    GroupStep p{.lr = o.lr * (o.lr_factor ? o.lr_factor(t) : 1), .weight_decay = o.weight_decay, .t = t};
    rule.factors(p);
    std::vector<T> s(R::kSlots + 1);  // of one weight
    const auto with_state = [&](size_t i, const auto& f) {
      for (int k = 0; k < R::kSlots; ++k) s[size_t(k)] = slots[size_t(k)][i];
      w[i] = f(s.data());
      for (int k = 0; k < R::kSlots; ++k) slots[size_t(k)][i] = s[size_t(k)];
    };
    if constexpr (R::kShifts)
      for (size_t i = 0; i < n; ++i) with_state(i, [&](T* slot) { return rule.shift(w[i], slot, p); });
    trace.at.emplace_back(w.begin(), w.end());
    const std::vector<double> g = gradient(t, trace.at.back());
    require(g.size() == n, "update {}: {} gradients for {} weights", t, g.size(), n);
    for (size_t i = 0; i < n; ++i) {
      with_state(i, [&](T* slot) { return rule(w[i], T(g[i]), slot, T(o.weight_decay), p); });
      if (o.lookahead.k > 0) w[i] = o.lookahead(w[i], slow[i], t);
    }
    trace.w.emplace_back(w.begin(), w.end());
    for (size_t k = 0; k < slots.size(); ++k) trace.state[k].emplace_back(slots[k].begin(), slots[k].end());
  }
  return trace;
}

}  // namespace

Trace trace_rule(const Rule& rule, const std::vector<double>& w0, int64_t steps, const GradientOf& gradient,
                 const TraceOptions& o) {
  return std::visit(
      [&](const auto& r) {
        return o.f64 ? run<double>(r, w0, steps, gradient, o) : run<float>(r, w0, steps, gradient, o);
      },
      rule);
}

}  // namespace linnet
