// A model's parameters and buffers as a safetensors file, with the names and layouts of PyTorch's modules: convolution
// weights are [out, in, kernel_h, kernel_w] in the file, and a linear layer behind flatten() has its inputs in the
// order channel, height, width. Reading a file and writing it gives the same bits.
#pragma once
#include <filesystem>
#include <map>
#include <span>
#include <string>

#include "linnet/param.h"
#include "linnet/safetensors.h"

namespace linnet {

// All parameters and buffers of a sealed store, F32.
SafeTensors get_weights(Backend&, ParamStore&);

// The same from host copies of Flat::master and Flat::buffers.
SafeTensors name_weights(ParamStore&, std::span<const float> master, std::span<const float> buffers);

// Every tensor of the model must be there in F32, with its shape and finite numbers (no running_var below 0), and none
// may be left over: otherwise one Error(Exit::checkpoint) lists all that differs, and the model is unchanged.
// `origin` is what messages call the source. Names may be those of PyTorch models as they are found: with `module.` in
// front of each, `fc` or `linear` for the last layer, `downsample` for `shortcut`; num_batches_tracked is ignored.
// Head::fresh: the last layer keeps its values, whatever the file has for it.
enum class Head { given, fresh };
void set_weights(Backend&, ParamStore&, const SafeTensors&, const std::string& origin, Head = Head::given);

// Where "conv1.weight[3,0,1,2]" lies in the flat buffers; the indices count as in the file. Error(Exit::usage) if there
// is no such number.
struct WeightPlace {
  const Param* param = nullptr;
  int64_t offset = 0;
};
WeightPlace find_weight(ParamStore&, const std::string& text);

// The number of rows of the last layer's weight, and whether residual shortcuts are 1x1 convolutions (option B), as far
// as names and shapes tell: 0 and false where they do not.
struct WeightsFacts {
  int64_t classes = 0, channels = 0;  // channels: of the input, from the first convolution `conv1`
  bool projects = false;
};
WeightsFacts weights_facts(const SafeTensors&);

// As a file; errors are those of write_safetensors, read_safetensors and set_weights.
void save_weights(const std::filesystem::path&, Backend&, ParamStore&,
                  const std::map<std::string, std::string>& metadata);
void load_weights(const std::filesystem::path&, Backend&, ParamStore&);

}  // namespace linnet
