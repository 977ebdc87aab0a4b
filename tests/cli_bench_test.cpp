// linnet bench, and linnet train --profile.
#include <cmath>
#include <nlohmann/json.hpp>

#include "cli_run.h"
#include "temp_dir.h"

namespace linnet {
namespace {

using nlohmann::json;

json bench(const std::string& arguments) {
  const Ended ended = run_in_shell("bench " + arguments + " --json --seconds 0.05 --threads 2");
  EXPECT_EQ(ended.code, 0) << ended.out;
  return json::parse(ended.out, nullptr, false);
}

TEST(Bench, StepSaysWhereItsTimeGoes) {
  const json j = bench("step --model resnet20 --batch 4 --precision f32 --device cpu");
  EXPECT_GT(j["images_per_s"].get<double>(), 0);
  EXPECT_LE(j["ms_min"].get<double>(), j["ms"].get<double>());
  EXPECT_NEAR(j["images_per_s"].get<double>(), 4e3 / j["ms"].get<double>(), 1e-6 * j["images_per_s"].get<double>());
  EXPECT_EQ(j["precision"], "f32");
  EXPECT_EQ(j["threads"], 2);
  for (const char* key : {"model", "batch", "conv", "device", "version", "first_step_ms", "peak_rss_mb"})
    EXPECT_TRUE(j.contains(key)) << key;
  EXPECT_GT(j["peak"]["gflops"].get<double>(), 0);
  EXPECT_GT(j["peak"]["copy_gb_per_s"].get<double>(), 0);
  int convolutions = 0, norms = 0;
  for (const json& call : j["calls"]) {
    EXPECT_GT(call["ms"].get<double>(), 0) << call;
    if (call["name"] == "conv_forward" || call["name"] == "conv_of_bn") convolutions += call["calls"].get<int>();
    if (call["name"] == "bn_backward") norms = call["calls"];
  }
  EXPECT_EQ(convolutions, 19);
  EXPECT_EQ(norms, 19);
}

TEST(Bench, LayersAndOperations) {
  const json layers = bench("layers --batch 4 --precision f32");
  bool found = false;
  for (const json& layer : layers["layers"]) found = found || layer["name"] == "layer1.0.conv1";
  EXPECT_TRUE(found) << layers;
  const json ops = bench("ops --batch 4 --precision f32 --conv direct");
  found = false;
  for (const json& op : ops["ops"])
    found = found || op["name"].get<std::string>().find("conv_backward [4,32,32,16], 3x3, 16 to 16") == 0;
  EXPECT_TRUE(found) << ops;
}

TEST(Bench, EvaluationAndTextForPeople) {
  const json eval = bench("eval --model mlp");
  EXPECT_GT(eval["images_per_s"].get<double>(), 0);
  EXPECT_GT(eval["by_training"].get<double>(), 0);
  const Ended ended = run_in_shell("bench --model mlp --batch 8 --seconds 0.05");
  EXPECT_EQ(ended.code, 0);
  for (const char* part : {"images/s", "GFLOP/s", "share", "of memory"}) expect_has(ended.out, part);
  EXPECT_EQ(run_in_shell("bench nothing").code, 2);
  EXPECT_EQ(run_in_shell("bench --precision f64").code, 2);
}

TEST(Bench, OptimizersKeepAndMoveWhatTheySay) {
  const json j = bench("optimizers --model mlp --batch 4");
  const auto of = [&](const char* name) {
    for (const json& row : j["optimizers"])
      if (row["optimizer"] == name) return row;
    return json();
  };
  EXPECT_EQ(j["optimizers"].size(), 14u);
  EXPECT_EQ(of("sgd")["state_words"], 1);
  EXPECT_EQ(of("sgd, plain")["state_words"], 0);
  EXPECT_EQ(of("rmsprop, centered")["state_words"], 2);
  EXPECT_EQ(of("amsgrad")["state_words"], 3);
  const Ended text = run_in_shell("bench optimizers --model mlp --batch 4 --seconds 0.05 --threads 2");
  for (const char* part : {"nag's are 4 more than sgd's", "muon: its time"}) expect_has(text.out, part);
  const Ended none = run_in_shell("bench --seconds 0");
  EXPECT_EQ(none.code, 2);
  expect_has(none.out, "--seconds: expected a number above 0, got '0'\n");
  EXPECT_EQ(of("sgdw")["state_words"], 1);  // with momentum, as sgd beside it
  EXPECT_EQ(of("adam")["state_words"], 2);
  // Padding aside, two words of four bytes a weight.
  EXPECT_NEAR(of("adam")["state_mb"].get<double>() * 1e6, 8 * j["weights"].get<double>(), 2000);
  for (const json& row : j["optimizers"]) EXPECT_GT(row["ns_per_weight"].get<double>(), 0);
}

TEST(Profile, WritesAChromeTraceOfStepsAndCallsAndChangesNothing) {
  const TempDir dir;
  const std::string train =
      "train configs/smoke.toml --epochs 2 --set data.samples=650 --set train.batch_size=25 --out '";
  const auto run = [&](const std::string& name) { return (dir / name).string() + "'"; };
  ASSERT_EQ(run_in_shell(train + run("plain")).code, 0);
  const Ended profiled = run_in_shell(train + run("run") + " --profile '" + run("trace.json"));
  ASSERT_EQ(profiled.code, 0) << profiled.out;
  EXPECT_EQ(read(dir / "run/metrics.jsonl"), read(dir / "plain/metrics.jsonl"));

  const json trace = json::parse(read(dir / "trace.json"), nullptr, false);
  ASSERT_TRUE(trace["traceEvents"].is_array());
  int steps = 0, ends = 0, layers = 0;
  double step_us = 0, call_us = 0;
  for (const json& event : trace["traceEvents"]) {
    if (event["ph"] != "X") continue;
    EXPECT_GE(event["dur"].get<double>(), 0);
    EXPECT_EQ(event["pid"], 1);
    const bool step = event["cat"] == "step";
    steps += event["name"].get<std::string>().starts_with("step ");
    ends += event["name"] == "end of epoch 1";
    (step ? step_us : call_us) += event["dur"].get<double>();
    layers += event["args"].contains("layer");
  }
  EXPECT_EQ(steps, 20);
  EXPECT_EQ(ends, 1);  // an epoch has 18 steps: evaluation is no part of a step
  EXPECT_GT(layers, 20 * 10);
  EXPECT_LE(call_us, step_us);

  const Ended brief = run_in_shell(train + run("brief") + " --set train.batch_size=400 --profile '" + run("none.json"));
  EXPECT_EQ(brief.code, 0);
  expect_has(brief.out, "no trace was written");
  EXPECT_FALSE(std::filesystem::exists(dir / "none.json"));

  // A file that is there stays what it is.
  const Ended again = run_in_shell(train + run("other") + " --profile '" + run("trace.json"));
  EXPECT_EQ(again.code, 2);
  expect_has(again.out, "there is a file already");
  EXPECT_FALSE(std::filesystem::exists(dir / "other"));
}

TEST(Conv, EveryMethodTrains) {
  for (const char* method : {"auto", "direct", "winograd"}) {
    const TempDir dir;
    const Ended ended = run_in_shell(
        "train configs/smoke.toml --epochs 1 --set data.samples=400 --set model.name=resnet20 --set train.conv=" +
        std::string(method) + " --out '" + (dir / "run").string() + "'");
    EXPECT_EQ(ended.code, 0) << ended.out;
    expect_has(read(dir / "run/config.toml"), "conv = \"" + std::string(method) + "\"");
  }
  EXPECT_EQ(run_in_shell("train configs/smoke.toml --set train.conv=ref").code, 2);
}

}  // namespace
}  // namespace linnet
