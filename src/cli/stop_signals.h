// SIGINT, SIGTERM and SIGHUP of a process that trains: a thread of their own waits for them, and no thread has a
// handler.
//
// A handler runs on the stack of whichever thread it interrupts, and oneDNN 2.6's AVX2 matrix product points the
// stack's register into its workspace on the heap: the kernel wrote the handler's frame over what lay beside it (8 of
// 190 stops of an mlp ended in a broken heap).
#pragma once
#include <atomic>
#include <csignal>
#include <thread>

namespace linnet {

class StopSignals {
 public:
  // Blocks them in this thread and in all that it starts from now on, which is why it comes before any other thread.
  // One that is ignored (nohup) stays so. Until begin() they end the process, as they do by default.
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  // From now on the first one only shows in caught(), and the next one ends the process at once with 128 + its number.
  void begin() { begun_ = true; }
  int caught() const { return caught_; }  // 0: none

 private:
  void wait();

  sigset_t set_;
  int wakes_ = 0;  // one of them: ends the thread; 0: all are ignored, and there is no thread
  std::atomic<bool> begun_ = false, over_ = false;
  std::atomic<int> caught_ = 0;
  std::thread thread_;
};

}  // namespace linnet
