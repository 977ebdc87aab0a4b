// A data set in one checked file: decoded once, then it trains as fast as CIFAR-10. It is a safetensors file with U8
// tensors train.pixels [n, height, width, channels] and I32 tensors train.labels [n], likewise for val and test, and in
// its metadata the class names, mean and deviation of the training images, and an XXH3 of each part.
#pragma once
#include <filesystem>
#include <string_view>

#include "linnet/dataset.h"

namespace linnet {

struct Pack {
  DataSet set;
  ChannelStats stats;
};

// Error(Exit::data) if a part is not whole or the file cannot be written. `source` is kept in the file, for people.
void write_pack(const std::filesystem::path&, const DataSet&, const std::string& source);

// Error(Exit::data) for a file that write_pack did not write, or that was damaged since: sizes 1 to 224, 1 or 3
// channels, 2 to 10,000 classes, every label below that, digests.
Pack read_pack(const std::filesystem::path&);
Pack parse_pack(std::string_view bytes, const std::string& origin);

}  // namespace linnet
