#include "child.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>

#include "src/core/file.h"

namespace linnet {

pid_t start_linnet(const std::vector<std::string>& arguments,
                   const std::vector<std::pair<std::string, std::string>>& variables,
                   const std::filesystem::path& log) {
  const Fd out(::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  const Fd in(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (out.get() < 0) throw FileError(Exit::checkpoint, errno, "cannot write " + log.string());
  std::vector<std::string> words = {"linnet"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& w : words) argv.push_back(w.data());
  argv.push_back(nullptr);

  const pid_t parent = ::getpid(), child = ::fork();
  if (child < 0) throw FileError(Exit::failure, errno, "cannot start a process");
  if (child > 0) return child;
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(128 + SIGTERM);  // it died before it was asked for
  ::dup2(in.get(), STDIN_FILENO);
  ::dup2(out.get(), STDOUT_FILENO);
  ::dup2(out.get(), STDERR_FILENO);
  for (const auto& [name, value] : variables) ::setenv(name.c_str(), value.c_str(), 1);
  ::execv("/proc/self/exe", argv.data());
  ::_exit(127);
}

}  // namespace linnet
