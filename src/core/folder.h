// An open folder. What is done with its names is done in this very folder, even if its path comes to mean another one.
// A name is one component of a path. Failures are FileErrors that name the path.
#pragma once
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "src/core/file.h"

namespace linnet {

class Folder {
 public:
  Folder(const std::filesystem::path& path, Exit exit);
  Folder(const Folder& parent, const std::string& name);  // not through a symbolic link
  const std::filesystem::path& path() const { return path_; }
  int fd() const { return fd_.get(); }

  std::vector<std::string> names() const;  // sorted, without "." and ".."
  bool has(const std::string& name) const;
  InputFile open(const std::string& name) const;  // a regular file, not through a symbolic link
  void make(const std::string& name) const;       // a new folder that only its owner may enter
  void rename(const std::string& from, const std::string& to) const;
  // Both names stay, at no instant is one missing. False where the file system cannot do that.
  bool exchange(const std::string& a, const std::string& b) const;
  void sync() const;                           // makes names made, renamed and removed last
  void remove(const std::string& name) const;  // a file, or a folder of files; no error where there is none

 private:
  template <class... Args>
  [[noreturn]] void fail_call(int code, fmt::format_string<Args...> what, Args&&... args) const {
    throw FileError(exit_, code,
                    fmt::format("{}: cannot {}", path_.string(), fmt::format(what, std::forward<Args>(args)...)));
  }

  std::filesystem::path path_;
  Exit exit_;
  Fd fd_;
};

// Makes a folder and what is missing above it, each synced into its parent: a checkpoint is as safe from a power cut as
// the way to it. False where it is there already, or `error` says why it cannot be made.
bool make_folders(const std::filesystem::path& path, std::error_code& error);

}  // namespace linnet
