#include "linnet/trained.h"

#include <algorithm>
#include <cmath>

#include "linnet/run.h"
#include "linnet/text.h"
#include "linnet/weights.h"
#include "src/core/file.h"
#include "src/core/json.h"
#include "src/train/run_files.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;

bool sets(const std::vector<std::string>& overrides, const std::string& key) {
  return std::ranges::any_of(overrides, [&](const std::string& s) { return s.starts_with(key + "="); });
}

void check_stats(const TrainedOptions& o) {
  for (const double m : o.mean)
    if (!std::isfinite(m)) fail(Exit::usage, "--mean expects finite numbers, got {}", m);
  for (const double s : o.std)
    if (!(s > 0) || !std::isfinite(s)) fail(Exit::usage, "--std expects finite numbers above 0, got {}", s);
}

// From the run's env.json; false if it does not tell.
bool read_images(const fs::path& run, Trained& t) {
  const fs::path file = run / "env.json";
  std::error_code error;
  if (!fs::exists(file, error)) return false;
  auto images = parse_run_images(read_file(file, kMaxJsonBytes, Exit::checkpoint), file.string());
  if (!images) return false;
  t.options = {
      .height = images->height, .width = images->width, .channels = images->channels, .classes = images->classes};
  t.class_names = std::move(images->class_names);
  t.digests = std::move(images->digests);
  return true;
}

void open_run(const fs::path& run, const TrainedOptions& o, Trained& t) {
  t.is_run = true;
  t.config = load_config(run / "config.toml", o.set);
  t.weights = run_weights(run, t.origin, t.notes);
  if (!read_images(run, t)) {
    const Images train = load_run_data(t.config).train;
    t.options = model_options(t.config, train);
    t.class_names = train.class_names;
  }
  if (const auto calibration = read_calibration(run)) {
    if (calibration->weights == digest(t.weights))
      t.calibration = calibration;
    else
      t.notes.push_back("calibration.json is of other weights and not used; renew it with `linnet eval --calibrate`");
  }
}

void open_file(const fs::path& file, const TrainedOptions& o, Trained& t) {
  if (!fs::exists(file)) fail(Exit::usage, "there is no run folder and no weights file at {}", file.string());
  if (o.model.empty() && file.extension() != ".safetensors")
    fail(Exit::usage, "{}: expected the folder of a run, or a .safetensors file of weights", escaped(file.string()));
  if (o.model.empty())
    fail(Exit::usage, "{} is a weights file: say which model it belongs to with --model NAME (`linnet list models`)",
         file.string());
  t.config = parse_config("", "", o.set);
  t.weights = read_safetensors(file);
  t.origin = file.string();
  const WeightsFacts facts = weights_facts(t.weights);
  if (!sets(o.set, "model.shortcut") && facts.projects) t.config.model.shortcut = "B";
  t.options = {.height = o.size, .width = o.size};
  if (facts.channels > 0 && facts.channels <= 4)
    t.options.channels = int(facts.channels);
  else if (!o.mean.empty())
    t.options.channels = int(o.mean.size());
  if (facts.classes > 0 && facts.classes <= 100'000) t.options.classes = int(facts.classes);
}

}  // namespace

Trained open_trained(const fs::path& target, const TrainedOptions& o) {
  check_stats(o);
  Trained t;
  fs::is_directory(target) ? open_run(target, o, t) : open_file(target, o, t);
  if (!o.model.empty()) t.config.model.name = o.model;
  if (!o.mean.empty()) t.config.data.mean = o.mean;
  if (!o.std.empty()) t.config.data.std = o.std;
  if (t.config.train.precision == "auto") t.config.train.precision = "f32";  // as exact as the weights are
  t.options.shortcut = t.config.model.shortcut[0];
  t.options.dropout = float(t.config.model.dropout);
  for (auto c = int(t.class_names.size()); c < t.options.classes; ++c) t.class_names.push_back(std::to_string(c));
  t.class_names.resize(size_t(t.options.classes));
  return t;
}

Net Trained::build(Backend& backend) const {
  Net net(backend, config.model.name, options, 0);
  set_weights(backend, net.params(), weights, origin);
  return net;
}

// ---- Saliency
// --------------------------------------------------------------------------------------------------------

namespace {

std::vector<float> on_host(Backend& backend, const Tensor& t) {
  std::vector<float> values(size_t(t.numel()));
  backend.download(values.data(), t);
  return values;
}

void scale_to_one(std::vector<float>& map) {
  const float top = map.empty() ? 0 : *std::ranges::max_element(map);
  for (float& v : map) v = top > 0 ? v / top : 0;
}

// [h, w] to [height, width] with pixel centres aligned.
std::vector<float> bilinear(const std::vector<float>& map, int64_t h, int64_t w, int64_t height, int64_t width) {
  const auto place = [](int64_t i, int64_t from, int64_t to) {
    return std::clamp((double(i) + 0.5) * double(from) / double(to) - 0.5, 0.0, double(from - 1));
  };
  std::vector<float> out(size_t(height * width));
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x) {
      const double py = place(y, h, height), px = place(x, w, width);
      const auto y0 = int64_t(py), x0 = int64_t(px);
      const int64_t y1 = std::min(y0 + 1, h - 1), x1 = std::min(x0 + 1, w - 1);
      const double fy = py - double(y0), fx = px - double(x0);
      const auto at = [&](int64_t r, int64_t c) { return double(map[size_t(r * w + c)]); };
      out[size_t(y * width + x)] =
          float((1 - fy) * ((1 - fx) * at(y0, x0) + fx * at(y0, x1)) + fy * ((1 - fx) * at(y1, x0) + fx * at(y1, x1)));
    }
  return out;
}

std::vector<float> cam_of(const std::vector<float>& maps, const std::vector<float>& gradient, const Shape& s) {
  const int64_t pixels = s[1] * s[2], channels = s[3];
  std::vector<double> weight(size_t(channels), 0);
  for (int64_t i = 0; i < pixels * channels; ++i)
    weight[size_t(i % channels)] += double(gradient[size_t(i)]) / double(pixels);
  std::vector<float> cam(static_cast<size_t>(pixels));
  for (int64_t p = 0; p < pixels; ++p) {
    double sum = 0;
    for (int64_t c = 0; c < channels; ++c) sum += weight[size_t(c)] * double(maps[size_t(p * channels + c)]);
    cam[size_t(p)] = float(std::max(0.0, sum));
  }
  return cam;
}

}  // namespace

Saliency saliency(Net& net, const BatchSource& given, int64_t index, int target_class) {
  Backend& backend = net.backend();
  Pool& pool = net.pool();
  BatchSource source = given;
  source.augment = {};
  const Shape s = source.images.shape();
  const Tensor batch = pool.empty({1, s[1], s[2], s[3]}, DType::f32), labels = pool.empty({1}, DType::i32),
               draws = pool.empty({1, kDrawWords}, DType::i32), step = make_step(backend);
  write_step(backend, step, {.first = index});
  backend.make_batch(batch, labels, draws, source, step, 0);

  Tape tape(backend, pool);
  Tensor maps, gradient;  // the last result with more than one pixel
  tape.watch([&](const Tensor& y, Op) {
    if (y.rank() == 4 && y.dim(1) * y.dim(2) > 1) maps = y;
  });
  tape.watch_gradients([&](int64_t var, const Tensor& dy) {
    if (maps && var == maps.var) gradient = dy;
  });
  Pass pass{backend, pool, &tape};
  pass.explain = true;
  const Tensor x = tape.leaf(batch);
  const Tensor logits = net.forward(pass, x);
  require(target_class >= 0 && target_class < logits.dim(1), "[saliency] expected a class below {}, got {}",
          logits.dim(1), target_class);
  std::vector<float> one_hot(size_t(logits.numel()), 0.f);
  one_hot[size_t(target_class)] = 1;
  const Tensor dy = pool.empty(logits.shape(), DType::f32);
  backend.upload(dy, one_hot.data());
  tape.backward(logits, dy);

  Saliency out;
  const std::vector<float> pixels = on_host(backend, batch), slope = on_host(backend, tape.grad(x));
  for (int64_t p = 0; p < s[1] * s[2]; ++p) {
    double sum = 0;
    for (int64_t c = 0; c < s[3]; ++c)
      sum += double(pixels[size_t(p * s[3] + c)]) * double(slope[size_t(p * s[3] + c)]);
    out.gradient_input.push_back(float(std::abs(sum)));
  }
  scale_to_one(out.gradient_input);
  if (maps && gradient) {
    const Shape& m = maps.shape();
    out.grad_cam = bilinear(cam_of(on_host(backend, maps), on_host(backend, gradient), m), m[1], m[2], s[1], s[2]);
    scale_to_one(out.grad_cam);
  }
  return out;
}

}  // namespace linnet
