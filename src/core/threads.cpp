#include "linnet/threads.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "linnet/error.h"
#include "src/core/cgroup.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace linnet {

namespace {

// Denormals cost a hundred cycles each and carry nothing worth training on: flush them, on every thread alike.
void flush_denormals() {
#ifdef __x86_64__
  _mm_setcsr(_mm_getcsr() | 0x8040);  // FTZ and DAZ
#endif
}

// Between two parallel regions of a step lie microseconds: waiting that long in a loop beats a system call.
constexpr int kSpins = 4000;

template <class Done>
bool spin_until(Done done) {
  for (int i = 0; i < kSpins; ++i) {
    if (done()) return true;
#ifdef __x86_64__
    _mm_pause();
#endif
  }
  return false;
}

}  // namespace

int default_threads() {
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    int n = 0;
    if (std::from_chars(text, text + std::strlen(text), n).ec == std::errc() && n > 0) return std::min(n, 1024);
  }
  cpu_set_t set;
  CPU_ZERO(&set);
  const int affinity = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return std::clamp(affinity, 1, quota_cpus());
}

ThreadPool::ThreadPool(int threads) : tickets_(size_t(std::max(threads, 1))) {
  flush_denormals();
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  ++round_;
  round_.notify_all();
  for (std::thread& t : workers_) t.join();
}

void ThreadPool::take_pieces(int thread) noexcept {
  for (int i = 0; i < threads(); ++i) take_share((thread + i) % threads(), thread);
}

void ThreadPool::take_share(int share, int thread) noexcept {
  std::atomic<uint64_t>& next = tickets_[size_t(share)].next;
  uint64_t ticket = next.load(std::memory_order_acquire);
  for (;;) {
    const uint32_t piece = uint32_t(ticket), pieces = pieces_.load(std::memory_order_relaxed);
    if (piece >= share_begin(share + 1, pieces)) return;
    if (!next.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acquire)) continue;
    try {
      call_(context_, piece, thread);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == pieces) done_.notify_one();
    ticket = next.load(std::memory_order_acquire);
  }
}

void ThreadPool::run_pieces(int64_t pieces) {
  require(pieces <= int64_t(UINT32_MAX), "[threads] {} pieces are too many", pieces);
  // No worker holds a piece now, and none can get one before the new tickets are there.
  const uint32_t round = round_.load(std::memory_order_relaxed) + 1;
  pieces_.store(0, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  for (int i = 0; i < threads(); ++i)
    tickets_[size_t(i)].next.store(uint64_t(round) << 32 | share_begin(i, uint32_t(pieces)), std::memory_order_release);
  pieces_.store(uint32_t(pieces), std::memory_order_release);
  round_.store(round, std::memory_order_release);
  round_.notify_all();
  take_pieces(0);
  const auto all = [&] { return done_.load(std::memory_order_acquire) == uint32_t(pieces); };
  if (!spin_until(all))
    for (uint32_t done; (done = done_.load(std::memory_order_acquire)) != uint32_t(pieces);)
      done_.wait(done, std::memory_order_acquire);
  if (failed_.exchange(false)) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::work(int thread) {
  flush_denormals();
  uint32_t seen = 0;
  while (!stop_) {
    if (!spin_until([&] { return round_.load(std::memory_order_acquire) != seen; }))
      round_.wait(seen, std::memory_order_acquire);
    seen = round_.load(std::memory_order_acquire);
    take_pieces(thread);
  }
}

}  // namespace linnet
