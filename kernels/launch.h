// Which thread of a CUDA launch visits which index, in plain arithmetic: tests/cuda_geometry_test.cpp runs it on the
// CPU. Grid-stride loops: any number of elements is right with any grid.
#pragma once
#include "hd.h"

namespace linnet {

inline constexpr int kLaunchThreads = 256;     // of a block
inline constexpr int kLaunchMaxBlocks = 4096;  // enough to fill any GPU several times
inline constexpr int kReduceMaxBlocks = 256;   // their partial sums are added by one block of as many threads
static_assert(kReduceMaxBlocks == kLaunchThreads);

// Blocks for n elements: one element a thread up to `most` blocks, more beyond.
LINNET_HD int launch_blocks(int64_t n, int most) {
  const int64_t blocks = n / kLaunchThreads + (n % kLaunchThreads != 0);
  return int(blocks < most ? blocks : most);
}

// The indices of one thread: first, first + stride, ... below n.
struct Stride {
  int64_t first, stride;
};
LINNET_HD Stride thread_stride(unsigned block, unsigned blocks, unsigned thread) {
  return {int64_t(block) * kLaunchThreads + thread, int64_t(blocks) * kLaunchThreads};
}

// Index i of a range of rows x columns. A GPU divides 64-bit numbers several times slower than 32-bit ones.
struct RowColumn {
  int64_t row, column;
};
LINNET_HD RowColumn row_column(int64_t i, int64_t columns) {
  if (uint64_t(i | columns) >> 32 == 0) return {uint32_t(i) / uint32_t(columns), uint32_t(i) % uint32_t(columns)};
  return {i / columns, i % columns};
}

}  // namespace linnet
