// Text for messages: nothing that came from a file is printed as it is, and a mistyped name gets the nearest known one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace linnet {

// One character of UTF-8 text: its code point and its length in bytes. Bytes that are no UTF-8 come one by one, each
// with `valid` false.
struct Char {
  uint32_t code;
  size_t length;
  bool valid;
};
Char decode(std::string_view text, size_t at);

// Characters, not bytes.
size_t count_chars(std::string_view text);

bool is_control(uint32_t code);

// `text` without what could move the cursor, hide or turn text around, or is no UTF-8 (each becomes \x1b or \u202e),
// cut after about `limit` bytes.
std::string escaped(std::string_view text, size_t limit = 200);

// A word that a shell (bash, zsh) takes for this path: as it is, in quotes, or as $'\x1b' where it cannot be printed.
// One that begins with '-' gets ./ in front: a program would take it for an option.
std::string shell_word(std::string_view path);

// The known name nearest to what was typed: at most 2 edits and at most a third of its length away. Empty: none is.
std::string nearest(std::string_view typed, const std::vector<std::string>& known);

// Byte offset of a line and a column in characters, both counted from 1.
size_t offset_of(std::string_view text, size_t line, size_t column);

// A line of a file, escaped, and below it carets under `width` characters from `column` on. `label` is its number.
//      7 | momentun = 0.9
//        | ^^^^^^^^
std::string excerpt(std::string_view label, std::string_view line, size_t column, size_t width);

// For HTML and XML, in text and in quoted attributes.
std::string escaped_markup(std::string_view text);

// "1 seed", "2 seeds".
std::string counted(int64_t n, std::string_view what);

// "3.2s", "1m02s", "2h05m"; "-" for what is not finite.
std::string duration_text(double seconds);

// RFC 4648, with padding.
std::string base64(std::string_view bytes);

}  // namespace linnet
