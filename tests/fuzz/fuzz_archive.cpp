// CIFAR-10's archive reader: tar by libarchive, gzip by zlib. A tar is tried as it is and, with the checksum of every
// header made right, once more. Memory: zlib's and libarchive's buffers, 2 MiB, and 3 x what gzip can make of the input
// (1032 times), at most the reader's own limit of 185 MB unpacked, of which it keeps a batch and its images.
#include <algorithm>
#include <cstring>

#include "fuzz.h"
#include "linnet/dataset.h"

namespace {

// tar(5): octal digits at byte 148 of each 512-byte header, over the header with those as blanks.
std::string with_checksums(std::string tar) {
  for (size_t at = 0; at + 512 <= tar.size(); at += 512) {
    char* const header = tar.data() + at;
    if (std::memcmp(header + 257, "ustar", 5) != 0) continue;
    std::memset(header + 148, ' ', 8);
    unsigned sum = 0;
    for (int i = 0; i < 512; ++i) sum += uint8_t(header[i]);
    std::snprintf(header + 148, 8, "%06o", sum);
  }
  return tar;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::File file("archive.tar.gz");
  const std::string input(fuzz::text(data, size));
  const bool packed = size > 1 && data[0] == 0x1f && data[1] == 0x8b;
  const size_t unpacked = packed ? std::min<size_t>(1032 * size, 62 << 20) : size;
  for (const std::string& tar : {input, with_checksums(input)}) {
    file.set(tar);
    fuzz::run(linnet::Exit::data, (4 << 20) + 3 * unpacked,
              [&] { linnet::load_cifar10(file.path(), linnet::Split::test); });
    if (packed || with_checksums(input) == input) break;
  }
  return 0;
}
