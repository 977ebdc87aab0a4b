// The safetensors file format (github.com/huggingface/safetensors): an 8-byte little-endian header length, a JSON
// header, raw tensors. Files that Linnet writes open in any tool; files it reads are checked to the last byte before
// use.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace linnet {

struct StoredTensor {
  std::string dtype;  // "F32", "BF16", "I64", ... as in the file
  std::vector<int64_t> shape;
  std::vector<char> bytes;  // little-endian, row-major
};

struct SafeTensors {
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> metadata;  // "__metadata__": strings only
};

// Types: F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL. A name is 1 to 256 bytes of printable UTF-8 without a ".." folder; a
// tensor has at most 8 dimensions of at most 2^40, a file at most 100,000 tensors and 10,000 metadata strings.
//
// Written by write_file_atomically (src/core/file.h): `path` holds the old file or the whole new one. Wide elements
// come first, then tensors are in the order of their names, so that each is aligned to its element.
// Error(Exit::checkpoint) names path and reason, also where a tensor breaks a rule of the format.
void write_safetensors(const std::filesystem::path& path, const SafeTensors&);

// Error(Exit::checkpoint) that names the file, the tensor, what was expected and what came, before anything is
// allocated for the tensors: a header that is not exactly right (a gap, an overlap, an unknown or repeated field, a
// number that is no integer) is refused. The format has no checksum, so damaged numbers cannot be seen here. `limit`:
// of the file, in bytes.
SafeTensors read_safetensors(const std::filesystem::path& path, uint64_t limit = uint64_t(4) << 30);

// The same, from and to memory, for who writes and checks the bytes on their own; messages call them `origin`. A file
// is the header and then the tensors' bytes, which stay those of the SafeTensors that was given.
struct SafeTensorsBytes {
  std::string header;
  std::vector<std::string_view> tensors;
};
SafeTensorsBytes to_safetensors_bytes(const SafeTensors&, const std::string& origin);
SafeTensors parse_safetensors(std::string_view bytes, const std::string& origin);

}  // namespace linnet
