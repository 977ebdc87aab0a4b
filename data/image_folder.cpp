// Folders of pictures, and what a picture becomes before a net sees it.
#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include "image.h"
#include "linnet/dataset.h"
#include "linnet/error.h"
#include "linnet/text.h"
#include "linnet/threads.h"
#include "src/core/file.h"

#define STB_IMAGE_RESIZE_STATIC
#define STB_IMAGE_RESIZE_IMPLEMENTATION
#include <stb/stb_image_resize.h>

namespace linnet {
namespace fs = std::filesystem;
namespace {

constexpr size_t kMaxFiles = 2'000'000, kMaxClasses = 10'000, kMostListed = 50;
constexpr uint64_t kFileBytes = 64 << 20;

// ---- One picture
// -----------------------------------------------------------------------------------------------------

// Pillow's convert("L").
uint8_t grey_of(const uint8_t* p) { return uint8_t((19595u * p[0] + 38470u * p[1] + 7471u * p[2] + 0x8000u) >> 16); }

std::vector<uint8_t> with_channels(const Image& image, int channels) {
  const size_t pixels = size_t(image.height) * size_t(image.width), from = size_t(image.channels);
  std::vector<uint8_t> out(pixels * size_t(channels));
  for (size_t i = 0; i < pixels; ++i) {
    const uint8_t* in = image.pixels.data() + i * from;
    if (channels == 1)
      out[i] = from < 3 ? in[0] : grey_of(in);
    else
      for (size_t c = 0; c < 3; ++c) out[i * 3 + c] = in[from < 3 ? 0 : c];
  }
  return out;
}

Decoded in_form(const Image& image, const PictureForm& form) {
  Decoded out{image.height, image.width, {}};
  std::vector<uint8_t> pixels = with_channels(image, form.channels);
  int height = image.height, width = image.width, top = 0, left = 0;
  if (form.crop) {
    const int side = std::min(height, width);
    top = (height - side) / 2, left = (width - side) / 2;
    height = width = side;
  }
  const int row = image.width * form.channels;
  const uint8_t* first = pixels.data() + size_t(top) * size_t(row) + size_t(left) * size_t(form.channels);
  const size_t out_row = size_t(form.size) * size_t(form.channels);
  out.pixels.resize(size_t(form.size) * out_row);
  if (height == form.size && width == form.size) {  // as it is: the filters would change it even so
    for (int y = 0; y < height; ++y)
      std::copy_n(first + size_t(y) * size_t(row), out_row, out.pixels.data() + size_t(y) * out_row);
    return out;
  }
  // stb's filters: Mitchell for smaller, Catmull-Rom for larger.
  if (!stbir_resize_uint8(first, width, height, row, out.pixels.data(), form.size, form.size, 0, form.channels))
    throw std::bad_alloc();
  return out;
}

// ---- The files
// -------------------------------------------------------------------------------------------------------

struct File {
  fs::path path;
  std::string name;  // CLASS/NAME
  int32_t label = 0;
  enum class Part { train, val, test } part = Part::train;
};
using Part = File::Part;

bool is_hidden(const fs::path& path) { return path.filename().string().starts_with("."); }

}  // namespace

bool is_picture(const fs::path& path) {
  std::string end = path.extension().string();
  std::ranges::transform(end, end.begin(), [](unsigned char c) { return char(std::tolower(c)); });
  return end == ".png" || end == ".jpg" || end == ".jpeg";
}

namespace {

std::vector<fs::path> folders_in(const fs::path& path) {
  std::error_code error;
  std::vector<fs::path> found;
  for (fs::directory_iterator at(path, error), end; !error && at != end; at.increment(error))
    if (at->is_directory(error) && !is_hidden(at->path())) found.push_back(at->path());
  if (error) fail(Exit::data, "cannot read the folder {}: {}", path.string(), error.message());
  std::ranges::sort(found);
  return found;
}

struct Listing {
  std::vector<File> files;
  std::vector<std::string> classes;
  bool has_val = false, has_test = false;
  int64_t passed_over = 0;
};

// The pictures below a split's folder; a class that is new is taken up only if `may_add`.
void list_part(const fs::path& root, Part part, bool may_add, Listing& listing) {
  for (const fs::path& folder : folders_in(root)) {
    const std::string name = folder.filename().string();
    if (escaped(name) != name)
      fail(Exit::data, "{}: the class folder '{}' has unprintable characters in its name; rename it", root.string(),
           escaped(name));
    auto known = std::ranges::find(listing.classes, name);
    if (known == listing.classes.end()) {
      if (!may_add)
        fail(Exit::data, "{}: the training pictures have no class '{}'; expected the classes of train/", root.string(),
             escaped(name));
      known = listing.classes.insert(known, name);
    }
    const auto label = int32_t(known - listing.classes.begin());
    std::error_code error;
    std::vector<File> found;
    for (fs::recursive_directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
      if (is_hidden(at->path())) {
        if (at->is_directory(error)) at.disable_recursion_pending();
      } else if (!at->is_directory(error)) {
        if (is_picture(at->path()))  // also what only has the name of one: it is told with the pictures that are bad
          found.push_back({at->path(), fs::path(at->path()).lexically_relative(root).generic_string(), label, part});
        else
          ++listing.passed_over;
      }
      if (listing.files.size() + found.size() > kMaxFiles)
        fail(Exit::data, "{}: expected at most {} pictures, got more", root.string(), kMaxFiles);
    }
    if (error) fail(Exit::data, "cannot read the folder {}: {}", folder.string(), error.message());
    std::ranges::sort(found, {}, &File::name);
    listing.files.insert(listing.files.end(), found.begin(), found.end());
  }
}

Listing list_files(const fs::path& path) {
  if (!fs::is_directory(path))
    fail(Exit::data, "{}: no such folder; expected one with a folder of pictures per class", path.string());
  std::set<std::string> names;
  for (const fs::path& folder : folders_in(path)) names.insert(folder.filename().string());
  const bool given = names.contains("train") && names.size() > 1 && std::ranges::all_of(names, [](const auto& name) {
                       return name == "train" || name == "val" || name == "test";
                     });
  Listing listing{.has_val = given && names.contains("val"), .has_test = given && names.contains("test")};
  list_part(given ? path / "train" : path, Part::train, true, listing);
  if (listing.has_val) list_part(path / "val", Part::val, false, listing);
  if (listing.has_test) list_part(path / "test", Part::test, false, listing);
  if (listing.classes.size() < 2 || listing.classes.size() > kMaxClasses)
    fail(Exit::data, "{}: expected 2 to {} classes, a folder of .png or .jpg files for each, got {}", path.string(),
         kMaxClasses, listing.classes.size());
  return listing;
}

// In [0, 1), by the name alone: a picture stays in its part when others come and go.
double place_of(const std::string& name) { return double(XXH3_64bits(name.data(), name.size()) >> 11) * 0x1p-53; }

void split_by_hash(Listing& listing, const FolderOptions& o) {
  const double test = listing.has_test ? 0 : o.test_share, val = listing.has_val ? 0 : o.val_share;
  for (File& file : listing.files) {
    if (file.part != Part::train) continue;
    const double place = place_of(file.name);
    if (place < test + val) file.part = place < test ? Part::test : Part::val;
  }
}

[[noreturn]] void refuse(const fs::path& path, const std::vector<BadImage>& bad) {
  std::string list;
  for (size_t i = 0; i < std::min(bad.size(), kMostListed); ++i) list += "\n  " + bad[i].reason;
  if (bad.size() > kMostListed) list += fmt::format("\n  and {} more", bad.size() - kMostListed);
  fail(Exit::data,
       "{}: {} of its pictures cannot be read; remove them, or leave them out with data.corrupt = \"skip\":{}",
       path.string(), bad.size(), list);
}

Images part_of(Part part, const Listing& listing, const std::vector<uint8_t>& pixels,
               const std::vector<std::string>& bad, const PictureForm& form) {
  Images images{.height = form.size,
                .width = form.size,
                .channels = form.channels,
                .classes = int(listing.classes.size()),
                .class_names = listing.classes};
  const auto bytes = int64_t(images.image_bytes());
  for (size_t i = 0; i < listing.files.size(); ++i) {
    if (listing.files[i].part != part || !bad[i].empty()) continue;
    const auto first = pixels.begin() + int64_t(i) * bytes;
    images.pixels.insert(images.pixels.end(), first, first + bytes);
    images.labels.push_back(listing.files[i].label);
  }
  return images;
}

}  // namespace

// ---- PictureReader
// ---------------------------------------------------------------------------------------------------

struct PictureReader::State {
  std::optional<ImageSandbox> sandbox;
};

PictureReader::PictureReader(bool trusted) : state_(std::make_unique<State>()) {
  if (trusted) return;
  state_->sandbox.emplace();
  state_->sandbox->prepare();
}
PictureReader::~PictureReader() = default;

Decoded PictureReader::decode(std::string_view bytes, const std::string& name, const PictureForm& form) {
  require(form.size >= 1 && form.size <= 224 && (form.channels == 1 || form.channels == 3),
          "[picture] expected a size of 1 to 224 and 1 or 3 channels, got {} and {}", form.size, form.channels);
  const std::span<const char> span(bytes.data(), bytes.size());
  return in_form(state_->sandbox ? state_->sandbox->decode(span, name) : decode_image(span, name), form);
}

Decoded PictureReader::read(const fs::path& path, const PictureForm& form) {
  return decode(read_file(path, kFileBytes, Exit::data), path.string(), form);
}

DataSet load_image_folder(const fs::path& path, const FolderOptions& o) {
  Listing listing = list_files(path);
  split_by_hash(listing, o);

  // The confined processes are started before the threads are.
  const int threads = o.threads > 0 ? o.threads : default_threads();
  std::vector<std::unique_ptr<PictureReader>> readers;
  for (int t = 0; t < threads; ++t) readers.push_back(std::make_unique<PictureReader>(o.trusted));
  ThreadPool pool(threads);
  const size_t bytes = size_t(o.form.size) * size_t(o.form.size) * size_t(o.form.channels);
  std::vector<uint8_t> pixels(listing.files.size() * bytes);
  std::vector<std::string> bad(listing.files.size());
  pool.run(int64_t(listing.files.size()), [&](int64_t i, int thread) {
    const File& file = listing.files[size_t(i)];
    try {
      const Decoded picture = readers[size_t(thread)]->read(file.path, o.form);
      std::ranges::copy(picture.pixels, pixels.begin() + i * int64_t(bytes));
    } catch (const Error& error) {
      if (error.exit != Exit::data) throw;
      bad[size_t(i)] = error.what();
    }
  });

  DataSet set{.passed_over = listing.passed_over};
  for (size_t i = 0; i < bad.size(); ++i)
    if (!bad[i].empty()) set.skipped.push_back({listing.files[i].path.string(), bad[i]});
  if (!set.skipped.empty() && !o.skip_corrupt) refuse(path, set.skipped);
  set.train = part_of(Part::train, listing, pixels, bad, o.form);
  set.val = part_of(Part::val, listing, pixels, bad, o.form);
  set.test = part_of(Part::test, listing, pixels, bad, o.form);
  for (size_t c = 0; c < listing.classes.size(); ++c)
    if (std::ranges::find(set.train.labels, int32_t(c)) == set.train.labels.end())
      fail(Exit::data,
           "{}: the class '{}' has no training picture (.png, .jpg) that can be read; add some, remove its folder, or "
           "lower data.val_share and data.test_share",
           path.string(), escaped(listing.classes[c]));
  return set;
}

}  // namespace linnet
