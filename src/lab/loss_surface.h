// The loss around a trained net: slices along filter-normalised directions (Li, Xu, Taylor, Studer, Goldstein 2018),
// how much it rises under random perturbations, and the largest eigenvalue of its Hessian.
#pragma once
#include <vector>

#include "linnet/trainer.h"

namespace linnet {

class LossSurface {
 public:
  // The first `images` of the source, in evaluation mode; for the Hessian in training mode, as gradients are taken
  // there. The net has its weights and statistics back when this object goes.
  LossSurface(Net&, const BatchSource&, int classes, int64_t images);
  ~LossSurface();
  LossSurface(const LossSurface&) = delete;
  LossSurface& operator=(const LossSurface&) = delete;

  // A random direction, each filter (row of a weight) as long as the net's own; biases and normalisation stay where
  // they are. So 1 along it is as far as the weights are long, in every filter.
  std::vector<float> direction(uint64_t seed) const;
  // The mean loss at w + a d1 + b d2.
  double at(const std::vector<float>& d1, double a, const std::vector<float>& d2 = {}, double b = 0);
  // Mean and largest rise of the loss over `count` random directions of length `radius`.
  struct Rise {
    double mean, most;
  };
  Rise rise(double radius, int count, uint64_t seed);
  // By power iteration on differences of gradients; `vector` gets its eigenvector. `steps` of them at most, fewer where
  // the value has settled to 1 %.
  struct Top {
    double value;
    int steps;
    bool settled;
  };
  Top top_eigenvalue(int steps, std::vector<float>* vector = nullptr);

 private:
  void move(const std::vector<float>& d1, double a, const std::vector<float>& d2, double b);
  std::vector<float> gradient_at(const std::vector<float>& d, double a);

  Net& net_;
  BatchSource source_;
  int classes_;
  std::vector<int32_t> order_;
  std::vector<float> weights_, buffers_;
};

}  // namespace linnet
