// linnet autopsy RUN
#include "src/report/autopsy.h"

#include <cmath>

#include "cli.h"
#include "console.h"
#include "linnet/text.h"
#include "src/core/file.h"
#include "src/core/json.h"
#include "src/report/run_record.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;

struct Options {
  std::string run, html;
  bool json = false;
};

// The training images that the run saw; empty, and `note` says why.
Images training_images(const RunRecord& run, std::string& note) {
  try {
    Config config = run.config;
    RunData data = load_run_data(config);
    if (text_at(run.env, "/data/train/xxh3") == digest(data.train)) return std::move(data.train);
    note = "no pictures: the training images are not those that the run saw";
  } catch (const Error& e) {
    note = fmt::format("no pictures: {}", e.what());
  }
  return {};
}

int autopsy(const Options& o) {
  const fs::path dir = o.run;
  if (!fs::exists(dir / "config.toml"))
    fail(Exit::usage, "there is no run in {}: expected a folder with a config.toml", o.run);
  const RunRecord run = read_run_summary(dir);
  if (!fs::exists(dir / "nonfinite.json"))
    fail(Exit::usage, "{} has no nonfinite.json: it did not diverge (its status is {})", o.run, run.status);
  const fs::path html = o.html.empty() ? dir / "autopsy.html" : fs::path(o.html);

  Autopsy a{.run = o.run,
            .config = run.config,
            .bad = parse_bad_step(read_file(dir / "nonfinite.json", kMaxJsonBytes, Exit::checkpoint),
                                  (dir / "nonfinite.json").string())};
  a.suggestion = suggest(a.bad, run.config);
  const std::string config = shell_word((dir / "config.toml").string());
  a.command = a.suggestion.setting.empty() ? "linnet check " + config
                                           : fmt::format("linnet train {} --set {}", config, a.suggestion.setting);
  std::string note;
  if (run.status != "diverged")
    tell(fmt::format("note: this is how an earlier sitting ended; the run has gone on since, and its status is {}\n",
                     run.status));
  const Images images = training_images(run, note);
  if (!note.empty()) tell("note: " + note + "\n");
  if (o.json)
    fmt::print("{}\n", autopsy_json(a).dump());
  else
    fmt::print("{}", autopsy_text(a, stdout_terminal()));
  std::fflush(stdout);  // a page that cannot be written takes nothing from the text
  try {
    require_replaceable(html, kAutopsyBeginning, "page of `linnet autopsy`");
    write_file_atomically(html, autopsy_page(a, images, note), Exit::checkpoint);
  } catch (const Error& e) {
    fail(e.exit, "no page is written: {}. -o FILE names another place for it", e.what());
  }
  tell(fmt::format("as a page{}: {}\n", images.size() > 0 ? ", with the batch's pictures" : "", html.string()));
  return int(Exit::ok);
}

}  // namespace

void add_autopsy(CLI::App& app, Command& command) {
  auto o = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("autopsy",
                                      "Why a run diverged: its last steps, the first tensor that was not finite, the "
                                      "batch, and what to try.\n\n"
                                      "  linnet autopsy runs/NAME");
  verb->add_option("run", o->run, "folder of a run that diverged")->required();
  verb->add_option("-o,--html", o->html, "the page (default: RUN/autopsy.html)")->check(file_name());
  verb->add_flag("--json", o->json, "step, place and suggestion as JSON on stdout");
  verb->callback([o, &command] { command = [o] { return autopsy(*o); }; });
}

}  // namespace linnet
