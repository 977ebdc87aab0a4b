#include "src/report/plot.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <map>

#include "linnet/text.h"

namespace linnet {

namespace {

// ---- Axes ----

// One axis: its range as drawn (of the logarithm, where that is drawn).
struct Axis {
  bool log = false;
  double low = INFINITY, high = -INFINITY;

  double of(double v) const { return log ? (v > 0 ? std::log10(v) : NAN) : v; }
  double at(double v) const { return (of(v) - low) / (high - low); }
  void hold(double v) {
    const double w = of(v);
    if (!std::isfinite(w)) return;
    low = std::min(low, w);
    high = std::max(high, w);
  }
  // An axis needs a length, also for one value or none.
  void close() {
    if (low > high) low = 0, high = 1;
    if (high - low > 1e-9 * std::max(std::fabs(low), std::fabs(high))) return;
    const double half = log ? 0.5 : low == 0 ? 0.5 : std::fabs(low) / 2;
    low -= half;
    high += half;
  }
};

std::string number(double v) { return fmt::format("{:.3g}", v == 0 ? 0 : v); }  // not -0

// Powers of ten over a decade or more; else 1, 2 or 5 times one, about `count` of them.
std::vector<Tick> ticks(const Axis& axis, int count) {
  std::vector<Tick> out;
  if (axis.log && axis.high - axis.low >= 1) {
    const double decades = std::floor(axis.high + 1e-9) - std::ceil(axis.low - 1e-9) + 1;
    const double step = std::ceil(decades / count);
    for (double e = std::ceil(axis.low - 1e-9); e <= axis.high + 1e-9; e += step)
      out.push_back({(e - axis.low) / (axis.high - axis.low), number(std::pow(10, e))});
    return out;
  }
  const double low = axis.log ? std::pow(10, axis.low) : axis.low,
               high = axis.log ? std::pow(10, axis.high) : axis.high;
  const double rough = (high - low) / count, ten = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * ten;
  for (const double nice : {5.0, 2.0, 1.0})
    if (nice * ten >= rough * 0.999) step = nice * ten;
  const double first = std::ceil(low / step - 1e-9);
  for (double k = first; k * step <= high + 1e-9 * step; ++k) out.push_back({axis.at(k * step), number(k * step)});
  return out;
}

struct Axes {
  Axis x, y;
};
Axes axes_of(const Plot& plot) {
  Axes axes{{.log = plot.log_x}, {.log = plot.log_y}};
  if (plot.from_zero && !plot.log_y) axes.y.hold(0);
  for (const Series& s : plot.series)
    for (size_t i = 0; i < s.x.size(); ++i) {
      axes.x.hold(s.x[i]);
      axes.y.hold(s.y[i]);
    }
  axes.x.close();
  axes.y.close();
  return axes;
}

// ---- Text ----

using Lines = std::vector<std::u32string>;

std::string utf8(const std::u32string& text) {
  std::string out;
  for (const char32_t c : text) {
    if (c < 0x80) {
      out += char(c);
    } else if (c < 0x800) {
      out += {char(0xC0 | c >> 6), char(0x80 | (c & 0x3F))};
    } else {
      out += {char(0xE0 | c >> 12), char(0x80 | (c >> 6 & 0x3F)), char(0x80 | (c & 0x3F))};
    }
  }
  return out;
}

// Characters that are made of dots: 2 x 4 in braille, else one letter a character.
class Canvas {
 public:
  Canvas(int columns, int rows, bool braille)
      : columns_(columns),
        rows_(rows),
        wide_(braille ? 2 : 1),
        high_(braille ? 4 : 1),
        cells_(size_t(columns * rows)) {}
  int width() const { return columns_ * wide_; }
  int height() const { return rows_ * high_; }

  // From the lower left.
  void dot(int x, int y, char letter) {
    if (x < 0 || x >= width() || y < 0 || y >= height()) return;
    const int down = height() - 1 - y;
    char32_t& cell = cells_[size_t(down / high_) * size_t(columns_) + size_t(x / wide_)];
    if (wide_ == 1) {
      cell = char32_t(letter);
    } else {  // Unicode's numbering of a braille cell's dots
      static constexpr uint8_t kBit[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
      cell = std::max<char32_t>(cell, 0x2800) | kBit[down % 4][x % 2];
    }
  }
  void line(int x0, int y0, int x1, int y1, char letter) {
    const int steps = std::max({std::abs(x1 - x0), std::abs(y1 - y0), 1});
    for (int k = 0; k <= steps; ++k)
      dot(x0 + int(std::lround(double(x1 - x0) * k / steps)), y0 + int(std::lround(double(y1 - y0) * k / steps)),
          letter);
  }
  // Behind the curves: only where nothing is.
  void mark(int column, char32_t sign) {
    for (int row = 0; row < rows_; ++row)
      if (char32_t& cell = cells_[size_t(row) * size_t(columns_) + size_t(column)]; cell == 0) cell = sign;
  }
  std::u32string row(int r) const {
    std::u32string out(cells_.begin() + r * columns_, cells_.begin() + (r + 1) * columns_);
    std::ranges::replace(out, char32_t(0), U' ');
    return out;
  }

 private:
  int columns_, rows_, wide_, high_;
  std::vector<char32_t> cells_;
};

constexpr std::string_view kLetters = "*o+x#@%&=~^abcdefgh";  // one a curve

void draw_series(Canvas& canvas, const Axes& axes, const Series& s, char letter) {
  const auto dots = [](double at, int count) { return int(std::lround(at * (count - 1))); };
  bool drawn = false;
  int x0 = 0, y0 = 0;
  for (size_t i = 0; i < s.x.size(); ++i) {
    const double x = axes.x.at(s.x[i]), y = axes.y.at(s.y[i]);
    if (!std::isfinite(x) || !std::isfinite(y)) {
      drawn = false;
      continue;
    }
    const int x1 = dots(x, canvas.width()), y1 = dots(y, canvas.height());
    canvas.line(drawn ? x0 : x1, drawn ? y0 : y1, x1, y1, letter);
    x0 = x1, y0 = y1, drawn = true;
  }
}

// "100, 150: times 0.1", each label once, in the order of the first mark.
std::vector<std::string> mark_list(const std::vector<Mark>& marks) {
  std::vector<std::string> labels, out;
  for (const Mark& m : marks)
    if (std::ranges::find(labels, m.label) == labels.end()) labels.push_back(m.label);
  for (const std::string& label : labels) {
    std::string places;
    for (const Mark& m : marks)
      if (m.label == label) places += (places.empty() ? "" : ", ") + fmt::format("{:.6g}", m.x);
    out.push_back(places + ": " + label);
  }
  return out;
}

}  // namespace

std::string wrap_words(const std::string& text, size_t width) {
  std::string out, line;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    const std::string word = text.substr(at, end - at);
    if (!line.empty() && count_chars(line) + 1 + count_chars(word) > width) {
      out += line + "\n";
      line.clear();
    }
    line += (line.empty() ? "" : " ") + word;
    at = end + 1;
  }
  return out + line + (line.empty() ? "" : "\n");
}

Terminal stdout_terminal() {
  Terminal t;
  winsize size{};
  const bool terminal = isatty(STDOUT_FILENO);
  if (terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    t.columns = size.ws_col;
    if (size.ws_row > 0) t.rows = size.ws_row;
  } else if (const char* columns = std::getenv("COLUMNS"); columns && std::atoi(columns) > 0) {
    t.columns = std::atoi(columns);
  }
  const char* name = std::getenv("TERM");
  const std::string_view term = name ? name : "";
  if (!terminal || term == "dumb" || term == "linux") return t;  // the console's font has no braille
  for (const char* variable : {"LC_ALL", "LC_CTYPE", "LANG"})
    if (const char* value = std::getenv(variable); value && *value) {
      std::string lower = value;
      std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return char(std::tolower(c)); });
      t.utf8 = lower.find("utf-8") != lower.npos || lower.find("utf8") != lower.npos;
      break;
    }
  return t;
}

std::string draw_text(const Plot& plot, const Terminal& terminal, int rows) {
  const int columns = std::clamp(terminal.columns, 24, 160);
  const bool one = plot.series.size() <= 1;
  const Axes axes = axes_of(plot);
  const std::vector<Tick> y_ticks = ticks(axes.y, rows / 3);
  size_t margin = 0;
  for (const Tick& t : y_ticks) margin = std::max(margin, t.label.size());
  Canvas canvas(columns - int(margin) - 2, rows, terminal.utf8 && one);
  const int width = columns - int(margin) - 2;

  for (size_t k = 0; k < plot.series.size(); ++k)
    draw_series(canvas, axes, plot.series[k], kLetters[k % kLetters.size()]);
  for (const Mark& m : plot.marks)
    if (const double at = axes.x.at(m.x); at >= 0 && at <= 1)
      canvas.mark(int(std::lround(at * (width - 1))), terminal.utf8 ? U'┊' : U':');

  std::string out = wrap_words(plot.title, size_t(columns));
  if (!plot.y_label.empty()) out += wrap_words(plot.y_label, size_t(columns));
  std::map<int, std::string> labels;  // by row
  for (const Tick& t : y_ticks) labels[rows - 1 - int(std::lround(t.at * (rows - 1)))] = t.label;
  for (int r = 0; r < rows; ++r) {
    const bool tick = labels.contains(r);
    std::u32string row = canvas.row(r);
    row.erase(row.find_last_not_of(U' ') + 1);
    out += fmt::format("{:>{}} {}{}\n", tick ? labels[r] : "", margin,
                       terminal.utf8 ? (tick ? "┤" : "│") : (tick ? "+" : "|"), utf8(row));
  }

  std::u32string line(size_t(width), terminal.utf8 ? U'─' : U'-');
  std::string below(size_t(width) + margin + 2, ' ');
  size_t free = 0;  // the first column of `below` that a label may take
  for (const Tick& t : ticks(axes.x, std::max(width / 10, 2))) {
    const auto at = size_t(std::lround(t.at * (width - 1)));
    line[at] = terminal.utf8 ? U'┬' : U'+';
    const size_t centre = at + margin + 2, half = t.label.size() / 2;
    const size_t start = std::min(centre - std::min(half, centre), below.size() - t.label.size());
    if (start < free) continue;
    below.replace(start, t.label.size(), t.label);
    free = start + t.label.size() + 1;
  }
  out += fmt::format("{:>{}} {}{}\n", "", margin, terminal.utf8 ? "└" : "+", utf8(line));
  below.erase(below.find_last_not_of(' ') + 1);
  out += below + "\n";
  if (!plot.x_label.empty()) out += fmt::format("{:>{}}\n", plot.x_label, columns);
  if (!one)
    for (size_t k = 0; k < plot.series.size(); ++k)
      out += wrap_words(fmt::format("{} {}", kLetters[k % kLetters.size()], plot.series[k].name), size_t(columns));
  for (const std::string& mark : mark_list(plot.marks))
    out += wrap_words(fmt::format("{} {}", terminal.utf8 ? "┊" : ":", mark), size_t(columns));
  return out;
}

std::string draw_bars(const std::vector<Bar>& bars, const Terminal& terminal, bool log) {
  size_t width = 0, note = 0;
  double top = 0, least = INFINITY;
  for (const Bar& b : bars) {
    width = std::max(width, count_chars(b.name));
    note = std::max(note, count_chars(b.note));
    if (std::isfinite(b.value)) top = std::max(top, b.value);
    if (b.value > 0) least = std::min(least, b.value);
  }
  const double decades = std::max(6.0, std::log10(top / least) + 1);
  // Where names and notes leave no room, they stand on lines of their own.
  const auto columns = size_t(std::max(terminal.columns, 24));
  const bool apart = width + note + 22 > columns;
  const double room = apart ? double(columns) - 14 : std::min(double(columns - width - note) - 14, 40.0);
  std::string out;
  for (const Bar& b : bars) {
    double share = top > 0 && b.value > 0 ? b.value / top : 0;
    if (log && share > 0) share = std::max(0.0, 1 + std::log10(share) / decades);
    if (std::isinf(b.value)) share = 1;
    std::string bar;
    const int length = std::isnan(share) ? 0 : int(std::lround(share * room));
    for (int i = 0; i < length; ++i) bar += terminal.utf8 ? "█" : "#";
    const bool count = b.value == std::floor(b.value) && std::fabs(b.value) < 1e9;
    bar += fmt::format("{} {:>9}", std::string(size_t(room) - size_t(length), ' '),
                       count ? fmt::format("{:.0f}", b.value) : fmt::format("{:.3g}", b.value));
    out += apart ? fmt::format("{}  {}\n{}", wrap_words(b.name, columns), bar, wrap_words(b.note, columns))
                 : fmt::format("{}{} {}{}\n", b.name, std::string(width - count_chars(b.name), ' '), bar,
                               b.note.empty() ? "" : "  " + b.note);
  }
  return out;
}

std::vector<Tick> axis_ticks(double low, double high, int count) { return ticks({.low = low, .high = high}, count); }

// ---- SVG ----

namespace {

constexpr double kWidth = 720, kHeight = 360, kLeft = 70, kRight = 20, kTop = 52, kBottom = 50;
double x_of(double at) { return kLeft + at * (kWidth - kLeft - kRight); }
double y_of(double at) { return kHeight - kBottom - at * (kHeight - kTop - kBottom); }

// A tenth of a unit is less than a screen shows; points within a flat stretch are left out.
std::string path_of(const Axes& axes, const Series& s) {
  std::string out;
  bool drawn = false;
  std::string last_y, held;  // held: a point that is left out if the next one is as high
  for (size_t i = 0; i < s.x.size(); ++i) {
    const double x = axes.x.at(s.x[i]), y = axes.y.at(s.y[i]);
    if (!std::isfinite(x) || !std::isfinite(y)) {
      out += held;
      held.clear();
      drawn = false;
      continue;
    }
    const std::string y_text = fmt::format("{:.1f}", y_of(y));
    const std::string point = fmt::format("{}{:.1f} {}", drawn ? "L" : "M", x_of(x), y_text);
    if (drawn && y_text == last_y) {
      held = point;
    } else {
      out += held + point;
      held.clear();
    }
    last_y = y_text;
    drawn = true;
  }
  return out + held;
}

// The colours of Okabe and Ito, but for their yellow and black: wine and a dark grey, which show on white and have
// others on a dark page (kStyle).
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                    "#e69f00", "#56b4e9", "#882255", "#374151"};
constexpr const char* kDashes[] = {"", "7 3", "2 3", "8 3 2 3", "14 4"};

constexpr const char* kStyle = R"(<style>
svg{color-scheme:light dark;font:12px system-ui,sans-serif}
.page{fill:#fff}.text{fill:#374151}.title{font-size:14px;font-weight:600}.grid{stroke:#e5e7eb}.mark{stroke:#9ca3af;stroke-dasharray:3 4}
path{fill:none;stroke-width:2;stroke-linejoin:round}.key{stroke-width:2}
@media(prefers-color-scheme:dark){.page{fill:#111827}.text{fill:#d1d5db}.grid{stroke:#374151}.mark{stroke:#6b7280}
.c0{stroke:#3b9ae1}.c1{stroke:#f07b3f}.c2{stroke:#2dc79a}.c3{stroke:#e3a3c6}.c6{stroke:#f0e442}.c7{stroke:#e5e7eb}}
</style>
)";

}  // namespace

std::string stroke_of(size_t k) {
  const char* dash = kDashes[k / std::size(kColours) % std::size(kDashes)];
  return fmt::format("stroke=\"{}\"{}", kColours[k % std::size(kColours)],
                     *dash ? fmt::format(" stroke-dasharray=\"{}\"", dash) : "");
}

Legend draw_legend(const std::vector<std::string>& names, double left, double top, double width,
                   const std::string& notes) {
  constexpr double kLine = 18, kKey = 30, kGap = 6, kLetter = 7.2;
  size_t longest = 12;
  for (const std::string& name : names) longest = std::max(longest, count_chars(name));
  const size_t columns = std::clamp<size_t>(size_t(width / (kKey + kGap + 8 + kLetter * double(longest))), 1, 5);
  const size_t cells = names.size() + (notes.empty() ? 0 : 1);
  Legend legend{.svg = "", .height = kLine * double((cells + columns - 1) / columns) + 8};
  for (size_t k = 0; k < cells; ++k) {
    const bool note = k == names.size();
    const double x = left + width / double(columns) * double(k % columns), y = top + kLine * double(k / columns + 1);
    if (!note)
      legend.svg +=
          fmt::format("<line class=\"key c{}\" {} x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>\n",
                      k % std::size(kColours), stroke_of(k), x, y - 4, x + kKey, y - 4);
    legend.svg += fmt::format("<text class=\"text\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"start\">{}</text>\n",
                              note ? x : x + kKey + kGap, y, escaped_markup(note ? notes : names[k]));
  }
  return legend;
}

std::string draw_svg(const Plot& plot) {
  const Axes axes = axes_of(plot);
  std::vector<std::string> names;
  if (plot.series.size() > 1)
    for (const Series& s : plot.series) names.push_back(s.name);
  const Legend legend = names.empty() ? Legend{"", 0} : draw_legend(names, kLeft, kHeight, kWidth - kLeft - kRight);
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" role=\"img\">\n"
      "<title>{2}</title>\n{3}<rect class=\"page\" width=\"{0}\" height=\"{1}\"/>\n"
      "<text class=\"text title\" x=\"{4}\" y=\"20\">{2}</text>\n",
      kWidth, kHeight + legend.height, escaped_markup(plot.title), kStyle, kLeft);
  const auto text = [&](double x, double y, const char* anchor, const std::string& what, const char* style = "text") {
    out += fmt::format("<text class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", style, x, y,
                       anchor, escaped_markup(what));
  };
  const auto line = [&](const char* style, double x0, double y0, double x1, double y1, const std::string& hint = "") {
    out += fmt::format("<line class=\"{}\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"", style, x0, y0, x1,
                       y1);
    out += hint.empty() ? "/>\n" : fmt::format("><title>{}</title></line>\n", escaped_markup(hint));
  };
  for (const Tick& t : ticks(axes.y, 5)) {
    line("grid", x_of(0), y_of(t.at), x_of(1), y_of(t.at));
    text(x_of(0) - 8, y_of(t.at) + 4, "end", t.label);
  }
  for (const Tick& t : ticks(axes.x, 8)) {
    line("grid", x_of(t.at), y_of(0), x_of(t.at), y_of(1));
    text(x_of(t.at), y_of(0) + 18, "middle", t.label);
  }
  text(x_of(0.5), kHeight - 12, "middle", plot.x_label);
  text(x_of(0), kTop - 12, "start", plot.y_label);
  for (const Mark& m : plot.marks)
    if (const double at = axes.x.at(m.x); at >= 0 && at <= 1)
      line("mark", x_of(at), y_of(0), x_of(at), y_of(1), fmt::format("{:.6g}: {}", m.x, m.label));
  for (size_t k = 0; k < plot.series.size(); ++k)
    out += fmt::format("<path class=\"c{}\" d=\"{}\" {}/>\n", k % std::size(kColours), path_of(axes, plot.series[k]),
                       stroke_of(k));
  return out + legend.svg + "</svg>\n";
}

}  // namespace linnet
