// What every fuzz target checks: a parser takes its input or throws linnet::Error with the exit code that it promises
// and a message fit to print; it takes no more memory than its input justifies.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "linnet/error.h"
#include "linnet/text.h"

namespace fuzz {

// While one lives, more than `bytes` allocated and not freed end the program (the hooks are in limit.cpp).
class AllocationLimit {
 public:
  explicit AllocationLimit(size_t bytes);
  ~AllocationLimit();
  AllocationLimit(const AllocationLimit&) = delete;
  AllocationLimit& operator=(const AllocationLimit&) = delete;
};

[[noreturn]] inline void finding(const char* what, const std::string& message) {
  std::fprintf(stderr, "FINDING: %s: %s\n", what, message.c_str());
  std::abort();
}

// Runs `parse` under the limit; true where it took the input.
template <class F>
bool run(linnet::Exit promised, size_t limit, F parse) {
  const AllocationLimit guard(limit);
  try {
    parse();
    return true;
  } catch (const linnet::Error& error) {
    const std::string message = error.what();
    if (error.exit != promised) finding("another exit code than promised", message);
    if (message.size() > 64 << 10) finding("a message of more than 64 KiB", message.substr(0, 1000));
    for (size_t i = 0; i < message.size();) {  // nothing of the input may reach a terminal as it is
      const linnet::Char c = linnet::decode(message, i);
      if (!c.valid || (linnet::is_control(c.code) && c.code != '\n')) finding("a message with raw bytes", message);
      i += c.length;
    }
    return false;
  }
}

inline std::string_view text(const uint8_t* data, size_t size) { return {reinterpret_cast<const char*>(data), size}; }

// For what is too slow to be done with each input: whether it is this one's turn, which follows from its bytes alone.
inline bool one_in_64(std::string_view input) {
  uint32_t hash = 2166136261;  // FNV-1a
  for (const char c : input) hash = (hash ^ uint8_t(c)) * 16777619;
  return input.empty() || (hash >> 16) % 64 == 0;
}

// A file in memory, for readers that take a path.
class File {
 public:
  explicit File(const char* name) : fd_(memfd_create(name, 0)) {}
  ~File() { ::close(fd_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  void set(std::string_view content) const {
    if (ftruncate(fd_, 0) != 0 || pwrite(fd_, content.data(), content.size(), 0) != ssize_t(content.size()))
      finding("the target itself", "cannot write a file in memory");
  }
  void resize(off_t size) const {
    if (ftruncate(fd_, size) != 0) finding("the target itself", "cannot resize a file in memory");
  }
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

}  // namespace fuzz
