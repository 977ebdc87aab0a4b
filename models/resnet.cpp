// ResNet 6n+2 for CIFAR: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2016, section 4.2.
// A 3x3 convolution, then three stages of n blocks with 16, 32, 64 channels on 32x32, 16x16, 8x8 pixels, global average
// pooling and one linear layer. Names are those of the common PyTorch code (conv1, layer1.0.conv1, ..., linear).
#include <optional>

#include "models.h"

namespace linnet {

namespace {

enum class Residual { none, A, B };

struct Block : Module {
  Block(const Scope& s, int64_t in, int64_t out, int stride, Residual residual)
      : conv1(s / "conv1", in, out, 3, {stride, 1}),
        bn1(s / "bn1", out),
        conv2(s / "conv2", out, out, 3, {1, 1}),
        bn2(s / "bn2", out),
        residual(residual),
        stride(stride),
        out(out) {
    if (residual == Residual::B && (stride != 1 || in != out)) {
      project.emplace(s / "shortcut" / "0", in, out, 1, Conv{stride, 0});
      project_bn.emplace(s / "shortcut" / "1", out);
    }
  }

  Tensor forward(Pass& p, const Tensor& x) override {
    if (p.train) {  // bn1 needs all of conv1's result before the first of its own: it goes with conv2
      const Tensor h = bn1.relu_conv(p, conv1.forward(p, x), conv2);
      return residual == Residual::none ? bn2.relu(p, h) : bn2.add_relu(p, h, identity(p, x));
    }
    const Tensor h = bn1.relu(p, conv1, x);
    if (residual == Residual::none) return bn2.relu(p, conv2, h);
    return bn2.add_relu(p, conv2, h, identity(p, x));
  }

  Tensor identity(Pass& p, const Tensor& x) {
    if (project) return project_bn->forward(p, project->forward(p, x));
    return stride == 1 && x.dim(3) == out ? x : shortcut(p, x, stride, out);
  }

  Conv2d conv1;
  BatchNorm2d bn1;
  Conv2d conv2;
  BatchNorm2d bn2;
  std::optional<Conv2d> project;
  std::optional<BatchNorm2d> project_bn;
  Residual residual;
  int stride;
  int64_t out;
};

struct ResNet : Module {
  ResNet(const Scope& s, int n, const ModelOptions& o, Residual residual)
      : conv1(s / "conv1", o.channels, 16, 3, {1, 1}), bn1(s / "bn1", 16) {
    int64_t in = 16;
    for (int stage = 1; stage <= 3; ++stage)
      for (int i = 0; i < n; ++i) {
        const int64_t out = 8 << stage;
        const int stride = stage > 1 && i == 0 ? 2 : 1;
        blocks.push_back(
            std::make_unique<Block>(s / fmt::format("layer{}", stage) / std::to_string(i), in, out, stride, residual));
        in = out;
      }
    dropout.emplace(s, o.dropout);
    linear.emplace(s / "linear", in, o.classes);
  }

  Tensor forward(Pass& p, const Tensor& x) override {
    Tensor h = bn1.relu(p, conv1, x);
    for (auto& block : blocks) h = block->forward(p, h);
    return linear->forward(p, dropout->forward(p, global_avg_pool(p, h)));
  }

  Conv2d conv1;
  BatchNorm2d bn1;
  std::vector<std::unique_ptr<Block>> blocks;
  std::optional<Dropout> dropout;
  std::optional<Linear> linear;
};

}  // namespace

template <int n>
std::unique_ptr<Module> residual_net(const Scope& s, const ModelOptions& o) {
  require_image("resnet", o, 8);
  return std::make_unique<ResNet>(s, n, o, o.shortcut == 'B' ? Residual::B : Residual::A);
}

template <int n>
std::unique_ptr<Module> plain_net(const Scope& s, const ModelOptions& o) {
  require_image("plain", o, 8);
  return std::make_unique<ResNet>(s, n, o, Residual::none);
}

#define LINNET_DEPTH(n)                                                                \
  template std::unique_ptr<Module> residual_net<n>(const Scope&, const ModelOptions&); \
  template std::unique_ptr<Module> plain_net<n>(const Scope&, const ModelOptions&);
LINNET_DEPTH(1) LINNET_DEPTH(3) LINNET_DEPTH(5) LINNET_DEPTH(7) LINNET_DEPTH(9) LINNET_DEPTH(18)
#undef LINNET_DEPTH

}  // namespace linnet
