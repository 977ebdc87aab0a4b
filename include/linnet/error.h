// One exception type for everything a user can cause. It carries the process's exit code, so that main() is the only
// place that ends the program, and a message that says what was expected, what came and what to do.
#pragma once
#include <fmt/core.h>

#include <stdexcept>
#include <string>

namespace linnet {

// The exit codes of every verb (docs/DESIGN.md, "Rules"). 130 and 143 belong to signals.
enum class Exit : int {
  ok = 0,
  failure = 1,     // anything else; also a broken contract between two parts of Linnet
  usage = 2,       // the command line or the config
  data = 3,        // data missing or corrupt
  checkpoint = 4,  // a checkpoint, a weights file or the disk
  diverged = 5,    // training diverged, or a check failed
  device = 6,      // GPU or memory
  locked = 7,      // the run belongs to another process
};

class Error : public std::runtime_error {
 public:
  Error(Exit exit, const std::string& message) : std::runtime_error(message), exit(exit) {}
  Exit exit;
};

template <class... Args>
[[noreturn]] void fail(Exit exit, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(exit, fmt::format(format, std::forward<Args>(args)...));
}

// A contract of the library: `require(x.rank() == 4, "[conv2d] expected ...")`. Arguments are formatted on failure
// only.
template <class... Args>
void require(bool holds, fmt::format_string<Args...> format, Args&&... args) {
  if (!holds) [[unlikely]]
    throw Error(Exit::failure, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace linnet
