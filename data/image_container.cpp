#include "image_container.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "linnet/error.h"
#include "linnet/text.h"

namespace linnet {
namespace {

// The bytes of one image, with its name for messages. Reading behind the end is the image's error, never ours.
class Bytes {
 public:
  Bytes(std::span<const char> bytes, const std::string& name)
      : data_(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()), name_(name) {}

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    fail(Exit::data, "{}: {}; the image is damaged or of a kind that Linnet does not read: save it anew or remove it",
         escaped(name_), fmt::format(format, std::forward<Args>(args)...));
  }
  size_t left() const { return data_.size() - at_; }
  size_t at() const { return at_; }
  bool starts_with(std::string_view text) const {
    return data_.size() >= text.size() && std::memcmp(data_.data(), text.data(), text.size()) == 0;
  }
  std::span<const uint8_t> take(size_t count, std::string_view what) {
    if (count > left()) refuse("expected {} bytes of {} at byte {}, got the end after {}", count, what, at_, left());
    return data_.subspan(std::exchange(at_, at_ + count), count);
  }
  // A part of the image, to be read by itself.
  Bytes part(std::span<const uint8_t> bytes) const {
    Bytes inner = *this;
    inner.data_ = bytes;
    inner.at_ = 0;
    return inner;
  }
  uint8_t u8(std::string_view what) { return take(1, what)[0]; }
  uint32_t u16(std::string_view what) {
    const auto b = take(2, what);
    return uint32_t(b[0]) << 8 | b[1];
  }
  uint32_t u32(std::string_view what) {
    const uint32_t high = u16(what);
    return high << 16 | u16(what);
  }

 private:
  std::span<const uint8_t> data_;
  const std::string& name_;
  size_t at_ = 0;
};

// `bits`: of a decoded pixel, as the decoder holds it.
void check_size(const Bytes& in, int64_t width, int64_t height, int bits, int64_t file_bytes) {
  if (width < 1 || height < 1 || width > kImageSide || height > kImageSide || width * height > kImagePixels)
    in.refuse("expected 1 to {} pixels a side and at most {} in all, got {} x {}", kImageSide, kImagePixels, width,
              height);
  const int64_t decoded = width * height * bits / 8;
  if (decoded > kImageBytes) in.refuse("expected at most {} bytes decoded, got {}", kImageBytes, decoded);
  if (decoded >= 1 << 20 && decoded / 2000 > file_bytes)
    in.refuse("expected at most 2000 times the file's {} bytes decoded, got {}", file_bytes, decoded);
}

// ---- PNG (www.w3.org/TR/png) ----------------------------------------------------------------------------------------

struct PngHeader {
  int64_t width, height;
  int depth, color, samples;  // samples of a pixel in the file: 1 for a palette
  bool interlaced;
};

PngHeader png_header(Bytes chunk, int64_t file_bytes) {
  PngHeader png{};
  png.width = chunk.u32("IHDR");
  png.height = chunk.u32("IHDR");
  png.depth = chunk.u8("IHDR");
  png.color = chunk.u8("IHDR");
  const int compression = chunk.u8("IHDR"), filter = chunk.u8("IHDR"), interlace = chunk.u8("IHDR");
  // The allowed bit depths of each colour type, as a set of bits.
  constexpr std::array<uint32_t, 7> kDepths = {0x10116, 0, 0x10100, 0x00116, 0x10100, 0, 0x10100};
  constexpr std::array<int, 7> kSamples = {1, 0, 3, 1, 2, 0, 4};
  if (png.color > 6 || png.depth > 16 || !(kDepths[size_t(png.color)] >> png.depth & 1) || compression || filter ||
      interlace > 1)
    chunk.refuse("expected a PNG header that the standard knows, got {} bits of colour type {}, methods {} {} {}",
                 png.depth, png.color, compression, filter, interlace);
  png.samples = kSamples[size_t(png.color)];
  png.interlaced = interlace == 1;
  const int decoded = png.color == 3 ? 4 : png.samples + (png.color == 0 || png.color == 2);  // tRNS adds an alpha
  check_size(chunk, png.width, png.height, decoded * (png.depth == 16 ? 16 : 8), file_bytes);
  return png;
}

// The rows of the image as they come out of zlib: each has a known filter, palette pixels name a colour that exists,
// and nothing is missing or left over.
class PngRows {
 public:
  PngRows(const PngHeader& png, size_t colors) : png_(png), colors_(colors) { next_pass(); }
  bool done() const { return pass_ > last_pass(); }

  // The unpacked bytes go here, a row at a time at most.
  std::span<uint8_t> room() { return std::span(row_).subspan(filled_); }
  void filled(size_t count, const Bytes& in) {
    filled_ += count;
    if (filled_ < row_.size()) return;
    if (row_[0] > 4) in.refuse("expected a row filter of 0 to 4, got {}", row_[0]);
    if (png_.color == 3) check_palette_row(in);
    filled_ = 0;
    if (++y_ == rows_) ++pass_, next_pass();
  }

 private:
  int last_pass() const { return png_.interlaced ? 6 : 0; }
  void next_pass() {
    for (; !done(); ++pass_) {
      constexpr int kX[] = {0, 4, 0, 2, 0, 1, 0}, kY[] = {0, 0, 4, 0, 2, 0, 1};
      constexpr int kDx[] = {8, 8, 4, 4, 2, 2, 1}, kDy[] = {8, 8, 8, 4, 4, 2, 2};
      width_ = png_.interlaced ? (png_.width + kDx[pass_] - 1 - kX[pass_]) / kDx[pass_] : png_.width;
      rows_ = png_.interlaced ? (png_.height + kDy[pass_] - 1 - kY[pass_]) / kDy[pass_] : png_.height;
      if (width_ == 0 || rows_ == 0) continue;  // a small image has no pixel in some passes
      y_ = 0;
      row_.assign(size_t(1 + (width_ * png_.samples * png_.depth + 7) / 8), 0);
      above_.assign(row_.size(), 0);
      return;
    }
  }
  void check_palette_row(const Bytes& in) {
    for (size_t i = 1; i < row_.size();
         ++i) {  // a pixel has at most a byte here, so its left neighbour is the byte before
      const int left = i > 1 ? row_[i - 1] : 0, up = above_[i], corner = i > 1 ? above_[i - 1] : 0;
      const int to_left = std::abs(up - corner), to_up = std::abs(left - corner),
                to_corner = std::abs(left + up - 2 * corner);
      const int paeth = to_left <= to_up && to_left <= to_corner ? left : to_up <= to_corner ? up : corner;
      const int predicted[] = {0, left, up, (left + up) / 2, paeth};
      row_[i] = uint8_t(row_[i] + predicted[row_[0]]);
    }
    for (int64_t x = 0; x < width_; ++x) {
      const int64_t bit = x * png_.depth;
      const size_t color = row_[size_t(1 + bit / 8)] >> (8 - png_.depth - bit % 8) & ((1 << png_.depth) - 1);
      if (color >= colors_) in.refuse("expected colours of a palette of {}, got number {}", colors_, color);
    }
    std::swap(row_, above_);
  }

  const PngHeader& png_;
  size_t colors_;
  int pass_ = 0;
  int64_t width_ = 0, rows_ = 0, y_ = 0;  // of the pass
  std::vector<uint8_t> row_, above_;      // the filter's number first
  size_t filled_ = 0;
};

// zlib's stream over all IDAT chunks, whose checksum at the end stb_image does not look at.
class PngPixels {
 public:
  PngPixels(const PngHeader& png, size_t colors) : rows_(png, colors) {
    if (inflateInit(&zlib_) != Z_OK) fail(Exit::device, "not enough memory to unpack an image");
  }
  ~PngPixels() { inflateEnd(&zlib_); }
  PngPixels(const PngPixels&) = delete;
  PngPixels& operator=(const PngPixels&) = delete;

  void add(std::span<const uint8_t> packed, const Bytes& in) {
    if (ended_ && !packed.empty()) in.refuse("expected the end of the IDAT chunks, got {} bytes more", packed.size());
    zlib_.next_in = const_cast<uint8_t*>(packed.data());
    zlib_.avail_in = unsigned(packed.size());
    if (ended_) return;
    do {               // until zlib wants more input
      uint8_t behind;  // nothing may come behind the last row
      const std::span<uint8_t> room = rows_.done() ? std::span(&behind, 1) : rows_.room();
      zlib_.next_out = room.data();
      zlib_.avail_out = unsigned(room.size());
      const int code = inflate(&zlib_, Z_NO_FLUSH);
      const size_t got = room.size() - zlib_.avail_out;
      if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR)
        in.refuse("the pixels cannot be unpacked: {}", zlib_.msg ? zlib_.msg : "not a zlib stream");
      if (got > 0 && rows_.done()) in.refuse("expected the end of the pixels, got more of them");
      if (got > 0) rows_.filled(got, in);
      ended_ = code == Z_STREAM_END;
    } while (!ended_ && zlib_.avail_out == 0);
    if (zlib_.avail_in > 0) in.refuse("expected the end of the IDAT chunks, got {} bytes more", zlib_.avail_in);
  }
  void finish(const Bytes& in) const {
    if (!ended_ || !rows_.done()) in.refuse("expected all pixels, got the end of the IDAT chunks");
  }

 private:
  PngRows rows_;
  z_stream zlib_{};
  bool ended_ = false;
};

void check_png(Bytes in, int64_t file_bytes) {
  in.take(8, "signature");
  PngHeader png{};
  size_t colors = 0;
  std::optional<PngPixels> pixels;
  bool between = false, transparent = false;  // between: another chunk came behind the IDAT chunks
  for (bool first = true;; first = false) {
    const size_t at = in.at();
    const uint32_t length = in.u32("a chunk's length");
    if (length > kImageFileBytes)
      in.refuse("expected a chunk of at most {} bytes at byte {}, got {}", kImageFileBytes, at, length);
    const auto typed = in.take(4 + length, "a chunk");
    const std::string type(reinterpret_cast<const char*>(typed.data()), 4);
    const std::string shown = escaped(type);
    const auto content = typed.subspan(4);
    const uint32_t sum = in.u32("a chunk's CRC"), expected = uint32_t(crc32_z(0, typed.data(), typed.size()));
    if (sum != expected) in.refuse("chunk {} at byte {}: expected CRC {:08x}, got {:08x}", shown, at, expected, sum);
    if (first != (type == "IHDR"))
      in.refuse("expected IHDR as the first chunk and only there, got {} at byte {}", shown, at);

    const auto once = [&](bool right, const char* rule) {
      if (!right) in.refuse("chunk {} at byte {}: expected {}, got {} bytes", shown, at, rule, length);
    };
    if (type == "IHDR") {
      once(length == 13, "13 bytes");
      png = png_header(in.part(content), file_bytes);
    } else if (type == "PLTE") {
      once(!colors && !pixels && !transparent && length % 3 == 0 && length >= 3 && length <= 768 && png.color != 0 &&
               png.color != 4,
           "one palette of 1 to 256 colours, before the pixels of an image in colour");
      once(png.color != 3 || length / 3 <= 1u << png.depth, "no more colours than a pixel can name");
      colors = length / 3;
    } else if (type == "tRNS") {
      const bool fits = png.color == 3 ? length >= 1 && length <= colors : length == 2 * uint32_t(png.samples);
      once(!std::exchange(transparent, true) && !pixels && png.color < 4 && fits,
           "one transparency that fits the image, before the pixels");
    } else if (type == "IDAT") {
      if (!pixels) {
        once(png.color != 3 || colors, "a palette before it");
        pixels.emplace(png, colors);
      }
      once(!between, "all IDAT chunks in a row");
      pixels->add(content, in);
    } else if (type == "IEND") {
      once(length == 0 && pixels, "no content, and IDAT before it");
      pixels->finish(in);
      if (in.left() > 0) in.refuse("expected the end of the file behind IEND, got {} bytes more", in.left());
      return;
    } else if (!(type[0] & 0x20)) {  // a capital letter first: it must be understood
      in.refuse("expected a chunk of the PNG standard at byte {}, got {}", at, shown);
    }
    between = pixels && type != "IDAT";
  }
}

// ---- JPEG (ITU T.81) ------------------------------------------------------------------------------------------------

constexpr int kMaxScans = 64;

class JpegCheck {
 public:
  JpegCheck(const Bytes& in, int64_t file_bytes) : in_(in), file_bytes_(file_bytes) {}

  void run() {
    in_.take(2, "SOI");
    for (int marker = next_marker(); marker != 0xd9; marker = next_marker()) segment(marker);
    if (components_.empty()) in_.refuse("expected an image, got a JPEG without a frame");
    for (const Component& c : components_)
      if (!c.started) in_.refuse("expected a scan of each component, got none of component {}", c.id);
    // What follows EOI is not looked at: cameras put previews, gain maps and films there.
  }

 private:
  struct Component {
    int id, h, v, table;
    bool started = false;  // a scan has given it pixels
  };

  // Behind a scan the next marker has been read already.
  int next_marker() {
    if (pending_ != 0) return std::exchange(pending_, 0);
    if (const int byte = in_.u8("a marker"); byte != 0xff)
      in_.refuse("expected a marker at byte {}, got {:02x}", in_.at() - 1, byte);
    return marker_behind_ff();
  }
  int marker_behind_ff() {
    int marker = 0xff;
    while (marker == 0xff) marker = in_.u8("a marker");  // fill bytes may come first
    return marker;
  }

  void segment(int marker) {
    const size_t at = in_.at();
    const uint32_t length = in_.u16("a segment's length");
    if (length < 2)
      in_.refuse("segment {:02x} at byte {}: expected a length of at least 2, got {}", marker, at, length);
    Bytes content = in_.part(in_.take(length - 2, "a segment"));
    const bool is_text = (marker >= 0xe0 && marker <= 0xef) || marker == 0xfe;
    if (is_text) return;
    switch (marker) {
      case 0xdb:
        return quantization(content);
      case 0xc4:
        return huffman(content);
      case 0xdd:
        restart_ = content.u16("DRI");
        return ends(content, "DRI");
      case 0xc0:
      case 0xc1:
      case 0xc2:
        return frame(content, marker == 0xc2);
      case 0xda:
        return scan(content);
    }
    in_.refuse("expected a baseline or progressive JPEG with Huffman codes, got the marker {:02x} at byte {}", marker,
               at);
  }
  void ends(const Bytes& content, const char* what) const {
    if (content.left() > 0) in_.refuse("expected the end of {}, got {} bytes more", what, content.left());
  }

  void quantization(Bytes& content) {
    while (content.left() > 0) {
      const int head = content.u8("DQT");
      if (head >> 4 > 1 || (head & 15) > 3) in_.refuse("expected quantization table 0 to 3, got {:02x}", head);
      content.take(head >> 4 ? 128 : 64, "a quantization table");
      quantization_[size_t(head & 15)] = true;
    }
  }

  void huffman(Bytes& content) {
    while (content.left() > 0) {
      const int head = content.u8("DHT"), kind = head >> 4;
      if (kind > 1 || (head & 15) > 3) in_.refuse("expected Huffman table 0 to 3 for DC or AC, got {:02x}", head);
      uint32_t used = 0, total = 0;  // used: how many of the 2^length words of this length are taken
      for (int length = 1; length <= 16; ++length) {
        const uint32_t count = content.u8("a Huffman table");
        used = 2 * used + count;
        total += count;
        if (used > 1u << length || total > 256)
          in_.refuse("expected a Huffman code of at most 256 words, got too many of {} bits", length);
      }
      for (const uint8_t symbol : content.take(total, "a Huffman table"))
        if (kind == 0 && symbol > 15) in_.refuse("expected DC differences of at most 15 bits, got {}", symbol);
      huffman_[size_t(kind)][size_t(head & 15)] = true;
    }
  }

  void frame(Bytes& content, bool progressive) {
    if (!components_.empty()) in_.refuse("expected one frame, got a second");
    const int depth = content.u8("SOF");
    height_ = content.u16("SOF");
    width_ = content.u16("SOF");
    const int count = content.u8("SOF");
    if (depth != 8 || (count != 1 && count != 3 && count != 4))
      in_.refuse("expected 1, 3 or 4 components of 8 bits, got {} of {} bits", count, depth);
    // A progressive decoder keeps coefficients of 16 bits beside the pixels; they are not counted.
    check_size(in_, width_, height_, 8 * (count == 1 ? 1 : 3), file_bytes_);
    for (int i = 0; i < count; ++i) {
      const int id = content.u8("SOF"), sampling = content.u8("SOF"), table = content.u8("SOF");
      const Component c{.id = id, .h = sampling >> 4, .v = sampling & 15, .table = table};
      if (c.h < 1 || c.h > 4 || c.v < 1 || c.v > 4 || table > 3 || find(id))
        in_.refuse("expected components with sampling 1 to 4 and a table 0 to 3, got {} with {}x{} and {}", id, c.h,
                   c.v, table);
      components_.push_back(c);
      h_max_ = std::max(h_max_, c.h);
      v_max_ = std::max(v_max_, c.v);
    }
    ends(content, "SOF");
    for (const Component& c : components_)
      if (h_max_ % c.h || v_max_ % c.v)
        in_.refuse("expected sampling that divides {}x{}, got {}x{}", h_max_, v_max_, c.h, c.v);
    progressive_ = progressive;
  }

  Component* find(int id) {
    const auto found = std::ranges::find(components_, id, &Component::id);
    return found == components_.end() ? nullptr : &*found;
  }

  void scan(Bytes& content) {
    if (++scans_ > kMaxScans) in_.refuse("expected at most {} scans, got more", kMaxScans);
    const size_t count = content.u8("SOS");
    if (count < 1 || count > components_.size())
      in_.refuse("expected a scan of 1 to {} components, got {}", components_.size(), count);
    std::vector<std::pair<Component*, int>> members;  // and the byte that names its Huffman tables
    for (size_t i = 0; i < count; ++i) {
      const int id = content.u8("SOS"), tables = content.u8("SOS");
      Component* const c = find(id);
      const bool repeated = std::ranges::find(members, c, &std::pair<Component*, int>::first) != members.end();
      if (!c || repeated || tables >> 4 > 3 || (tables & 15) > 3)
        in_.refuse("expected a scan of components of the frame with tables 0 to 3, got {} with {:02x}", id, tables);
      members.emplace_back(c, tables);
    }
    const int begin = content.u8("SOS"), end = content.u8("SOS"), bits = content.u8("SOS");
    ends(content, "SOS");

    const bool is_dc = begin == 0, refines = bits >> 4 != 0;
    const bool sound = progressive_ ? (is_dc ? end == 0 : begin <= end && end <= 63 && count == 1) && bits >> 4 <= 13 &&
                                          (bits & 15) <= 13
                                    : begin == 0 && end == 63 && bits == 0;
    if (!sound) in_.refuse("expected a scan that the standard knows, got {} to {} with {:02x}", begin, end, bits);
    for (const auto& [c, tables] : members) {
      const bool needs_dc = is_dc && !refines, needs_ac = !progressive_ || !is_dc;
      if (!quantization_[size_t(c->table)] || (needs_dc && !huffman_[0][size_t(tables >> 4)]) ||
          (needs_ac && !huffman_[1][size_t(tables & 15)]))
        in_.refuse("component {}: expected its tables before its scan", c->id);
      if (progressive_ && !c->started && (!is_dc || refines))
        in_.refuse("component {}: expected its first bits in its first scan", c->id);
      c->started = true;
    }

    // A scan of one component has blocks of 8 x 8 of that component alone.
    const auto units = [](int64_t pixels, int64_t unit) { return (pixels + unit - 1) / unit; };
    int64_t blocks = 0;
    for (const auto& [c, tables] : members) blocks += c->h * c->v;
    int64_t mcus = units(width_, 8 * h_max_) * units(height_, 8 * v_max_);
    if (count == 1) {
      const Component& c = *members[0].first;
      mcus = units(units(width_ * c.h, h_max_), 8) * units(units(height_ * c.v, v_max_), 8);
      blocks = 1;
    }
    // The shortest words are one bit: one for DC, one for AC. Later scans may skip blocks.
    const int64_t least_bits = progressive_ ? (is_dc ? mcus * blocks : 0) : 2 * mcus * blocks;
    entropy_coded(restart_ ? units(mcus, restart_) - 1 : 0, least_bits);
  }

  // The compressed data up to the next marker, which is kept. Without its restart markers a decoder would stop there
  // and leave the rest of the image as the memory was.
  void entropy_coded(int64_t restarts, int64_t least_bits) {
    int64_t bytes = 0;
    for (int64_t seen = 0;;) {
      if (in_.u8("compressed data") != 0xff) {
        ++bytes;
        continue;
      }
      const int marker = marker_behind_ff();
      if (marker == 0) {  // a byte ff of the data
        ++bytes;
      } else if (marker >= 0xd0 && marker <= 0xd7) {
        if (seen == restarts || marker - 0xd0 != seen % 8)
          in_.refuse("expected {} restart markers in turn in a scan, got {:02x} after {}", restarts, marker, seen);
        ++seen;
      } else {
        if (seen != restarts || 8 * bytes < least_bits)
          in_.refuse("expected a scan with {} restart markers and at least {} bytes, got {} and {}", restarts,
                     least_bits / 8, seen, bytes);
        pending_ = marker;
        return;
      }
    }
  }

  Bytes in_;
  int64_t file_bytes_, width_ = 0, height_ = 0;
  bool progressive_ = false;
  int h_max_ = 1, v_max_ = 1, scans_ = 0, pending_ = 0;
  int64_t restart_ = 0;  // MCUs between two restart markers; 0: there are none
  std::vector<Component> components_;
  std::array<bool, 4> quantization_{};            // which tables there are
  std::array<std::array<bool, 4>, 2> huffman_{};  // [DC or AC][table]
};

// Other kinds are refused by their name, which helps more than "not a PNG".
std::string kind_of(const Bytes& in) {
  constexpr std::pair<std::string_view, std::string_view> kKinds[] = {{"GIF8", "a GIF"},
                                                                      {"BM", "a BMP"},
                                                                      {"RIFF", "a WebP or another RIFF file"},
                                                                      {"II*", "a TIFF"},
                                                                      {"MM", "a TIFF"},
                                                                      {"8BPS", "a Photoshop file"},
                                                                      {"#?RADIANCE", "a Radiance HDR"},
                                                                      {"P5", "a PGM"},
                                                                      {"P6", "a PPM"},
                                                                      {"\x1f\x8b", "a gzip archive"},
                                                                      {"PK", "a zip archive"},
                                                                      {"%PDF", "a PDF"},
                                                                      {"<", "an SVG or another text"}};
  for (const auto& [start, kind] : kKinds)
    if (in.starts_with(start)) return std::string(kind);
  return "another kind of file";
}

}  // namespace

void check_image_container(std::span<const char> bytes, const std::string& name) {
  Bytes in(bytes, name);
  const auto size = int64_t(bytes.size());
  if (size > kImageFileBytes) in.refuse("expected at most {} bytes, got {}", kImageFileBytes, size);
  if (size == 0) in.refuse("expected a PNG or JPEG image, got an empty file");
  if (in.starts_with("\x89PNG\r\n\x1a\n")) return check_png(in, size);
  if (in.starts_with("\xff\xd8")) return JpegCheck(in, size).run();
  in.refuse("expected a PNG or JPEG image, got {}", kind_of(in));
}

}  // namespace linnet
