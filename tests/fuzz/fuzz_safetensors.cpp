// Weights files. Memory: the header (c = 1), its entries (an entry of about 60 bytes of JSON becomes a map node of
// about 300, twice: header and contents) and the tensors (c = 1): 64 KiB + 24 x the input.
#include "fuzz.h"
#include "linnet/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  linnet::SafeTensors contents;
  const bool taken = fuzz::run(linnet::Exit::checkpoint, (64 << 10) + 24 * size, [&] {
    contents = linnet::parse_safetensors(fuzz::text(data, size), "fuzz.safetensors");
  });
  if (!taken) return 0;
  // What was read can be written, and reads back the same.
  const linnet::SafeTensorsBytes written = linnet::to_safetensors_bytes(contents, "again");
  std::string bytes = written.header;
  for (const std::string_view tensor : written.tensors) bytes += tensor;
  const linnet::SafeTensors again = linnet::parse_safetensors(bytes, "again");
  bool same = again.metadata == contents.metadata && again.tensors.size() == contents.tensors.size();
  for (const auto& [name, tensor] : contents.tensors) {
    const auto found = again.tensors.find(name);
    same = same && found != again.tensors.end() && found->second.dtype == tensor.dtype &&
           found->second.shape == tensor.shape && found->second.bytes == tensor.bytes;
  }
  if (!same) fuzz::finding("not read back the same", written.header);
  return 0;
}
