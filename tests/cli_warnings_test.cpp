// Warnings as a person or a script meets them: where they are printed, and what --strict makes of them.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli_run.h"
#include "temp_dir.h"

namespace linnet {
namespace {

using nlohmann::json;

class CliWarnings : public testing::Test {
 protected:
  Ended linnet(const std::string& arguments) { return run_in_shell(arguments); }
  // 3 steps an epoch of a net that learns within seconds.
  std::string config(const std::string& more = "") {
    const auto path = dir_ / "c.toml";
    std::ofstream(path) << "data.name = 'synthetic'\ndata.samples = 120\ndata.val = 24\ndata.image_size = 16\n"
                           "model.name = 'linear'\ntrain.epochs = 2\ntrain.batch_size = 32\nlog.interval = 1\n"
                           "optimizer.lr = 0.01\n"
                        << more;
    return path.string();
  }
  std::string run(const std::string& name) { return (dir_ / name).string(); }
  json summary(const std::string& name) { return json::parse(std::ifstream(dir_ / name / "summary.json")); }

  TempDir dir_;
};

int times(const std::string& text, const std::string& part) {
  int n = 0;
  for (size_t at = 0; (at = text.find(part, at)) != text.npos; ++at) ++n;
  return n;
}

TEST_F(CliWarnings, AreListed) {
  const Ended text = linnet("list warnings"), as_json = linnet("list warnings --json");
  EXPECT_EQ(text.code, 0);
  expect_has(text.out, "W30");
  const json table = json::parse(as_json.out);
  ASSERT_EQ(table.size(), 30u);
  EXPECT_EQ(table[5]["id"], "W6");
  EXPECT_EQ(table[5]["kind"], "start");
  expect_has(table[5]["advice"], "Use adamw");
  EXPECT_TRUE(table[5].contains("text"));
}

TEST_F(CliWarnings, AGoodConfigHasNone) {
  const Ended ended = linnet("train " + config() + " --strict --out " + run("a"));
  EXPECT_EQ(ended.code, 0) << ended.out;
  EXPECT_EQ(times(ended.out, "warning W"), 0) << ended.out;
}

TEST_F(CliWarnings, BeforeTrainingTheyAreToldOnceAndStrictStopsBeforeAFolderIsMade) {
  const std::string train = "train " + config("data.shuffle = false\n") + " --out " + run("a");
  const Ended strict = linnet(train + " --strict");
  EXPECT_EQ(strict.code, 2) << strict.out;
  expect_has(strict.out, "warning W10: data.shuffle is off. ");
  expect_has(strict.out, "error: --strict: W10 is an error");
  EXPECT_FALSE(std::filesystem::exists(run("a")));
  const Ended mild = linnet(train);
  EXPECT_EQ(mild.code, 0) << mild.out;
  EXPECT_EQ(times(mild.out, "W10"), 1) << mild.out;
  EXPECT_EQ(linnet("resume " + run("a") + " --epochs 3 --strict").code, 2);
  EXPECT_EQ(linnet("resume " + run("a") + " --epochs 3").code, 0);  // the refusal has left it whole
}

TEST_F(CliWarnings, NotesAreNoErrors) {
  const Ended ended = linnet("train " + config("optimizer.momentum = 0.4\n") + " --strict --out " + run("a"));
  EXPECT_EQ(ended.code, 0) << ended.out;
  expect_has(ended.out, "note W4: momentum = 0.4 is below 0.5. ");
}

// Every step is clipped.
TEST_F(CliWarnings, WhileTrainingStrictSavesAndEndsWith5) {
  const std::string train = "train " + config() + " --set optimizer.clip_norm=1e-9 --set log.interval=10 --epochs 60 ";
  const Ended mild = linnet(train + "--out " + run("a"));
  EXPECT_EQ(mild.code, 0) << mild.out;
  EXPECT_EQ(times(mild.out, "warning W21: "), 1) << mild.out;
  expect_has(mild.out, "100 % of the steps up to step ");

  const Ended strict = linnet(train + "--strict --out " + run("b"));
  EXPECT_EQ(strict.code, 5) << strict.out;
  expect_has(strict.out, "error: --strict: W");
  EXPECT_EQ(summary("b")["status"], "failed");
  expect_has(summary("b")["reason"], "--strict: W");
  for (const char* file : {"model.safetensors", "metrics.jsonl"})
    EXPECT_TRUE(std::filesystem::exists(dir_ / "b" / file)) << file;
  // It was saved where it stood: it can go on, and ends as the other one.
  const Ended resumed = linnet("resume " + run("b"));
  EXPECT_EQ(resumed.code, 0) << resumed.out;
  EXPECT_EQ(summary("b")["hash"], summary("a")["hash"]);
}

TEST_F(CliWarnings, AForkKnowsWhereItComesFrom) {
  ASSERT_EQ(linnet("train " + config() + " --out " + run("a")).code, 0);
  const std::string fork = "fork " + run("a") + " " + config() + " --set train.batch_size=64 ";
  const Ended mild = linnet(fork + "--out " + run("b")), strict = linnet(fork + "--strict --out " + run("c"));
  EXPECT_EQ(mild.code, 0) << mild.out;
  expect_has(mild.out, "warning W12: 64 images in a step, and 32 before, at the same lr = 0.01. ");
  EXPECT_EQ(strict.code, 2) << strict.out;
  const Ended from_file =
      linnet("fork " + run("a") + "/model.safetensors " + config() + " --set train.batch_size=64 --out " + run("d"));
  EXPECT_EQ(from_file.code, 0) << from_file.out;
  EXPECT_EQ(times(from_file.out, "W12"), 0) << from_file.out;
}

TEST_F(CliWarnings, DivergenceIsW13WithTheLastGoodStep) {
  const Ended ended =
      linnet("train " + config() + " --epochs 20 --set model.name=mlp --set optimizer.lr=1e4 --out " + run("a"));
  EXPECT_EQ(ended.code, 5) << ended.out;
  expect_has(ended.out, "error: training diverged: the loss is ");
  expect_has(ended.out, "check the data: linnet data verify. The last good step was ");
  expect_has(ended.out, "(W13)");
  expect_has(summary("a")["reason"], "(W13)");
}

TEST_F(CliWarnings, InputThatIsNotFiniteIsRefused) {
  const Ended ended =
      linnet("train " + config("data.mean = [0.5, 0.5, 0.5]\ndata.std = [0.2, 1e-300, 0.2]\n") + " --out " + run("a"));
  EXPECT_EQ(ended.code, 2) << ended.out;
  expect_has(ended.out, "error: W27: ");
  EXPECT_FALSE(std::filesystem::exists(run("a")));
}

}  // namespace
}  // namespace linnet
