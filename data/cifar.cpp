// The binary versions of CIFAR-10 and CIFAR-100, from their files or straight from the .tar.gz. Everything a file can
// get wrong ends in an Error(Exit::data); nothing is written anywhere.
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
#include <utility>

#include "linnet/dataset.h"
#include "linnet/error.h"
#include "linnet/text.h"
#include "src/core/file.h"

namespace linnet {
namespace fs = std::filesystem;
namespace {

constexpr int kSide = 32, kPlane = kSide * kSide;
constexpr size_t kNameBytes = 1024;        // of a member of the archive
constexpr int64_t kMetaBytes = 64 * 1024;  // the most that a file of class names may hold

// A data set as its binary version has it. A record is its labels, a byte each, then the red, green and blue planes.
struct Cifar {
  std::string title, name;  // "CIFAR-10", "cifar10"
  int classes;
  int64_t labels, label;  // how many labels a record has, and which of them is read
  struct File {
    std::string name;
    int64_t records;
  };
  std::vector<File> files;  // the last one is the test split
  std::string names;        // the file of class names
  std::string folder, archive, python;
  std::vector<std::string> default_names;  // empty: the class names' file must be there

  int64_t record_bytes() const { return labels + 3 * kPlane; }
  int64_t bytes(const File& f) const { return f.records * record_bytes(); }
  int64_t all_bytes() const {
    int64_t sum = 0;
    for (const File& f : files) sum += bytes(f);
    return sum;
  }
  std::string help() const {
    return fmt::format("run `linnet data get {}`, or set LINNET_DATA (or data.path) to the unpacked folder or to {}",
                       name, archive);
  }
};

const Cifar& cifar10() {
  static const Cifar set = {"CIFAR-10",
                            "cifar10",
                            10,
                            1,
                            0,
                            {{"data_batch_1.bin", 10000},
                             {"data_batch_2.bin", 10000},
                             {"data_batch_3.bin", 10000},
                             {"data_batch_4.bin", 10000},
                             {"data_batch_5.bin", 10000},
                             {"test_batch.bin", 10000}},
                            "batches.meta.txt",
                            "cifar-10-batches-bin",
                            "cifar-10-binary.tar.gz",
                            "cifar-10-python.tar.gz",
                            {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}};
  return set;
}

const Cifar& cifar100(bool coarse) {
  const auto make = [](int classes, int64_t label, const std::string& names) {
    return Cifar{"CIFAR-100",
                 "cifar100",
                 classes,
                 2,
                 label,
                 {{"train.bin", 50000}, {"test.bin", 10000}},
                 names,
                 "cifar-100-binary",
                 "cifar-100-binary.tar.gz",
                 "cifar-100-python.tar.gz",
                 {}};
  };
  static const Cifar fine_labels = make(100, 1, "fine_label_names.txt"),
                     coarse_labels = make(20, 0, "coarse_label_names.txt");
  return coarse ? coarse_labels : fine_labels;
}

// The files of a split: those in Cifar::files[first .. last).
struct Range {
  size_t first, last;
};
Range files_of(const Cifar& set, Split split) {
  const size_t test = set.files.size() - 1;
  return split == Split::train ? Range{0, test} : Range{test, test + 1};
}

// What lies at `path`, links followed; not_found where nothing does. Not being allowed to look is an error.
fs::file_type kind(const fs::path& path) {
  std::error_code error;
  const fs::file_type type = fs::status(path, error).type();
  if (type == fs::file_type::none) fail(Exit::data, "cannot look into {}: {}", path.string(), error.message());
  return type;
}
bool present(const fs::path& path) { return kind(path) != fs::file_type::not_found; }
bool is_folder(const fs::path& path) { return kind(path) == fs::file_type::directory; }

Images empty_images(const Cifar& set) {
  Images images{.height = kSide, .width = kSide, .channels = 3, .classes = set.classes};
  images.class_names = set.default_names;
  return images;
}

// Room for all images of the split, taken only when there is a file to decode.
void make_room(const Cifar& set, Images& images, Split split) {
  int64_t records = 0;
  for (auto [i, last] = files_of(set, split); i < last; ++i) records += set.files[i].records;
  images.pixels.resize(size_t(records * 3 * kPlane));
  images.labels.resize(size_t(records));
}

// Decodes one whole file into the samples from `first` on. `name` is what messages call it.
void decode_file(const Cifar& set, const std::vector<uint8_t>& raw, const std::string& name, Images& images,
                 int64_t first) {
  const int64_t bytes = set.record_bytes();
  for (int64_t r = 0; r < int64_t(raw.size()) / bytes; ++r) {
    const uint8_t* record = raw.data() + r * bytes;
    const int label = record[set.label];
    if (label >= set.classes)
      fail(Exit::data, "{}: record {} (byte {}) has label {}, expected 0 to {}; the file is damaged: {}", name, r,
           r * bytes + set.label, label, set.classes - 1, set.help());
    images.labels[size_t(first + r)] = label;
    uint8_t* pixel = images.pixels.data() + (first + r) * 3 * kPlane;
    for (int p = 0; p < kPlane; ++p)
      for (int c = 0; c < 3; ++c) *pixel++ = record[set.labels + c * kPlane + p];
  }
}

// One class name a line; empty lines do not count.
std::vector<std::string> parse_names(const Cifar& set, std::string_view text, const std::string& name) {
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
  if (names.size() != size_t(set.classes) || !clean)
    fail(Exit::data,
         "{}: expected {} class names, one a line, in printable UTF-8; got {} lines{}; restore or remove it", name,
         set.classes, names.size(), clean ? "" : " with other bytes");
  return names;
}

Images load_folder(const Cifar& set, const fs::path& folder, Split split) {
  Images images = empty_images(set);
  if (present(folder / set.names) || images.class_names.empty())
    images.class_names =
        parse_names(set, read_file(folder / set.names, kMetaBytes, Exit::data), (folder / set.names).string());
  const auto [first, last] = files_of(set, split);
  std::deque<InputFile> files;  // all sizes are right before the first byte is read
  for (size_t f = first; f < last; ++f) {
    const fs::path path = folder / set.files[f].name;
    const InputFile& file = files.emplace_back(path, Exit::data);
    if (file.size() != uint64_t(set.bytes(set.files[f])))
      fail(Exit::data, "{}: expected {} bytes, got {}; the file is damaged: {}", path.string(), set.bytes(set.files[f]),
           file.size(), set.help());
  }
  make_room(set, images, split);
  int64_t done = 0;
  for (size_t f = first; f < last; ++f) {
    std::vector<uint8_t> raw(size_t(set.bytes(set.files[f])));
    files[f - first].read(0, {reinterpret_cast<char*>(raw.data()), raw.size()});
    decode_file(set, raw, (folder / set.files[f].name).string(), images, done);
    done += set.files[f].records;
  }
  return images;
}

// The bytes of a .tar.gz (or a plain .tar), unpacked piece by piece. zlib undoes the gzip, not libarchive, because
// libarchive 3.6 does not compare the checksum at the end of a gzip stream.
class GzipStream {
 public:
  GzipStream(const fs::path& path, int64_t limit, const std::string& help) : limit_(limit), buffer_(1 << 16) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) fail(Exit::data, "cannot open {}: {}", path.string(), std::strerror(errno));
    struct stat info;
    const bool regular = ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
    gz_ = regular ? gzdopen(fd, "rb") : nullptr;
    if (!gz_) {
      ::close(fd);
      fail(Exit::data, "{}: expected a regular file; {}", path.string(), help);
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
    if (total_ > limit_) {
      error_ = fmt::format("more than {} bytes when unpacked", limit_);
      return -1;
    }
    return n;
  }
  const std::string& error() const { return error_; }

 private:
  int64_t limit_;
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

[[noreturn]] void fail_python(const Cifar& set, const fs::path& path) {
  fail(Exit::data,
       "{} is the Python version of {}, whose pickle files Linnet does not read (unpickling can run code); take "
       "the "
       "binary version, {}: {}",
       path.string(), set.title, set.archive, set.help());
}

// Walks the whole archive, so that a damaged one is never half accepted, and keeps the members that `split` needs.
// Members of other names are passed over; nothing is ever written to the file system.
Images load_archive(const Cifar& set, const fs::path& path, Split split) {
  GzipStream gzip(path, set.all_bytes() + (1 << 20), set.help());
  const std::string help = set.help();
  const std::unique_ptr<archive, int (*)(archive*)> tar(archive_read_new(), archive_read_free);
  const auto damaged = [&](const char* why) {
    const std::string reason = !gzip.error().empty() ? gzip.error() : why ? why : "unknown error";
    fail(Exit::data, "{}: not a whole .tar.gz archive ({}); {}", path.string(), escaped(reason), help);
  };
  archive_read_support_format_tar(tar.get());
  if (archive_read_open(tar.get(), &gzip, nullptr, read_gzip, nullptr) != ARCHIVE_OK)
    damaged(archive_error_string(tar.get()));

  Images images = empty_images(set);
  const auto [first, last] = files_of(set, split);
  std::vector<int64_t> starts;  // the first sample of each file of the split
  int64_t records = 0;
  for (size_t f = first; f < last; ++f) starts.push_back(std::exchange(records, records + set.files[f].records));
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
      fail(Exit::data, "{} is neither a file nor a folder; this is not the official archive: {}", label, help);
    if (name.empty() || name[0] == '/' || name.find("..") != std::string::npos)
      fail(Exit::data, "{} has a path that leaves the archive; this is not the official archive: {}", label, help);
    if (name.size() > kNameBytes)
      fail(Exit::data, "{} has a path of {} bytes, expected at most {}; this is not the official archive: {}", label,
           name.size(), kNameBytes, help);
    if (file && (archive_entry_perm(entry) & 07000))
      fail(Exit::data, "{} is marked setuid, setgid or sticky; this is not the official archive: {}", label, help);
    if (!seen.insert(name).second)
      fail(Exit::data, "{} occurs twice; this is not the official archive: {}", label, help);
    if (name.starts_with("cifar-10-batches-py/") || name.starts_with("cifar-100-python/")) fail_python(set, path);

    const auto member = std::ranges::find_if(
        set.files, [&](const Cifar::File& expected) { return name == set.folder + "/" + expected.name; });
    const bool is_meta = name == set.folder + "/" + set.names;
    if (member == set.files.end() && !is_meta) continue;
    const int64_t bytes = archive_entry_size(entry), expected = is_meta ? kMetaBytes : set.bytes(*member);
    if (!file || (is_meta ? bytes < 0 || bytes > kMetaBytes : bytes != expected))
      fail(Exit::data, "{}: expected a file of {}{} bytes, got {} bytes; this is not the official archive: {}", label,
           is_meta ? "at most " : "", expected, bytes, help);
    const auto index = size_t(member - set.files.begin());
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
      images.class_names = parse_names(set, {reinterpret_cast<const char*>(data.data()), data.size()}, label);
    } else {
      if (images.labels.empty()) make_room(set, images, split);
      decode_file(set, data, label, images, starts[index - first]);
    }
  }

  // The checksum comes last, behind the archive's own end.
  const void* rest;
  la_ssize_t n;
  while ((n = gzip.next(&rest)) > 0) continue;
  if (n < 0) damaged(nullptr);

  std::string missing;
  for (const Cifar::File& f : set.files)
    if (!seen.count(set.folder + "/" + f.name)) missing += (missing.empty() ? "" : ", ") + f.name;
  if (images.class_names.empty()) missing += (missing.empty() ? "" : ", ") + set.names;
  if (!missing.empty())
    fail(Exit::data, "{}: expected {}/ with {} files of images, missing {}; this is not the official archive: {}",
         path.string(), set.folder, set.files.size(), missing, help);
  return images;
}

// The folder with the files or the archive that `path` stands for; empty where there is no trace of the data set.
fs::path locate(const Cifar& set, const fs::path& path) {
  if (!present(path)) return {};
  if (!is_folder(path)) {
    if (path.filename() == set.python) fail_python(set, path);
    return path;
  }
  for (const Cifar::File& f : set.files)
    if (present(path / f.name)) return path;
  if (is_folder(path / set.folder)) return path / set.folder;
  if (present(path / set.archive)) return path / set.archive;
  std::vector<std::string> python = {set.python};
  if (&set == &cifar10()) python = {"data_batch_1", "cifar-10-batches-py", set.python};
  for (const std::string& name : python)
    if (present(path / name)) fail_python(set, path / name);
  return {};
}

// locate() for a path that somebody named: it must hold the data set.
fs::path locate_named(const Cifar& set, const fs::path& path, const std::string& origin) {
  if (!present(path)) fail(Exit::data, "{}{}: no such file or folder; {}", origin, path.string(), set.help());
  const fs::path found = locate(set, path);
  if (found.empty())
    fail(Exit::data, "{}{}: no {} there; expected {} to {}, a folder {}/ with them, or {}; {}", origin, path.string(),
         set.title, set.files.front().name, set.files.back().name, set.folder, set.archive, set.help());
  return found;
}

void require_files(const Cifar& set, const fs::path& folder, Range range) {
  std::string missing;
  for (size_t f = range.first; f < range.last; ++f)
    if (!present(folder / set.files[f].name)) missing += (missing.empty() ? "" : ", ") + set.files[f].name;
  if (!missing.empty()) fail(Exit::data, "{}: missing {}; {}", folder.string(), missing, set.help());
}

Images load(const Cifar& set, const fs::path& path, Split split) {
  const fs::path found = locate_named(set, path, "");
  if (!is_folder(found)) return load_archive(set, found, split);
  require_files(set, found, files_of(set, split));
  return load_folder(set, found, split);
}

fs::path find(const Cifar& set, const fs::path& configured) {
  const char* variable = std::getenv("LINNET_DATA");
  fs::path found;
  if (!configured.empty()) {
    found = locate_named(set, configured, "data.path = ");
  } else if (variable && *variable) {
    found = locate_named(set, variable, "LINNET_DATA = ");
  } else if (!cache_dir().empty()) {
    found = locate(set, cache_dir());
  }
  if (!found.empty() && is_folder(found)) require_files(set, found, {0, set.files.size()});
  return found;
}

}  // namespace

Images load_cifar10(const fs::path& path, Split split) { return load(cifar10(), path, split); }
Images load_cifar100(const fs::path& path, Split split, bool coarse) { return load(cifar100(coarse), path, split); }
fs::path find_cifar10(const fs::path& configured) { return find(cifar10(), configured); }
fs::path find_cifar100(const fs::path& configured) { return find(cifar100(false), configured); }

fs::path cache_dir() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache && fs::path(cache).is_absolute()) return fs::path(cache) / "linnet";  // the standard: ignore a relative one
  const char* home = std::getenv("HOME");
  if (home && fs::path(home).is_absolute()) return fs::path(home) / ".cache" / "linnet";
  return {};
}

}  // namespace linnet
