// linnet sweep, report, runs and diff, as a person runs them.
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli_run.h"
#include "temp_dir.h"

namespace linnet {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class SweepTest : public testing::Test {
 protected:
  SweepTest() {
    config("plain", "lr = 0.05");
    config("heavy", "lr = 0.05\nmomentum = 0.9");
  }

  // 96 images of 16 x 16: two epochs take no time.
  void config(const std::string& name, const std::string& optimizer, int epochs = 2) {
    std::ofstream(dir_ / (name + ".toml"))
        << "[model]\nname = \"mlp\"\n[data]\nname = \"synthetic\"\nsamples = 120\n"
        << "image_size = 16\nval = 24\n[optimizer]\nname = \"sgd\"\n"
        << optimizer << "\n[schedule]\nname = \"cosine\"\n[train]\nepochs = " << epochs
        << "\nbatch_size = 32\n[log]\ninterval = 1\ntensorboard = false\n"
        << "[checkpoint]\nepochs = " << std::max(1, epochs / 10) << "\n";
  }
  std::string at(const std::string& name) const { return "'" + (dir_ / name).string() + "'"; }
  std::string configs() const { return at("plain.toml") + " " + at("heavy.toml"); }
  fs::path run(const std::string& name) const { return dir_ / "out" / name; }
  json summary(const std::string& name) const { return json::parse(read(run(name) / "summary.json")); }

  // stdout and stderr of a shell's lines, with $LINNET as the program.
  Ended shell(const std::string& lines) {
    return shell_output("exec 2>&1; LINNET='" + fs::absolute(LINNET_EXE).string() + "'; cd '" + dir_.path().string() +
                        "'; " + lines);
  }

  TempDir dir_;
};

// A long run that is saved now and then, and the shell's way to wait until it has begun to.
constexpr const char* kWaitForCheckpoint =
    "i=0; while ! ls out/long_s0/checkpoints/0* >/dev/null 2>&1 && [ $i -lt 400 ]; do sleep 0.05; i=$((i+1)); done; ";

TEST_F(SweepTest, RunsEveryConfigWithEverySeedAndSkipsWhatIsDone) {
  const std::string command = "sweep " + configs() + " --seeds 0-1 --jobs 2 --out " + at("out");
  const Ended first = run_in_shell(command);
  EXPECT_EQ(first.code, 0) << first.out;
  expect_has(first.out, "4 runs: 4 new; 2 at a time");
  for (const char* name : {"plain_s0", "plain_s1", "heavy_s0", "heavy_s1"}) {
    EXPECT_EQ(summary(name)["status"], "done") << name;
    expect_has(first.out, std::string(name) + " done: test accuracy");
  }
  expect_has(first.out, "heavy");  // the table of the results
  expect_has(first.out, "Sampling floor");

  const auto before = fs::last_write_time(run("plain_s0") / "summary.json");
  const Ended again = run_in_shell(command);
  EXPECT_EQ(again.code, 0) << again.out;
  expect_has(again.out, "4 runs: 4 done;");
  EXPECT_EQ(again.out.find("starts"), again.out.npos) << again.out;
  EXPECT_EQ(fs::last_write_time(run("plain_s0") / "summary.json"), before);

  // A run of the sweep is the run that `train` would have made, whatever its number of threads.
  const Ended alone = run_in_shell("train " + at("heavy.toml") + " --seed 1 --out " + at("alone"));
  ASSERT_EQ(alone.code, 0) << alone.out;
  EXPECT_EQ(read(dir_ / "alone" / "metrics.jsonl"), read(run("heavy_s1") / "metrics.jsonl"));

  // A further seed: only its runs are new.
  const Ended more = run_in_shell("sweep " + configs() + " --seeds 0-2 --out " + at("out") + " --json");
  EXPECT_EQ(more.code, 0);
  const json runs = json::parse(lines_of(more.out).back())["runs"];
  ASSERT_EQ(runs.size(), 6U);
  for (const json& r : runs) EXPECT_EQ(r["status"], "done");
}

TEST_F(SweepTest, ADryRunMakesNothing) {
  const Ended plan =
      run_in_shell("sweep " + configs() + " --grid optimizer.lr=0.1,0.01 --seeds 3,5 --dry-run --out " + at("out"));
  EXPECT_EQ(plan.code, 0) << plan.out;
  expect_has(plan.out, "plain_optimizer.lr=0.01_s5");
  expect_has(plan.out, "8 runs: 8 new");
  expect_has(plan.out, "about");
  EXPECT_FALSE(fs::exists(dir_ / "out"));
}

TEST_F(SweepTest, EveryMistakeIsReportedBeforeAnythingRuns) {
  std::ofstream(dir_ / "bad.toml") << "[optimizer]\nmomentun = 0.9\n";
  const Ended bad = run_in_shell("sweep " + configs() + " " + at("bad.toml") +
                                 " --grid optimizer.lr=0.1,fast --seeds 0-1 --out " + at("out"));
  EXPECT_EQ(bad.code, 2) << bad.out;
  expect_has(bad.out, "momentun");
  expect_has(bad.out, "optimizer.lr");
  EXPECT_FALSE(fs::exists(dir_ / "out"));
  for (const std::string& wrong :
       {std::string("--seeds 4-0"), std::string("--seeds x"), std::string("--seeds 1,1"), std::string("--grid lr"),
        std::string("--grid train.seed=1,2"), std::string("--grid optimizer.lr=0.1,0.1"), std::string("--jobs 0"),
        std::string("--grid optimizer.lr=0.1,,0.2"), std::string("--set train.seed=3")}) {
    const Ended ended = run_in_shell("sweep " + configs() + " " + wrong + " --out " + at("out"));
    EXPECT_EQ(ended.code, 2) << wrong << ended.out;
    EXPECT_FALSE(fs::exists(dir_ / "out")) << wrong;
  }
}

TEST_F(SweepTest, AFolderWithOtherSettingsIsRefused) {
  ASSERT_EQ(run_in_shell("sweep " + at("plain.toml") + " --out " + at("out")).code, 0);
  config("plain", "lr = 0.07");
  const Ended other = run_in_shell("sweep " + configs() + " --out " + at("out"));
  EXPECT_EQ(other.code, 2) << other.out;
  expect_has(other.out, "optimizer.lr: 0.05 there, 0.07 now");
  EXPECT_FALSE(fs::exists(run("heavy_s0")));
}

TEST_F(SweepTest, GoesOnPastAFailureAndRetriesIt) {
  fs::create_directories(run("plain_s0"));
  std::ofstream(run("plain_s0") / "someone's.txt") << "x";
  const std::string command = "sweep " + configs() + " --jobs 1 --out " + at("out");
  const Ended ended = run_in_shell(command);
  EXPECT_EQ(ended.code, 1) << ended.out;
  expect_has(ended.out, "plain_s0 FAILED (code 2:");
  expect_has(ended.out, "is not empty");
  EXPECT_EQ(summary("heavy_s0")["status"], "done");
  EXPECT_TRUE(fs::exists(run("plain_s0") / "someone's.txt"));

  fs::remove(run("plain_s0") / "someone's.txt");
  const Ended again = run_in_shell(command);
  EXPECT_EQ(again.code, 0) << again.out;
  EXPECT_EQ(summary("plain_s0")["status"], "done");
}

TEST_F(SweepTest, FailFastStopsAtTheFirstFailure) {
  fs::create_directories(run("plain_s0"));
  std::ofstream(run("plain_s0") / "someone's.txt") << "x";
  const Ended ended = run_in_shell("sweep " + configs() + " --jobs 1 --fail-fast --out " + at("out"));
  EXPECT_EQ(ended.code, 1) << ended.out;
  EXPECT_FALSE(fs::exists(run("heavy_s0")));
}

TEST_F(SweepTest, ARunThatDivergesIsAResult) {
  config("wild", "lr = 1e4\nmomentum = 0.9", 20);
  const std::string command = "sweep " + at("wild.toml") + " " + at("plain.toml") + " --out " + at("out");
  const Ended ended = run_in_shell(command);
  EXPECT_EQ(ended.code, 5) << ended.out;
  EXPECT_EQ(summary("wild_s0")["status"], "diverged");
  EXPECT_EQ(summary("plain_s0")["status"], "done");
  const Ended again = run_in_shell(command);
  EXPECT_EQ(again.code, 5) << again.out;
  expect_has(again.out, "1 done, 1 diverged;");  // the same bits would diverge at the same step
  const Ended report = run_in_shell("report " + at("out"));
  EXPECT_EQ(report.code, 0) << report.out;
  expect_has(report.out, "wild: 1 of 1 runs diverged");
}

TEST_F(SweepTest, ASignalSavesTheRunsAndTheSameCommandGoesOn) {
  config("long", "lr = 0.01", 200);
  const Ended stopped = shell(std::string("$LINNET sweep long.toml plain.toml --jobs 1 --out out & p=$!; ") +
                              kWaitForCheckpoint + "kill -TERM $p; wait $p");
  EXPECT_EQ(stopped.code, 143) << stopped.out;
  expect_has(stopped.out, "go on with the same command");
  EXPECT_EQ(summary("long_s0")["status"], "interrupted");
  EXPECT_FALSE(fs::exists(run("plain_s0")));

  const Ended finished = run_in_shell("sweep " + at("long.toml") + " " + at("plain.toml") + " --out " + at("out"));
  EXPECT_EQ(finished.code, 0) << finished.out;
  expect_has(finished.out, "1 new, 1 stopped;");
  expect_has(finished.out, "long_s0 goes on");
  ASSERT_EQ(run_in_shell("train " + at("long.toml") + " --out " + at("alone")).code, 0);
  EXPECT_EQ(read(dir_ / "alone" / "metrics.jsonl"), read(run("long_s0") / "metrics.jsonl"));
}

TEST_F(SweepTest, ARunThatIsKilledTakesNothingWithItAndASweepThatIsKilledLeavesNoneBehind) {
  config("long", "lr = 0.01", 4000);
  const Ended ended =
      shell(std::string("$LINNET sweep long.toml plain.toml --jobs 1 --out out & p=$!; ") + kWaitForCheckpoint +
            R"(kill -KILL $(sed 's/.*"pid":\([0-9]*\).*/\1/' out/long_s0/LOCK); wait $p)");
  EXPECT_EQ(ended.code, 1) << ended.out;
  expect_has(ended.out, "long_s0 FAILED (killed by signal 9");
  EXPECT_EQ(summary("plain_s0")["status"], "done");

  const Ended killed = shell(
      "n=$(wc -l <out/long_s0/metrics.jsonl); $LINNET sweep long.toml --out out & p=$!; i=0; "
      "while [ $(wc -l <out/long_s0/metrics.jsonl) -le $((n + 100)) ] && [ $i -lt 400 ]; do sleep 0.05; "
      "i=$((i+1)); done; kill -KILL $p; wait $p; i=0; while ! grep -q "
      "interrupted out/long_s0/summary.json && [ $i -lt 400 ]; do sleep 0.05; i=$((i+1)); done");
  EXPECT_EQ(summary("long_s0")["status"], "interrupted") << killed.out;  // it was told, and saved
  expect_has(run_in_shell("runs " + at("out")).out, "interrupted");
}

TEST_F(SweepTest, TwoSweepsCannotShareAFolder) {
  config("long", "lr = 0.01", 4000);
  const Ended ended = shell(std::string("$LINNET sweep long.toml --out out >/dev/null & p=$!; ") + kWaitForCheckpoint +
                            "$LINNET sweep plain.toml --out out; code=$?; kill -TERM $p; wait $p; exit $code");
  EXPECT_EQ(ended.code, 7) << ended.out;
  EXPECT_FALSE(fs::exists(run("plain_s0")));
}

// ---- report, runs, diff --------------------------------------------------------------------------------------------

TEST_F(SweepTest, TheReportSaysTheSameInEveryForm) {
  ASSERT_EQ(run_in_shell("sweep " + configs() + " --seeds 0-2 --out " + at("out")).code, 0);
  const Ended as_json = run_in_shell("report " + at("out") + " --json --target 0.05");
  ASSERT_EQ(as_json.code, 0);
  const json report = json::parse(as_json.out);
  ASSERT_EQ(report["groups"].size(), 2U);
  double sum = 0;
  for (const json& group : report["groups"]) {
    EXPECT_EQ(group["test/acc"]["n"], 3);
    if (group["label"] == "heavy")
      for (int seed = 0; seed < 3; ++seed) {
        const double acc = summary("heavy_s" + std::to_string(seed))["test/acc"];
        EXPECT_EQ(group["runs"][size_t(seed)]["test/acc"], acc);
        sum += acc / 3;
        EXPECT_LE(group["worst"]["acc"], acc);
        EXPECT_GE(group["best"]["acc"], acc);
      }
  }
  const json& heavy = report["groups"][report["groups"][0]["label"] == "heavy" ? 0 : 1];
  EXPECT_NEAR(heavy["test/acc"]["mean"], sum, 1e-12);
  ASSERT_EQ(report["pairs"].size(), 1U);
  EXPECT_EQ(report["pairs"][0]["n"], 3);
  EXPECT_EQ(report["n_test"], 24);
  ASSERT_EQ(report["config"].size(), 1U);
  EXPECT_EQ(report["config"][0]["key"], "optimizer.momentum");
  EXPECT_EQ(report["targets"][0]["val/acc"], 0.05);

  const Ended text = run_in_shell("report " + at("out") + " --target 0.05 -o " + at("report.html"));
  EXPECT_EQ(text.code, 0) << text.out;
  expect_has(text.out, report["pairs"][0]["words"]);
  const std::string page = read(dir_ / "report.html");
  expect_has(page, "Chart.js v");
  expect_has(page, "data:image/png;base64,");
  EXPECT_EQ(page.find("http://"), page.npos);  // nothing is fetched (Chart.js names its site, with https)
  EXPECT_EQ(page.find("src=\"https"), page.npos);
  EXPECT_LT(page.size(), 5U << 20);
  // The page's numbers are those of --json.
  const size_t begin = page.find("id=\"data\">") + 10;
  const json in_page = json::parse(page.substr(begin, page.find("</script>", begin) - begin));
  EXPECT_EQ(in_page["comparison"]["groups"], report["groups"]);
  EXPECT_EQ(in_page["comparison"]["pairs"], report["pairs"]);
  // Each confusion matrix counts every test image of every seed.
  for (const json& e : in_page["examined"]["groups"]) {
    int64_t images = 0;
    for (const json& row : e["confusion"])
      for (const json& n : row) images += n.get<int64_t>();
    EXPECT_EQ(images, 3 * 24);
    EXPECT_FALSE(e["mistakes"].empty());
    for (const json& m : e["mistakes"]) EXPECT_TRUE(in_page["examined"]["pictures"].contains(m["picture"]));
  }

  // A report may be made anew, another file may not be lost.
  EXPECT_EQ(run_in_shell("report " + at("out") + " -o " + at("report.html")).code, 0);
  std::ofstream(dir_ / "mine.html") << "my notes";
  EXPECT_EQ(run_in_shell("report " + at("out") + " -o " + at("mine.html")).code, 2);
  EXPECT_EQ(read(dir_ / "mine.html"), "my notes");
}

TEST_F(SweepTest, ASecondSignalIsNoFailure) {
  config("long", "lr = 0.01", 4000);
  const Ended ended = shell(std::string("$LINNET sweep long.toml --out out & p=$!; ") + kWaitForCheckpoint +
                            "kill -TERM $p; kill -TERM $p; wait $p");
  EXPECT_EQ(ended.code, 143) << ended.out;
  EXPECT_EQ(ended.out.find("FAILED"), ended.out.npos) << ended.out;
  expect_has(ended.out, "can go on");
}

TEST_F(SweepTest, TheReportTakesNothingForMoreEvidenceThanItIs) {
  ASSERT_EQ(run_in_shell("sweep " + configs() + " --seeds 0-1 --out " + at("out")).code, 0);
  const auto set_accuracy = [&](const std::string& name, double acc) {
    json s = summary(name);
    s["test/acc"] = acc;
    std::ofstream(run(name) / "summary.json") << s;
  };
  set_accuracy("plain_s0", 0.25), set_accuracy("plain_s1", 0.5);
  set_accuracy("heavy_s0", 0.5), set_accuracy("heavy_s1", 0.75);
  // All differences are the same: Student's t would be sure of what two pairs of few images cannot show.
  const std::string report = "report " + at("out") + " ";
  const json same = json::parse(run_in_shell(report + "--json").out);
  EXPECT_TRUE(same["pairs"][0]["p_holm"].is_null()) << same["pairs"];
  expect_has(run_in_shell(report).out, "2 seeds cannot tell heavy from plain: each pair differs by +25.00 points");

  // A copy of a run is no further seed.
  fs::copy(run("plain_s0"), dir_ / "copy", fs::copy_options::recursive);
  const Ended twice = run_in_shell(report + at("copy"));
  expect_has(twice.out, "copy is left out: a seed that is there already");
  const json counted = json::parse(run_in_shell(report + at("copy") + " --json 2>/dev/null").out);
  for (const json& g : counted["groups"]) EXPECT_EQ(g["test/acc"]["n"], 2) << g["label"];
  EXPECT_EQ(counted["pairs"][0]["n"], 2);

  // Other test images: the runs stand in one table, but are no pairs.
  ASSERT_EQ(run_in_shell("train " + at("plain.toml") + " --set data.samples=160 --out " + at("other")).code, 0);
  expect_has(run_in_shell(report + at("other")).out, "were tested on different images and are not compared");
}

TEST_F(SweepTest, OneRunIsAReportToo) {
  ASSERT_EQ(run_in_shell("train " + at("plain.toml") + " --out " + at("one")).code, 0);
  const Ended ended = run_in_shell("report " + at("one") + " -o " + at("r.html"));
  EXPECT_EQ(ended.code, 0) << ended.out;
  EXPECT_EQ(run_in_shell("report " + at("nowhere")).code, 2);
  fs::create_directories(dir_ / "empty");
  EXPECT_EQ(run_in_shell("report " + at("empty")).code, 2);
  // A run without its pictures, and a damaged one beside it, are no reason to fail.
  fs::create_directories(dir_ / "more" / "broken");
  std::ofstream(dir_ / "more" / "broken" / "config.toml") << "this is no config";
  fs::copy(dir_ / "one", dir_ / "more" / "one", fs::copy_options::recursive);
  fs::remove(dir_ / "more" / "one" / "predictions.json");
  const Ended more = run_in_shell("report " + at("more") + " -o " + at("r2.html"));
  EXPECT_EQ(more.code, 0) << more.out;
  expect_has(more.out, "broken is left out");
  expect_has(more.out, "no predictions.json");
}

TEST_F(SweepTest, RunsListsThemFromTheirSummaries) {
  ASSERT_EQ(run_in_shell("sweep " + configs() + " --out " + at("out")).code, 0);
  const Ended list = run_in_shell("runs " + at("out"));
  EXPECT_EQ(list.code, 0);
  ASSERT_EQ(lines_of(list.out).size(), 2U) << list.out;
  expect_has(list.out, "done        epoch   2/2");
  const json all = json::parse(run_in_shell("runs " + at("out") + " --json").out);
  ASSERT_EQ(all.size(), 2U);
  EXPECT_EQ(all[0]["test/acc"], summary("heavy_s0")["test/acc"]);
  EXPECT_EQ(run_in_shell("runs " + at("nowhere")).code, 2);
}

TEST_F(SweepTest, DiffNamesTheFirstStepThatDiffers) {
  ASSERT_EQ(run_in_shell("train " + at("plain.toml") + " --out " + at("a")).code, 0);
  ASSERT_EQ(run_in_shell("train " + at("plain.toml") + " --out " + at("b")).code, 0);
  const Ended same = run_in_shell("diff " + at("a") + " " + at("b"));
  EXPECT_EQ(same.code, 0);
  expect_has(same.out, "config: the same");
  expect_has(same.out, "state: the same up to step 6 (epoch 2)");

  // The learning rate falls after the first epoch in one of them: the second epoch is another.
  const std::string step = " --set schedule.name=multistep --set schedule.milestones=[1]";
  ASSERT_EQ(run_in_shell("train " + at("plain.toml") + step + " --set schedule.gamma=0.5 --out " + at("c")).code, 0);
  ASSERT_EQ(run_in_shell("train " + at("plain.toml") + step + " --set schedule.gamma=0.1 --out " + at("d")).code, 0);
  const json parted = json::parse(run_in_shell("diff " + at("c") + " " + at("d") + " --json").out);
  EXPECT_EQ(parted["config"][0]["key"], "schedule.gamma");
  EXPECT_EQ(parted["last_equal_state"], (json{{"epoch", 1}, {"step", 3}}));
  EXPECT_EQ(parted["first_different_state"], (json{{"epoch", 2}, {"step", 6}}));
  EXPECT_EQ(parted["first_different_row"]["step"], 4);
  EXPECT_EQ(run_in_shell("diff " + at("a") + " " + at("nowhere")).code, 2);
}

// The table of batch sizes: updates, times, accuracies and first losses, in the order of the sizes.
TEST_F(SweepTest, BatchSizesHaveATable) {
  const Ended e = run_in_shell("sweep " + at("plain.toml") + " --grid train.batch_size=48,16,32 --out " + at("out"));
  ASSERT_EQ(e.code, 0) << e.out;
  expect_has(e.out, "updates an epoch");
  const json all = json::parse(run_in_shell("report " + at("out") + " --json").out);
  const json& rows = all["batches"];
  ASSERT_EQ(rows.size(), 3U);
  const int sizes[] = {16, 32, 48}, updates[] = {6, 3, 2};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(rows[i]["images_per_step"], sizes[i]);
    EXPECT_EQ(rows[i]["updates_per_epoch"], updates[i]);
    EXPECT_EQ(rows[i]["updates"], 2 * updates[i]);
    EXPECT_GT(rows[i]["seconds_per_epoch"].get<double>(), 0);
    ASSERT_EQ(rows[i]["first_losses"].size(), 3U);
    const auto run = "plain_train.batch_size=" + std::to_string(sizes[i]) + "_s0";
    EXPECT_EQ(rows[i]["test/acc"], summary(run)["test/acc"]);
    EXPECT_EQ(rows[i]["train/acc"], summary(run)["train/acc"]);
    const std::string first = lines_of(read(this->run(run) / "metrics.jsonl"))[0];
    EXPECT_EQ(rows[i]["first_losses"][0], json::parse(first)["train/loss"]);
  }
  const json one =
      json::parse(run_in_shell("report '" + (run("plain_train.batch_size=16_s0")).string() + "' --json").out);
  EXPECT_TRUE(one["batches"].empty());
}

}  // namespace
}  // namespace linnet
