// CIFAR-10's binary version, from the six batch files or straight from the .tar.gz. Everything a file can get wrong
// ends in an Error(Exit::data); nothing is written anywhere.
#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <set>

#include "linnet/dataset.h"
#include "linnet/error.h"
#include "linnet/text.h"
#include "src/core/file.h"

namespace linnet {
namespace fs = std::filesystem;
namespace {

constexpr int kClasses = 10, kSide = 32, kPlane = kSide * kSide;
constexpr int64_t kRecordBytes = 1 + 3 * kPlane;  // the label, then the red, green and blue planes
constexpr int64_t kRecords = 10000;
constexpr int64_t kBatchBytes = kRecords * kRecordBytes;
constexpr size_t kNameBytes = 1024;        // of a member of the archive
constexpr int64_t kMetaBytes = 64 * 1024;  // the most that batches.meta.txt may hold

const std::array<std::string, 6> kBatches = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                             "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"};
const std::string kMeta = "batches.meta.txt";
const std::string kFolder = "cifar-10-batches-bin";
const std::string kArchive = "cifar-10-binary.tar.gz";
const std::string kHelp =
    "run `linnet data get cifar10`, or set LINNET_DATA (or data.path) to the unpacked folder or to "
    "cifar-10-binary.tar.gz";

// The batches of a split: those in kBatches[first .. last).
struct Range {
  int first, last;
};
Range batches_of(Split split) { return split == Split::train ? Range{0, 5} : Range{5, 6}; }

// What lies at `path`, links followed; not_found where nothing does. Not being allowed to look is an error.
fs::file_type kind(const fs::path& path) {
  std::error_code error;
  const fs::file_type type = fs::status(path, error).type();
  if (type == fs::file_type::none) fail(Exit::data, "cannot look into {}: {}", path.string(), error.message());
  return type;
}
bool present(const fs::path& path) { return kind(path) != fs::file_type::not_found; }
bool is_folder(const fs::path& path) { return kind(path) == fs::file_type::directory; }

Images empty_images() {
  Images images{.height = kSide, .width = kSide, .channels = 3, .classes = kClasses};
  images.class_names = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"};
  return images;
}

// Room for all images of the split, taken only when there is a batch to decode.
void make_room(Images& images, Split split) {
  const auto [first, last] = batches_of(split);
  images.pixels.resize(size_t(last - first) * kRecords * 3 * kPlane);
  images.labels.resize(size_t(last - first) * kRecords);
}

// Decodes one whole batch into the samples from `first` on. `name` is what messages call it.
void decode_batch(const std::vector<uint8_t>& raw, const std::string& name, Images& images, int64_t first) {
  for (int64_t r = 0; r < kRecords; ++r) {
    const uint8_t* record = raw.data() + r * kRecordBytes;
    if (record[0] >= kClasses)
      fail(Exit::data, "{}: record {} (byte {}) has label {}, expected 0 to 9; the file is damaged: {}", name, r,
           r * kRecordBytes, record[0], kHelp);
    images.labels[first + r] = record[0];
    uint8_t* pixel = images.pixels.data() + (first + r) * 3 * kPlane;
    for (int p = 0; p < kPlane; ++p)
      for (int c = 0; c < 3; ++c) *pixel++ = record[1 + c * kPlane + p];
  }
}

// One class name a line, ten in all; empty lines do not count.
std::vector<std::string> parse_names(std::string_view text, const std::string& name) {
  std::vector<std::string> names(1);
  for (const char c : text) {
    if (c == '\n') {
      if (!names.back().empty()) names.emplace_back();
    } else if (c != '\r') {
      names.back() += c;
    }
  }
  if (names.back().empty()) names.pop_back();
  const bool clean = std::all_of(names.begin(), names.end(), [](const auto& s) { return escaped(s) == s; });
  if (names.size() != kClasses || !clean)
    fail(Exit::data,
         "{}: expected {} class names, one a line, in printable UTF-8; got {} lines{}; restore or remove it", name,
         kClasses, names.size(), clean ? "" : " with other bytes");
  return names;
}

Images load_folder(const fs::path& folder, Split split) {
  Images images = empty_images();
  if (present(folder / kMeta))
    images.class_names = parse_names(read_file(folder / kMeta, kMetaBytes, Exit::data), (folder / kMeta).string());
  const auto [first, last] = batches_of(split);
  std::deque<InputFile> files;  // all sizes are right before the first byte is read
  for (int b = first; b < last; ++b) {
    const InputFile& file = files.emplace_back(folder / kBatches[b], Exit::data);
    if (file.size() != uint64_t(kBatchBytes))
      fail(Exit::data, "{}: expected {} bytes, got {}; the file is damaged: {}", (folder / kBatches[b]).string(),
           kBatchBytes, file.size(), kHelp);
  }
  make_room(images, split);
  std::vector<uint8_t> batch(kBatchBytes);
  for (int b = first; b < last; ++b) {
    files[size_t(b - first)].read(0, {reinterpret_cast<char*>(batch.data()), batch.size()});
    decode_batch(batch, (folder / kBatches[b]).string(), images, (b - first) * kRecords);
  }
  return images;
}

// The bytes of a .tar.gz (or a plain .tar), unpacked piece by piece. zlib undoes the gzip, not libarchive, because
// libarchive 3.6 does not compare the checksum at the end of a gzip stream.
class GzipStream {
 public:
  explicit GzipStream(const fs::path& path) : buffer_(1 << 16) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) fail(Exit::data, "cannot open {}: {}", path.string(), std::strerror(errno));
    struct stat info;
    const bool regular = ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
    gz_ = regular ? gzdopen(fd, "rb") : nullptr;
    if (!gz_) {
      ::close(fd);
      fail(Exit::data, "{}: expected a regular file; {}", path.string(), kHelp);
    }
    gzbuffer(gz_, 1 << 16);
  }
  ~GzipStream() { gzclose(gz_); }
  GzipStream(const GzipStream&) = delete;
  GzipStream& operator=(const GzipStream&) = delete;

  // The next piece; 0 bytes at the sound end of the stream, -1 with `error()` set otherwise.
  la_ssize_t next(const void** out) {
    *out = buffer_.data();
    const int n = gzread(gz_, buffer_.data(), unsigned(buffer_.size()));
    int code = Z_OK;
    const char* text = gzerror(gz_, &code);
    if (n < 0 || (n == 0 && code != Z_OK)) {
      error_ = code == Z_ERRNO ? std::strerror(errno) : text;
      return -1;
    }
    total_ += n;
    if (total_ > kLimit) {
      error_ = fmt::format("more than {} bytes when unpacked", kLimit);
      return -1;
    }
    return n;
  }
  const std::string& error() const { return error_; }

 private:
  static constexpr int64_t kLimit = 6 * kBatchBytes + (1 << 20);
  gzFile gz_ = nullptr;
  std::vector<char> buffer_;
  int64_t total_ = 0;
  std::string error_;
};

la_ssize_t read_gzip(archive* tar, void* stream, const void** out) {
  auto* gzip = static_cast<GzipStream*>(stream);
  const la_ssize_t n = gzip->next(out);
  if (n < 0) archive_set_error(tar, EIO, "%s", gzip->error().c_str());
  return n;
}

[[noreturn]] void fail_python(const fs::path& path) {
  fail(Exit::data,
       "{} is the Python version of CIFAR-10, whose pickle files Linnet does not read (unpickling can run code); take "
       "the "
       "binary version, {}: {}",
       path.string(), kArchive, kHelp);
}

// Walks the whole archive, so that a damaged one is never half accepted, and keeps the members that `split` needs.
// Members of other names are passed over; nothing is ever written to the file system.
Images load_archive(const fs::path& path, Split split) {
  GzipStream gzip(path);
  const std::unique_ptr<archive, int (*)(archive*)> tar(archive_read_new(), archive_read_free);
  const auto damaged = [&](const char* why) {
    const std::string reason = !gzip.error().empty() ? gzip.error() : why ? why : "unknown error";
    fail(Exit::data, "{}: not a whole .tar.gz archive ({}); {}", path.string(), escaped(reason), kHelp);
  };
  archive_read_support_format_tar(tar.get());
  if (archive_read_open(tar.get(), &gzip, nullptr, read_gzip, nullptr) != ARCHIVE_OK)
    damaged(archive_error_string(tar.get()));

  Images images = empty_images();
  const auto [first, last] = batches_of(split);
  std::set<std::string> seen;
  for (;;) {
    archive_entry* entry = nullptr;
    const int code = archive_read_next_header(tar.get(), &entry);
    if (code == ARCHIVE_EOF) break;
    if (code < ARCHIVE_WARN) damaged(archive_error_string(tar.get()));

    const char* pathname = archive_entry_pathname(entry);
    const std::string name = pathname ? pathname : "";
    const std::string label = path.string() + ": member " + escaped(name);
    const bool file = archive_entry_filetype(entry) == AE_IFREG && !archive_entry_hardlink(entry);
    if (!file && archive_entry_filetype(entry) != AE_IFDIR)
      fail(Exit::data, "{} is neither a file nor a folder; this is not the official archive: {}", label, kHelp);
    if (name.empty() || name[0] == '/' || name.find("..") != std::string::npos)
      fail(Exit::data, "{} has a path that leaves the archive; this is not the official archive: {}", label, kHelp);
    if (name.size() > kNameBytes)
      fail(Exit::data, "{} has a path of {} bytes, expected at most {}; this is not the official archive: {}", label,
           name.size(), kNameBytes, kHelp);
    if (file && (archive_entry_perm(entry) & 07000))
      fail(Exit::data, "{} is marked setuid, setgid or sticky; this is not the official archive: {}", label, kHelp);
    if (!seen.insert(name).second)
      fail(Exit::data, "{} occurs twice; this is not the official archive: {}", label, kHelp);
    if (name.rfind("cifar-10-batches-py/", 0) == 0) fail_python(path);

    const auto batch = std::find_if(kBatches.begin(), kBatches.end(),
                                    [&](const auto& expected) { return name == kFolder + "/" + expected; });
    const bool is_meta = name == kFolder + "/" + kMeta;
    if (batch == kBatches.end() && !is_meta) continue;
    const int64_t bytes = archive_entry_size(entry);
    if (!file || (is_meta ? bytes < 0 || bytes > kMetaBytes : bytes != kBatchBytes))
      fail(Exit::data, "{}: expected a file of {}{} bytes, got {} bytes; this is not the official archive: {}", label,
           is_meta ? "at most " : "", is_meta ? kMetaBytes : kBatchBytes, bytes, kHelp);
    const int index = int(batch - kBatches.begin());
    if (!is_meta && (index < first || index >= last)) continue;

    // A header may promise more than comes: the room grows with what has come.
    std::vector<uint8_t> data;
    for (size_t done = 0; done < size_t(bytes);) {
      if (done == data.size()) data.resize(std::min(size_t(bytes), std::max<size_t>(1 << 16, 2 * done)));
      const la_ssize_t n = archive_read_data(tar.get(), data.data() + done, data.size() - done);
      if (n <= 0) damaged(n < 0 ? archive_error_string(tar.get()) : "a member ends early");
      done += size_t(n);
    }
    if (is_meta) {
      images.class_names = parse_names({reinterpret_cast<const char*>(data.data()), data.size()}, label);
    } else {
      if (images.labels.empty()) make_room(images, split);
      decode_batch(data, label, images, (index - first) * kRecords);
    }
  }

  // The checksum comes last, behind the archive's own end.
  const void* rest;
  la_ssize_t n;
  while ((n = gzip.next(&rest)) > 0) continue;
  if (n < 0) damaged(nullptr);

  std::string missing;
  for (const std::string& name : kBatches)
    if (!seen.count(kFolder + "/" + name)) missing += (missing.empty() ? "" : ", ") + name;
  if (!missing.empty())
    fail(Exit::data, "{}: expected {}/ with six batches, missing {}; this is not the official archive: {}",
         path.string(), kFolder, missing, kHelp);
  return images;
}

// The folder with the batches or the archive that `path` stands for; empty where there is no trace of CIFAR-10.
fs::path locate(const fs::path& path) {
  if (!present(path)) return {};
  if (!is_folder(path)) {
    if (path.filename() == "cifar-10-python.tar.gz") fail_python(path);
    return path;
  }
  for (const std::string& batch : kBatches)
    if (present(path / batch)) return path;
  if (is_folder(path / kFolder)) return path / kFolder;
  if (present(path / kArchive)) return path / kArchive;
  for (const char* python : {"data_batch_1", "cifar-10-batches-py", "cifar-10-python.tar.gz"})
    if (present(path / python)) fail_python(path / python);
  return {};
}

// locate() for a path that somebody named: it must hold CIFAR-10.
fs::path locate_named(const fs::path& path, const std::string& origin) {
  if (!present(path)) fail(Exit::data, "{}{}: no such file or folder; {}", origin, path.string(), kHelp);
  const fs::path found = locate(path);
  if (found.empty())
    fail(Exit::data,
         "{}{}: no CIFAR-10 there; expected data_batch_1.bin to data_batch_5.bin and test_batch.bin, a folder {}/ with "
         "them, or {}; {}",
         origin, path.string(), kFolder, kArchive, kHelp);
  return found;
}

void require_batches(const fs::path& folder, Range range) {
  std::string missing;
  for (int b = range.first; b < range.last; ++b)
    if (!present(folder / kBatches[b])) missing += (missing.empty() ? "" : ", ") + kBatches[b];
  if (!missing.empty()) fail(Exit::data, "{}: missing {}; {}", folder.string(), missing, kHelp);
}

}  // namespace

Images load_cifar10(const fs::path& path, Split split) {
  const fs::path found = locate_named(path, "");
  if (!is_folder(found)) return load_archive(found, split);
  require_batches(found, batches_of(split));
  return load_folder(found, split);
}

fs::path cache_dir() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache && fs::path(cache).is_absolute()) return fs::path(cache) / "linnet";  // the standard: ignore a relative one
  const char* home = std::getenv("HOME");
  if (home && fs::path(home).is_absolute()) return fs::path(home) / ".cache" / "linnet";
  return {};
}

fs::path find_cifar10(const fs::path& configured) {
  const char* variable = std::getenv("LINNET_DATA");
  fs::path found;
  if (!configured.empty()) {
    found = locate_named(configured, "data.path = ");
  } else if (variable && *variable) {
    found = locate_named(variable, "LINNET_DATA = ");
  } else if (!cache_dir().empty()) {
    found = locate(cache_dir());
  }
  if (!found.empty() && is_folder(found)) require_batches(found, {0, 6});
  return found;
}

}  // namespace linnet
