// The baseline CNN: three times (3x3 convolution, batch norm, ReLU, 2x2 max pooling) with 32, 64, 128 channels, then
// one linear layer on what is left (4x4x128 for 32x32 images). Also without batch norm, and with it behind the ReLU.
#include <optional>

#include "models.h"

namespace linnet {

namespace {

enum class Norm { none, before_relu, after_relu };

struct ConvNet : Module {
  ConvNet(const Scope& s, const ModelOptions& o, Norm norm) : norm(norm) {
    int64_t in = o.channels;
    for (int i = 0; i < 3; ++i) {
      const int64_t out = 32 << i;
      convs.emplace_back(s / fmt::format("conv{}", i + 1), in, out, 3, Conv{1, 1});
      if (norm != Norm::none) norms.emplace_back(s / fmt::format("bn{}", i + 1), out);
      in = out;
    }
    dropout.emplace(s, o.dropout);
    linear.emplace(s / "linear", Shape{o.height / 8, o.width / 8, in}, o.classes);
  }

  Tensor forward(Pass& p, const Tensor& x) override {
    Tensor h = x;
    for (size_t i = 0; i < convs.size(); ++i) {
      if (norm == Norm::before_relu)
        h = norms[i].relu(p, convs[i], h);
      else
        h = relu(p, convs[i].forward(p, h));
      if (norm == Norm::after_relu) h = norms[i].forward(p, h);
      h = max_pool(p, h, {2, 2, 2, 0});
    }
    return linear->forward(p, dropout->forward(p, flatten(p, h)));
  }

  Norm norm;
  std::vector<Conv2d> convs;
  std::vector<BatchNorm2d> norms;
  std::optional<Dropout> dropout;
  std::optional<Linear> linear;
};

}  // namespace

std::unique_ptr<Module> convnet(const Scope& s, const ModelOptions& o) {
  require_image("convnet", o, 8);
  return std::make_unique<ConvNet>(s, o, Norm::before_relu);
}
std::unique_ptr<Module> convnet_without_bn(const Scope& s, const ModelOptions& o) {
  require_image("convnet_nobn", o, 8);
  return std::make_unique<ConvNet>(s, o, Norm::none);
}
std::unique_ptr<Module> convnet_postbn(const Scope& s, const ModelOptions& o) {
  require_image("convnet_postbn", o, 8);
  return std::make_unique<ConvNet>(s, o, Norm::after_relu);
}

}  // namespace linnet
