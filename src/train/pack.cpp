#include "linnet/pack.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "linnet/error.h"
#include "linnet/safetensors.h"
#include "linnet/text.h"
#include "src/core/file.h"
#include "src/core/json.h"

namespace linnet {

namespace {

const std::string kFormat = "linnet pack 1";
constexpr uint64_t kMaxBytes = uint64_t(1) << 36;
constexpr int64_t kMaxSide = 224, kMaxClasses = 10'000;

template <class T>
StoredTensor stored(const char* dtype, std::vector<int64_t> shape, const std::vector<T>& values) {
  const char* at = reinterpret_cast<const char*>(values.data());
  return {dtype, std::move(shape), {at, at + values.size() * sizeof(T)}};
}

struct Named {
  const char* name;
  Images DataSet::*images;
};
constexpr Named kParts[] = {{"train", &DataSet::train}, {"val", &DataSet::val}, {"test", &DataSet::test}};

// What safetensors says of a file is said of a data file here: the exit code is another.
template <class F>
auto as_data_error(F f) {
  try {
    return f();
  } catch (const Error& e) {
    throw Error(Exit::data, e.what());
  }
}

class Reader {
 public:
  Reader(SafeTensors file, std::string origin) : file_(std::move(file)), origin_(std::move(origin)) {}

  Pack read() {
    if (text("format") != kFormat) refuse("its format is '{}', expected '{}'", escaped(text("format")), kFormat);
    Pack pack;
    classes_ = class_names();
    for (const auto& [name, images] : kParts) pack.set.*images = part(name);
    if (!file_.tensors.empty()) refuse("it has a tensor '{}' too many", escaped(file_.tensors.begin()->first));
    const Images& train = pack.set.train;
    if (train.size() == 0) refuse("it has no training images");
    for (const auto& [name, images] : kParts) {
      const Images& other = pack.set.*images;
      if (other.size() > 0 &&
          (other.height != train.height || other.width != train.width || other.channels != train.channels))
        refuse("its parts have images of different sizes");
    }
    pack.stats = {numbers("mean", train.channels), numbers("std", train.channels)};
    return pack;
  }

 private:
  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    fail(Exit::data, "{}: {}; write it anew with `linnet data pack`", origin_,
         fmt::format(format, std::forward<Args>(args)...));
  }

  const std::string& text(const std::string& key) const {
    const auto found = file_.metadata.find(key);
    if (found == file_.metadata.end()) refuse("not a pack: its metadata have no '{}'", key);
    return found->second;
  }

  std::vector<std::string> class_names() const {
    const Json json = parse_json(text("classes"), origin_, Exit::data);
    std::vector<std::string> names;
    if (json.is_array())
      for (const Json& name : json) {
        if (!name.is_string() || escaped(name.get<std::string>()) != name.get<std::string>())
          refuse("a class name is no printable text");
        names.push_back(name);
      }
    if (names.size() < 2 || int64_t(names.size()) > kMaxClasses)
      refuse("expected 2 to {} class names, got {}", kMaxClasses, names.size());
    return names;
  }

  std::vector<float> numbers(const std::string& key, int count) const {
    const Json json = parse_json(text(key), origin_, Exit::data);
    std::vector<float> values;
    if (json.is_array())
      for (const Json& value : json)
        if (value.is_number()) values.push_back(value.get<float>());
    if (int(values.size()) != count || !std::ranges::all_of(values, [](float v) { return std::isfinite(v); }))
      refuse("expected {} finite numbers as '{}'", count, key);
    return values;
  }

  StoredTensor take(const std::string& name, const std::string& dtype, size_t rank) {
    const auto node = file_.tensors.extract(name);
    if (!node || node.mapped().dtype != dtype || node.mapped().shape.size() != rank)
      refuse("expected a tensor '{}' of {} with {} dimensions", name, dtype, rank);
    return std::move(node.mapped());
  }

  Images part(const std::string& name) {
    const StoredTensor pixels = take(name + ".pixels", "U8", 4), labels = take(name + ".labels", "I32", 1);
    const auto& s = pixels.shape;
    const auto side = [](int64_t n) { return n >= 1 && n <= kMaxSide; };
    if (s[0] != labels.shape[0] || !side(s[1]) || !side(s[2]) || (s[3] != 1 && s[3] != 3))
      refuse("'{}': expected [n, 1 to 224, 1 to 224, 1 or 3] and n labels, got [{}] and {}", name, fmt::join(s, ","),
             labels.shape[0]);
    Images images{.height = int(s[1]),
                  .width = int(s[2]),
                  .channels = int(s[3]),
                  .classes = int(classes_.size()),
                  .class_names = classes_};
    images.pixels.assign(pixels.bytes.begin(), pixels.bytes.end());
    images.labels.resize(size_t(s[0]));
    if (!labels.bytes.empty()) std::memcpy(images.labels.data(), labels.bytes.data(), labels.bytes.size());
    for (const int32_t label : images.labels)
      if (label < 0 || label >= images.classes)
        refuse("'{}' has a label {}, expected 0 to {}", name, label, images.classes - 1);
    if (digest(images) != text("xxh3." + name))
      refuse("'{}' was damaged: its XXH3 is {}, expected {}", name, digest(images), escaped(text("xxh3." + name)));
    return images;
  }

  SafeTensors file_;
  std::string origin_;
  std::vector<std::string> classes_;
};

}  // namespace

void write_pack(const std::filesystem::path& path, const DataSet& set, const std::string& source) {
  const ChannelStats stats = channel_stats(set.train);
  SafeTensors file;
  file.metadata = {{"format", kFormat},
                   {"source", source},
                   {"classes", Json(set.train.class_names).dump()},
                   {"mean", Json(stats.mean).dump()},
                   {"std", Json(stats.std).dump()},
                   {"skipped", std::to_string(set.skipped.size())}};
  for (const auto& [name, part] : kParts) {
    const Images& images = set.*part;
    require(int64_t(images.pixels.size()) == images.size() * images.image_bytes(), "[pack] '{}' is not whole", name);
    file.tensors[std::string(name) + ".pixels"] =
        stored("U8", {images.size(), images.height, images.width, images.channels}, images.pixels);
    file.tensors[std::string(name) + ".labels"] = stored("I32", {images.size()}, images.labels);
    file.metadata[std::string("xxh3.") + name] = digest(images);
  }
  as_data_error([&] { write_safetensors(path, file); });
}

Pack read_pack(const std::filesystem::path& path) {
  return as_data_error([&] { return Reader(read_safetensors(path, kMaxBytes), path.string()).read(); });
}

Pack parse_pack(std::string_view bytes, const std::string& origin) {
  return as_data_error([&] { return Reader(parse_safetensors(bytes, origin), origin).read(); });
}

}  // namespace linnet
