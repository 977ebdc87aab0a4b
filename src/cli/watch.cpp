// linnet watch: a run's curves in another terminal, drawn anew as it goes.
#include <poll.h>
#include <termios.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <sstream>

#include "cli.h"
#include "console.h"
#include "linnet/config.h"
#include "linnet/text.h"
#include "linnet/verdict.h"
#include "src/report/plot.h"
#include "src/report/run_record.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;

struct Options {
  std::string run, against;
  double seconds = 1;
  bool once = false;
};

volatile std::sig_atomic_t caught = 0;

// The other screen, without a cursor and with keys as they are pressed; every way out gives the old one back.
class Screen {
 public:
  Screen() {
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) std::signal(signal, [](int s) { caught = s; });
    std::signal(SIGWINCH, [](int) {});  // only to be woken
    if (tcgetattr(STDIN_FILENO, &before_) == 0) {
      termios raw = before_;
      raw.c_lflag &= ~tcflag_t(ICANON | ECHO);
      keys_ = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
    }
    put("\x1b[?1049h\x1b[?25l");
  }
  ~Screen() {
    put("\x1b[?25h\x1b[?1049l");
    if (keys_) tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  // At most as many lines as there is room for; what was there before is overwritten in place, so nothing flickers.
  void show(const std::string& text, int rows) {
    std::string out = "\x1b[H";
    int shown = 0;
    for (size_t at = 0, end; at < text.size() && shown < rows; at = end + 1, ++shown) {
      end = std::min(text.find('\n', at), text.size());
      out += (shown > 0 ? "\n" : "") + text.substr(at, end - at) + "\x1b[K";
    }
    put(out + "\x1b[J");
  }

  // Whether a person wants to go: q, or a signal. Returns early when the window changes.
  bool wait(double seconds) {
    pollfd input{.fd = STDIN_FILENO, .events = POLLIN};
    char key = 0;
    if (poll(&input, keys_ ? 1 : 0, int(seconds * 1000)) > 0 && ::read(STDIN_FILENO, &key, 1) == 1 && key == 'q')
      return true;
    return caught != 0;
  }

 private:
  static void put(const std::string& text) {
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  }
  termios before_{};
  bool keys_ = false;
};

RunRecord look_at(const fs::path& dir) {
  if (!fs::exists(dir / "config.toml"))
    fail(Exit::usage, "there is no run in {}: expected a folder with a config.toml", dir.string());
  return read_run_log(dir);
}

Series series_of(const RunRecord& w, const std::string& kind, const std::string& name, const std::string& label) {
  Series s{.name = label};
  double steps = 0;  // an epoch; before the first one is over, x counts steps
  for (const LoggedRow& row : w.rows)
    if (row.kind == "epoch" && row.epoch > 0) steps = double(row.step) / double(row.epoch);
  for (const LoggedRow& row : w.rows) {
    if (row.kind != kind || std::isnan(row[name])) continue;
    s.x.push_back(kind == "epoch" ? double(row.epoch) : steps > 0 ? double(row.step) / steps : double(row.step));
    s.y.push_back(row[name]);
  }
  return s;
}

std::string head_of(const RunRecord& w) {
  std::string text = fmt::format("{}: {} with {}, seed {}: {}\n", escaped(w.name), w.config.model.name,
                                 w.config.optimizer.name, w.config.train.seed,
                                 w.status == "stopped"
                                     ? fmt::format("stopped; go on with: linnet resume {}", shell_word(w.dir.string()))
                                     : escaped(w.status));
  if (w.rows.empty()) return text + "no row yet\n";
  const LoggedRow& last = w.rows.back();
  const LoggedRow *epoch = nullptr, *before = nullptr;
  for (const LoggedRow& row : w.rows)
    if (row.kind == "epoch") before = std::exchange(epoch, &row);
  text += fmt::format("epoch {} of {}, step {}", epoch ? epoch->epoch : 0, w.config.train.epochs, last.step);
  if (!std::isnan(last.img_per_s)) text += fmt::format(", {:.0f} img/s", last.img_per_s);
  if (before && w.status == "running")  // as long as the last epoch took
    text += fmt::format(", ETA {}",
                        duration_text((epoch->wall_s - before->wall_s) * double(w.config.train.epochs - epoch->epoch)));
  text += "\n";
  for (const auto& [name, what] :
       {std::pair{"train/loss", "train loss"}, {"val/loss", "val loss"}, {"val/acc", "val acc"}})
    if (epoch && !std::isnan((*epoch)[name])) text += fmt::format("{} {:.4f}  ", what, (*epoch)[name]);
  if (const double acc = w.number("test/acc"); !std::isnan(acc)) text += fmt::format("test acc {:.4f}", acc);
  std::vector<EpochResult> epochs;
  for (const LoggedRow& row : w.rows)
    if (row.kind == "epoch") epochs.push_back(epoch_result(row));
  if (const Verdict fit = judge_fit(epochs); !fit.kind.empty())
    text += fmt::format("\nfit: {}: {}", fit.kind, fit.text);
  std::string reached;
  for (const Reached& r : epochs_to(epochs))
    reached += fmt::format("{}{:g} % {}", reached.empty() ? "" : ", ", 100 * r.acc, r.epoch);
  if (!reached.empty()) text += "\nepochs to an accuracy of: " + reached;
  return text + "\n";
}

// The newest row of the layers: a bar for each gradient, velocity and update beside it.
std::string layers_of(const Row& row, const Terminal& terminal) {
  const std::string prefix = "grad_norm/";
  std::vector<Bar> bars;
  for (const auto& [name, value] : row.values) {
    if (!name.starts_with(prefix)) continue;
    const std::string layer = name.substr(prefix.size());
    const double velocity = row["velocity_norm/" + layer], update = row["update_norm/" + layer];
    bars.push_back({escaped(layer), value,
                    (std::isnan(velocity) ? "" : fmt::format("velocity {:.3g}, ", velocity)) +
                        fmt::format("update {:.3g}", update)});
  }
  if (bars.empty()) return "";
  const auto [low, high] = std::ranges::minmax(bars, {}, &Bar::value);
  return fmt::format("gradient norm by layer, step {}\n", row.step) +
         draw_bars(bars, terminal, high.value > 100 * low.value);
}

std::string rates_of(const Row& row, const Terminal& terminal) {
  const std::string prefix = "effective_lr/";
  std::vector<Bar> bars;
  for (const auto& [name, value] : row.values)
    if (name.starts_with(prefix)) bars.push_back({"from " + escaped(name.substr(prefix.size())), 100 * value});
  return bars.empty() ? ""
                      : fmt::format("% of the weights by effective learning rate, step {}\n", row.step) +
                            draw_bars(bars, terminal);
}

std::string picture_of(const RunRecord& w, const RunRecord* ghost, const Terminal& terminal, int rows) {
  const std::string metric = w.config.data.val > 0 ? "val/acc" : "train/acc";
  const std::string name = w.name, other = ghost ? "to beat: " + ghost->name : "";
  std::string text;
  std::istringstream head(head_of(w));
  for (std::string line; std::getline(head, line);)
    text += wrap_words(line, size_t(std::clamp(terminal.columns, 24, 160)));
  const auto lines = [](const std::string& t) { return int(std::ranges::count(t, '\n')); };
  const auto add = [&](const std::string& drawn) {
    if (lines(text) + lines(drawn) <= rows) text += drawn;
  };
  const auto plot = [&](const std::string& title, const std::string& kind, const std::string& key, bool log,
                        int height) {
    Plot p{.title = title, .log_y = log};
    if (ghost) p.series.push_back(series_of(*ghost, kind, key, other));  // below the run's own curve
    p.series.push_back(series_of(w, kind, key, name));
    if (p.series.back().x.size() < 2) return;
    if (log) p.log_y = std::ranges::min(p.series.back().y) > 0;
    add(draw_text(p, terminal, height));
  };
  const int height = std::clamp((rows - 12) / 4, 4, 12);
  plot(metric, "epoch", metric, false, height);
  plot("train/loss", "step", "train/loss", true, height);
  plot("learning rate", "step", "lr", false, std::max(3, height - 2));
  plot("gradient norm", "step", "grad_norm", true, std::max(3, height - 2));
  if (!w.config.log.probe.empty()) plot(w.config.log.probe, "step", "probe/weight", false, std::max(3, height - 2));
  for (auto row = w.rows.rbegin(); row != w.rows.rend(); ++row)
    if (row->kind == "layers") {
      add(layers_of(*row, terminal));
      add(rates_of(*row, terminal));
      break;
    }
  plot("share of the weights that turn round", "step", "reversed_share", false, std::max(3, height - 2));
  plot("update norm", "step", "update_norm", true, std::max(3, height - 2));
  return text;
}

int watch(const Options& o) {
  std::optional<RunRecord> ghost;
  if (!o.against.empty()) ghost = look_at(o.against);
  const RunRecord* other = ghost ? &*ghost : nullptr;
  const char* term = std::getenv("TERM");
  if (o.once || !isatty(STDOUT_FILENO) || (term && std::string_view(term) == "dumb")) {
    constexpr int kAll = 1000;
    fmt::print("{}", picture_of(look_at(o.run), other, stdout_terminal(), kAll));
    return int(Exit::ok);
  }
  look_at(o.run);  // what is wrong with it is said on the screen that stays
  Screen screen;
  do {
    const Terminal terminal = stdout_terminal();
    screen.show(picture_of(look_at(o.run), other, terminal, terminal.rows - 1) + "q: leave; the run goes on\n",
                terminal.rows);
  } while (!screen.wait(o.seconds));
  return caught ? 128 + int(caught) : int(Exit::ok);
}

}  // namespace

void add_watch(CLI::App& app, Command& command) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("watch",
                                      "Show a run's curves while it trains, in another terminal.\n\n"
                                      "  linnet watch runs/NAME --against runs/BEST");
  verb->add_option("run", options->run, "folder of the run")->required();
  verb->add_option("--against", options->against, "another run, drawn beside it as the one to beat");
  verb->add_option("--interval", options->seconds, "seconds between two looks")->check(CLI::Range(0.1, 3600.0));
  verb->add_flag("--once", options->once, "print what is there now and end");
  verb->callback([options, &command] { command = [options] { return watch(*options); }; });
}

}  // namespace linnet
