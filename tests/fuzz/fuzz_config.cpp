// Config files. Memory: the file is at most 64 KiB; toml++'s tree takes up to 150 times the text ("[[a]]" lines), and a
// report of 50 mistakes is bounded: 8 MiB + 400 x the input.
#include "fuzz.h"
#include "linnet/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  linnet::Config config;
  const bool taken = fuzz::run(linnet::Exit::usage, (8 << 20) + 400 * size,
                               [&] { config = linnet::parse_config(fuzz::text(data, size), "fuzz.toml"); });
  if (!taken) return 0;
  // What a run keeps must read back to the same.
  const std::string kept = linnet::to_toml(config);
  if (linnet::to_toml(linnet::parse_config(kept, "kept.toml")) != kept) fuzz::finding("not read back the same", kept);
  return 0;
}
