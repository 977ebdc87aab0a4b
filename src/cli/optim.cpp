// linnet optim trace|show NAME
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "linnet/config.h"
#include "linnet/error.h"
#include "linnet/optim_trace.h"
#include "linnet/optimizer.h"
#include "linnet/registry.h"
#include "linnet/text.h"

namespace linnet {

namespace {

using nlohmann::ordered_json;
using Doubles = std::vector<double>;

struct Options {
  std::string name, w0 = "0", grads, lr;
  std::vector<std::string> set;
  bool f64 = false, json = false;
};

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == at)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

Doubles numbers(const std::string& option, const std::string& text) {
  Doubles out;
  for (const std::string& part : split(text, ',')) {
    const size_t sign = part.starts_with('+') ? 1 : 0;
    double x = 0;
    const auto [end, error] = std::from_chars(part.data() + sign, part.data() + part.size(), x);
    if (error != std::errc() || end != part.data() + part.size() || !std::isfinite(x))
      fail(Exit::usage, "{} expects numbers with commas between them, such as 0.2,0.1,-0.05; got '{}'", option,
           escaped(part));
    out.push_back(x);
  }
  return out;
}

// The gradients of every step, one for each of n weights. "a,b,c": one step each, the same for all weights. With ';' it
// separates the steps, and commas the weights.
std::vector<Doubles> gradients(const std::string& text, size_t n) {
  std::vector<Doubles> steps;
  if (text.find(';') == text.npos) {
    for (const double g : numbers("--grads", text)) steps.emplace_back(n, g);
    return steps;
  }
  std::vector<std::string> parts = split(text, ';');
  if (parts.back().empty()) parts.pop_back();  // "a,b;" is one step
  for (const std::string& part : parts) {
    steps.push_back(numbers("--grads", part));
    if (steps.back().size() != n)
      fail(Exit::usage, "--grads: step {} has {}, but --w0 has {}", steps.size(),
           counted(int64_t(steps.back().size()), "gradient"), counted(int64_t(n), "weight"));
  }
  return steps;
}

// The config file's own reader checks the settings: same names, ranges and messages as in training.
Config read_settings(const Options& o) {
  std::vector<std::string> keys = {"optimizer.name=" + o.name};
  if (!o.lr.empty()) keys.push_back(fmt::format("optimizer.lr={}", numbers("--lr", o.lr)[0]));
  for (const std::string& key : o.set)
    keys.push_back(key.starts_with("optimizer.") || key.starts_with("lookahead.") ? key : "optimizer." + key);
  const Config config = parse_config("", "linnet optim", keys);
  if (config.clip.norm != 0 || config.clip.value != 0)
    fail(Exit::usage, "clipping belongs to no optimizer: give --grads as they are after it");
  return config;
}

// Of one weight: a number a step; of several: a list.
ordered_json column(const std::vector<Doubles>& steps) {
  ordered_json out = ordered_json::array();
  for (const Doubles& step : steps) step.size() == 1 ? out.push_back(step[0]) : out.push_back(step);
  return out;
}

std::string cell(double x) { return fmt::format("{:>22.15g}", x); }

void print_table(const Trace& t, const std::vector<Doubles>& g, const std::vector<std::string>& names, size_t weight) {
  fmt::print("{:>5}{:>22}{:>22}", "step", "g", "w");
  for (const std::string& name : names) fmt::print("{:>22}", name);
  fmt::print("\n");
  for (size_t i = 0; i < g.size(); ++i) {
    fmt::print("{:>5}{}{}", i + 1, cell(g[i][weight]), cell(t.w[i][weight]));
    for (const auto& slot : t.state) fmt::print("{}", cell(slot[i][weight]));
    fmt::print("\n");
  }
}

int trace(const Options& o) {
  const Config config = read_settings(o);
  const Rule rule = make_rule(config.optimizer);
  const Doubles w0 = numbers("--w0", o.w0);
  const std::vector<Doubles> g = gradients(o.grads, w0.size());
  const Trace t =
      trace_rule(rule, w0, int64_t(g.size()), [&](int64_t step, const Doubles&) { return g[size_t(step - 1)]; },
                 {.lr = config.optimizer.lr,
                  .weight_decay = config.optimizer.weight_decay,
                  .lookahead = {.k = config.lookahead.k, .alpha = config.lookahead.alpha},
                  .f64 = o.f64});
  const std::vector<std::string> names = slot_names(rule);
  const bool shifts = std::visit([](const auto& r) { return r.kShifts; }, rule);
  if (o.json) {
    ordered_json out = {{"optimizer", o.name},
                        {"form", config.optimizer.form},
                        {"lr", config.optimizer.lr},
                        {"precision", o.f64 ? "f64" : "f32"},
                        {"gradients_at", shifts ? "look-ahead point" : "weights"},
                        {"w0", column({w0})[0]},
                        {"w", column(t.w)},
                        {"state", ordered_json::object()}};
    for (size_t k = 0; k < names.size(); ++k) out["state"][names[k]] = column(t.state[k]);
    if (shifts) out["at"] = column(t.at);
    fmt::print("{}\n", out.dump());
    return int(Exit::ok);
  }
  fmt::print("{}{}, lr {}, {}{}\n", o.name, config.optimizer.form.empty() ? "" : " " + config.optimizer.form,
             config.optimizer.lr, o.f64 ? "double" : "float",
             shifts ? "; gradients are those at the look-ahead points" : "");
  for (size_t i = 0; i < w0.size(); ++i) {
    if (w0.size() > 1) fmt::print("weight {}\n", i + 1);
    print_table(t, g, names, i);
  }
  return int(Exit::ok);
}

// ---- show ----------------------------------------------------------------------------------------------------------

// The keys that an optimizer uses, with these settings' values.
ordered_json values(const OptimizerEntry& entry, const OptimizerConfig& settings) {
  ordered_json out;
  visit_optimizer(settings, [&](const Key& key, const auto& value) {
    const std::string leaf(key.name.substr(key.name.find('.') + 1));
    if (leaf == "lr" || leaf == "weight_decay" || std::ranges::find(entry.keys, leaf) != entry.keys.end())
      out[leaf] = value;
  });
  return out;
}

// The options that change how much state there is, on top of the defaults.
ordered_json memory(const OptimizerEntry& entry) {
  ordered_json out = ordered_json::array();
  const auto add = [&](const std::string& options, const OptimizerConfig& settings) {
    const Rule rule = make_rule(settings);
    out.push_back({{"options", options},
                   {"state", slot_names(rule)},
                   {"words", slots_of(rule)},
                   {"words_moved", words_moved(rule)}});
  };
  const auto has = [&](std::string_view key) { return std::ranges::find(entry.keys, key) != entry.keys.end(); };
  const OptimizerConfig plain = default_settings(entry.name, "pytorch");
  add("defaults", plain);
  OptimizerConfig more = plain;
  more.momentum = 0.9;
  if (has("momentum") && plain.momentum == 0) add("momentum", more);
  more.centered = true;
  if (has("centered")) add("centered, momentum", more);
  more.amsgrad = true;
  if (has("amsgrad")) add("amsgrad", more);
  return out;
}

int show(const Options& o) {
  const OptimizerEntry& entry = find_entry(optimizers(), "optimizer", o.name);
  const ordered_json torch = values(entry, default_settings(o.name, "pytorch")),
                     keras = entry.keras ? values(entry, default_settings(o.name, "keras")) : ordered_json();
  if (o.json) {
    fmt::print("{}\n", ordered_json{{"name", entry.name},
                                    {"summary", entry.summary},
                                    {"formula", entry.formula},
                                    {"forms", entry.forms},
                                    {"defaults", torch},
                                    {"keras", keras},
                                    {"memory", memory(entry)},
                                    {"notes", entry.notes}}
                           .dump());
    return int(Exit::ok);
  }
  fmt::print("{}: {}\n\nIn update t, from 1, of weight w with gradient g; state starts at 0:\n", entry.name,
             entry.summary);
  for (size_t at = 0; at < entry.formula.size();) {
    const size_t end = std::min(entry.formula.find('\n', at), entry.formula.size());
    fmt::print("  {}\n", entry.formula.substr(at, end - at));
    at = end + 1;
  }
  fmt::print("\n{:<28}{:<18}{}\n", "key", "default", entry.keras ? "preset = \"keras\"" : "");
  for (const auto& [key, value] : torch.items())
    fmt::print("{:<28}{:<18}{}\n", key, value.dump(), entry.keras && keras[key] != value ? keras[key].dump() : "");
  if (entry.forms.size() > 1) fmt::print("\nform: {}\n", fmt::join(entry.forms, ", "));
  fmt::print("\n{:<28}{:<18}{}\n", "memory", "state per weight", "words moved per weight and step");
  for (const auto& m : memory(entry)) {
    const auto names = m["state"].get<std::vector<std::string>>();
    fmt::print("{:<28}{:<18}{}\n", m["options"].get<std::string>(),
               fmt::format("{} {}", names.size(), names.empty() ? "" : fmt::format("({})", fmt::join(names, ", "))),
               m["words_moved"].get<int>());
  }
  fmt::print("\n{}\n", entry.notes);
  return int(Exit::ok);
}

}  // namespace

void add_optim(CLI::App& app, Command& command) {
  CLI::App* verb = app.add_subcommand("optim",
                                      "Look into one optimizer.\n\n"
                                      "  linnet optim show adam\n"
                                      "  linnet optim trace adam --w0=1 --grads=0.2,0.1,-0.05 --lr 0.1 --double");
  verb->require_subcommand(1);
  auto o = std::make_shared<Options>();
  CLI::App* t =
      verb->add_subcommand("trace",
                           "Run an optimizer's own code on given gradients: weights and state after each step.\n\n"
                           "  linnet optim trace sgd --set momentum=0.9 --w0=1 --grads=0.2,0.1,-0.05 --lr 0.1\n"
                           "  linnet optim trace adam --w0=1,-1 --grads='0.2,0.1;-0.1,0' --json\n"
                           "  linnet optim trace sgd --set lookahead.k=2 --w0=1 --grads=0.2,0.1");
  t->add_option("name", o->name, "optimizer: linnet list optimizers")->required();
  t->add_option("-s,--set", o->set, "a key of [optimizer] or [lookahead], such as momentum=0.9 (may be repeated)")
      ->allow_extra_args(false);
  t->add_option("--w0", o->w0, "first weight, or several with commas between; negative: --w0=-1");
  t->add_option("--grads", o->grads,
                "gradient of each step, commas between: the same for all weights; or ';' between the steps, commas "
                "between the weights. nag: at its look-ahead points")
      ->required();
  t->add_option("--lr", o->lr, "learning rate (default: the optimizer's)");
  t->add_flag("--double", o->f64, "compute in double, not in float as training does");
  t->add_flag("--json", o->json, "JSON on stdout");
  t->callback([o, &command] { command = [o] { return trace(*o); }; });

  CLI::App* s = verb->add_subcommand(
      "show", "An optimizer's formula as coded, its forms, defaults and memory.\n\n  linnet optim show rmsprop");
  s->add_option("name", o->name, "optimizer: linnet list optimizers")->required();
  s->add_flag("--json", o->json, "JSON on stdout");
  s->callback([o, &command] { command = [o] { return show(*o); }; });
}

}  // namespace linnet
