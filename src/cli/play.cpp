// linnet play FUNCTION
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "cli.h"
#include "linnet/error.h"
#include "linnet/registry.h"
#include "linnet/text.h"
#include "src/core/file.h"
#include "src/lab/landscape.h"
#include "src/report/plot.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kBeginning = "<!doctype html>\n<!-- Linnet play -->";

struct Options {
  std::string function, html, svg;
  std::vector<std::string> optimizers;
  std::vector<double> start, grid = {0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1};
  int64_t steps = 1000;
  bool json = false;
};

// One optimizer: its paths over the grid of learning rates, and the one that is shown.
struct Player {
  std::string name;
  OptimizerConfig settings;  // lr: that of `shown`
  std::string but_lr;        // what it is apart from lr: the same text for the same grid
  Path shown;
  std::vector<Path> grid;
};

// "sgd:momentum=0.9:lr=0.05": its name and keys. Their values are the config reader's to judge.
std::map<std::string, std::string> parts_of(const std::string& text) {
  std::map<std::string, std::string> parts;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(':', at), text.size());
    const std::string part = (at == 0 ? "name=" : "") + text.substr(at, end - at);
    const size_t equals = part.find('=');
    if (equals == part.npos || equals == 0 || equals + 1 == part.size())
      fail(Exit::usage, "--optimizer '{}': expected NAME or NAME:KEY=VALUE:..., got '{}' where {} should be",
           escaped(text), escaped(text.substr(at, end - at)), at == 0 ? "the name" : "KEY=VALUE");
    if (!parts.emplace(part.substr(0, equals), part.substr(equals + 1)).second)
      fail(Exit::usage, "--optimizer '{}': expected each key once, got {} twice", escaped(text),
           escaped(part.substr(0, equals)));
    at = end + 1;
  }
  return parts;
}

bool better(const Path& a, const Path& b) {
  if ((a.converged >= 0) != (b.converged >= 0)) return a.converged >= 0;
  if (a.converged >= 0) return a.converged < b.converged;
  return !a.diverged && (b.diverged || a.f.back() < b.f.back());
}

Player play_one(const Landscape& land, const Options& o, const std::string& text) {
  std::map<std::string, std::string> parts = parts_of(text);
  std::vector<std::string> keys;
  for (const auto& [key, value] : parts) keys.push_back(fmt::format("optimizer.{}={}", key, value));
  Player p{.name = text,
           .settings = parse_config("", "linnet play", keys).optimizer,
           .but_lr = parts["name"],
           .shown = {},
           .grid = {}};
  const bool has_lr = parts.contains("lr");
  for (const auto& [key, value] : parts)
    if (key != "name" && key != "lr") p.but_lr += fmt::format(":{}={}", key, value);
  if (has_lr) p.shown = walk(land, p.settings, o.steps, o.start);
  for (const double lr : o.grid) {
    OptimizerConfig at = p.settings;
    at.lr = lr;
    p.grid.push_back(walk(land, at, o.steps, o.start));
    if (has_lr || (!p.shown.w.empty() && !better(p.grid.back(), p.shown))) continue;
    p.settings.lr = lr;
    p.shown = p.grid.back();
  }
  if (!has_lr) p.name += fmt::format(" (lr {:g})", p.settings.lr);
  return p;
}

std::string outcome(const Path& p) {
  return p.diverged ? "diverges" : p.converged < 0 ? "-" : fmt::format("{}", p.converged);
}

// ---- Drawing -------------------------------------------------------------------------------------------------------

struct Frame {  // from w1, w2 to the picture
  const Landscape& land;
  double width, height;
  double x(double v) const { return (v - land.low[0]) / (land.high[0] - land.low[0]) * width; }
  double y(double v) const { return height - (v - land.low[1]) / (land.high[1] - land.low[1]) * height; }
  // In the picture's units, not too far outside it. Of one weight the height is f.
  std::pair<double, double> place(const std::vector<double>& w) const {
    return {std::clamp(x(w[0]), -1e4, 1e4), std::clamp(y(w.size() > 1 ? w[1] : land.f(w)), -1e4, 1e4)};
  }
  std::string point(const std::vector<double>& w) const {
    const auto [x, y] = place(w);
    return fmt::format("{:.1f},{:.1f}", x, y);
  }
};

std::string ground(const Frame& frame) {
  std::string path;
  if (frame.land.start.size() == 1) {
    for (int i = 0; i <= 200; ++i) {
      const double w = frame.land.low[0] + (frame.land.high[0] - frame.land.low[0]) * i / 200;
      path += (i > 0 ? " L" : "M") + frame.point({w});
    }
  } else {
    for (const double level : contour_levels(frame.land, frame.width < 400 ? 7 : 14))
      for (const Segment2& s : contour(frame.land, level, frame.width < 400 ? 30 : 100))
        path += fmt::format("M{:.1f} {:.1f}L{:.1f} {:.1f}", frame.x(s.x0), frame.y(s.y0), frame.x(s.x1), frame.y(s.y1));
  }
  return fmt::format("<path class=\"ground\" d=\"{}\"/>\n", path);
}

// So many moves of a way are drawn at most: of a longer one its first half of them and its last.
constexpr size_t kMainMoves = 20000, kSmallMoves = 2000;

// A way as drawn: its corners, "M" or "L" and a point, and the step of each.
struct Way {
  std::string corners, steps;
};

// A step is left out where the way has moved by less than a screen shows since the last corner; never so that a piece
// is drawn that never was.
Way way(const Frame& frame, const Path& p, size_t most) {
  constexpr double kSeen = 0.3;
  std::vector<size_t> kept = {0};
  std::pair<double, double> last = frame.place(p.w[0]);
  for (size_t k = 1; k < p.w.size(); ++k) {
    const auto at = frame.place(p.w[k]);
    if (std::hypot(at.first - last.first, at.second - last.second) < kSeen && k + 1 < p.w.size()) continue;
    kept.push_back(k);
    last = at;
  }
  Way out;
  for (size_t i = 0; i < kept.size(); ++i) {
    const bool gap = kept.size() > most && i == most / 2;
    if (gap) i = kept.size() - most / 2;
    out.corners += fmt::format("{}{}{}", i > 0 ? " " : "", i == 0 || gap ? "M" : "L", frame.point(p.w[kept[i]]));
    out.steps += fmt::format("{}{}", i > 0 ? " " : "", kept[i]);
  }
  return out;
}

using Ways = std::vector<std::pair<std::string, const Path*>>;

int64_t longest_of(const Ways& ways) {
  size_t longest = 1;
  for (const auto& [name, path] : ways) longest = std::max(longest, path->w.size() - 1);
  return int64_t(longest);
}

constexpr const char* kSvgStyle =
    "<style>.ground{fill:none;stroke:#9ca3af;stroke-width:.7}.way,.key{fill:none;stroke-width:1.6}.axis{stroke:#9ca3af}"
    ".place{fill:#fff;stroke:#111827;stroke-width:1.5}text{font:12px system-ui,sans-serif;fill:#6b7280}</style>\n";

// Contours, the ways over them, the minima (crosses) and the start (a ring). `with_steps`: for the page's slider.
std::string field(const Frame& frame, const Ways& ways, size_t most, bool with_steps = false) {
  std::string out = fmt::format("<svg x=\"0\" y=\"0\" width=\"{}\" height=\"{}\">\n", frame.width, frame.height);
  out += ground(frame);
  for (size_t k = 0; k < ways.size(); ++k) {
    const Way drawn = way(frame, *ways[k].second, most);
    out += fmt::format("<path class=\"way\" {} d=\"{}\"{}/>\n", stroke_of(k), drawn.corners,
                       with_steps ? fmt::format(" data-steps=\"{}\"", drawn.steps) : "");
  }
  const auto place = [&](const std::vector<double>& w, const char* shape, const char* what) {
    out += fmt::format("<g transform=\"translate({})\"><title>{}</title>{}</g>\n", frame.point(w), what, shape);
  };
  for (const std::vector<double>& w : frame.land.minima)
    place(w, "<path class=\"place\" d=\"M-4 -4L4 4M-4 4L4 -4\"/>", "minimum");
  if (!ways.empty()) place(ways[0].second->w[0], "<circle class=\"place\" r=\"4\"/>", "start");
  return out + "</svg>\n";
}

// A small one of the page: no axes, as they are those of the picture above.
std::string small_panel(const Landscape& land, const Path& path, const std::string& title) {
  const Frame frame{land, 220, 150};
  return fmt::format("{0}0 -18 {1} {2}\" width=\"{1}\" height=\"{2}\">\n{3}<text x=\"2\" y=\"-5\">{4}</text>\n",
                     std::string(kSvgBeginning) + "\"", frame.width, frame.height + 18, kSvgStyle,
                     escaped_markup(title)) +
         field(frame, {{"", &path}}, kSmallMoves) + "</svg>\n";
}

// The whole picture: axes with numbers, and below them the ways' names in columns.
std::string panel(const Landscape& land, const Ways& ways, const std::string& title, bool with_steps = false) {
  constexpr double kLeft = 52, kBelow = 42;
  const Frame frame{land, 720, 480};
  std::vector<std::string> names;
  for (const auto& [name, path] : ways) names.push_back(name);
  const Legend legend = draw_legend(names, 0, frame.height + kBelow, frame.width,
                                    land.minima.empty() ? "\u25cb start" : "\u25cb start   \u00d7 minimum");
  const double height = frame.height + kBelow + legend.height;
  std::string out =
      fmt::format("{}{} -22 {} {}\" width=\"{}\" height=\"{}\">\n{}", std::string(kSvgBeginning) + "\"", -kLeft,
                  frame.width + kLeft + 12, height + 22, frame.width + kLeft + 12, height + 22, kSvgStyle);
  const auto text = [&](double x, double y, const char* anchor, const std::string& what) {
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                       escaped_markup(what));
  };
  const auto line = [&](const std::string& look, double x0, double y0, double x1, double y1) {
    out += fmt::format("<line {} x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>\n", look, x0, y0, x1, y1);
  };
  out += fmt::format("<rect x=\"{}\" y=\"-22\" width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
                     -kLeft);  // on a dark page
  text(0, -8, "start", title);
  out += field(frame, ways, kMainMoves, with_steps);
  out += fmt::format("<rect class=\"axis\" width=\"{}\" height=\"{}\" fill=\"none\"/>\n", frame.width, frame.height);
  for (const Tick& t : axis_ticks(land.low[0], land.high[0], 8)) {
    const double x = t.at * frame.width;
    line("class=\"axis\"", x, frame.height, x, frame.height + 5);
    text(x, frame.height + 18, "middle", t.label);
  }
  for (const Tick& t : axis_ticks(land.low[1], land.high[1], 6)) {
    const double y = (1 - t.at) * frame.height;
    line("class=\"axis\"", -5, y, 0, y);
    text(-8, y + 4, "end", t.label);
  }
  text(frame.width / 2, frame.height + 34, "middle", land.start.size() > 1 ? "w1" : "w");
  text(-kLeft + 4, frame.height / 2, "start", land.start.size() > 1 ? "w2" : "f");
  return out + legend.svg + "</svg>\n";
}

Ways shown_of(const std::vector<Player>& players) {
  Ways all;
  for (const Player& p : players) all.emplace_back(p.name, &p.shown);
  return all;
}

// One file, nothing loaded. The slider cuts the ways off.
std::string page(const Landscape& land, const Options& o, const std::vector<Player>& players) {
  std::string out = fmt::format(
      "{3}\n<meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width\"><title>{0}</title>\n"
      "<style>body{{font:15px system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 "
      "1rem;color:#374151;background:#fff}}"
      "svg{{max-width:100%;height:auto}}input{{width:100%}}td,th{{padding:.2rem "
      ".7rem;text-align:right}}td:first-child,th:first-child{{text-align:left}}"
      ".small{{display:flex;flex-wrap:wrap;gap:8px}}</style>\n<h1>{0}</h1><p>{1}; at most {2}. The goal: f stays below "
      "{4:g}.</p>\n",
      land.name, escaped_markup(land.summary), counted(o.steps, "step"), kBeginning, land.goal);
  const int64_t longest = longest_of(shown_of(players));
  out += fmt::format("<div id=\"main\">{}</div>\n", panel(land, shown_of(players), "", true));
  out += fmt::format(
      "<label>step <output id=\"n\">{0}</output><input id=\"step\" type=\"range\" min=\"0\" max=\"{0}\" "
      "value=\"{0}\"></label>\n",
      longest);
  out += "<table><tr><th>optimizer<th>steps to the goal<th>f at the end<th>reversed steps</tr>\n";
  for (const Player& p : players)
    out += fmt::format("<tr><td>{}<td>{}<td>{:.3g}<td>{:.0f} %</tr>\n", escaped_markup(p.name), outcome(p.shown),
                       p.shown.f.back(), 100 * p.shown.turned);
  out +=
      "</table>\n<p>reversed: of the steps up to the goal those that turn back in some weight.</p>\n"
      "<h2>The same over a grid of learning rates</h2>\n<p>Beside each rate: the steps to the goal.</p>\n";
  std::set<std::string> seen;
  for (const Player& p : players) {
    if (!seen.insert(p.but_lr).second) continue;
    out += fmt::format("<h3>{}</h3><div class=\"small\">\n", escaped_markup(p.but_lr));
    for (size_t k = 0; k < o.grid.size(); ++k)
      out += small_panel(land, p.grid[k], fmt::format("lr {:g}: {}", o.grid[k], outcome(p.grid[k])));
    out += "</div>\n";
  }
  return out + R"(<script>
const ways = [...document.querySelectorAll("#main .way")].map(
  e => [e, e.getAttribute("d").split(" "), e.dataset.steps.split(" ").map(Number)]);
const slider = document.getElementById("step");
slider.oninput = () => {
  document.getElementById("n").textContent = slider.value;
  for (const [e, corners, steps] of ways) {
    const later = steps.findIndex(s => s > +slider.value);
    e.setAttribute("d", (later < 0 ? corners : corners.slice(0, later)).join(" "));
  }
};
</script>
)";
}

nlohmann::ordered_json json_of(const Path& p) {
  return {{"converged", p.converged < 0 ? nlohmann::ordered_json() : nlohmann::ordered_json(p.converged)},
          {"diverged", p.diverged},
          {"steps", p.w.size() - 1},
          {"f", p.f.back()},
          {"w", p.w.back()},
          {"reversed", p.turned},
          {"travelled", p.travelled},
          {"net", p.net}};
}

int play(const Options& o) {
  const Landscape& land = find_entry(landscapes(), "function", o.function);
  if (!o.start.empty() && o.start.size() != land.start.size())
    fail(Exit::usage, "--start: {} has {}, got {}", land.name, counted(int64_t(land.start.size()), "weight"),
         o.start.size());
  for (const double w : o.start)
    if (!std::isfinite(w)) fail(Exit::usage, "--start: expected finite numbers, got {}", w);
  // Absolute first: what does not exist yet stays as it was written. Of a folder that cannot be read
  // require_replaceable tells.
  const auto place_of = [](const std::string& file) {
    std::error_code error;
    return fs::weakly_canonical(fs::absolute(file), error);
  };
  if (!o.html.empty() && !o.svg.empty() && place_of(o.html) == place_of(o.svg))
    fail(Exit::usage, "--html and --svg both name {}: a page and a drawing are two files", escaped(o.html));
  if (!o.html.empty()) require_replaceable(o.html, kBeginning, "page of `linnet play`");
  if (!o.svg.empty()) require_replaceable(o.svg, kSvgBeginning, "SVG drawing");
  std::vector<Player> players;
  for (const std::string& text : o.optimizers) players.push_back(play_one(land, o, text));
  if (!o.html.empty()) write_file_atomically(o.html, page(land, o, players), Exit::checkpoint);
  if (!o.svg.empty()) write_file_atomically(o.svg, panel(land, shown_of(players), land.summary), Exit::checkpoint);
  if (o.json) {
    nlohmann::ordered_json out = {{"function", land.name},
                                  {"goal", land.goal},
                                  {"steps", o.steps},
                                  {"optimizers", nlohmann::ordered_json::array()}};
    for (const Player& p : players) {
      nlohmann::ordered_json entry = {{"optimizer", p.name}, {"lr", p.settings.lr}};
      entry.update(json_of(p.shown));
      entry["path"] = p.shown.w;
      entry["grid"] = nlohmann::ordered_json::array();
      for (size_t k = 0; k < o.grid.size(); ++k) {
        nlohmann::ordered_json cell = {{"lr", o.grid[k]}};
        cell.update(json_of(p.grid[k]));
        entry["grid"].push_back(cell);
      }
      out["optimizers"].push_back(entry);
    }
    fmt::print("{}\n", out.dump());
    return int(Exit::ok);
  }
  fmt::print("{}: {}\n\n{:<34}{:>10}{:>12}{:>10}  steps to f < {:g} with lr\n{:<34}{:>10}{:>12}{:>10}", land.name,
             land.summary, "", "steps to", "f at", "reversed", land.goal, "optimizer", "the goal", "the end", "steps");
  for (const double lr : o.grid) fmt::print("{:>9g}", lr);
  fmt::print("\n");
  for (const Player& p : players) {
    fmt::print("{:<34}{:>10}{:>12.3g}{:>9.0f}%", p.name, outcome(p.shown), p.shown.f.back(), 100 * p.shown.turned);
    for (const Path& path : p.grid) fmt::print("{:>9}", outcome(path));
    fmt::print("\n");
  }
  for (const std::string& file : {o.html, o.svg})
    if (!file.empty()) fmt::print("{}\n", file);
  return int(Exit::ok);
}

}  // namespace

void add_play(CLI::App& app, Command& command) {
  auto o = std::make_shared<Options>();
  std::string names;
  for (const Landscape& land : landscapes()) names += fmt::format("\n  {:<12}{}", land.name, land.summary);
  CLI::App* verb = app.add_subcommand(
      "play",
      "Optimizers on toy landscapes, with the very functions of training.\n\n"
      "  linnet play ravine --optimizer sgd --optimizer sgd:momentum=0.9 --optimizer adam -o ravine.html\n"
      "  linnet play rosenbrock --optimizer sgd:lr=0.001 --optimizer sgd:momentum=0.9:lr=0.001 --steps 20000\n" +
          names);
  verb->add_option("function", o->function, "landscape")->required();
  verb->add_option("--optimizer", o->optimizers,
                   "NAME or NAME:KEY=VALUE:...; may be repeated. Without lr: the best one of the grid")
      ->allow_extra_args(false)
      ->required();
  verb->add_option("--steps", o->steps, "steps at most")->check(CLI::Range(1, 1000000))->capture_default_str();
  verb->add_option("--start", o->start, "first weights, with a comma between (default: the landscape's)")
      ->delimiter(',');
  verb->add_option("--grid", o->grid, "learning rates, with commas between")->delimiter(',')->check(above_zero());
  verb->add_option("-o,--html", o->html, "write a page: the ways over contours, a slider for the step, the grid")
      ->check(file_name());
  verb->add_option("--svg", o->svg, "write the ways over contours")->check(file_name());
  verb->add_flag("--json", o->json, "JSON on stdout, with every step");
  verb->callback([o, &command] { command = [o] { return play(*o); }; });
}

}  // namespace linnet
