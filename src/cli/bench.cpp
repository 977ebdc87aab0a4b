// linnet bench step|layers|ops|eval|optimizers
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "linnet/optimizer.h"
#include "linnet/profile.h"
#include "linnet/run.h"
#include "src/backend/backends.h"

namespace linnet {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string what = "step", model = "resnet20", precision = "auto", conv = "auto", device = "cpu";
  int64_t batch = 128;
  int threads = default_threads();
  double seconds = 5;
  bool json = false, turns = false;
};

std::string info(const Backend& backend, std::string_view key) {
  for (const auto& [name, value] : backend.info())
    if (name == key) return value;
  return "";
}

double median(std::vector<double> v) {
  std::ranges::sort(v);
  return v[v.size() / 2];
}

double peak_rss_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return double(usage.ru_maxrss) / 1024;
}

// Calls that share a name, a layer or an operation: medians over the steps of their sums within a step.
struct Line {
  std::string name;
  double calls = 0, ms = 0, gflops = 0, gbytes = 0;  // of a step; gflops and gbytes: GFLOP and GB
};

// Per step: spans are those of `steps` like steps, one after another.
std::vector<Line> lines_of(const std::vector<CallSpan>& spans, size_t steps, const std::string& what,
                           const ParamStore& store) {
  const auto name_of = [&](const CallSpan& s) -> std::string {
    if (what == "step") return s.call;
    const std::string layer = layer_of(s.param, store);
    if (what == "layers") return layer.empty() ? fmt::format("({})", s.call) : layer;
    return fmt::format("{} {}{}{}", s.call, s.shape, s.note.empty() ? "" : ", ", s.note);
  };
  std::vector<Line> lines;
  std::map<std::string, size_t> index;
  std::vector<std::vector<double>> ms;
  const size_t per_step = spans.size() / steps;
  for (size_t i = 0; i < per_step * steps; ++i) {
    const CallSpan& s = spans[i];
    const auto [at, fresh] = index.emplace(name_of(s), lines.size());
    if (fresh) {
      lines.push_back({at->first});
      ms.emplace_back(steps, 0.0);
    }
    Line& line = lines[at->second];
    ms[at->second][i / per_step] += double(s.ns) * 1e-6;
    line.calls += 1. / double(steps);
    line.gflops += s.flops * 1e-9 / double(steps);
    line.gbytes += s.bytes * 1e-9 / double(steps);
  }
  for (size_t i = 0; i < lines.size(); ++i) lines[i].ms = median(ms[i]);
  if (what != "layers") std::ranges::stable_sort(lines, std::greater<>(), &Line::ms);
  return lines;
}

// A trainer on random images, and its backend, whose calls can be recorded.
struct Subject {
  Config config;
  std::shared_ptr<CallLog> log = std::make_shared<CallLog>();
  std::unique_ptr<Backend> backend;
  RunData data;
  std::optional<Trainer> trainer;
  double first_step_ms = 0;  // backend, model and memory made, primitives chosen, the first step done
  int64_t epoch = 0;

  Subject(const Options& o, int64_t images) {
    std::string text = fmt::format(
        "model.name = '{}'\ndata.name = 'synthetic'\ndata.samples = {}\ndata.val = 0\ntrain.batch_size = {}\n"
        "optimizer.name = 'sgd'\noptimizer.momentum = 0.9\noptimizer.weight_decay = 1e-4\n"
        "train.precision = '{}'\ntrain.conv = '{}'\n",
        o.model, images, o.batch, o.precision, o.conv);
    config = parse_config(text, "bench");
    data = load_run_data(config);
    const int64_t begin = now_ns();
    backend = make_profiler(o.device == "cpu" ? make_cpu_backend(o.threads, backend_options(config).conv)
                                              : make_backend(o.device, backend_options(config)),
                            log);
    trainer.emplace(config, *backend, data);
    step();
    backend->synchronize();
    first_step_ms = double(now_ns() - begin) * 1e-6;
  }
  void step() {
    if (trainer->global_step() == epoch * trainer->steps_per_epoch()) trainer->start_epoch(epoch++);
    trainer->step();
  }
};

Json about(const Options& o, const Backend& backend, DType type) {
  const std::string threads = info(backend, "threads");
  return {{"model", o.model},
          {"batch", o.batch},
          {"precision", name_of(type)},
          {"conv", o.conv},
          {"threads", threads.empty() ? 0 : std::stoi(threads)},
          {"device", info(backend, "device")},
          {"version", version()}};
}

double image_rate(const Options& o, double ms) { return double(o.batch) / ms * 1e3; }

// Many milliseconds a step for at least --seconds.
std::vector<double> measure_ms(const Options& o, int64_t group, const std::function<double()>& group_ms) {
  std::vector<double> ms;
  for (double spent = 0; spent < o.seconds * 1e3 || ms.size() < 3; spent += ms.back() * double(group))
    ms.push_back(group_ms());
  return ms;
}

// The protocol of bench/vs_pytorch: a line when it is ready, then a measurement for every line on stdin.
int bench_in_turns(const Options& o, int64_t group, const std::function<double()>& group_ms) {
  fmt::print("{}\n", Json({{"ready", version()}}).dump());
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    const std::vector<double> ms = measure_ms(o, group, group_ms);
    fmt::print("{}\n", Json({{"images_per_s", image_rate(o, median(ms))},
                             {"ms", median(ms)},
                             {"ms_min", *std::ranges::min_element(ms)},
                             {"steps", int64_t(ms.size()) * group},
                             {"peak_rss_mb", peak_rss_mb()}})
                           .dump());
    std::fflush(stdout);
  }
  return int(Exit::ok);
}

void print_lines(const std::vector<Line>& lines, const std::string& kind, const CpuPeak& peak) {
  double sum = 0;
  for (const Line& l : lines) sum += l.ms;
  size_t width = 4;
  for (const Line& l : lines) width = std::max(width, l.name.size());
  fmt::print("{:<{}} {:>6} {:>9} {:>7} {:>9} {:>8} {:>7}\n", kind, width, "calls", "ms", "share", "GFLOP/s", "of peak",
             "GB/s");
  for (const Line& l : lines) {
    const double rate = l.gflops / l.ms * 1e3;
    fmt::print("{:<{}} {:>6} {:>9.3f} {:>6.1f}% {:>9} {:>8} {:>7.1f}\n", l.name, width, std::lround(l.calls), l.ms,
               100 * l.ms / sum, rate > 0 ? fmt::format("{:.0f}", rate) : "",
               rate > 0 ? fmt::format("{:.0f}%", 100 * rate / peak.gflops) : "", l.gbytes / l.ms * 1e3);
  }
  fmt::print(
      "GFLOP/s count the direct sum of a convolution, of which Winograd does a quarter; GB/s each operand once.\n");
}

int bench_steps(const Options& o) {
  Subject s(o, std::max<int64_t>(2048, 8 * o.batch));
  const bool cpu = s.backend->device() == Device::cpu;
  // A GPU is given a group of steps between two waits, as in training.
  const int64_t group = cpu ? 1 : 20;
  const auto run_group_ms = [&] {
    const int64_t begin = now_ns();
    for (int64_t i = 0; i < group; ++i) s.step();
    s.backend->synchronize();
    return double(now_ns() - begin) * 1e-6 / double(group);
  };
  for (int i = 0; i < 3; ++i) run_group_ms();  // fills the pool and the caches of plans
  if (o.turns) return bench_in_turns(o, group, run_group_ms);
  const std::vector<double> ms = measure_ms(o, group, run_group_ms);
  if (!std::isfinite(s.trainer->last_loss()))
    fail(Exit::diverged, "the loss is not finite: these are no training steps");
  const double middle = median(ms), least = *std::ranges::min_element(ms);

  // Then again, call by call. A captured GPU step shows nothing of its inside.
  std::vector<Line> lines;
  const double rss = peak_rss_mb();
  const CpuPeak peak = cpu ? measure_cpu_peak(o.threads, s.trainer->net().type()) : CpuPeak{};
  if (cpu) {
    s.log->start();
    size_t steps = 0;
    for (const int64_t begin = now_ns(); steps < 3 || double(now_ns() - begin) < o.seconds * 0.3e9; ++steps) s.step();
    s.log->stop();
    lines = lines_of(s.log->spans(), steps, o.what, s.trainer->net().params());
  }

  Json json = {{"images_per_s", image_rate(o, middle)},
               {"ms", middle},
               {"ms_min", least},
               {"steps", int64_t(ms.size()) * group},
               {"first_step_ms", s.first_step_ms},
               {"peak_rss_mb", rss}};
  json.update(about(o, *s.backend, s.trainer->net().type()));
  if (cpu) {
    json["peak"] = {{"gflops", peak.gflops}, {"unit", peak.unit}, {"copy_gb_per_s", peak.gbytes}};
    json[o.what == "step" ? "calls" : o.what] = Json::array();
    for (const Line& l : lines) {
      Json entry = {
          {"name", l.name}, {"calls", std::lround(l.calls)}, {"ms", l.ms}, {"gb_per_s", l.gbytes / l.ms * 1e3}};
      if (l.gflops > 0) {
        entry["gflops"] = l.gflops / l.ms * 1e3;
        entry["of_peak"] = l.gflops / l.ms * 1e3 / peak.gflops;
      }
      json[o.what == "step" ? "calls" : o.what].push_back(entry);
    }
  }
  if (o.json) {
    fmt::print("{}\n", json.dump());
    return int(Exit::ok);
  }
  fmt::print("{} batch {} {}: {:.0f} images/s, {:.2f} ms a step (median of {}), {:.2f} ms at best; {} threads, {}\n",
             o.model, o.batch, json["precision"].get<std::string>(), json["images_per_s"].get<double>(), middle,
             ms.size() * size_t(group), least, json["threads"].get<int>(), json["device"].get<std::string>());
  fmt::print("first step after {:.0f} ms; {:.0f} MB of memory at most\n", s.first_step_ms, rss);
  if (!cpu) return int(Exit::ok);
  fmt::print("this machine now: {:.0f} GFLOP/s in {}, {:.0f} GB/s by a copy\n\n", peak.gflops, peak.unit, peak.gbytes);
  print_lines(lines, o.what == "step" ? "call" : o.what, peak);
  return int(Exit::ok);
}

// Evaluations and training steps in turns: their ratio is that of one moment of the machine.
int bench_eval(const Options& o) {
  constexpr int64_t kImages = 10'000;  // CIFAR-10's test set
  Subject s(o, kImages);
  Net& net = s.trainer->net();
  const BatchSource source = upload_source(*s.backend, s.data.train, s.config.data.mean, s.config.data.std);
  const auto ms_of = [&](const auto& work) {
    const int64_t begin = now_ns();
    work();
    s.backend->synchronize();
    return double(now_ns() - begin) * 1e-6;
  };
  const auto evaluate = [&] { net.evaluate(source, s.config.train.eval_batch_size, s.data.train.classes); };
  const int64_t steps = std::max<int64_t>(1, kImages / 2 / o.batch);  // take about as long as an evaluation
  std::vector<double> ms, training, by_training;
  for (double spent = 0; spent < o.seconds * 1e3 || ms.size() < 3;) {
    const double step_ms = ms_of([&] {
                             for (int64_t i = 0; i < steps; ++i) s.step();
                           }) /
                           double(steps);
    ms.push_back(ms_of(evaluate));
    training.push_back(image_rate(o, step_ms));
    by_training.push_back(double(kImages) / ms.back() * 1e3 / training.back());
    spent += ms.back() + step_ms * double(steps);
  }
  const double rate = double(kImages) / median(ms) * 1e3;
  Json json = {{"images_per_s", rate},
               {"ms", median(ms)},
               {"ms_min", *std::ranges::min_element(ms)},
               {"training_images_per_s", median(training)},
               {"by_training", median(by_training)},
               {"rounds", ms.size()}};
  json.update(about(o, *s.backend, net.type()));
  if (o.json) {
    fmt::print("{}\n", json.dump());
    return int(Exit::ok);
  }
  fmt::print("{} {}: evaluation of {} images/s, {:.2f} times training's {} (batch {}); {:.0f} ms for {} images\n",
             o.model, name_of(net.type()), std::lround(rate), median(by_training), std::lround(median(training)),
             o.batch, median(ms), kImages);
  if (s.backend->device() != Device::cpu) return int(Exit::ok);
  s.log->start();
  evaluate();
  s.log->stop();
  print_lines(lines_of(s.log->spans(), 1, "step", net.params()), "call", measure_cpu_peak(o.threads, net.type()));
  return int(Exit::ok);
}

struct OptimizerRow {
  std::string name;
  OptimizerConfig settings;
};

// Each optimizer as it comes, sgd, sgdw and nag with their usual momentum; and the settings that keep more or less.
std::vector<OptimizerRow> optimizer_rows() {
  std::vector<OptimizerRow> rows;
  const auto add = [&](const std::string& name, std::string_view what, const auto& change) {
    rows.push_back({std::string(what), default_settings(name, "pytorch")});
    change(rows.back().settings);
  };
  for (const OptimizerEntry& entry : optimizers()) {
    const std::string name(entry.name);
    add(name, name, [&](OptimizerConfig& c) {
      if (name == "sgd" || name == "sgdw" || name == "nag") c.momentum = 0.9;
    });
    if (name == "sgd") add(name, "sgd, plain", [](OptimizerConfig& c) { c.momentum = 0; });
    if (name == "rmsprop") add(name, "rmsprop, centered", [](OptimizerConfig& c) { c.centered = true; });
    if (name == "adam") add(name, "amsgrad", [](OptimizerConfig& c) { c.amsgrad = true; });
  }
  return rows;
}

// What each optimizer's update costs, and what it keeps, on the weights of a model.
int bench_optimizers(const Options& o) {
  // A step's own time, to which the updates are small.
  Subject subject(o, std::max<int64_t>(1024, 4 * o.batch));
  std::vector<double> steps;
  for (int i = 0; i < 5; ++i) {
    const int64_t begin = now_ns();
    subject.step();
    subject.backend->synchronize();
    steps.push_back(double(now_ns() - begin) * 1e-6);
  }
  const double step_ms = median(steps);
  const auto backend = o.device == "cpu" ? make_cpu_backend(o.threads) : make_backend(o.device);
  Json rows = Json::array();
  int64_t weights = 0;
  const std::vector<OptimizerRow> all = optimizer_rows();
  for (const OptimizerRow& row : all) {
    Config config = subject.config;
    config.optimizer = row.settings;
    Updater updater(*backend, config, 1);
    ParamStore store;
    const auto model = make_model(o.model, store, model_options(config, subject.data.train));
    store.seal(*backend, 1, updater.layout());
    updater.attach(store);
    const Flat& flat = store.flat();
    weights = store.count();
    std::vector<float> noise(size_t(flat.n));
    for (size_t i = 0; i < noise.size(); ++i) noise[i] = float(int64_t(i * 2654435761u % 2001) - 1000) * 1e-6f;
    backend->upload(flat.grad, noise.data());
    const Tensor step = make_step(*backend);
    const double one[3] = {1, 1, 1};
    const Tensor sums(backend->allocate(sizeof(double) * 2), {2}, DType::f64);
    const Tensor totals(backend->allocate(sizeof one), {3}, DType::f64);
    backend->upload(sums, one);
    backend->upload(totals, one);
    std::vector<double> ms;
    const double budget = o.seconds * 1e3 / double(all.size());
    int64_t t = 0;
    for (double spent = 0; spent < budget || ms.size() < 5; spent += ms.back()) {
      StepParams params{.step = t, .seed = 1};
      updater.fill(params, t++, 1);
      write_step(*backend, step, params);
      const int64_t begin = now_ns();
      updater.before_forward(step);
      updater.apply(step, sums, totals, 1);
      backend->synchronize();
      ms.push_back(double(now_ns() - begin) * 1e-6);
    }
    const Rule rule = make_rule(config.optimizer);
    rows.push_back({{"optimizer", row.name},
                    {"state_words", slots_of(rule)},
                    {"words_moved", words_moved(rule)},
                    {"state_mb", double(flat.slots.bytes()) * 1e-6},
                    {"ms", median(ms)},
                    {"ns_per_weight", median(ms) * 1e6 / double(weights)},
                    {"share_of_step", median(ms) / step_ms}});
  }
  Json json = {{"weights", weights}, {"step_ms", step_ms}, {"optimizers", rows}};
  json.update(about(o, *backend, DType::f32));
  if (o.json) {
    fmt::print("{}\n", json.dump());
    return int(Exit::ok);
  }
  fmt::print("{}: {} weights ({:.1f} MB, gradients as much again); a step of {} images takes {:.1f} ms\n\n", o.model,
             weights, double(weights) * 4e-6, o.batch, step_ms);
  fmt::print("{:<18}{:>12}{:>11}{:>13}{:>9}{:>11}{:>11}{:>10}\n", "optimizer", "state words", "state MB", "words moved",
             "ms", "ns/weight", "of step", "by sgd's");
  const double base = rows[0]["ms"];
  for (const Json& r : rows)
    fmt::print("{:<18}{:>12}{:>11.2f}{:>13}{:>9.3f}{:>11.3f}{:>10.2f}%{:>10.2f}\n", r["optimizer"].get<std::string>(),
               r["state_words"].get<int>(), r["state_mb"].get<double>(), r["words_moved"].get<int>(),
               r["ms"].get<double>(), r["ns_per_weight"].get<double>(), 100 * r["share_of_step"].get<double>(),
               r["ms"].get<double>() / base);
  fmt::print(
      "\nms: the gradient's norm, the check for values that are not finite, and the update. sgd, sgdw and nag with "
      "momentum 0.9.\n"
      "words moved: read and written for each weight. nag's are 4 more than sgd's: it reads weight and velocity once "
      "more to take the "
      "gradient ahead, and writes the weight twice.\n"
      "muon: its time goes into matrix products (3 for each of ns_steps, of every layer's weight), not into the words "
      "that it moves.\n");
  return int(Exit::ok);
}

}  // namespace

void add_bench(CLI::App& app, Command& command) {
  auto o = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand(
      "bench",
      "Measure training steps on random images, and where their time goes.\n\n"
      "  linnet bench                                     images/s of resnet20, the time by kind of call\n"
      "  linnet bench layers --model resnet56 --batch 32  the time by layer\n"
      "  linnet bench ops --precision f32 --json          the time by operation and shape\n"
      "  linnet bench eval                                images/s of evaluation\n"
      "  linnet bench optimizers --model mlp              memory and time of each optimizer's update");
  verb->add_option("what", o->what, "step (default), layers, ops, eval or optimizers")
      ->check(CLI::IsMember({"step", "layers", "ops", "eval", "optimizers"}));
  verb->add_option("--model", o->model, "network (`linnet list models`)")->capture_default_str();
  verb->add_option("--batch", o->batch, "images per step")->check(CLI::Range(1, 65536))->capture_default_str();
  verb->add_option("--precision", o->precision, "auto, f32, bf16 or fp16")
      ->check(CLI::IsMember({"auto", "f32", "bf16", "fp16"}));
  verb->add_option("--conv", o->conv, "auto, direct or winograd")->check(CLI::IsMember({"auto", "direct", "winograd"}));
  verb->add_option("--device", o->device, "cpu, cuda or auto")->capture_default_str();
  verb->add_option("--threads", o->threads, "threads on the CPU")->check(CLI::Range(1, 1024))->capture_default_str();
  verb->add_option("--seconds", o->seconds, "how long to measure")->check(above_zero())->capture_default_str();
  verb->add_flag("--json", o->json, "one JSON object on stdout");
  verb->add_flag("--turns", o->turns, "step: measure once for every line on stdin, one JSON object each");
  verb->callback([=, &command] {
    command = [=] {
      return o->what == "eval" ? bench_eval(*o) : o->what == "optimizers" ? bench_optimizers(*o) : bench_steps(*o);
    };
  });
}

}  // namespace linnet
