// The models, by name. models/registry.cpp is the table; each file of models/ holds one architecture.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "linnet/layers.h"

namespace linnet {

struct ModelOptions {
  int height = 32, width = 32, channels = 3, classes = 10;
  char shortcut = 'A';  // residual nets: 'A' zero-padded identity, 'B' 1x1 convolution
  float dropout = 0;    // before the last layer
};

struct ModelEntry {
  std::string name, summary;
  std::vector<std::string_view> keys;  // of [model] that it uses, beside name
  std::unique_ptr<Module> (*make)(const Scope&, const ModelOptions&);
};
const std::vector<ModelEntry>& models();
// For users of the library: a model of their own, which configs can then name. Before any model is made.
void add_model(ModelEntry);

// Builds a model's layers in `store` (not sealed yet). Error(Exit::usage) for an unknown name, with the nearest one,
// and for an image size the model cannot take.
std::unique_ptr<Module> make_model(const std::string& name, ParamStore& store, const ModelOptions&);

}  // namespace linnet
