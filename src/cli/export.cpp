// linnet export RUN|WEIGHTS -o model.onnx
#include "console.h"
#include "linnet/onnx.h"
#include "linnet/text.h"
#include "src/core/file.h"
#include "trained_options.h"

namespace linnet {

namespace {

struct Options : TrainedOptions {
  std::string target, out;
  OnnxOptions onnx;
};

int write_model(const Options& o) {
  require_absent(o.out);
  const Trained trained = open_trained(o.target, o);
  for (const std::string& note : trained.notes) tell("note: " + note + "\n");
  const std::string model = to_onnx(trained, o.onnx);
  write_file_atomically(o.out, model, Exit::checkpoint);
  const ModelOptions& m = trained.options;
  fmt::print("{}: ONNX opset 17, {} bytes; input [N, {}, {}, {}] is {}, output logits [N, {}]\n",
             escaped(o.out, std::string::npos), model.size(), m.channels, m.height, m.width,
             o.onnx.normalise ? "pixel / 255" : "(pixel / 255 - mean) / std", m.classes);
  return int(Exit::ok);
}

}  // namespace

void add_export(CLI::App& app, Command& command) {
  auto o = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("export",
                                      "Write a trained net as an ONNX model.\n\n"
                                      "  linnet export runs/NAME -o model.onnx --normalise --fold-bn\n"
                                      "  linnet export net.safetensors --model resnet20 -o model.onnx");
  add_trained_options(*verb, o->target, *o);
  add_size_option(*verb, *o);
  verb->add_option("-o,--out", o->out, "the model; must not exist")->check(file_name())->required();
  verb->add_flag("--normalise", o->onnx.normalise, "the model takes pixel/255 and subtracts mean and deviation itself");
  verb->add_flag("--fold-bn", o->onnx.fold_bn, "batch norm becomes part of the convolutions");
  verb->callback([o, &command] { command = [o] { return write_model(*o); }; });
}

}  // namespace linnet
