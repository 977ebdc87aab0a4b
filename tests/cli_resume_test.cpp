// `linnet resume`, `fork`, `check --only resume` and --max-time, as a person runs them.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sched.h>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli_run.h"
#include "temp_dir.h"

namespace {

namespace fs = std::filesystem;
using linnet::Ended;
using linnet::expect_has;
using linnet::read;
using nlohmann::json;

class Resume : public testing::Test {
 protected:
  using Args = std::vector<std::string>;

  Ended linnet(const Args& args, bool in_cage = false) {
    const pid_t pid = fork();
    if (pid == 0) {
      if (in_cage && !mount_small_disk()) _exit(77);
      for (const auto& [name, fd] : {std::pair{"out", STDOUT_FILENO}, {"err", STDERR_FILENO}})
        dup2(open((dir_ / name).c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666), fd);
      std::vector<char*> argv = {const_cast<char*>("linnet")};
      for (const std::string& a : args) argv.push_back(const_cast<char*>(a.c_str()));
      argv.push_back(nullptr);
      execv(LINNET_EXE, argv.data());
      _exit(127);
    }
    int status = 0;
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read(dir_ / "out"), read(dir_ / "err")};
  }

  // A disk of 2 MiB at small/, seen by this process and its children only.
  bool mount_small_disk() const {
    return unshare(CLONE_NEWNS) == 0 && mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
           mount("none", (dir_ / "small").c_str(), "tmpfs", 0, "size=2m") == 0;
  }

  // 12 steps, a checkpoint after each.
  std::string config(const std::string& extra = "") {
    std::ofstream(dir_ / "tiny.toml")
        << "data.name = 'synthetic'\ndata.samples = 120\ndata.val = 24\ndata.image_size = 16\nmodel.name = 'linear'\n"
           "train.epochs = 4\ntrain.batch_size = 32\nlog.interval = 1\ncheckpoint.epochs = 0.1\n"
           "optimizer.lr = 0.02\noptimizer.momentum = 0.9\nschedule.name = 'cosine'\n"
        << extra;
    return dir_ / "tiny.toml";
  }
  std::string at(const std::string& name) { return dir_ / name; }
  std::map<std::string, std::string> contents(const std::string& name) {
    std::map<std::string, std::string> all;
    for (const auto& entry : fs::recursive_directory_iterator(at(name)))
      if (entry.is_regular_file() && entry.path().filename() != "LOCK") all[entry.path()] = read(entry.path());
    return all;
  }
  void train(const std::string& name, const std::string& extra = "") {
    const Ended ended = linnet({"train", config(extra), "--out", at(name)});
    ASSERT_EQ(ended.code, 0) << ended.err;
  }
  // As a run that was killed after this step: no weights of its own, no newer checkpoint.
  void rewind(const std::string& name, int64_t step) {
    for (const auto& entry : fs::directory_iterator(dir_ / name / "checkpoints"))
      if (std::stoll(entry.path().filename()) > step) fs::remove_all(entry);
    fs::remove(dir_ / name / "model.safetensors");
  }
  std::string checkpoint(const std::string& name, int step, const std::string& file) {
    return dir_ / name / "checkpoints" / fmt_step(step) / file;
  }
  static std::string fmt_step(int step) {
    const std::string digits = std::to_string(step);
    return std::string(8 - digits.size(), '0') + digits;
  }
  void expect_same(const std::string& a, const std::string& b) {
    for (const char* file : {"metrics.jsonl", "model.safetensors"})
      EXPECT_EQ(read(dir_ / a / file), read(dir_ / b / file)) << file;
    json left = json::parse(read(dir_ / a / "summary.json")), right = json::parse(read(dir_ / b / "summary.json"));
    left.erase("wall_s"), right.erase("wall_s");
    EXPECT_EQ(left, right);
  }

  TempDir dir_;
};

void flip_last_bit(const fs::path& path) {
  std::string bytes = read(path);
  ASSERT_FALSE(bytes.empty());
  bytes.back() = char(bytes.back() ^ 1);
  std::ofstream(path, std::ios::binary) << bytes;
}

TEST_F(Resume, GoesOnToTheSameBits) {
  train("a", "checkpoint.keep = 100\n");
  for (const int step : {12, 7, 3, 1}) {
    fs::remove_all(at("b"));
    fs::copy(at("a"), at("b"), fs::copy_options::recursive);
    rewind("b", step);
    const Ended ended = linnet({"resume", at("b")});
    ASSERT_EQ(ended.code, 0) << ended.err;
    expect_has(ended.err, "at step " + std::to_string(step) + ", epoch ");
    expect_same("a", "b");
  }
  // env.json tells of this sitting, and of the one before what was otherwise (it is the copied run's).
  const auto now = nlohmann::json::parse(read(dir_ / "b" / "env.json")),
             then = nlohmann::json::parse(read(dir_ / "a" / "env.json"));
  EXPECT_EQ(now["earlier"], (nlohmann::json{{{"started", then["started"]}}}));
  // The control: weights alone are not enough.
  EXPECT_EQ(
      linnet({"fork", checkpoint("a", 3, "model.safetensors"), config("checkpoint.keep = 100\n"), "--out", at("c")})
          .code,
      0);
  EXPECT_NE(read(dir_ / "a" / "model.safetensors"), read(dir_ / "c" / "model.safetensors"));
}

TEST_F(Resume, AFinishedRunIsLeftAsItIs) {
  train("a");
  fs::copy(at("a"), at("b"), fs::copy_options::recursive);
  const Ended ended = linnet({"resume", at("b")});
  EXPECT_EQ(ended.code, 0) << ended.err;
  expect_has(ended.out, "test accuracy");
  expect_same("a", "b");
}

TEST_F(Resume, SaysWhatChangesAndWhatTheLearningRateWillDo) {
  train("a");
  const Ended ended = linnet({"resume", at("a"), "--epochs", "8", "--set", "log.interval=2", "--json"});
  EXPECT_EQ(ended.code, 0) << ended.err;
  expect_has(ended.err, "train.epochs: 4 -> 8\n");
  expect_has(ended.err, "log.interval: 1 -> 2\n");
  expect_has(ended.err, "learning rate: 0.01 at the next step (0 was planned)");
  EXPECT_EQ(json::parse(ended.out)["step"], 24);
  expect_has(read(dir_ / "a" / "config.toml"), "epochs = 8\n");
}

// What is edited by hand is told as what the command line changes, against what the checkpoint was saved under.
TEST_F(Resume, SaysWhatWasEditedInTheConfigOfTheRun) {
  train("a");
  const std::string whole = read(dir_ / "a" / "config.toml");
  const auto edit = [&](const std::string& from, const std::string& to) {
    std::string text = whole;
    ASSERT_NE(text.find(from), text.npos) << text;
    std::ofstream(dir_ / "a" / "config.toml") << text.replace(text.find(from), from.size(), to);
  };
  edit("lr = 0.02", "lr = 0.5");
  const Ended refused = linnet({"resume", at("a")});
  EXPECT_EQ(refused.code, 2) << refused.err;
  expect_has(refused.err, "in more than the keys that may change: optimizer.lr (0.02 -> 0.5). Put it back");
  edit("epochs = 4", "epochs = 6");
  const Ended ended = linnet({"resume", at("a"), "--set", "log.interval=2"});
  EXPECT_EQ(ended.code, 0) << ended.err;
  expect_has(ended.err, "train.epochs: 4 -> 6\n");
  expect_has(ended.err, "log.interval: 1 -> 2\n");
  expect_has(ended.err, " at the next step (0 was planned)");
  const Ended again = linnet({"resume", at("a")});  // its last checkpoint has them
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(again.err.find(" -> "), again.err.npos) << again.err;
}

TEST_F(Resume, AnEmptyConfigIsToldAndItsTextIsInTheCheckpoints) {
  train("a");
  const std::string whole = read(dir_ / "a" / "config.toml");
  std::ofstream(dir_ / "a" / "config.toml").close();
  const Ended ended = linnet({"resume", at("a")});
  EXPECT_EQ(ended.code, 2) << ended.err;
  expect_has(ended.err, "config.toml is empty; its text is \"config\" in the state.json of each");
  EXPECT_EQ(json::parse(read(checkpoint("a", 12, "state.json")))["config"], whole);
  for (const char* text : {"", "\n \t\r\n"}) {
    std::ofstream(dir_ / "empty.toml") << text;
    const Ended fresh = linnet({"train", at("empty.toml"), "--out", at("b")});
    EXPECT_EQ(fresh.code, 2) << fresh.err;
    expect_has(fresh.err, "empty.toml' is empty\nhelp: it says at least what is trained on what");
    EXPECT_FALSE(fs::exists(at("b")));
  }
}

TEST_F(Resume, OtherKeysAreRefusedWithAPointerToFork) {
  train("a");
  const std::string before = read(dir_ / "a" / "config.toml");
  for (const char* change : {"optimizer.lr=0.5", "train.batch_size=16", "train.seed=9", "model.name=mlp"}) {
    const Ended ended = linnet({"resume", at("a"), "--set", change});
    EXPECT_EQ(ended.code, 2) << change;
    expect_has(ended.err, "cannot change in the middle of a run");
    expect_has(ended.err, "linnet fork " + at("a"));
  }
  EXPECT_EQ(read(dir_ / "a" / "config.toml"), before);
}

TEST_F(Resume, FewerEpochsThanAreDoneAreRefusedAndChangeNothing) {
  train("a");
  const std::string config = read(dir_ / "a" / "config.toml"), summary = read(dir_ / "a" / "summary.json");
  const Ended ended = linnet({"resume", at("a"), "--epochs", "3"});
  EXPECT_EQ(ended.code, 2);
  expect_has(ended.err, "has 4 epochs behind it, more than train.epochs = 3");
  EXPECT_EQ(read(dir_ / "a" / "config.toml"), config);
  EXPECT_EQ(read(dir_ / "a" / "summary.json"), summary);
}

TEST_F(Resume, WithoutARunItSaysWhatItExpected) {
  const Ended ended = linnet({"resume", at("none")});
  EXPECT_EQ(ended.code, 2);
  expect_has(ended.err, "there is no run in " + at("none"));
}

TEST_F(Resume, ADamagedCheckpointIsNamedAndSetAside) {
  train("a");
  fs::copy(at("a"), at("b"), fs::copy_options::recursive);
  flip_last_bit(checkpoint("b", 12, "optim.safetensors"));
  const Ended ended = linnet({"resume", at("b")});
  EXPECT_EQ(ended.code, 0) << ended.err;
  expect_has(ended.err, "checkpoint 00000012 is not used: ");
  expect_has(ended.err, "optim.safetensors: expected SHA-256");
  expect_has(ended.err, "at step 11, ");
  EXPECT_TRUE(fs::exists(dir_ / "b" / "checkpoints" / "00000012.bad-sha256"));
  expect_same("a", "b");
}

TEST_F(Resume, WhereAllAreDamagedNothingIsOverwritten) {
  train("a");
  for (const auto& entry : fs::directory_iterator(dir_ / "a" / "checkpoints"))
    flip_last_bit(entry.path() / "model.safetensors");
  const auto before = contents("a");
  const Ended ended = linnet({"resume", at("a"), "--epochs", "9"});
  EXPECT_EQ(ended.code, 4) << ended.err;
  expect_has(ended.err, "none of the checkpoints can be used, and starting over would lose them");
  EXPECT_EQ(contents("a"), before);
}

TEST_F(Resume, ASavedRunWithoutItsCheckpointsIsNotStartedOver) {
  train("a");
  fs::remove_all(dir_ / "a" / "checkpoints");
  const std::string weights = read(dir_ / "a" / "model.safetensors"), metrics = read(dir_ / "a" / "metrics.jsonl");
  const Ended ended = linnet({"resume", at("a")});
  EXPECT_EQ(ended.code, 4) << ended.err;
  expect_has(ended.err, "the checkpoints of " + at("a") + " are gone");
  EXPECT_EQ(read(dir_ / "a" / "model.safetensors"), weights);
  EXPECT_EQ(read(dir_ / "a" / "metrics.jsonl"), metrics);
}

// Nor one that was killed, which nothing but what lies in its folder can say.
TEST_F(Resume, AKilledRunWithoutItsCheckpointsIsNotStartedOver) {
  for (const char* gone : {"model.safetensors", "metrics.jsonl", "their content"}) {
    train(gone);
    std::ofstream(dir_ / gone / "summary.json") << R"({"status":"running"})";
    fs::remove_all(dir_ / gone / "checkpoints");
    fs::remove(dir_ / gone / gone);
    if (std::string(gone) == "their content") {
      fs::create_directory(dir_ / gone / "checkpoints");
      fs::remove(dir_ / gone / "model.safetensors");
    }
    const std::string metrics = read(dir_ / gone / "metrics.jsonl");
    const Ended ended = linnet({"resume", at(gone)});
    EXPECT_EQ(ended.code, 4) << ended.err;
    expect_has(ended.err, "are gone");
    EXPECT_EQ(read(dir_ / gone / "metrics.jsonl"), metrics);
  }
}

TEST_F(Resume, ARefusalLeavesTheSummaryAndTheCheckpoints) {
  train("a", "checkpoint.keep = 9\n");
  const auto whole = contents("a");
  const Ended fewer = linnet({"resume", at("a"), "--epochs", "2", "--set", "checkpoint.keep=2"});
  EXPECT_EQ(fewer.code, 2) << fewer.err;
  expect_has(fewer.err, "epochs behind it, more than train.epochs = 2");
  EXPECT_EQ(contents("a"), whole);
  const std::string log = read(dir_ / "a" / "metrics.jsonl");
  for (const std::string& left : {log.substr(0, 100), std::string(), "x" + log.substr(1)}) {
    std::ofstream(dir_ / "a" / "metrics.jsonl") << left;
    const auto before = contents("a");
    const Ended ended = linnet({"resume", at("a")});
    if (left.size() < log.size()) {
      EXPECT_EQ(ended.code, 4) << ended.err;
      expect_has(ended.err, "lines of it were lost");
      EXPECT_EQ(contents("a"), before);
    } else {
      EXPECT_EQ(ended.code, 0) << ended.err;
      expect_has(ended.err, "metrics.jsonl was changed");
    }
  }
}

TEST_F(Resume, NorIsARunEndedInTheMiddleOfAnEpoch) {
  train("a", "checkpoint.keep = 12\n");
  rewind("a", 7);  // two epochs of 3 steps, and one step
  const auto whole = contents("a");
  const Ended two = linnet({"resume", at("a"), "--epochs", "2"});
  EXPECT_EQ(two.code, 2) << two.err;
  expect_has(two.err, "has 2 epochs and 1 steps of the next behind it, more than train.epochs = 2");
  EXPECT_EQ(contents("a"), whole);
  EXPECT_EQ(linnet({"resume", at("a"), "--epochs", "3"}).code, 0);
}

TEST_F(Resume, MoreEpochsAfterTheBestWeightsGiveTheSameBits) {
  const std::string file = config("train.patience = 9\ntrain.stop_metric = 'val/acc'\n");
  for (const auto& [name, epochs] : {std::pair{"a", "6"}, {"b", "3"}})
    ASSERT_EQ(linnet({"train", file, "--out", at(name), "--epochs", epochs, "--set", "schedule.name=constant"}).code,
              0);
  const Ended ended = linnet({"resume", at("b"), "--epochs", "6"});
  EXPECT_EQ(ended.code, 0) << ended.err;
  expect_same("a", "b");
}

TEST_F(Resume, OfAHardLinkedCopyTheOtherIsLeftAlone) {
  train("a");
  rewind("a", 3);
  fs::create_directory(at("b"));
  for (const auto& entry : fs::recursive_directory_iterator(at("a"))) {
    const fs::path to = dir_ / "b" / fs::relative(entry.path(), at("a"));
    if (entry.is_directory())
      fs::create_directory(to);
    else if (entry.path().filename() != "LOCK")
      fs::create_hard_link(entry.path(), to);
  }
  const auto before = contents("a");
  EXPECT_EQ(linnet({"resume", at("b")}).code, 0);
  EXPECT_EQ(contents("a"), before);
  EXPECT_NE(read(dir_ / "b" / "metrics.jsonl"), "");
}

TEST_F(Resume, WhatIsMadeOfADamagedCheckpointIsSaid) {
  train("a");
  EXPECT_EQ(linnet({"eval", at("a")}).err.find("not used"), std::string::npos);
  flip_last_bit(checkpoint("a", 12, "model.safetensors"));
  for (const Args& args :
       {Args{"eval", at("a")}, {"export", at("a"), "-o", at("a.onnx")}, {"fork", at("a"), config()}}) {
    Args all = args;
    if (args[0] == "fork") all.insert(all.end(), {"--out", at("c")});
    const Ended ended = linnet(all);
    EXPECT_EQ(ended.code, 0) << ended.err;
    expect_has(ended.err, "note: checkpoint 00000012 is not used: ");
    expect_has(ended.err, "note: the weights are those of step ");
  }
  for (const auto& entry : fs::directory_iterator(dir_ / "a" / "checkpoints"))
    fs::resize_file(entry.path() / "model.safetensors", 9);
  const Ended ended = linnet({"eval", at("a")});
  EXPECT_EQ(ended.code, 0) << ended.err;
  expect_has(ended.err, "of which nothing tells whether they are whole");
}

TEST_F(Resume, AnEnvJsonOfAnyShapeIsNoObstacle) {
  train("a", "checkpoint.keep = 100\n");
  rewind("a", 3);
  json env = json::parse(read(dir_ / "a" / "env.json"));
  for (int i = 0; i < 50000; ++i) env["k" + std::to_string(i)] = "v";  // quadratic, this took half a minute
  env["earlier"] = {1, "x", env};
  env["x"] = json::parse("[[[[[[1]]]]]]");  // one level more than may stand in "earlier"
  std::ofstream(dir_ / "a" / "env.json") << env;
  for (const int step : {3, 1}) {
    rewind("a", step);
    const Ended ended = linnet({"resume", at("a")});
    ASSERT_EQ(ended.code, 0) << ended.err;
  }
  EXPECT_LT(fs::file_size(dir_ / "a" / "env.json"), 20000);
  EXPECT_EQ(json::parse(read(dir_ / "a" / "env.json"))["earlier"].size(), 5);
}

TEST_F(Resume, ALogThatWasShiftedIsToldAsThat) {
  train("a");
  rewind("a", 3);
  const std::string log = read(dir_ / "a" / "metrics.jsonl");
  std::ofstream(dir_ / "a" / "metrics.jsonl") << "x\n" << log;
  const auto before = contents("a");
  const Ended ended = linnet({"resume", at("a")});
  EXPECT_EQ(ended.code, 4);
  expect_has(ended.err, "end within a line; put it back");
  EXPECT_EQ(contents("a"), before);
}

TEST_F(Resume, AKillWhileItStartedIsNoObstacle) {
  train("a");
  fs::create_directory(at("b"));
  for (const char* left : {"LOCK", ".linnet-123-0.tmp"}) std::ofstream(dir_ / "b" / left) << "x";
  const Ended again = linnet({"train", config(), "--out", at("b")});
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_FALSE(fs::exists(dir_ / "b" / ".linnet-123-0.tmp"));
  expect_same("a", "b");

  fs::create_directory(at("c"));
  fs::copy(dir_ / "a" / "config.toml", at("c"));
  const Ended first = linnet({"resume", at("c")});
  EXPECT_EQ(first.code, 0) << first.err;
  expect_has(first.err, "has no checkpoint yet: it starts at step 0");
  expect_same("a", "c");
}

TEST_F(Resume, ForkStartsFromARunOrAFile) {
  train("a");
  for (const std::string& source : {at("a"), at("a") + "/model.safetensors"}) {
    fs::remove_all(at("b"));
    const Ended ended =
        linnet({"fork", source, config(), "--out", at("b"), "--set", "optimizer.lr=1e-9", "--epochs", "1"});
    EXPECT_EQ(ended.code, 0) << ended.err;
    const auto accuracy = [&](const char* run) {
      return double(json::parse(read(dir_ / run / "summary.json"))["test/acc"]);
    };
    EXPECT_EQ(accuracy("a"), accuracy("b"));
    EXPECT_EQ(json::parse(read(dir_ / "b" / "summary.json"))["step"], 3);
  }
  const Ended other = linnet({"fork", at("a"), config(), "--out", at("c"), "--set", "model.name=mlp"});
  EXPECT_NE(other.code, 0);
  EXPECT_FALSE(fs::exists(at("c")));
}

// Its weights are in its first checkpoint alone: before there is one, there is no run that could be resumed. What was
// refused or killed before then is no obstacle to the same command.
TEST_F(Resume, AForkBeforeItsFirstCheckpointIsNoRun) {
  train("a");
  ASSERT_EQ(linnet({"fork", at("a"), config(), "--out", at("b")}).code, 0);
  fs::create_directory(at("c"));  // a limit of the process: the checkpoint cannot be written
  const pid_t pid = fork();
  if (pid == 0) {
    const rlimit none{1000, 1000};
    setrlimit(RLIMIT_FSIZE, &none);
    _exit(linnet({"fork", at("a"), config(), "--out", at("c")}).code);
  }
  int status = 0;
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 4) << status;
  EXPECT_TRUE(fs::exists(at("c") + "/checkpoints"));
  const Ended resumed = linnet({"resume", at("c")});
  EXPECT_EQ(resumed.code, 2) << resumed.err;
  expect_has(resumed.err, "there is no run in");
  fs::create_directory(at("c") + "/checkpoints/.tmp-00000000-1");  // as a kill leaves it
  fs::copy(fs::directory_iterator(at("a") + "/checkpoints")->path(), at("c") + "/checkpoints/00000000",
           fs::copy_options::recursive);
  const Ended again = linnet({"fork", at("a"), config(), "--out", at("c")});
  EXPECT_EQ(again.code, 0) << again.err;
  expect_same("b", "c");
  fs::remove(at("c") + "/config.toml");  // but a run that has lost its config is not overwritten
  expect_has(linnet({"fork", at("a"), config(), "--out", at("c")}).err, "exists and is not empty");
  for (const char* file : {"env.json", "metrics.jsonl", "timing.jsonl", "summary.json", "model.safetensors"})
    fs::remove(at("c") + "/" + file);  // nor where checkpoints are all that is left of it
  expect_has(linnet({"fork", at("a"), config(), "--out", at("c")}).err, "exists and is not empty");
}

// What it began from is in its first checkpoint alone, so without one it cannot start over.
TEST_F(Resume, AForkWithoutItsCheckpointsIsNotStartedOver) {
  train("a");
  ASSERT_EQ(linnet({"fork", at("a"), config(), "--out", at("b")}).code, 0);
  expect_has(read(dir_ / "b" / "env.json"), "checkpoint ");
  for (int sitting = 0; sitting < 2; ++sitting) {
    std::ofstream(dir_ / "b" / "summary.json") << R"({"status":"running"})";  // killed in its first epoch
    fs::remove(dir_ / "b" / "model.safetensors");
    const std::string log = read(dir_ / "b" / "metrics.jsonl");
    std::ofstream(dir_ / "b" / "metrics.jsonl") << log.substr(0, log.find('\n') + 1);
    fs::rename(dir_ / "b" / "checkpoints", dir_ / ("aside" + std::to_string(sitting)));
    fs::create_directory(dir_ / "b" / "checkpoints");
    const Ended ended = linnet({"resume", at("b")});
    EXPECT_EQ(ended.code, 4) << ended.err;
    expect_has(ended.err, "are gone");
    if (sitting > 0) break;
    fs::remove(dir_ / "b" / "checkpoints");  // a sitting in between does not forget it
    fs::rename(dir_ / "aside0", dir_ / "b" / "checkpoints");
    std::ofstream(dir_ / "b" / "metrics.jsonl") << log;
    EXPECT_EQ(linnet({"resume", at("b")}).code, 0);
  }
}

TEST_F(Resume, ARunThatBeginsAtThisMomentHasTheFolder) {
  fs::create_directory(at("a"));
  const int lock = open((at("a") + "/LOCK").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  ASSERT_EQ(flock(lock, LOCK_EX), 0);
  std::ofstream(at("a") + "/env.json") << "{}";
  const Ended ended = linnet({"train", config(), "--out", at("a")});
  EXPECT_EQ(ended.code, 7) << ended.err;
  close(lock);
}

// What a message says to type can be typed.
TEST_F(Resume, AdviceIsQuotedForAShell) {
  for (const char* name : {"two words", "it's", "new\nline", "$HOME"}) {
    const Ended ended = linnet(
        {"train", config(), "--out", at(name), "--epochs", "1000000", "--max-time", "0.05s", "--set", "data.val=0"});
    EXPECT_EQ(ended.code, 143) << ended.err;
    const std::string mark = "go on with: linnet resume ";
    const size_t at = ended.err.find(mark);
    ASSERT_NE(at, ended.err.npos) << ended.err;
    const std::string word = ended.err.substr(at + mark.size(), ended.err.find('\n', at) - at - mark.size());
    EXPECT_EQ(linnet::shell_output("bash <<'EOF'\ntest -e " + word + "/config.toml\nEOF").code, 0) << word;
  }
}

TEST_F(Resume, MaxTimeSavesAndStops) {
  const Ended ended = linnet({"train", config(), "--out", at("a"), "--epochs", "1000000", "--max-time", "0.3s"});
  EXPECT_EQ(ended.code, 143) << ended.err;
  expect_has(ended.err, "stopped by --max-time after step ");
  const json summary = json::parse(read(dir_ / "a" / "summary.json"));
  EXPECT_EQ(summary["status"], "interrupted");
  const Ended more = linnet({"resume", at("a"), "--max-time", "0.2s"});
  EXPECT_EQ(more.code, 143) << more.err;
  EXPECT_EQ(linnet({"resume", at("a"), "--max-time", "soon"}).code, 2);
}

TEST_F(Resume, CheckComparesAKilledRunWithAStraightOne) {
  const Ended ended = linnet({"check", config(), "--only", "resume", "--set", "model.name=convnet", "--epochs=20"});
  EXPECT_EQ(ended.code, 2);  // it has no such option
  const Ended good =
      linnet({"check", config(), "--only", "resume", "--set", "model.name=convnet", "--set", "train.epochs=20"});
  EXPECT_EQ(good.code, 0) << good.out << good.err;
  expect_has(good.out, "resume: PASS  24 steps straight ");
}

TEST_F(Resume, CheckEndsWith5WhereOneFails) {
  const Ended bad = linnet(
      {"check", config(), "--only", "flow,loss", "--set", "optimizer.lr=100", "--set", "model.name=convnet_nobn"});
  EXPECT_EQ(bad.code, 5) << bad.out << bad.err;
  expect_has(bad.out, "flow: PASS  norms of the layers' gradients from ");
  expect_has(bad.out, "loss: FAIL  ");
  expect_has(bad.out, "  what to do: ");
  const Ended good = linnet({"check", config(), "--only", "flow", "--json"});
  EXPECT_EQ(good.code, 0) << good.err;
  EXPECT_TRUE(json::parse(good.out)["passed"]);
  EXPECT_EQ(linnet({"check", config(), "--only", "flw"}).code, 2);
}

TEST_F(Resume, ADivergedRunReplaysItsStep) {
  const Ended ended = linnet({"train", config(), "--out", at("a"), "--set", "model.name=convnet_nobn", "--set",
                              "optimizer.lr=5000", "--set", "optimizer.momentum=0"});
  EXPECT_EQ(ended.code, 5) << ended.err;
  const std::string bad = read(dir_ / "a" / "nonfinite.json"), metrics = read(dir_ / "a" / "metrics.jsonl");
  const json seen = json::parse(bad);
  EXPECT_EQ(seen["samples"].size(), 32u);
  EXPECT_NE(seen["where"], "");
  fs::remove(dir_ / "a" / "nonfinite.json");
  const Ended again = linnet({"resume", at("a")});
  EXPECT_EQ(again.code, 5) << again.err;
  EXPECT_EQ(read(dir_ / "a" / "nonfinite.json"), bad);
  EXPECT_EQ(read(dir_ / "a" / "metrics.jsonl"), metrics);
}

TEST_F(Resume, AChangedLogIsSeen) {
  ASSERT_EQ(linnet({"train", config(), "--out", at("a"), "--epochs", "2"}).code, 0);
  std::string rows = read(dir_ / "a" / "metrics.jsonl");
  ++rows[rows.find("train/loss") + 13];
  std::ofstream(dir_ / "a" / "metrics.jsonl") << rows;
  const Ended more = linnet({"resume", at("a"), "--epochs", "3"});
  EXPECT_EQ(more.code, 0) << more.err;
  expect_has(more.err, "metrics.jsonl was changed since step ");
}

TEST_F(Resume, WhatOnlyTellsOfARunMayBeMovedAway) {
  train("a");
  for (const char* file : {"summary.json", "env.json"}) {
    const std::string text = read(dir_ / "a" / file);
    std::ofstream(dir_ / "a" / file) << "{";
    const Ended ended = linnet({"resume", at("a")});
    EXPECT_EQ(ended.code, 4) << ended.err;
    expect_has(ended.err, "put the file back or move it away: the run can go on without it");
    fs::remove(dir_ / "a" / file);
    EXPECT_EQ(linnet({"resume", at("a")}).code, 0);
  }
}

TEST_F(Resume, FilesOfAnotherShapeAreNoCrash) {
  train("a");
  for (const char* file : {"env.json", "summary.json"})
    for (const char* text : {"[]", "5", "{\"data\": 5}", "{\"data\": {\"train\": []}}", "{\"status\": {}}"}) {
      std::ofstream(dir_ / "a" / file) << text;
      const Ended ended = linnet({"resume", at("a")});
      EXPECT_EQ(ended.code, 0) << file << " = " << text << ": " << ended.err;
    }
}

TEST_F(Resume, LostLinesOfTheMetricsAreToldAndThoseOfTheTimesAreNot) {
  train("a");
  fs::remove(dir_ / "a" / "timing.jsonl");
  const Ended times = linnet({"resume", at("a"), "--epochs", "5"});
  EXPECT_EQ(times.code, 0) << times.err;
  const std::string rows = read(dir_ / "a" / "metrics.jsonl");
  fs::resize_file(dir_ / "a" / "metrics.jsonl", 10);
  const Ended ended = linnet({"resume", at("a"), "--epochs", "6"});
  EXPECT_EQ(ended.code, 4) << ended.err;
  expect_has(ended.err, "metrics.jsonl has 10 bytes");
  expect_has(ended.err, "linnet fork");
  std::ofstream(dir_ / "a" / "metrics.jsonl") << rows;
  EXPECT_EQ(linnet({"resume", at("a"), "--epochs", "6"}).code, 0);
}

TEST_F(Resume, WhatGoesWrongBesideASaveIsToldOnce) {
  train("a");
  fs::create_directories(dir_ / "a" / "checkpoints" / ".tmp-00000007-1" / "deeper");
  const Ended ended = linnet({"resume", at("a"), "--epochs", "6"});
  EXPECT_EQ(ended.code, 0) << ended.err;
  const std::string warning = "warning: what was left of a checkpoint is not removed: ";
  expect_has(ended.err, warning);
  EXPECT_EQ(ended.err.find(warning), ended.err.rfind(warning));
}

// The name of a folder and what its files say may be anybody's.
TEST_F(Resume, NothingIsPrintedAsItIs) {
  const std::string name = "a\x1b[31m";
  train(name);
  json summary = json::parse(read(dir_ / name / "summary.json"));
  summary["status"] = "\x1b[32mdone\u202e";
  std::ofstream(dir_ / name / "summary.json") << summary;
  fs::create_directory(dir_ / "none\x1b[31m");
  for (const Args& args :
       {Args{"runs", dir_.path()}, Args{"resume", at("none\x1b[31m")}, Args{"eval", at("none\x1b[31m")},
        Args{"train", config(), "--out", at(name)}, Args{"\x1b[31m"}}) {
    const Ended ended = linnet(args);
    EXPECT_EQ((ended.out + ended.err).find('\x1b'), std::string::npos) << args[0];
    EXPECT_EQ(ended.out.find("\u202e"), std::string::npos);
    expect_has(ended.out + ended.err, "\\x1b[31m");
  }
  std::string log = read(dir_ / name / "metrics.jsonl");
  const std::string forged = R"("grad_norm/\u001b[31mlayer":1,"update_norm/\u001b[31mlayer":1,)";
  for (size_t i = 0; (i = log.find("\"grad_norm\"", i)) != log.npos; i += forged.size() + 1) log.insert(i, forged);
  std::ofstream(dir_ / name / "metrics.jsonl") << log;
  fs::copy(at(name), at("other"), fs::copy_options::recursive);
  for (size_t i = 0; (i = log.find("layer\":1", i)) != log.npos;) log[i + 7] = '2';
  std::ofstream(dir_ / "other" / "metrics.jsonl") << log;
  for (const Args& args : {Args{"watch", at(name), "--once"}, Args{"diff", at(name), at("other")},
                           Args{"export", at(name), "-o", at("net\x1b[31m.onnx")},
                           Args{"fork", at(name), config(), "--out", at("fork\x1b[31m")}}) {
    const Ended ended = linnet(args);
    EXPECT_EQ(ended.code, 0) << ended.err;
    EXPECT_EQ((ended.out + ended.err).find("\x1b[31m"), std::string::npos) << args[0];
    expect_has(ended.out + ended.err, "\\x1b[31m");
  }
}

TEST_F(Resume, APipeAsConfigIsRefused) {
  fs::create_directory(dir_ / "a");
  ASSERT_EQ(::mkfifo((dir_ / "a" / "config.toml").c_str(), 0600), 0);
  const Ended ended = linnet({"resume", at("a")});
  EXPECT_EQ(ended.code, 2) << ended.err;
  expect_has(ended.err, "expected a regular file");
}

TEST_F(Resume, ADiskThatIsTooSmallIsRefusedBeforeTraining) {
  fs::create_directory(at("small"));
  const Ended ended = linnet({"train", config(), "--out", at("small") + "/run"}, true);
  if (ended.code == 77) GTEST_SKIP() << "no right to mount a tmpfs";
  EXPECT_EQ(ended.code, 4) << ended.err;
  expect_has(ended.err, "4 checkpoints of ");
  expect_has(ended.err, " are free; free some or keep fewer checkpoints");
}

}  // namespace
