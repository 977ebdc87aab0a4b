// `--set key=value`, one a line. Memory: as for config files.
#include <vector>

#include "fuzz.h"
#include "linnet/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::string> overrides(1);
  for (const char c : fuzz::text(data, size))
    c == '\n' ? void(overrides.emplace_back()) : overrides.back().push_back(c);
  linnet::Config config;
  const bool taken = fuzz::run(linnet::Exit::usage, (8 << 20) + 400 * size,
                               [&] { config = linnet::parse_config("", "empty.toml", overrides); });
  if (!taken) return 0;
  const std::string kept = linnet::to_toml(config);
  if (linnet::to_toml(linnet::parse_config(kept, "kept.toml")) != kept) fuzz::finding("not read back the same", kept);
  return 0;
}
