#include "src/train/manifest.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string_view>

#include "linnet/text.h"
#include "src/core/digest.h"
#include "src/core/json.h"

namespace linnet {
namespace {

constexpr int64_t kFormat = 1;
// The end of the text: the digest of all before it.
constexpr std::string_view kTailBegin = ",\"sha256\":\"", kTailEnd = "\"}\n";
constexpr size_t kDigestDigits = 64, kTail = kTailBegin.size() + kDigestDigits + kTailEnd.size();

bool is_hex(const std::string& text, size_t digits) {
  return text.size() == digits && text.find_first_not_of("0123456789abcdef") == text.npos;
}

// A part of the tree and the way to it.
struct Part {
  const Json& json;
  std::string place;

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> problem, Args&&... args) const {
    throw Damage("manifest", fmt::format("{}: {}", place, fmt::format(problem, std::forward<Args>(args)...)));
  }
  Part at(const std::string& key) const {
    if (!json.is_object() || !json.contains(key)) refuse("expected '{}', it is missing", key);
    return {json[key], place + "/" + key};
  }
  int64_t whole() const {
    if (!json.is_number_integer() || json.get<int64_t>() < 0 || json.get<int64_t>() >= kManifestLimit)
      refuse("expected a whole number from 0 to 10^18");
    return json.get<int64_t>();
  }
  std::string text() const {
    if (!json.is_string()) refuse("expected a string");
    return json.get<std::string>();
  }
  std::string hex(size_t digits) const {
    if (!is_hex(text(), digits)) refuse("expected {} hexadecimal digits, got '{}'", digits, escaped(text()));
    return text();
  }
  template <class Do>
  void each(Do what) const {
    if (!json.is_object()) refuse("expected an object");
    for (const auto& [key, value] : json.items()) what(key, Part{value, place + "/" + escaped(key)});
  }
  void only(size_t members) const {
    if (!json.is_object() || json.size() != members)
      refuse("expected an object of {} members, got {}", members, json.size());
  }
};

Manifest::File parse_file(const Part& part) {
  part.only(2);
  return {uint64_t(part.at("size").whole()), part.at("sha256").hex(kDigestDigits)};
}

Manifest::Tensor parse_tensor(const Part& part) {
  part.only(3);
  Manifest::Tensor tensor{part.at("dtype").text(), {}, part.at("xxh3").hex(32)};
  const Part shape = part.at("shape");
  if (!shape.json.is_array()) shape.refuse("expected an array");
  for (const Json& dim : shape.json) tensor.shape.push_back(Part{dim, shape.place}.whole());
  return tensor;
}

}  // namespace

std::string to_text(Manifest& m) {
  Json json = {{"format", kFormat}, {"step", m.step}, {"epoch", m.epoch}, {"number", m.number}};
  json["best_step"] = m.best_step ? Json(*m.best_step) : Json();
  json["previous"] = m.previous.empty() ? Json() : Json(m.previous);
  json["facts"] = m.facts;
  json["files"] = Json::object();
  for (const auto& [name, file] : m.files)
    json["files"].push_back({name, {{"size", file.size}, {"sha256", file.sha256}}});
  // Filled as plain maps first: a lookup in an ordered_json compares all keys.
  nlohmann::json tensors = nlohmann::json::object();
  for (const auto& [file, named] : m.tensors) {
    tensors[file] = nlohmann::json::object();
    for (const auto& [name, t] : named)
      tensors[file][name] = {{"dtype", t.dtype}, {"shape", t.shape}, {"xxh3", t.xxh3}};
  }
  std::string text;
  try {
    text = json.dump();
    text.pop_back();  // the closing brace comes behind the digest
    text += ",\"tensors\":" + tensors.dump();
  } catch (const nlohmann::json::exception& error) {
    fail(Exit::checkpoint, "the facts of a checkpoint: expected strings in UTF-8: {}", escaped(error.what()));
  }
  m.digest = sha256(text);
  return text + fmt::format("{}{}{}", kTailBegin, m.digest, kTailEnd);
}

Manifest parse_manifest(const std::string& text, const std::string& place) {
  // The digest first: it finds every accident, and what follows then only has to hold against intent.
  const size_t body = text.size() - std::min(text.size(), kTail);
  const std::string digest = sha256(std::string_view(text).substr(0, body));
  if (text.substr(body) != fmt::format("{}{}{}", kTailBegin, digest, kTailEnd))
    throw Damage("manifest", fmt::format("{}: expected it to end with its SHA-256 {}, got '{}'", place, digest,
                                         escaped(text.substr(body))));
  Json json;
  try {
    json = parse_json(text, place, Exit::checkpoint);
  } catch (const Error& error) {
    throw Damage("manifest", error.what());
  }

  const Part root{json, place};
  if (const int64_t format = root.at("format").whole(); format != kFormat)
    fail(Exit::checkpoint, "{}: it has format {}, this version of Linnet reads {}; use the one that wrote it", place,
         format, kFormat);
  root.only(10);
  Manifest m{root.at("step").whole(), root.at("epoch").whole(), root.at("number").whole()};
  if (!root.at("best_step").json.is_null()) m.best_step = root.at("best_step").whole();
  if (!root.at("previous").json.is_null()) m.previous = root.at("previous").hex(kDigestDigits);
  root.at("facts").each([&](const std::string& key, const Part& part) { m.facts[key] = part.text(); });
  root.at("files").each([&](const std::string& key, const Part& part) { m.files[key] = parse_file(part); });
  root.at("tensors").each([&](const std::string& file, const Part& named) {
    m.tensors[file];
    named.each([&](const std::string& name, const Part& part) { m.tensors[file][name] = parse_tensor(part); });
  });
  m.digest = digest;
  return m;
}

}  // namespace linnet
