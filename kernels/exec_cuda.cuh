// The launch verbs on CUDA: the same three as exec_cpu.h, for the same functors.
#pragma once
#include <typeinfo>

#include "hd.h"
#include "launch.h"

namespace linnet {

// Throws when the launch just made was refused, or when earlier work has failed (src/backend/cuda/check.cpp).
void check_launch(const std::type_info& functor);

template <class F>
__global__ void for_each_kernel(int64_t n, F f) {
  const Stride s = thread_stride(blockIdx.x, gridDim.x, threadIdx.x);
  const auto body = loop_body(f);
  for (int64_t i = s.first; i < n; i += s.stride) body(i);
}

template <class F>
__global__ void for_each_2d_kernel(int64_t rows, int64_t columns, F f) {
  const Stride s = thread_stride(blockIdx.x, gridDim.x, threadIdx.x);
  for (int64_t i = s.first; i < rows * columns; i += s.stride) {
    const RowColumn at = row_column(i, columns);
    f(at.row, at.column);
  }
}

// The sum over a block's threads, in a fixed tree; for thread 0 only.
__device__ inline double block_sum(double mine) {
  __shared__ double partial[kLaunchThreads];
  partial[threadIdx.x] = mine;
  for (unsigned half = kLaunchThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  return threadIdx.x == 0 ? partial[0] : 0.0;
}

// A reduction in two launches: each block writes its share's sum, then one block adds those. No atomics: the order of
// the additions is fixed by n alone.
template <class Term>
__global__ void partial_sums_kernel(int64_t n, Term term, double* partial) {
  const Stride s = thread_stride(blockIdx.x, gridDim.x, threadIdx.x);
  double sum = 0;
  for (int64_t i = s.first; i < n; i += s.stride) sum += term(i);
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
template <class Finish>
__global__ void finish_sum_kernel(int blocks, const double* partial, Finish finish) {
  const double sum = block_sum(threadIdx.x < unsigned(blocks) ? partial[threadIdx.x] : 0.0);
  if (threadIdx.x == 0) finish(sum);
}

struct CudaExec {
  static constexpr bool kLaunchesCost = true;  // some microseconds each: one kernel rather than two simpler ones
  cudaStream_t stream;
  double* partial;               // [kReduceMaxBlocks], on the device
  mutable int64_t launches = 0;  // so far

  template <class F>
  void for_each(int64_t n, const F& f, int64_t = 1) const {
    if (n == 0) return;
    ++launches;
    for_each_kernel<<<launch_blocks(n, kLaunchMaxBlocks), kLaunchThreads, 0, stream>>>(n, f);
    check_launch(typeid(F));
  }
  template <class F>
  void for_each_2d(int64_t rows, int64_t columns, const F& f, int64_t = 1) const {
    if (rows * columns == 0) return;
    ++launches;
    const int blocks = launch_blocks(rows * columns, kLaunchMaxBlocks);
    for_each_2d_kernel<<<blocks, kLaunchThreads, 0, stream>>>(rows, columns, f);
    check_launch(typeid(F));
  }
  template <class Term, class Finish>
  void reduce(int64_t n, const Term& term, const Finish& finish) const {
    const int blocks = launch_blocks(n, kReduceMaxBlocks);
    launches += blocks > 0 ? 2 : 1;
    if (blocks > 0) partial_sums_kernel<<<blocks, kLaunchThreads, 0, stream>>>(n, term, partial);
    finish_sum_kernel<<<1, kLaunchThreads, 0, stream>>>(blocks, partial, finish);
    check_launch(typeid(Term));
  }
};

}  // namespace linnet
