// The event files of a run, read by TensorBoard's schema, and by TensorBoard itself where Python has it.
#include <algorithm>
#include <map>

#include "cli_run.h"
#include "linnet/tensorboard.h"
#include "proto/tensorboard.pb.h"  // made of proto/tensorboard.proto
#include "temp_dir.h"

namespace {

namespace fs = std::filesystem;
namespace pb = linnet::tensorboard;
using linnet::Ended;
using linnet::read;
using linnet::run_in_shell;

constexpr const char* kConfig = R"(
model.name = "convnet"
data = { name = "synthetic", samples = 96, val = 32 }
optimizer = { name = "adam", lr = 1e-3 }
train = { epochs = 2, batch_size = 32 }
log.interval = 1
)";

// Every record's payload; each is checked against its own length and checksums.
std::vector<pb::Event> events_of(const std::string& file) {
  std::vector<pb::Event> events;
  const std::string bytes = read(file);
  for (size_t at = 0; at < bytes.size();) {
    uint64_t length = 0;
    for (int i = 0; i < 8; ++i) length |= uint64_t(uint8_t(bytes[at + size_t(i)])) << (8 * i);
    const std::string payload = bytes.substr(at + 12, length);
    EXPECT_EQ(linnet::tfrecord(payload), bytes.substr(at, length + 16));
    EXPECT_TRUE(events.emplace_back().ParseFromString(payload));
    at += length + 16;
  }
  return events;
}

class TensorBoardFiles : public testing::Test {
 protected:
  Ended linnet(const std::string& arguments) { return run_in_shell(arguments); }
  std::string config() {
    std::ofstream(dir_ / "c.toml") << kConfig;
    return (dir_ / "c.toml").string();
  }
  std::string run() const { return (dir_ / "run").string(); }
  // In the order in which TensorBoard reads them.
  std::vector<std::string> files() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(dir_ / "run" / "tensorboard"))
      found.push_back(entry.path().string());
    std::ranges::sort(found);
    return found;
  }
  TempDir dir_;
};

// As tensorboard.summary.writer.record_writer of TensorBoard 2.21 writes it.
TEST(TfRecord, HasTensorFlowsBytes) {
  EXPECT_EQ(linnet::tfrecord("linnet"), std::string("\x06\0\0\0\0\0\0\0\x73\x69\xd5\x37linnet\x7e\x55\xb3\x08", 22));
}

TEST_F(TensorBoardFiles, HoldTheRunsNumbers) {
  const Ended ended = linnet("train " + config() + " --out " + run());
  ASSERT_EQ(ended.code, 0) << ended.out;
  ASSERT_EQ(files().size(), 1u);
  const std::vector<pb::Event> events = events_of(files()[0]);
  EXPECT_EQ(events.at(0).file_version(), "brain.Event:2");
  std::map<std::string, int> count;
  for (const pb::Event& e : events)
    for (const pb::Summary::Value& v : e.summary().value()) {
      ++count[v.tag()];
      if (v.tag() == "config") linnet::expect_has(v.tensor().string_val(0), "name = \"convnet\"");
      if (v.has_image()) {
        EXPECT_EQ(v.image().encoded_image_string().substr(1, 3), "PNG") << v.tag();
      }
      if (!v.has_histo()) continue;
      double sum = 0;
      for (const double b : v.histo().bucket()) sum += b;
      EXPECT_EQ(sum, v.histo().num()) << v.tag();
      EXPECT_GE(v.histo().bucket_limit(v.histo().bucket_size() - 1), v.histo().max() * (1 - 1e-6)) << v.tag();
    }
  EXPECT_EQ(count["step/train/loss"], 4);
  EXPECT_EQ(count["step/lr"], 4);
  EXPECT_EQ(count["train/loss"], 2);
  EXPECT_EQ(count["val/acc"], 2);
  EXPECT_EQ(count["test/acc"], 1);
  EXPECT_EQ(count["weights/conv1.weight"], 2);
  EXPECT_EQ(count["gradients/conv1.weight"], 2);
  EXPECT_EQ(count["samples"], 1);
  EXPECT_EQ(count["confusion"], 1);
  EXPECT_EQ(count["_hparams_/session_start_info"], 1);
  EXPECT_EQ(count["_hparams_/session_end_info"], 1);
}

TEST_F(TensorBoardFiles, CanBeLeftOut) {
  ASSERT_EQ(linnet("train " + config() + " --epochs 1 --set log.tensorboard=false --out " + run()).code, 0);
  EXPECT_FALSE(fs::exists(dir_ / "run" / "tensorboard"));
}

// The file of a resumed run says from which step on the earlier ones are void.
TEST_F(TensorBoardFiles, AResumedRunStartsAtItsStep) {
  ASSERT_EQ(linnet("train " + config() + " --out " + run()).code, 0);
  ASSERT_EQ(linnet("resume " + run() + " --epochs 3").code, 0);
  ASSERT_EQ(files().size(), 2u);
  const std::vector<pb::Event> events = events_of(files()[1]);
  EXPECT_EQ(events.at(1).session_log().status(), pb::SessionLog::START);
  EXPECT_EQ(events.at(1).step(), 5);
  for (size_t i = 2; i < events.size(); ++i) EXPECT_GE(events[i].step(), 5);
}

TEST_F(TensorBoardFiles, TensorBoardItselfReadsThem) {
  if (std::system("python3 -c 'import tensorboard' 2>/dev/null") != 0) GTEST_SKIP() << "Python has no tensorboard here";
  ASSERT_EQ(linnet("train " + config() + " --out " + run()).code, 0);
  ASSERT_EQ(linnet("resume " + run() + " --epochs 3").code, 0);
  EXPECT_EQ(std::system(("python3 tests/tensorboard_check.py " + run()).c_str()), 0);
}

}  // namespace
