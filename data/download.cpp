// One file over HTTPS: resumed where it stopped, checked by size and SHA-256, published by a rename. A server's word is
// never enough: what counts as done is the checksum alone.
#include <curl/curl.h>
#include <fcntl.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>
#include <memory>

#include "linnet/dataset.h"
#include "linnet/error.h"
#include "linnet/text.h"
#include "src/core/digest.h"
#include "src/core/file.h"

namespace linnet {
namespace fs = std::filesystem;
namespace {

using Progress = std::function<void(int64_t, int64_t)>;
constexpr int kAttempts = 5;  // at one URL, each of which must have brought something new

[[noreturn]] void fail_disk(const char* what, const fs::path& path) {
  fail(Exit::checkpoint, "cannot {} {}: {}", what, path.string(), std::strerror(errno));
}

std::string sha256_of(int fd, const fs::path& path) {
  Sha256 digest;
  std::vector<char> buffer(1 << 20);
  for (off_t done = 0;;) {
    const ssize_t n = uninterrupted([&] { return ::pread(fd, buffer.data(), buffer.size(), done); });
    if (n < 0) fail_disk("read", path);
    if (n == 0) return digest.finish();
    digest.update({buffer.data(), size_t(n)});
    done += n;
  }
}

int64_t file_size(int fd, const fs::path& path) {
  struct stat info;
  if (::fstat(fd, &info) != 0) fail_disk("examine", path);
  if (!S_ISREG(info.st_mode)) fail(Exit::data, "{}: expected a regular file; move it away", path.string());
  return info.st_size;
}

// TARGET.part and, beside it, the ETag of the remote file that its bytes came from. The descriptor holds a lock, so
// that two processes never write into one another's file.
class Part {
 public:
  explicit Part(const fs::path& target)
      : path_(target.string() + ".part"),
        etag_path_(target.string() + ".etag"),
        fd_(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644)) {
    if (fd_.get() < 0) fail_disk("open", path_);
    // Whoever held the lock until now may have published or removed the file that was opened.
    struct stat opened, named;
    if (::flock(fd_.get(), LOCK_EX | LOCK_NB) != 0 || ::fstat(fd_.get(), &opened) != 0 ||
        ::lstat(path_.c_str(), &named) != 0 || opened.st_ino != named.st_ino)
      fail(Exit::locked, "{} is being downloaded by another process; wait for it", target.string());
    size_ = file_size(fd_.get(), path_);
  }
  int64_t size() const { return size_; }
  const fs::path& path() const { return path_; }
  std::string digest() const { return sha256_of(fd_.get(), path_); }

  // The ETag to resume with; empty if it is not known.
  std::string etag() const {
    std::string line;
    std::ifstream file(etag_path_);
    std::getline(file, line);
    return line;
  }

  void append(const char* data, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
      const ssize_t n = ::pwrite(fd_.get(), data + done, bytes - done, off_t(size_));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail_disk("write", path_);
      done += size_t(n);
      size_ += n;
    }
  }
  // Empties the file; from here on it holds bytes of the remote file with this ETag.
  void restart(const std::string& etag) {
    if (::ftruncate(fd_.get(), 0) != 0) fail_disk("empty", path_);
    size_ = 0;
    if (std::ofstream file(etag_path_, std::ios::trunc); !(file << etag << '\n' << std::flush))
      fail_disk("write", etag_path_);
  }
  void publish(const fs::path& target) {
    if (::fsync(fd_.get()) != 0) fail_disk("save", path_);
    if (::rename(path_.c_str(), target.c_str()) != 0) fail_disk("publish", target);
    const fs::path folder = target.has_parent_path() ? target.parent_path() : ".";
    const Fd parent(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (parent.get() < 0 || ::fsync(parent.get()) != 0) fail_disk("save", folder);
    ::unlink(etag_path_.c_str());
  }
  void remove() {
    ::unlink(path_.c_str());
    ::unlink(etag_path_.c_str());
  }

 private:
  fs::path path_, etag_path_;
  Fd fd_;
  int64_t size_ = 0;
};

// One request and what its callbacks, which libcurl runs, need to know.
struct Transfer {
  const Download& wanted;
  Part& part;
  const Progress& progress;
  CURL* curl;
  bool resume;                         // the rest was asked for, not the whole
  std::string etag, content_range;     // of the reply under way
  bool begun = false;                  // the reply's first body byte has been looked at
  std::string refused;                 // why the reply was turned down
  bool useless = false;                // the part is not a piece of what this server has
  std::exception_ptr error = nullptr;  // thrown in a callback; C code must not be unwound
};

// Bytes may be appended if the reply is exactly the missing rest (206) or the whole file (200, which starts over).
bool accept_reply(Transfer& t) {
  long status = 0;
  curl_off_t length = -1;
  curl_easy_getinfo(t.curl, CURLINFO_RESPONSE_CODE, &status);
  curl_easy_getinfo(t.curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
  if (status == 206) {
    const std::string expected = fmt::format("bytes {}-{}/{}", t.part.size(), t.wanted.size - 1, t.wanted.size);
    if (t.resume && t.content_range == expected) return true;
    t.refused = fmt::format("asked for '{}', got '{}'", expected, escaped(t.content_range));
    t.useless = true;
  } else if (status != 200) {
    t.refused = fmt::format("HTTP status {}, expected 200 or 206", status);
  } else if (length >= 0 && length != t.wanted.size) {
    t.refused = fmt::format("the server's file has {} bytes, expected {}", length, t.wanted.size);
  } else {
    t.part.restart(t.etag);
    return true;
  }
  return false;
}

size_t on_body(char* data, size_t, size_t bytes, void* user) {
  Transfer& t = *static_cast<Transfer*>(user);
  try {
    if (!t.begun && !accept_reply(t)) return 0;
    t.begun = true;
    if (int64_t(bytes) > t.wanted.size - t.part.size()) {
      t.refused = fmt::format("the server sends more than the expected {} bytes", t.wanted.size);
      t.useless = true;
      return 0;
    }
    t.part.append(data, bytes);
    return bytes;
  } catch (...) {
    t.error = std::current_exception();
    return 0;
  }
}

// The value of a header line, if it is the header `name`.
bool header_value(std::string_view line, std::string_view name, std::string& value) {
  if (line.size() <= name.size() || line[name.size()] != ':' || strncasecmp(line.data(), name.data(), name.size()) != 0)
    return false;
  const size_t first = line.find_first_not_of(" \t", name.size() + 1), last = line.find_last_not_of(" \t\r\n");
  value = first == std::string_view::npos || first > last ? "" : std::string(line.substr(first, last - first + 1));
  return true;
}

size_t on_header(char* data, size_t, size_t bytes, void* user) {
  Transfer& t = *static_cast<Transfer*>(user);
  try {
    const std::string_view line(data, bytes);
    if (line.rfind("HTTP/", 0) == 0) t.etag = t.content_range = "";  // another reply begins, after a redirect
    header_value(line, "Content-Range", t.content_range);
    // Only a strong ETag (RFC 9110) says that the bytes are the same; If-Range must not carry a weak one.
    if (header_value(line, "ETag", t.etag) && (t.etag[0] != '"' || escaped(t.etag) != t.etag)) t.etag = "";
    return bytes;
  } catch (...) {
    t.error = std::current_exception();
    return 0;
  }
}

int on_progress(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  Transfer& t = *static_cast<Transfer*>(user);
  try {
    if (t.progress) t.progress(t.part.size(), t.wanted.size);
    return 0;
  } catch (...) {
    t.error = std::current_exception();
    return 1;
  }
}

// One request to one URL. Returns why the file is not complete; an empty text if the part now has the right size.
std::string fetch(const std::string& url, const Download& wanted, Part& part, const Progress& progress) {
  const std::unique_ptr<CURL, void (*)(CURL*)> curl(curl_easy_init(), curl_easy_cleanup);
  require(curl != nullptr, "libcurl could not be started");

  // Without an ETag nothing says that the remote file is still the same: start over.
  const std::string etag = part.etag();
  const bool resume = part.size() > 0 && !etag.empty();
  Transfer t{wanted, part, progress, curl.get(), resume};
  const std::string range = std::to_string(part.size()) + "-";
  std::unique_ptr<curl_slist, void (*)(curl_slist*)> headers(nullptr, curl_slist_free_all);
  if (resume) {
    headers.reset(curl_slist_append(nullptr, ("If-Range: " + etag).c_str()));
    curl_easy_setopt(curl.get(), CURLOPT_HTTPHEADER, headers.get());
    // Not CURLOPT_RESUME_FROM: that takes a 416 for success and a 200 for an error.
    curl_easy_setopt(curl.get(), CURLOPT_RANGE, range.c_str());
  }

  const char* protocols = wanted.allow_http ? "http,https" : "https";
  char reason[CURL_ERROR_SIZE] = "";
  curl_easy_setopt(curl.get(), CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_PROTOCOLS_STR, protocols);
  curl_easy_setopt(curl.get(), CURLOPT_REDIR_PROTOCOLS_STR, protocols);
  curl_easy_setopt(curl.get(), CURLOPT_FOLLOWLOCATION, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_MAXREDIRS, 5L);
  curl_easy_setopt(curl.get(), CURLOPT_SSL_VERIFYPEER, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_SSL_VERIFYHOST, 2L);
  curl_easy_setopt(curl.get(), CURLOPT_MAXFILESIZE_LARGE, curl_off_t(wanted.size));
  curl_easy_setopt(curl.get(), CURLOPT_CONNECTTIMEOUT, 20L);
  curl_easy_setopt(curl.get(), CURLOPT_LOW_SPEED_LIMIT, 1000L);  // bytes a second,
  curl_easy_setopt(curl.get(), CURLOPT_LOW_SPEED_TIME, 30L);     // for 30 seconds: stalled
  curl_easy_setopt(curl.get(), CURLOPT_FAILONERROR, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_USERAGENT, "linnet");
  curl_easy_setopt(curl.get(), CURLOPT_ERRORBUFFER, reason);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, on_body);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &t);
  curl_easy_setopt(curl.get(), CURLOPT_HEADERFUNCTION, on_header);
  curl_easy_setopt(curl.get(), CURLOPT_HEADERDATA, &t);
  curl_easy_setopt(curl.get(), CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl.get(), CURLOPT_XFERINFOFUNCTION, on_progress);
  curl_easy_setopt(curl.get(), CURLOPT_XFERINFODATA, &t);

  const CURLcode code = curl_easy_perform(curl.get());
  if (t.error) std::rethrow_exception(t.error);
  long status = 0;
  curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &status);
  if (t.useless || (resume && status == 416)) part.restart("");
  if (!t.refused.empty()) return t.refused;
  if (code != CURLE_OK) return escaped(*reason ? reason : curl_easy_strerror(code));
  if (part.size() != wanted.size) return fmt::format("ended after {} of {} bytes", part.size(), wanted.size);
  return "";
}

// Whether the whole file is in the part. If not, `reason` says why, and a part with the wrong content is gone.
bool complete(const Download& wanted, Part& part, std::string& reason) {
  if (part.size() != wanted.size) return false;
  const std::string digest = part.digest();
  if (digest == wanted.sha256) return true;
  reason = fmt::format("SHA-256 is {}, expected {}; deleted what had arrived", digest, wanted.sha256);
  part.restart("");
  return false;
}

// Several tries at one URL, as long as a try makes headway or makes room for a fresh start.
bool fetch_from(const std::string& url, const Download& wanted, Part& part, const Progress& progress,
                std::string& reason) {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const int64_t before = part.size();
    reason = fetch(url, wanted, part, progress);
    if (complete(wanted, part, reason)) return true;
    const bool headway = part.size() > before, emptied = before > 0 && part.size() == 0;
    if (!headway && !emptied) return false;
  }
  return false;
}

// Whether `target` is there already, whole and sound.
bool fetched_before(const Download& wanted, const fs::path& target) {
  const Fd fd(::open(target.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) return false;
  return file_size(fd.get(), target) == wanted.size && sha256_of(fd.get(), target) == wanted.sha256;
}

}  // namespace

Download cifar10_archive() {
  return {
      .urls = {"https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
               // The mirror that MindSpore's tutorials name.
               "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz"},
      .size = 170052171,
      .sha256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"};
}

Download cifar100_archive() {
  return {.urls = {"https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"},
          .size = 168513733,
          .sha256 = "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"};
}

fs::path download(const Download& wanted, const fs::path& target, const Progress& progress) {
  static const CURLcode started = curl_global_init(CURL_GLOBAL_DEFAULT);
  require(started == CURLE_OK, "libcurl could not be started: {}", curl_easy_strerror(started));
  require(!wanted.urls.empty() && wanted.size > 0 && wanted.sha256.size() == 64,
          "[download] expected at least one URL, a size and a SHA-256 in hexadecimal");

  if (fetched_before(wanted, target)) return target;
  std::error_code error;
  if (target.has_parent_path()) fs::create_directories(target.parent_path(), error);
  if (error) fail(Exit::checkpoint, "cannot make the folder {}: {}", target.parent_path().string(), error.message());

  Part part(target);
  if (part.size() > wanted.size) part.restart("");
  std::string reasons, reason;
  bool whole = complete(wanted, part, reason);
  for (size_t i = 0; i < wanted.urls.size() && !whole; ++i) {
    whole = fetch_from(wanted.urls[i], wanted, part, progress, reason);
    reasons += fmt::format("  {}: {}\n", wanted.urls[i], reason);
  }
  if (whole) {
    part.publish(target);
    return target;
  }
  std::string kept;
  if (part.size() > 0) {
    kept = fmt::format("{} bytes are kept in {}; the next try goes on from there. ", part.size(), part.path().string());
  } else {
    part.remove();
  }
  fail(Exit::data,
       "cannot download {}:\n{}{}Or fetch the file by hand, on any machine, and put it at {}; for CIFAR-10, "
       "LINNET_DATA may "
       "also point to it or to the folder unpacked from it.",
       target.filename().string(), reasons, kept, target.string());
}

}  // namespace linnet
