// A trained net, ready to use on pictures: from a run's folder, or from a weights file and what must be said about it.
#pragma once
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "linnet/calibration.h"
#include "linnet/trainer.h"

namespace linnet {

struct TrainedOptions {
  std::vector<std::string> set;   // overrides of the config
  std::string model;              // of a weights file: needed
  std::vector<double> mean, std;  // of a weights file: needed before pictures are shown to it
  int size = 32;                  // of a weights file: height and width of its pictures
};

struct Trained {
  bool is_run = false;
  Config config;
  SafeTensors weights;
  std::string origin;                          // what messages call the weights
  ModelOptions options;                        // with the images and classes that it was made for
  std::vector<std::string> class_names;        // options.classes of them
  std::map<std::string, std::string> digests;  // of a run: XXH3 of its images, "train", "val", "test", as far as told
  std::optional<Calibration> calibration;      // of `linnet eval --calibrate`, if it is of these weights
  std::vector<std::string> notes;              // a line each, for people

  PictureForm form() const { return {options.height, options.channels, config.data.fit == "crop"}; }
  Net build(Backend&) const;
};

// The data set is not read, but of a run that was made before env.json told its classes. Error(Exit::usage) for a
// target that is neither, or a weights file without its model or with means that do not fit; Error(Exit::checkpoint)
// for weights that cannot be read.
Trained open_trained(const std::filesystem::path& target, const TrainedOptions&);

// What an image's pixels did for the logit of a class, [height, width] row by row, scaled to at most 1.
struct Saliency {
  std::vector<float> gradient_input;  // |sum over channels of gradient x input|
  // Grad-CAM (Selvaraju et al. 2017): ReLU of the last feature maps, weighted by their mean gradients, brought to the
  // image's size bilinearly; empty for a net without feature maps.
  std::vector<float> grad_cam;
};
// Of image `index` of the source.
Saliency saliency(Net&, const BatchSource&, int64_t index, int target_class);

}  // namespace linnet
