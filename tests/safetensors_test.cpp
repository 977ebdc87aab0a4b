// The safetensors reader and writer: round trips (with the reference library too, where Python has it), every rule of
// the format broken once, every bit of a header flipped, every length of a cut-off file, and writing that fails.
#include "linnet/safetensors.h"

#include <gtest/gtest.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <new>

#include "linnet/error.h"
#include "src/core/file.h"
#include "tests/golden.h"
#include "tests/temp_dir.h"

// The largest piece of memory that was asked for since it was last set to 0.
static std::atomic<size_t> largest_allocation = 0;
// Not inlined: GCC takes free() for the wrong partner of new where it sees both.
[[gnu::noinline]] void* operator new(size_t bytes) {
  size_t seen = largest_allocation;
  while (bytes > seen && !largest_allocation.compare_exchange_weak(seen, bytes)) continue;
  if (void* memory = std::malloc(std::max<size_t>(bytes, 1))) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return std::malloc(bytes); }
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace linnet {
namespace {
namespace fs = std::filesystem;

std::string slurp(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
void spill(const fs::path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

std::string with_length(uint64_t length, const std::string& rest) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + rest;
}
// A file with this header and `data` zero bytes behind it.
std::string file_of(const std::string& header, size_t data = 0) {
  return with_length(header.size(), header + std::string(data, '\0'));
}

StoredTensor stored(const std::string& dtype, const std::vector<int64_t>& shape, size_t bytes, char first = 0) {
  StoredTensor t{dtype, shape, std::vector<char>(bytes)};
  for (size_t i = 0; i < bytes; ++i) t.bytes[i] = char(first + char(i * 37));
  return t;
}

SafeTensors example() {
  SafeTensors s;
  s.tensors["conv.weight"] = stored("F32", {2, 3, 1, 1}, 24, 1);
  s.tensors["a.byte"] = stored("U8", {3}, 3, 2);
  s.tensors["half"] = stored("BF16", {2, 2}, 8, 3);
  s.tensors["counter"] = stored("I64", {}, 8, 4);
  s.tensors["nothing"] = stored("F64", {0, 5}, 0);
  s.metadata = {{"format", "pt"}, {"note", "snow: \u2603, quote: \", tab: \t"}};
  return s;
}

void expect_equal(const SafeTensors& a, const SafeTensors& b) {
  EXPECT_EQ(a.metadata, b.metadata);
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  for (const auto& [name, tensor] : a.tensors) {
    ASSERT_TRUE(b.tensors.contains(name)) << name;
    EXPECT_EQ(tensor.dtype, b.tensors.at(name).dtype) << name;
    EXPECT_EQ(tensor.shape, b.tensors.at(name).shape) << name;
    EXPECT_EQ(tensor.bytes, b.tensors.at(name).bytes) << name;
  }
}

// A file that never touches a disk, under a path of its own.
class MemoryFile {
 public:
  explicit MemoryFile(const std::string& bytes) : fd_(memfd_create("linnet", MFD_CLOEXEC)) {
    if (write(fd_.get(), bytes.data(), bytes.size()) != ssize_t(bytes.size())) throw std::runtime_error("memfd");
  }
  fs::path path() const { return fmt::format("/proc/self/fd/{}", fd_.get()); }

 private:
  Fd fd_;
};

// What reading `bytes` as a file says; empty: it is accepted. Whatever it is, memory is taken for what is there only.
std::string refusal(const std::string& bytes) {
  const MemoryFile file(bytes);
  const fs::path path = file.path();
  std::string message;
  largest_allocation = 0;
  try {
    const SafeTensors read = read_safetensors(path);
    size_t data = 0;
    for (const auto& [name, tensor] : read.tensors) data += tensor.bytes.size();
    EXPECT_LE(data, bytes.size());
  } catch (const Error& error) {
    EXPECT_EQ(error.exit, Exit::checkpoint);
    message = error.what();
    EXPECT_NE(message.find(path.string()), std::string::npos) << message;
    EXPECT_TRUE(std::ranges::all_of(message, [](char c) { return uint8_t(c) >= 0x20 && c != 0x7f; })) << message;
  }
  EXPECT_LE(largest_allocation, 2 * bytes.size() + 4096);  // a string that grows doubles its memory
  return message;
}

std::string write_refusal(const fs::path& path, const SafeTensors& contents) {
  try {
    write_safetensors(path, contents);
  } catch (const Error& error) {
    EXPECT_EQ(error.exit, Exit::checkpoint);
    EXPECT_NE(std::string(error.what()).find(path.string()), std::string::npos) << error.what();
    return error.what();
  }
  return "";
}

size_t count_files(const fs::path& folder) {
  return size_t(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

TEST(SafeTensors, RoundTripBitForBit) {
  const TempDir dir;
  write_safetensors(dir / "a.safetensors", example());
  expect_equal(example(), read_safetensors(dir / "a.safetensors"));
  EXPECT_EQ(count_files(dir.path()), 1u);

  // The same contents are the same file.
  write_safetensors(dir / "b.safetensors", read_safetensors(dir / "a.safetensors"));
  EXPECT_EQ(slurp(dir / "a.safetensors"), slurp(dir / "b.safetensors"));
}

TEST(SafeTensors, RoundTripOfEveryTypeAndEveryFloat) {
  const TempDir dir;
  SafeTensors s;
  for (const char* type : {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}) {
    const std::string name = type;
    const size_t bytes = name == "BOOL" ? 1 : size_t(std::atoi(name.c_str() + name.find_first_of("0123456789"))) / 8;
    s.tensors["x." + name] = stored(type, {3, 7}, 21 * bytes);
  }
  const float floats[] = {0.f, -0.f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::denorm_min()};
  StoredTensor& odd = s.tensors["floats"] = stored("F32", {5}, sizeof floats);
  std::memcpy(odd.bytes.data(), floats, sizeof floats);
  write_safetensors(dir / "a", s);
  expect_equal(s, read_safetensors(dir / "a"));
}

TEST(SafeTensors, EmptyFileHasNoTensors) {
  const TempDir dir;
  write_safetensors(dir / "a", {});
  expect_equal({}, read_safetensors(dir / "a"));
}

TEST(SafeTensors, TensorsAreAligned) {
  const TempDir dir;
  write_safetensors(dir / "a", example());
  const std::string bytes = slurp(dir / "a");
  uint64_t length;
  std::memcpy(&length, bytes.data(), 8);
  EXPECT_EQ(length % 8, 0u);
  // Wide elements first: I64 (8 bytes), F32 (24), BF16 (8), U8 (3).
  EXPECT_NE(bytes.find(R"("counter":{"data_offsets":[0,8],"dtype":"I64","shape":[]})"), std::string::npos) << bytes;
  EXPECT_NE(bytes.find(R"("conv.weight":{"data_offsets":[8,32])"), std::string::npos) << bytes;
  EXPECT_NE(bytes.find(R"("half":{"data_offsets":[32,40])"), std::string::npos) << bytes;
  EXPECT_NE(bytes.find(R"("a.byte":{"data_offsets":[40,43])"), std::string::npos) << bytes;
}

TEST(SafeTensors, ReadsAnyOrderOfFieldsTensorsAndSpaces) {
  const TempDir dir;
  const std::string header =
      "{\n \"b\" : {\"shape\":[1],\"data_offsets\":[2,3],\"dtype\":\"U8\"},"
      "\"a\":{\"\\u0064type\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
      "\"e\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[2,2]},"
      "\"__metadata__\":{}}   ";
  spill(dir / "a", with_length(header.size(), header + "xyz"));
  const SafeTensors read = read_safetensors(dir / "a");
  EXPECT_EQ(read.tensors.at("a").bytes, (std::vector<char>{'x', 'y'}));
  EXPECT_EQ(read.tensors.at("b").bytes, (std::vector<char>{'z'}));
  EXPECT_TRUE(read.tensors.at("e").bytes.empty());
}

struct Rule {
  const char* what;
  std::string bytes;
  const char* expected;  // part of the message
};

std::string tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}
const std::string kByte = tensor(R"("U8")", "[1]", "[0,1]");

std::vector<Rule> rules() {
  const std::string good = R"({"x":)" + kByte + "}";
  const auto one = [&](const std::string& dtype, const std::string& shape, const std::string& offsets, size_t data) {
    return file_of(R"({"x":)" + tensor(dtype, shape, offsets) + "}", data);
  };
  const auto named = [&](const std::string& name) { return file_of("{\"" + name + "\":" + kByte + "}", 1); };
  const auto meta = [&](const std::string& value) { return file_of(R"({"__metadata__":)" + value + "}"); };
  const std::string big = "1099511627776";  // 2^40
  std::string many = "{", strings = "{", deep = "{", ones;
  for (int i = 0; i < 1'000'000; ++i) ones += "1,";
  for (int i = 0; i < 100'000; ++i) deep += R"("shape":{)";
  for (int i = 0; i <= 100'000; ++i)
    many += fmt::format(R"({}"{}":{})", i ? "," : "", i, tensor(R"("U8")", "[0]", "[0,0]"));
  for (int i = 0; i <= 10'000; ++i) strings += fmt::format(R"({}"{}":"")", i ? "," : "", i);
  return {
      {"empty file", "", "at least 10 bytes, got 0"},
      {"no header", with_length(0, "{}"), "2 to 2 bytes, got 0"},
      {"header of one byte", with_length(1, "{}"), "got 1"},
      {"header beyond the end", with_length(good.size() + 2, good + "\0"), "cut off"},
      {"header of 2^63 bytes", with_length(uint64_t(1) << 63, good), "got 9223372036854775808"},
      {"header of 2^64-1 bytes", with_length(~uint64_t(0), good), "got 18446744073709551615"},
      {"header of 2^64-8 bytes", with_length(~uint64_t(7), good), "got 18446744073709551608"},
      {"header above 16 MiB", with_length((16 << 20) + 1, good + std::string(17 << 20, ' ')), "to 16777216 bytes"},
      {"begins with a space", file_of(" " + good, 1), "begins with '{'"},
      {"begins with a byte order mark", file_of("\xef\xbb\xbf" + good, 1), "begins with '{'"},
      {"is an array", file_of("[" + good + "]", 1), "begins with '{'"},
      {"padded with tabs", file_of(good + "\t", 1), "only spaces"},
      {"padded with newlines", file_of(good + "\n", 1), "only spaces"},
      {"padded with NUL", file_of(good + std::string(3, '\0'), 1), "NUL"},
      {"hidden behind a NUL", file_of(good + std::string(1, '\0') + "}", 1), "NUL"},
      {"two objects", file_of(good + good, 1), "JSON"},
      {"a comment", file_of("{/**/" + good.substr(1), 1), "JSON"},
      {"no JSON", file_of("{hello}"), "JSON"},
      {"trailing comma", file_of(R"({"x":)" + kByte + ",}", 1), "JSON"},
      {"no UTF-8", named("\xff"), "JSON"},
      {"lone surrogate", named("\\ud800"), "JSON"},
      {"escape sequence raw", named("\x1b[31m"), "JSON"},

      {"name empty", named(""), "name of 1 to 256"},
      {"name too long", named(std::string(257, 'n')), "got 257"},
      {"name with an escape sequence", named("a\\u001b[31m"), "\\x1b[31m': expected a name"},
      {"name with a NUL", named("a\\u0000b"), "a\\x00b"},
      {"name turned around", named("a\\u202eb"), "\\u202e"},
      {"name leads up", named("../x"), "'..'"},
      {"name leads up later", named("a/../x"), "'..'"},
      {"name twice", file_of(R"({"x":)" + kByte + R"(,"x":)" + kByte + "}", 1), "second 'x'"},
      {"name twice, once escaped", file_of(R"({"x":)" + kByte + R"(,"\u0078":)" + kByte + "}", 1), "second 'x'"},
      {"too many tensors", file_of(many + "}"), "100000 tensors"},

      {"type unknown", one(R"("F31")", "[1]", "[0,1]", 1), "got 'F31'"},
      {"type in small letters", one(R"("u8")", "[1]", "[0,1]", 1), "got 'u8'"},
      {"type empty", one(R"("")", "[1]", "[0,1]", 1), "got ''"},
      {"type a number", one("8", "[1]", "[0,1]", 1), "the number 8"},
      {"type null", one("null", "[1]", "[0,1]", 1), "null"},
      {"tensor a number", file_of(R"({"x":1})"), "expected an object, got the number 1"},
      {"tensor an array", file_of(R"({"x":[]})"), "expected an object, got an array"},
      {"tensor a string", file_of(R"({"x":"y"})"), "expected an object, got a string"},
      {"tensor empty", file_of(R"({"x":{}})"), "got the end"},
      {"no dtype", file_of(R"({"x":{"shape":[1],"data_offsets":[0,1]}})", 1), "got the end"},
      {"no shape", file_of(R"({"x":{"dtype":"U8","data_offsets":[0,1]}})", 1), "got the end"},
      {"no offsets", file_of(R"({"x":{"dtype":"U8","shape":[1]}})", 1), "got the end"},
      {"unknown field", file_of(R"({"x":{"strides":[1],)" + kByte.substr(1) + "}", 1), "field 'strides'"},
      {"dtype twice", file_of(R"({"x":{"dtype":"U8",)" + kByte.substr(1) + "}", 1), "second field 'dtype'"},
      {"shape twice", file_of(R"({"x":{"shape":[1],)" + kByte.substr(1) + "}", 1), "second field 'shape'"},
      {"offsets twice", file_of(R"({"x":{"data_offsets":[0,1],)" + kByte.substr(1) + "}", 1), "second field"},

      {"shape a number", one(R"("U8")", "1", "[0,1]", 1), "the number 1"},
      {"shape with a float", one(R"("U8")", "[1.0]", "[0,1]", 1), "got the number 1.0"},
      {"shape with an exponent", one(R"("U8")", "[1e0]", "[0,1]", 1), "got the number 1e0"},
      {"shape with a negative", one(R"("U8")", "[-1]", "[0,1]", 1), "got the number -1"},
      {"shape with minus zero", one(R"("U8")", "[-0]", "[0,0]", 0), "got the number 0"},
      {"shape with true", one(R"("U8")", "[true]", "[0,1]", 1), "got true"},
      {"shape with a string", one(R"("U8")", R"(["1"])", "[0,1]", 1), "got a string"},
      {"shape nested", one(R"("U8")", "[[1]]", "[0,1]", 1), "got an array"},
      {"shape of 9 dimensions", one(R"("U8")", "[1,1,1,1,1,1,1,1,1]", "[0,1]", 1), "at most 8"},
      {"shape of a million dimensions", one(R"("U8")", "[" + ones + "1]", "[0,1]", 1), "at most 8"},
      {"dimension above 2^40", one(R"("U8")", "[1099511627777]", "[0,1]", 1), "got the number 1099511627777"},
      {"dimension of 2^63", one(R"("U8")", "[9223372036854775808]", "[0,1]", 1), "2^40"},
      {"dimension of 2^64", one(R"("U8")", "[18446744073709551616]", "[0,1]", 1), "2^40"},
      {"product of 2^80", one(R"("U8")", "[" + big + "," + big + "]", "[0,1]", 1), "below 2^63"},
      {"product that wraps to 0", one(R"("U8")", "[4294967296,4294967296]", "[0,0]", 0), "below 2^63"},
      {"product that wraps behind a 0", one(R"("U8")", "[0," + big + "," + big + "]", "[0,0]", 0), "below 2^63"},
      {"product that wraps before a 0", one(R"("U8")", "[" + big + "," + big + ",0]", "[0,0]", 0), "below 2^63"},
      {"bytes that overflow", one(R"("F64")", "[" + big + ",1048576]", "[0,1]", 1), "below 2^63"},
      {"more data than the shape", one(R"("U8")", "[1]", "[0,2]", 2), "expected 1 bytes for U8 [1], got 2"},
      {"less data than the shape", one(R"("F32")", "[1]", "[0,2]", 2), "expected 4 bytes for F32 [1], got 2"},

      {"offsets a number", one(R"("U8")", "[1]", "1", 1), "the number 1"},
      {"one offset", one(R"("U8")", "[1]", "[0]", 1), "got only one"},
      {"three offsets", one(R"("U8")", "[1]", "[0,1,1]", 1), "two whole numbers, got the number 1"},
      {"offset a float", one(R"("U8")", "[1]", "[0,1.0]", 1), "the number 1.0"},
      {"offset negative", one(R"("U8")", "[1]", "[-1,0]", 1), "the number -1"},
      {"offset of 2^64", one(R"("U8")", "[1]", "[0,18446744073709551616]", 1), "18446744073709551616"},
      {"offset of 2^64-1", one(R"("U8")", "[1]", "[0,18446744073709551615]", 1), "to at most 1"},
      {"offsets turned around", one(R"("U8")", "[1]", "[1,0]", 1), "got [1,0]"},
      {"offsets turned around behind a tensor",
       file_of(R"({"x":)" + kByte + R"(,"y":)" + tensor(R"("U8")", "[1]", "[1,0]") + "}", 1), "got [1,0]"},
      {"begins late", one(R"("U8")", "[1]", "[1,2]", 2), "from 0"},
      {"ends beyond the file", one(R"("U8")", "[2]", "[0,2]", 1), "to at most 1"},
      {"ends before the file", one(R"("U8")", "[1]", "[0,1]", 2),
       "expected 1 bytes of tensors behind the header, got 2"},
      {"data of no tensor", file_of("{}", 1), "expected 0 bytes of tensors"},
      {"overlap", file_of(R"({"x":)" + kByte + R"(,"y":)" + kByte + "}", 1), "from 1"},
      {"half an overlap",
       file_of(R"({"x":)" + tensor(R"("U8")", "[2]", "[0,2]") + R"(,"y":)" + tensor(R"("U8")", "[2]", "[1,3]") + "}",
               3),
       "from 2"},
      {"gap", file_of(R"({"x":)" + kByte + R"(,"y":)" + tensor(R"("U8")", "[1]", "[2,3]") + "}", 3), "from 1"},

      {"metadata a string", meta(R"("x")"), "got a string"},
      {"metadata with a number", meta(R"({"a":1})"), "expected a string, got the number 1"},
      {"metadata with null", meta(R"({"a":null})"), "expected a string, got null"},
      {"metadata with an object", meta(R"({"a":{}})"), "expected a string, got an object"},
      {"metadata with an array", meta(R"({"a":[]})"), "expected a string, got an array"},
      {"metadata key twice", meta(R"({"a":"","a":""})"), "got 'a' twice"},
      {"metadata twice", file_of(R"({"__metadata__":{},"__metadata__":{}})"), "got a second"},
      {"too many metadata strings", meta(strings + "}"), "10000 strings"},

      {"deep arrays", one(R"("U8")", std::string(1'000'000, '['), "[0,1]", 1), "got an array"},
      {"deep objects", file_of(deep + "}"), "got an object"},
      {"a million digits", one(R"("U8")", "[" + std::string(1'000'000, '9') + "]", "[0,1]", 1), "..."},
      {"a long string", one("\"" + std::string(1'000'000, 'a') + "\"", "[1]", "[0,1]", 1), "..."},
  };
}

TEST(SafeTensors, EveryRuleRefusesAFile) {
  // The control: what the rules are variations of is accepted.
  EXPECT_EQ(refusal(file_of(R"({"x":)" + kByte + "}", 1)), "");
  EXPECT_EQ(refusal(file_of(R"({"x":)" + kByte + "}    ", 1)), "");
  EXPECT_EQ(refusal(file_of(R"({"__metadata__":{"a":"b"}})")), "");
  EXPECT_EQ(refusal(file_of("{\"" + std::string(256, 'n') + "\":" + kByte + "}", 1)), "");
  EXPECT_EQ(refusal(file_of(R"({"a..b/c":)" + kByte + "}", 1)), "");
  EXPECT_EQ(refusal(file_of(R"({"x":)" + tensor(R"("U8")", "[1099511627776,0]", "[0,0]") + "}")), "");
  EXPECT_EQ(refusal(file_of(R"({"x":)" + tensor(R"("U8")", "[1,1,1,1,1,1,1,1]", "[0,1]") + "}", 1)), "");

  for (const Rule& rule : rules()) {
    const std::string message = refusal(rule.bytes);
    EXPECT_NE(message.find(rule.expected), std::string::npos) << rule.what << ": " << message;
    EXPECT_LE(message.size(), 1000u) << rule.what;
  }
}

TEST(SafeTensors, EveryBitOfTheHeaderFlipped) {
  const TempDir dir;
  write_safetensors(dir / "a", example());
  const std::string sound = slurp(dir / "a");
  uint64_t length;
  std::memcpy(&length, sound.data(), 8);
  int refused = 0;
  for (size_t i = 0; i < 8 + length; ++i)
    for (int bit = 0; bit < 8; ++bit) {
      std::string bytes = sound;
      bytes[i] = char(bytes[i] ^ (1 << bit));
      refused += !refusal(bytes).empty();
      if (HasFailure()) FAIL() << "byte " << i << " bit " << bit;
    }
  // What passes is another name, metadata text or type of the same size; all of structure and length is refused.
  EXPECT_GE(refused, int(8 + length) * 8 / 2);
}

TEST(SafeTensors, BytesOverwrittenAtRandom) {
  const TempDir dir;
  write_safetensors(dir / "a", example());
  const std::string sound = slurp(dir / "a"), letters = "{}[]\",:0123456789-.eE\\u \0\xff";
  uint32_t state = 1;
  const auto next = [&](size_t below) { return (state = state * 1664525 + 1013904223) / 65536 % uint32_t(below); };
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = sound;
    for (uint32_t n = next(4) + 1; n > 0; --n) bytes[next(bytes.size())] = letters[next(letters.size())];
    if (next(4) == 0) bytes.insert(8 + next(bytes.size() - 8), 1, letters[next(letters.size())]);
    refusal(bytes);
    if (HasFailure()) FAIL() << "round " << round;
  }
}

TEST(SafeTensors, EveryTruncationAndEveryExtensionIsRefused) {
  const TempDir dir;
  write_safetensors(dir / "a", example());
  const std::string sound = slurp(dir / "a");
  for (size_t n = 0; n < sound.size(); ++n) EXPECT_NE(refusal(sound.substr(0, n)), "") << n;
  for (size_t n : {1, 7, 8, 4096}) EXPECT_NE(refusal(sound + std::string(n, '\0')), "") << n;
  EXPECT_EQ(refusal(sound), "");
}

TEST(SafeTensors, LargeSparseFileTakesNoMemory) {
  const TempDir dir;
  const int64_t size = int64_t(1) << 33;
  spill(dir / "a",
        file_of(R"({"x":)" + tensor(R"("U8")", fmt::format("[{}]", size), fmt::format("[0,{}]", size)) + "}"));
  fs::resize_file(dir / "a", fs::file_size(dir / "a") + uint64_t(size));
  largest_allocation = 0;
  EXPECT_THROW(read_safetensors(dir / "a"), Error);
  EXPECT_LE(largest_allocation, 4096u);
  spill(dir / "b", file_of(R"({"x":)" + kByte + "}", 1));
  EXPECT_NO_THROW(read_safetensors(dir / "b", fs::file_size(dir / "b")));
  EXPECT_THROW(read_safetensors(dir / "b", fs::file_size(dir / "b") - 1), Error);
}

TEST(SafeTensors, ReadsRegularFilesOnly) {
  const TempDir dir;
  ASSERT_EQ(mkfifo((dir / "pipe").c_str(), 0600), 0);
  for (const fs::path& path : {dir / "missing", dir.path(), dir / "pipe", fs::path("/dev/zero")})
    EXPECT_THROW(read_safetensors(path), Error) << path;
  fs::create_symlink(dir / "real", dir / "link");
  write_safetensors(dir / "real", example());
  expect_equal(example(), read_safetensors(dir / "link"));
}

TEST(SafeTensors, WriterRefusesWhatTheReaderWould) {
  const TempDir dir;
  const auto one = [](const std::string& name, const StoredTensor& t) { return SafeTensors{{{name, t}}, {}}; };
  const StoredTensor byte = stored("U8", {1}, 1);
  EXPECT_EQ(write_refusal(dir / "control", one("x", byte)), "");
  EXPECT_NE(write_refusal(dir / "a", one("", byte)), "");
  EXPECT_NE(write_refusal(dir / "a", one("__metadata__", byte)), "");
  EXPECT_NE(write_refusal(dir / "a", one("a\nb", byte)), "");
  EXPECT_NE(write_refusal(dir / "a", one("\xff", byte)), "");
  EXPECT_NE(write_refusal(dir / "a", one("../x", byte)), "");
  EXPECT_NE(write_refusal(dir / "a", one(std::string(257, 'n'), byte)), "");
  EXPECT_NE(write_refusal(dir / "a", one("x", stored("F8", {1}, 1))), "");
  EXPECT_NE(write_refusal(dir / "a", one("x", stored("U8", {2}, 1))), "");
  EXPECT_NE(write_refusal(dir / "a", one("x", stored("U8", {-1}, 1))), "");
  EXPECT_NE(write_refusal(dir / "a", one("x", stored("U8", {1, 1, 1, 1, 1, 1, 1, 1, 1}, 1))), "");
  EXPECT_NE(write_refusal(dir / "a", {{}, {{"key", "\xff"}}}), "");
  EXPECT_NE(write_refusal(dir / "a", {{}, {{"key", std::string(17 << 20, 'a')}}}), "");
  EXPECT_EQ(count_files(dir.path()), 1u);
}

// As root, permissions are not looked at; the file system's own user can be another one.
class FileUser {
 public:
  explicit FileUser(uid_t user) : old_(setfsuid(user)) {}
  ~FileUser() { setfsuid(uid_t(old_)); }

 private:
  int old_;
};

TEST(SafeTensors, FoldersThatCannotBeWritten) {
  const TempDir dir;
  spill(dir / "file", "x");
  for (const fs::path& path : {dir / "missing" / "a", dir / "file" / "a", fs::path("/proc/linnet.safetensors")})
    EXPECT_NE(write_refusal(path, example()).find("unchanged"), std::string::npos) << path;
  EXPECT_NE(write_refusal(dir / std::string(256, 'a'), example()), "");
  EXPECT_NE(write_refusal(dir.path(), example()).find("regular file"), std::string::npos);
  // Renaming over a device would remove it; a pipe stands for one here.
  ASSERT_EQ(mkfifo((dir / "pipe").c_str(), 0600), 0);
  EXPECT_NE(write_refusal(dir / "pipe", example()).find("regular file"), std::string::npos);
  EXPECT_TRUE(fs::is_fifo(dir / "pipe"));

  fs::create_directory(dir / "closed");
  write_safetensors(dir / "closed" / "a", example());
  fs::permissions(dir.path(), fs::perms(0755));
  fs::permissions(dir / "closed", fs::perms(0555));
  std::string message;
  {
    const FileUser nobody(geteuid() == 0 ? 65534 : geteuid());
    message = write_refusal(dir / "closed" / "a", {});
  }
  EXPECT_NE(message.find("Permission denied"), std::string::npos) << message;
  expect_equal(example(), read_safetensors(dir / "closed" / "a"));
  fs::permissions(dir / "closed", fs::perms(0755));
  EXPECT_EQ(count_files(dir / "closed"), 1u);
}

TEST(SafeTensors, WritingThatFailsKeepsTheOldFile) {
  const TempDir dir;
  write_safetensors(dir / "a", example());
  SafeTensors large = example();
  large.tensors["large"] = stored("U8", {100'000}, 100'000);

  rlimit old;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit small{50'000, old.rlim_max};  // bytes in one file, as on a full disk
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = write_refusal(dir / "a", large);
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);

  EXPECT_NE(message.find("writing: File too large"), std::string::npos) << message;
  expect_equal(example(), read_safetensors(dir / "a"));
  EXPECT_EQ(count_files(dir.path()), 1u);
  write_safetensors(dir / "a", large);
  expect_equal(large, read_safetensors(dir / "a"));
}

TEST(SafeTensors, TemporaryFilesLeftBehindAreNoHindrance) {
  const TempDir dir;
  for (int n = 0; n < 3; ++n) spill(dir / fmt::format(".linnet-{}-{}.tmp", getpid(), n), "half");
  write_safetensors(dir / "a", example());
  expect_equal(example(), read_safetensors(dir / "a"));
  EXPECT_EQ(slurp(dir / fmt::format(".linnet-{}-0.tmp", getpid())), "half");
}

TEST(SafeTensors, FilesAreReadableByOthersAsTheUmaskSays) {
  const TempDir dir;
  const mode_t old = umask(022);
  write_safetensors(dir / "a", {});
  umask(old);
  EXPECT_EQ(fs::status(dir / "a").permissions(), fs::perms(0644));
}

TEST(File, ReadFileHasALimit) {
  const TempDir dir;
  write_file_atomically(dir / "a", "12345", Exit::data);
  EXPECT_EQ(read_file(dir / "a", 5, Exit::data), "12345");
  try {
    read_file(dir / "a", 4, Exit::data);
    FAIL() << "5 bytes passed a limit of 4";
  } catch (const Error& error) {
    EXPECT_EQ(error.exit, Exit::data);
    EXPECT_NE(std::string(error.what()).find("at most 4 bytes, got 5"), std::string::npos) << error.what();
  }
}

TEST(File, InputFileKeepsWhatItOpenedAndSeesItShrink) {
  const TempDir dir;
  spill(dir / "a", "12345");
  const InputFile file(dir / "a", Exit::data);
  write_file_atomically(dir / "a", "other", Exit::data);
  char bytes[3];
  file.read(2, bytes);
  EXPECT_EQ(std::string(bytes, 3), "345");
  EXPECT_THROW(file.read(3, bytes), Error);
}

// Written by the reference library (scripts/reference_safetensors.py): Python is not needed to compare with it.
TEST(SafeTensors, ReadsAFileOfTheReferenceLibrary) {
  const auto tensor_of = [](const std::string& dtype, const std::vector<int64_t>& shape, const auto& values) {
    const char* bytes = reinterpret_cast<const char*>(values.data());
    return StoredTensor{dtype, shape, {bytes, bytes + values.size() * sizeof(values[0])}};
  };
  SafeTensors want;
  want.tensors["conv.weight"] = tensor_of(
      "F32", {2, 3}, std::vector{1.5f, -0.f, 0.1f, std::numeric_limits<float>::infinity(), -0x1p-149f, 3e38f});
  want.tensors["half"] = tensor_of("F16", {4}, std::vector<uint16_t>{0x3C00, 0xC100, 0x7BFF, 1});  // 1 -2.5 65504 2^-24
  want.tensors["brain"] = tensor_of("BF16", {3}, std::vector<uint16_t>{0x3F80, 0xC020, 0x7F80});   // 1 -2.5 infinity
  want.tensors["count"] = tensor_of("I64", {2, 1}, std::vector<int64_t>{-1, int64_t(1) << 62});
  want.tensors["scalar"] = tensor_of("I64", {}, std::vector<int64_t>{391});
  want.tensors["empty"] = tensor_of("F32", {0, 3}, std::vector<float>{});
  want.metadata = {{"format", "pt"}, {"note", "snow: \u2603, quote: \""}};
  expect_equal(want, read_safetensors(golden("reference.safetensors")));
}

// Runs a script with a Python that has the reference library; false: there is none.
bool run_reference(const fs::path& folder, const std::string& script) {
  spill(folder / "script.py", script);
  for (const char* python : {"python3", "/usr/bin/python3"}) {
    const std::string import =
        fmt::format("{} -c 'import numpy, safetensors.numpy' 2> \"{}\"", python, (folder / "log").string());
    if (std::system(import.c_str()) != 0) continue;
    const std::string command = fmt::format("cd \"{}\" && {} script.py 2> log", folder.string(), python);
    EXPECT_EQ(std::system(command.c_str()), 0) << slurp(folder / "log");
    return true;
  }
  return false;
}

TEST(SafeTensors, ReferenceLibraryReadsOurFileAndWeReadItsOwn) {
  const TempDir dir;
  SafeTensors ours = example();
  ours.tensors.erase("half");  // numpy has no BF16
  ours.tensors["half"] = stored("F16", {2, 2}, 8, 3);
  ours.tensors["yes"] = stored("BOOL", {2}, 2);
  ours.tensors["yes"].bytes = {0, 1};
  write_safetensors(dir / "ours.safetensors", ours);
  const bool ran = run_reference(dir.path(), R"(
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
tensors = load_file("ours.safetensors")
assert sorted(tensors) == ["a.byte", "conv.weight", "counter", "half", "nothing", "yes"], sorted(tensors)
w = tensors["conv.weight"]
assert w.dtype == np.float32 and w.shape == (2, 3, 1, 1)
assert w.tobytes() == bytes((1 + i * 37) % 256 for i in range(24))
assert tensors["counter"].dtype == np.int64 and tensors["counter"].shape == ()
assert tensors["nothing"].shape == (0, 5) and tensors["half"].dtype == np.float16
assert tensors["yes"].tolist() == [False, True]
with safe_open("ours.safetensors", "np") as f:
    metadata = f.metadata()
assert metadata == {"format": "pt", "note": "snow: \u2603, quote: \", tab: \t"}, metadata
save_file(tensors, "theirs.safetensors", metadata)
)");
  if (!ran) GTEST_SKIP() << "no python3 with numpy and safetensors";
  expect_equal(ours, read_safetensors(dir / "theirs.safetensors"));
}

}  // namespace
}  // namespace linnet
