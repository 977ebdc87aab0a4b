// The CIFAR-10 reader on made-up batches, and what can be done with images in memory. With LINNET_DATA set to the real
// CIFAR-10 (before the test starts), one test reads that too.
#include <archive.h>
#include <archive_entry.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <numeric>

#include "linnet/dataset.h"
#include "linnet/error.h"
#include "tests/temp_dir.h"

namespace linnet {
namespace {
namespace fs = std::filesystem;

// Sets an environment variable, or removes it, until the end of the scope.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = std::make_unique<std::string>(old);
    value.empty() ? unsetenv(name) : setenv(name, value.c_str(), 1);
  }
  ~Variable() { old_ ? setenv(name_, old_->c_str(), 1) : unsetenv(name_); }

 private:
  const char* name_;
  std::unique_ptr<std::string> old_;
};

constexpr int64_t kRecord = 3073, kBatch = 10000 * kRecord;
const std::vector<std::string> kNames = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                         "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"};

// What record r of batch b holds, in the made-up files.
uint8_t label_of(int b, int64_t r) { return uint8_t((r + b) % 10); }
uint8_t value_of(int b, int64_t r, int channel, int position) {
  return uint8_t(b * 31 + r * 7 + channel * 101 + position + position / 256);
}

std::string batch(int b) {
  std::string bytes;
  bytes.reserve(kBatch);
  for (int64_t r = 0; r < 10000; ++r) {
    bytes += char(label_of(b, r));
    for (int c = 0; c < 3; ++c)
      for (int p = 0; p < 1024; ++p) bytes += char(value_of(b, r, c, p));
  }
  return bytes;
}

void write(const fs::path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

void expect_made_up(const Images& images, Split split) {
  const int batches = split == Split::train ? 5 : 1;
  EXPECT_EQ(images.height, 32);
  EXPECT_EQ(images.width, 32);
  EXPECT_EQ(images.channels, 3);
  EXPECT_EQ(images.classes, 10);
  ASSERT_EQ(images.size(), batches * 10000);
  ASSERT_EQ(images.pixels.size(), size_t(batches) * 10000 * 3072);
  int64_t wrong = 0;
  for (int64_t i = 0; i < images.size(); ++i) {
    const int b = split == Split::train ? int(i / 10000) : 5;
    const uint8_t* pixel = images.pixels.data() + i * 3072;
    wrong += images.labels[i] != label_of(b, i % 10000);
    for (int p = 0; p < 1024; ++p)
      for (int c = 0; c < 3; ++c) wrong += *pixel++ != value_of(b, i % 10000, c, p);
  }
  EXPECT_EQ(wrong, 0);
}

// The message of the Error(Exit::data) that f throws.
template <class F>
std::string message_of(F f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit, Exit::data) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "expected an Error";
  return "";
}
std::string load_error(const fs::path& path, Split split = Split::train) {
  return message_of([&] { load_cifar10(path, split); });
}
bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// A member of an archive made for a test.
struct Member {
  std::string name, bytes;
  unsigned type = AE_IFREG;
  std::string link = {};  // for a symbolic or hard link
};

void write_archive(const fs::path& path, const std::vector<Member>& members) {
  const std::unique_ptr<archive, int (*)(archive*)> out(archive_write_new(), archive_write_free);
  archive_write_add_filter_gzip(out.get());
  archive_write_set_filter_option(out.get(), "gzip", "compression-level", "1");
  archive_write_set_format_ustar(out.get());
  ASSERT_EQ(archive_write_open_filename(out.get(), path.c_str()), ARCHIVE_OK);
  for (const Member& member : members) {
    const std::unique_ptr<archive_entry, void (*)(archive_entry*)> entry(archive_entry_new(), archive_entry_free);
    archive_entry_set_pathname(entry.get(), member.name.c_str());
    archive_entry_set_filetype(entry.get(), member.type);
    archive_entry_set_perm(entry.get(), 0644);
    archive_entry_set_size(entry.get(), int64_t(member.bytes.size()));
    if (member.type == AE_IFLNK) archive_entry_set_symlink(entry.get(), member.link.c_str());
    if (member.type == AE_IFREG && !member.link.empty()) archive_entry_set_hardlink(entry.get(), member.link.c_str());
    ASSERT_EQ(archive_write_header(out.get(), entry.get()), ARCHIVE_OK) << archive_error_string(out.get());
    archive_write_data(out.get(), member.bytes.data(), member.bytes.size());
  }
  ASSERT_EQ(archive_write_close(out.get()), ARCHIVE_OK);
}

// One set of made-up batches for all tests; a test that damages one works on links to the others.
class Cifar10Test : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared = new TempDir;
    for (int b = 0; b < 6; ++b) write(*shared / kNames[b], batch(b));
  }
  static void TearDownTestSuite() { delete shared; }

  // The shared batches linked into `folder`, except those named.
  fs::path linked(const std::string& name, const std::vector<std::string>& except = {}) {
    const fs::path folder = dir / name;
    fs::create_directories(folder);
    for (const std::string& file : kNames)
      if (std::find(except.begin(), except.end(), file) == except.end())
        fs::create_symlink(*shared / file, folder / file);
    return folder;
  }
  std::vector<Member> members() const {
    const std::string folder = "cifar-10-batches-bin/";
    std::vector<Member> all = {{folder, "", AE_IFDIR}, {folder + "readme.html", "<html>"}};
    for (const int b : {0, 5, 3, 1, 4, 2}) all.push_back({folder + kNames[b], batch(b)});
    all.push_back({folder + "batches.meta.txt", "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n"});
    return all;
  }

  static TempDir* shared;
  TempDir dir;
};
TempDir* Cifar10Test::shared = nullptr;

TEST_F(Cifar10Test, ReadsAFolder) {
  const Images train = load_cifar10(shared->path(), Split::train);
  expect_made_up(train, Split::train);
  EXPECT_EQ(train.class_names.at(0), "airplane");
  EXPECT_EQ(train.class_names.at(9), "truck");
  expect_made_up(load_cifar10(shared->path(), Split::test), Split::test);
}

TEST_F(Cifar10Test, ReadsAFolderAroundTheFolder) {
  linked("cifar-10-batches-bin");
  expect_made_up(load_cifar10(dir.path(), Split::test), Split::test);
}

TEST_F(Cifar10Test, TheTestSplitNeedsTheTestBatchOnly) {
  const fs::path folder = dir / "only";
  fs::create_directory(folder);
  fs::create_symlink(*shared / "test_batch.bin", folder / "test_batch.bin");
  expect_made_up(load_cifar10(folder, Split::test), Split::test);
}

TEST_F(Cifar10Test, ReadsClassNames) {
  const fs::path folder = linked("named");
  write(folder / "batches.meta.txt", "a\r\nb\nc\nd\ne\nf\ng\nh\ni\nthe last\n\n");
  const Images images = load_cifar10(folder, Split::test);
  ASSERT_EQ(images.class_names.size(), 10u);
  EXPECT_EQ(images.class_names[0], "a");
  EXPECT_EQ(images.class_names[9], "the last");
  for (const std::string& text : {std::string("a\nb\n"), std::string("\x1b[2J\nb\nc\nd\ne\nf\ng\nh\ni\nj\n"),
                                  std::string(70000, 'a'), std::string()}) {
    write(folder / "batches.meta.txt", text);
    EXPECT_TRUE(has(load_error(folder, Split::test), "batches.meta.txt")) << text.substr(0, 20);
  }
}

TEST_F(Cifar10Test, SaysWhatIsMissing) {
  EXPECT_TRUE(has(load_error(dir / "nowhere"), "no such file or folder"));
  const std::string none = load_error(dir.path());
  EXPECT_TRUE(has(none, dir.path().string()) && has(none, "no CIFAR-10 there") && has(none, "linnet data get")) << none;
  const fs::path folder = linked("some", {"data_batch_2.bin", "data_batch_5.bin"});
  const std::string some = load_error(folder);
  EXPECT_TRUE(has(some, folder.string()) && has(some, "missing data_batch_2.bin, data_batch_5.bin;")) << some;
}

TEST_F(Cifar10Test, RefusesAFileOfTheWrongSize) {
  const fs::path folder = linked("sizes", {"data_batch_3.bin"});
  const fs::path file = folder / "data_batch_3.bin";
  fs::copy_file(*shared / "data_batch_3.bin", file);
  for (const int64_t size : {kBatch - 1, kBatch + 1, int64_t(0)}) {
    fs::resize_file(file, size);
    const std::string message = load_error(folder);
    EXPECT_TRUE(has(message, fmt::format("{}: expected {} bytes, got {};", file.string(), kBatch, size))) << message;
  }
}

TEST_F(Cifar10Test, RefusesABadLabel) {
  const fs::path folder = linked("labels", {"test_batch.bin"});
  std::string bytes = batch(5);
  bytes[9999 * kRecord] = 10;
  write(folder / "test_batch.bin", bytes);
  const std::string message = load_error(folder, Split::test);
  EXPECT_TRUE(has(message, "test_batch.bin: record 9999 (byte 30726927) has label 10")) << message;
}

TEST_F(Cifar10Test, RefusesWhatIsNotARegularFile) {
  const fs::path pipe = linked("pipe", {"test_batch.bin"});
  ASSERT_EQ(mkfifo((pipe / "test_batch.bin").c_str(), 0600), 0);
  EXPECT_TRUE(has(load_error(pipe, Split::test), "expected a regular file"));
  EXPECT_TRUE(has(load_error(pipe / "test_batch.bin", Split::test), "expected a regular file"));
  const fs::path folder = linked("folder", {"test_batch.bin"});
  fs::create_directory(folder / "test_batch.bin");
  EXPECT_TRUE(has(load_error(folder, Split::test), "expected a regular file"));
}

TEST_F(Cifar10Test, KnowsThePythonVersion) {
  write(dir / "data_batch_1", "pickle");
  EXPECT_TRUE(has(load_error(dir.path()), "cifar-10-binary.tar.gz"));
  EXPECT_TRUE(has(load_error(dir.path()), "pickle"));
  write(dir / "cifar-10-python.tar.gz", "");
  EXPECT_TRUE(has(load_error(dir / "cifar-10-python.tar.gz"), "pickle"));
  write_archive(dir / "renamed.tar.gz", {{"cifar-10-batches-py/data_batch_4", "pickle"}});
  EXPECT_TRUE(has(load_error(dir / "renamed.tar.gz"), "pickle"));
}

TEST_F(Cifar10Test, ReadsTheArchive) {
  write_archive(dir / "cifar-10-binary.tar.gz", members());
  const Images train = load_cifar10(dir.path(), Split::train);
  expect_made_up(train, Split::train);
  EXPECT_EQ(train.class_names.at(9), "j");
  expect_made_up(load_cifar10(dir / "cifar-10-binary.tar.gz", Split::test), Split::test);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), {}), 1);  // nothing was unpacked
}

TEST_F(Cifar10Test, RefusesADamagedArchive) {
  const fs::path file = dir / "cifar.tar.gz";
  write_archive(file, members());
  const int64_t size = int64_t(fs::file_size(file));
  const auto flip = [&](int64_t at) {
    std::fstream stream(file, std::ios::binary | std::ios::in | std::ios::out);
    stream.seekg(at);
    const char byte = char(stream.get() ^ 1);
    stream.seekp(at);
    stream.put(byte);
  };
  // The last eight bytes are the checksum and the length of what was packed.
  for (const int64_t at : {size / 3, size - 8, size - 1}) {
    flip(at);
    EXPECT_TRUE(has(load_error(file, Split::test), file.string())) << at << " of " << size;
    flip(at);
  }
  for (const int64_t cut : {size - 1, size - 8, size / 2, int64_t(100), int64_t(0)}) {
    fs::resize_file(file, cut);
    EXPECT_TRUE(has(load_error(file, Split::test), "not a whole .tar.gz archive")) << cut << " of " << size;
  }
  write(file, "this is no archive\n");
  EXPECT_TRUE(has(load_error(file), "not a whole .tar.gz archive"));
}

TEST_F(Cifar10Test, RefusesAnArchiveWithOtherContents) {
  const fs::path file = dir / "cifar.tar.gz";
  const std::string folder = "cifar-10-batches-bin/";
  const auto error_of = [&](const std::vector<Member>& list) {
    write_archive(file, list);
    return load_error(file, Split::test);
  };
  EXPECT_TRUE(has(error_of({{"other.txt", "x"}}), "missing data_batch_1.bin, data_batch_2.bin"));
  EXPECT_TRUE(has(error_of({{folder + "test_batch.bin", "short"}}), "expected a file of 30730000 bytes, got 5"));
  EXPECT_TRUE(has(error_of({{folder + "data_batch_1.bin", batch(0) + "x"}}), "got 30730001"));
  EXPECT_TRUE(has(error_of({{folder + "test_batch.bin", batch(5)}, {folder + "test_batch.bin", batch(5)}}), "twice"));
  EXPECT_TRUE(has(error_of({{folder + "test_batch.bin", "", AE_IFLNK, "/etc/passwd"}}), "neither a file nor a folder"));
  EXPECT_TRUE(
      has(error_of({{"a", "x"}, {folder + "test_batch.bin", "", AE_IFREG, "a"}}), "neither a file nor a folder"));
  EXPECT_TRUE(has(error_of({{folder + "test_batch.bin", "", AE_IFDIR}}), "test_batch.bin;"));
  EXPECT_TRUE(has(error_of({{"../evil", "x"}}), "leaves the archive"));
  EXPECT_TRUE(has(error_of({{"/evil", "x"}}), "leaves the archive"));
  EXPECT_TRUE(has(error_of({{"\x1b[2J/..", "x"}}), "\\x1b[2J"));
  EXPECT_TRUE(has(error_of({{folder + "batches.meta.txt", std::string(70000, 'a')}}), "at most 65536 bytes"));
  EXPECT_TRUE(has(error_of({{"large", std::string(190'000'000, 'a')}}), "more than 185428576 bytes"));
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), {}), 1);
}

TEST_F(Cifar10Test, LooksInTheRightOrder) {
  const fs::path configured = linked("configured"), named = linked("parent/cifar-10-batches-bin");
  const Variable home("HOME", (dir / "home").string()), cache("XDG_CACHE_HOME", "");
  {
    const Variable data("LINNET_DATA", "");
    EXPECT_EQ(find_cifar10(""), "");
    const fs::path cached = linked("home/.cache/linnet/cifar-10-batches-bin");
    EXPECT_EQ(find_cifar10(""), cached);
    const Variable other("XDG_CACHE_HOME", (dir / "xdg").string());
    EXPECT_EQ(cache_dir(), dir / "xdg/linnet");
    EXPECT_EQ(find_cifar10(""), "");
    fs::create_directories(dir / "xdg/linnet");
    EXPECT_EQ(find_cifar10(""), "");
    write(dir / "xdg/linnet/cifar-10-binary.tar.gz", "");
    EXPECT_EQ(find_cifar10(""), dir / "xdg/linnet/cifar-10-binary.tar.gz");
  }
  const Variable data("LINNET_DATA", (dir / "parent").string());
  EXPECT_EQ(find_cifar10(""), named);
  EXPECT_EQ(find_cifar10(configured), configured);
  {
    const Variable itself("LINNET_DATA", named.string());
    EXPECT_EQ(find_cifar10(""), named);
  }
  const Variable bad("LINNET_DATA", (dir / "nowhere").string());
  EXPECT_TRUE(has(message_of([] { find_cifar10(""); }), "LINNET_DATA = "));
  EXPECT_TRUE(has(message_of([&] { find_cifar10(dir / "empty"); }), "data.path = "));
  fs::remove(configured / "test_batch.bin");
  EXPECT_TRUE(has(message_of([&] { find_cifar10(configured); }), "missing test_batch.bin"));
}

TEST(Dataset, ChannelStats) {
  // Channel 0: 0, 255, 0, 255. Channel 1: constant 51. Channel 2: 10, 20, 30, 40.
  const Images images{.height = 1,
                      .width = 2,
                      .channels = 3,
                      .classes = 2,
                      .class_names = {},
                      .pixels = {0, 51, 10, 255, 51, 20, 0, 51, 30, 255, 51, 40},
                      .labels = {0, 1}};
  const ChannelStats stats = channel_stats(images);
  ASSERT_EQ(stats.mean.size(), 3u);
  EXPECT_FLOAT_EQ(stats.mean[0], 0.5f);
  EXPECT_FLOAT_EQ(stats.mean[1], 0.2f);
  EXPECT_FLOAT_EQ(stats.mean[2], 25 / 255.f);
  EXPECT_FLOAT_EQ(stats.std[0], 0.5f);
  EXPECT_EQ(stats.std[1], 0);
  EXPECT_FLOAT_EQ(stats.std[2], std::sqrt(125.f) / 255);
  EXPECT_THROW(channel_stats(Images{.height = 1, .width = 1, .channels = 3}), Error);
}

TEST(Dataset, HoldOutIsAFixedPartition) {
  const HoldOut split = hold_out(50000, 5000);
  ASSERT_EQ(split.val.size(), 5000u);
  ASSERT_EQ(split.train.size(), 45000u);
  EXPECT_TRUE(std::is_sorted(split.val.begin(), split.val.end()));
  EXPECT_TRUE(std::is_sorted(split.train.begin(), split.train.end()));
  std::vector<int32_t> all, expected(50000);
  std::merge(split.val.begin(), split.val.end(), split.train.begin(), split.train.end(), std::back_inserter(all));
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_TRUE(all == expected);
  // Spread over the whole range: each tenth of it holds 500 of the 5000, give or take (deviation 20).
  for (int part = 0; part < 10; ++part)
    EXPECT_NEAR(std::count_if(split.val.begin(), split.val.end(), [&](int i) { return i / 5000 == part; }), 500, 100);
  // Stored once: every run ever made selects on these.
  EXPECT_EQ(hold_out(10, 3).val, (std::vector<int32_t>{0, 5, 7}));
  EXPECT_EQ(std::accumulate(split.val.begin(), split.val.end(), int64_t(0)), 124295145);
}

TEST(Dataset, HoldOutAtItsLimits) {
  EXPECT_EQ(hold_out(4, 0).train, (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_TRUE(hold_out(4, 0).val.empty());
  EXPECT_EQ(hold_out(4, 3).train.size(), 1u);
  for (const int64_t val : {int64_t(-1), int64_t(4), int64_t(5)}) EXPECT_THROW(hold_out(4, val), Error) << val;
  EXPECT_THROW(hold_out(0, 0), Error);
  EXPECT_THROW(hold_out(int64_t(1) << 40, 1), Error);
}

TEST(Dataset, Subset) {
  const Images images{.height = 1,
                      .width = 2,
                      .channels = 1,
                      .classes = 5,
                      .class_names = {"a", "b", "c", "d", "e"},
                      .pixels = {1, 2, 3, 4, 5, 6},
                      .labels = {4, 2, 0}};
  const Images some = subset(images, {2, 0, 2});
  EXPECT_EQ(some.pixels, (std::vector<uint8_t>{5, 6, 1, 2, 5, 6}));
  EXPECT_EQ(some.labels, (std::vector<int32_t>{0, 4, 0}));
  EXPECT_EQ(some.class_names, images.class_names);
  EXPECT_EQ(some.classes, 5);
  EXPECT_EQ(some.image_bytes(), 2);
  EXPECT_EQ(subset(images, {}).size(), 0);
  EXPECT_THROW(subset(images, {3}), Error);
  EXPECT_THROW(subset(images, {-1}), Error);
}

TEST(RealCifar10, IsWhatItIsKnownToBe) {
  const char* variable = std::getenv("LINNET_DATA");
  if (!variable || !*variable) GTEST_SKIP() << "set LINNET_DATA to the real CIFAR-10 to check it";
  const fs::path path = find_cifar10("");
  const Images train = load_cifar10(path, Split::train), test = load_cifar10(path, Split::test);
  EXPECT_EQ(train.size(), 50000);
  EXPECT_EQ(test.size(), 10000);
  for (int label = 0; label < 10; ++label) {
    EXPECT_EQ(std::count(train.labels.begin(), train.labels.end(), label), 5000) << label;
    EXPECT_EQ(std::count(test.labels.begin(), test.labels.end(), label), 1000) << label;
  }
  EXPECT_EQ(train.class_names.at(0), "airplane");
  const ChannelStats stats = channel_stats(train);
  const double mean[] = {0.491400, 0.482158, 0.446531}, deviation[] = {0.247032, 0.243485, 0.261588};
  for (int c = 0; c < 3; ++c) {
    EXPECT_NEAR(stats.mean[c], mean[c], 1e-6) << c;
    EXPECT_NEAR(stats.std[c], deviation[c], 1e-6) << c;
  }
}

}  // namespace
}  // namespace linnet
