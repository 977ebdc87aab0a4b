// linnet schedule: what it prints in a pipe, on terminals, as JSON and as SVG.
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli_run.h"
#include "linnet/text.h"
#include "temp_dir.h"

namespace linnet {
namespace {

using nlohmann::json;

class CliSchedule : public testing::Test {
 protected:
  // 960 training images, 30 steps an epoch.
  std::string config(const std::string& more) {
    const auto path = dir_ / "c.toml";
    std::ofstream(path) << "data.name = 'synthetic'\ndata.samples = 1060\ndata.val = 100\ntrain.batch_size = 32\n"
                           "train.epochs = 40\noptimizer.lr = 0.1\n"
                        << more;
    return path.string();
  }

  Ended linnet(const std::string& arguments) {
    const std::string command = std::string("env -u COLUMNS '") + std::filesystem::absolute(LINNET_EXE).string() +
                                "' schedule " + arguments + " > '" + (dir_ / "out").string() + "' 2> '" +
                                (dir_ / "err").string() + "'";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read(dir_ / "out"), read(dir_ / "err")};
  }

  std::string on_terminal(const std::string& config, unsigned short columns, const char* term, const char* locale) {
    int terminal = -1;
    const winsize size{.ws_row = 24, .ws_col = columns};
    const pid_t pid = forkpty(&terminal, nullptr, nullptr, &size);
    if (pid == 0) {
      setenv("TERM", term, 1);
      setenv("LC_ALL", locale, 1);
      const std::string exe = std::filesystem::absolute(LINNET_EXE).string();
      execl(exe.c_str(), "linnet", "schedule", config.c_str(), nullptr);
      _exit(127);
    }
    std::string all;
    char buffer[4096];
    for (ssize_t n; (n = ::read(terminal, buffer, sizeof buffer)) > 0;) all.append(buffer, size_t(n));
    close(terminal);
    int status = 0;
    waitpid(pid, &status, 0);
    EXPECT_EQ(status, 0) << all;
    for (size_t at; (at = all.find("\r\n")) != all.npos;) all.erase(at, 1);
    return all;
  }

  TempDir dir_;
};

const std::string kMultistep = "schedule.name = 'multistep'\nschedule.milestones = [20, 30]\nschedule.warmup = 4\n";

TEST_F(CliSchedule, InAPipeItIsPlainText) {
  const Ended ended = linnet(config(kMultistep));
  ASSERT_EQ(ended.code, 0) << ended.err;
  expect_has(ended.out, "multistep: 40 epochs of 30 steps\n");
  for (const char* part :
       {"\n  0.1 +", " 0.01 +", "0.001 +", "epoch\n", ": 4: end of the warmup\n", ": 20, 30: times 0.1\n"})
    expect_has(ended.out, part);
  for (const char c : ended.out) EXPECT_TRUE(c == '\n' || (c >= ' ' && c <= '~')) << ended.out;
}

TEST_F(CliSchedule, FitsATerminalOfFortyColumns) {
  for (const auto& [term, locale, braille] :
       {std::tuple("xterm", "C.UTF-8", true), {"dumb", "C.UTF-8", false}, {"xterm", "C", false}}) {
    const std::string screen = on_terminal(config(kMultistep), 40, term, locale);
    EXPECT_EQ(screen.find("\u28c0") != screen.npos, braille) << screen;
    EXPECT_EQ(screen.find('\x1b'), screen.npos);
    size_t widest = 0;
    for (const std::string& line : lines_of(screen)) widest = std::max(widest, count_chars(line));
    EXPECT_LE(widest, 40u) << screen;
    EXPECT_GE(widest, 38u) << screen;
  }
}

// With 25 points an epoch (30 steps do not fit into 1000 points); the values are known.
TEST_F(CliSchedule, Json) {
  const Ended ended = linnet(config(kMultistep) + " --json");
  ASSERT_EQ(ended.code, 0) << ended.err;
  const json points = json::parse(ended.out);
  EXPECT_LE(points.size(), 1000u);
  EXPECT_GE(points.size(), 900u);
  EXPECT_EQ(points[0], json({{"epoch", 0.0}, {"step", 0}, {"lr", 0.1 / 120}}));
  EXPECT_EQ(points.back()["step"], 40 * 30 - 1);
  int64_t before = -1;
  for (const json& p : points) {
    const auto step = p["step"].get<int64_t>();
    EXPECT_GT(step, before);
    before = step;
    EXPECT_NEAR(p["epoch"].get<double>(), double(step) / 30, 1e-12);
    const double lr = step < 120 ? 0.1 * double(step + 1) / 120 : step < 600 ? 0.1 : step < 900 ? 0.01 : 0.001;
    EXPECT_NEAR(p["lr"].get<double>(), lr, 1e-12 * lr) << step;
  }
  // A long run: every so many epochs, and the last step.
  const json few = json::parse(linnet(config("") + " --json --set train.epochs=100000").out);
  EXPECT_LE(few.size(), 1000u);
  EXPECT_GE(few.size(), 900u);
  EXPECT_EQ(few.back()["step"], 100000 * 30 - 1);
}

TEST_F(CliSchedule, StepsAnEpoch) {
  const auto steps = [&](const std::string& more, const std::string& options = "") {
    const Ended ended = linnet(config(more) + options);
    EXPECT_EQ(ended.code, 0) << ended.err;
    const size_t at = ended.out.find("epochs of ");
    return at == ended.out.npos ? -1 : std::atoi(ended.out.c_str() + at + 10);
  };
  EXPECT_EQ(steps("data.drop_last = true\n"), 30);
  EXPECT_EQ(steps("", " --set train.batch_size=500"), 1);
  EXPECT_EQ(steps("data.drop_last = false\n", " --set train.batch_size=500"), 2);
  EXPECT_EQ(steps("train.accumulate = 4\n"), 8);
  EXPECT_EQ(steps("train.accumulate = 4\ntrain.accumulate_tail = 'drop'\n"), 7);
  EXPECT_EQ(steps("train.accumulate = 0\n"), 1);
  EXPECT_EQ(steps("", " --steps-per-epoch 12"), 12);
}

TEST_F(CliSchedule, TheRateIsScaledWithTheBatch) {
  const json points = json::parse(
      linnet(config("schedule.name = 'constant'\ntrain.lr_scaling = 'linear'\ntrain.lr_batch_size = 16\n") + " --json")
          .out);
  EXPECT_NEAR(points[0]["lr"].get<double>(), 0.2, 1e-15);
}

TEST_F(CliSchedule, APhaseBeginsItsOwn) {
  const std::string file = config(
      "schedule.name = 'constant'\n[[phase]]\nepoch = 10\noptimizer.name = 'sgd'\noptimizer.lr = 0.5\n"
      "schedule.name = 'linear'\nschedule.warmup = 1\n");
  const json points = json::parse(linnet(file + " --json").out);
  for (const json& p : points) {
    const auto step = p["step"].get<int64_t>() - 300;
    const double lr = step < 0 ? 0.1 : step < 30 ? 0.5 * double(step + 1) / 30 : 0.5 * double(900 - step) / 870;
    EXPECT_NEAR(p["lr"].get<double>(), lr, 1e-12) << step;
  }
  const Ended drawn = linnet(file);
  expect_has(drawn.out, "constant, then linear");
  expect_has(drawn.out, ": 10: phase with sgd\n");
  expect_has(drawn.out, ": 11: end of the warmup\n");
}

TEST_F(CliSchedule, APlateauIsSaidToDependOnTheMetric) {
  const std::string file = config("schedule.name = 'plateau'\nschedule.warmup = 2\nschedule.patience = 7\n");
  const Ended drawn = linnet(file);
  expect_has(drawn.out, "plateau: after more than 7 epochs without a better val/loss");
  const Ended as_json = linnet(file + " --json");
  expect_has(as_json.err, "depends on the");
  EXPECT_TRUE(json::parse(as_json.out).is_array());
}

TEST_F(CliSchedule, Svg) {
  const std::string path = (dir_ / "lr.svg").string();
  const Ended ended = linnet(config(kMultistep) + " --svg '" + path + "'");
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_EQ(ended.out, path + "\n");
  const std::string svg = read(path);
  EXPECT_TRUE(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  for (const char* part : {"prefers-color-scheme:dark", "<path class=\"c0\" d=\"M", ">learning rate</text>",
                           "<title>20: times 0.1</title>"})
    expect_has(svg, part);
  EXPECT_LT(svg.size(), 30000u);
  for (const char* bad : {"nan", "inf", "href", "<script"}) EXPECT_EQ(svg.find(bad), svg.npos) << bad;
}

TEST_F(CliSchedule, BadInput) {
  const auto expect_refused = [&](const std::string& arguments, int code, const std::string& message) {
    const Ended ended = linnet(arguments);
    EXPECT_EQ(ended.code, code) << arguments << ended.err;
    EXPECT_EQ(ended.out, "");
    expect_has(ended.err, message);
  };
  expect_refused("'" + (dir_ / "none.toml").string() + "'", 2, "none.toml");
  expect_refused(config("schedule.name = 'multistep'\nschedule.milestones = [50]\n"), 2, "c.toml:8");
  expect_refused(config("") + " --set train.batch_size=2000", 2, "960 training images do not fill one batch of 2000");
  expect_refused(config("train.accumulate_tail = 'drop'\n") + " --set train.accumulate=31", 2,
                 "960 training images do not fill the 31 batches of a step");
  expect_refused(config("") + " --steps-per-epoch 0", 2, "--steps-per-epoch");
  expect_refused(config("") + " --svg '" + (dir_ / "no/such/folder.svg").string() + "'", 4, "folder.svg");
}

}  // namespace
}  // namespace linnet
