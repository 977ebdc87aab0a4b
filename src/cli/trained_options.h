// The options of the verbs that take a trained net: eval, predict, export.
#pragma once
#include "cli.h"
#include "linnet/trained.h"

namespace linnet {

// --model, --mean, --std and --set; `target` is the first argument.
void add_trained_options(CLI::App& verb, std::string& target, TrainedOptions&);
// --size: for a verb that sees no data set whose images have one.
void add_size_option(CLI::App& verb, TrainedOptions&);

}  // namespace linnet
