// Curves for a person: in a terminal's characters, or as a small SVG that stands by itself.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace linnet {

struct Series {
  std::string name;
  std::vector<double> x, y;  // x rises; where y is not finite the curve has a gap
};

// A vertical line. Marks of the same label are listed together.
struct Mark {
  double x;
  std::string label;
};

struct Plot {
  std::string title, x_label, y_label;
  std::vector<Series> series;
  std::vector<Mark> marks;
  bool log_x = false, log_y = false;  // only what is above 0 is drawn
  bool from_zero = false;             // the y axis begins at 0
};

// How large stdout is and whether it shows UTF-8: braille dots, else plain ASCII.
struct Terminal {
  int columns = 80, rows = 24;
  bool utf8 = false;
};
Terminal stdout_terminal();

// Lines of at most terminal.columns characters (never less than 24), each ending in a newline.
std::string draw_text(const Plot&, const Terminal&, int rows = 12);

// A line for each value: its name, a bar as long as it is beside the largest one, the value and what `note` says of it.
struct Bar {
  std::string name;
  double value;
  std::string note = {};
};
// Lines of at most terminal.columns characters, as far as one word allows it.
// `log`: bars show the logarithm, six decades of it or as many as there are.
std::string draw_bars(const std::vector<Bar>&, const Terminal&, bool log = false);

// Round numbers from `low` to `high`, about `count` of them.
struct Tick {
  double at;  // from 0 to 1 along the axis
  std::string label;
};
std::vector<Tick> axis_ticks(double low, double high, int count);

// Words side by side, a new line where the next one does not fit.
std::string wrap_words(const std::string& text, size_t width);

// Light or dark as the reader's browser is.
constexpr std::string_view kSvgBeginning = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=";
std::string draw_svg(const Plot&);

// The look of the k-th curve, as attributes: eight colours that also those tell apart who see fewer, and for each
// further eight a dash.
std::string stroke_of(size_t k);

// Curves' names with their looks, in columns below a picture that is `width` wide and ends at `top`; `notes`, where
// there are any, in a cell of their own behind them.
struct Legend {
  std::string svg;
  double height;
};
Legend draw_legend(const std::vector<std::string>& names, double left, double top, double width,
                   const std::string& notes = "");

}  // namespace linnet
