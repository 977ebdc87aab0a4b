#include "src/report/page.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "linnet/page_assets.h"  // written by the build
#include "linnet/run.h"
#include "linnet/text.h"

namespace linnet {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMistakes = 18;  // pictures of a group

// ---- Predictions ---------------------------------------------------------------------------------------------------

// An image that the runs of a group get wrong.
struct Mistake {
  size_t image = 0;
  int32_t label = 0, predicted = 0;
  double sure = 0;  // mean over all the runs of the wrong class's probability, 0 where a run is right
  int64_t wrong = 0;
};

std::vector<Mistake> most_confident_mistakes(const std::vector<Predictions>& runs) {
  std::vector<Mistake> all(runs[0].label.size());
  for (size_t i = 0; i < all.size(); ++i) {
    Mistake& m = all[i];
    m.image = i;
    m.label = runs[0].label[i];
    double top = 0;
    for (const Predictions& run : runs) {
      if (run.predicted[i] == run.label[i]) continue;
      ++m.wrong;
      m.sure += run.probability[i] / double(runs.size());
      if (run.probability[i] > top) top = run.probability[i], m.predicted = run.predicted[i];
    }
  }
  const size_t n = std::min(kMistakes, all.size());
  std::ranges::partial_sort(all, all.begin() + int64_t(n), std::greater(), &Mistake::sure);
  all.resize(n);
  std::erase_if(all, [](const Mistake& m) { return m.wrong == 0; });
  return all;
}

// counts[label][predicted], over all the runs.
Json confusion(const std::vector<Predictions>& runs) {
  int32_t classes = 0;
  for (const Predictions& run : runs)
    for (size_t i = 0; i < run.label.size(); ++i) classes = std::max({classes, run.label[i] + 1, run.predicted[i] + 1});
  std::vector<std::vector<int64_t>> counts(size_t(classes), std::vector<int64_t>(size_t(classes), 0));
  for (const Predictions& run : runs)
    for (size_t i = 0; i < run.label.size(); ++i) ++counts[size_t(run.label[i])][size_t(run.predicted[i])];
  return counts;
}

// ---- Pictures ------------------------------------------------------------------------------------------------------

// The test images that a run was measured on, while they are the same ones; empty otherwise, and `notes` says why.
Images test_images_of(const RunRecord& run, std::vector<std::string>& notes) {
  try {
    Config config = run.config;
    Images images = load_run_data(config).test();
    const std::string then = text_at(run.env, "/data/test/xxh3");
    if (then.empty() || then == digest(images)) return images;
    notes.push_back(fmt::format("no pictures: the test images are not those that {} was measured on", run.name));
  } catch (const Error& e) {
    notes.push_back(fmt::format("no pictures of mistakes: {}", e.what()));
  }
  return {};
}

// For each group its confusion matrix and mistakes; the pictures that they show, each once, and the names of classes.
Json examine(const std::vector<Group>& groups, std::vector<std::string>& notes) {
  Json all = {{"groups", Json::array()}, {"pictures", Json::object()}};
  std::map<std::string, Images> data;  // by the digest of the test images
  int64_t without = 0;
  for (const Group& group : groups) {
    std::vector<Predictions> runs;
    const RunRecord* first = nullptr;
    for (const RunRecord& run : group.runs) {
      without += !run.predictions && run.status == "done";
      if (!run.predictions || (!runs.empty() && run.predictions->label != runs[0].label)) continue;
      if (!first) first = &run;
      runs.push_back(*run.predictions);
    }
    if (!first) {
      all["groups"].push_back(nullptr);
      continue;
    }
    const std::string key = text_at(first->env, "/data/test/xxh3");
    if (!data.contains(key)) data[key] = test_images_of(*first, notes);
    const Images& images = data[key];
    Json mistakes = Json::array();
    for (const Mistake& m : most_confident_mistakes(runs)) {
      const std::string picture = fmt::format("{}/{}", key.substr(0, 6), m.image);
      if (int64_t(m.image) < images.size() && !all["pictures"].contains(picture))
        all["pictures"][picture] = "data:image/png;base64," + base64(to_png(images, int64_t(m.image)));
      mistakes.push_back({{"image", m.image},
                          {"picture", picture},
                          {"label", m.label},
                          {"predicted", m.predicted},
                          {"sure", std::round(m.sure * 1e4) / 1e4},
                          {"wrong", m.wrong}});
    }
    Json names = value_at(first->env, "/data/class_names");
    if (names.is_null()) names = images.class_names;
    all["groups"].push_back(
        {{"n", runs.size()}, {"classes", names}, {"confusion", confusion(runs)}, {"mistakes", mistakes}});
  }
  if (without > 0)
    notes.push_back(
        fmt::format("{} finished runs have no predictions.json (an older Linnet made them): they are in no "
                    "confusion matrix",
                    without));
  return all;
}

// ---- The page ------------------------------------------------------------------------------------------------------

// JSON in a <script>: no "</script>" and no "<!--" can come up in it.
std::string in_script(const Json& json) {
  std::string out;
  for (const char c : json.dump(-1, ' ', false, Json::error_handler_t::replace))
    if (c == '<')
      out += "\\u003c";
    else
      out += c;
  return out;
}

}  // namespace

std::string report_page(const std::vector<Group>& groups, const Json& comparison, const PageOptions& o,
                        std::vector<std::string>& notes) {
  Json data = {{"title", o.title}, {"made", o.made}, {"command", o.command}, {"comparison", comparison}};
  data["curves"] = curves(groups);
  data["examined"] = examine(groups, notes);
  data["configs"] = Json::array();
  for (const Group& group : groups) data["configs"].push_back(to_toml(group.runs[0].config));
  data["notes"] = notes;

  const std::pair<std::string_view, std::string> parts[] = {
      {"{{TITLE}}", escaped_markup(o.title)}, {"{{CHARTJS}}", kChartJs}, {"{{DATA}}", in_script(data)}};
  std::string page;
  std::string_view rest = kPage;
  for (const auto& [mark, text] : parts) {  // in the page's order; what is put in is not looked at again
    const size_t at = rest.find(mark);
    require(at != rest.npos, "[report_page] expected {} in page.html", mark);
    page.append(rest.substr(0, at)).append(text);
    rest.remove_prefix(at + mark.size());
  }
  return page.append(rest);
}

}  // namespace linnet
