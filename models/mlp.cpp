// Two small models on the flat pixels, for tests and for learning: softmax regression, and one hidden layer.
#include <optional>

#include "models.h"

namespace linnet {

namespace {

Shape pixels(const ModelOptions& o) { return {o.height, o.width, o.channels}; }

struct Mlp : Module {
  Mlp(const Scope& s, const ModelOptions& o)
      : fc1(s / "fc1", pixels(o), 100, true), dropout(s, o.dropout), linear(s / "linear", 100, o.classes) {}
  Tensor forward(Pass& p, const Tensor& x) override {
    return linear.forward(p, dropout.forward(p, relu(p, fc1.forward(p, flatten(p, x)))));
  }
  Linear fc1;
  Dropout dropout;
  Linear linear;
};

struct LinearModel : Module {
  LinearModel(const Scope& s, const ModelOptions& o) : linear(s / "linear", pixels(o), o.classes) {}
  Tensor forward(Pass& p, const Tensor& x) override { return linear.forward(p, flatten(p, x)); }
  Linear linear;
};

}  // namespace

std::unique_ptr<Module> mlp(const Scope& s, const ModelOptions& o) { return std::make_unique<Mlp>(s, o); }
std::unique_ptr<Module> linear_model(const Scope& s, const ModelOptions& o) {
  return std::make_unique<LinearModel>(s, o);
}

}  // namespace linnet
