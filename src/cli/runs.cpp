// linnet runs [DIR...]
#include <cmath>
#include <cstdlib>

#include "cli.h"
#include "console.h"
#include "linnet/text.h"
#include "src/report/comparison.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;

std::string or_dash(double share) { return std::isfinite(share) ? fmt::format("{:.2f} %", 100 * share) : "-"; }

int list_runs(std::vector<std::string> folders, bool json) {
  if (folders.empty()) {
    const char* base = std::getenv("LINNET_RUNS");
    folders = {base && *base ? base : "runs"};
  }
  Json all = Json::array();
  for (const std::string& folder : folders) {
    if (!fs::is_directory(folder)) fail(Exit::usage, "there is no folder {}", folder);
    for (const fs::path& dir : find_runs(folder)) {
      try {
        const RunRecord run = read_run_summary(dir);
        all.push_back({{"dir", dir.string()}, {"status", run.status}});
        for (const char* key : {"epoch", "val/acc", "test/acc", "wall_s"})
          all.back()[key] = run.summary.value(key, Json(nullptr));
        all.back()["epochs"] = run.config.train.epochs;
        all.back()["best"] = run.summary.value("best", Json(nullptr));
        if (json) continue;
        const double epoch = run.number("epoch");
        fmt::print("{:<11} epoch {:>3}/{:<3}  val {:>8}  test {:>8}  {:>7}  {}\n", escaped(run.status, 11),
                   std::isfinite(epoch) ? int64_t(epoch) : 0, run.config.train.epochs, or_dash(run.number("val/acc")),
                   or_dash(run.number("test/acc")), duration_text(run.number("wall_s")), escaped(dir.string()));
      } catch (const Error& e) {
        tell(fmt::format("note: {} cannot be read: {}\n", escaped(dir.string()), e.what()));
      }
    }
  }
  if (json)
    fmt::print("{}\n", all.dump());
  else if (all.empty())
    tell("no runs\n");
  return int(Exit::ok);
}

}  // namespace

void add_runs(CLI::App& app, Command& command) {
  auto folders = std::make_shared<std::vector<std::string>>();
  auto json = std::make_shared<bool>(false);
  CLI::App* verb = app.add_subcommand("runs",
                                      "List runs, one line each, from their summaries.\n\n"
                                      "  linnet runs\n"
                                      "  linnet runs runs/cmp --json");
  verb->add_option("folders", *folders, "folders to look in (default: $LINNET_RUNS, or runs)");
  verb->add_flag("--json", *json, "JSON on stdout");
  verb->callback([=, &command] { command = [=] { return list_runs(*folders, *json); }; });
}

}  // namespace linnet
