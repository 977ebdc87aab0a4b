// PNG and JPEG: the check of the container, then stb_image. Mutation would never get past a PNG's checksums, so they
// are made right first, and a chunk "raw!" becomes an IDAT of its bytes packed by zlib.
//
// Memory: decoded is at most 2000 x the file or 1 MiB; the decoder holds up to 12 times that (16-bit samples, the
// coefficients of a progressive JPEG, planes, the copy that is handed out), a JPEG's planes at least 32 x 16384 samples
// of each component: 32 MiB + 12 x max(1 MiB, 2000 x the input), at most 3 GiB. Then the picture is brought to a net's
// size, which takes another copy and the resizer's rows.
#include <zlib.h>

#include <algorithm>
#include <string>

#include "data/image.h"
#include "fuzz.h"
#include "linnet/dataset.h"

namespace {

std::string be32(uint32_t n) { return {char(n >> 24), char(n >> 16), char(n >> 8), char(n)}; }

std::string repaired(const std::string& png) {
  std::string out = png.substr(0, 8);
  for (size_t at = 8; at + 12 <= png.size();) {
    const auto byte = [&](size_t i) { return uint32_t(uint8_t(png[at + i])); };
    const size_t length = byte(0) << 24 | byte(1) << 16 | byte(2) << 8 | byte(3);
    if (length > png.size() - at - 12) return out + png.substr(at);
    std::string typed = png.substr(at + 4, 4 + length);
    if (typed.starts_with("raw!")) {
      uLongf size = compressBound(length);
      std::string packed(size, '\0');
      compress2(reinterpret_cast<Bytef*>(packed.data()), &size, reinterpret_cast<const Bytef*>(typed.data() + 4),
                length, 1);
      typed = "IDAT" + packed.substr(0, size);
    }
    out += be32(uint32_t(typed.size() - 4)) + typed +
           be32(uint32_t(crc32_z(0, reinterpret_cast<const Bytef*>(typed.data()), typed.size())));
    at += 12 + length;
  }
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string image(fuzz::text(data, size));
  if (image.starts_with("\x89PNG\r\n\x1a\n")) image = repaired(image);
  const size_t limit =
      std::min<size_t>((32 << 20) + 12 * std::max<size_t>(1 << 20, 2000 * image.size()), size_t(3) << 30);
  const bool taken = fuzz::run(linnet::Exit::data, limit, [&] {
    const linnet::Image decoded = linnet::decode_image(image, "fuzz.img");
    if (decoded.pixels.size() != size_t(decoded.height) * size_t(decoded.width) * size_t(decoded.channels))
      fuzz::finding("an image without its pixels", "");
  });
  if (!taken) return 0;  // nothing is left that could differ
  static linnet::PictureReader reader(true);
  for (const bool crop : {true, false})
    fuzz::run(linnet::Exit::data, limit + (64 << 20), [&] {
      const linnet::PictureForm form{.size = 16, .channels = crop ? 3 : 1, .crop = crop};
      if (reader.decode(image, "fuzz.img", form).pixels.size() != size_t(16 * 16 * form.channels))
        fuzz::finding("a picture of another size", "");
    });
  return 0;
}
