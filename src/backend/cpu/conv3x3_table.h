// What the driver of 3x3 convolutions (conv3x3.cpp) and its kernels share: winograd_kernel.h, compiled once per
// instruction set and element type, and kernels_amx.cpp.
#pragma once
#include <stdint.h>

namespace linnet {

constexpr int kChannelGroup = 16;  // channels come in groups of this many

// A 3x3 convolution with stride 1 and one pixel of zero padding: n images of h x w pixels, c channels in, k channels
// out.
struct Conv3x3Shape {
  int64_t n, h, w, c, k;
};

// Sums over an output's channels, for batch normalisation: [channels] each, of y - shift and of its square.
struct Conv3x3Sums {
  float* shift;  // written: the first pixel
  double *sum, *squares;
  double pixels;  // how many were added
};

// What made a convolution's input: a batch norm with a ReLU, whose backward pass begins with sums over the gradient of
// that input behind the ReLU, g. x and y are like the input, the rest is [channels].
struct Conv3x3InputBn {
  const void *x, *y;  // before and behind it; the ReLU lets pass where y > 0, or, if y is null, a x + b > 0
  const float* mean;  // of x
  const float *a, *b;
  double *sum, *products;  // added to: g, and g (x - mean)
};

// What follows a convolution: a batch norm, behind which dy stands for the gradient a dy + b (y - mean) + c, y being
// the convolution's result.
struct Conv3x3OutputBn {
  const void* y;
  const float *a, *b, *mean, *c;  // [channels]
};

// Batch norm as y = a v + b, [channels], (+ plus), then the ReLU if asked for.
struct Conv3x3Norm {
  const float *a, *b;
  bool relu;
};

// What is done with a result v on its way to memory. plus, unless null, is added, but not with sums; it may be the
// result's memory. Of the others at most one is given: sums; input, for a v that is the gradient of what that batch
// norm made, which goes behind the ReLU's mask; norm.
struct Conv3x3Tail {
  const void* plus = nullptr;
  Conv3x3Sums* sums = nullptr;
  const Conv3x3InputBn* input = nullptr;
  const Conv3x3Norm* norm = nullptr;
};

// One way to convolve. Each function runs on the calling thread and touches only what its arguments name. Memory named
// scratch, filters or sums is aligned to 64 bytes; activations and weights, float or bf16, need no alignment.
struct Conv3x3Kernels {
  int64_t block;          // tiles worked on at a time; a piece of work is best a multiple of it
  int64_t weight_blocks;  // so many of them make a weight gradient's own sums worth while
  int64_t pairs_at_once;  // up to so many pairs of channels, backward is faster than the gradients one by one
  bool knows_batch_norm;  // whether Conv3x3InputBn, Conv3x3OutputBn and Conv3x3Norm may be given

  // Output and input are cut into tiles of pixels, numbered through all images: how many.
  int64_t (*tiles)(const Conv3x3Shape&);
  // How many floats the filters of c and k channels, and the scratch of a call below, need.
  int64_t (*filters_size)(int64_t c, int64_t k);
  int64_t (*scratch_size)(const Conv3x3Shape&);

  // Brings one group of input channels of one group of filters w [k,3,3,c] into the order that convolve reads.
  void (*filters)(float* filters, const void* w, int64_t c, int64_t k, int64_t group_c, int64_t group_k);
  // The same for backward-data, a convolution with the filters turned by 180 degrees and c and k in each other's place.
  void (*turned_filters)(float* filters, const void* w, int64_t c, int64_t k, int64_t group_c, int64_t group_k);

  // In all three x stands for what `of_x`, unless it is null, makes of it, always with the ReLU.
  // y [n,h,w,k] = x [n,h,w,c] * filters, for the output tiles first..end-1.
  void (*convolve)(void* y, const void* x, const Conv3x3Norm* of_x, const float* filters, const Conv3x3Shape&,
                   int64_t first, int64_t end, float* scratch, const Conv3x3Tail&);

  // dw [k,3,3,c] = what the tiles first..end-1, at least one, of x [n,h,w,c] add to the weight gradient, given all of
  // dy [n,h,w,k].
  void (*weight_gradient)(float* dw, const void* dy, const void* x, const Conv3x3Norm* of_x, const Conv3x3Shape&,
                          int64_t first, int64_t end, float* scratch);
  // That, and those tiles of dx [n,h,w,c] = dy * turned filters. dy stands for what `output`, unless it is null, makes
  // of it.
  void (*backward)(void* dx, float* dw, const void* dy, const void* x, const Conv3x3Norm* of_x,
                   const float* turned_filters, const Conv3x3Shape&, int64_t first, int64_t end, float* scratch,
                   const Conv3x3Tail&, const Conv3x3OutputBn* output);
};

extern const Conv3x3Kernels winograd_f32_avx2, winograd_bf16_avx2, winograd_f32_avx512, winograd_bf16_avx512,
    winograd_bf16_avx512_bf16;
extern const Conv3x3Kernels direct_bf16_amx;

}  // namespace linnet
