#include "src/train/run_lock.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <ctime>
#include <fstream>
#include <optional>
#include <thread>

#include "linnet/text.h"
#include "src/core/json.h"

namespace linnet {
namespace fs = std::filesystem;
namespace {

constexpr uint64_t kMaxLockFile = 4096;

std::string boot_id() {
  std::string id;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), id);
  return id;
}

std::string host() {
  char name[256] = {};
  ::gethostname(name, sizeof name - 1);
  return name;
}

std::string this_process() {
  const std::string now = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  return Json{{"pid", ::getpid()}, {"host", host()}, {"boot_id", boot_id()}, {"start", now}}.dump(
             -1, ' ', false, Json::error_handler_t::replace) +
         "\n";
}

// Who LOCK says has the lock. nullopt: it says nothing, or names a process that has ended; the holder is new and has
// not written yet.
std::optional<std::string> holder(const fs::path& path) try {
  const Json json = parse_json(read_file(path, kMaxLockFile, Exit::locked), path.string(), Exit::locked);
  const auto pid = whole<int64_t>(json.at("pid"));
  const auto where = json.at("host").get<std::string>(), start = json.at("start").get<std::string>();
  const bool here = where == host() && json.at("boot_id").get<std::string>() == boot_id();
  if (here && (pid <= 0 || pid > INT32_MAX || (::kill(pid_t(pid), 0) != 0 && errno == ESRCH))) return {};
  return fmt::format("process {} on {}, which started at {}", pid, escaped(where), escaped(start));
} catch (const std::exception&) {
  return {};
}

// Whether LOCK is empty or begins as this_process() does: somebody's own file of that name is locked, not overwritten.
// A pipe is neither, and is not waited for.
bool ours(const Fd& lock) {
  char begin[7] = {};
  const ssize_t n = ::pread(lock.get(), begin, sizeof begin, 0);
  return n == 0 || (n > 0 && (begin[0] == 0 || std::string_view(begin, size_t(n)) == R"({"pid":)"));
}

std::string network_warning(const fs::path& run) {
  struct statfs info;
  if (::statfs(run.c_str(), &info) != 0) return "";
  const auto type = uint32_t(info.f_type);
  if (type != NFS_SUPER_MAGIC && type != SMB_SUPER_MAGIC && type != CIFS_SUPER_MAGIC && type != SMB2_SUPER_MAGIC)
    return "";
  return fmt::format("{} lies on a network: a second process on another computer may not see this run's lock",
                     run.string());
}

}  // namespace

std::string lock_holder(const fs::path& run) { return holder(run / "LOCK").value_or(""); }

RunLock::RunLock(const fs::path& run)
    : folder_(uninterrupted([&] { return ::open(run.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); })),
      fd_(uninterrupted(
          [&] { return ::open((run / "LOCK").c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666); })),
      warning_(network_warning(run)) {
  const fs::path path = run / "LOCK";
  if (fd_.get() < 0) throw FileError(Exit::checkpoint, errno, fmt::format("cannot open {}", path.string()));
  const auto lock = [](const Fd& fd) {
    return uninterrupted([&] { return ::flock(fd.get(), LOCK_EX | LOCK_NB); }) == 0;
  };
  // A file system that locks no folders leaves it at the file.
  const bool folder_taken = folder_.get() >= 0 && !lock(folder_) && errno == EWOULDBLOCK;
  if (folder_taken || !lock(fd_)) {
    if (!folder_taken && errno != EWOULDBLOCK)
      throw FileError(Exit::checkpoint, errno, fmt::format("cannot lock {}", path.string()));
    auto who = holder(path);
    for (int i = 0; i < 20 && !who; ++i, who = holder(path)) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    fail(Exit::locked, "{} is in use by {}; wait for it, stop it, or choose another folder with --out", run.string(),
         who.value_or("another process"));
  }
  if (!ours(fd_)) return;
  // A failure to write it takes nothing from the lock; the message is then poorer.
  const std::string text = this_process();
  if (::ftruncate(fd_.get(), 0) == 0 && ::pwrite(fd_.get(), text.data(), text.size(), 0) < 0)
    warning_ +=
        fmt::format("{}{}: the holder's name could not be written", warning_.empty() ? "" : "; ", path.string());
}

bool RunLock::holds(const fs::path& run) const {
  struct stat locked {};
  struct stat named {};
  return folder_.get() < 0 || (::fstat(folder_.get(), &locked) == 0 && ::stat(run.c_str(), &named) == 0 &&
                               locked.st_dev == named.st_dev && locked.st_ino == named.st_ino);
}

}  // namespace linnet
