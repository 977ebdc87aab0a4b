// 3x3 convolutions with stride 1 on the CPU by Winograd's algorithm: a quarter of the multiplications of the direct
// sum. winograd_kernel.h explains it and holds the arithmetic; here the work is shared out to threads.
//
// The work is cut into pieces by the shape and the instruction set alone, and partial weight gradients are added in a
// fixed tree: the same bits for any number of threads. AVX2 and AVX-512 round differently.
#pragma once
#include <cstdlib>
#include <memory>
#include <vector>

#include "linnet/backend.h"
#include "linnet/threads.h"
#include "winograd_table.h"

namespace linnet {

enum class Simd { avx2, avx512 };
Simd best_simd();  // the widest that this processor has

class Winograd {
 public:
  explicit Winograd(ThreadPool&, Simd = best_simd());

  // Whether this can compute a convolution with weights w [k,3,3,c]: 3x3, stride 1, pad 1, channels in multiples of 16.
  static bool takes(const Shape& w, Conv);

  // y [n,h,w,k] from x [n,h,w,c] and w [k,3,3,c]; all dense f32. The other two give its gradients.
  void forward(float* y, const float* x, const float* w, const WinogradShape&);
  void backward_data(float* dx, const float* dy, const float* w, const WinogradShape&);
  void backward_weight(float* dw, const float* dy, const float* x, const WinogradShape&);

 private:
  // Memory that only grows: in the steady state nothing is allocated. Aligned to 64 bytes.
  struct Buffer {
    std::unique_ptr<float, void (*)(void*)> data{nullptr, std::free};
    int64_t size = 0;
    float* at_least(int64_t floats);
  };

  void convolve(float* y, const float* x, const WinogradShape&);
  float* scratch(int thread, const WinogradShape&);

  ThreadPool& pool_;
  const WinogradKernels& kernels_;
  std::vector<Buffer> scratch_;  // one per thread
  Buffer filters_, partial_;
};

}  // namespace linnet
