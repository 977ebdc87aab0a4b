// Optimizers by name. The mathematics is one functor each in kernels/optim.h.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "kernels/optim.h"

namespace linnet {

struct OptimizerConfig;

struct OptimizerEntry {
  std::string name, summary;
  std::vector<std::string_view> keys;   // of [optimizer] that it uses, beside those that all use (lr, weight_decay)
  std::vector<std::string_view> forms;  // values of `form`, the default first; empty: it has but one
  std::string formula;                  // as coded, a line each
  std::string notes;                    // where PyTorch and Keras differ, and what to beware of
  void (*defaults)(OptimizerConfig&);   // PyTorch's
  void (*keras)(OptimizerConfig&);      // preset = "keras", on top of the defaults; null: Keras has none
  // What is wrong with these settings taken together; empty: nothing.
  std::string (*check)(const OptimizerConfig&);
  Rule (*make)(const OptimizerConfig&);
};
const std::vector<OptimizerEntry>& optimizers();

// An optimizer's settings before any key is read. Error(Exit::usage) for an unknown name, with the nearest one, or for
// a preset that it does not have.
OptimizerConfig default_settings(const std::string& name, const std::string& preset);

// The rule that these settings ask for. Error(Exit::usage) for a form that the optimizer does not have and for whatever
// its check() finds.
Rule make_rule(const OptimizerConfig&);
// Words of state per parameter, and what each is called: {"m", "v"}.
int slots_of(const Rule&);
std::vector<std::string> slot_names(const Rule&);
// The slot with the averaged or accumulated gradient, and that with the average or sum of its squares; -1: none.
int first_moment_slot(const Rule&);
int square_slot(const Rule&);
// Words read and written per parameter in a step: the weight, its gradient and its state.
int words_moved(const Rule&);
// Whether the second can go on from the first one's state ([[phase]] state = "carried"): it is the same optimizer, or
// its only state is an average of the gradient and the first one has such an average.
bool can_carry(const Rule& from, const Rule& to);
// What a kernel reads of a rule in its update number t, from 1.
GroupStep group_step(const Rule&, double lr, double weight_decay, int64_t t);

}  // namespace linnet
