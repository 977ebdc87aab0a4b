// Pictures as files, for tests.
#pragma once
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#define STB_IMAGE_WRITE_STATIC
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STBI_WRITE_NO_STDIO
#include <stb/stb_image_write.h>

namespace linnet {

inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

// height x width x channels bytes.
inline std::string png_of(int height, int width, int channels, const std::vector<uint8_t>& pixels) {
  std::string png;
  stbi_write_png_to_func(
      [](void* out, void* data, int n) { static_cast<std::string*>(out)->append(static_cast<char*>(data), size_t(n)); },
      &png, width, height, channels, pixels.data(), width * channels);
  return png;
}

// A square of one colour.
inline std::string plain_png(int size, uint8_t r, uint8_t g, uint8_t b) {
  std::vector<uint8_t> pixels;
  for (int i = 0; i < size * size; ++i) pixels.insert(pixels.end(), {r, g, b});
  return png_of(size, size, 3, pixels);
}

// `count` pictures in `classes` class folders, in the colour of their class and number.
inline void write_classes(const std::filesystem::path& root, int classes, int count, int size = 20) {
  for (int i = 0; i < classes * count; ++i)
    write_bytes(root / ("class" + std::to_string(i % classes)) / (std::to_string(i) + ".png"),
                plain_png(size, uint8_t(20 * (i % classes)), uint8_t(i), uint8_t(200 - i)));
}

}  // namespace linnet
