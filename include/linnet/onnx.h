// A trained net as an ONNX model (github.com/onnx/onnx), opset 17: one float input "input" [N, channels, height, width]
// with any N, one output "logits" [N, classes].
#pragma once
#include <string>

#include "linnet/trained.h"

namespace linnet {

struct OnnxOptions {
  bool normalise = false;  // the input is pixel / 255; otherwise (pixel / 255 - mean) / std, as in training
  bool fold_bn = false;    // a batch norm behind a convolution becomes part of its weights and a bias
};

// The model's bytes. It is made by running the net once on a backend that writes down what it is asked to do, so layers
// of one's own are exported too. Error(Exit::usage) for an operation that has no form here (group norm, SiLU, GELU), or
// a normalisation that is asked for and not known.
std::string to_onnx(const Trained&, const OnnxOptions&);

}  // namespace linnet
