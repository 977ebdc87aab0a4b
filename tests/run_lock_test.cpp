// The lock of a run folder: one process has it, the message names that one, and a kill frees it.
#include "src/train/run_lock.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <fstream>

#include "tests/temp_dir.h"

namespace linnet {
namespace {

std::string refusal(const std::filesystem::path& run) {
  try {
    const RunLock lock(run);
  } catch (const Error& error) {
    EXPECT_EQ(error.exit, Exit::locked) << error.what();
    return error.what();
  }
  return "";
}

// A child that takes the lock, says so ('y' or 'n') and stays until it is told to go or killed.
struct Child {
  pid_t pid = 0;
  int said[2], go[2];

  explicit Child(const std::filesystem::path& run) {
    if (pipe(said) != 0 || pipe(go) != 0) throw std::runtime_error("pipe");
    if ((pid = fork()) != 0) return;
    char byte = 'n', told;
    close(go[1]);
    try {
      const RunLock lock(run);
      byte = 'y';
      if (write(said[1], &byte, 1) != 1 || read(go[0], &told, 1) < 0) _exit(2);
      _exit(0);
    } catch (const Error& error) {
      if (write(said[1], &byte, 1) != 1) _exit(2);
      _exit(int(error.exit));
    }
  }
  char answer() const {
    char byte = '?';
    return read(said[0], &byte, 1) == 1 ? byte : '?';
  }
  int end() {  // its status
    close(go[1]);
    int status = 0;
    waitpid(pid, &status, 0);
    for (const int fd : {said[0], said[1], go[0]}) close(fd);
    return status;
  }
};

TEST(RunLock, OneHolderAndAMessageThatNamesIt) {
  const TempDir run;
  {
    const RunLock lock(run.path());
    EXPECT_EQ(lock.warning(), "");
    const std::string message = refusal(run.path());  // another descriptor of the same process is another holder
    EXPECT_NE(message.find(fmt::format("process {} on ", getpid())), std::string::npos) << message;
    EXPECT_NE(message.find(", which started at 2"), std::string::npos) << message;
  }
  EXPECT_EQ(refusal(run.path()), "");  // the control: free again
}

// Who takes LOCK for the trace of a killed process removes it.
TEST(RunLock, HoldsWithoutItsFile) {
  const TempDir run;
  const RunLock lock(run.path());
  std::filesystem::remove(run / "LOCK");
  EXPECT_NE(refusal(run.path()).find("is in use by "), std::string::npos);
}

TEST(RunLock, RacingPairs) {
  for (int round = 0; round < 40; ++round) {
    const TempDir run;
    Child a(run.path()), b(run.path());
    const std::string answers = {a.answer(), b.answer()};
    EXPECT_TRUE(answers == "yn" || answers == "ny") << answers;
    const int statuses[] = {a.end(), b.end()};
    for (int i = 0; i < 2; ++i) EXPECT_EQ(WEXITSTATUS(statuses[i]), answers[size_t(i)] == 'y' ? 0 : 7) << answers;
    EXPECT_EQ(refusal(run.path()), "");
  }
}

TEST(RunLock, AKillFreesIt) {
  const TempDir run;
  for (int round = 0; round < 10; ++round) {
    Child child(run.path());
    ASSERT_EQ(child.answer(), 'y');
    EXPECT_NE(refusal(run.path()).find(fmt::format("process {} ", child.pid)), std::string::npos);
    kill(child.pid, SIGKILL);
    EXPECT_TRUE(WIFSIGNALED(child.end()));
    EXPECT_EQ(refusal(run.path()), "");
  }
}

TEST(RunLock, LeftOverOrHostileContentOnlyChangesTheMessage) {
  const TempDir run;
  for (const std::string& content :
       {std::string("{}"), std::string("\x1b[31m"), std::string(100'000, '['),
        std::string(R"({"pid":999999999,"host":"\u001b[31m","boot_id":"x","start":""})")}) {
    std::ofstream(run / "LOCK") << content;
    EXPECT_EQ(refusal(run.path()), "");
    const RunLock lock(run.path());
    std::ofstream(run / "LOCK") << content;
    const std::string message = refusal(run.path());
    EXPECT_NE(message.find("is in use by "), std::string::npos);
    EXPECT_EQ(message.find('\x1b'), std::string::npos);
  }
}

TEST(RunLock, SomebodysOwnFileOfThatNameIsNotOverwritten) {
  const TempDir run;
  std::ofstream(run / "LOCK") << "notes on locks";
  {
    const RunLock lock(run.path());
    EXPECT_NE(refusal(run.path()).find("is in use by another process"), std::string::npos);
  }
  std::string left;
  std::getline(std::ifstream(run / "LOCK"), left);
  EXPECT_EQ(left, "notes on locks");
}

TEST(RunLock, APipeOfThatNameIsNotWaitedFor) {
  const TempDir run;
  ASSERT_EQ(::mkfifo((run / "LOCK").c_str(), 0600), 0);
  EXPECT_EQ(refusal(run.path()), "");
}

TEST(RunLock, KnowsItsFolderFromAnotherOfThatName) {
  const TempDir dir;
  std::filesystem::create_directory(dir / "run");
  const RunLock lock(dir / "run");
  EXPECT_TRUE(lock.holds(dir / "run"));
  std::filesystem::rename(dir / "run", dir / "moved");
  EXPECT_FALSE(lock.holds(dir / "run"));
  std::filesystem::create_directory(dir / "run");
  EXPECT_FALSE(lock.holds(dir / "run"));
  EXPECT_TRUE(lock.holds(dir / "moved"));
}

TEST(RunLock, FailuresOfTheDiskAreNotTakenForALock) {
  const TempDir run;
  try {
    const RunLock lock(run / "missing");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit, Exit::checkpoint);
  }
}

}  // namespace
}  // namespace linnet
