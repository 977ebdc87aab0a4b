// Files as a whole: read under a limit, and written so that a full disk, a kill or a power cut leaves the old file or
// the new one, never half of one.
#pragma once
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "linnet/error.h"

namespace linnet {

// A system call that failed; the message ends with what `code`, its errno, means.
class FileError : public Error {
 public:
  FileError(Exit exit, int code, const std::string& message);
  int code;
};

// A signal may interrupt open, read and write before they did anything.
template <class Call>
auto uninterrupted(Call call) {
  decltype(call()) result;
  do result = call();
  while (result < 0 && errno == EINTR);
  return result;
}

// A file descriptor that closes itself.
class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&&) = delete;
  int get() const { return fd_; }
  // For who must know whether closing worked: 0, or -1 with errno set.
  int close() { return ::close(std::exchange(fd_, -1)); }

 private:
  int fd_;
};

// A regular file, open for reading. It is opened once: what is checked (its kind, its size) and what is read is then
// this descriptor, not the path, which could come to mean another file in between. Errors carry `exit`; a failed system
// call is a FileError.
class InputFile {
 public:
  InputFile(const std::filesystem::path& path, Exit exit);
  // `name` in an open folder, not through a symbolic link; messages call it `path`.
  InputFile(int folder, const std::string& name, const std::filesystem::path& path, Exit exit);
  uint64_t size() const { return size_; }
  // Fills `out` from byte `offset` on; an error where the file ends before that.
  void read(uint64_t offset, std::span<char> out) const;
  std::string read_all() const;

 private:
  void check();  // that it is open, and a regular file

  std::string path_;
  Exit exit_;
  Fd fd_;
  uint64_t size_ = 0;
};

// A file that did not exist before, open for writing. Each call returns whether it worked; errno says why not.
class NewFile {
 public:
  NewFile(int folder, const std::string& name);
  bool created() const { return fd_.get() >= 0; }
  bool write(std::string_view bytes);
  // At most once: after a failure the kernel may have dropped the pages and would then report success.
  bool sync() { return ::fsync(fd_.get()) == 0; }
  bool close() { return fd_.close() == 0; }

 private:
  Fd fd_;
};

// The content of a regular file of at most `limit` bytes.
std::string read_file(const std::filesystem::path& path, uint64_t limit, Exit exit);

// Makes `path` a file of these pieces, one after the other. They go to a temporary file in the same folder, which is
// synced and then renamed; the folder is synced last, so that after the return even a power cut leaves the new file. On
// an error the temporary file is removed and `path` is what it was (the new file only where the folder's sync failed,
// as the message then says). A kill can leave one behind: `.linnet-PID-N.tmp`. SIGXFSZ must be ignored by the process.
void write_file_atomically(const std::filesystem::path& path, std::span<const std::string_view> pieces, Exit exit);
void write_file_atomically(const std::filesystem::path& path, std::string_view content, Exit exit);

// Asked before the work whose result goes to `path`: nothing is there (require_absent), or at most a regular file whose
// beginning says that it is of the kind to be written, which may be made anew. Else Error(Exit::usage). Both also try
// whether its folder takes a new file; else Error(Exit::checkpoint).
void require_absent(const std::filesystem::path& path);
void require_replaceable(const std::filesystem::path& path, std::string_view beginning, const std::string& kind);

}  // namespace linnet
