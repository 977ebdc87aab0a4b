// A model's parameters and buffers as a safetensors file, with the names and layouts of PyTorch's modules: convolution
// weights are [out, in, kernel_h, kernel_w] in the file. A linear layer behind flatten() keeps Linnet's order of
// inputs, which is height, width, channel; PyTorch's is channel, height, width.
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
// num_batches_tracked (PyTorch's counter) is ignored. `origin` is what messages call the source.
void set_weights(Backend&, ParamStore&, const SafeTensors&, const std::string& origin);

// As a file; errors are those of write_safetensors, read_safetensors and set_weights.
void save_weights(const std::filesystem::path&, Backend&, ParamStore&,
                  const std::map<std::string, std::string>& metadata);
void load_weights(const std::filesystem::path&, Backend&, ParamStore&);

}  // namespace linnet
