// linnet landscape RUN
#include <algorithm>
#include <chrono>
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

// Viridis, from dark to bright for 0 to 1: its lightness rises, so it is read without colours, too.
std::string viridis(double s) {
  constexpr int kStops[9][3] = {{68, 1, 84},    {71, 44, 122}, {59, 81, 139},  {44, 113, 142}, {33, 144, 141},
                                {39, 173, 129}, {92, 200, 99}, {170, 220, 50}, {253, 231, 37}};
  const double at = std::clamp(s, 0.0, 1.0) * 8;
  const int k = std::min(int(at), 7);
  const auto mix = [&](int c) { return std::lround(kStops[k][c] + (at - k) * (kStops[k + 1][c] - kStops[k][c])); };
  return fmt::format("#{:02x}{:02x}{:02x}", mix(0), mix(1), mix(2));
}

// Both directions from -span to span; rows are the second one, from below. On the right what the colours mean.
std::string heat_map(const std::vector<std::vector<double>>& grid, double span) {
  constexpr double kLeft = 50, kScale = 110;
  constexpr int kSteps = 50;  // of the scale
  const auto n = double(grid.size());
  const double cell = std::min(30.0, 600 / n), height = n * cell;
  double low = INFINITY, high = -INFINITY;
  for (const auto& row : grid)
    for (const double v : row)
      if (std::isfinite(v)) low = std::min(low, v), high = std::max(high, v);
  // By the logarithm: a slope must be seen near the bottom, too.
  const double unit = std::max(low, 1e-3), top = std::log1p((high - low) / unit);
  const auto shade = [&](double v) { return top > 0 ? std::log1p((v - low) / unit) / top : 0; };
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {3}\" width=\"{0}\" role=\"img\">"
      "<title>loss over two directions, from {1:g} to {2:g}</title>\n",
      kLeft + height + kScale, -span, span, height + 30);
  for (size_t j = 0; j < grid.size(); ++j)
    for (size_t i = 0; i < grid[j].size(); ++i)
      out += fmt::format(
          "<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" "
          "fill=\"{}\"><title>{:.4g}</title></rect>\n",
          kLeft + double(i) * cell, (n - 1 - double(j)) * cell, cell, cell,
          std::isfinite(grid[j][i]) ? viridis(shade(grid[j][i])) : "#888", grid[j][i]);
  const double scale_x = kLeft + height + 20;
  out += "<g class=\"scale\">\n";
  for (int k = 0; k < kSteps; ++k)
    out += fmt::format("<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"14\" height=\"{:.2f}\" fill=\"{}\"/>\n", scale_x,
                       height * (kSteps - 1 - k) / kSteps, height / kSteps + 0.5, viridis((k + 0.5) / kSteps));
  for (const double s : {0.0, 0.25, 0.5, 0.75, 1.0})
    out += fmt::format(
        "<text x=\"{:.2f}\" y=\"{:.2f}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#888\">{:.3g}</text>\n",
        scale_x + 20, 12 + (1 - s) * (height - 12), low + unit * std::expm1(s * top));
  out += fmt::format(
      "<text x=\"{:.2f}\" y=\"{:.2f}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#888\">loss</text></g>\n",
      scale_x, height + 16);
  out += fmt::format(
      "<g font-family=\"sans-serif\" font-size=\"12\" fill=\"#888\"><text x=\"{0}\" y=\"{1}\">{2:g}</text>"
      "<text x=\"{3}\" y=\"{1}\" text-anchor=\"end\">{4:g}</text><text x=\"4\" y=\"{5}\">{2:g}</text><text x=\"4\" "
      "y=\"14\">{4:g}</text></g></svg>\n",
      kLeft, height + 16, -span, kLeft + height, span, height);
  return out;
}

// What is still to be done, from the time of one loss; a gradient takes about as long as three.
std::string estimate(const Options& o, bool with_grid, double seconds) {
  const int64_t losses = 2 * o.points - 1 + 6 + (with_grid ? o.points * o.points : 0), gradients = 2 * o.hessian;
  return fmt::format("{} losses and at most {} gradients of {} images: about {}\n", losses, gradients, o.images,
                     duration_text(seconds * double(losses + 3 * gradients)));
}

std::string curvature_text(const LossSurface::Top& top) {
  if (!top.settled)
    return fmt::format("largest eigenvalue of the Hessian: {:.4g} so far, not settled after {}; raise --hessian",
                       top.value, counted(top.steps, "power iteration"));
  return fmt::format(
      "largest eigenvalue of the Hessian: {:.4g} ({}){}", top.value, counted(top.steps, "power iteration"),
      top.value > 0 ? fmt::format("; plain gradient descent is stable below lr {:.3g}", 2 / top.value) : "");
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
  const bool with_grid = !o.html.empty() || o.json;
  for (int64_t k = 0; k < 2 * o.points - 1; ++k) {
    const auto begin = std::chrono::steady_clock::now();
    line.x.push_back(place(k, 2 * o.points - 1));
    line.y.push_back(surface.at(d1, line.x.back()));
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (k == 1) tell(estimate(o, with_grid, seconds));  // the first one has filled the caches
  }
  const LossSurface::Rise rise = surface.rise(o.radius, 5, o.seed);
  const LossSurface::Top top = surface.top_eigenvalue(o.hessian);
  std::vector<std::vector<double>> grid;
  if (with_grid)
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
  const std::string rises =
      fmt::format("loss {:.4f}; at a distance of {:g} in 5 random directions {:.4f} higher in the mean, {:.4f} at most",
                  here, o.radius, rise.mean, rise.most);
  const std::string curvature = curvature_text(top);
  if (!o.html.empty())
    write_file_atomically(
        o.html,
        fmt::format(
            "{4}\n<meta charset=\"utf-8\"><title>{0}</title><style>body{{font:15px system-ui,sans-serif;"
            "max-width:46rem;margin:2rem auto;padding:0 1rem}}svg{{max-width:100%;height:auto}}</style>\n"
            "<h1>{0}</h1>\n{1}<p>{2}.</p>\n<p>{5}.</p>\n<h2>Two directions</h2>\n"
            "<p>Dark is a low loss, bright a high one; the colours are logarithmic, grey is no number.</p>\n{3}",
            escaped_markup(o.target), draw_svg(plot), escaped_markup(rises), heat_map(grid, o.span), kBeginning,
            escaped_markup(curvature)),
        Exit::checkpoint);
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
  fmt::print("{}{}\n{}\n", draw_text(plot, stdout_terminal()), rises, curvature);
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
      ->check(above_zero())
      ->capture_default_str();
  verb->add_option("--points", o->points, "of the 2-D slice along each direction")
      ->check(CLI::Range(3, 101))
      ->capture_default_str();
  verb->add_option("--radius", o->radius, "of the random perturbations")->check(above_zero())->capture_default_str();
  verb->add_option("--hessian", o->hessian, "power iterations at most")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  verb->add_option("--seed", o->seed, "of the directions");
  verb->add_option("-o,--html", o->html, "write a page with the 1-D and the 2-D slice")->check(file_name());
  verb->add_flag("--json", o->json, "all of it as JSON on stdout");
  verb->callback([o, &command] { command = [o] { return landscape(*o); }; });
}

}  // namespace linnet
