// PNG by stb_image_write.
#include "linnet/dataset.h"
#include "linnet/error.h"

#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#define STBI_WRITE_NO_STDIO
#include <stb/stb_image_write.h>

namespace linnet {

std::string to_png(const uint8_t* pixels, int height, int width, int channels) {
  std::string png;
  const auto append = [](void* to, void* bytes, int size) {
    static_cast<std::string*>(to)->append(static_cast<const char*>(bytes), size_t(size));
  };
  if (!stbi_write_png_to_func(append, &png, width, height, channels, pixels, width * channels))
    fail(Exit::device, "[to_png] no memory for a picture of {} x {}", width, height);
  return png;
}

std::string to_png(const Images& images, int64_t index) {
  require(index >= 0 && index < images.size(), "[to_png] expected an index below {}, got {}", images.size(), index);
  return to_png(images.pixels.data() + index * images.image_bytes(), images.height, images.width, images.channels);
}

}  // namespace linnet
