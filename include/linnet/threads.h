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

  int threads() const { return int(tickets_.size()); }

  // Calls f(piece, thread) for piece = 0..pieces-1 and returns when all are done; `thread` is in [0, threads()).
  // Each thread begins with a run of neighbours, so that what one piece fetched ahead serves the next, and then helps
  // the others: which one takes a piece is not fixed. The first exception is rethrown here. Not reentrant.
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
  void take_share(int share, int thread) noexcept;
  void work(int thread);
  // Where the run of pieces begins that is meant for a thread.
  uint32_t share_begin(int thread, uint32_t pieces) const {
    return uint32_t(uint64_t(pieces) * uint64_t(thread) / uint64_t(threads()));
  }

  // Of each thread's share: the round (a call of run) in the upper half, the next free piece in the lower. Who takes a
  // piece by compare-and-swap has seen the round to which it belongs, and that round cannot end before the piece is
  // done. So run() waits for pieces, not for threads: one that sleeps, or that the system has put aside, holds nobody
  // up.
  struct alignas(64) Ticket {
    std::atomic<uint64_t> next{0};
  };
  std::vector<Ticket> tickets_;
  std::vector<std::thread> workers_;
  void (*call_)(const void*, int64_t, int) = nullptr;
  const void* context_ = nullptr;
  std::atomic<uint32_t> pieces_{0};
  std::atomic<uint32_t> round_{0};  // what idle workers wait for
  std::atomic<uint32_t> done_{0};
  std::atomic<bool> stop_{false};
  std::exception_ptr error_;
  std::atomic<bool> failed_{false};
};

}  // namespace linnet
