// stb_image behind Linnet's own check of the file. The only file that knows stb.
#include "image.h"

#include <cstdlib>
#include <cstring>
#include <memory>

#include "image_container.h"
#include "linnet/error.h"
#include "linnet/text.h"

namespace {
// Not an abort: what stb asserts must not end the program on someone's image.
void stb_assert(bool holds) {
  if (!holds) linnet::fail(linnet::Exit::data, "an image that stb_image has no rule for");
}
}  // namespace

// Zeroed memory: where damaged data leaves pixels out, they are black, not what was there before.
#define STBI_MALLOC(size) std::calloc(1, size)
#define STBI_REALLOC(block, size) std::realloc(block, size)
#define STBI_FREE(block) std::free(block)
#define STBI_ASSERT(condition) stb_assert(condition)
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_NO_STDIO
#define STBI_MAX_DIMENSIONS 16384
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>

namespace linnet {

Image decode_image(std::span<const char> bytes, const std::string& name) {
  check_image_container(bytes, name);
  Image image;
  const std::unique_ptr<stbi_uc, void (*)(void*)> pixels(
      stbi_load_from_memory(reinterpret_cast<const stbi_uc*>(bytes.data()), int(bytes.size()), &image.width,
                            &image.height, &image.channels, 0),
      stbi_image_free);
  if (!pixels)
    fail(Exit::data, "{}: cannot be decoded ({}); the image is damaged: save it anew or remove it", escaped(name),
         escaped(stbi_failure_reason()));
  image.pixels.assign(pixels.get(), pixels.get() + size_t(image.width) * size_t(image.height) * size_t(image.channels));
  return image;
}

}  // namespace linnet
