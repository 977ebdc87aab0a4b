// PNG and JPEG images in memory to pixels. A file that is cut off, damaged or larger than the limits is an
// Error(Exit::data) that names the image, what was expected and what came; never half a picture.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace linnet {

// One image: height x width x channels bytes, the channels of a pixel side by side. 1 grey, 2 grey + alpha, 3 RGB,
// 4 RGBA; 16-bit images come as their upper 8 bits.
struct Image {
  int height = 0, width = 0, channels = 0;
  std::vector<uint8_t> pixels;
};

// `name` is what messages call the image. Limits (they hold before anything is allocated): the file 64 MiB, each side 1
// to 16384, 2^26 pixels, 256 MiB decoded, and 2000 times the file unless that is below 1 MiB. A PNG must be whole to
// its checksums. A JPEG has none: damage inside its compressed data can go unseen, a cut cannot.
Image decode_image(std::span<const char> bytes, const std::string& name);

// The same in a child process that can only compute: no file, no network, no other process, and an end to its memory
// and processor time. For folders that are not trusted. Where the child crashes, is killed or takes more than about a
// second of processor time (1 to 2 s), that image is an Error(Exit::data); the next gets a new child. One that neither
// answers nor uses up its processor time within `wait_seconds` stands still for no fault of the image: a second child
// is asked, and then it is an Error(Exit::failure), so that no picture is left out for it. A child lives on from image
// to image, so one that was taken over could forge later pixels, but nothing else. Not for two threads at once; use it
// before other threads are started or not at all where a library (CUDA) forbids fork.
class ImageSandbox {
 public:
  using Decode = Image (*)(std::span<const char> bytes, const std::string& name);
  explicit ImageSandbox(Decode decode = decode_image, int wait_seconds = 60)
      : decode_(decode), wait_seconds_(wait_seconds) {}
  ~ImageSandbox() { stop(); }
  ImageSandbox(const ImageSandbox&) = delete;
  ImageSandbox& operator=(const ImageSandbox&) = delete;

  Image decode(std::span<const char> bytes, const std::string& name);
  // Starts the child now; otherwise the first image does.
  void prepare() {
    if (worker_ < 0) start();
  }
  pid_t worker() const { return worker_; }  // -1: none is running

 private:
  // What comes first is false or nullopt where the child stood still.
  bool start();
  std::optional<Image> decode_once(std::span<const char> bytes, const std::string& name);
  int stop();  // the status as waitpid gives it

  Decode decode_;
  int wait_seconds_;  // for one read or write; a busy machine may be slow
  pid_t worker_ = -1;
  int socket_ = -1;
};

}  // namespace linnet
