// The child process of ImageSandbox. The parent sends the length of a name, the name, the length of an image, the
// image; the child answers with a Reply, then the pixels or the text of the error.
#include <fcntl.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <new>
#include <utility>

#include "image.h"
#include "image_container.h"
#include "linnet/error.h"
#include "linnet/text.h"

namespace linnet {
namespace {

// The sanitizers' own runtime needs more system calls, files and address space than a confined child has: under them
// the child runs with the limit of processor time alone.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define LINNET_SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(LINNET_SANITIZED)
constexpr bool kConfine = false;
#else
constexpr bool kConfine = true;
#endif

constexpr rlim_t kMemory = rlim_t(2) << 30;  // bytes, more than the largest image needs
constexpr uint64_t kMessage = 1000;          // bytes of an error

struct Reply {
  int32_t decoded, height, width, channels;
  uint64_t bytes;
};

// Calls read or write until all is done; false: the other end is gone, or it took too long (errno is EAGAIN).
template <class Call>
bool transfer(Call call, size_t size) {
  for (size_t done = 0; done < size;) {
    const ssize_t n = call(done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) errno = EPIPE;
    if (n <= 0) return false;
    done += size_t(n);
  }
  return true;
}
bool receive(int socket, void* data, size_t size) {
  const auto at = static_cast<char*>(data);
  return transfer([&](size_t done, size_t n) { return ::read(socket, at + done, n); }, size);
}

// ---- The child -----------------------------------------------------------------------------------------------------

bool answer(const void* data, size_t size) {
  const auto at = static_cast<const char*>(data);
  return transfer([&](size_t done, size_t n) { return ::write(STDIN_FILENO, at + done, n); }, size);
}

// From here on: read and write on the socket, memory that is not code, and exit.
bool confine() {
  uint64_t pages = 0;  // mapped by the parent already; a GPU's driver maps more than any limit
  std::ifstream("/proc/self/statm") >> pages;
  const rlim_t memory = pages * uint64_t(::sysconf(_SC_PAGESIZE)) + kMemory;
  const rlimit none{0, 0}, address_space{memory, memory};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || ::setrlimit(RLIMIT_CORE, &none) != 0) return false;
  if (!kConfine) return true;
  if (::setrlimit(RLIMIT_NOFILE, &none) != 0 || ::setrlimit(RLIMIT_AS, &address_space) != 0) return false;

  const scmp_filter_ctx filter = ::seccomp_init(SCMP_ACT_KILL_PROCESS);
  if (!filter) return false;
  const auto allow = [&](int call, std::initializer_list<scmp_arg_cmp> when) {
    return ::seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, call, unsigned(when.size()), when.begin()) == 0;
  };
  // malloc tries these and does without.
  const auto refuse = [&](int call) { return ::seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOMEM), call, 0) == 0; };
  return allow(SCMP_SYS(read), {SCMP_A0(SCMP_CMP_EQ, STDIN_FILENO)}) &&
         allow(SCMP_SYS(write), {SCMP_A0(SCMP_CMP_EQ, STDIN_FILENO)}) &&
         allow(SCMP_SYS(mmap), {SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0),
                                SCMP_A3(SCMP_CMP_MASKED_EQ, MAP_ANONYMOUS, MAP_ANONYMOUS)}) &&
         allow(SCMP_SYS(munmap), {}) && allow(SCMP_SYS(brk), {}) && allow(SCMP_SYS(exit), {}) &&
         allow(SCMP_SYS(exit_group), {}) && refuse(SCMP_SYS(mremap)) && refuse(SCMP_SYS(mprotect)) &&
         refuse(SCMP_SYS(madvise)) && ::seccomp_load(filter) == 0;
}

bool serve_one(ImageSandbox::Decode decode) {
  uint64_t lengths[2];
  if (!receive(STDIN_FILENO, lengths, sizeof lengths)) return false;
  std::string name(lengths[0], '\0');
  std::vector<char> bytes(lengths[1]);
  if (!receive(STDIN_FILENO, name.data(), name.size()) || !receive(STDIN_FILENO, bytes.data(), bytes.size()))
    return false;
  Image image;
  std::string error;
  bool decoded = false;
  try {
    image = decode(bytes, name);
    decoded = true;
  } catch (const std::bad_alloc&) {
    error = escaped(name) + ": needs more memory than an image may have";
  } catch (const std::exception& caught) {
    error = std::string(caught.what()).substr(0, kMessage);
  }
  const Reply reply{decoded, image.height, image.width, image.channels, decoded ? image.pixels.size() : error.size()};
  return answer(&reply, sizeof reply) &&
         (decoded ? answer(image.pixels.data(), image.pixels.size()) : answer(error.data(), error.size()));
}

[[noreturn]] void run_child(int socket, ImageSandbox::Decode decode) {
  // Ctrl-C is for the parent to handle; its own handlers are not for this process.
  for (const int signal : {SIGTERM, SIGHUP, SIGXCPU, SIGPIPE}) ::signal(signal, SIG_DFL);
  ::signal(SIGINT, SIG_IGN);
  if (::dup2(socket, STDIN_FILENO) != STDIN_FILENO || ::close_range(STDIN_FILENO + 1, ~0u, 0) != 0) ::_exit(1);
  try {
    try {  // a process's first exception asks the system for what a confined one may not ask
      check_image_container({}, "");
    } catch (const std::exception&) {
    }
    const bool ready = confine();
    if (answer(&ready, sizeof ready) && ready)
      while (serve_one(decode)) continue;
  } catch (...) {  // nothing of the parent may run here: no destructor, no exit handler
  }
  ::_exit(1);
}

// ---- The parent ----------------------------------------------------------------------------------------------------

// A whole second more of processor time than the child has used so far, rounded up.
void allow_cpu_time(pid_t child) {
  clockid_t clock;
  timespec used{};
  if (::clock_getcpuclockid(child, &clock) != 0 || ::clock_gettime(clock, &used) != 0) return;  // it is gone
  const rlimit limit{rlim_t(used.tv_sec) + 2, RLIM_INFINITY};
  ::prlimit(child, RLIMIT_CPU, &limit, nullptr);
}

bool request(int socket, const void* data, size_t size) {
  const auto at = static_cast<const char*>(data);
  return transfer([&](size_t done, size_t n) { return ::send(socket, at + done, n, MSG_NOSIGNAL); }, size);
}

// Nothing that the child says is taken on trust.
bool is_sound(const Reply& reply) {
  if (!reply.decoded) return reply.bytes <= kMessage;
  const auto side = [](int32_t n) { return n >= 1 && n <= kImageSide; };
  return reply.decoded == 1 && side(reply.height) && side(reply.width) && reply.channels >= 1 && reply.channels <= 4 &&
         reply.bytes <= uint64_t(kImageBytes) &&
         reply.bytes == uint64_t(reply.height) * uint64_t(reply.width) * uint64_t(reply.channels);
}

std::string end_of(int status) {
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGXCPU) return "took more than a second of processor time";
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS) return "tried what a decoder has no need for";
  if (WIFSIGNALED(status)) return fmt::format("was ended by signal {}", WTERMSIG(status));
  return "ended without an answer";
}

}  // namespace

bool ImageSandbox::start() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    fail(Exit::failure, "cannot make a socket for the image decoder: {}", std::strerror(errno));
  worker_ = ::fork();
  if (worker_ == 0) run_child(ends[1], decode_);
  const int error = errno;
  ::close(ends[1]);
  socket_ = ends[0];
  bool ready = false;
  const timeval wait{wait_seconds_, 0};
  ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
  ::setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
  errno = 0;
  if (worker_ > 0 && receive(socket_, &ready, sizeof ready) && ready) return true;
  const bool forked = worker_ > 0, late = forked && !ready && errno == EAGAIN;
  stop();
  if (late) return false;
  if (!forked) fail(Exit::failure, "cannot start a process for the image decoder: {}", std::strerror(error));
  fail(Exit::failure,
       "cannot confine the image decoder: this system allows no seccomp filter or no limit of resources; allow them, "
       "or decode only files that you trust");
}

int ImageSandbox::stop() {
  int status = 0;
  if (socket_ >= 0) ::close(std::exchange(socket_, -1));
  if (worker_ > 0) {
    ::kill(worker_, SIGKILL);
    while (::waitpid(worker_, &status, 0) < 0 && errno == EINTR) continue;
  }
  worker_ = -1;
  return status;
}

Image ImageSandbox::decode(std::span<const char> bytes, const std::string& name) {
  if (int64_t(bytes.size()) > kImageFileBytes) check_image_container(bytes, name);  // says so
  for (int attempt = 0; attempt < 2; ++attempt)
    if (std::optional<Image> image = decode_once(bytes, name)) return *std::move(image);
  fail(Exit::failure,
       "{}: the process that decodes images stood still for {} s, and so did a second one; the machine is stalled, or "
       "something stopped them: try again",
       escaped(name), wait_seconds_);
}

std::optional<Image> ImageSandbox::decode_once(std::span<const char> bytes, const std::string& name) {
  if (worker_ < 0 && !start()) return std::nullopt;
  allow_cpu_time(worker_);
  const uint64_t lengths[2] = {name.size(), bytes.size()};
  Reply reply;
  Image image;
  std::string error;
  bool answered = request(socket_, lengths, sizeof lengths) && request(socket_, name.data(), name.size()) &&
                  request(socket_, bytes.data(), bytes.size()) && receive(socket_, &reply, sizeof reply);
  const bool lied = answered && !is_sound(reply);
  if (answered && !lied && reply.decoded) {
    image = {reply.height, reply.width, reply.channels, std::vector<uint8_t>(reply.bytes)};
    answered = receive(socket_, image.pixels.data(), image.pixels.size());
  } else if (answered && !lied) {
    error.resize(reply.bytes);
    answered = receive(socket_, error.data(), error.size());
  }
  if (!answered || lied) {
    const bool late = !answered && errno == EAGAIN;
    const int status = stop();
    if (late) return std::nullopt;
    fail(Exit::data, "{}: the process that decodes images {}; the image is damaged or hostile: remove it",
         escaped(name), lied ? "gave an answer that cannot be" : end_of(status));
  }
  if (!reply.decoded) fail(Exit::data, "{}", escaped(error, 2 * kMessage));
  return image;
}

}  // namespace linnet
