// linnet diff RUN_A RUN_B
#include <cmath>
#include <map>
#include <optional>

#include "cli.h"
#include "linnet/text.h"
#include "src/report/comparison.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;

RunRecord open_run(const std::string& dir) {
  if (!fs::exists(fs::path(dir) / "config.toml"))
    fail(Exit::usage, "there is no run in {}: expected a folder with a config.toml", dir);
  return read_run_log(dir);
}

struct Change {
  std::string key, a, b;
};

std::vector<Change> config_changes(const RunRecord& a, const RunRecord& b) {
  std::vector<Change> all;
  for (const ConfigChange& c : differences(a.config, b.config)) all.push_back({c.key, c.from, c.to});
  return all;
}

std::vector<Change> environment_changes(const RunRecord& a, const RunRecord& b) {
  const auto left = environment_of(a), right = environment_of(b);
  std::vector<Change> all;
  for (const auto& [key, value] : left) {
    const auto other = right.find(key);
    if (other == right.end() || other->second != value)
      all.push_back({key, value, other == right.end() ? "" : other->second});
  }
  for (const auto& [key, value] : right)
    if (!left.contains(key)) all.push_back({key, "", value});
  return all;
}

// Where two runs part: states are hashed at the end of each epoch, and the rows between tell of it sooner.
struct Parting {
  const LoggedRow *last_equal = nullptr, *first_other = nullptr;  // of rows with a hash, of run a
  const LoggedRow *row_a = nullptr, *row_b = nullptr;             // the first row with other numbers
  std::string metric;
  int64_t compared = 0;  // hashes
};

std::map<std::pair<std::string, int64_t>, const LoggedRow*> by_step(const RunRecord& run) {
  std::map<std::pair<std::string, int64_t>, const LoggedRow*> all;
  for (const LoggedRow& row : run.rows) all[{row.kind, row.step}] = &row;
  return all;
}

Parting where_they_part(const RunRecord& a, const RunRecord& b) {
  const auto of_b = by_step(b);
  Parting p;
  for (const LoggedRow& row : a.rows) {
    const auto found = of_b.find({row.kind, row.step});
    if (found == of_b.end()) continue;
    const LoggedRow& other = *found->second;
    if (!p.row_a)
      for (const auto& [name, value] : row.values) {
        const double there = other[name];
        if (value == there || (std::isnan(value) && std::isnan(there))) continue;
        p.row_a = &row;
        p.row_b = &other;
        p.metric = name;
        break;
      }
    if (row.hash.empty() || other.hash.empty()) continue;
    ++p.compared;
    if (row.hash == other.hash && !p.first_other) p.last_equal = &row;
    if (row.hash != other.hash && !p.first_other) p.first_other = &row;
  }
  return p;
}

Json describe(const std::vector<Change>& changes) {
  Json all = Json::array();
  for (const Change& c : changes)
    all.push_back({{"key", c.key},
                   {"a", c.a.empty() ? Json(nullptr) : Json(c.a)},
                   {"b", c.b.empty() ? Json(nullptr) : Json(c.b)}});
  return all;
}

Json describe(const LoggedRow* row) { return row ? Json{{"epoch", row->epoch}, {"step", row->step}} : Json(nullptr); }

void print(const char* title, const std::vector<Change>& changes) {
  fmt::print("{}{}\n", title, changes.empty() ? ": the same" : "");
  for (const Change& c : changes)
    fmt::print("  {:<28} {}  ->  {}\n", escaped(c.key), c.a.empty() ? "none" : escaped(c.a),
               c.b.empty() ? "none" : escaped(c.b));
}

void print(const Parting& p) {
  if (p.compared == 0 && !p.row_a) return fmt::print("state: the runs have no step in common\n");
  if (p.compared > 0 && !p.first_other)
    fmt::print("state: the same up to step {} (epoch {}), the last that both have\n", p.last_equal->step,
               p.last_equal->epoch);
  if (p.first_other) {
    fmt::print("state: first differs at step {} (end of epoch {})", p.first_other->step, p.first_other->epoch);
    if (p.last_equal)
      fmt::print("; the same at step {} (epoch {})\n", p.last_equal->step, p.last_equal->epoch);
    else
      fmt::print("; it was never the same\n");
  }
  if (p.row_a)
    fmt::print("first other number: {} at step {}: {} and {}\n", escaped(p.metric), p.row_a->step, (*p.row_a)[p.metric],
               (*p.row_b)[p.metric]);
}

int diff(const std::string& dir_a, const std::string& dir_b, bool json) {
  const RunRecord a = open_run(dir_a), b = open_run(dir_b);
  const auto config = config_changes(a, b), environment = environment_changes(a, b);
  const Parting p = where_they_part(a, b);
  if (json) {
    Json out = {{"a", dir_a}, {"b", dir_b}, {"config", describe(config)}, {"environment", describe(environment)}};
    out["hashes_compared"] = p.compared;
    out["last_equal_state"] = describe(p.last_equal);
    out["first_different_state"] = describe(p.first_other);
    out["first_different_row"] = describe(p.row_a);
    if (p.row_a) out["first_different_row"]["metric"] = p.metric;
    fmt::print("{}\n", out.dump());
    return int(Exit::ok);
  }
  print("config", config);
  print("environment", environment);
  print(p);
  return int(Exit::ok);
}

}  // namespace

void add_diff(CLI::App& app, Command& command) {
  auto runs = std::make_shared<std::pair<std::string, std::string>>();
  auto json = std::make_shared<bool>(false);
  CLI::App* verb = app.add_subcommand("diff",
                                      "What differs between two runs: config, environment, the first step whose state "
                                      "is another.\n\n"
                                      "  linnet diff runs/A runs/B");
  verb->add_option("a", runs->first, "run folder")->required();
  verb->add_option("b", runs->second, "run folder")->required();
  verb->add_flag("--json", *json, "JSON on stdout");
  verb->callback([=, &command] { command = [=] { return diff(runs->first, runs->second, *json); }; });
}

}  // namespace linnet
