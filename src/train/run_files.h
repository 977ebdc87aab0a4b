// What a run's folder tells of its images, for whoever reads it back. Each parser throws Error(Exit::checkpoint), with
// `origin` as the file's name, for what Linnet did not write.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace linnet {

// The images that a run was made for.
struct RunImages {
  int height = 0, width = 0, channels = 0, classes = 0;
  std::vector<std::string> class_names;
  std::map<std::string, std::string> digests;  // "train", "val", "test": XXH3 of its images
};

// Of the text of env.json; nullopt where it does not tell, as an older Linnet's.
std::optional<RunImages> parse_run_images(std::string_view env, const std::string& origin);

// What a finished run said of each test image.
struct Predictions {
  std::vector<int32_t> label, predicted;
  std::vector<double> probability;  // of the predicted class
};
// Of the text of predictions.json.
Predictions parse_predictions(std::string_view text, const std::string& origin);

}  // namespace linnet
