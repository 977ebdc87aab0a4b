// Evil archives (RELIABILITY.md, N11) against the CIFAR-10 reader, written byte by byte because no archive library
// would make them. Each is refused for its own reason and nothing appears on the disk.
#include <gtest/gtest.h>
#include <zlib.h>

#include <cstring>
#include <fstream>
#include <set>
#include <vector>

#include "linnet/dataset.h"
#include "linnet/error.h"
#include "tests/temp_dir.h"

namespace linnet {
namespace {
namespace fs = std::filesystem;

const std::string kFolder = "cifar-10-batches-bin/", kBatch = kFolder + "test_batch.bin";

struct Member {
  std::string name;
  char type =
      '0';  // tar(5): 0 file, 1 hard link, 2 symbolic link, 3 and 4 devices, 5 folder, 6 pipe, x and L: extensions
  std::string content = {}, link = {};
  std::string mode = "0000644";
  std::string size = {};  // where it lies about its content
};

std::string octal(uint64_t n) {
  char text[24];
  std::snprintf(text, sizeof text, "%011lo", static_cast<unsigned long>(n));
  return text;
}

std::string entry(const Member& member) {
  std::string header(512, '\0');
  const auto put = [&](size_t at, const std::string& text) { header.replace(at, text.size(), text); };
  put(0, member.name.substr(0, 100));
  put(100, member.mode);
  put(108, "0000000");
  put(116, "0000000");
  put(124, member.size.empty() ? octal(member.content.size()) : member.size);
  put(136, octal(0));
  put(148, "        ");
  header[156] = member.type;
  put(157, member.link);
  put(257, std::string("ustar\0"
                       "00",
                       8));
  put(329, "0000001");
  put(337, "0000001");
  unsigned sum = 0;
  for (const char c : header) sum += uint8_t(c);
  char checksum[8];
  std::snprintf(checksum, sizeof checksum, "%06o", sum);
  put(148, std::string(checksum, 7));
  return header + member.content + std::string((512 - member.content.size() % 512) % 512, '\0');
}

std::string to_tar(const std::vector<Member>& members) {
  std::string tar;
  for (const Member& member : members) tar += entry(member);
  return tar + std::string(1024, '\0');
}

std::string gzip(const std::string& bytes) {
  std::string out(bytes.size() + 1000, '\0');
  z_stream zlib{};
  deflateInit2(&zlib, 1, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  zlib.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  zlib.avail_in = uInt(bytes.size());
  zlib.next_out = reinterpret_cast<Bytef*>(out.data());
  zlib.avail_out = uInt(out.size());
  deflate(&zlib, Z_FINISH);
  out.resize(zlib.total_out);
  deflateEnd(&zlib);
  return out;
}

std::string pax(const std::string& key, const std::string& value) {  // "30 path=...\n", its own length first
  const std::string rest = " " + key + "=" + value + "\n";
  size_t length = rest.size() + 1;
  while (std::to_string(length).size() + rest.size() != length) ++length;
  return std::to_string(length) + rest;
}

std::set<std::string> everything_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) names.insert(entry.path().string());
  return names;
}

TEST(EvilArchive, IsRefusedAndLeavesNothing) {
  struct Row {
    const char* what;
    std::string tar;
    const char* expected;  // in the message
  };
  const std::string honest = entry(Member{kFolder, '5'});
  const char *leaves = "leaves the archive", *neither = "neither a file nor a folder", *twice = "occurs twice",
             *damaged = "not a whole .tar.gz archive", *size = "expected a file of 30730000 bytes",
             *marked = "setuid, setgid or sticky", *missing = "missing data_batch_1.bin";
  const std::vector<Row> rows = {
      {"absolute path", to_tar({{"/tmp/evil", '0', "x"}}), leaves},
      {"absolute path of a folder", to_tar({{"/tmp/evil/", '5'}}), leaves},
      {"parent", to_tar({{"../evil", '0', "x"}}), leaves},
      {"parent in the middle", to_tar({{kFolder + "../../evil", '0', "x"}}), leaves},
      {"parent at the end", to_tar({{kFolder + "..", '5'}}), leaves},
      {"parent of the batch itself", to_tar({{"a/../" + kBatch, '0', "x"}}), leaves},
      {"absolute path in a pax header", to_tar({{"p", 'x', pax("path", "/tmp/evil")}, {"a", '0', "x"}}), leaves},
      {"parent in a pax header", to_tar({{"p", 'x', pax("path", "../evil")}, {"a", '0', "x"}}), leaves},
      {"absolute path in a GNU long name", to_tar({{"././@LongLink", 'L', "/tmp/evil"}, {"a", '0', "x"}}), leaves},
      {"no name", to_tar({{"", '0', "x"}}), leaves},
      {"symbolic link out", to_tar({{"a", '2', "", "/etc/passwd"}}), neither},
      {"symbolic link as a batch", to_tar({{kBatch, '2', "", "/dev/zero"}}), neither},
      {"symbolic link, then a file through it", to_tar({{"a", '2', "", "/tmp"}, {"a/evil", '0', "x"}}), neither},
      {"symbolic link in a pax header", to_tar({{"p", 'x', pax("linkpath", "/etc")}, {"a", '2', "", "b"}}), neither},
      {"hard link out", to_tar({{"a", '1', "", "/etc/passwd"}}), neither},
      {"hard link to a batch", to_tar({{"a", '0', "x"}, {kBatch, '1', "", "a"}}), neither},
      {"hard link to itself", to_tar({{kBatch, '1', "", kBatch}}), neither},
      {"character device", to_tar({{"a", '3'}}), neither},
      {"block device as a batch", to_tar({{kBatch, '4'}}), neither},
      {"pipe", to_tar({{"a", '6'}}), neither},
      {"setuid", to_tar({{"a", '0', "x", "", "0004755"}}), marked},
      {"setgid", to_tar({{kBatch, '0', "x", "", "0002755"}}), marked},
      {"sticky", to_tar({{"a", '0', "x", "", "0001755"}}), marked},
      {"the same name twice", to_tar({{"a", '0', "x"}, {"a", '0', "y"}}), twice},
      {"a folder twice", honest + to_tar({{kFolder, '5'}}), twice},
      {"a batch of the wrong size", to_tar({{kBatch, '0', "short"}}), size},
      {"a batch of 8 GiB", to_tar({{kBatch, '0', "x", "", "0000644", "77777777777"}}), size},
      {"a batch of -1 bytes", to_tar({{kBatch, '0', "x", "", "0000644", std::string(12, '\xff')}}), ""},
      {"a batch that does not come", entry(Member{kBatch, '0', "", "", "0000644", octal(30'730'000)}), damaged},
      {"another member that does not come", entry(Member{"a", '0', "", "", "0000644", octal(1 << 20)}), damaged},
      {"a header cut off", entry(Member{"a"}).substr(0, 300), damaged},
      {"a wrong checksum of a header", honest.substr(0, 148) + "000000" + honest.substr(154), damaged},
      {"an archive in the archive", to_tar({{"cifar-10-binary.tar.gz", '0', gzip(to_tar({{kBatch, '0', "x"}}))}}),
       missing},
      {"a long name", to_tar({{"p", 'x', pax("path", std::string(5000, 'a'))}, {"a", '0', "x"}}), "at most 1024"},
      {"control characters", to_tar({{"\x1b[2J/../a", '0', "x"}}), "\\x1b[2J"},
      {"pickle", to_tar({{"cifar-10-batches-py/data_batch_1", '0', "x"}}), "pickle"},
      {"nothing", to_tar(std::vector<Member>{}), ""},
  };

  const TempDir dir;
  fs::create_directories(dir / "inside/deeper");
  fs::create_directories(dir / "working");
  const fs::path before = fs::current_path(), file = dir / "inside/deeper/cifar.tar.gz";
  fs::current_path(dir / "working");  // where a relative path of a member would go
  int refused = 0;
  for (const Row& row : rows)
    for (const bool packed : {false, true}) {
      std::ofstream(file, std::ios::binary) << (packed ? gzip(row.tar) : row.tar);
      const auto there = everything_in(dir.path());
      std::string message;
      try {
        load_cifar10(file, Split::test);
      } catch (const Error& error) {
        EXPECT_EQ(error.exit, Exit::data) << row.what << ": " << error.what();
        message = error.what();
      }
      EXPECT_NE(message, "") << row.what << " was taken";
      EXPECT_NE(message.find(row.expected), std::string::npos) << row.what << ": " << message;
      EXPECT_EQ(everything_in(dir.path()), there) << row.what << " left something";
      EXPECT_FALSE(fs::exists("/tmp/evil")) << row.what;
      refused += !message.empty();
    }
  fs::current_path(before);
  EXPECT_EQ(refused, 2 * int(rows.size()));
}

}  // namespace
}  // namespace linnet
