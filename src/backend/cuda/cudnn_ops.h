// Convolutions through cuDNN, one plan a shape.
#pragma once
#include <compare>
#include <map>

#include "cudnn_graph.h"
#include "linnet/backend.h"
#include "runtime.h"

namespace linnet {

// Everything a plan depends on. x [n,h,w,c], w [k,r,s,c], y [n,oh,ow,k], all of `type`: cuDNN writes no f32 gradient of
// a 16-bit weight.
struct ConvShape {
  ConvPass pass;
  int64_t n, h, w, c, k, r, s, oh, ow, stride, pad;
  DType type = DType::f32;
  auto operator<=>(const ConvShape&) const = default;
};
std::string to_string(const ConvShape&);
CudnnRules rules_for(DType, const BackendOptions&);
// Each takes its tensors in the order x, w, y. As CudnnGraph::plans.
std::vector<CudnnPlan> convolution_plans(const ConvShape&, const CudnnDevice&, CudnnRules, size_t most,
                                         const std::string& tag = "");

// Which plan was taken for each shape. As text: what chose (cuDNN and device), then lines of "TAG SHAPE".
struct PlanChoices {
  std::string by;
  std::map<std::string, std::string> tags;  // by shape
  std::string text() const;                 // empty while nothing was chosen
  void take(const std::string& text);       // nothing of it where another cuDNN or device chose
};

class CudnnConvolutions {
 public:
  CudnnConvolutions(CudaRuntime&, Scratch&, const BackendOptions&);
  ~CudnnConvolutions();
  CudnnConvolutions(const CudnnConvolutions&) = delete;
  void forward(const Tensor& y, const Tensor& x, const Tensor& w, Conv);
  void backward_data(const Tensor& dx, const Tensor& dy, const Tensor& w, Conv);
  // dw is of x's type.
  void backward_weight(const Tensor& dw, const Tensor& dy, const Tensor& x, Conv);
  PlanChoices& choices() { return choices_; }
  const PlanChoices& choices() const { return choices_; }

 private:
  void run(ConvPass, const Tensor& x, const Tensor& w, const Tensor& y, Conv);
  const CudnnPlan& plan_for(const ConvShape&, const std::vector<void*>& tensors);
  size_t fastest(const std::vector<CudnnPlan>&, const std::vector<void*>& tensors);
  CudaRuntime& runtime_;
  Scratch& scratch_;
  BackendOptions options_;
  cudnnContext* handle_ = nullptr;
  CudnnDevice device_;
  std::map<ConvShape, CudnnPlan> plans_;
  PlanChoices choices_;
};

}  // namespace linnet
