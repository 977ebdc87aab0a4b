#include "self_test.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <string>

#include "digest.h"
#include "linnet/error.h"

namespace linnet {
namespace {

// A float whose bits only the running program knows: the compiler cannot work the answers out beforehand.
float float_of(uint32_t bits) {
  volatile uint32_t stored = bits;
  return std::bit_cast<float>(uint32_t(stored));
}

}  // namespace

void self_test() {
  constexpr uint32_t kNan = 0x7fc00000, kInfinity = 0x7f800000, kLargest = 0x7f7fffff;
  const float nan = float_of(kNan), infinity = float_of(kInfinity), largest = float_of(kLargest);
  const bool sees = !std::isfinite(nan) && std::isnan(nan) && nan != nan && !(nan <= 1.0f) &&
                    !std::isfinite(infinity) && !std::isfinite(-infinity) && std::isfinite(largest) &&
                    !std::isnan(infinity);
  if (!sees)
    fail(Exit::failure,
         "this build of Linnet cannot tell a NaN from a number, so that no check of a training run means anything: "
         "build it anew without -ffast-math and -Ofast");
  // Long enough for the vector loop and its block end; the answer is that of Python's xxhash.
  std::string bytes;
  for (int i = 0; i < 2000; ++i) bytes += char(i * 7);
  const std::string expected = "722d2951c85a4d14e4a112bbea5308a7", got = xxh3(bytes);
  if (got != expected)
    fail(Exit::failure, "the checksum XXH3 is wrong on this machine: expected {}, got {}; every checkpoint would be",
         expected, got);
}

}  // namespace linnet
