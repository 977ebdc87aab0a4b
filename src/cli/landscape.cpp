// linnet landscape RUN
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "console.h"
#include "linnet/text.h"
#include "linnet/weights.h"
#include "src/core/file.h"
#include "src/lab/loss_surface.h"
#include "src/report/plot.h"
#include "trained_options.h"

namespace linnet {

namespace {

constexpr std::string_view kBeginning = "<!doctype html>\n<!-- Linnet landscape -->";

struct Options : TrainedOptions {
  std::string target, html;
  int64_t images = 500, points = 11;
  double span = 1, radius = 0.1;
  int hessian = 20;
  uint64_t seed = 1;
  bool json = false;
};

// Both directions from -span to span; rows are the second one, from below.
std::string heat_map(const std::vector<std::vector<double>>& grid, double span) {
  constexpr double kCell = 30, kLeft = 50;
  const auto n = double(grid.size());
  double low = INFINITY, high = -INFINITY;
  for (const auto& row : grid)
    for (const double v : row)
      if (std::isfinite(v)) low = std::min(low, v), high = std::max(high, v);
  const auto shade = [&](double v) {  // by the logarithm: a slope must be seen near the bottom, too
    if (!std::isfinite(v)) return 0.0;
    const double top = std::log1p((high - low) / std::max(low, 1e-3));
    return top > 0 ? 1 - std::log1p((v - low) / std::max(low, 1e-3)) / top : 1;
  };
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {0}\" width=\"{0}\" role=\"img\">"
      "<title>loss over two directions, from {1:g} to {2:g}</title>\n",
      kLeft + n * kCell + 10, -span, span);
  for (size_t j = 0; j < grid.size(); ++j)
    for (size_t i = 0; i < grid[j].size(); ++i) {
      const double s = shade(grid[j][i]);  // from dark red (high) over yellow to dark green (low)
      out += fmt::format(
          "<rect x=\"{:.0f}\" y=\"{:.0f}\" width=\"{}\" height=\"{}\" fill=\"hsl({:.0f} 70% "
          "{:.0f}%)\"><title>{:.4g}</title></rect>\n",
          kLeft + double(i) * kCell, (n - 1 - double(j)) * kCell, kCell, kCell, 130 * s, 45 + 10 * s, grid[j][i]);
    }
  out += fmt::format(
      "<g font-family=\"sans-serif\" font-size=\"12\" fill=\"#888\"><text x=\"{0}\" y=\"{1}\">{2:g}</text>"
      "<text x=\"{3}\" y=\"{1}\" text-anchor=\"end\">{4:g}</text><text x=\"4\" y=\"{5}\">{2:g}</text><text x=\"4\" "
      "y=\"14\">{4:g}</text></g></svg>\n",
      kLeft, n * kCell + 16, -span, kLeft + n * kCell, span, n * kCell);
  return out;
}

int landscape(const Options& o) {
  if (!o.html.empty()) require_replaceable(o.html, kBeginning, "page of `linnet landscape`");
  Trained trained = open_trained(o.target, o);
  for (const std::string& note : trained.notes) tell("note: " + note + "\n");
  Config& config = trained.config;
  const RunData data = load_run_data(config);
  const auto backend = make_backend(config.train.device, backend_options(config));
  Net net(*backend, config.model.name, model_options(config, data.train), 0);
  set_weights(*backend, net.params(), trained.weights, trained.origin);
  const BatchSource source = upload_source(*backend, data.train, config.data.mean, config.data.std);
  LossSurface surface(net, source, data.train.classes, o.images);

  const auto d1 = surface.direction(o.seed), d2 = surface.direction(o.seed + 1000);
  const auto place = [&](int64_t k, int64_t n) { return o.span * (2 * double(k) / double(n - 1) - 1); };
  Series line{.name = "loss", .x = {}, .y = {}};
  for (int64_t k = 0; k < 2 * o.points - 1; ++k) {
    line.x.push_back(place(k, 2 * o.points - 1));
    line.y.push_back(surface.at(d1, line.x.back()));
  }
  const LossSurface::Rise rise = surface.rise(o.radius, 5, o.seed);
  const LossSurface::Top top = surface.top_eigenvalue(o.hessian);
  std::vector<std::vector<double>> grid;
  if (!o.html.empty() || o.json)
    for (int64_t j = 0; j < o.points; ++j) {
      grid.emplace_back();
      for (int64_t i = 0; i < o.points; ++i)
        grid.back().push_back(surface.at(d1, place(i, o.points), d2, place(j, o.points)));
    }

  const Plot plot{
      .title = fmt::format("{}: loss of {} training images along a random direction", config.model.name, o.images),
      .x_label = "distance, in the filters' own lengths",
      .y_label = "loss",
      .series = {line},
      .marks = {},
      .from_zero = true};
  const double here = line.y[line.y.size() / 2];
  const std::string numbers = fmt::format(
      "loss {:.4f}; at a distance of {:g} in 5 random directions {:.4f} higher in the mean, {:.4f} at most\n"
      "largest eigenvalue of the Hessian: {:.4g} ({} power iterations{}); plain gradient descent is stable below lr "
      "{:.3g}\n",
      here, o.radius, rise.mean, rise.most, top.value, top.steps, top.settled ? "" : ", not settled", 2 / top.value);
  if (!o.html.empty())
    write_file_atomically(
        o.html,
        fmt::format("{4}\n<meta charset=\"utf-8\"><title>{0}</title><style>body{{font:15px system-ui,sans-serif;"
                    "max-width:46rem;margin:2rem auto;padding:0 1rem}}svg{{max-width:100%;height:auto}}</style>\n"
                    "<h1>{0}</h1>\n{1}<p>{2}</p>\n<h2>Two directions</h2>\n{3}",
                    escaped_markup(o.target), draw_svg(plot), escaped_markup(numbers), heat_map(grid, o.span),
                    kBeginning),
        Exit::failure);
  if (o.json) {
    fmt::print("{}\n",
               nlohmann::ordered_json{{"loss", here},
                                      {"line", {{"x", line.x}, {"loss", line.y}}},
                                      {"grid", grid},
                                      {"rise", {{"radius", o.radius}, {"mean", rise.mean}, {"most", rise.most}}},
                                      {"top_eigenvalue", top.value},
                                      {"iterations", top.steps},
                                      {"settled", top.settled}}
                   .dump());
    return int(Exit::ok);
  }
  fmt::print("{}{}", draw_text(plot, stdout_terminal()), numbers);
  if (!o.html.empty()) fmt::print("{}\n", o.html);
  return int(Exit::ok);
}

}  // namespace

void add_landscape(CLI::App& app, Command& command) {
  auto o = std::make_shared<Options>();
  CLI::App* verb =
      app.add_subcommand("landscape",
                         "The loss around a trained net: slices, sharpness, the Hessian's largest eigenvalue.\n\n"
                         "  linnet landscape runs/NAME -o surface.html");
  add_trained_options(*verb, o->target, *o);
  verb->add_option("--images", o->images, "training images to take the loss of")
      ->check(CLI::Range(2, 100000))
      ->capture_default_str();
  verb->add_option("--span", o->span, "how far, in the filters' own lengths")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb->add_option("--points", o->points, "of the 2-D slice along each direction")
      ->check(CLI::Range(3, 101))
      ->capture_default_str();
  verb->add_option("--radius", o->radius, "of the random perturbations")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb->add_option("--hessian", o->hessian, "power iterations at most")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  verb->add_option("--seed", o->seed, "of the directions");
  verb->add_option("-o,--html", o->html, "write a page with the 1-D and the 2-D slice");
  verb->add_flag("--json", o->json, "all of it as JSON on stdout");
  verb->callback([o, &command] { command = [o] { return landscape(*o); }; });
}

}  // namespace linnet
