#include "src/core/file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace linnet {
namespace fs = std::filesystem;
namespace {

// A signal may interrupt open, read and write before they did anything.
template <class Call>
auto uninterrupted(Call call) {
  decltype(call()) result;
  do result = call();
  while (result < 0 && errno == EINTR);
  return result;
}

// A new file in an open folder, removed again unless it was renamed.
class Temporary {
 public:
  explicit Temporary(int folder) : folder_(folder), file_(create()) {}
  ~Temporary() {
    if (file_created_ && !renamed_) ::unlinkat(folder_, name_.c_str(), 0);
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  bool created() const { return file_created_; }
  bool write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = uninterrupted([&] { return ::write(file_.get(), bytes.data(), bytes.size()); });
      if (n == 0) errno = EIO;
      if (n <= 0) return false;
      bytes.remove_prefix(size_t(n));
    }
    return true;
  }
  // Not retried when it fails: the kernel may have dropped the pages and would then report success.
  bool sync() { return ::fsync(file_.get()) == 0; }
  bool close() { return file_.close() == 0; }
  bool rename_to(const std::string& name) {
    return renamed_ = ::renameat(folder_, name_.c_str(), folder_, name.c_str()) == 0;
  }

 private:
  int create() {
    // A killed process may have left its file behind, and process numbers come back.
    for (int n = 0;; ++n) {
      name_ = fmt::format(".linnet-{}-{}.tmp", ::getpid(), n);
      const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
      const int fd = uninterrupted([&] { return ::openat(folder_, name_.c_str(), flags, 0666); });
      if (fd < 0 && errno == EEXIST) continue;
      file_created_ = fd >= 0;
      return fd;
    }
  }

  int folder_;
  std::string name_;
  bool file_created_ = false, renamed_ = false;
  Fd file_;
};

}  // namespace

InputFile::InputFile(const fs::path& path, Exit exit)
    : path_(path.string()),
      exit_(exit),
      // O_NONBLOCK: opening a pipe without a writer must not wait for one.
      fd_(uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); })) {
  struct stat info;
  if (fd_.get() < 0 || ::fstat(fd_.get(), &info) != 0) fail(exit_, "cannot open {}: {}", path_, std::strerror(errno));
  if (!S_ISREG(info.st_mode)) fail(exit_, "{}: expected a regular file, got a folder, a pipe or a device", path_);
  size_ = uint64_t(info.st_size);
}

void InputFile::read(uint64_t offset, std::span<char> out) const {
  while (!out.empty()) {
    const ssize_t n = uninterrupted([&] { return ::pread(fd_.get(), out.data(), out.size(), off_t(offset)); });
    if (n < 0) fail(exit_, "cannot read {} at byte {}: {}", path_, offset, std::strerror(errno));
    if (n == 0) fail(exit_, "{}: ends at byte {}, expected {} bytes more", path_, offset, out.size());
    out = out.subspan(size_t(n));
    offset += uint64_t(n);
  }
}

std::string read_file(const fs::path& path, uint64_t limit, Exit exit) {
  const InputFile file(path, exit);
  if (file.size() > limit) fail(exit, "{}: expected at most {} bytes, got {}", path.string(), limit, file.size());
  std::string content(size_t(file.size()), '\0');
  file.read(0, content);
  return content;
}

void write_file_atomically(const fs::path& path, std::span<const std::string_view> pieces, Exit exit) {
  // Renaming would replace a device, /dev/null say, by a file.
  struct stat info;
  if (::stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode))
    fail(exit, "cannot write {}: expected the name of a regular file, got a folder, a pipe or a device", path.string());

  const auto check = [&](bool done, const char* what) {
    if (!done)
      fail(exit, "cannot write {}: {}: {}; a file that was there is unchanged", path.string(), what,
           std::strerror(errno));
  };
  const fs::path parent = path.has_parent_path() ? path.parent_path() : ".";
  const Fd folder(uninterrupted([&] { return ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  check(folder.get() >= 0, "opening its folder");
  Temporary temporary(folder.get());
  check(temporary.created(), "making a temporary file beside it");
  for (const std::string_view piece : pieces) check(temporary.write(piece), "writing");
  check(temporary.sync(), "syncing");
  check(temporary.close(), "closing");
  check(temporary.rename_to(path.filename().string()), "renaming the temporary file");
  // Some file systems sync no folders and say EINVAL.
  if (::fsync(folder.get()) != 0 && errno != EINVAL)
    fail(exit, "{} is written, but a power cut may undo that: syncing its folder: {}", path.string(),
         std::strerror(errno));
}

void write_file_atomically(const fs::path& path, std::string_view content, Exit exit) {
  write_file_atomically(path, std::span(&content, 1), exit);
}

}  // namespace linnet
