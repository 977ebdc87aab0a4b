#include "src/train/toml_scan.h"

#include <fmt/format.h>

#include <algorithm>

#include "linnet/text.h"

namespace linnet {
namespace {

void check_characters(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const Char c = decode(text, i);
    const bool is_space = c.code == '\t' || c.code == '\n' || c.code == '\r';
    if (!c.valid) throw TomlRefused{i, fmt::format("byte 0x{:02x} is not UTF-8 text", c.code)};
    if (is_control(c.code) && !is_space) throw TomlRefused{i, fmt::format("control character 0x{:02x}", c.code)};
    i += c.length;
  }
}

// The end of the string that starts at text[at]: it ends with its line at the latest.
size_t string_end(std::string_view text, size_t at) {
  const char quote = text[at];
  if (text.substr(at, 3) == std::string(3, quote)) throw TomlRefused{at, "text of several lines; write it on one"};
  for (size_t i = at + 1; i < text.size(); ++i) {
    if (text[i] == '\n') return i;
    if (text[i] == quote) return i + 1;
    if (quote == '"' && text[i] == '\\') ++i;  // an escaped character does not end the string
  }
  return text.size();
}

}  // namespace

std::vector<size_t> scan_toml(std::string_view text) {
  if (text.size() > kTomlBytes) throw TomlRefused{0, fmt::format("more than {} bytes", kTomlBytes)};
  check_characters(text);
  std::vector<size_t> statements = {0};
  int depth = 0, parts = 1;
  for (size_t i = 0; i < text.size();) {
    size_t next = i + 1;
    switch (text[i]) {
      case '"':
      case '\'':
        next = string_end(text, i);
        if (next - i > kTomlString) throw TomlRefused{i, fmt::format("a string of more than {} bytes", kTomlString)};
        break;
      case '#':
        next = std::min(text.find('\n', i), text.size());
        break;
      case '.':  // in a number too, but there at most once
        if (++parts > kTomlKeyParts) throw TomlRefused{i, fmt::format("a key of more than {} parts", kTomlKeyParts)};
        break;
      case '[':
      case '{':
        if (++depth > kTomlDepth) throw TomlRefused{i, fmt::format("brackets more than {} deep", kTomlDepth)};
        parts = 1;
        break;
      case ']':
      case '}':
        depth = std::max(depth - 1, 0);
        parts = 1;
        break;
      case '\n':
        if (depth == 0) statements.push_back(next);
        parts = 1;
        break;
      case '=':
      case ',':
        parts = 1;
        break;
    }
    i = next;
  }
  return statements;
}

}  // namespace linnet
