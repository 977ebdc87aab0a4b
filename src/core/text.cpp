#include "linnet/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <utility>

namespace linnet {
namespace {

// Zero-width characters and those that turn the direction of a line around.
bool is_invisible(uint32_t c) {
  return (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) || c == 0xfeff;
}

// Optimal string alignment: insertions, deletions, replacements and swaps of neighbours ("trian") count one each.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), above(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) above[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    std::swap(before, above);
    std::swap(above, row);
  }
  return above.back();
}

}  // namespace

Char decode(std::string_view text, size_t at) {
  const unsigned char c = text[at];
  if (c < 0x80) return {c, 1, true};
  const size_t length = c >> 5 == 0x6 ? 2 : c >> 4 == 0xe ? 3 : c >> 3 == 0x1e ? 4 : 0;
  if (length == 0 || length > text.size() - at) return {c, 1, false};
  uint32_t code = c & (0x7fu >> length);
  for (const unsigned char next : text.substr(at + 1, length - 1)) {
    if (next >> 6 != 2) return {c, 1, false};
    code = code << 6 | (next & 0x3f);
  }
  constexpr uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};  // anything less is an overlong form
  if (code < least[length] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return {c, 1, false};
  return {code, length, true};
}

size_t count_chars(std::string_view text) {
  size_t n = 0;
  for (size_t i = 0; i < text.size(); ++n) i += decode(text, i).length;
  return n;
}

bool is_control(uint32_t c) { return c < 0x20 || (c >= 0x7f && c < 0xa0); }

std::string escaped(std::string_view text, size_t limit) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (out.size() >= limit) return out + "...";
    const Char c = decode(text, i);
    if (c.valid && !is_control(c.code) && !is_invisible(c.code))
      out += text.substr(i, c.length);
    else
      out += c.code < 0x100 ? fmt::format("\\x{:02x}", c.code) : fmt::format("\\u{:04x}", c.code);
    i += c.length;
  }
  return out;
}

std::string shell_word(std::string_view path) {
  const std::string text = (path.starts_with('-') ? "./" : "") + std::string(path);
  if (escaped(text, std::string::npos) != text) {
    std::string word = "$'";
    for (const char c : text) {
      const bool plain = c >= ' ' && c <= '~' && c != '\'' && c != '\\';
      word += plain ? std::string(1, c) : fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
    return word + "'";
  }
  const auto is_plain = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c < 0 || std::strchr("_./:=@%+,-", c);
  };
  if (!text.empty() && std::ranges::all_of(text, is_plain)) return text;
  std::string word = "'";
  for (const char c : text) word += c == '\'' ? "'\\''" : std::string(1, c);
  return word + "'";
}

std::string nearest(std::string_view typed, const std::vector<std::string>& known) {
  const size_t allowed = std::min<size_t>(2, typed.size() / 3);
  std::string best;
  size_t best_distance = allowed + 1;
  for (const std::string& name : known) {
    if (name.size() > typed.size() + allowed || typed.size() > name.size() + allowed) continue;
    const size_t distance = edit_distance(typed, name);
    if (distance < best_distance) best = name, best_distance = distance;
  }
  return best;
}

size_t offset_of(std::string_view text, size_t line, size_t column) {
  size_t at = 0;
  while (--line > 0 && at < text.size()) at = std::min(text.find('\n', at), text.size() - 1) + 1;
  while (--column > 0 && at < text.size()) at += decode(text, at).length;
  return at;
}

std::string excerpt(std::string_view label, std::string_view line, size_t column, size_t width) {
  std::string text(line);
  std::ranges::replace(text, '\t', ' ');
  const auto between = [&](size_t from, size_t to) {
    const size_t begin = offset_of(text, 1, from);
    return text.substr(begin, offset_of(text, 1, to) - begin);
  };
  constexpr size_t kShown = 100;  // of a longer line: what is around the carets
  const size_t first = column > kShown ? column - kShown / 2 : 1, end = column + width;
  const std::string before = (first > 1 ? "..." : "") + escaped(between(first, column));
  const std::string marked = escaped(between(column, end)), after = escaped(between(end, text.size() + 1), kShown);
  return fmt::format("{:>4} | {}{}{}\n     | {}{}", label, before, marked, after, std::string(count_chars(before), ' '),
                     std::string(std::max<size_t>(count_chars(marked), 1), '^'));
}

std::string base64(std::string_view bytes) {
  constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t bits = 0;
    for (size_t k = 0; k < 3; ++k) bits = bits << 8 | (i + k < bytes.size() ? uint8_t(bytes[i + k]) : 0U);
    for (size_t k = 0; k < 4; ++k) text += i + k > bytes.size() ? '=' : digits[bits >> (18 - 6 * k) & 63];
  }
  return text;
}

std::string escaped_markup(std::string_view text) {
  std::string out;
  for (const char c : text)
    out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '"' ? "&quot;" : std::string(1, c);
  return out;
}

std::string counted(int64_t n, std::string_view what) { return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s"); }

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds)) return "-";
  if (seconds < 10) return fmt::format("{:.1f}s", seconds);
  const auto s = int64_t(std::llround(seconds));
  if (s >= 3600) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  return s >= 60 ? fmt::format("{}m{:02}s", s / 60, s % 60) : fmt::format("{}s", s);
}

}  // namespace linnet
