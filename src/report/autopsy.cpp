#include "src/report/autopsy.h"

#include <algorithm>
#include <cmath>

#include "linnet/text.h"
#include "linnet/warnings.h"
#include "src/report/statistics.h"

namespace linnet {

namespace {

constexpr double kLargeInput = 100;  // normalised images stay within about 10
constexpr double kGrown = 10;        // times, of a gradient's norm
constexpr size_t kLines = 24;        // of tensors on a terminal

double number_of(const Json& v) { return v.is_number() ? v.get<double>() : std::nan(""); }

// A loss may be "nan", "inf" or "-inf".
double loss_of(const Json& v) {
  const std::string text = v.is_string() ? v.get<std::string>() : "";
  return text.ends_with("inf") ? (text[0] == '-' ? -INFINITY : INFINITY) : number_of(v);
}

// The gradient's norm in the steps before the bad one: at their median, and last of all. NaN: there are none.
struct Norms {
  double usual = kNone, last = kNone;
};
Norms norms_before(const BadStep& bad) {
  std::vector<double> all;
  for (const StepTrace& s : bad.steps)
    if (s.step < bad.step && std::isfinite(s.grad_norm)) all.push_back(double(s.grad_norm));
  return all.empty() ? Norms{} : Norms{median(all), all.back()};
}

std::string place_of(const BadStep& bad) {
  return fmt::format("epoch {}, step {} of the run", bad.epoch + 1, bad.step + 1);
}

// The first tensor with a number that is not finite; where only sums over tensors are not, the largest one.
size_t suspect(const BadStep& bad) {
  const auto first = std::ranges::find_if(bad.tensors, [](const TensorLook& t) { return t.nonfinite > 0; });
  return size_t((first != bad.tensors.end() ? first : std::ranges::max_element(bad.tensors, {}, &TensorLook::largest)) -
                bad.tensors.begin());
}

std::string count_text(const TensorLook& t) {
  return t.nonfinite > 0 ? fmt::format("{} of {} are not finite", t.nonfinite, t.numbers) : "";
}

Plot curve(const BadStep& bad, const std::string& title, double (*value)(const StepTrace&)) {
  Series s{.name = title};
  for (const StepTrace& t : bad.steps) {
    s.x.push_back(double(t.step + 1));
    s.y.push_back(value(t));
  }
  return {.title = title, .x_label = "step", .series = {s}, .log_y = true};
}
double loss_at(const StepTrace& t) { return t.loss; }
double norm_at(const StepTrace& t) { return double(t.grad_norm); }

}  // namespace

BadStep parse_bad_step(std::string_view text, const std::string& origin) {
  BadStep bad;
  try {
    const Json json = parse_json(text, origin, Exit::checkpoint);
    bad.step = whole<int64_t>(json.at("step"));
    bad.epoch = whole<int64_t>(json.at("epoch"));
    bad.loss = loss_of(json.at("loss"));
    json.at("where").get_to(bad.where);
    bad.samples = wholes<int32_t>(json.at("samples"));
    for (const Json& t : json.value("tensors", Json::array()))
      bad.tensors.push_back(
          {t.at("what"), t.at("largest"), whole<int64_t>(t.at("nonfinite")), whole<int64_t>(t.at("numbers"))});
    for (const Json& s : json.value("steps", Json::array()))
      bad.steps.push_back({.step = whole<int64_t>(s.at("step")),
                           .loss = number_of(s.at("loss")),
                           .lr = number_of(s.at("lr")),
                           .grad_norm = float(number_of(s.at("grad_norm")))});
    constexpr int64_t kMost = 1'000'000'000'000'000'000;
    if (bad.step < 0 || bad.step > kMost || bad.epoch < 0 || bad.epoch > kMost)
      fail(Exit::checkpoint, "{}: expected a step and an epoch from 0 to 10^18, got step {} and epoch {}", origin,
           bad.step, bad.epoch);
    if (std::ranges::any_of(bad.samples, [](int32_t i) { return i < 0; }))
      fail(Exit::checkpoint, "{}: expected samples of 0 or more", origin);
  } catch (const Error& e) {
    fail(Exit::checkpoint, "{}. The file is damaged: what the run said when it ended stands in its summary.json",
         e.what());
  } catch (const Json::exception&) {
    fail(Exit::checkpoint,
         "{}: expected what Linnet writes of a step that was not finite, got other keys or values. The file is "
         "damaged: what the run said when it ended stands in its summary.json",
         origin);
  }
  return bad;
}

Suggestion suggest(const BadStep& bad, const Config& config) {
  const double lr = bad.steps.empty() ? config.optimizer.lr : bad.steps.back().lr;
  const UsualLr usual = usual_lr(config.optimizer);
  const double low = usual.low, high = usual.high;
  // Just inside of the usual rates is where many a net still does not train.
  const std::string smaller_lr = fmt::format(
      "optimizer.lr={:.3g}", std::min(config.optimizer.lr / 10, config.optimizer.lr > high ? usual.middle() : high));

  const auto images = std::ranges::find(bad.tensors, "the images", &TensorLook::what);
  if (images != bad.tensors.end() && (images->nonfinite > 0 || images->largest > kLargeInput))
    return {fmt::format("the images reach {:.3g} where a few units are usual, so it is the input: data.mean and "
                        "data.std do not fit these images. Without them they are measured",
                        images->nonfinite > 0 ? INFINITY : images->largest),
            "data.std= --set data.mean="};
  if (config.train.precision == "fp16" && std::isfinite(bad.loss))
    return {"the loss is finite and its gradient does not fit into fp16", "train.precision=bf16"};
  if (bad.where.starts_with("weight ") && bad.step > 0)
    return {
        fmt::format("the weights were no longer finite before the step: the update of step {} has left the range of "
                    "floats at a learning rate of {:.3g}",
                    bad.step, lr),
        smaller_lr};
  if (bad.step == 0)
    return {
        "it is the first step, before any update: not the learning rate, but the first weights, the images or the "
        "labels. See `linnet check` on this config",
        ""};
  if (lr > high)
    return {fmt::format("the learning rate is {:.3g}; usual for {} are {:.3g} to {:.3g}", lr, config.optimizer.name,
                        low, high),
            smaller_lr};
  const Norms norms = norms_before(bad);
  if (norms.last > kGrown * norms.usual)
    return {
        fmt::format("the gradient's norm had grown to {:.3g} before, from {:.3g} at the median of the last steps: the "
                    "steps were too long",
                    norms.last, norms.usual),
        smaller_lr};
  if (config.clip.norm == 0 && std::isfinite(norms.usual))
    return {fmt::format("it came out of nothing: the gradient's norm was {:.3g} until then. One batch can do that; "
                        "clipping bounds its step",
                        norms.last),
            fmt::format("optimizer.clip_norm={:.1g}", 2 * norms.usual)};
  return {"no other cause can be seen", smaller_lr};
}

std::string autopsy_text(const Autopsy& a, const Terminal& terminal) {
  const BadStep& bad = a.bad;
  std::string text = fmt::format("{}: the loss is {:.4g} in {}\n", a.run, std::fabs(bad.loss), place_of(bad));
  text += fmt::format("first seen in: {}\n", escaped(bad.where));
  if (bad.where.starts_with("the running statistics"))
    text += "a variance is a square: it leaves the range of floats at 2e19, where the number itself is still finite\n";
  if (bad.steps.size() > 1) {
    text += "\n" + draw_text(curve(bad, "loss", loss_at), terminal, 8) +
            draw_text(curve(bad, "gradient norm", norm_at), terminal, 8);
    text += fmt::format("\n{:>8} {:>12} {:>14} {:>12}\n", "step", "loss", "gradient norm", "lr");
    for (size_t i = bad.steps.size() > 8 ? bad.steps.size() - 8 : 0; i < bad.steps.size(); ++i)
      text += fmt::format("{:>8} {:>12.5g} {:>14.4g} {:>12.4g}\n", bad.steps[i].step + 1, std::fabs(bad.steps[i].loss),
                          std::fabs(bad.steps[i].grad_norm), bad.steps[i].lr);
  }
  if (!bad.tensors.empty()) {
    const size_t at = suspect(bad);
    const size_t begin = at > kLines / 2 ? at - kLines / 2 : 0, end = std::min(bad.tensors.size(), begin + kLines);
    std::vector<Bar> bars;
    for (size_t i = begin; i < end; ++i)
      bars.push_back(
          {(i == at ? "> " : "  ") + escaped(bad.tensors[i].what), bad.tensors[i].largest, count_text(bad.tensors[i])});
    text += fmt::format(
        "\nlargest finite magnitude of that step's tensors{} (the bars are logarithmic; > is the first that is not "
        "finite, or else the largest)\n",
        end - begin < bad.tensors.size() ? fmt::format(" ({} of {})", end - begin, bad.tensors.size()) : "");
    text += draw_bars(bars, terminal, true);
  }
  text += fmt::format("\nwhat to do: {}\n  {}\n", a.suggestion.reason, a.command);
  return text;
}

Json autopsy_json(const Autopsy& a) {
  Json json = {{"run", a.run},
               {"step", a.bad.step + 1},  // from 1, as metrics.jsonl counts
               {"epoch", a.bad.epoch + 1},
               {"loss", std::isfinite(a.bad.loss) ? Json(a.bad.loss) : Json(fmt::format("{}", a.bad.loss))},
               {"where", a.bad.where}};
  json["suggestion"] = {{"reason", a.suggestion.reason}, {"setting", a.suggestion.setting}, {"command", a.command}};
  return json;
}

std::string autopsy_page(const Autopsy& a, const Images& images, const std::string& note) {
  const BadStep& bad = a.bad;
  const auto safe = [](const std::string& t) { return escaped_markup(escaped(t, 1000)); };
  std::string body = fmt::format("<h1>{}</h1>\n<p>The loss is {:.4g} in {}. First seen in: <b>{}</b>.</p>\n",
                                 safe(a.run), std::fabs(bad.loss), place_of(bad), safe(bad.where));
  body += fmt::format("<p><b>What to do:</b> {}.</p>\n<pre>{}</pre>\n", safe(a.suggestion.reason), safe(a.command));
  if (bad.steps.size() > 1)
    body += fmt::format("<h2>The last {} steps</h2>\n{}{}", bad.steps.size(), draw_svg(curve(bad, "loss", loss_at)),
                        draw_svg(curve(bad, "gradient norm", norm_at)));
  if (!bad.tensors.empty()) {
    body += "<h2>The step's tensors</h2>\n<table>\n<tr><th>tensor<th>largest finite magnitude<th>not finite</tr>\n";
    for (size_t i = 0; i < bad.tensors.size(); ++i)
      body += fmt::format("<tr{}><td>{}<td>{:.4g}<td>{}</tr>\n", i == suspect(bad) ? " class=\"first\"" : "",
                          safe(bad.tensors[i].what), bad.tensors[i].largest, count_text(bad.tensors[i]));
    body += "</table>\n";
  }
  if (!bad.samples.empty()) {
    body += fmt::format("<h2>Its {} images, before augmentation</h2>\n", bad.samples.size());
    if (!note.empty()) body += "<p>" + safe(note) + "</p>\n";
    for (const int32_t s : bad.samples)
      if (s >= 0 && s < images.size()) {
        const auto label = size_t(images.labels[size_t(s)]);
        body += fmt::format(
            "<figure><img src=\"data:image/png;base64,{}\" alt=\"\"><figcaption>{} {}</figcaption></figure>\n",
            base64(to_png(images, s)), s,
            label < images.class_names.size() ? safe(images.class_names[label]) : std::to_string(label));
      }
  }
  return fmt::format(
      "{0}\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{1}</title>\n"
      "<style>body{{font:15px system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 "
      "1rem}}svg{{max-width:100%;"
      "height:auto}}td,th{{padding:.1rem 1rem .1rem 0;text-align:left}}.first{{font-weight:bold;color:#b91c1c}}"
      "figure{{display:inline-block;margin:0 .5rem .5rem 0}}img{{width:64px;height:64px;image-rendering:pixelated}}"
      "figcaption{{font-size:12px;color:#666}}pre{{overflow-x:auto}}</style>\n{2}</html>\n",
      kAutopsyBeginning, safe("Autopsy of " + a.run), body);
}

}  // namespace linnet
