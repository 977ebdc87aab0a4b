// The downloader against a small HTTP server on the loopback interface, which answers as each test tells it to.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <mutex>
#include <thread>

#include "linnet/dataset.h"
#include "linnet/error.h"
#include "tests/temp_dir.h"

namespace linnet {
namespace {

struct Reply {
  std::string bytes;     // status line, headers, blank line, body; then the connection is closed
  bool endless = false;  // send `bytes`, then zeros until the client hangs up (or 64 MiB)
};
using Handler = std::function<Reply(const std::string& request)>;

class Server {
 public:
  explicit Server(Handler handler)
      : handler_(std::move(handler)), listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{.sin_family = AF_INET, .sin_port = 0, .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_zero = {}};
    socklen_t size = sizeof address;
    if (bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener_, 8) != 0 ||
        getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0)
      throw std::runtime_error("cannot listen on the loopback interface");
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { serve(); });
  }
  ~Server() {
    stop_ = true;
    thread_.join();
    close(listener_);
  }
  std::string url(const std::string& path = "/file") const { return fmt::format("http://127.0.0.1:{}{}", port_, path); }
  std::vector<std::string> requests() const {
    const std::lock_guard lock(mutex_);
    return requests_;
  }

 private:
  void serve() {
    while (!stop_) {
      pollfd waiting{listener_, POLLIN, 0};
      if (poll(&waiting, 1, 20) <= 0) continue;
      const int client = accept(listener_, nullptr, nullptr);
      if (client < 0) continue;
      answer(client);
      close(client);
    }
  }
  void answer(int client) {
    const timeval patience{.tv_sec = 5, .tv_usec = 0};
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    std::string request;
    char buffer[4096];
    while (request.find("\r\n\r\n") == std::string::npos && request.size() < 65536) {
      const ssize_t n = recv(client, buffer, sizeof buffer, 0);
      if (n <= 0) return;
      request.append(buffer, size_t(n));
    }
    {
      const std::lock_guard lock(mutex_);
      requests_.push_back(request);
    }
    const Reply reply = handler_(request);
    bool open = send_all(client, reply.bytes);
    const std::string zeros(65536, '\0');
    for (int i = 0; reply.endless && open && i < 1024; ++i) open = send_all(client, zeros);
    shutdown(client, SHUT_WR);
  }
  static bool send_all(int client, const std::string& bytes) {
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t n = send(client, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      if (n <= 0) return false;
      done += size_t(n);
    }
    return true;
  }

  Handler handler_;
  int listener_, port_ = 0;
  std::atomic<bool> stop_ = false;
  mutable std::mutex mutex_;
  std::vector<std::string> requests_;
  std::thread thread_;
};

std::string sha256(const std::string& data) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  EVP_Digest(data.data(), data.size(), digest, &size, EVP_sha256(), nullptr);
  std::string hex;
  for (unsigned i = 0; i < size; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void write(const std::filesystem::path& path, const std::string& data) {
  std::ofstream(path, std::ios::binary) << data;
}

Reply whole(const std::string& body, const std::string& etag = "\"v1\"") {
  return {fmt::format("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nETag: {}\r\n\r\n{}", body.size(), etag, body)};
}
Reply rest(const std::string& body, size_t from, const std::string& etag = "\"v1\"") {
  return {fmt::format(
      "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {}-{}/{}\r\nETag: {}\r\n\r\n{}",
      body.size() - from, from, body.size() - 1, body.size(), etag, body.substr(from))};
}
Reply status(const std::string& line) { return {"HTTP/1.1 " + line + "\r\nContent-Length: 4\r\n\r\nsad\n"}; }
bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

class DownloadTest : public testing::Test {
 protected:
  DownloadTest() {
    setenv("no_proxy", "127.0.0.1", 1);
    for (int i = 0; i < 300000; ++i) body += char(uint32_t(i) * 2654435761u >> 24);
  }
  Download from(const std::vector<std::string>& urls) const {
    return {.urls = urls, .size = int64_t(body.size()), .sha256 = sha256(body), .allow_http = true};
  }
  // A download that was interrupted after `bytes`.
  void leave_part(size_t bytes, const std::string& etag = "\"v1\"") const {
    write(target.string() + ".part", body.substr(0, bytes));
    write(target.string() + ".etag", etag + "\n");
  }
  void expect_published() const {
    EXPECT_TRUE(read(target) == body);
    EXPECT_FALSE(std::filesystem::exists(target.string() + ".part"));
    EXPECT_FALSE(std::filesystem::exists(target.string() + ".etag"));
  }
  std::string expect_error(const Download& wanted, Exit exit = Exit::data) const {
    try {
      download(wanted, target, nullptr);
    } catch (const Error& error) {
      EXPECT_EQ(error.exit, exit);
      EXPECT_FALSE(std::filesystem::exists(target));
      return error.what();
    }
    ADD_FAILURE() << "expected an Error";
    return "";
  }

  TempDir dir;
  std::filesystem::path target = dir / "cache" / "file.tar.gz";
  std::string body;
};

TEST_F(DownloadTest, FetchesAWholeFileIntoANewFolder) {
  Server server([&](const std::string&) { return whole(body); });
  int64_t last = 0;
  const auto path = download(from({server.url()}), target, [&](int64_t done, int64_t total) {
    EXPECT_LE(last, done);
    EXPECT_EQ(total, int64_t(body.size()));
    last = done;
  });
  EXPECT_EQ(path, target);
  EXPECT_EQ(last, int64_t(body.size()));
  expect_published();
  EXPECT_FALSE(has(server.requests().at(0), "Range"));

  download(from({server.url()}), target, nullptr);  // is there already
  EXPECT_EQ(server.requests().size(), 1u);
  write(target, std::string(body.size(), 'x'));  // is there, but is something else
  download(from({server.url()}), target, nullptr);
  expect_published();
}

TEST_F(DownloadTest, ResumesWhereItStopped) {
  std::filesystem::create_directories(target.parent_path());
  leave_part(100000);
  Server server([&](const std::string&) { return rest(body, 100000); });
  download(from({server.url()}), target, nullptr);
  expect_published();
  ASSERT_EQ(server.requests().size(), 1u);
  EXPECT_TRUE(has(server.requests()[0], "Range: bytes=100000-\r\n"));
  EXPECT_TRUE(has(server.requests()[0], "If-Range: \"v1\"\r\n"));
}

TEST_F(DownloadTest, StartsOverWhenTheServerIgnoresTheRangeOrTheFileChanged) {
  std::filesystem::create_directories(target.parent_path());
  write(target.string() + ".part", std::string(100000, 'x'));  // of the old version
  write(target.string() + ".etag", "\"old\"\n");
  Server server([&](const std::string&) { return whole(body, "\"new\""); });
  download(from({server.url()}), target, nullptr);
  expect_published();
  EXPECT_EQ(server.requests().size(), 1u);
}

TEST_F(DownloadTest, DoesNotResumeWithoutAStrongETag) {
  std::filesystem::create_directories(target.parent_path());
  leave_part(100000, "");
  int count = 0;
  Server server([&](const std::string&) {
    Reply reply = whole(body, "W/\"weak\"");
    if (++count == 1) reply.bytes.resize(reply.bytes.size() - 1000);
    return reply;
  });
  download(from({server.url()}), target, nullptr);
  expect_published();
  ASSERT_EQ(server.requests().size(), 2u);
  for (const std::string& request : server.requests()) EXPECT_FALSE(has(request, "Range")) << request;
}

TEST_F(DownloadTest, RefusesARangeThatWasNotAskedFor) {
  std::filesystem::create_directories(target.parent_path());
  leave_part(100000);
  Server server([&](const std::string& request) { return has(request, "Range") ? rest(body, 100001) : whole(body); });
  download(from({server.url()}), target, nullptr);
  expect_published();
  EXPECT_EQ(server.requests().size(), 2u);

  std::filesystem::remove(target);
  Server unasked([&](const std::string&) { return rest(body, 0); });
  EXPECT_TRUE(has(expect_error(from({unasked.url()})), "bytes 0-299999/300000"));
}

TEST_F(DownloadTest, A416IsNoSuccess) {
  std::filesystem::create_directories(target.parent_path());
  leave_part(100000);
  Server server([&](const std::string& request) {
    return has(request, "Range") ? status("416 Range Not Satisfiable") : whole(body);
  });
  download(from({server.url()}), target, nullptr);
  expect_published();
  EXPECT_EQ(server.requests().size(), 2u);

  Server always([&](const std::string&) { return status("416 Range Not Satisfiable"); });
  std::filesystem::remove(target);
  leave_part(100000);
  EXPECT_TRUE(has(expect_error(from({always.url()})), "416"));
}

TEST_F(DownloadTest, ResumesABrokenConnectionByItself) {
  size_t sent = 0;
  Server server([&](const std::string& request) {
    Reply reply = has(request, "Range") ? rest(body, sent) : whole(body);
    if (sent == 0) {
      sent = 123457;
      reply.bytes.resize(reply.bytes.size() - body.size() + sent);
    }
    return reply;
  });
  download(from({server.url()}), target, nullptr);
  expect_published();
  ASSERT_EQ(server.requests().size(), 2u);
  EXPECT_TRUE(has(server.requests()[1], "Range: bytes=123457-\r\n"));
}

TEST_F(DownloadTest, KeepsWhatArrivedForTheNextCall) {
  std::atomic<bool> broken = true;
  Server server([&](const std::string& request) {
    Reply reply = has(request, "Range") ? rest(body, 1000) : whole(body);
    if (broken) reply.bytes.resize(has(request, "Range") ? 0 : reply.bytes.size() - body.size() + 1000);
    return reply;
  });
  EXPECT_TRUE(has(expect_error(from({server.url()})), "1000 bytes are kept in "));
  broken = false;
  download(from({server.url()}), target, nullptr);
  expect_published();
}

TEST_F(DownloadTest, DeletesAFileWithTheWrongContent) {
  std::string wrong = body;
  wrong[5] ^= 1;
  Server server([&](const std::string&) { return whole(wrong); });
  const std::string message = expect_error(from({server.url()}));
  EXPECT_TRUE(has(message, sha256(wrong)) && has(message, sha256(body)) && has(message, "deleted")) << message;
  EXPECT_FALSE(std::filesystem::exists(target.string() + ".part"));
}

TEST_F(DownloadTest, StartsOverWhenAResumedFileHasTheWrongContent) {
  std::filesystem::create_directories(target.parent_path());
  write(target.string() + ".part", std::string(100000, 'x'));
  write(target.string() + ".etag", "\"v1\"\n");
  Server server([&](const std::string& request) { return has(request, "Range") ? rest(body, 100000) : whole(body); });
  download(from({server.url()}), target, nullptr);
  expect_published();
  EXPECT_EQ(server.requests().size(), 2u);
}

TEST_F(DownloadTest, StopsAnEndlessBody) {
  Server server([&](const std::string&) { return Reply{"HTTP/1.1 200 OK\r\nETag: \"v1\"\r\n\r\n", true}; });
  const std::string message = expect_error(from({server.url()}));
  EXPECT_TRUE(has(message, "more than the expected 300000 bytes")) << message;
  EXPECT_FALSE(std::filesystem::exists(target.string() + ".part"));
}

TEST_F(DownloadTest, RefusesAFileOfAnotherSize) {
  Server shorter([&](const std::string&) { return whole(body.substr(1)); });
  Server longer([&](const std::string&) { return whole(body + "x"); });
  const std::string message = expect_error(from({shorter.url(), longer.url()}));
  EXPECT_TRUE(has(message, "the server's file has 299999 bytes, expected 300000")) << message;
}

TEST_F(DownloadTest, FollowsFiveRedirects) {
  // "/3" leads to "/2", and so on; "/0" is the file.
  Server server([&](const std::string& request) {
    const char left = request[5];
    if (left == '0') return whole(body);
    return Reply{fmt::format("HTTP/1.1 302 Found\r\nLocation: /{}\r\nETag: \"hop\"\r\n\r\n", char(left - 1))};
  });
  download(from({server.url("/5")}), target, nullptr);
  expect_published();

  std::filesystem::remove(target);
  EXPECT_TRUE(has(expect_error(from({server.url("/6")})), "redirects"));
  Server elsewhere(
      [&](const std::string&) { return Reply{"HTTP/1.1 302 Found\r\nLocation: file:///etc/hostname\r\n\r\n"}; });
  EXPECT_TRUE(has(expect_error(from({elsewhere.url()})), "not supported"));
}

TEST_F(DownloadTest, TriesEachMirrorAndNamesThemAll) {
  Server missing([&](const std::string&) { return status("404 Not Found"); });
  Server good([&](const std::string&) { return whole(body); });
  std::string closed;
  {
    Server gone([&](const std::string&) { return whole(body); });
    closed = gone.url();
  }
  const std::string message = expect_error(from({missing.url(), closed}));
  EXPECT_TRUE(has(message, missing.url() + ": ") && has(message, "404") && has(message, closed + ": ")) << message;
  EXPECT_TRUE(has(message, "LINNET_DATA") && has(message, target.string())) << message;

  download(from({missing.url(), closed, good.url()}), target, nullptr);
  expect_published();
}

TEST_F(DownloadTest, InsistsOnHttps) {
  Server server([&](const std::string&) { return whole(body); });
  Download wanted = from({server.url()});
  wanted.allow_http = false;
  EXPECT_TRUE(has(expect_error(wanted), "not supported"));
  EXPECT_TRUE(server.requests().empty());
  for (const std::string& url : cifar10_archive().urls) EXPECT_EQ(url.rfind("https://", 0), 0u) << url;
  EXPECT_EQ(cifar10_archive().sha256.size(), 64u);
  EXPECT_EQ(cifar10_archive().sha256.find_first_not_of("0123456789abcdef"), std::string::npos);
}

TEST_F(DownloadTest, ProgressMayStopIt) {
  Server server([&](const std::string&) { return whole(body); });
  EXPECT_THROW(download(from({server.url()}), target, [](int64_t, int64_t) { throw std::runtime_error("stop"); }),
               std::runtime_error);
  EXPECT_FALSE(std::filesystem::exists(target));
}

TEST_F(DownloadTest, OneProcessAtATime) {
  std::atomic<bool> tried = false;
  Server server([&](const std::string&) {
    if (!tried) expect_error(from({"http://127.0.0.1:1/"}), Exit::locked);
    tried = true;
    return whole(body);
  });
  download(from({server.url()}), target, nullptr);
  EXPECT_TRUE(tried);
  expect_published();
}

TEST_F(DownloadTest, SaysWhenTheFolderCannotBeMade) {
  write(dir / "cache", "a file");
  EXPECT_TRUE(has(expect_error(from({"http://127.0.0.1:1/"}), Exit::checkpoint), "cannot make the folder"));
}

}  // namespace
}  // namespace linnet
