// Images: PNG and JPEG made here, decoded, then broken in every way that is cheap to enumerate.
#include "data/image.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#include <zlib.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <thread>

#include "linnet/error.h"

namespace linnet {
namespace {

// JPEGs of the gradient v(x, y) = 8x + 4y mod 256; in colour (v, 255 - v, 2v mod 256). Made with Pillow.
// 12 x 10, grey
const char* const kGrey =
    "ffd8ffe000104a46494600010100000100010000ffdb0043000302020302020303030304030304050805050404050a070706080c0a0c0c0b"
    "0a0b0b0d0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffc0000b08000a000c01011100ffc40015000101000000"
    "00000000000000000000000807ffc400221000000307050000000000000000000000000222010305060715412325335191ffda0008010100"
    "003f000d53696f891d04840a5bdb5da04a29b10ba49663012102216daed2cf07ffd9";
// 20 x 18, colours at half the resolution
const char* const kColour =
    "ffd8ffe000104a46494600010100000100010000ffdb0043000302020302020303030304030304050805050404050a070706080c0a0c0c0b"
    "0a0b0b0d0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffdb00430103040405040509050509140d0b0d14141414"
    "14141414141414141414141414141414141414141414141414141414141414141414141414141414141414141414ffc00011080012001403"
    "012200021101031101ffc400190001000203000000000000000000000000000507030406ffc4002410000103030207010000000000000000"
    "000001020305214123810611141522426172ffc4001801000203000000000000000000000000000708030405ffc4002c11000004010a0505"
    "0000000000000000000001020331040506071121222333411213164571518283c3d1ffda000c03010002110311003f00ece4710d5fa976da"
    "7c92a2ea2f833f4bb62ebb1292b8aff8b2a5d6541626ae9c1cd89f5ded8db632a6c67a6a62379ab9e73023d48ce2af695a6470e2b08e2049"
    "57b4779ce208d3714441b9d706273ae0b325a2b908c3b1077999932d376c2de97254f2e4027a41da7e5fa82f356bf8359cb700069936823c"
    "107399d34f81ffd9";
// 20 x 10, a restart marker every 2 MCUs
const char* const kRestart =
    "ffd8ffe000104a46494600010100000100010000ffdb0043000302020302020303030304030304050805050404050a070706080c0a0c0c0b"
    "0a0b0b0d0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffdb00430103040405040509050509140d0b0d14141414"
    "14141414141414141414141414141414141414141414141414141414141414141414141414141414141414141414ffc0001108000a001403"
    "011100021101031101ffc40017000100030000000000000000000000000006010507ffc40024100000040406030000000000000000000000"
    "010203052141810615222331447282c2ffc400190100020301000000000000000000000000070800010206ffc4002d110001020403030d00"
    "0000000000000000010002030405210611221213310714162324253241537281c1c3ffdd00040002ffda000c03010002110311003f0066e2"
    "80830a52bc3649bd0e478595347e2596c3dc748f70f423c8ed499d830d509ee8c50e24ec3b4576887ef70391e0e1a402fc9c3276cece7709"
    "8cc354cdf456b48b79afffd022a54c0e29d4aecedb22eca48f542cb5e76a3aac2ad1a6c906a18165ffd18c73d3f7f915ca534775dbd5fc94"
    "c2206af8fb43d5c8c539a39bb6c98894037417ffd9";
// 18 x 10, several scans
const char* const kProgressive =
    "ffd8ffe000104a46494600010100000100010000ffdb0043000302020302020303030304030304050805050404050a070706080c0a0c0c0b"
    "0a0b0b0d0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffdb00430103040405040509050509140d0b0d14141414"
    "14141414141414141414141414141414141414141414141414141414141414141414141414141414141414141414ffc2001108000a001203"
    "012200021101031101ffc40017000003010000000000000000000000000000040502ffc40017010003010000000000000000000000000004"
    "050607ffda000c03010002100310000001b29b71838a94644fb1ff00ffc400191000030003000000000000000000000000000103041013ff"
    "da000801010001050265e9ce6333b5ffc400191101000203000000000000000000000000020001040614ffda0008010301013f01d7f14266"
    "ae7399ffc4001e110001040105000000000000000000000001000203041105143281b1ffda0008010201013f01a2dd969cf9e3e407a40cf5"
    "9429c6bfffc4001810000203000000000000000000000000000110000241ffda0008010100063f0284eba2ffc4001a100002020300000000"
    "0000000000000000000110c1117181ffda0008010100013f21639c16ccc2ca8fffda000c030100020003000000109c0fffc4001711000301"
    "0000000000000000000000000000011131ffda0008010301013f10ca61451fffc40019110100030101000000000000000000000001001121"
    "6151ffda0008010201013f100ce801f1a97743a4a44fffc4001c1000000603000000000000000000000000000110214181113191ffda0008"
    "010100013f10062137775439d226947b1fffd9";
// 9 x 9, four inks
const char* const kCmyk =
    "ffd8ffee000e41646f626500640000000000ffdb0043000302020302020303030304030304050805050404050a070706080c0a0c0c0b0a0b"
    "0b0d0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffc000140800090009044311004d11005911004b1100ffc400"
    "1800000301010000000000000000000000000006070809ffc4001d100001020700000000000000000000000000060716223343516281ffda"
    "000e0443004d0059004b00003f00dc6e4a92acf930d36c9ba5260dc6e4a92acf93aa647e24dcb0437a11f893701c1c9bbd13db6b5c1c1c9b"
    "bd023e5808f81fffd9";

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) bytes += char(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

// ---- PNG, piece by piece --------------------------------------------------------------------------------------------

std::string be32(uint32_t n) { return {char(n >> 24), char(n >> 16), char(n >> 8), char(n)}; }
std::string chunk(const std::string& type, const std::string& content) {
  const std::string typed = type + content;
  const uLong sum = crc32(0, reinterpret_cast<const Bytef*>(typed.data()), uInt(typed.size()));
  return be32(uint32_t(content.size())) + typed + be32(uint32_t(sum));
}
std::string packed(const std::string& rows) {
  uLongf size = compressBound(uLong(rows.size()));
  std::string out(size, '\0');
  compress2(reinterpret_cast<Bytef*>(out.data()), &size, reinterpret_cast<const Bytef*>(rows.data()),
            uLong(rows.size()), 9);
  out.resize(size);
  return out;
}
std::string header(uint32_t width, uint32_t height, int depth, int color, int interlace = 0) {
  return chunk("IHDR", be32(width) + be32(height) + std::string{char(depth), char(color), 0, 0, char(interlace)});
}
const std::string kSignature = "\x89PNG\r\n\x1a\n", kEnd = chunk("IEND", "");
std::string png(const std::string& head, const std::string& rows, const std::string& before = "") {
  return kSignature + head + before + chunk("IDAT", packed(rows)) + kEnd;
}
std::string operator""_b(const char* text, size_t size) { return {text, size}; }

using Bytes = std::vector<uint8_t>;
Image decode(const std::string& bytes) { return decode_image(bytes, "x.img"); }

// The message of the Error(Exit::data) that f throws; empty where it throws none.
std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit, Exit::data) << error.what();
    return error.what();
  }
  return "";
}
std::string error_of(const std::string& bytes) {
  return message_of([&] { decode(bytes); });
}
bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

void expect_image(const std::string& bytes, int width, int height, int channels, const Bytes& pixels) {
  const Image image = decode(bytes);
  EXPECT_EQ(image.width, width);
  EXPECT_EQ(image.height, height);
  EXPECT_EQ(image.channels, channels);
  EXPECT_EQ(image.pixels, pixels);
}

TEST(Image, ReadsEveryKindOfPng) {
  // Row filters none, sub, up: 2 x 3 grey.
  expect_image(png(header(2, 3, 8, 0), "\0\x01\x02\1\x05\x02\2\x01\x01"_b), 2, 3, 1, {1, 2, 5, 7, 6, 8});
  expect_image(png(header(1, 2, 8, 4), "\0\x01\x02\0\x03\x04"_b), 1, 2, 2, {1, 2, 3, 4});
  expect_image(png(header(2, 1, 8, 2), "\0\x01\x02\x03\x04\x05\x06"_b), 2, 1, 3, {1, 2, 3, 4, 5, 6});
  expect_image(png(header(1, 1, 8, 6), "\0\x01\x02\x03\x04"_b), 1, 1, 4, {1, 2, 3, 4});
  expect_image(png(header(1, 1, 16, 0), "\0\x12\x34"_b), 1, 1, 1, {0x12});
  expect_image(png(header(1, 1, 16, 2), "\0\x12\x34\x56\x78\x9a\xbc"_b), 1, 1, 3, {0x12, 0x56, 0x9a});
  expect_image(png(header(9, 1, 1, 0), "\0\xa0\x80"_b), 9, 1, 1, {255, 0, 255, 0, 0, 0, 0, 0, 255});
  const std::string palette = chunk("PLTE", "\x0a\x14\x1e\x28\x32\x3c\x46\x50\x5a"_b);
  expect_image(png(header(3, 1, 2, 3), "\0\x18"_b, palette), 3, 1, 3, {10, 20, 30, 40, 50, 60, 70, 80, 90});
  expect_image(png(header(2, 1, 8, 3), "\0\0\2"_b, palette + chunk("tRNS", "\x07"_b)), 2, 1, 4,
               {10, 20, 30, 7, 70, 80, 90, 255});
  expect_image(png(header(2, 1, 8, 2), "\0\1\1\1\2\2\2"_b, chunk("tRNS", "\0\1\0\1\0\1"_b)), 2, 1, 4,
               {1, 1, 1, 0, 2, 2, 2, 255});
}

TEST(Image, ReadsAnInterlacedPng) {
  // Passes of 3 x 3: the corner; then the middle of the top row and so on (Adam7).
  const std::string five = "\0\x01\0\x03\0\x07\x09\0\x02\0\x08\0\x04\x05\x06"_b;
  const std::string image = png(header(3, 3, 8, 0, 1), five);
  // Pass 1: (0,0). Pass 4: x 2, y 0. Pass 5: y 2, x 0 and 2. Pass 6: x 1, y 0 and 2. Pass 7: y 1.
  expect_image(image, 3, 3, 1, {1, 2, 3, 4, 5, 6, 7, 8, 9});
}

TEST(Image, PixelsMaySpanChunks) {
  const std::string pixels = packed("\0\x01\x02\0\x03\x04"_b);
  std::string image = kSignature + header(2, 2, 8, 0) + chunk("tEXt", "Title");
  for (const char c : pixels) image += chunk("IDAT", {c});
  expect_image(image + chunk("IDAT", "") + kEnd, 2, 2, 1, {1, 2, 3, 4});
}

TEST(Image, ReadsJpegs) {
  struct Row {
    const char* hex;
    int width, height, channels;
    double tolerance;  // mean absolute difference: halved colours blur
  };
  for (const Row& row : {Row{kGrey, 12, 10, 1, 2}, Row{kColour, 20, 18, 3, 12}, Row{kRestart, 20, 10, 3, 4},
                         Row{kProgressive, 18, 10, 3, 12}}) {
    const Image image = decode(from_hex(row.hex));
    ASSERT_EQ(image.width, row.width);
    ASSERT_EQ(image.height, row.height);
    ASSERT_EQ(image.channels, row.channels);
    double off = 0;
    for (int y = 0; y < row.height; ++y)
      for (int x = 0; x < row.width; ++x) {
        const int v = (8 * x + 4 * y) % 256, expected[] = {v, 255 - v, 2 * v % 256};
        for (int c = 0; c < row.channels; ++c)
          off += std::abs(expected[c] - image.pixels[size_t((y * row.width + x) * row.channels + c)]);
      }
    EXPECT_LE(off / double(image.pixels.size()), row.tolerance) << row.width << "x" << row.height;
  }
  EXPECT_EQ(decode(from_hex(kCmyk)).channels, 3);
}

TEST(Image, RefusesEveryBitFlipOfAPng) {
  const std::string palette = chunk("PLTE", "\x0a\x14\x1e\x28\x32\x3c\x46\x50\x5a"_b);
  const std::string whole = png(header(3, 4, 2, 3), "\0\x18\0\x18\1\x18\2\0"_b, palette);
  ASSERT_EQ(error_of(whole), "");
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    std::string flipped = whole;
    flipped[bit / 8] = char(flipped[bit / 8] ^ 1 << bit % 8);
    EXPECT_NE(error_of(flipped), "") << "bit " << bit;
  }
}

TEST(Image, RefusesEveryTruncationAndATailOfAPng) {
  std::vector<std::string> images = {png(header(2, 3, 8, 0), "\0\x01\x02\1\x05\x02\2\x01\x01"_b)};
  for (const char* hex : {kGrey, kColour, kRestart, kProgressive, kCmyk}) images.push_back(from_hex(hex));
  for (const std::string& whole : images) {
    ASSERT_EQ(error_of(whole), "");
    for (size_t size = 0; size < whole.size(); ++size) EXPECT_NE(error_of(whole.substr(0, size)), "") << size;
    // Cameras put a second picture or a film behind a JPEG.
    EXPECT_EQ(has(error_of(whole + '\0'), "expected the end of the file"), whole[1] == 'P') << error_of(whole + '\0');
  }
}

TEST(Image, RefusesABrokenPng) {
  const std::string rows = "\0\x01\x02\0\x03\x04"_b, head = header(2, 2, 8, 0), data = chunk("IDAT", packed(rows));
  const std::string palette = chunk("PLTE", "\1\2\3");
  const auto because = [](const std::string& image, const std::string& part) {
    const std::string message = error_of(image);
    EXPECT_TRUE(has(message, "x.img: ") && has(message, part)) << part << "; got: " << message;
  };
  because(kSignature + data + kEnd, "IHDR as the first chunk");
  because(kSignature + head + head + data + kEnd, "IHDR as the first chunk and only there");
  because(kSignature + head + kEnd, "IDAT before it");
  because(kSignature + head + data, "got the end");
  because(kSignature + head + data + chunk("tEXt", "a") + data + kEnd, "all IDAT chunks in a row");
  because(kSignature + head + data + data + kEnd, "expected the end of the IDAT chunks");
  because(kSignature + head + chunk("ABCD", "") + data + kEnd, "chunk of the PNG standard");
  because(kSignature + head + chunk("\x1b[2J", "") + data + kEnd, "\\x1b[2J");
  because(png(head, rows + "\0"_b), "got more of them");
  because(png(head, rows.substr(0, 5)), "expected all pixels");
  because(png(head, "\5\x01\x02\0\x03\x04"_b), "row filter of 0 to 4, got 5");
  because(kSignature + head + chunk("IDAT", "not zlib") + kEnd, "cannot be unpacked");
  std::string wrong_sum = packed(rows);
  wrong_sum.back() = char(wrong_sum.back() ^ 1);
  because(kSignature + head + chunk("IDAT", wrong_sum) + kEnd, "incorrect data check");
  because(png(header(2, 2, 8, 3), rows), "a palette before it");
  because(png(header(2, 2, 8, 3), rows, palette), "expected colours of a palette of 1, got number 1");
  because(png(head, rows, palette), "one palette");
  because(png(header(2, 2, 1, 3), rows, chunk("PLTE", "123456789")), "no more colours than a pixel can name");
  because(png(head, rows, chunk("tRNS", "abc")), "one transparency");
  because(png(header(2, 2, 3, 0), rows), "header that the standard knows");
  because(png(header(2, 2, 8, 5), rows), "header that the standard knows");
  because(png(header(0, 2, 8, 0), rows), "1 to 16384 pixels a side");
  because(png(header(2, 16385, 8, 0), rows), "1 to 16384 pixels a side");
  because(kSignature + be32(0xffffffff) + "IHDR", "chunk of at most");
}

// The most memory that this process ever held, in bytes.
int64_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t(usage.ru_maxrss) * 1024;
}

TEST(Image, RefusesBombsBeforeAllocation) {
  [[maybe_unused]] const int64_t before = peak_memory();  // not asked under a sanitizer
  // 300 MB of zeros, in a file of 300 KB.
  z_stream zlib{};
  ASSERT_EQ(deflateInit(&zlib, 9), Z_OK);
  std::string zeros(1 << 20, '\0'), out(1 << 20, '\0'), bomb;
  for (int i = 0; i <= 300; ++i) {
    zlib.next_in = reinterpret_cast<Bytef*>(zeros.data());
    zlib.avail_in = i < 300 ? unsigned(zeros.size()) : 0;
    zlib.next_out = reinterpret_cast<Bytef*>(out.data());
    zlib.avail_out = unsigned(out.size());
    deflate(&zlib, i < 300 ? Z_NO_FLUSH : Z_FINISH);
    bomb.append(out.data(), out.size() - zlib.avail_out);
  }
  deflateEnd(&zlib);
  const auto with_size = [&](uint32_t width, uint32_t height, int depth, int color) {
    return kSignature + header(width, height, depth, color) + chunk("IDAT", bomb) + kEnd;
  };
  EXPECT_TRUE(has(error_of(with_size(16384, 16384, 8, 0)), "at most 67108864 in all"));
  EXPECT_TRUE(has(error_of(with_size(8192, 8192, 16, 2)), "at most 268435456 bytes decoded"));
  EXPECT_TRUE(has(error_of(with_size(100, 100, 8, 0)), "got more of them"));
  EXPECT_TRUE(has(error_of(png(header(8000, 8000, 8, 0), "\0"_b)), "2000 times the file's"));
  EXPECT_TRUE(has(error_of(std::string((64 << 20) + 1, '\xff')), "at most 67108864 bytes"));
#ifndef __SANITIZE_ADDRESS__
  EXPECT_LE(peak_memory() - before, 200 << 20);
#endif
}

TEST(Image, RefusesABrokenJpeg) {
  const std::string whole = from_hex(kRestart);
  const auto with = [&](const std::string& from, const std::string& to, int nth = 0) {
    std::string broken = whole;
    size_t at = broken.find(from);
    while (nth-- > 0) at = broken.find(from, at + 1);
    EXPECT_NE(at, std::string::npos);
    return broken.replace(at, from.size(), to);
  };
  const auto because = [](const std::string& image, const std::string& part) {
    const std::string message = error_of(image);
    EXPECT_TRUE(has(message, part)) << part << "; got: " << message;
  };
  because(with("\xff\xd1", "\xff\xd2"), "expected 2 restart markers in turn");
  because(with("\xff\xd1", ""), "expected a scan with 2 restart markers");
  because(with("\xff\xc0", "\xff\xc3"), "expected a baseline or progressive JPEG");
  because(with("\xff\xc0", "\xff\xc9"), "expected a baseline or progressive JPEG");
  const size_t frame = whole.find("\xff\xc0"), quantization = whole.find("\xff\xdb"), codes = whole.find("\xff\xc4");
  const auto byte = [&](size_t at, int value) {
    std::string broken = whole;
    broken[at] = char(value);
    return broken;
  };
  because(byte(frame + 4, 12), "components of 8 bits");
  because(byte(frame + 6, 0), "1 to 16384 pixels a side");  // height 10 to 0
  because(byte(frame + 5, 0xff), "1 to 16384 pixels a side");
  because(byte(frame + 9, 2), "1, 3 or 4 components");
  because(byte(frame + 11, 0x51), "sampling 1 to 4");
  std::string sampling = byte(frame + 11, 0x21);
  sampling[frame + 14] = 0x31;
  because(sampling, "sampling that divides 3x1, got 2x1");
  because(byte(frame + 12, 3), "expected its tables before its scan");
  because(byte(quantization + 4, 0x24), "quantization table 0 to 3");
  because(byte(codes + 4, 0x20), "Huffman table 0 to 3");
  because(byte(codes + 5, 3), "expected a Huffman code of at most 256 words");
  because(whole.substr(0, 2) + "\xff\xd9", "a JPEG without a frame");
  std::string many = whole.substr(0, 2);
  const std::string progressive = from_hex(kProgressive);
  const size_t scan = progressive.find("\xff\xda"), next = progressive.find("\xff\xc4", scan);
  many = progressive.substr(0, scan);
  for (int i = 0; i < 65; ++i) many += progressive.substr(scan, next - scan);
  because(many + progressive.substr(next), "at most 64 scans");
}

// A JPEG has no checksum, so pixels may be lost without an error; they must not be what memory held before.
TEST(Image, LostDataOfAJpegIsNeverChance) {
  for (const char* hex : {kGrey, kColour, kRestart, kProgressive}) {
    const std::string whole = from_hex(hex);
    const size_t data = whole.rfind("\xff\xda") + 14;
    for (size_t size = data; size < whole.size() - 2; ++size) {
      const std::string cut = whole.substr(0, size) + "\xff\xd9";
      const std::string message = error_of(cut);
      if (!message.empty()) continue;
      std::vector<uint8_t> dirt(1 << 16, uint8_t(size));  // freed again: the next image may get this memory
      dirt.clear(), dirt.shrink_to_fit();
      EXPECT_EQ(decode(cut).pixels, decode(cut).pixels) << size;
    }
  }
}

// Tables that index behind those of stb_image 2.27: a DC symbol of more than 16 bits (RELIABILITY.md, F13).
TEST(Image, RefusesADcSymbolThatNoTableHas) {
  std::string broken = from_hex(kGrey);
  const size_t codes = broken.find("\xff\xc4");
  ASSERT_EQ(broken[codes + 4], 0);  // a DC table
  broken[codes + 5 + 16] = char(200);
  EXPECT_TRUE(has(error_of(broken), "DC differences of at most 15 bits, got 200")) << error_of(broken);
}

TEST(Image, NamesWhatItDoesNotRead) {
  EXPECT_TRUE(has(error_of("GIF89a\1\1"), "expected a PNG or JPEG image, got a GIF"));
  EXPECT_TRUE(has(error_of("BM\1\1"), "got a BMP"));
  EXPECT_TRUE(has(error_of("RIFF....WEBP"), "got a WebP"));
  EXPECT_TRUE(has(error_of("hello"), "got another kind of file"));
  EXPECT_TRUE(has(error_of(""), "got an empty file"));
  EXPECT_TRUE(has(message_of([] { decode_image(std::string("BM"), "\x1b[2J"); }), "\\x1b[2J: "));
}

// ---- The sandbox ----------------------------------------------------------------------------------------------------

Image hook(std::span<const char> bytes, const std::string& name) {
  if (name == "crash") raise(SIGSEGV);
  if (name == "loop")
    for (volatile bool more = true; more;) continue;
  if (name == "exit") _exit(0);
  if (name == "open") getppid();
  if (name == "lie") return {.height = 3, .width = 3, .channels = 3, .pixels = {1}};
  if (name == "shout") fail(Exit::data, "\x1b[2J");
  if (name == "memory")
    return {.height = 1, .width = 1, .channels = 1, .pixels = std::vector<uint8_t>(size_t(3) << 30)};
  return decode_image(bytes, name);
}

TEST(ImageSandbox, DecodesLikeItsParent) {
  ImageSandbox box;
  const std::string small = from_hex(kColour), large = png(header(3000, 1000, 8, 2), std::string(1000 * 9001, '\0'));
  for (const std::string& bytes : {small, large, small}) {
    const Image inside = box.decode(bytes, "a"), outside = decode(bytes);
    EXPECT_EQ(inside.width, outside.width);
    EXPECT_EQ(inside.height, outside.height);
    EXPECT_EQ(inside.channels, outside.channels);
    EXPECT_TRUE(inside.pixels == outside.pixels);
  }
}

TEST(ImageSandbox, WorksFromAnyThread) {  // malloc has an arena of its own there
  const std::string large = png(header(700, 700, 8, 2), std::string(700 * 2101, '\0'));
  size_t bytes = 0;
  std::thread([&] {
    ImageSandbox box;
    for (int i = 0; i < 3; ++i) bytes += box.decode(large, "a").pixels.size();
  }).join();
  EXPECT_EQ(bytes, size_t(3 * 3 * 700 * 700));
}

TEST(ImageSandbox, AnErrorIsTheSameAndTheWorkerLivesOn) {
  ImageSandbox box;
  EXPECT_EQ(message_of([&] { box.decode(std::string("GIF89a"), "x.img"); }), error_of("GIF89a"));
  const pid_t worker = box.worker();
  EXPECT_GT(worker, 0);
  box.decode(from_hex(kGrey), "a");
  EXPECT_EQ(box.worker(), worker);
}

TEST(ImageSandbox, WhatGoesWrongIsOneError) {
  ImageSandbox box(hook);
  const auto fails = [&](const std::string& name) {
    const std::string message = message_of([&] { box.decode(from_hex(kGrey), name); });
    EXPECT_EQ(box.decode(from_hex(kGrey), "next").width, 12) << name;  // the next image is none the worse
    return message;
  };
  EXPECT_TRUE(has(fails("crash"), "crash: the process that decodes images "));
  EXPECT_TRUE(has(fails("exit"), "ended without an answer"));
  EXPECT_TRUE(has(fails("lie"), "gave an answer that cannot be"));
  EXPECT_EQ(fails("shout"), "\\x1b[2J");
  EXPECT_TRUE(has(fails("loop"), "took more than a second of processor time"));
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_TRUE(has(fails("open"), "tried what a decoder has no need for"));
  EXPECT_TRUE(has(fails("memory"), "needs more memory"));
#endif
}

// The machine's fault and not the image's (seen in CI: a child that did nothing for a minute).
std::atomic<int>* still_to_come;  // shared with the children
Image stands_still(std::span<const char> bytes, const std::string& name) {
  if ((*still_to_come)-- > 0)
    for (char byte; ::read(STDIN_FILENO, &byte, 1) > 0;) continue;
  return decode_image(bytes, name);
}

TEST(ImageSandbox, OneThatStandsStillIsAskedOnceMore) {
  void* const shared =
      ::mmap(nullptr, sizeof *still_to_come, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  still_to_come = new (shared) std::atomic<int>(1);
  ImageSandbox box(stands_still, 2);
  EXPECT_EQ(box.decode(from_hex(kGrey), "a").width, 12);
  *still_to_come = 2;
  const auto ended = [&] {
    try {
      box.decode(from_hex(kGrey), "a");
    } catch (const Error& error) {
      return std::pair(error.exit, std::string(error.what()));
    }
    return std::pair(Exit::ok, std::string());
  };
  const auto [exit, message] = ended();
  EXPECT_EQ(exit, Exit::failure);  // no damaged picture, so none that data.corrupt = "skip" leaves out
  EXPECT_TRUE(has(message, "stood still for 2 s, and so did a second one")) << message;
  EXPECT_EQ(box.decode(from_hex(kGrey), "a").width, 12);
  ::munmap(shared, sizeof *still_to_come);
}

TEST(ImageSandbox, AKilledWorkerIsOneError) {
  ImageSandbox box;
  box.decode(from_hex(kGrey), "a");
  kill(box.worker(), SIGKILL);
  EXPECT_TRUE(has(message_of([&] { box.decode(from_hex(kGrey), "a"); }), "was ended by signal 9"));
  EXPECT_EQ(box.decode(from_hex(kGrey), "a").width, 12);
}

}  // namespace
}  // namespace linnet
