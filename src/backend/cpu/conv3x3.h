// 3x3 convolutions with stride 1 on the CPU by own kernels: Winograd's algorithm, a quarter of the multiplications of
// the direct sum (winograd_kernel.h), or, in bf16 where the processor has AMX, the direct sum in its tiles
// (kernels_amx.cpp). Those files explain the arithmetic; here the work is shared out to threads.
//
// The work is cut into pieces by the shape and the instruction set alone, and partial weight gradients are added in a
// fixed tree: the same bits for any number of threads. AVX2, AVX-512 and AMX round differently.
#pragma once
#include <cstdlib>
#include <memory>
#include <vector>

#include "conv3x3_table.h"
#include "linnet/backend.h"
#include "linnet/threads.h"
#include "simd_level.h"

namespace linnet {

class Conv3x3 {
 public:
  explicit Conv3x3(ThreadPool&, Simd = best_simd());

  // Whether this can compute a convolution with weights w [k,3,3,c]: 3x3, stride 1, pad 1, channels in multiples of 16.
  static bool takes(const Shape& w, Conv);

  // y [n,h,w,k] from x [n,h,w,c] and w [k,3,3,c]; all dense, f32 or bf16. The other three give its gradients, dw in
  // f32. moments [2,k], unless null: each channel's mean and sum of squared deviations from it, before y is rounded.
  // saved, unless null: Backend::conv_of_bn_forward's.
  void forward(const Tensor& y, const Tensor& x, const Tensor& w, double* moments = nullptr,
               const Tensor* saved = nullptr);
  void backward_data(const Tensor& dx, const Tensor& dy, const Tensor& w);
  void backward_weight(const Tensor& dw, const Tensor& dy, const Tensor& x);
  // dx = its gradient + plus (may be null, may be dx). input, output and the result: as Backend::conv_backward has
  // them.
  bool backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w,
                const Tensor* plus = nullptr, const InputBn* input = nullptr, const OutputBn* output = nullptr);
  bool takes_output_bn(const Shape& w, DType) const;

  // Whether forward_bn, forward's `saved`, InputBn and OutputBn can be had: not in AMX tiles.
  bool knows_batch_norm(DType) const;
  // forward, and with its result what Conv3x3Norm says; residual may be null.
  void forward_bn(const Tensor& y, const Tensor& x, const Tensor& w, const Tensor* residual, const Conv3x3Norm&);

 private:
  // Memory that only grows: in the steady state nothing is allocated. Aligned to 64 bytes.
  struct Buffer {
    std::unique_ptr<float, void (*)(void*)> data{nullptr, std::free};
    int64_t size = 0;
    float* at_least(int64_t floats);
  };

  struct Pieces;  // of the work
  const Conv3x3Kernels& kernels_for(DType) const;
  void pack_filters(const Conv3x3Kernels&, const Tensor& w, bool turned);
  template <class Run>
  void for_pieces(const Conv3x3Kernels&, const Tensor& y, const Tensor& x, const Conv3x3Norm* of_x, const Conv3x3Shape&,
                  const Pieces&, const Run&);
  void weight(const Conv3x3Kernels&, const Tensor& dw, const Tensor& dy, const Tensor& x, const Conv3x3Norm* of_x);
  void data(const Conv3x3Kernels&, const Tensor& dx, const Tensor& dy, const Tensor& w, const Tensor* plus,
            const Tensor& x, const InputBn* input);
  template <class Work>
  void for_weight_pieces(const Conv3x3Kernels&, float* dw, const Conv3x3Shape&, const Pieces&, const Work&);
  float* scratch(const Conv3x3Kernels&, int thread, const Conv3x3Shape&);

  ThreadPool& pool_;
  Simd simd_;
  std::vector<Buffer> scratch_;  // one per thread
  Buffer filters_, partial_, sums_;
};

}  // namespace linnet
