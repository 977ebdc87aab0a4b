// One process trains in a run folder: flock on RUN/LOCK, and on the folder itself, since somebody may remove LOCK for a
// stale one. The kernel frees both however the process ends.
#pragma once
#include <filesystem>
#include <string>

#include "src/core/file.h"

namespace linnet {

// The process that LOCK says trains in `run`, if it still lives ("process 123 on host, which started at ..."); empty:
// none. It takes no lock, so it disturbs nobody.
std::string lock_holder(const std::filesystem::path& run);

class RunLock {
 public:
  // Error(Exit::locked) names the process that has it. What is written in LOCK serves that message only.
  explicit RunLock(const std::filesystem::path& run);
  // Empty, or why the lock may not hold: the folder lies on a network.
  const std::string& warning() const { return warning_; }
  // Whether `run` is still the folder that was locked.
  bool holds(const std::filesystem::path& run) const;

 private:
  Fd folder_, fd_;
  std::string warning_;
};

}  // namespace linnet
