// Packs of images. XXH3 of each part would stop all that mutation makes, so a first try puts the right ones in. Memory:
// safetensors' own, and each part once more: 128 KiB + 40 x the input.
#include "fuzz.h"
#include "linnet/pack.h"
#include "linnet/safetensors.h"

namespace {

void read(std::string_view bytes, size_t size) {
  fuzz::run(linnet::Exit::data, (128 << 10) + 40 * size, [&] {
    const linnet::Pack pack = linnet::parse_pack(bytes, "fuzz.pack");
    const linnet::Images& train = pack.set.train;
    if (int64_t(train.pixels.size()) != train.size() * train.image_bytes() || train.size() < 1)
      fuzz::finding("a pack without its pixels", "");
  });
}

// The digest that a part has, if it has the form of one.
std::string digest_of(const linnet::SafeTensors& file, const std::string& part) {
  const auto pixels = file.tensors.find(part + ".pixels"), labels = file.tensors.find(part + ".labels");
  if (pixels == file.tensors.end() || labels == file.tensors.end()) return "";
  linnet::Images images;
  images.pixels.assign(pixels->second.bytes.begin(), pixels->second.bytes.end());
  for (size_t i = 0; i + 4 <= labels->second.bytes.size(); i += 4) {
    int32_t label = 0;
    for (size_t k = 0; k < 4; ++k) label |= int32_t(uint32_t(uint8_t(labels->second.bytes[i + k])) << (8 * k));
    images.labels.push_back(label);
  }
  return linnet::digest(images);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  read(fuzz::text(data, size), size);
  linnet::SafeTensors file;
  try {
    file = linnet::parse_safetensors(fuzz::text(data, size), "fuzz.pack");
    for (const char* part : {"train", "val", "test"})
      file.metadata[std::string("xxh3.") + part] = digest_of(file, part);
    const linnet::SafeTensorsBytes written = linnet::to_safetensors_bytes(file, "again");
    std::string bytes = written.header;
    for (const std::string_view tensor : written.tensors) bytes += tensor;
    read(bytes, bytes.size());
  } catch (const linnet::Error&) {  // no safetensors: fuzz_safetensors looks at those
  }
  return 0;
}
