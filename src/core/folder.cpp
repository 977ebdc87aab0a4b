#include "src/core/folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "linnet/text.h"

namespace linnet {
namespace {

constexpr int kOpenFolder = O_RDONLY | O_DIRECTORY | O_CLOEXEC;

}  // namespace

Folder::Folder(const std::filesystem::path& path, Exit exit)
    : path_(path), exit_(exit), fd_(uninterrupted([&] { return ::open(path.c_str(), kOpenFolder); })) {
  if (fd_.get() < 0) fail_call(errno, "open it as a folder");
}

Folder::Folder(const Folder& parent, const std::string& name)
    : path_(parent.path_ / name),
      exit_(parent.exit_),
      fd_(uninterrupted([&] { return ::openat(parent.fd(), name.c_str(), kOpenFolder | O_NOFOLLOW); })) {
  if (fd_.get() < 0) fail_call(errno, "open it as a folder");
}

std::vector<std::string> Folder::names() const {
  // A descriptor of its own: reading the names moves its position.
  const int fd = uninterrupted([&] { return ::openat(fd_.get(), ".", kOpenFolder); });
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(fd < 0 ? nullptr : ::fdopendir(fd), ::closedir);
  if (!stream) fail_call(errno, "read its names");
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(stream.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  if (errno != 0) fail_call(errno, "read its names");
  std::ranges::sort(names);
  return names;
}

bool Folder::has(const std::string& name) const {
  struct stat info;
  if (::fstatat(fd_.get(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0) return true;
  if (errno != ENOENT) fail_call(errno, "look for {}", escaped(name));
  return false;
}

InputFile Folder::open(const std::string& name) const { return InputFile(fd_.get(), name, path_ / name, exit_); }

void Folder::make(const std::string& name) const {
  if (uninterrupted([&] { return ::mkdirat(fd_.get(), name.c_str(), 0700); }) != 0) fail_call(errno, "make {}", name);
}

void Folder::rename(const std::string& from, const std::string& to) const {
  if (uninterrupted([&] { return ::renameat(fd_.get(), from.c_str(), fd_.get(), to.c_str()); }) != 0)
    fail_call(errno, "rename {} to {}", escaped(from), escaped(to));
}

bool Folder::exchange(const std::string& a, const std::string& b) const {
  const auto call = [&] { return ::renameat2(fd_.get(), a.c_str(), fd_.get(), b.c_str(), RENAME_EXCHANGE); };
  if (uninterrupted(call) == 0) return true;
  if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) return false;
  fail_call(errno, "exchange {} and {}", escaped(a), escaped(b));
}

void Folder::sync() const {
  // A descriptor of its own, for one try: after an error, syncing the same one again may report success wrongly.
  const Fd fd(uninterrupted([&] { return ::openat(fd_.get(), ".", kOpenFolder); }));
  // Some file systems sync no folders and say EINVAL.
  if (fd.get() < 0 || (::fsync(fd.get()) != 0 && errno != EINVAL)) fail_call(errno, "sync it");
}

void Folder::remove(const std::string& name) const {
  const auto unlink = [](int folder, const std::string& what, int flags) {
    return uninterrupted([&] { return ::unlinkat(folder, what.c_str(), flags); }) == 0 || errno == ENOENT;
  };
  if (unlink(fd_.get(), name, 0)) return;
  if (errno != EISDIR && errno != EPERM) fail_call(errno, "remove {}", escaped(name));
  const Folder inside(*this, name);
  for (const std::string& file : inside.names())
    if (!unlink(inside.fd(), file, 0)) inside.fail_call(errno, "remove {}", escaped(file));
  if (!unlink(fd_.get(), name, AT_REMOVEDIR)) fail_call(errno, "remove {}", escaped(name));
}

bool make_folders(const std::filesystem::path& path, std::error_code& error) {
  if (!path.has_filename())
    return !path.parent_path().empty() && path.parent_path() != path && make_folders(path.parent_path(), error);
  if (std::filesystem::exists(path, error) || error) return false;
  const std::filesystem::path parent = path.has_parent_path() ? path.parent_path() : ".";
  make_folders(parent, error);
  if (error || !std::filesystem::create_directory(path, error)) return false;
  try {
    Folder(parent, Exit::checkpoint).sync();
  } catch (const FileError& failed) {
    if (failed.code != EACCES) throw;  // a folder that one may write to and not read cannot be synced
  }
  return true;
}

}  // namespace linnet
