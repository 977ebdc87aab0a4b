#include <pthread.h>

#include <chrono>
#include <csignal>
#include <utility>

#include "linnet/checkpoint.h"

namespace linnet {

CheckpointWriter::CheckpointWriter(CheckpointStore& store, std::function<void(const Done&)> done)
    : store_(store), done_(std::move(done)) {
  // Signals go to the thread that trains: it knows what to do about them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { work(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

CheckpointWriter::~CheckpointWriter() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void CheckpointWriter::wait(std::unique_lock<std::mutex>& lock) {
  changed_.wait(lock, [&] { return !make_; });
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void CheckpointWriter::wait() {
  std::unique_lock lock(mutex_);
  wait(lock);
}

void CheckpointWriter::submit(std::function<Checkpoint()> make, bool best) {
  std::unique_lock lock(mutex_);
  wait(lock);
  make_ = std::move(make);
  best_ = best;
  changed_.notify_all();
}

void CheckpointWriter::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return make_ || stop_; });
    if (!make_) return;
    lock.unlock();
    std::exception_ptr error;
    try {
      const auto begin = std::chrono::steady_clock::now();
      const Checkpoint checkpoint = make_();
      const std::string warning = store_.save(checkpoint, best_);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
      if (done_) done_({checkpoint.step, best_, seconds.count(), warning});
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    error_ = error;
    make_ = nullptr;  // with the state that it holds
    changed_.notify_all();
  }
}

}  // namespace linnet
