// What a run's folder holds beside its checkpoints' tensors, as it is read back: env.json, predictions.json, a row of
// metrics.jsonl, the progress in state.json; the input is tried as each. Memory: nlohmann's tree and the columns,
// 64 KiB + 96 x the input.
#include "fuzz.h"
#include "src/train/run_files.h"
#include "src/train/run_log.h"

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
  fuzz::run(linnet::Exit::checkpoint, limit, [&] { linnet::parse_row(text, "metrics.jsonl"); });
  linnet::Progress progress;
  const bool taken = fuzz::run(linnet::Exit::checkpoint, limit,
                               [&] { progress = linnet::Progress::from_json(std::string(text), "state.json"); });
  if (!taken) return 0;
  if (progress.step < 0 || progress.epoch < 0 || progress.in_epoch < 0 || progress.phase < 0)
    fuzz::finding("a negative index", std::string(text));
  const std::string written = progress.to_json();
  if (linnet::Progress::from_json(written, "again").to_json() != written)
    fuzz::finding("not read back the same", written);
  return 0;
}
