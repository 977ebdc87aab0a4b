// A run's calibration.json. Memory: nlohmann's tree, 64 KiB + 64 x the input.
#include "fuzz.h"
#include "linnet/calibration.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(fuzz::text(data, size));
  fuzz::run(linnet::Exit::checkpoint, (64 << 10) + 64 * size, [&] {
    const linnet::Calibration c = linnet::parse_calibration(text, "calibration.json");
    if (!(c.temperature > 0 && c.temperature < 100)) fuzz::finding("a temperature out of range", text);
  });
  return 0;
}
