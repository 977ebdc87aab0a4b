// A run's env.json and predictions.json, as they are read back; the input is tried as either. Memory: nlohmann's tree
// and the columns, 64 KiB + 96 x the input.
#include "fuzz.h"
#include "src/train/run_files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text = fuzz::text(data, size);
  const size_t limit = (64 << 10) + 96 * size;
  fuzz::run(linnet::Exit::checkpoint, limit, [&] {
    const auto images = linnet::parse_run_images(text, "env.json");
    if (images && (images->height < 1 || images->height > 224 || images->classes < 1 || images->channels > 4))
      fuzz::finding("images that no net takes", std::string(text));
  });
  fuzz::run(linnet::Exit::checkpoint, limit, [&] {
    const linnet::Predictions p = linnet::parse_predictions(text, "predictions.json");
    if (p.label.size() != p.predicted.size() || p.label.size() != p.probability.size() || p.label.empty())
      fuzz::finding("columns of different lengths", std::string(text));
  });
  return 0;
}
