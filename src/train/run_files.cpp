#include "src/train/run_files.h"

#include <algorithm>

#include "linnet/text.h"
#include "src/core/json.h"

namespace linnet {

std::optional<RunImages> parse_run_images(std::string_view text, const std::string& origin) {
  const Json env = parse_json(text, origin, Exit::checkpoint);
  const Json data = env.is_object() ? env.value("data", Json::object()) : Json();
  if (!data.is_object() || !data.contains("class_names")) return {};
  const auto whole = [&](const Json& json, int64_t most) {
    if (!json.is_number_integer() || json.get<int64_t>() < 1 || json.get<int64_t>() > most)
      fail(Exit::checkpoint, "{}: expected a number from 1 to {} in its \"data\", got {}", origin, most,
           escaped(json.dump(-1, ' ', false, Json::error_handler_t::replace)));
    return int(json.get<int64_t>());
  };
  const Json image = data.value("image", Json::array());
  if (!image.is_array() || image.size() != 3 || !data["class_names"].is_array())
    fail(Exit::checkpoint, "{}: its \"data\" are not as Linnet writes them", origin);
  RunImages images{.height = whole(image[0], 224),
                   .width = whole(image[1], 224),
                   .channels = whole(image[2], 4),
                   .classes = whole(data.value("classes", Json()), 100'000)};
  for (const Json& name : data["class_names"])
    images.class_names.push_back(name.is_string() ? name.get<std::string>() : name.dump());
  for (const char* split : {"train", "val", "test"})
    if (const auto at = data.find(split); at != data.end() && at->is_object())
      if (const auto digest = at->find("xxh3"); digest != at->end() && digest->is_string())
        images.digests[split] = digest->get<std::string>();
  return images;
}

Predictions parse_predictions(std::string_view text, const std::string& origin) {
  const Json json = parse_json(text, origin, Exit::checkpoint);
  Predictions p;
  try {
    p.label = wholes<int32_t>(json.at("label"));
    p.predicted = wholes<int32_t>(json.at("predicted"));
    json.at("probability").get_to(p.probability);
  } catch (const Json::exception& e) {
    fail(Exit::checkpoint, "{}: expected predictions that Linnet wrote: {}", origin, escaped(e.what()));
  }
  const auto is_class = [](int32_t c) { return c >= 0 && c < 1000; };
  const auto is_share = [](double v) { return v >= 0 && v <= 1; };
  if (p.label.empty() || p.label.size() != p.predicted.size() || p.label.size() != p.probability.size() ||
      !std::ranges::all_of(p.label, is_class) || !std::ranges::all_of(p.predicted, is_class) ||
      !std::ranges::all_of(p.probability, is_share))
    fail(Exit::checkpoint, "{}: expected three columns of the same length, classes below 1000 and probabilities",
         origin);
  return p;
}

}  // namespace linnet
