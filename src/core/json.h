// JSON from files that may be damaged or hostile. nlohmann's own reader keeps the last of two equal keys and turns 2^64
// into a float; this one refuses both.
#pragma once
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "linnet/error.h"

namespace linnet {

using Json = nlohmann::ordered_json;  // keeps the order of the keys

constexpr size_t kMaxJsonBytes = 16 << 20;
constexpr size_t kMaxJsonDepth = 8;

// Receives a text piece by piece, for a reader that needs no tree. Errors carry `exit` and begin with `place`.
class JsonEvents : public Json::json_sax_t {
 public:
  JsonEvents(std::string place, Exit exit) : place_(std::move(place)), exit_(exit) {}
  // `text` must be one JSON value in UTF-8 without a byte order mark, with nothing but white space around it, and at
  // most kMaxJsonBytes long.
  void scan(std::string_view text);

  bool binary(Json::binary_t&) override { return true; }  // JSON has none
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception&) override;

 protected:
  const std::string place_;
  const Exit exit_;
};

// The value as a tree: at most kMaxJsonDepth objects and arrays deep, each key once in its object, whole numbers within
// int64, other numbers within double. Error(exit) names `place` (the file) and the keys that lead to what is wrong.
Json parse_json(std::string_view text, const std::string& place, Exit exit);
Json read_json(const std::filesystem::path&, Exit exit);

// The text at `place` (a JSON pointer) of a file that anyone may have changed; "" where there is none.
std::string text_at(const Json&, const std::string& place);

// The whole number that v is, within T. nlohmann's own get<T>() casts whatever number there is: 2.5 becomes 2, and 1e57
// is undefined. Throws a Json::exception, as that does of a text.
template <std::integral T>
T whole(const Json& v) {
  if (v.is_number_integer() && std::in_range<T>(v.get<int64_t>())) return T(v.get<int64_t>());
  throw Json::type_error::create(302, "expected a whole number of " + std::to_string(sizeof(T)) + " bytes", &v);
}
template <std::integral T>
std::vector<T> wholes(const Json& array) {
  if (!array.is_array()) throw Json::type_error::create(302, "expected an array", &array);
  std::vector<T> all;
  for (const Json& v : array) all.push_back(whole<T>(v));
  return all;
}

}  // namespace linnet
