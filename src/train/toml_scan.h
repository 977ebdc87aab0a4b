// A first look at TOML text, before toml++ sees it: toml++ recurses by nesting and by the parts of a key, so that a
// hostile file of 262 KB ends the stack. No recursion here, and no library. Strings of several lines are refused too:
// no key takes one.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace linnet {

constexpr size_t kTomlBytes = 64 << 10, kTomlString = 4 << 10;
constexpr int kTomlDepth = 16, kTomlKeyParts = 8;

// Thrown for text beyond a limit, not UTF-8, or with control characters.
struct TomlRefused {
  size_t offset;
  std::string message;
};

// The offsets at which statements (a key and its value, or a section's header) start: each a start of a line.
std::vector<size_t> scan_toml(std::string_view text);

}  // namespace linnet
