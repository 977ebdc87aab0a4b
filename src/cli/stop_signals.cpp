#include "stop_signals.h"

#include <unistd.h>

namespace linnet {

StopSignals::StopSignals() {
  sigemptyset(&set_);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction now {};
    if (sigaction(signal, nullptr, &now) != 0 || now.sa_handler == SIG_IGN) continue;
    sigaddset(&set_, signal);
    wakes_ = signal;
  }
  if (wakes_ == 0) return;
  pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  thread_ = std::thread([this] { wait(); });
}

StopSignals::~StopSignals() {
  if (!thread_.joinable()) return;
  over_ = true;
  pthread_kill(thread_.native_handle(), wakes_);
  thread_.join();
  pthread_sigmask(SIG_UNBLOCK, &set_, nullptr);
}

void StopSignals::wait() {
  for (;;) {
    int signal = 0;
    if (sigwait(&set_, &signal) != 0) continue;
    if (over_) return;
    if (caught_ != 0) ::_exit(128 + signal);
    if (begun_) {
      caught_ = signal;
      continue;
    }
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, signal);
    pthread_sigmask(SIG_UNBLOCK, &one, nullptr);
    ::raise(signal);  // nobody has a handler
  }
}

}  // namespace linnet
