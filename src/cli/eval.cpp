// linnet eval RUN|WEIGHTS
#include <cmath>
#include <nlohmann/json.hpp>

#include "console.h"
#include "linnet/calibration.h"
#include "linnet/text.h"
#include "linnet/trained.h"
#include "linnet/weights.h"
#include "src/core/file.h"
#include "trained_options.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;

struct Options : TrainedOptions {
  std::string target, data, device = "auto", split = "test", logits;
  int64_t batch_size = 0;
  std::string tta = "none";
  bool json = false, calibrate = false;
};

SafeTensors as_tensors(const std::vector<float>& logits, const Images& images) {
  const auto bytes = [](const auto& v) {
    const char* at = reinterpret_cast<const char*>(v.data());
    return std::vector<char>(at, at + v.size() * sizeof(v[0]));
  };
  SafeTensors out;
  out.tensors["logits"] = {"F32", {images.size(), int64_t(logits.size()) / images.size()}, bytes(logits)};
  out.tensors["labels"] = {"I32", {images.size()}, bytes(images.labels)};
  return out;
}

// Images that are not those of the run may be ones that it was trained on.
void note_other_images(const Trained& trained, const std::string& split, const Images& now) {
  const auto then = trained.digests.find(split);
  if (then != trained.digests.end() && then->second != digest(now))
    tell(fmt::format("note: the {} images are not those that the run had: their XXH3 was {}, and now it is {}\n", split,
                     escaped(then->second), digest(now)));
}

int evaluate(const Options& o) {
  // A run brings its config; bare weights need the model's name and the normalisation they were trained with.
  const bool is_run = fs::is_directory(o.target);
  if (o.calibrate && !is_run)
    fail(Exit::usage, "--calibrate stores the temperature in a run's folder, and {} is none", o.target);
  if (!o.logits.empty()) require_absent(o.logits);
  Trained trained = open_trained(o.target, o);
  Config& config = trained.config;
  const SafeTensors& weights = trained.weights;
  if (!o.calibrate)
    for (const std::string& note : trained.notes) tell("note: " + note + "\n");
  if (!o.data.empty() && config.data.name == "synthetic")
    fail(Exit::usage, "--data says where the data lie, but synthetic ones are made; use --set data.name=cifar10");
  if (!o.data.empty()) config.data.path = o.data;
  if (o.batch_size > 0) config.train.eval_batch_size = o.batch_size;

  RunData data = load_run_data(config);
  for (const std::string& note : data.notes) tell("note: " + note + "\n");
  const auto backend = make_backend(o.device, backend_options(config));
  const Images images = o.split == "test" ? data.test() : std::move(o.split == "val" ? data.val : data.train);
  if (images.size() == 0) fail(Exit::data, "the {} split is empty", o.split);
  note_other_images(trained, o.split, images);
  if (o.calibrate && o.split != "val") note_other_images(trained, "val", data.val);

  Net net(*backend, config.model.name, model_options(config, images), 0, {.compute = precision_of(config, *backend)});
  set_weights(*backend, net.params(), weights, trained.origin);
  const BatchSource source = upload_source(*backend, images, config.data.mean, config.data.std);
  if (o.calibrate && data.val.size() == 0 && o.split != "val")
    fail(Exit::data, "--calibrate needs validation images, and the run holds none out");
  std::vector<float> logits;
  const Accuracy a = net.evaluate(source, config.train.eval_batch_size, images.classes, {View{}}, &logits);
  if (!o.logits.empty()) write_safetensors(o.logits, as_tensors(logits, images));
  std::optional<Calibration> calibration = trained.calibration;
  if (o.calibrate && o.split == "val") {
    calibration = calibrate(logits, images.labels, weights);
  } else if (o.calibrate) {
    const BatchSource val = upload_source(*backend, data.val, config.data.mean, config.data.std);
    calibration = calibrate(net.logits(val, config.train.eval_batch_size), data.val.labels, weights);
  }
  if (o.calibrate) write_calibration(o.target, *calibration);
  const double ece = calibration_error(logits, images.labels);
  const double temperature = calibration ? calibration->temperature : 1;
  const double ece_calibrated = calibration ? calibration_error(logits, images.labels, temperature) : ece;
  const Accuracy views =
      o.tta == "none" ? a : net.evaluate(source, config.train.eval_batch_size, images.classes, test_views(o.tta));
  if (o.json) {
    nlohmann::ordered_json per_class = nlohmann::ordered_json::array();
    for (const double acc : a.per_class)
      per_class.push_back(std::isnan(acc) ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(acc));
    nlohmann::ordered_json json = {{"split", o.split},       {"n", a.n},  {"loss", a.loss}, {"acc", a.acc},
                                   {"per_class", per_class}, {"ece", ece}};
    if (calibration) json["calibration"] = {{"temperature", temperature}, {"ece", ece_calibrated}};
    if (o.tta != "none") json["tta"] = {{"views", o.tta}, {"loss", views.loss}, {"acc", views.acc}};
    fmt::print("{}\n", json.dump());
    return int(Exit::ok);
  }
  fmt::print("{} {}: accuracy {:.2f} %, loss {:.4f}, {} images\n", config.data.name, o.split, 100 * a.acc, a.loss, a.n);
  if (o.tta != "none")
    fmt::print("mean over views ({}): accuracy {:.2f} %, loss {:.4f}\n", o.tta, 100 * views.acc, views.loss);
  fmt::print("expected calibration error {:.2f} %", 100 * ece);
  if (calibration) fmt::print("; {:.2f} % at the temperature {:.3f}", 100 * ece_calibrated, temperature);
  fmt::print("\n");
  for (size_t c = 0; c < a.per_class.size(); ++c)
    fmt::print("  {:<12} {:6.2f} %\n", c < images.class_names.size() ? images.class_names[c] : std::to_string(c),
               100 * a.per_class[c]);
  return int(Exit::ok);
}

}  // namespace

void add_eval(CLI::App& app, Command& command) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("eval",
                                      "Measure loss and accuracy of a run, or of a weights file.\n\n"
                                      "  linnet eval runs/NAME --json\n"
                                      "  linnet eval net.safetensors --model resnet20 --mean 0.491,0.482,0.447 "
                                      "--std 0.247,0.243,0.262\n"
                                      "  linnet eval runs/NAME --calibrate");
  add_trained_options(*verb, options->target, *options);
  verb->add_option("--data", options->data, "where the data lie: the same as --set data.path=");
  verb->add_option("--split", options->split, "test, val or train")->check(CLI::IsMember({"test", "val", "train"}));
  verb->add_option("--device", options->device, "auto, cpu or cuda");
  verb->add_option("--tta", options->tta, "beside the plain result, that of the mean over views: flip or flip_shift")
      ->check(CLI::IsMember({"none", "flip", "flip_shift"}));
  verb->add_option("--batch-size", options->batch_size, "images per batch (no effect on the result)")
      ->check(CLI::Range(1, 65536));
  verb->add_flag("--calibrate", options->calibrate,
                 "fit a temperature on the validation images and keep it in the run, for predict");
  verb->add_option("--logits", options->logits, "write logits [n, classes] and labels [n] to this .safetensors file");
  verb->add_flag("--json", options->json, "JSON on stdout");
  verb->callback([options, &command] { command = [options] { return evaluate(*options); }; });
}

}  // namespace linnet
