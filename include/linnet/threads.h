// The one place where Linnet runs things in parallel on the CPU. Work is always cut into pieces whose number depends on
// the problem alone, never on the number of threads, and each piece runs on one thread from start to end: hence the
// same bits for any number of threads.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <type_traits>
#include <vector>

namespace linnet {

// How many threads to use: OMP_NUM_THREADS if set, else what the affinity mask and the cgroup's CPU quota allow.
int default_threads();

class ThreadPool {
 public:
  explicit ThreadPool(int threads = default_threads());
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return int(workers_.size()) + 1; }

  // Calls f(piece, thread) for piece = 0..pieces-1 and returns when all are done; `thread` is in [0, threads()).
  // Which thread takes a piece is not fixed. The first exception is rethrown here. Not reentrant.
  template <class F>
  void run(int64_t pieces, const F& f) {
    if (pieces <= 1 || workers_.empty()) {
      for (int64_t piece = 0; piece < pieces; ++piece) f(piece, 0);
      return;
    }
    call_ = [](const void* context, int64_t piece, int thread) { (*static_cast<const F*>(context))(piece, thread); };
    context_ = &f;
    run_pieces(pieces);
  }

 private:
  void run_pieces(int64_t pieces);
  void take_pieces(int thread) noexcept;
  void work(int thread);

  std::vector<std::thread> workers_;
  void (*call_)(const void*, int64_t, int) = nullptr;
  const void* context_ = nullptr;
  std::atomic<uint32_t> pieces_{0};
  // The round (a call of run) in the upper half, its next free piece in the lower: who takes a piece by
  // compare-and-swap has seen the round to which it belongs, and that round cannot end before the piece is done. So
  // run() waits for pieces, not for threads: one that sleeps, or that the system has put aside, holds nobody up.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<uint32_t> round_{0};  // what idle workers wait for
  std::atomic<uint32_t> done_{0};
  std::atomic<bool> stop_{false};
  std::exception_ptr error_;
  std::atomic<bool> failed_{false};
};

}  // namespace linnet
