#include "src/core/file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "linnet/text.h"

namespace linnet {
namespace fs = std::filesystem;
namespace {

// A new file in an open folder, removed again unless it was renamed.
class Temporary {
 public:
  explicit Temporary(int folder) : folder_(folder), file_(create()) {}
  ~Temporary() {
    if (file_.created() && !renamed_) ::unlinkat(folder_, name_.c_str(), 0);
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  NewFile& file() { return file_; }
  bool rename_to(const std::string& name) {
    return renamed_ = ::renameat(folder_, name_.c_str(), folder_, name.c_str()) == 0;
  }

 private:
  NewFile create() {
    // A killed process may have left its file behind, and process numbers come back.
    for (int n = 0;; ++n) {
      name_ = fmt::format(".linnet-{}-{}.tmp", ::getpid(), n);
      NewFile file(folder_, name_);
      if (file.created() || errno != EEXIST) return file;
    }
  }

  int folder_;
  std::string name_;
  bool renamed_ = false;
  NewFile file_;
};

}  // namespace

FileError::FileError(Exit exit, int code, const std::string& message)
    : Error(exit, fmt::format("{}: {}", message, std::strerror(code))), code(code) {}

// O_NONBLOCK: opening a pipe without a writer must not wait for one.
InputFile::InputFile(const fs::path& path, Exit exit)
    : path_(path.string()),
      exit_(exit),
      fd_(uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); })) {
  check();
}

InputFile::InputFile(int folder, const std::string& name, const fs::path& path, Exit exit)
    : path_(path.string()), exit_(exit), fd_(uninterrupted([&] {
        return ::openat(folder, name.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
      })) {
  check();
}

void InputFile::check() {
  struct stat info;
  if (fd_.get() < 0 || ::fstat(fd_.get(), &info) != 0)
    throw FileError(exit_, errno, fmt::format("cannot open {}", path_));
  if (!S_ISREG(info.st_mode)) fail(exit_, "{}: expected a regular file, got a folder, a pipe or a device", path_);
  size_ = uint64_t(info.st_size);
}

void InputFile::read(uint64_t offset, std::span<char> out) const {
  while (!out.empty()) {
    const ssize_t n = uninterrupted([&] { return ::pread(fd_.get(), out.data(), out.size(), off_t(offset)); });
    if (n < 0) throw FileError(exit_, errno, fmt::format("cannot read {} at byte {}", path_, offset));
    if (n == 0) fail(exit_, "{}: ends at byte {}, expected {} bytes more", path_, offset, out.size());
    out = out.subspan(size_t(n));
    offset += uint64_t(n);
  }
}

std::string InputFile::read_all() const {
  std::string content(size_t(size_), '\0');
  read(0, content);
  return content;
}

NewFile::NewFile(int folder, const std::string& name)
    : fd_(uninterrupted([&] {
        return ::openat(folder, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
      })) {}

bool NewFile::write(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = uninterrupted([&] { return ::write(fd_.get(), bytes.data(), bytes.size()); });
    if (n == 0) errno = EIO;
    if (n <= 0) return false;
    bytes.remove_prefix(size_t(n));
  }
  return true;
}

std::string read_file(const fs::path& path, uint64_t limit, Exit exit) {
  const InputFile file(path, exit);
  if (file.size() > limit) fail(exit, "{}: expected at most {} bytes, got {}", path.string(), limit, file.size());
  return file.read_all();
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
  NewFile& file = temporary.file();
  check(file.created(), "making a temporary file beside it");
  for (const std::string_view piece : pieces) check(file.write(piece), "writing");
  check(file.sync(), "syncing");
  check(file.close(), "closing");
  check(temporary.rename_to(path.filename().string()), "renaming the temporary file");
  // Some file systems sync no folders and say EINVAL.
  if (::fsync(folder.get()) != 0 && errno != EINVAL)
    fail(exit, "{} is written, but a power cut may undo that: syncing its folder: {}", path.string(),
         std::strerror(errno));
}

void write_file_atomically(const fs::path& path, std::string_view content, Exit exit) {
  write_file_atomically(path, std::span(&content, 1), exit);
}

namespace {

// Nothing but making a file says so: permissions are not all, a file system may be read-only.
void require_writable(const fs::path& path) {
  const fs::path parent = path.has_parent_path() ? path.parent_path() : ".";
  const Fd folder(uninterrupted([&] { return ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (folder.get() < 0 || !Temporary(folder.get()).file().created())
    fail(Exit::checkpoint, "cannot write {}: no file can be made in the folder {}: {}; make the folder or name another",
         escaped(path.string()), escaped(parent.string()), std::strerror(errno));
}

}  // namespace

void require_absent(const fs::path& path) {
  std::error_code error;  // of a folder that cannot be searched: require_writable tells
  if (fs::exists(path, error)) fail(Exit::usage, "{} exists; remove it or choose another name", escaped(path.string()));
  require_writable(path);
}

void require_replaceable(const fs::path& path, std::string_view beginning, const std::string& kind) {
  std::error_code error;
  if (!fs::exists(path, error)) return require_writable(path);
  std::string start(beginning.size(), 0);
  if (fs::is_regular_file(path)) {
    const InputFile file(path, Exit::usage);
    start.resize(std::min<uint64_t>(file.size(), start.size()));
    file.read(0, start);
  }
  if (start != beginning)
    fail(Exit::usage, "{} exists and is no {}; choose another file", escaped(path.string()), kind);
  require_writable(path);
}

}  // namespace linnet
