#include "linnet/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <string_view>

#include "linnet/error.h"
#include "linnet/text.h"
#include "src/core/file.h"
#include "src/core/json.h"

namespace linnet {
namespace fs = std::filesystem;
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors holds little-endian numbers");

constexpr uint64_t kMaxHeader = 16 << 20;  // bytes
constexpr size_t kMaxTensors = 100'000, kMaxMetadata = 10'000, kMaxName = 256, kMaxRank = 8;
constexpr int64_t kMaxDim = int64_t(1) << 40;
const std::string kMetadata = "__metadata__";

struct ElementType {
  std::string_view name;
  int64_t bytes;
};
constexpr ElementType kTypes[] = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},
                                  {"I32", 4}, {"I16", 2}, {"I8", 1},  {"U8", 1},   {"BOOL", 1}};

const ElementType* find_type(std::string_view name) {
  const auto* type = std::ranges::find(kTypes, name, &ElementType::name);
  return type == std::end(kTypes) ? nullptr : type;
}

template <class... Args>
[[noreturn]] void refuse(const std::string& file, fmt::format_string<Args...> format, Args&&... args) {
  fail(Exit::checkpoint, "{}: {}", file, fmt::format(format, std::forward<Args>(args)...));
}

// A tensor's own rules, for writing and reading alike. Its size must be right and `bytes` must be just that.
void check_tensor(const std::string& file, const std::string& name, const std::string& dtype,
                  const std::vector<int64_t>& shape, uint64_t bytes) {
  const std::string tensor = fmt::format("tensor '{}'", escaped(name));
  // escaped() leaves alone what is printable UTF-8; `/..` keeps a name from being a path that leads out of a folder.
  if (name.empty() || name.size() > kMaxName || escaped(name, 2 * kMaxName) != name)
    refuse(file, "{}: expected a name of 1 to {} printable bytes, got {} bytes", tensor, kMaxName, name.size());
  if (name == kMetadata || ("/" + name).find("/..") != std::string::npos)
    refuse(file, "{}: expected a name other than {} and without the folder '..'", tensor, kMetadata);
  const ElementType* type = find_type(dtype);
  if (!type)
    refuse(file, "{}: expected one of the types F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL, got '{}'", tensor,
           escaped(dtype));
  if (shape.size() > kMaxRank)
    refuse(file, "{}: expected at most {} dimensions, got {}", tensor, kMaxRank, shape.size());

  // The product without the zeros must fit too: who multiplies in another order meets it.
  int64_t product = type->bytes;
  bool empty = false;
  for (const int64_t dim : shape) {
    if (dim < 0 || dim > kMaxDim || __builtin_mul_overflow(product, std::max<int64_t>(dim, 1), &product))
      refuse(file, "{}: expected dimensions of 0 to 2^40 and a size below 2^63 bytes, got [{}]", tensor,
             fmt::join(shape, ","));
    empty = empty || dim == 0;
  }
  const uint64_t expected = empty ? 0 : uint64_t(product);
  if (bytes != expected)
    refuse(file, "{}: expected {} bytes for {} [{}], got {}", tensor, expected, dtype, fmt::join(shape, ","), bytes);
}

struct Entry {
  std::optional<std::string> dtype;
  std::optional<std::vector<int64_t>> shape;
  std::optional<std::vector<uint64_t>> offsets;  // begin and end, counted from the end of the header
};

struct Header {
  std::map<std::string, Entry> tensors;
  std::map<std::string, std::string> metadata;
};

// Receives the header piece by piece: a tree of 100,000 tensors would take many times the header's memory. Only the
// nesting of the format itself is followed, so no input makes this deep.
class HeaderReader : public JsonEvents {
 public:
  explicit HeaderReader(const std::string& file) : JsonEvents(file, Exit::checkpoint), file_(file) {}
  Header header;

  bool start_object(size_t) override {
    if (in_ == In::file) return enter(In::header);
    if (in_ == In::header) return enter(name_ == kMetadata ? In::metadata : In::tensor);
    unexpected("an object");
  }
  bool end_object() override {
    if (in_ == In::tensor && !(entry_->dtype && entry_->shape && entry_->offsets)) unexpected("the end of the tensor");
    return enter(in_ == In::header ? In::file : In::header);
  }
  bool start_array(size_t) override {
    if (in_ == In::tensor && field_ == "shape") {
      entry_->shape.emplace();
      return enter(In::shape);
    }
    if (in_ == In::tensor && field_ == "data_offsets") {
      entry_->offsets.emplace();
      return enter(In::offsets);
    }
    unexpected("an array");
  }
  bool end_array() override {
    if (in_ == In::offsets && entry_->offsets->size() != 2) unexpected("only one");
    return enter(In::tensor);
  }

  bool key(std::string& key) override {
    if (in_ == In::header) return tensor_key(key);
    if (in_ == In::metadata) return metadata_key(key);
    const bool repeated = (key == "dtype" && entry_->dtype) || (key == "shape" && entry_->shape) ||
                          (key == "data_offsets" && entry_->offsets);
    if (repeated || (key != "dtype" && key != "shape" && key != "data_offsets"))
      unexpected(fmt::format("{} field '{}'", repeated ? "a second" : "the", escaped(key)));
    field_ = key;
    return true;
  }
  bool string(std::string& value) override {
    if (in_ == In::metadata) {
      header.metadata[field_] = value;
    } else if (in_ == In::tensor && field_ == "dtype") {
      entry_->dtype = value;
    } else {
      unexpected("a string");
    }
    return true;
  }
  bool number_unsigned(uint64_t value) override {
    if (in_ == In::shape && entry_->shape->size() < kMaxRank && value <= uint64_t(kMaxDim)) {
      entry_->shape->push_back(int64_t(value));
    } else if (in_ == In::offsets && entry_->offsets->size() < 2) {
      entry_->offsets->push_back(value);
    } else {
      unexpected(fmt::format("the number {}", value));
    }
    return true;
  }

  bool number_integer(int64_t value) override { unexpected(fmt::format("the number {}", value)); }
  bool number_float(double, const std::string& text) override { unexpected("the number " + escaped(text)); }
  bool boolean(bool value) override { unexpected(value ? "true" : "false"); }
  bool null() override { unexpected("null"); }

 private:
  enum class In { file, header, metadata, tensor, shape, offsets };

  bool enter(In in) {
    in_ = in;
    return true;
  }
  bool tensor_key(const std::string& name) {
    name_ = name;
    if (name == kMetadata) {
      if (std::exchange(has_metadata_, true)) refuse(file_, "expected {} once, got a second", kMetadata);
      return true;
    }
    const auto [at, added] = header.tensors.try_emplace(name);
    if (!added) refuse(file_, "expected each tensor once, got a second '{}'", escaped(name));
    if (header.tensors.size() > kMaxTensors) refuse(file_, "expected at most {} tensors, got more", kMaxTensors);
    entry_ = &at->second;
    return true;
  }
  bool metadata_key(const std::string& key) {
    field_ = key;
    if (!header.metadata.try_emplace(key).second) refuse(file_, "{}: got '{}' twice", kMetadata, escaped(key));
    if (header.metadata.size() > kMaxMetadata)
      refuse(file_, "{}: expected at most {} strings, got more", kMetadata, kMaxMetadata);
    return true;
  }

  [[noreturn]] void unexpected(const std::string& got) const {
    const std::string tensor = fmt::format("tensor '{}'", escaped(name_));
    switch (in_) {
      case In::file:
        refuse(file_, "expected one JSON object as the header, got {}", got);
      case In::header:
        refuse(file_, "{}: expected an object, got {}", tensor, got);
      case In::metadata:
        refuse(file_, "{} '{}': expected a string, got {}", kMetadata, escaped(field_), got);
      case In::tensor:
        refuse(file_, "{}: expected a string dtype, a shape and two data_offsets, once each and nothing else, got {}",
               tensor, got);
      case In::shape:
        refuse(file_, "{}: shape: expected at most {} whole numbers from 0 to 2^40, got {}", tensor, kMaxRank, got);
      case In::offsets:
        refuse(file_, "{}: data_offsets: expected two whole numbers, got {}", tensor, got);
    }
    refuse(file_, "the header is not understood");
  }

  const std::string& file_;
  In in_ = In::file;
  Entry* entry_ = nullptr;    // of the tensor that is being read
  std::string name_, field_;  // of the tensor, and of its field or of the metadata string
  bool has_metadata_ = false;
};

// Where the bytes come from: a file or memory.
struct Source {
  uint64_t size;
  std::function<void(uint64_t offset, std::span<char> out)> read;
};

// The length in the first 8 bytes; it may count on no byte that the file does not have.
uint64_t header_length(const Source& source, const std::string& file) {
  if (source.size < 10) refuse(file, "expected a safetensors file of at least 10 bytes, got {}", source.size);
  char bytes[8];
  source.read(0, bytes);
  uint64_t length;
  std::memcpy(&length, bytes, sizeof length);
  const uint64_t most = std::min(kMaxHeader, source.size - 8);
  if (length < 2 || length > most)
    refuse(file, "expected a safetensors header of 2 to {} bytes, got {}; the file is cut off or of another kind", most,
           length);
  return length;
}

Header parse_header(const std::string& text, const std::string& file) {
  if (text[0] != '{') refuse(file, "expected a header that begins with '{{', got '{}'", escaped(text.substr(0, 1)));
  if (const size_t nul = text.find('\0'); nul != text.npos)
    refuse(file, "expected a header of text, got a NUL at its byte {}", nul);
  const std::string_view object(text.data(), text.find_last_not_of(' ') + 1);
  if (object.back() != '}') refuse(file, "expected '}}' and only spaces behind it, got a header that ends otherwise");
  HeaderReader reader(file);
  reader.scan(object);
  return std::move(reader.header);
}

// The tensors must fill the file from the header to its end, each byte once.
void check_layout(const Header& header, uint64_t data_bytes, const std::string& file) {
  std::vector<std::pair<const std::string*, const Entry*>> order;
  for (const auto& [name, entry] : header.tensors) order.emplace_back(&name, &entry);
  std::ranges::stable_sort(
      order, {}, [](const auto& item) -> const auto& { return *item.second->offsets; });
  uint64_t at = 0;
  for (const auto& [name, entry] : order) {
    const uint64_t begin = entry->offsets->front(), end = entry->offsets->back();
    if (begin != at || end < begin || end > data_bytes)
      refuse(file, "tensor '{}': expected data_offsets from {} to at most {}, got [{},{}]", escaped(*name), at,
             data_bytes, begin, end);
    check_tensor(file, *name, *entry->dtype, *entry->shape, end - begin);
    at = end;
  }
  if (at != data_bytes) refuse(file, "expected {} bytes of tensors behind the header, got {}", at, data_bytes);
}

std::string make_header(const std::vector<std::pair<const std::string*, const StoredTensor*>>& order,
                        const std::map<std::string, std::string>& metadata, const std::string& file) {
  nlohmann::json header = nlohmann::json::object();  // sorts its keys, so the same contents are the same bytes
  if (!metadata.empty()) header[kMetadata] = metadata;
  uint64_t at = 0;
  for (const auto& [name, tensor] : order) {
    const uint64_t begin = std::exchange(at, at + tensor->bytes.size());
    header[*name] = {{"dtype", tensor->dtype}, {"shape", tensor->shape}, {"data_offsets", {begin, at}}};
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception& error) {
    refuse(file, "{}: expected strings in UTF-8: {}", kMetadata, escaped(error.what()));
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the tensors begin at a multiple of 8
  if (text.size() > kMaxHeader) refuse(file, "expected a header of at most {} bytes, got {}", kMaxHeader, text.size());
  return text;
}

SafeTensors read_from(const Source& source, const std::string& file) {
  const uint64_t length = header_length(source, file), data = 8 + length;
  std::string text(size_t(length), '\0');
  source.read(8, text);
  Header header = parse_header(text, file);
  check_layout(header, source.size - data, file);

  SafeTensors contents{.metadata = std::move(header.metadata)};
  for (auto& [name, entry] : header.tensors) {
    const uint64_t begin = entry.offsets->front(), end = entry.offsets->back();
    StoredTensor& tensor = contents.tensors[name];
    tensor.dtype = std::move(*entry.dtype);
    tensor.shape = std::move(*entry.shape);
    tensor.bytes.resize(size_t(end - begin));
    source.read(data + begin, tensor.bytes);
  }
  return contents;
}

}  // namespace

SafeTensorsBytes to_safetensors_bytes(const SafeTensors& contents, const std::string& file) {
  if (contents.tensors.size() > kMaxTensors || contents.metadata.size() > kMaxMetadata)
    refuse(file, "expected at most {} tensors and {} metadata strings, got {} and {}", kMaxTensors, kMaxMetadata,
           contents.tensors.size(), contents.metadata.size());
  std::vector<std::pair<const std::string*, const StoredTensor*>> order;
  for (const auto& [name, tensor] : contents.tensors) {
    check_tensor(file, name, tensor.dtype, tensor.shape, tensor.bytes.size());
    order.emplace_back(&name, &tensor);
  }
  std::ranges::stable_sort(order, std::greater(),
                           [](const auto& item) { return find_type(item.second->dtype)->bytes; });

  const std::string header = make_header(order, contents.metadata, file);
  const uint64_t length = header.size();
  SafeTensorsBytes bytes{std::string(reinterpret_cast<const char*>(&length), sizeof length) + header};
  for (const auto& [name, tensor] : order) bytes.tensors.emplace_back(tensor->bytes.data(), tensor->bytes.size());
  return bytes;
}

void write_safetensors(const fs::path& path, const SafeTensors& contents) {
  const SafeTensorsBytes bytes = to_safetensors_bytes(contents, path.string());
  std::vector<std::string_view> pieces = {bytes.header};
  pieces.insert(pieces.end(), bytes.tensors.begin(), bytes.tensors.end());
  write_file_atomically(path, pieces, Exit::checkpoint);
}

SafeTensors read_safetensors(const fs::path& path, uint64_t limit) {
  const InputFile input(path, Exit::checkpoint);
  if (input.size() > limit) refuse(path.string(), "expected at most {} bytes, got {}", limit, input.size());
  return read_from({input.size(), [&](uint64_t offset, std::span<char> out) { input.read(offset, out); }},
                   path.string());
}

SafeTensors parse_safetensors(std::string_view bytes, const std::string& file) {
  const auto read = [&](uint64_t offset, std::span<char> out) {
    std::ranges::copy(bytes.substr(size_t(offset), out.size()), out.begin());
  };
  return read_from({bytes.size(), read}, file);
}

}  // namespace linnet
