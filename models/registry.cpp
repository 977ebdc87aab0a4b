// The table of models. A new one is a file beside this and a line here.
#include "linnet/registry.h"

#include "models.h"

namespace linnet {

namespace {

std::vector<ModelEntry>& table() {
  static std::vector<ModelEntry> entries = {
      {"resnet8", "ResNet 6n+2 for small images (He et al. 2016), n = 1", {"shortcut", "dropout"}, residual_net<1>},
      {"resnet20", "the same, n = 3", {"shortcut", "dropout"}, residual_net<3>},
      {"resnet32", "the same, n = 5", {"shortcut", "dropout"}, residual_net<5>},
      {"resnet44", "the same, n = 7", {"shortcut", "dropout"}, residual_net<7>},
      {"resnet56", "the same, n = 9", {"shortcut", "dropout"}, residual_net<9>},
      {"resnet110", "the same, n = 18", {"shortcut", "dropout"}, residual_net<18>},
      {"plain8", "ResNet-8 without its shortcuts", {"dropout"}, plain_net<1>},
      {"plain20", "ResNet-20 without its shortcuts", {"dropout"}, plain_net<3>},
      {"plain32", "ResNet-32 without its shortcuts", {"dropout"}, plain_net<5>},
      {"plain44", "ResNet-44 without its shortcuts", {"dropout"}, plain_net<7>},
      {"plain56", "ResNet-56 without its shortcuts", {"dropout"}, plain_net<9>},
      {"plain110", "ResNet-110 without its shortcuts", {"dropout"}, plain_net<18>},
      {"convnet", "three 3x3 convolutions of 32, 64, 128 channels with batch norm and pooling", {"dropout"}, convnet},
      {"convnet_nobn", "the same without batch norm", {"dropout"}, convnet_without_bn},
      {"convnet_postbn", "the same with batch norm behind the ReLU", {"dropout"}, convnet_postbn},
      {"mlp", "one hidden layer of 100 units", {"dropout"}, mlp},
      {"linear", "softmax regression on the pixels", {}, linear_model},
  };
  return entries;
}

}  // namespace

const std::vector<ModelEntry>& models() { return table(); }

void add_model(ModelEntry entry) {
  for (const ModelEntry& known : table())
    require(known.name != entry.name, "[models] there is a model named '{}' already", entry.name);
  table().push_back(std::move(entry));
}

std::unique_ptr<Module> make_model(const std::string& name, ParamStore& store, const ModelOptions& options) {
  return find_entry(models(), "model", name).make(Scope{store, ""}, options);
}

void require_image(const char* model, const ModelOptions& o, int smallest) {
  if (o.height < smallest || o.width < smallest)
    fail(Exit::usage, "[{}] expected images of at least {}x{} pixels, got {}x{}", model, smallest, smallest, o.height,
         o.width);
}

}  // namespace linnet
