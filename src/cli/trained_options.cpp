#include "trained_options.h"

namespace linnet {

void add_trained_options(CLI::App& verb, std::string& target, TrainedOptions& o) {
  verb.add_option("target", target, "run folder, or .safetensors file")->required();
  verb.add_option("--model", o.model, "model of a weights file");
  verb.add_option("--mean", o.mean, "per-channel mean of pixel/255")->delimiter(',');
  verb.add_option("--std", o.std, "per-channel standard deviation of pixel/255")->delimiter(',');
  verb.add_option("-s,--set", o.set, "override a key, e.g. --set model.shortcut=B (may be repeated)")
      ->allow_extra_args(false);
}

void add_size_option(CLI::App& verb, TrainedOptions& o) {
  verb.add_option("--size", o.size, "height and width that a weights file's net takes, pixels")
      ->check(CLI::Range(4, 224));
}

}  // namespace linnet
