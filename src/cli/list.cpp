// linnet list models|optimizers|schedules|warnings
#include <nlohmann/json.hpp>

#include "cli.h"
#include "linnet/model.h"
#include "linnet/optimizer.h"
#include "linnet/schedule.h"
#include "linnet/warnings.h"

namespace linnet {

namespace {

template <class Entry>
int list(const std::vector<Entry>& table, bool json) {
  nlohmann::ordered_json out = nlohmann::ordered_json::array();
  for (const Entry& e : table) {
    if (json)
      out.push_back({{"name", e.name}, {"summary", e.summary}});
    else
      fmt::print("{:<14} {}\n", e.name, e.summary);
  }
  if (json) fmt::print("{}\n", out.dump());
  return 0;
}

int list_warnings(bool json) {
  nlohmann::ordered_json out = nlohmann::ordered_json::array();
  for (const WarningEntry& w : warning_table()) {
    if (json)
      out.push_back({{"id", w.id}, {"kind", w.kind}, {"text", w.condition}, {"advice", w.advice}});
    else
      fmt::print("{:<4} {:<9} {}.\n               {}.\n", w.id, w.kind, w.condition, w.advice);
  }
  if (json) fmt::print("{}\n", out.dump());
  return 0;
}

}  // namespace

void add_list(CLI::App& app, Command& command) {
  CLI::App* verb = app.add_subcommand("list", "List what a config can name.\n\n  linnet list models --json");
  auto what = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  verb->add_option("what", *what, "models, optimizers, schedules or warnings")
      ->required()
      ->check(CLI::IsMember({"models", "optimizers", "schedules", "warnings"}));
  verb->add_flag("--json", *json, "JSON on stdout");
  verb->callback([=, &command] {
    command = [=] {
      if (*what == "models") return list(models(), *json);
      if (*what == "warnings") return list_warnings(*json);
      if (*what == "optimizers") return list(optimizers(), *json);
      return list(schedules(), *json);
    };
  });
}

}  // namespace linnet
