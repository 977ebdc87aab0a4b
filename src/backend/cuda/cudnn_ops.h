// Convolutions through cuDNN, one plan a shape.
#pragma once
#include <compare>
#include <map>

#include "cudnn_graph.h"
#include "linnet/backend.h"
#include "runtime.h"

namespace linnet {

// Everything a plan depends on. x [n,h,w,c], w [k,r,s,c], y [n,oh,ow,k].
struct ConvShape {
  ConvPass pass;
  int64_t n, h, w, c, k, r, s, oh, ow, stride, pad;
  auto operator<=>(const ConvShape&) const = default;
};
std::string to_string(const ConvShape&);
// The plan takes its tensors in the order x, w, y.
CudnnPlan convolution_plan(const ConvShape&, const CudnnDevice&, CudnnRules = {});

class CudnnConvolutions {
 public:
  CudnnConvolutions(CudaRuntime&, Scratch&);
  ~CudnnConvolutions();
  CudnnConvolutions(const CudnnConvolutions&) = delete;
  void forward(const Tensor& y, const Tensor& x, const Tensor& w, Conv);
  void backward_data(const Tensor& dx, const Tensor& dy, const Tensor& w, Conv);
  void backward_weight(const Tensor& dw, const Tensor& dy, const Tensor& x, Conv);

 private:
  void run(ConvPass, const Tensor& x, const Tensor& w, const Tensor& y, Conv);
  CudaRuntime& runtime_;
  Scratch& scratch_;
  cudnnContext* handle_ = nullptr;
  CudnnDevice device_;
  std::map<ConvShape, CudnnPlan> plans_;
};

}  // namespace linnet
