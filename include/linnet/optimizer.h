// Optimizers by name. The mathematics is one functor each in kernels/optim.h.
#pragma once
#include <string>
#include <vector>

#include "kernels/optim.h"

namespace linnet {

struct Config;

struct OptimizerEntry {
  std::string name, summary;
  Rule (*make)(const Config&);
};
const std::vector<OptimizerEntry>& optimizers();

// The rule that [optimizer] asks for. Error(Exit::usage) for an unknown name, with the nearest one.
Rule make_rule(const Config&);
// Words of state per parameter.
int slots_of(const Rule&);

}  // namespace linnet
