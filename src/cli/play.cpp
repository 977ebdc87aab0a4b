// linnet play FUNCTION
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli.h"
#include "linnet/error.h"
#include "linnet/registry.h"
#include "linnet/text.h"
#include "src/core/file.h"
#include "src/lab/landscape.h"
#include "src/report/plot.h"

namespace linnet {

namespace {

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
  Path shown;
  std::vector<Path> grid;
};

// "sgd:momentum=0.9:lr=0.05", read by the config's own reader.
OptimizerConfig settings_of(const std::string& text, bool& has_lr) {
  std::istringstream parts(text);
  std::string part;
  std::getline(parts, part, ':');
  std::vector<std::string> keys = {"optimizer.name=" + part};
  while (std::getline(parts, part, ':')) {
    has_lr = has_lr || part.starts_with("lr=");
    keys.push_back("optimizer." + part);
  }
  return parse_config("", "linnet play", keys).optimizer;
}

bool better(const Path& a, const Path& b) {
  if ((a.converged >= 0) != (b.converged >= 0)) return a.converged >= 0;
  if (a.converged >= 0) return a.converged < b.converged;
  return !a.diverged && (b.diverged || a.f.back() < b.f.back());
}

Player play_one(const Landscape& land, const Options& o, const std::string& text) {
  bool has_lr = false;
  Player p{.name = text, .settings = settings_of(text, has_lr), .shown = {}, .grid = {}};
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

constexpr const char* kColours[] = {"#2563eb", "#dc2626", "#059669", "#d97706",
                                    "#7c3aed", "#0891b2", "#be185d", "#4d7c0f"};

struct Frame {  // from w1, w2 to the picture
  const Landscape& land;
  double width, height;
  double x(double v) const { return (v - land.low[0]) / (land.high[0] - land.low[0]) * width; }
  double y(double v) const { return height - (v - land.low[1]) / (land.high[1] - land.low[1]) * height; }
  // Of one weight the height is f.
  std::string point(const std::vector<double>& w) const {
    return fmt::format("{:.1f},{:.1f}", std::clamp(x(w[0]), -1e4, 1e4),
                       std::clamp(y(w.size() > 1 ? w[1] : land.f(w)), -1e4, 1e4));
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
      for (const Segment2& s : contour(frame.land, level, frame.width < 400 ? 24 : 60))
        path += fmt::format("M{:.1f} {:.1f}L{:.1f} {:.1f}", frame.x(s.x0), frame.y(s.y0), frame.x(s.x1), frame.y(s.y1));
  }
  return fmt::format("<path class=\"ground\" d=\"{}\"/>\n", path);
}

// The way of at most `most` steps; nothing behind the first point that lies far outside.
std::string way(const Frame& frame, const Path& p, size_t most) {
  std::string points;
  for (size_t i = 0; i < p.w.size() && i <= most; ++i) points += (i > 0 ? " " : "") + frame.point(p.w[i]);
  return points;
}

std::string panel(const Landscape& land, const std::vector<std::pair<std::string, const Path*>>& paths, double width,
                  double height, const std::string& title, size_t most = 2000) {
  const Frame frame{land, width, height};
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 -18 {0} {1}\" width=\"{0}\" height=\"{1}\">\n"
      "<style>.ground{{fill:none;stroke:#9ca3af;stroke-width:.7}}polyline{{fill:none;stroke-width:1.6}}text{{font:12px "
      "system-ui,sans-serif;fill:#6b7280}}</style>\n<text x=\"2\" y=\"-5\">{2}</text>\n"
      "<svg x=\"0\" y=\"0\" width=\"{0}\" height=\"{3}\">\n",
      width, height + 18, escaped_markup(title), height);
  out += ground(frame);
  size_t k = 0;
  for (const auto& [name, path] : paths) {
    const char* colour = kColours[k % std::size(kColours)];
    out += fmt::format("<polyline stroke=\"{}\" points=\"{}\"/>\n", colour, way(frame, *path, most));
    if (paths.size() > 1)
      out += fmt::format("<text x=\"{}\" y=\"{}\" style=\"fill:{}\">{}</text>\n", 8, 16 + 15 * double(k), colour,
                         escaped_markup(name));
    ++k;
  }
  return out + "</svg>\n</svg>\n";
}

std::vector<std::pair<std::string, const Path*>> shown_of(const std::vector<Player>& players) {
  std::vector<std::pair<std::string, const Path*>> all;
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
      ".small{{display:flex;flex-wrap:wrap;gap:8px}}</style>\n<h1>{0}</h1><p>{1}; at most {2} steps</p>\n",
      land.name, escaped_markup(land.summary), o.steps, kBeginning);
  size_t longest = 1;
  for (const Player& p : players) longest = std::max(longest, std::min<size_t>(p.shown.w.size() - 1, 2000));
  out += "<div id=\"main\">" + panel(land, shown_of(players), 720, 480, "") + "</div>\n";
  out += fmt::format(
      "<label>step <output id=\"n\">{0}</output><input id=\"step\" type=\"range\" min=\"0\" max=\"{0}\" "
      "value=\"{0}\"></label>\n",
      longest);
  out += "<table><tr><th>optimizer<th>steps to the goal<th>f at the end<th>reversed steps</tr>\n";
  for (const Player& p : players)
    out += fmt::format("<tr><td>{}<td>{}<td>{:.3g}<td>{:.0f} %</tr>\n", escaped_markup(p.name), outcome(p.shown),
                       p.shown.f.back(), 100 * p.shown.turned);
  out += "</table>\n<h2>The same over a grid of learning rates</h2>\n";
  for (const Player& p : players) {
    out += fmt::format("<h3>{}</h3><div class=\"small\">\n", escaped_markup(p.name));
    for (size_t k = 0; k < o.grid.size(); ++k)
      out +=
          panel(land, {{p.name, &p.grid[k]}}, 220, 150, fmt::format("lr {:g}: {}", o.grid[k], outcome(p.grid[k])), 300);
    out += "</div>\n";
  }
  return out + R"(<script>
const lines = [...document.querySelectorAll("#main polyline")].map(e => [e, e.getAttribute("points").split(" ")]);
const slider = document.getElementById("step");
slider.oninput = () => {
  document.getElementById("n").textContent = slider.value;
  for (const [e, points] of lines) e.setAttribute("points", points.slice(0, +slider.value + 1).join(" "));
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
    fail(Exit::usage, "--start: {} has {} weights, got {}", land.name, land.start.size(), o.start.size());
  if (!o.html.empty()) require_replaceable(o.html, kBeginning, "page of `linnet play`");
  if (!o.svg.empty()) require_replaceable(o.svg, kSvgBeginning, "SVG drawing");
  std::vector<Player> players;
  for (const std::string& text : o.optimizers) players.push_back(play_one(land, o, text));
  if (!o.html.empty()) write_file_atomically(o.html, page(land, o, players), Exit::failure);
  if (!o.svg.empty())
    write_file_atomically(o.svg, panel(land, shown_of(players), 720, 480, std::string(land.summary)), Exit::failure);
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
  verb->add_option("--grid", o->grid, "learning rates, with commas between")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  verb->add_option("-o,--html", o->html, "write a page: the ways over contours, a slider for the step, the grid");
  verb->add_option("--svg", o->svg, "write the ways over contours");
  verb->add_flag("--json", o->json, "JSON on stdout, with every step");
  verb->callback([o, &command] { command = [o] { return play(*o); }; });
}

}  // namespace linnet
