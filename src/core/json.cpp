#include "src/core/json.h"

#include <fmt/format.h>

#include <unordered_set>
#include <utility>
#include <vector>

#include "linnet/text.h"
#include "src/core/file.h"

namespace linnet {
namespace {

// Builds the tree. Keys are looked up in a set: ordered_json would compare each new key with all before it.
class TreeBuilder : public JsonEvents {
 public:
  using JsonEvents::JsonEvents;
  Json root;

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool string(std::string& value) override { return add(std::move(value)); }
  bool number_integer(int64_t value) override { return add(value); }
  bool number_unsigned(uint64_t value) override {
    if (value > uint64_t(INT64_MAX)) refuse(fmt::format("expected a whole number below 2^63, got {}", value));
    return add(int64_t(value));
  }
  bool number_float(double value, const std::string& text) override {
    if (text.find_first_of(".eE") == std::string::npos)  // a whole number that nlohmann could not hold
      refuse(fmt::format("expected a whole number of 64 bits, got {}", escaped(text)));
    return add(value);
  }
  bool start_object(size_t) override { return enter(Json::object()); }
  bool start_array(size_t) override { return enter(Json::array()); }
  bool end_object() override { return leave(); }
  bool end_array() override { return leave(); }
  bool key(std::string& key) override {
    if (!open_.back().keys.insert(key).second) refuse(fmt::format("got the key '{}' twice", escaped(key)));
    open_.back().key = key;
    return true;
  }

 private:
  struct Open {
    Json* value;
    std::string key = {};  // the last one, of an object
    std::unordered_set<std::string> keys = {};
  };

  // A container's address holds while it is open: only the innermost one grows.
  Json* put(Json value) {
    if (open_.empty()) {
      root = std::move(value);
      return &root;
    }
    Json& parent = *open_.back().value;
    if (parent.is_array()) return &parent.get_ref<Json::array_t&>().emplace_back(std::move(value));
    auto& members = static_cast<std::vector<Json::object_t::value_type>&>(parent.get_ref<Json::object_t&>());
    return &members.emplace_back(open_.back().key, std::move(value)).second;
  }
  bool add(Json value) {
    put(std::move(value));
    return true;
  }
  bool enter(Json container) {
    if (open_.size() == kMaxJsonDepth) refuse(fmt::format("expected at most {} levels, got more", kMaxJsonDepth));
    open_.push_back({put(std::move(container))});
    return true;
  }
  bool leave() {
    open_.pop_back();
    return true;
  }

  [[noreturn]] void refuse(const std::string& problem) const {
    std::string path;
    for (const Open& open : open_)
      path += "/" + (open.value->is_array() ? std::to_string(open.value->size()) : escaped(open.key));
    fail(exit_, "{}: at {}: {}", place_, path.empty() ? "/" : path, problem);
  }

  std::vector<Open> open_;
};

}  // namespace

bool JsonEvents::parse_error(size_t byte, const std::string& token, const nlohmann::json::exception&) {
  fail(exit_, "{}: expected JSON, got something else at its byte {}{}", place_, byte,
       token.empty() || token == "<EOF>" ? "" : fmt::format(" ('{}')", escaped(token, 40)));
}

void JsonEvents::scan(std::string_view text) {
  if (text.size() > kMaxJsonBytes)
    fail(exit_, "{}: expected at most {} bytes of JSON, got {}", place_, kMaxJsonBytes, text.size());
  // nlohmann stops at a NUL, so what follows it would not be looked at, and it skips a byte order mark.
  if (const size_t nul = text.find('\0'); nul != text.npos)
    fail(exit_, "{}: expected JSON text, got a NUL at its byte {}", place_, nul);
  if (text.starts_with("\xef\xbb\xbf")) fail(exit_, "{}: expected JSON without a byte order mark", place_);
  Json::sax_parse(text.begin(), text.end(), this);
}

Json parse_json(std::string_view text, const std::string& place, Exit exit) {
  TreeBuilder tree(place, exit);
  tree.scan(text);
  return std::move(tree.root);
}

Json read_json(const std::filesystem::path& path, Exit exit) {
  return parse_json(read_file(path, kMaxJsonBytes, exit), path.string(), exit);
}

std::string text_at(const Json& json, const std::string& place) {
  const Json::json_pointer at(place);
  return json.contains(at) && json[at].is_string() ? json[at].get<std::string>() : "";
}

}  // namespace linnet
