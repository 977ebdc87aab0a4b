// linnet eval RUN|WEIGHTS
#include <cmath>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "linnet/run.h"
#include "linnet/weights.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;

struct Options {
  std::vector<std::string> set;
  std::string target, model, data, device = "auto", split = "test";
  std::vector<double> mean, std;
  int64_t batch_size = 0;
  std::string tta = "none";
  bool json = false;
};

int evaluate(const Options& o) {
  // A run brings its config; bare weights need the model's name and the normalisation they were trained with.
  Config config;
  SafeTensors weights;
  std::string origin = o.target;
  if (fs::is_directory(o.target)) {
    config = load_config(fs::path(o.target) / "config.toml", o.set);
    if (config.train.precision == "auto") config.train.precision = "f32";  // of a Linnet that knew nothing else
    weights = run_weights(o.target, origin);
  } else if (!fs::exists(o.target)) {
    fail(Exit::usage, "there is no run folder and no weights file at {}", o.target);
  } else if (o.model.empty()) {
    fail(Exit::usage, "{} is a weights file: say which model it belongs to with --model NAME (`linnet list models`)",
         o.target);
  } else {
    config = parse_config("", "", o.set);
    if (config.train.precision == "auto") config.train.precision = "f32";  // as exact as the weights are
    weights = read_safetensors(o.target);
  }
  if (!o.model.empty()) config.model.name = o.model;
  if (!o.data.empty() && config.data.name != "cifar10")
    fail(Exit::usage, "--data names a folder with CIFAR-10, but this run's data are {}", config.data.name);
  if (!o.data.empty()) config.data.path = o.data;
  if (!o.mean.empty()) config.data.mean = o.mean;
  if (!o.std.empty()) config.data.std = o.std;
  for (const double m : o.mean)
    if (!std::isfinite(m)) fail(Exit::usage, "--mean expects finite numbers, got {}", m);
  for (const double s : o.std)
    if (!(s > 0) || !std::isfinite(s)) fail(Exit::usage, "--std expects finite numbers above 0, got {}", s);
  if (o.batch_size > 0) config.train.eval_batch_size = o.batch_size;

  const auto backend = make_backend(o.device, conv_method(config));
  RunData data = load_run_data(config);
  const Images images = o.split == "test" ? data.test() : std::move(o.split == "val" ? data.val : data.train);
  if (images.size() == 0) fail(Exit::data, "the {} split is empty (data.val = 0)", o.split);

  Net net(*backend, config.model.name, model_options(config, images), 0, {.compute = precision_of(config, *backend)});
  set_weights(*backend, net.params(), weights, origin);
  const BatchSource source = upload_source(*backend, images, config.data.mean, config.data.std);
  const Accuracy a = net.evaluate(source, config.train.eval_batch_size, images.classes);
  const Accuracy views =
      o.tta == "none" ? a : net.evaluate(source, config.train.eval_batch_size, images.classes, test_views(o.tta));
  if (o.json) {
    nlohmann::ordered_json per_class = nlohmann::ordered_json::array();
    for (const double acc : a.per_class)
      per_class.push_back(std::isnan(acc) ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(acc));
    nlohmann::ordered_json json = {
        {"split", o.split}, {"n", a.n}, {"loss", a.loss}, {"acc", a.acc}, {"per_class", per_class}};
    if (o.tta != "none") json["tta"] = {{"views", o.tta}, {"loss", views.loss}, {"acc", views.acc}};
    fmt::print("{}\n", json.dump());
    return int(Exit::ok);
  }
  fmt::print("{} {}: accuracy {:.2f} %, loss {:.4f}, {} images\n", config.data.name, o.split, 100 * a.acc, a.loss, a.n);
  if (o.tta != "none")
    fmt::print("mean over views ({}): accuracy {:.2f} %, loss {:.4f}\n", o.tta, 100 * views.acc, views.loss);
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
                                      "--std 0.247,0.243,0.262");
  verb->add_option("target", options->target, "run folder, or .safetensors file")->required();
  verb->add_option("--model", options->model, "model of a weights file");
  verb->add_option("-s,--set", options->set, "override a key, e.g. --set model.shortcut=B (may be repeated)")
      ->allow_extra_args(false);
  verb->add_option("--data", options->data, "folder or archive with CIFAR-10");
  verb->add_option("--split", options->split, "test, val or train")->check(CLI::IsMember({"test", "val", "train"}));
  verb->add_option("--mean", options->mean, "per-channel mean of pixel/255")->delimiter(',');
  verb->add_option("--std", options->std, "per-channel standard deviation of pixel/255")->delimiter(',');
  verb->add_option("--device", options->device, "auto, cpu or cuda");
  verb->add_option("--tta", options->tta, "beside the plain result, that of the mean over views: flip or flip_shift")
      ->check(CLI::IsMember({"none", "flip", "flip_shift"}));
  verb->add_option("--batch-size", options->batch_size, "images per batch (no effect on the result)")
      ->check(CLI::Range(1, 65536));
  verb->add_flag("--json", options->json, "JSON on stdout");
  verb->callback([options, &command] { command = [options] { return evaluate(*options); }; });
}

}  // namespace linnet
