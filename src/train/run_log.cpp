#include "src/train/run_log.h"

#include <cmath>
#include <map>
#include <tuple>

#include "src/core/file.h"
#include "src/core/json.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxLog = uint64_t(1) << 32;

// Calls f(line) for each whole line of a log.
template <class F>
void each_line(const fs::path& log, F f) {
  std::error_code error;
  if (!fs::exists(log, error)) return;
  const std::string text = read_file(log, kMaxLog, Exit::checkpoint);
  for (size_t at = 0, end; (end = text.find('\n', at)) != text.npos; at = end + 1)
    f(std::string_view(text).substr(at, end - at));
}

}  // namespace

double Row::operator[](std::string_view name) const {
  for (const auto& [key, value] : values)
    if (key == name) return value;
  return std::numeric_limits<double>::quiet_NaN();
}

Row parse_row(std::string_view line, const std::string& place) {
  const Json json = parse_json(line, place, Exit::checkpoint);
  try {
    Row row{.kind = json.at("kind"),
            .epoch = whole<int64_t>(json.at("epoch")),
            .step = whole<int64_t>(json.at("step")),
            .hash = json.value("hash", "")};
    for (const auto& [name, value] : json.items())
      if (name != "schema" && name != "epoch" && name != "step" && !value.is_string())
        row.values.emplace_back(name, value.is_null() ? std::nan("") : value.get<double>());
    return row;
  } catch (const Json::exception& e) {
    fail(Exit::checkpoint, "{}: expected a row that Linnet wrote: {}", place, e.what());
  }
}

std::vector<LoggedRow> read_rows(const fs::path& run) {
  std::map<std::tuple<std::string, int64_t, int64_t>, std::pair<double, double>> timing;
  const std::string metrics_name = (run / "metrics.jsonl").string(), timing_name = (run / "timing.jsonl").string();
  each_line(timing_name, [&](std::string_view line) {
    const Row row = parse_row(line, timing_name);
    timing[{row.kind, row.epoch, row.step}] = {row["wall_s"], row["img_per_s"]};
  });
  std::vector<LoggedRow> rows;
  each_line(metrics_name, [&](std::string_view line) {
    LoggedRow row{parse_row(line, metrics_name)};
    const auto found = timing.find({row.kind, row.epoch, row.step});
    if (found != timing.end()) std::tie(row.wall_s, row.img_per_s) = found->second;
    rows.push_back(std::move(row));
  });
  return rows;
}

}  // namespace linnet
