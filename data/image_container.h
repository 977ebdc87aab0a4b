// Is this a whole PNG or JPEG file? stb_image (2.27 in Debian 12) takes much that is not: it looks at no checksum,
// returns what memory held where data is missing, and trusts the sizes of JPEG tables. So everything around the pixels
// is checked here first, without allocating more than a row of the image.
#pragma once
#include <cstdint>
#include <span>
#include <string>

namespace linnet {

constexpr int64_t kImageFileBytes = 64 << 20, kImageSide = 16384, kImagePixels = 1 << 26, kImageBytes = 256 << 20;

// Error(Exit::data) unless `bytes` are a whole PNG or JPEG within the limits of image.h.
void check_image_container(std::span<const char> bytes, const std::string& name);

}  // namespace linnet
