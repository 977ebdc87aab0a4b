// The launch verbs on CUDA: the same three as exec_cpu.h, for the same functors.
#pragma once
#include <cstdint>

namespace linnet {

// Launch geometry in one place. Grid-stride loops: any n is right with any grid.
inline constexpr int kCudaThreads = 256;
inline constexpr int kCudaMaxBlocks = 4096;
__host__ __device__ inline int cuda_blocks(int64_t n) {
  const int64_t blocks = (n + kCudaThreads - 1) / kCudaThreads;
  return int(blocks < 1 ? 1 : blocks > kCudaMaxBlocks ? kCudaMaxBlocks : blocks);
}

template <class F>
__global__ void for_each_kernel(int64_t n, F f) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) f(i);
}

template <class F>
__global__ void for_each_2d_kernel(int64_t rows, int64_t columns, F f) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * columns; i += stride)
    f(i / columns, i % columns);
}

// One block: each thread adds its strided share, then a fixed tree. Deterministic; enough for one pass over the gradient.
template <class Term, class Finish>
__global__ void reduce_kernel(int64_t n, Term term, Finish finish) {
  __shared__ double partial[1024];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += term(i);
  partial[threadIdx.x] = sum;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  if (threadIdx.x == 0) finish(partial[0]);
}

struct CudaExec {
  cudaStream_t stream;

  template <class F>
  void for_each(int64_t n, const F& f, int64_t = 1) const {
    if (n > 0) for_each_kernel<<<cuda_blocks(n), kCudaThreads, 0, stream>>>(n, f);
  }
  template <class F>
  void for_each_2d(int64_t rows, int64_t columns, const F& f, int64_t = 1) const {
    if (rows * columns > 0)
      for_each_2d_kernel<<<cuda_blocks(rows * columns), kCudaThreads, 0, stream>>>(rows, columns, f);
  }
  template <class Term, class Finish>
  void reduce(int64_t n, const Term& term, const Finish& finish) const {
    reduce_kernel<<<1, 1024, 0, stream>>>(n, term, finish);
  }
};

}  // namespace linnet
