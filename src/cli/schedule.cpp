// linnet schedule CONFIG: the learning rate of a run, drawn before the run
#include "linnet/schedule.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "cli.h"
#include "console.h"
#include "linnet/error.h"
#include "src/core/file.h"
#include "src/report/plot.h"

namespace linnet {

namespace {

constexpr int64_t kPoints = 1000, kCifar = 50000;

struct Options {
  std::string config, svg;
  std::vector<std::string> set;
  std::optional<int64_t> steps_per_epoch;
  bool json = false;
};

// Of the training split, without loading it.
std::optional<int64_t> training_images(const Config& c) {
  if (c.data.limit > 0) return c.data.limit;
  if (c.data.name.starts_with("cifar")) return kCifar - c.data.val;
  if (c.data.name == "synthetic") return c.data.samples - c.data.val;
  return {};
}

// [schedule] or a phase's: where it applies, and what it gives there.
struct Part {
  PhaseSpan span;
  const ScheduleConfig* config;
  std::string optimizer;
  double lr;
  Schedule rate;
};

struct Run {
  int64_t epochs, steps_per_epoch;
  std::vector<Part> parts;

  double lr(int64_t step) const {
    const Part* now = &parts[0];
    for (const Part& part : parts)
      if (part.span.first_epoch * steps_per_epoch <= step) now = &part;
    return now->rate(step - now->span.first_epoch * steps_per_epoch);
  }
};

// The phases of a fixed epoch; when a plateau comes, nobody knows.
Run plan(const Config& c, std::optional<int64_t> steps) {
  const std::optional<int64_t> images = training_images(c);
  if (!steps && !images)
    fail(Exit::usage, "how many images data.name = '{}' has is known once it is loaded; give --steps-per-epoch N",
         c.data.name);
  Run run{.epochs = c.train.epochs, .steps_per_epoch = steps.value_or(images ? steps_per_epoch(c, *images) : 0)};
  if (run.steps_per_epoch == 0)
    fail(Exit::usage,
         "{} training images do not fill {}one batch of {}; use a smaller train.batch_size or train.accumulate, or "
         "data.drop_last = false with train.accumulate_tail = \"flush\"",
         *images, c.train.accumulate <= 1 ? "" : fmt::format("the {} batches of a step, ", c.train.accumulate),
         c.train.batch_size);
  const auto add = [&](const PhaseSpan& span, const ScheduleConfig& s, const OptimizerConfig& o) {
    const double lr = scaled_lr(c, o.lr, images.value_or(run.steps_per_epoch * c.train.batch_size));
    run.parts.push_back({span, &s, o.name, lr, make_schedule(s, lr, run.steps_per_epoch, span.epochs)});
  };
  add(phase_span(c, 0, 0), c.schedule, c.optimizer);
  for (size_t i = 0; i < c.phases.size(); ++i) {
    const PhaseConfig& phase = c.phases[i];
    if (phase.plateau == 0) add(phase_span(c, i + 1, phase.epoch), phase.schedule, phase.optimizer);
  }
  return run;
}

// The steps that are shown: all, or as many of each epoch, or the first ones of as many epochs; and the last one.
std::vector<int64_t> sampled_steps(const Run& run) {
  const int64_t per_epoch = std::clamp<int64_t>((kPoints - 1) / run.epochs, 1, run.steps_per_epoch);
  const int64_t every = (run.epochs + kPoints - 2) / (kPoints - 1);  // epochs
  std::vector<int64_t> steps;
  for (int64_t epoch = 0; epoch < run.epochs; epoch += every)
    for (int64_t k = 0; k < per_epoch; ++k)
      steps.push_back(epoch * run.steps_per_epoch + k * run.steps_per_epoch / per_epoch);
  const int64_t last = run.epochs * run.steps_per_epoch - 1;
  if (steps.back() != last) steps.push_back(last);
  return steps;
}

std::vector<Mark> marks_of(const Run& run) {
  std::vector<Mark> marks;
  for (const Part& part : run.parts) {
    const ScheduleConfig& s = *part.config;
    const auto first = double(part.span.first_epoch), length = double(part.span.epochs);
    if (first > 0) marks.push_back({first, fmt::format("phase with {}", part.optimizer)});
    if (s.warmup > 0) marks.push_back({first + s.warmup, "end of the warmup"});
    if (s.name == "multistep")
      for (const double m : s.milestones) marks.push_back({first + m, fmt::format("times {:g}", s.gamma)});
    constexpr int kMost = 12;  // more lines hide the curve
    if (s.name == "step" && length / s.step_size <= kMost)
      for (double m = s.step_size; m < length; m += s.step_size)
        marks.push_back({first + m, fmt::format("times {:g}", s.gamma)});
    if (s.name == "cosine" && s.period > 0 && (length - s.warmup) / s.period <= kMost)
      for (double m = s.warmup + s.period, period = s.period; m < length; m += period *= s.period_factor)
        marks.push_back({first + m, "restart"});
  }
  return marks;
}

// What the drawing cannot show.
std::vector<std::string> notes_of(const Config& c, const Run& run) {
  std::vector<std::string> notes;
  for (const Part& part : run.parts)
    if (part.config->name == "plateau")
      notes.push_back(fmt::format(
          "plateau: {} {} epochs without a better {} the learning rate is multiplied by {:g}. When, depends on the "
          "metric; it is drawn as if it never fell.",
          part.config->counting == "keras" ? "after" : "after more than", part.config->patience, part.config->metric,
          part.config->factor));
  for (size_t i = 0; i < c.phases.size(); ++i)
    if (c.phases[i].plateau > 0)
      notes.push_back(fmt::format("phase {} starts after {} epochs without a better validation loss; it is not drawn.",
                                  i + 1, c.phases[i].plateau));
  return notes;
}

Plot plot_of(const Run& run, const std::vector<int64_t>& steps) {
  Plot plot{.x_label = "epoch", .y_label = "learning rate", .marks = marks_of(run), .from_zero = true};
  Series series{.name = "lr"};
  for (const int64_t step : steps) {
    series.x.push_back(double(step) / double(run.steps_per_epoch));
    series.y.push_back(run.lr(step));
  }
  // The last of several divisions by ten would lie on the axis.
  for (const Part& part : run.parts)
    if (const std::string& name = part.config->name; name == "multistep" || name == "step" || name == "exponential") {
      std::vector<double> positive;
      for (const double lr : series.y)
        if (lr > 0) positive.push_back(lr);
      plot.log_y = std::ranges::max(positive) >= 20 * std::ranges::min(positive);
    }
  std::string names;
  for (const Part& part : run.parts) names += (names.empty() ? "" : ", then ") + part.config->name;
  plot.title = fmt::format("{}: {} epochs of {} steps", names, run.epochs, run.steps_per_epoch);
  plot.series = {std::move(series)};
  return plot;
}

int schedule(const Options& o) {
  if (!o.svg.empty()) require_replaceable(o.svg, kSvgBeginning, "SVG drawing");
  const Config config = load_config(o.config, o.set);
  const Run run = plan(config, o.steps_per_epoch);
  const std::vector<int64_t> steps = sampled_steps(run);
  const Plot plot = plot_of(run, steps);
  if (!o.svg.empty()) write_file_atomically(o.svg, draw_svg(plot), Exit::failure);
  const std::vector<std::string> notes = notes_of(config, run);
  if (o.json) {
    nlohmann::ordered_json out = nlohmann::ordered_json::array();
    for (const int64_t step : steps)
      out.push_back({{"epoch", double(step) / double(run.steps_per_epoch)}, {"step", step}, {"lr", run.lr(step)}});
    fmt::print("{}\n", out.dump());
    for (const std::string& note : notes) tell(note + "\n");
    return int(Exit::ok);
  }
  const Terminal terminal = stdout_terminal();
  if (o.svg.empty()) fmt::print("{}", draw_text(plot, terminal));
  for (const std::string& note : notes)
    fmt::print("{}", wrap_words(note, size_t(std::clamp(terminal.columns, 24, 160))));
  if (!o.svg.empty()) fmt::print("{}\n", o.svg);
  return int(Exit::ok);
}

}  // namespace

void add_schedule(CLI::App& app, Command& command) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("schedule",
                                      "Draw the learning rate of a run before the run.\n\n"
                                      "  linnet schedule configs/quickstart.toml --svg lr.svg");
  add_config_options(*verb, options->config, options->set);
  verb->add_option("--steps-per-epoch", options->steps_per_epoch,
                   "steps of the optimizer an epoch (default: from the data set's size)")
      ->check(CLI::Range(1, 1000000000));
  verb->add_option("--svg", options->svg, "write the drawing to this file")->check(file_name());
  verb->add_flag("--json", options->json, "JSON on stdout: epoch, step and lr, at most 1000 points");
  verb->callback([options, &command] { command = [options] { return schedule(*options); }; });
}

}  // namespace linnet
