// Which CUDA thread visits which index, run on the CPU: every index exactly once, whatever the size.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/launch.h"

namespace linnet {
namespace {

constexpr int64_t kHuge = (int64_t(1) << 31) + 1;  // one more than an int can count

// How often each index below n is visited by all threads of the launch that `most` blocks allow.
std::vector<int> visits(int64_t n, int most) {
  std::vector<int> count(static_cast<size_t>(n), 0);
  const int blocks = launch_blocks(n, most);
  for (int block = 0; block < blocks; ++block)
    for (int thread = 0; thread < kLaunchThreads; ++thread) {
      const Stride s = thread_stride(unsigned(block), unsigned(blocks), unsigned(thread));
      for (int64_t i = s.first; i < n; i += s.stride) ++count[size_t(i)];
    }
  return count;
}

TEST(CudaGeometry, EveryIndexOnce) {
  const int64_t one_each = int64_t(kLaunchThreads) * kLaunchMaxBlocks;
  for (int most : {kReduceMaxBlocks, kLaunchMaxBlocks})
    for (int64_t n :
         {int64_t(0), int64_t(1), int64_t(31), int64_t(32), int64_t(33), int64_t(255), int64_t(256), int64_t(257),
          int64_t(269722), one_each - 1, one_each, one_each + 1, int64_t(128) * 32 * 32 * 16}) {
      SCOPED_TRACE(n);
      for (int v : visits(n, most)) ASSERT_EQ(v, 1);
    }
}

TEST(CudaGeometry, NoBlockIsIdleOrMissing) {
  EXPECT_EQ(launch_blocks(0, kLaunchMaxBlocks), 0);  // a launch of no blocks is an error: the verbs leave it out
  EXPECT_EQ(launch_blocks(1, kLaunchMaxBlocks), 1);
  EXPECT_EQ(launch_blocks(256, kLaunchMaxBlocks), 1);
  EXPECT_EQ(launch_blocks(257, kLaunchMaxBlocks), 2);
  EXPECT_EQ(launch_blocks(kHuge, kLaunchMaxBlocks), kLaunchMaxBlocks);
  EXPECT_EQ(launch_blocks(INT64_MAX, kReduceMaxBlocks), kReduceMaxBlocks);
}

// Too many to visit. The threads' first indices are 0 .. stride - 1, each once, so the residues modulo the stride are
// shared out one a thread, and each thread walks all of its own: that is every index once.
TEST(CudaGeometry, HugeRangesByArithmetic) {
  for (int64_t n : {kHuge, int64_t(1) << 40}) {
    const int blocks = launch_blocks(n, kLaunchMaxBlocks);
    const int64_t threads = int64_t(blocks) * kLaunchThreads;
    std::vector<int> firsts(static_cast<size_t>(threads), 0);
    int64_t visited = 0;
    for (int block = 0; block < blocks; ++block)
      for (int thread = 0; thread < kLaunchThreads; ++thread) {
        const Stride s = thread_stride(unsigned(block), unsigned(blocks), unsigned(thread));
        ASSERT_EQ(s.stride, threads);
        ASSERT_TRUE(s.first >= 0 && s.first < threads);
        ++firsts[size_t(s.first)];
        visited += (n - s.first + s.stride - 1) / s.stride;
      }
    for (int count : firsts) ASSERT_EQ(count, 1);
    EXPECT_EQ(visited, n);
  }
}

TEST(CudaGeometry, RowsAndColumns) {
  for (int64_t columns : {int64_t(1), int64_t(3), int64_t(16), int64_t(31), int64_t(1000), kHuge, int64_t(1) << 32,
                          (int64_t(1) << 32) - 1})
    for (int64_t i : {int64_t(0), int64_t(1), int64_t(31), int64_t(32), int64_t(33), (int64_t(1) << 31) - 1, kHuge - 1,
                      kHuge, (int64_t(1) << 32) - 1, int64_t(1) << 32, (int64_t(1) << 32) + 1, int64_t(1) << 40}) {
      const RowColumn at = row_column(i, columns);
      EXPECT_EQ(at.row, i / columns) << i << " of " << columns;
      EXPECT_EQ(at.column, i % columns) << i << " of " << columns;
    }
}

}  // namespace
}  // namespace linnet
