// cuDNN's backend graph API behind one small interface: describe tensors and one operation, get a plan, run it. Nothing
// outside cudnn_graph.cpp knows that API. A plan can be made for a device that is not here, from its description:
// tests/cuda_plans_test.cpp does so.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "linnet/tensor.h"

struct cudnnContext;  // cudnnHandle_t points to one

namespace linnet {

class CudnnDescriptor;  // one object of the graph API

// The GPU that plans are made for.
class CudnnDevice {
 public:
  static CudnnDevice of(cudnnContext* handle);
  static CudnnDevice described_by(const std::string& json);  // as cuDNN itself writes device properties

 private:
  friend class CudnnGraph;
  std::shared_ptr<CudnnDescriptor> properties_;
  cudnnContext* handle_ = nullptr;  // of a GPU that is here: what runs is made for it, the documented way
};

// What an engine may do. Plain float arithmetic and the same bits in every run, unless told otherwise.
struct CudnnRules {
  bool deterministic = true;
  bool tensor_cores = false;  // for f32 tensors these are TF32: 10 bits of mantissa; 16-bit ones need them
};

// An operation made ready for one device: which engine, how much workspace.
class CudnnPlan {
 public:
  size_t workspace() const { return workspace_; }
  const std::string& engine() const { return engine_; }  // "engine 28 [no notes]": its number and numerical notes
  // Engine and knobs, "28:2=1,7=0": of the same cuDNN on the same kind of GPU the same one. No spaces, no semicolons.
  const std::string& tag() const { return tag_; }
  // Device pointers in the order in which the tensors were added to the graph, aligned to 16 bytes.
  void run(cudnnContext* handle, const std::vector<void*>& tensors, void* workspace) const;

 private:
  friend class CudnnGraph;
  std::vector<std::shared_ptr<CudnnDescriptor>> parts_;  // everything that the plan refers to; the plan itself is last
  size_t workspace_ = 0;
  std::string engine_, tag_;
};

enum class ConvPass { forward, backward_data, backward_weight };

class CudnnGraph {
 public:
  // A tensor of extents [n,c,h,w] with the channels innermost in memory: NHWC activations, KRSC weights. f32, bf16 or
  // fp16; sums are f32.
  int tensor(const std::array<int64_t, 4>& nchw, DType);
  // forward: y from x and w; backward_data: x from y and w; backward_weight: w from x and y.
  void convolution(ConvPass, int x, int w, int y, int64_t stride, int64_t pad);

  // What cuDNN's heuristics offer, that obeys the rules and that builds: at most `most`, their favourite first. Only
  // those with this tag, if one is given. Throws Error(Exit::device) with `what` ("backward_data of ...") in its
  // message when there is none, unless a tag was given.
  std::vector<CudnnPlan> plans(const CudnnDevice&, CudnnRules, const std::string& what, size_t most,
                               const std::string& tag = "") const;

 private:
  std::vector<std::shared_ptr<CudnnDescriptor>> tensors_, operations_, others_;
};

}  // namespace linnet
