#include "linnet/optimizer.h"

#include "linnet/config.h"
#include "linnet/registry.h"

namespace linnet {

const std::vector<OptimizerEntry>& optimizers() {
  static const std::vector<OptimizerEntry> table = {
      {"sgd", "stochastic gradient descent with momentum, dampening, Nesterov (torch.optim.SGD)",
       [](const Config& c) -> Rule {
         return Sgd{float(c.optimizer.momentum), float(c.optimizer.dampening), c.optimizer.nesterov};
       }},
  };
  return table;
}

Rule make_rule(const Config& c) { return find_entry(optimizers(), "optimizer", c.optimizer.name).make(c); }

int slots_of(const Rule& rule) {
  return std::visit([](auto r) { return r.kSlots; }, rule);
}

}  // namespace linnet
