// The images that a run was made for, as its env.json tells.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace linnet {

struct RunImages {
  int height = 0, width = 0, channels = 0, classes = 0;
  std::vector<std::string> class_names;
  std::map<std::string, std::string> digests;  // "train", "val", "test": XXH3 of its images
};

// Of the text of env.json; nullopt where it does not tell, as an older Linnet's. Error(Exit::checkpoint), with `origin`
// as the file's name, for what Linnet did not write.
std::optional<RunImages> parse_run_images(std::string_view env, const std::string& origin);

}  // namespace linnet
