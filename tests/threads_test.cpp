// The thread pool. Built with -fsanitize=thread, this test must stay silent.
#include "linnet/threads.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>

#include "src/core/cgroup.h"
#include "temp_dir.h"

namespace linnet {
namespace {

TEST(Threads, EachBeginsWithItsOwnRunOfPieces) {
  constexpr int kThreads = 4;
  ThreadPool pool(kThreads);
  std::atomic<int64_t> first[kThreads] = {-1, -1, -1, -1};
  std::atomic<int> begun = 0;
  pool.run(2 * kThreads, [&](int64_t piece, int thread) {
    if (first[thread] >= 0) return;
    first[thread] = piece;
    for (++begun; begun < kThreads;) std::this_thread::yield();  // until all have one
  });
  for (int thread = 0; thread < kThreads; ++thread) EXPECT_EQ(first[thread], 2 * thread);
}

TEST(Threads, EveryPieceRunsOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t pieces : {0, 1, 2, 7, 1000}) {
      std::vector<int> count(size_t(pieces), 0);
      std::atomic<bool> thread_in_range = true;
      pool.run(pieces, [&](int64_t piece, int thread) {
        ++count[size_t(piece)];
        if (thread < 0 || thread >= threads) thread_in_range = false;
      });
      EXPECT_EQ(std::count(count.begin(), count.end(), 1), pieces) << threads << " threads";
      EXPECT_TRUE(thread_in_range);
    }
  }
}

TEST(Threads, OneThreadNumberIsNeverUsedTwiceAtOnce) {
  ThreadPool pool(4);
  std::vector<int64_t> sum(4, 0);  // without atomics: TSan would see two threads of one number
  for (int round = 0; round < 200; ++round)
    pool.run(64, [&](int64_t piece, int thread) { sum[size_t(thread)] += piece; });
  EXPECT_EQ(std::accumulate(sum.begin(), sum.end(), int64_t(0)), 200 * 64 * 63 / 2);
}

TEST(Threads, OneRunSeesWhatTheLastOneWrote) {
  ThreadPool pool(3);
  std::vector<int64_t> a(100, 1), b(100, 0);
  for (int round = 0; round < 300; ++round) {
    pool.run(100, [&](int64_t i, int) { b[size_t(i)] = a[size_t((i + 1) % 100)] + 1; });
    pool.run(100, [&](int64_t i, int) { a[size_t(i)] = b[size_t((i + 7) % 100)]; });
  }
  EXPECT_EQ(std::count(a.begin(), a.end(), 301), 100);
}

TEST(Threads, AnExceptionArrivesAtTheCaller) {
  for (const int threads : {1, 4}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 20; ++round) {
      std::string message;
      try {
        pool.run(50, [&](int64_t piece, int) {
          if (piece % 10 == 3) throw std::runtime_error("piece " + std::to_string(piece));
        });
      } catch (const std::runtime_error& e) {
        message = e.what();
      }
      EXPECT_EQ(message.substr(0, 6), "piece ");
      EXPECT_EQ(message.back(), '3');
      std::atomic<int> done = 0;  // and the pool works on
      pool.run(50, [&](int64_t, int) { ++done; });
      EXPECT_EQ(done, 50);
    }
  }
}

TEST(Threads, ManyPoolsStartAndStop) {
  for (int cycle = 0; cycle < 1000; ++cycle) {
    ThreadPool pool(1 + cycle % 4);
    std::atomic<int> done = 0;
    if (cycle % 3 > 0) pool.run(cycle % 7, [&](int64_t, int) { ++done; });
    EXPECT_EQ(done, cycle % 3 > 0 ? cycle % 7 : 0);
  }
}

TEST(Threads, WorkersWakeUpAfterAPause) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // longer than they spin
    std::atomic<int> done = 0;
    pool.run(10, [&](int64_t, int) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      ++done;
    });
    EXPECT_EQ(done, 10);
  }
}

TEST(Threads, OmpNumThreadsDecides) {
  const char* const before = std::getenv("OMP_NUM_THREADS");
  const std::string saved = before ? before : "";
  unsetenv("OMP_NUM_THREADS");
  const int usual = default_threads();
  EXPECT_GE(usual, 1);
  const auto with = [](const char* text) {
    setenv("OMP_NUM_THREADS", text, 1);
    return default_threads();
  };
  EXPECT_EQ(with("3"), 3);
  EXPECT_EQ(with("5,2"), 5);  // OpenMP's list: a number for each level
  EXPECT_EQ(with("100000"), 1024);
  for (const char* nonsense : {"", "0", "-2", "many", "99999999999999999999"})
    EXPECT_EQ(with(nonsense), usual) << nonsense;
  before ? setenv("OMP_NUM_THREADS", saved.c_str(), 1) : unsetenv("OMP_NUM_THREADS");
}

void put(const std::filesystem::path& file, const std::string& text) {
  std::filesystem::create_directories(file.parent_path());
  std::ofstream(file) << text;
}

TEST(Threads, TheQuotaOfEveryControlGroupCounts) {
  const TempDir dir;
  const std::filesystem::path mount = dir / "cgroup", self = dir / "self";
  EXPECT_GE(quota_cpus(mount, self), 1 << 16);  // nothing is there
  put(self, "0::/a/b\n");
  put(mount / "a/b/cpu.max", "max 100000\n");
  EXPECT_GE(quota_cpus(mount, self), 1 << 16);
  put(mount / "a/b/cpu.max", "350000 100000\n");
  EXPECT_EQ(quota_cpus(mount, self), 4);
  put(mount / "a/cpu.max", "150000 100000\n");  // the group above it
  EXPECT_EQ(quota_cpus(mount, self), 2);
  put(mount / "cpu.max", "50000 100000\n");
  EXPECT_EQ(quota_cpus(mount, self), 1);
}

TEST(Threads, TheQuotaOfVersionOneCounts) {
  const TempDir dir;
  const std::filesystem::path mount = dir / "cgroup", self = dir / "self";
  put(self, "5:memory:/x\n4:cpu,cpuacct:/box\n");
  put(mount / "cpu/cpu.cfs_quota_us", "-1\n");
  put(mount / "cpu/box/cpu.cfs_quota_us", "300000\n");
  put(mount / "cpu/box/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota_cpus(mount, self), 3);
  put(mount / "cpu/box/cpu.cfs_quota_us", "nonsense\n");
  EXPECT_GE(quota_cpus(mount, self), 1 << 16);
}

}  // namespace
}  // namespace linnet
