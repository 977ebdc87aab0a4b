// Labelled images in host memory, and the places they come from. A loader reads once; what follows (crop, flip,
// normalisation) happens on the backend, per batch (kernels/augment.h).
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace linnet {

enum class Split { train, test };

// n images, uint8, NHWC (pixel-interleaved), and one label in [0, classes) each.
struct Images {
  int height = 0, width = 0, channels = 0, classes = 0;
  std::vector<std::string> class_names;
  std::vector<uint8_t> pixels;
  std::vector<int32_t> labels;

  int64_t size() const { return int64_t(labels.size()); }
  int64_t image_bytes() const { return int64_t(height) * width * channels; }
};

// XXH3 over pixels and labels, 16 digits: whether these are the images of then.
std::string digest(const Images&);

// Per-channel mean and (population) standard deviation of pixel / 255, as torchvision's Normalize takes them. At least
// one image; the deviation of a constant channel is 0.
struct ChannelStats {
  std::vector<float> mean, std;
};
ChannelStats channel_stats(const Images&);

// One image as a PNG file.
std::string to_png(const Images&, int64_t index);
std::string to_png(const uint8_t* pixels, int height, int width, int channels);  // rows, channels last

// CIFAR-10 (https://www.cs.toronto.edu/~kriz/cifar.html, "binary version"). `path` may be the folder with
// data_batch_{1..5}.bin and test_batch.bin, a folder that holds cifar-10-batches-bin/, or cifar-10-binary.tar.gz
// itself. Every file must hold exactly 10,000 records of 3,073 bytes with labels below 10, in any order; anything else
// is an Error(Exit::data) that names the file, the byte or record, and what to do. The archive is read in place:
// nothing is written. Split::test reads only test_batch.bin of a folder, but always the whole of an archive.
Images load_cifar10(const std::filesystem::path& path, Split);

// CIFAR-100, likewise: train.bin (50,000 records of 3,074 bytes), test.bin (10,000) and the files of class names, in
// cifar-100-binary/ or cifar-100-binary.tar.gz. The labels are the 100 fine ones or the 20 coarse ones.
Images load_cifar100(const std::filesystem::path& path, Split, bool coarse = false);

// Ten classes of size x size colour images, each made from (seed, split, index) alone, in integers: the same bits
// everywhere. The class is the shape (disc, ring, star, ...) of the largest thing in the picture; its place, size,
// angle, colours and texture are random, over clutter and under noise, hard enough that depth and augmentation matter
// (docs/BENCHMARKS.md). Image i has label i % 10. size is 4 to 224.
Images make_synthetic(int64_t count, Split, uint64_t seed, int size = 32);

// All parts of a data set whose pictures come in one folder or file.
struct BadImage {
  std::string path, reason;
};
struct DataSet {
  Images train, val, test;
  std::vector<BadImage> skipped;  // pictures that could not be read
  int64_t passed_over = 0;        // files that are no .png, .jpg or .jpeg
};

// What pictures are made into. Colour becomes grey by ITU-R 601 (as in Pillow), grey becomes colour by repetition; an
// alpha channel is dropped.
struct PictureForm {
  int size = 32;     // height and width, 16 to 224
  int channels = 3;  // 1 or 3
  bool crop = true;  // the largest square of the middle; otherwise stretched
};

// A folder of pictures, a folder per class: PATH/CLASS/*.png (.jpg, .jpeg, deeper folders too), classes by name. Where
// PATH holds nothing but train/ and val/ or test/, these are the splits; a part that is not given is taken from the
// training pictures by a hash of CLASS/NAME, so that it stays the same when pictures are added.
//
// Pictures are decoded by `threads` confined processes (data/image_sandbox.cpp), or, with `trusted`, in this one. One
// that cannot be read is skipped and listed, or else an Error(Exit::data) lists them all. So are: fewer than two
// classes, a class without a training picture, a class of val/ or test/ that train/ does not have, more than 2,000,000
// files.
struct FolderOptions {
  PictureForm form;
  double val_share = 0.1, test_share = 0.1;
  bool skip_corrupt = false, trusted = false;
  int threads = 0;  // 0: as many as there are
};
DataSet load_image_folder(const std::filesystem::path& path, const FolderOptions&);

// Whether the name is that of a picture: .png, .jpg, .jpeg, in large letters or small.
bool is_picture(const std::filesystem::path&);

// One picture's file, in that form: its pixels, size x size x channels. `name` is what messages call it.
struct Decoded {
  int height = 0, width = 0;  // of the file
  std::vector<uint8_t> pixels;
};

// Decodes pictures one after another, in a confined process unless `trusted`. Error(Exit::data) as ImageSandbox says.
class PictureReader {
 public:
  explicit PictureReader(bool trusted);
  ~PictureReader();
  Decoded read(const std::filesystem::path&, const PictureForm&);
  Decoded decode(std::string_view bytes, const std::string& name, const PictureForm&);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A fixed random split of the indices 0..n-1 of n training samples, both parts in rising order; independent of the
// run's seed, so that runs with different seeds select on the same samples. 0 <= val_count < n, else an
// Error(Exit::usage).
struct HoldOut {
  std::vector<int32_t> train, val;
};
HoldOut hold_out(int64_t n, int64_t val_count);

// The samples at `indices`, in that order.
Images subset(const Images&, const std::vector<int32_t>& indices);

// ($XDG_CACHE_HOME or ~/.cache)/linnet, where downloads are kept; empty if neither variable names an absolute path.
std::filesystem::path cache_dir();

// Where CIFAR-10 lies on this machine: `configured` if not empty, else $LINNET_DATA, else cache_dir(); each may be the
// folder itself, a folder that holds it, or the archive. Returns a path for load_cifar10, or an empty path if there is
// nothing in the cache. A `configured` or $LINNET_DATA path without CIFAR-10, and an incomplete set of batches
// anywhere, is an Error(Exit::data).
std::filesystem::path find_cifar10(const std::filesystem::path& configured);
std::filesystem::path find_cifar100(const std::filesystem::path& configured);

// A file on the network, of known size and content.
struct Download {
  std::vector<std::string> urls;  // tried in this order
  int64_t size = 0;               // bytes
  std::string sha256;             // lower-case hexadecimal
  bool allow_http = false;        // for tests against a loopback server; else https only
};
Download cifar10_archive();
Download cifar100_archive();

// Fetches the file to `target` and returns that path; at once if `target` is there and has the right size and SHA-256.
// What has arrived is kept in TARGET.part, where a later call resumes; `target` appears whole and checked, by a rename.
// `progress(done, total)`, in bytes, is called a few times a second, also while nothing arrives; it may throw to stop.
// Errors: Exit::data if no URL delivers (each is named with its reason), Exit::checkpoint if the disk fails,
// Exit::locked if another process is fetching the same file.
std::filesystem::path download(const Download&, const std::filesystem::path& target,
                               const std::function<void(int64_t done, int64_t total)>& progress);

}  // namespace linnet
