// Layers: an op and its parameters. A model is a Module made of Modules.
#pragma once
#include <memory>
#include <vector>

#include "linnet/ops.h"

namespace linnet {

struct Module {
  virtual ~Module() = default;
  virtual Tensor forward(Pass&, const Tensor& x) = 0;
};

class Conv2d : public Module {
 public:
  // Square kernel, no bias, He initialisation. Scope's leaf: "weight".
  Conv2d(const Scope&, int64_t in, int64_t out, int kernel, Conv = {});
  Tensor forward(Pass& p, const Tensor& x) override { return conv2d(p, x, weight_, conv_); }

 private:
  friend class BatchNorm2d;
  Param& weight_;
  Conv conv_;
};

class BatchNorm2d : public Module {
 public:
  explicit BatchNorm2d(const Scope&, int64_t channels);
  Tensor forward(Pass& p, const Tensor& x) override { return run(p, x, nullptr, false); }
  Tensor relu(Pass& p, const Tensor& x) { return run(p, x, nullptr, true); }
  Tensor add_relu(Pass& p, const Tensor& x, const Tensor& residual) { return run(p, x, &residual, true); }
  // relu(p, conv.forward(p, x)) and add_relu(p, conv.forward(p, x), residual); one pass in evaluation.
  Tensor relu(Pass& p, const Conv2d& conv, const Tensor& x) { return run(p, conv, x, nullptr); }
  Tensor add_relu(Pass& p, const Conv2d& conv, const Tensor& x, const Tensor& residual) {
    return run(p, conv, x, &residual);
  }
  // conv.forward(p, relu(p, x)), in one pass in training.
  Tensor relu_conv(Pass& p, const Tensor& x, const Conv2d& conv) {
    return batch_norm_relu_conv(p, x, scale_, bias_, mean_, var_, conv.weight_, conv.conv_);
  }

 private:
  Tensor run(Pass&, const Tensor& x, const Tensor* residual, bool relu);
  Tensor run(Pass&, const Conv2d&, const Tensor& x, const Tensor* residual);
  Param &scale_, &bias_;
  Buffer &mean_, &var_;
};

class GroupNorm : public Module {  // groups = 1: layer norm
 public:
  GroupNorm(const Scope&, int groups, int64_t channels);
  Tensor forward(Pass& p, const Tensor& x) override { return group_norm(p, x, scale_, bias_, groups_); }

 private:
  Param &scale_, &bias_;
  int groups_;
};

class Linear : public Module {
 public:
  // relu_follows: He initialisation; otherwise PyTorch's default, U(-1/sqrt(in), 1/sqrt(in)), for weight and bias.
  Linear(const Scope&, int64_t in, int64_t out, bool relu_follows = false);
  // Behind flatten() of [n, height, width, channels]: files then have the inputs in PyTorch's order.
  Linear(const Scope&, const Shape& flattened, int64_t out, bool relu_follows = false);
  Tensor forward(Pass& p, const Tensor& x) override { return linear(p, x, weight_, bias_); }

 private:
  Param &weight_, &bias_;
};

class Dropout : public Module {
 public:
  Dropout(const Scope& scope, float p) : p_(p), layer_(scope.store.next_layer_id()) {}
  Tensor forward(Pass& p, const Tensor& x) override { return dropout(p, x, p_, layer_); }

 private:
  float p_;
  uint32_t layer_;
};

}  // namespace linnet
