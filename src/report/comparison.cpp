#include "src/report/comparison.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <set>

#include "linnet/text.h"
#include "linnet/verdict.h"
#include "src/report/statistics.h"

namespace linnet {

namespace {

// JSON has no NaN and no infinity: such a value becomes null.
Json number(double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); }

double or_none(const Json& v) { return v.is_number() ? v.get<double>() : kNone; }

bool is_done(const RunRecord& run) { return run.status == "done" && std::isfinite(run.number("test/acc")); }

int64_t seed_of(const RunRecord& run) { return run.config.train.seed; }

std::string percent(double share) { return fmt::format("{:.2f}", 100 * share); }

// ---- Labels --------------------------------------------------------------------------------------------------------

// "adamw" of "adamw_s3", "resnet20_sgd" of "2026-01-31_120000_resnet20_sgd_s0-2"; empty where there is no such end.
std::string stem(std::string_view folder) {
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  const auto cut_number = [&](std::string_view mark) {  // and the mark before it
    const auto digits = size_t(std::ranges::find_if_not(folder.rbegin(), folder.rend(), is_digit) - folder.rbegin());
    const std::string_view before = folder.substr(0, folder.size() - digits);
    if (digits == 0 || !before.ends_with(mark)) return false;
    folder = before.substr(0, before.size() - mark.size());
    return true;
  };
  cut_number("-");
  if (!cut_number("_s")) return "";
  constexpr std::string_view kTime = "0000-00-00_000000_";
  const auto fits = [&](char c, char form) { return form == '0' ? is_digit(c) : c == form; };
  if (folder.size() > kTime.size() && std::ranges::equal(folder.substr(0, kTime.size()), kTime, fits))
    folder.remove_prefix(kTime.size());
  return std::string(folder);
}

// Whether all are different, and there are some.
bool distinct(const std::vector<std::string>& labels) {
  return std::set(labels.begin(), labels.end()).size() == labels.size() &&
         std::ranges::find(labels, "") == labels.end();
}

std::vector<std::string> folder_labels(const std::vector<Group>& groups) {
  std::vector<std::string> labels;
  for (const Group& g : groups) {
    const std::string label = stem(g.runs[0].name);
    const bool same = std::ranges::all_of(g.runs, [&](const RunRecord& r) { return stem(r.name) == label; });
    labels.push_back(same ? label : "");
  }
  return labels;
}

struct KeyValues {
  std::string key;
  std::vector<std::string> values;  // one a group; "none" where the key has no effect
};

std::vector<KeyValues> differing_keys(const std::vector<Group>& groups) {
  std::vector<KeyValues> all;
  const Config& first = groups[0].runs[0].config;
  for (size_t g = 1; g < groups.size(); ++g)
    for (const ConfigChange& c : recipe_differences(first, groups[g].runs[0].config)) {
      auto row = std::ranges::find(all, c.key, &KeyValues::key);
      if (row == all.end()) row = all.insert(all.end(), {c.key, std::vector(groups.size(), c.from)});
      row->values[g] = c.to;
    }
  for (KeyValues& row : all)
    for (std::string& v : row.values)
      if (v.empty()) v = "none";
  return all;
}

// As few keys as tell the groups apart, the names of optimizers and models first and by themselves.
std::vector<std::string> key_labels(const std::vector<Group>& groups) {
  std::vector<KeyValues> keys = differing_keys(groups);
  std::stable_partition(keys.begin(), keys.end(), [](const KeyValues& k) { return k.key.ends_with(".name"); });
  std::vector<std::string> labels(groups.size());
  for (const KeyValues& k : keys) {
    if (distinct(labels)) break;
    for (size_t g = 0; g < groups.size(); ++g) {
      if (k.values[g] == "none") continue;
      std::string value = k.values[g];
      std::erase(value, '"');
      labels[g] += (labels[g].empty() ? "" : " ") +
                   (k.key.ends_with(".name") ? value : k.key.substr(k.key.rfind('.') + 1) + "=" + value);
    }
  }
  for (size_t g = 0; g < groups.size(); ++g)
    if (!distinct(labels)) labels[g] = fmt::format("{} {}", g + 1, labels[g]);
  return labels;
}

// ---- Tables --------------------------------------------------------------------------------------------------------

std::vector<double> numbers(const Group& group, const char* key) {
  std::vector<double> all;
  for (const RunRecord& run : group.runs)
    if (is_done(run)) all.push_back(run.number(key));
  return all;
}

// Mean over a run's epochs of what timing.jsonl says.
double images_per_second(const RunRecord& run) {
  double sum = 0, n = 0;
  for (const LoggedRow& row : run.rows)
    if (row.kind == "epoch" && row.img_per_s > 0) sum += row.img_per_s, ++n;
  return n > 0 ? sum / n : kNone;
}

Json describe(const Spread& s) {
  return {{"n", s.n},
          {"mean", number(s.mean)},
          {"sd", number(s.sd)},
          {"half", number(s.half)},
          {"low", number(s.mean - s.half)},
          {"high", number(s.mean + s.half)}};
}

// A path as a shell takes it.
std::string quoted(const std::string& text) {
  if (!text.empty() &&
      text.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./=,+-") == text.npos)
    return text;
  std::string all = "'";
  for (const char c : text) all += c == '\'' ? "'\\''" : std::string(1, c);
  return all + "'";
}

// How far the probabilities are from the share that is right, on the test images; NaN: no predictions.
double test_calibration_error(const RunRecord& run) {
  if (!run.predictions) return kNone;
  const Predictions& p = *run.predictions;
  std::vector<bool> right;
  for (size_t i = 0; i < p.label.size(); ++i) right.push_back(p.label[i] == p.predicted[i]);
  return calibration_error(p.probability, right);
}

Json describe(const RunRecord& run) {
  Json json = {{"name", run.name}, {"dir", run.dir.string()}, {"seed", seed_of(run)}, {"status", run.status}};
  if (run.summary.contains("reason")) json["reason"] = run.summary["reason"];
  json["epochs"] = number(run.number("epoch"));
  for (const char* key : {"test/acc", "test/loss", "val/acc"}) json[key] = number(run.number(key));
  json["test/ece"] = number(test_calibration_error(run));
  if (const auto& c = run.calibration)
    json["calibration"] = {{"temperature", c->temperature},
                           {"val/ece", {{"before", c->ece_before}, {"after", c->ece_after}}}};
  json["wall_s"] = number(run.number("wall_s"));
  json["img_per_s"] = number(images_per_second(run));
  json["command"] = fmt::format("linnet train {} --out NEW", quoted((run.dir / "config.toml").string()));
  return json;
}

Json describe_calibration(const Group& group) {
  std::vector<double> errors, temperatures, before, after;
  for (const RunRecord& run : group.runs) {
    if (const double e = test_calibration_error(run); is_done(run) && std::isfinite(e)) errors.push_back(e);
    if (!run.calibration) continue;
    temperatures.push_back(run.calibration->temperature);
    before.push_back(run.calibration->ece_before);
    after.push_back(run.calibration->ece_after);
  }
  Json json = {{"test/ece", describe(spread(errors))}};
  if (!temperatures.empty())
    json["calibration"] = {
        {"n", temperatures.size()},
        {"temperature", number(spread(temperatures).mean)},
        {"val/ece", {{"before", number(spread(before).mean)}, {"after", number(spread(after).mean)}}}};
  return json;
}

// ---- Steps ---------------------------------------------------------------------------------------------------------

// The mean over a run's rows of steps; NaN: it has no such number.
double mean_over_steps(const RunRecord& run, const char* metric) {
  double sum = 0, n = 0;
  for (const LoggedRow& row : run.rows)
    if (const double v = row[metric]; row.kind == "step" && std::isfinite(v)) sum += v, ++n;
  return n > 0 ? sum / n : kNone;
}

double last_of_steps(const RunRecord& run, const char* metric) {
  double last = kNone;
  for (const LoggedRow& row : run.rows)
    if (const double v = row[metric]; row.kind == "step" && std::isfinite(v)) last = v;
  return last;
}

std::vector<EpochResult> epochs_of(const RunRecord& run) {
  std::vector<EpochResult> epochs;
  for (const LoggedRow& row : run.rows)
    if (row.kind == "epoch") epochs.push_back(epoch_result(row));
  return epochs;
}

// What steps were like, and what came of them: means over the runs of means over their rows; the verdict of the first
// run.
Json describe_steps(const Group& group) {
  const auto mean = [&](auto of_run, const char* metric) {
    std::vector<double> values;
    for (const RunRecord& run : group.runs)
      if (const double v = of_run(run, metric); std::isfinite(v)) values.push_back(v);
    return number(spread(values).mean);
  };
  const Verdict fit = judge_fit(epochs_of(group.runs[0]));
  Json json = {{"fit", fit.kind.empty() ? Json(nullptr) : Json{{"verdict", fit.kind}, {"text", fit.text}}}};
  for (const char* metric : {"grad_norm", "velocity_norm", "update_norm", "reversed_share"})
    json[metric] = mean(mean_over_steps, metric);
  json["clipped_share"] = mean(last_of_steps, "clipped_share");  // it counts from the first step on
  return json;
}

// ---- Batch sizes ---------------------------------------------------------------------------------------------------

// What a batch size costs and brings, a row for each group in the order of the images per step; empty where all have as
// many. Times and accuracies are means over the runs; the losses those of the first run's first steps.
Json describe_batches(const std::vector<Group>& groups) {
  struct Entry {
    int64_t images;
    Json json;
  };
  std::vector<Entry> entries;
  std::set<int64_t> sizes;
  for (const Group& group : groups) {
    const RunRecord& run = group.runs[0];
    const Json n_train = value_at(run.env, "/data/train/images");
    if (!n_train.is_number_integer()) continue;
    const auto train = n_train.get<int64_t>();
    const int64_t accumulate = run.config.train.accumulate;
    const int64_t images = accumulate > 0 ? run.config.train.batch_size * accumulate : train;
    sizes.insert(images);
    std::vector<double> seconds, accs;
    int64_t updates = 0;
    for (const RunRecord& r : group.runs) {
      const LoggedRow* last = nullptr;
      for (const LoggedRow& row : r.rows)
        if (row.kind == "epoch") last = &row;
      if (!last) continue;
      updates = std::max(updates, last->step);
      accs.push_back((*last)["train/acc"]);
      if (last->wall_s > 0 && last->epoch > 0) seconds.push_back(last->wall_s / double(last->epoch));
    }
    Json first = Json::array();
    for (const LoggedRow& row : run.rows)
      if (row.kind == "step" && row.step == int64_t(first.size()) + 1 && first.size() < 3)
        first.push_back(number(row["train/loss"]));
    entries.push_back({images,
                       {{"label", group.label},
                        {"batch_size", run.config.train.batch_size},
                        {"images_per_step", images},
                        {"updates_per_epoch", steps_per_epoch(run.config, train)},
                        {"updates", updates},
                        {"seconds_per_epoch", number(spread(seconds).mean)},
                        {"train/acc", number(spread(accs).mean)},
                        {"test/acc", number(spread(numbers(group, "test/acc")).mean)},
                        {"first_losses", first}}});
  }
  Json all = Json::array();
  if (sizes.size() < 2) return all;
  std::ranges::stable_sort(entries, {}, &Entry::images);
  for (Entry& e : entries) all.push_back(std::move(e.json));
  return all;
}

// ---- Groups -------------------------------------------------------------------------------------------------------

Json describe(const Group& group, double n_test) {
  Json runs = Json::array();
  int64_t diverged = 0, unfinished = 0;
  const RunRecord *best = nullptr, *worst = nullptr;
  for (const RunRecord& run : group.runs) {
    runs.push_back(describe(run));
    diverged += run.status == "diverged";
    unfinished += run.status != "diverged" && !is_done(run);
    if (!is_done(run)) continue;
    if (!best || run.number("test/acc") > best->number("test/acc")) best = &run;
    if (!worst || run.number("test/acc") < worst->number("test/acc")) worst = &run;
  }
  std::vector<double> rate;
  for (const RunRecord& run : group.runs)
    if (const double r = images_per_second(run); std::isfinite(r)) rate.push_back(r);
  const Spread acc = spread(numbers(group, "test/acc"));
  Json json = {{"label", group.label}, {"test/acc", describe(acc)}};
  const auto one = [](const RunRecord* r) {
    return r ? Json{{"seed", seed_of(*r)}, {"acc", r->number("test/acc")}} : Json(nullptr);
  };
  json["best"] = one(best);
  json["worst"] = one(worst);
  json["val/acc"] = describe(spread(numbers(group, "val/acc")));
  json["steps"] = describe_steps(group);
  json.update(describe_calibration(group));
  json["wall_s"] = describe(spread(numbers(group, "wall_s")));
  json["img_per_s"] = number(spread(rate).mean);
  json["diverged"] = diverged;
  json["unfinished"] = unfinished;
  json["repeated"] = group.repeated;
  if (acc.n > 0 && n_test > 0) {
    const Interval w = wilson(acc.mean * n_test, n_test);
    json["floor"] = {
        {"n_test", n_test}, {"standard_error", binomial_error(acc.mean, n_test)}, {"low", w.low}, {"high", w.high}};
  }
  json["runs"] = runs;
  return json;
}

// ---- Time to accuracy ----------------------------------------------------------------------------------------------

// The first epoch whose validation accuracy is at least `target`; nullptr: it was never reached.
const LoggedRow* first_at(const RunRecord& run, double target) {
  const auto found = std::ranges::find_if(
      run.rows, [&](const LoggedRow& row) { return row.kind == "epoch" && row["val/acc"] >= target; });
  return found == run.rows.end() ? nullptr : &*found;
}

double best_validation(const RunRecord& run) {
  double best = kNone;
  for (const LoggedRow& row : run.rows)
    if (row.kind == "epoch") best = std::fmax(best, row["val/acc"]);
  return best;
}

// Whole percents that the worst group's median run reaches, the best one's, and one between them.
std::vector<double> choose_targets(const std::vector<Group>& groups) {
  double low = kNone, high = kNone;
  for (const Group& group : groups) {
    std::vector<double> best;
    for (const RunRecord& run : group.runs)
      if (const double b = best_validation(run); std::isfinite(b)) best.push_back(b);
    const double m = median(best);
    low = std::fmin(low, m);
    high = std::fmax(high, m);
  }
  if (std::isnan(low)) return {};
  const std::set<double> targets = {std::floor(100 * low), std::floor(50 * (low + high)), std::floor(100 * high)};
  std::vector<double> shares;
  for (const double t : targets) shares.push_back(t / 100);
  return shares;
}

// A run that never got there counts as later than all that did: its group's median stays honest.
Json time_to(const std::vector<Group>& groups, double target) {
  Json rows = Json::array();
  for (const Group& group : groups) {
    std::vector<double> epochs, seconds;
    int64_t reached = 0, n = 0;
    for (const RunRecord& run : group.runs) {
      if (std::isnan(best_validation(run)) && run.status != "diverged") continue;  // without validation, or just begun
      ++n;
      const LoggedRow* at = first_at(run, target);
      reached += at != nullptr;
      constexpr double kLater = std::numeric_limits<double>::infinity();
      epochs.push_back(at ? double(at->epoch) : kLater);
      seconds.push_back(at ? at->wall_s : kLater);
    }
    rows.push_back({{"label", group.label},
                    {"n", n},
                    {"reached", reached},
                    {"epochs", number(median(epochs))},
                    {"seconds", number(median(seconds))}});
  }
  return {{"val/acc", target}, {"groups", rows}};
}

// ---- Pairs ---------------------------------------------------------------------------------------------------------

// Differences that are all the same tell nothing of their spread: counts of few test images, not certainty.
bool all_the_same(const Spread& d) { return d.n >= 2 && d.mean != 0 && d.sd <= 1e-12; }

std::string in_words(const std::string& a, const std::string& b, const PairedTest& t, double p, int64_t needed,
                     bool other_images) {
  const Spread& d = t.difference;
  if (d.n == 0 && other_images)
    return fmt::format("{} and {} were tested on different images and are not compared", a, b);
  if (d.n == 0) return fmt::format("{} and {} have no finished seed in common", a, b);
  const double points = 100 * d.mean;
  if (d.n == 1)
    return fmt::format("one seed cannot tell {} from {}: the difference of that pair is {:+.2f} points", a, b, points);
  if (all_the_same(d))
    return fmt::format(
        "{} seeds cannot tell {} from {}: each pair differs by {:+.2f} points, which says nothing of the spread", d.n,
        a, b, points);
  const std::string size = fmt::format("{:.2f} ± {:.2f}", std::fabs(points), 100 * d.half);
  if (p < 0.05)
    return fmt::format("{} is ahead of {} by {} points over {} pairs", points > 0 ? a : b, points > 0 ? b : a, size,
                       d.n);
  std::string text =
      fmt::format("{} seeds cannot tell {} from {}: {:+.2f} ± {:.2f} points", d.n, a, b, points, 100 * d.half);
  if (needed > d.n) text += fmt::format("; about {} pairs would be needed to tell a difference of that size", needed);
  return text;
}

// The hash of the test images; empty: the run does not say.
std::string tested_on(const RunRecord& run) {
  const Json hash = value_at(run.env, "/data/test/xxh3");
  return hash.is_string() ? hash.get<std::string>() : "";
}

Json pairs(const std::vector<Group>& groups) {
  struct Pair {
    const Group *a, *b;
    PairedTest test;
    bool other_images = false;
  };
  std::vector<Pair> all;
  std::vector<double> p;
  for (size_t i = 0; i < groups.size(); ++i)
    for (size_t j = i + 1; j < groups.size(); ++j) {
      std::map<int64_t, const RunRecord*> of_b;
      for (const RunRecord& run : groups[j].runs)
        if (is_done(run)) of_b[seed_of(run)] = &run;
      std::vector<double> left, right;
      bool other_images = false;
      for (const RunRecord& run : groups[i].runs)
        if (const auto found = of_b.find(seed_of(run)); is_done(run) && found != of_b.end()) {
          if (tested_on(run) != tested_on(*found->second)) {
            other_images = true;
            continue;
          }
          left.push_back(run.number("test/acc"));
          right.push_back(found->second->number("test/acc"));
        }
      all.push_back({&groups[i], &groups[j], paired_test(left, right), other_images});
      p.push_back(all_the_same(all.back().test.difference) ? kNone : all.back().test.p);
    }
  const std::vector<double> adjusted = holm(p);
  const auto tests = double(std::ranges::count_if(p, [](double v) { return !std::isnan(v); }));
  Json rows = Json::array();
  for (size_t i = 0; i < all.size(); ++i) {
    const Spread& d = all[i].test.difference;
    const int64_t needed = d.n >= 2 ? pairs_needed(d.mean, d.sd, 0.05 / std::max(1.0, tests)) : -1;
    rows.push_back(
        {{"a", all[i].a->label},
         {"b", all[i].b->label},
         {"n", d.n},
         {"mean", number(d.mean)},
         {"sd", number(d.sd)},
         {"half", number(d.half)},
         {"p", number(p[i])},
         {"p_holm", number(adjusted[i])},
         {"pairs_needed", needed > 0 ? Json(needed) : Json(nullptr)},
         {"words", in_words(all[i].a->label, all[i].b->label, all[i].test, adjusted[i], needed, all[i].other_images)}});
  }
  return rows;
}

// ---- Config and environment ----------------------------------------------------------------------------------------

Json config_table(const std::vector<Group>& groups) {
  Json rows = Json::array();
  for (const KeyValues& k : differing_keys(groups)) rows.push_back({{"key", k.key}, {"values", k.values}});
  return rows;
}

// What is the same everywhere, and where runs differ the runs of each value.
Json environment(const std::vector<Group>& groups) {
  std::map<std::string, std::map<std::string, std::vector<std::string>>> runs_of;
  size_t n = 0;
  for (const Group& group : groups)
    for (const RunRecord& run : group.runs) {
      ++n;
      for (const auto& [key, value] : environment_of(run)) runs_of[key][value].push_back(run.name);
    }
  Json same = Json::object(), differs = Json::object();
  for (const auto& [key, values] : runs_of) {
    if (values.size() == 1 && values.begin()->second.size() == n)
      same[key] = values.begin()->first;
    else
      for (const auto& [value, runs] : values) differs[key][value] = runs;
  }
  return {{"same", same}, {"differs", differs}};
}

// Test images, where all runs agree on them; NaN else.
double test_images(const std::vector<Group>& groups) {
  std::set<int64_t> counts;
  for (const Group& group : groups)
    for (const RunRecord& run : group.runs) {
      const Json n = value_at(run.env, "/data/test/images");
      if (n.is_number_integer()) counts.insert(n.get<int64_t>());
    }
  return counts.size() == 1 && *counts.begin() > 0 ? double(*counts.begin()) : kNone;
}

// A seed that ran twice gave the same numbers twice: counted twice, they would look like more evidence than there is.
void keep_one_run_a_seed(Group& group) {
  std::vector<RunRecord> first;
  for (RunRecord& run : group.runs) {
    if (first.empty() || seed_of(first.back()) != seed_of(run))
      first.push_back(std::move(run));
    else
      group.repeated.push_back(run.dir.string());
  }
  group.runs = std::move(first);
}

}  // namespace

std::vector<Group> group_runs(std::vector<RunRecord> runs) {
  std::vector<Group> groups;
  std::map<std::string, size_t> index;
  for (RunRecord& run : runs) {
    const auto [at, is_new] = index.try_emplace(recipe(run.config), groups.size());
    if (is_new) groups.emplace_back();
    groups[at->second].runs.push_back(std::move(run));
  }
  for (Group& group : groups) {
    std::ranges::stable_sort(group.runs, {}, [](const RunRecord& r) { return std::pair(seed_of(r), !is_done(r)); });
    keep_one_run_a_seed(group);
  }
  std::vector<std::string> labels = folder_labels(groups);
  if (groups.size() == 1 && labels[0].empty()) labels[0] = groups[0].runs[0].name;
  if (!distinct(labels)) labels = key_labels(groups);
  for (size_t g = 0; g < groups.size(); ++g) groups[g].label = escaped(labels[g]);
  return groups;
}

Json compare(const std::vector<Group>& groups, std::vector<double> targets) {
  if (targets.empty()) targets = choose_targets(groups);
  const double n_test = test_images(groups);
  Json json = {{"schema", 1}, {"groups", Json::array()}, {"targets", Json::array()}};
  for (const Group& group : groups) json["groups"].push_back(describe(group, n_test));
  for (const double target : targets) json["targets"].push_back(time_to(groups, target));
  json["batches"] = describe_batches(groups);
  json["pairs"] = pairs(groups);
  json["n_test"] = number(n_test);
  json["config"] = config_table(groups);
  json["environment"] = environment(groups);
  return json;
}

// ---- Terminal ------------------------------------------------------------------------------------------------------

namespace {

std::string or_dash(double value, const char* format) {
  return std::isfinite(value) ? fmt::format(fmt::runtime(format), value) : "-";
}

// Columns padded to their widest cell; the first is left-justified.
std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> width(rows[0].size());
  for (const auto& row : rows)
    for (size_t c = 0; c < row.size(); ++c) width[c] = std::max(width[c], count_chars(row[c]));
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) {
      const std::string space(width[c] - count_chars(row[c]), ' ');
      line += c == 0 ? row[c] + space : "  " + space + row[c];
    }
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

std::string seed_and_acc(const Json& v) {
  return v.is_null() ? "-" : fmt::format("{} (s{})", percent(v["acc"]), v["seed"].get<int64_t>());
}

}  // namespace

namespace {

std::string or_dash_percent(const Json& share) { return or_dash(100 * or_none(share), "{:.1f}"); }

std::string steps_text(const std::vector<const Json*>& groups) {
  std::vector<std::vector<std::string>> rows = {
      {"steps, on average", "gradient", "velocity", "update", "turn round %", "clipped %", "fit"}};
  for (const Json* g : groups) {
    const Json& s = (*g)["steps"];
    if (!s["grad_norm"].is_number()) continue;
    std::vector<std::string> row = {(*g)["label"].get<std::string>()};
    for (const char* norm : {"grad_norm", "velocity_norm", "update_norm"})
      row.push_back(or_dash(or_none(s[norm]), "{:.3g}"));
    row.push_back(or_dash_percent(s["reversed_share"]));
    row.push_back(or_dash_percent(s["clipped_share"]));
    row.push_back(s["fit"].is_null() ? "-" : s["fit"]["verdict"].get<std::string>());
    rows.push_back(std::move(row));
  }
  return rows.size() > 1 ? "\n" + table(rows) : "";
}

std::string batches_text(const Json& batches) {
  if (batches.empty()) return "";
  std::vector<std::vector<std::string>> rows = {{"by images per step", "images", "updates an epoch", "in all",
                                                 "s an epoch", "train %", "test %", "first losses"}};
  for (const Json& b : batches) {
    std::string losses;
    for (const Json& loss : b["first_losses"]) losses += (losses.empty() ? "" : " ") + or_dash(or_none(loss), "{:.3f}");
    rows.push_back({b["label"].get<std::string>(), std::to_string(b["images_per_step"].get<int64_t>()),
                    std::to_string(b["updates_per_epoch"].get<int64_t>()), std::to_string(b["updates"].get<int64_t>()),
                    or_dash(or_none(b["seconds_per_epoch"]), "{:.3g}"), or_dash_percent(b["train/acc"]),
                    or_dash_percent(b["test/acc"]), losses});
  }
  return "\n" + table(rows);
}

}  // namespace

std::string comparison_text(const Json& c) {
  std::vector<const Json*> order;
  for (const Json& g : c["groups"]) order.push_back(&g);
  std::ranges::stable_sort(order, std::greater(), [](const Json* g) {
    const double mean = or_none((*g)["test/acc"]["mean"]);
    return std::isnan(mean) ? -1 : mean;
  });
  std::vector<std::vector<std::string>> rows = {
      {"", "n", "test acc. %", "95 % interval", "best", "worst", "time", "img/s"}};
  std::string notes;
  for (const Json* g : order) {
    const Json& acc = (*g)["test/acc"];
    const std::string interval =
        acc["low"].is_number() ? fmt::format("{} to {}", percent(acc["low"]), percent(acc["high"])) : "-";
    rows.push_back({(*g)["label"], std::to_string(acc["n"].get<int64_t>()),
                    or_dash(100 * or_none(acc["mean"]), "{:.2f}"), interval, seed_and_acc((*g)["best"]),
                    seed_and_acc((*g)["worst"]), duration_text(or_none((*g)["wall_s"]["mean"])),
                    or_dash(or_none((*g)["img_per_s"]), "{:.0f}")});
    const auto diverged = (*g)["diverged"].get<int64_t>(), unfinished = (*g)["unfinished"].get<int64_t>();
    const std::string label = (*g)["label"];
    if (diverged > 0) notes += fmt::format("{}: {} of {} runs diverged\n", label, diverged, (*g)["runs"].size());
    if (unfinished > 0)
      notes += fmt::format("{}: {} of {} runs are not finished\n", label, unfinished, (*g)["runs"].size());
    for (const std::string dir : (*g)["repeated"])
      notes += fmt::format("{}: {} is left out: a seed that is there already\n", label, escaped(dir));
  }
  std::string text = table(rows) + notes;

  for (const Json& target : c["targets"]) {
    rows = {{fmt::format("to {:.0f} % on validation", 100 * or_none(target["val/acc"])), "reached", "epochs", "time"}};
    for (const Json& g : target["groups"])
      rows.push_back({g["label"], fmt::format("{} of {}", g["reached"].get<int64_t>(), g["n"].get<int64_t>()),
                      or_dash(or_none(g["epochs"]), "{:g}"), duration_text(or_none(g["seconds"]))});
    text += "\n" + table(rows);
  }
  text += steps_text(order) + batches_text(c["batches"]);
  rows = {{"expected calibration error", "test %", "temperature", "val. % before", "and after"}};
  for (const Json* g : order) {
    if (!(*g)["test/ece"]["mean"].is_number()) continue;
    const Json fit = g->value("calibration", Json::object());
    const auto of_validation = [&](const char* when) {
      return or_dash(100 * or_none(fit.value(Json::json_pointer(std::string("/val~1ece/") + when), Json())), "{:.2f}");
    };
    rows.push_back({(*g)["label"], percent((*g)["test/ece"]["mean"]),
                    or_dash(or_none(fit.value("temperature", Json())), "{:.3f}"), of_validation("before"),
                    of_validation("after")});
  }
  if (rows.size() > 1) text += "\n" + table(rows);
  if (!c["pairs"].empty()) {
    text += "\n";
    for (const Json& pair : c["pairs"]) text += pair["words"].get<std::string>() + "\n";
  }
  for (const Json* g : order)
    if (g->contains("floor")) {
      const Json& floor = (*g)["floor"];
      text += fmt::format(
          "\nSampling floor: at {} % on {:.0f} test images one run's standard error is {:.2f} points (95 %: {} to {} "
          "%).\n",
          percent((*g)["test/acc"]["mean"]), floor["n_test"].get<double>(), 100 * floor["standard_error"].get<double>(),
          percent(floor["low"]), percent(floor["high"]));
      break;
    }
  return text;
}

// ---- Curves --------------------------------------------------------------------------------------------------------

namespace {

constexpr const char* kStepMetrics[] = {"train/loss",     "lr",           "grad_norm", "velocity_norm", "update_norm",
                                        "reversed_share", "clipped_share"};
constexpr size_t kFinePoints = 240;  // of a curve by steps
constexpr size_t kLayerPoints = 60;  // of a layer's curve

// Five digits are more than a screen shows.
Json short_number(double v) {
  return std::isfinite(v) ? Json(std::strtod(fmt::format("{:.5g}", v).c_str(), nullptr)) : Json(nullptr);
}

Json short_numbers(const std::vector<double>& values) {
  Json all = Json::array();
  for (const double v : values) all.push_back(short_number(v));
  return all;
}

double finite_mean(const std::vector<double>& values) {
  std::vector<double> finite;
  std::ranges::copy_if(values, std::back_inserter(finite), [](double v) { return std::isfinite(v); });
  return spread(finite).mean;
}

// A curve of a group: at each point the mean, the smallest and the largest value and the half width of the 95 %
// interval, over the runs that have come so far.
struct Curve {
  std::vector<double> mean, low, high, half;
  void add(const std::vector<double>& values) {
    std::vector<double> finite;
    std::ranges::copy_if(values, std::back_inserter(finite), [](double v) { return std::isfinite(v); });
    const Spread s = spread(finite);
    mean.push_back(s.mean);
    half.push_back(s.half);
    low.push_back(finite.empty() ? kNone : *std::ranges::min_element(finite));
    high.push_back(finite.empty() ? kNone : *std::ranges::max_element(finite));
  }
  Json json(bool several) const {
    if (std::ranges::all_of(mean, [](double v) { return std::isnan(v); })) return nullptr;
    Json all = {{"mean", short_numbers(mean)}};
    if (!several) return all;
    all["low"] = short_numbers(low);
    all["high"] = short_numbers(high);
    all["half"] = short_numbers(half);
    return all;
  }
};

using RowsOfRun = std::vector<const LoggedRow*>;

std::vector<RowsOfRun> rows_of_kind(const Group& group, const char* kind) {
  std::vector<RowsOfRun> all;
  for (const RunRecord& run : group.runs) {
    RowsOfRun rows;
    for (const LoggedRow& row : run.rows)
      if (row.kind == kind) rows.push_back(&row);
    all.push_back(std::move(rows));
  }
  return all;
}

size_t longest(const std::vector<RowsOfRun>& runs) {
  size_t n = 0;
  for (const RowsOfRun& rows : runs) n = std::max(n, rows.size());
  return n;
}

double value_of(const LoggedRow& row, const std::string& metric) {
  if (metric == "gap") return row["train/acc"] - row["val/acc"];
  return metric == "img_per_s" ? (row.img_per_s > 0 ? row.img_per_s : kNone) : row[metric];
}

// The x of the i-th rows in the three units: epochs, steps, and the mean of the seconds at which the runs came there.
struct Axis {
  std::vector<double> epoch, step, seconds;
  void add(const std::vector<RowsOfRun>& runs, size_t i, double steps_per_epoch) {
    std::vector<double> wall;
    double s = kNone;
    for (const RowsOfRun& rows : runs)
      if (i < rows.size()) {
        s = double(rows[i]->step);
        wall.push_back(rows[i]->wall_s);
      }
    step.push_back(s);
    epoch.push_back(s / steps_per_epoch);
    seconds.push_back(finite_mean(wall));
  }
  Json json() const { return {{"epoch", short_numbers(epoch)}, {"step", step}, {"seconds", short_numbers(seconds)}}; }
};

Json by_epoch(const Group& group, const std::vector<RowsOfRun>& runs, double steps_per_epoch) {
  Axis axis;
  const size_t n = longest(runs);
  for (size_t i = 0; i < n; ++i) axis.add(runs, i, steps_per_epoch);
  Json metrics = Json::object(), seeds = Json::object();
  for (const char* metric : {"val/acc", "val/loss", "train/acc", "train/loss", "gap", "img_per_s"}) {
    Curve curve;
    Json each = Json::array();
    for (const RowsOfRun& rows : runs) {
      std::vector<double> values;
      for (const LoggedRow* row : rows) values.push_back(value_of(*row, metric));
      each.push_back(short_numbers(values));
    }
    for (size_t i = 0; i < n; ++i) {
      std::vector<double> values;
      for (const RowsOfRun& rows : runs)
        if (i < rows.size()) values.push_back(value_of(*rows[i], metric));
      curve.add(values);
    }
    metrics[metric] = curve.json(group.runs.size() > 1);
    if (group.runs.size() > 1) seeds[metric] = each;
  }
  return {{"x", axis.json()}, {"metrics", metrics}, {"seeds", seeds}};
}

// Of the rows between epochs, at most kFinePoints: one is the mean of the rows up to it.
Json by_step(const Group& group, double steps_per_epoch) {
  const std::vector<RowsOfRun> runs = rows_of_kind(group, "step");
  const size_t n = longest(runs), stride = (n + kFinePoints - 1) / kFinePoints;
  Axis axis;
  std::map<std::string, Curve> metrics;
  for (size_t end = std::min(n, std::max<size_t>(1, stride)); n > 0 && end <= n; end += stride) {
    axis.add(runs, end - 1, steps_per_epoch);
    for (const char* metric : kStepMetrics) {
      std::vector<double> values;
      for (const RowsOfRun& rows : runs) {
        if (end > rows.size()) continue;
        std::vector<double> part;
        for (size_t i = end - stride; i < end; ++i) part.push_back((*rows[i])[metric]);
        values.push_back(finite_mean(part));
      }
      metrics[metric].add(values);
    }
  }
  Json json = {{"x", axis.json()}, {"metrics", Json::object()}};
  for (const auto& [name, curve] : metrics) json["metrics"][name] = curve.json(group.runs.size() > 1);
  return json;
}

// Mean over the runs of a number that each layer has ("update_ratio/conv1"), at most kLayerPoints rows.
Json layers(const std::vector<RowsOfRun>& runs, const std::string& prefix, double steps_per_epoch) {
  const size_t n = longest(runs), stride = (n + kLayerPoints - 1) / kLayerPoints;
  Json json = {{"x", nullptr}, {"layers", Json::object()}};
  if (n == 0 || stride == 0) return json;
  const auto longest_run = std::ranges::find_if(runs, [&](const RowsOfRun& rows) { return rows.size() == n; });
  Axis axis;
  std::vector<size_t> points;
  for (size_t i = 0; i < n; i += stride) points.push_back(i);
  for (const size_t i : points) axis.add(runs, i, steps_per_epoch);
  json["x"] = axis.json();
  for (const auto& [name, value] : longest_run->front()->values) {
    if (!name.starts_with(prefix)) continue;
    std::vector<double> means;
    for (const size_t i : points) {
      std::vector<double> values;
      for (const RowsOfRun& rows : runs)
        if (i < rows.size()) values.push_back((*rows[i])[name]);
      means.push_back(finite_mean(values));
    }
    json["layers"][name.substr(prefix.size())] = short_numbers(means);
  }
  return json;
}

}  // namespace

Json curves(const std::vector<Group>& groups) {
  Json all = Json::array();
  for (const Group& group : groups) {
    const std::vector<RowsOfRun> epochs = rows_of_kind(group, "epoch");
    double steps_per_epoch = kNone;
    for (const RowsOfRun& rows : epochs)
      if (!rows.empty()) steps_per_epoch = double(rows[0]->step) / double(rows[0]->epoch);
    std::vector<int64_t> seeds;
    for (const RunRecord& run : group.runs) seeds.push_back(seed_of(run));
    Json of_layers = {{"update_ratio", layers(epochs, "update_ratio/", steps_per_epoch)}};
    const std::vector<RowsOfRun> rows = rows_of_kind(group, "layers");
    for (const std::string name : {"grad_norm", "velocity_norm", "update_norm", "effective_lr"})
      of_layers[name] = layers(rows, name + "/", steps_per_epoch);
    all.push_back({{"label", group.label},
                   {"seeds", seeds},
                   {"epochs", by_epoch(group, epochs, steps_per_epoch)},
                   {"steps", by_step(group, steps_per_epoch)},
                   {"layers", of_layers}});
  }
  return all;
}

}  // namespace linnet
