// linnet report RUN|DIR... -o report.html
#include <fmt/chrono.h>

#include <cmath>
#include <cstdlib>
#include <set>

#include "cli.h"
#include "console.h"
#include "linnet/run.h"
#include "linnet/text.h"
#include "src/core/file.h"
#include "src/report/page.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;

struct Options {
  std::vector<std::string> folders;
  std::string out, title;
  std::vector<double> targets;
  bool json = false;
};

std::vector<RunRecord> read_runs(const std::vector<std::string>& folders) {
  std::vector<RunRecord> runs;
  std::set<fs::path> seen;  // `linnet report runs/a runs/*` names some twice
  for (const std::string& folder : folders) {
    if (!fs::is_directory(folder)) fail(Exit::usage, "there is no folder {}", folder);
    for (const fs::path& dir : find_runs(folder)) {
      if (!seen.insert(fs::canonical(dir)).second) continue;
      try {
        runs.push_back(read_run(dir));
      } catch (const Error& e) {
        tell(fmt::format("note: {} is left out: {}\n", escaped(dir.string()), e.what()));
      }
    }
  }
  if (runs.empty())
    fail(Exit::usage, "there is no run in {}: expected run folders, or folders that hold some", folders[0]);
  return runs;
}

// The time, or what SOURCE_DATE_EPOCH says it is.
std::string today() {
  std::time_t now = std::time(nullptr);
  if (const char* fixed = std::getenv("SOURCE_DATE_EPOCH"); fixed && *fixed) now = std::atoll(fixed);
  return fmt::format("{:%Y-%m-%d %H:%M} UTC", fmt::gmtime(now));
}

int report(const Options& o) {
  for (const double t : o.targets)
    if (!(t > 0 && t < 1)) fail(Exit::usage, "--target expects accuracies between 0 and 1, such as 0.8, got {}", t);
  if (!o.out.empty()) require_replaceable(o.out, kReportBeginning, "report of Linnet's");
  const std::vector<Group> groups = group_runs(read_runs(o.folders));
  Json numbers = {{"linnet", version()}};
  numbers.update(compare(groups, o.targets));
  if (!o.out.empty()) {
    PageOptions page{.title = o.title, .made = today(), .command = "linnet report"};
    for (const std::string& folder : o.folders) page.command += " " + folder;
    page.command += " -o " + o.out;
    if (page.title.empty())
      page.title = groups.size() == 1 ? groups[0].label : fmt::format("{} recipes compared", groups.size());
    std::vector<std::string> notes;
    write_file_atomically(o.out, report_page(groups, numbers, page, notes), Exit::checkpoint);
    for (const std::string& note : notes) tell("note: " + note + "\n");
    tell(fmt::format("wrote {}\n", o.out));
  }
  if (o.json)
    fmt::print("{}\n", numbers.dump());
  else
    fmt::print("{}", comparison_text(numbers));
  return int(Exit::ok);
}

}  // namespace

void add_report(CLI::App& app, Command& command) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand(
      "report",
      "Compare runs: a table here, and a page with curves that opens offline. Runs that differ in their seed alone are "
      "one group.\n\n"
      "  linnet report runs/cmp -o report.html\n"
      "  linnet report runs/A runs/B --target 0.8,0.9 --json");
  verb->add_option("folders", options->folders, "run folders, or folders that hold some")->required();
  verb->add_option("-o,--out", options->out, "the page: one HTML file")->check(file_name());
  verb->add_option("--target", options->targets, "validation accuracies to reach, as fractions (default: chosen)")
      ->delimiter(',');
  verb->add_option("--title", options->title, "of the page");
  verb->add_flag("--json", options->json, "the numbers as JSON on stdout");
  verb->callback([options, &command] { command = [options] { return report(*options); }; });
}

}  // namespace linnet
