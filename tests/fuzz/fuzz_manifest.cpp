// A checkpoint's MANIFEST.json. Its own SHA-256 at the end would stop all that mutation makes, so the target writes the
// right one behind the input; the input without it is tried too. Memory: nlohmann's tree takes about 20 times the text:
// 256 KiB + 64 x the input.
#include "fuzz.h"
#include "src/core/digest.h"
#include "src/core/json.h"
#include "src/train/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string body(fuzz::text(data, size));
  const size_t limit = (256 << 10) + 64 * size;
  fuzz::run(linnet::Exit::checkpoint, limit, [&] { linnet::parse_json(body, "state.json", linnet::Exit::checkpoint); });
  fuzz::run(linnet::Exit::checkpoint, limit, [&] { linnet::parse_manifest(body, "MANIFEST.json"); });

  linnet::Manifest manifest;
  const std::string sealed = body + ",\"sha256\":\"" + linnet::sha256(body) + "\"}\n";
  const bool taken =
      fuzz::run(linnet::Exit::checkpoint, limit, [&] { manifest = linnet::parse_manifest(sealed, "MANIFEST.json"); });
  if (!taken) return 0;
  const std::string written = linnet::to_text(manifest);
  if (linnet::to_text(manifest = linnet::parse_manifest(written, "again")) != written)
    fuzz::finding("not read back the same", written);
  return 0;
}
