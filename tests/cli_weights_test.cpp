// eval of weights files, fork with a new head, own pictures, predict and export, as a user runs them.
#include <nlohmann/json.hpp>

#include "cli_run.h"
#include "linnet/calibration.h"
#include "linnet/safetensors.h"
#include "linnet/weights.h"
#include "tests/picture_files.h"
#include "tests/temp_dir.h"

namespace linnet {
namespace {

namespace fs = std::filesystem;

std::string quoted(const fs::path& path) { return "'" + path.string() + "' "; }

// One run on pictures, for all tests: convnet, 3 classes of 16x16.
class WeightsCli : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared = new TempDir;
    write_classes(*shared / "pictures", 3, 30);
    std::ofstream(*shared / "c.toml") << config("folder", *shared / "pictures");
    const Ended ended = run_in_shell("train " + quoted(*shared / "c.toml") + "-o " + quoted(*shared / "run"));
    ASSERT_EQ(ended.code, 0) << ended.out;
  }
  static void TearDownTestSuite() { delete shared; }

  static std::string config(const std::string& name, const fs::path& path, const std::string& more = "") {
    return "[model]\nname = 'convnet'\n[data]\nname = '" + name + "'\npath = '" + path.string() + "'\n" +
           (name == "folder" ? "image_size = 16\nval_share = 0.2\n" : "") + more +
           "[train]\nepochs = 1\nbatch_size = 20\n[optimizer]\nname = 'sgd'\nlr = 0.05\nmomentum = 0.9\n";
  }
  static Ended run(const std::string& arguments, int code = 0) {
    const Ended ended = run_in_shell(arguments);
    EXPECT_EQ(ended.code, code) << arguments << "\n" << ended.out;
    return ended;
  }
  static nlohmann::json json_of(const std::string& arguments) {
    const Ended ended = run(arguments + " 2>/dev/null");
    return nlohmann::json::parse(ended.out, nullptr, false);
  }

  static TempDir* shared;
  const TempDir dir;
  const std::string trained = quoted(*shared / "run");
};
TempDir* WeightsCli::shared = nullptr;

TEST_F(WeightsCli, APackTrainsAsItsFolderDoes) {
  const std::string pack = quoted(dir / "p.pack"), pictures = quoted(*shared / "pictures");
  expect_has(run("data pack " + pictures + "-o " + pack + "--size 16 --val-share 0.2").out, "in 3 classes");
  run("data pack " + pictures + "-o " + pack, 2);  // it exists
  expect_has(run("data verify --name pack " + pack).out, ": ok,");
  std::ofstream(dir / "p.toml") << config("pack", dir / "p.pack");
  run("train " + quoted(dir / "p.toml") + "-o " + quoted(dir / "run"));
  EXPECT_EQ(read(dir / "run" / "metrics.jsonl"), read(*shared / "run" / "metrics.jsonl"));
}

TEST_F(WeightsCli, AFolderWithDamageIsRefusedOrReadWithANote) {
  write_classes(dir / "pictures", 2, 30);
  write_bytes(dir / "pictures" / "class0" / "bad.png", "no picture");
  std::ofstream(dir / "c.toml") << config("folder", dir / "pictures");
  // The first exception of a process, in a confined one: it must say what is wrong, not be ended for it.
  expect_has(run("train " + quoted(dir / "c.toml") + "-o " + quoted(dir / "run"), 3).out,
             "bad.png: expected a PNG or JPEG image, got another kind of file");
  EXPECT_FALSE(fs::exists(dir / "run"));
  const Ended ended = run("train " + quoted(dir / "c.toml") + "--set data.corrupt=skip -o " + quoted(dir / "run"));
  expect_has(ended.out, "note: skipped: ");
  expect_has(ended.out, "bad.png");
}

TEST_F(WeightsCli, EvalCalibratesAndKeepsTheTemperature) {
  const TempDir copy;
  fs::copy(*shared / "run", copy / "run", fs::copy_options::recursive);
  const std::string target = quoted(copy / "run");
  EXPECT_FALSE(json_of("eval " + target + "--json").contains("calibration"));
  const auto fitted = json_of("eval " + target + "--calibrate --json");
  const double temperature = fitted["calibration"]["temperature"];
  EXPECT_GT(temperature, 0);
  EXPECT_EQ(read_calibration(copy / "run")->temperature, temperature);
  EXPECT_EQ(json_of("eval " + target + "--json"), fitted);
  const auto before = json_of("predict " + trained + quoted(*shared / "pictures" / "class0" / "0.png") + "--json");
  const auto after = json_of("predict " + target + quoted(*shared / "pictures" / "class0" / "0.png") + "--json");
  EXPECT_EQ(before[0]["top"][0]["class"], after[0]["top"][0]["class"]);
  EXPECT_NE(before[0]["top"][0]["p"], after[0]["top"][0]["p"]);
  const auto reported = json_of("report " + target + "--json")["groups"][0];
  EXPECT_NEAR(double(reported["test/ece"]["mean"]), double(fitted["ece"]), 1e-5);
  EXPECT_EQ(reported["calibration"]["temperature"], temperature);
  expect_has(run("report " + target + "-o " + quoted(copy / "r.html")).out, "expected calibration error");
  expect_has(read(copy / "r.html"), "id=\"calibration\"");
  // Of other weights, it is not used.
  std::string text = read(copy / "run" / "calibration.json");
  text.replace(text.find("\"weights\": \"") + 12, 1, "x");
  std::ofstream(copy / "run" / "calibration.json") << text;
  expect_has(run("predict " + target + quoted(*shared / "pictures" / "class0" / "0.png")).out, "of other weights");
  EXPECT_FALSE(json_of("report " + target + "--json")["groups"][0].contains("calibration"));
  run("eval " + quoted(*shared / "run" / "model.safetensors") + "--model convnet --calibrate", 2);
}

TEST_F(WeightsCli, EvalOverwritesNothingAndSaysWhereTheImagesAreOthers) {
  const std::string logits = "eval " + trained + "--logits " + quoted(dir / "l.safetensors");
  EXPECT_EQ(run(logits).out.find("note: "), std::string::npos);
  const std::string before = read(dir / "l.safetensors");
  expect_has(run(logits, 2).out, "exists");
  EXPECT_EQ(read(dir / "l.safetensors"), before);
  write_classes(dir / "pictures", 3, 80);
  expect_has(run("eval " + trained + "--data " + quoted(dir / "pictures")).out,
             "note: the test images are not those that the run had");
}

TEST_F(WeightsCli, ForkStartsANewHeadAndFreezesTheRest) {
  write_classes(dir / "other", 5, 20);
  const std::string weights = quoted(*shared / "run" / "model.safetensors");
  std::ofstream(dir / "f.toml") << config("folder", dir / "other") + "[[group]]\nmatch = 'conv*|bn*'\nfrozen = true\n";
  const std::string fork = "fork " + weights + quoted(dir / "f.toml") + "-o " + quoted(dir / "run");
  const Ended refused = run(fork, 4);
  expect_has(refused.out, "'linear.weight': expected F32 [5,512], got F32 [3,512]");
  expect_has(refused.out, "--new-head");
  EXPECT_FALSE(fs::exists(dir / "run"));
  run(fork + " --new-head");
  const SafeTensors before = read_safetensors(*shared / "run" / "model.safetensors"),
                    after = read_safetensors(dir / "run" / "model.safetensors");
  for (const char* name : {"conv1.weight", "conv3.weight", "bn2.weight", "bn3.bias"})
    EXPECT_EQ(before.tensors.at(name).bytes, after.tensors.at(name).bytes) << name;
  EXPECT_EQ(after.tensors.at("linear.weight").shape[0], 5);
}

TEST_F(WeightsCli, PredictReadsFilesFoldersAndStdin) {
  const fs::path one = *shared / "pictures" / "class1" / "1.png";
  const std::string plain = run("predict " + trained + quoted(one)).out;
  expect_has(plain, one.string() + ": class");
  EXPECT_EQ(lines_of(plain).size(), 1u);
  const auto folder = json_of("predict " + trained + quoted(*shared / "pictures" / "class1") + "--json -k 2");
  ASSERT_EQ(folder.size(), 30u);
  EXPECT_EQ(folder[0]["top"].size(), 2u);
  EXPECT_EQ(folder[0]["image"], one.string());
  const auto alone = json_of("predict " + trained + quoted(one) + "--json -k 3");
  double sum = 0;
  for (const auto& entry : alone[0]["top"]) sum += double(entry["p"]);
  EXPECT_NEAR(sum, 1, 1e-6);
  EXPECT_NEAR(double(alone[0]["top"][0]["p"]), double(folder[0]["top"][0]["p"]), 1e-5);
  const auto piped = json_of("predict " + trained + "- --json -k 3 < " + quoted(one));
  EXPECT_EQ(piped[0]["top"], alone[0]["top"]);

  write_bytes(dir / "bad.png", "no picture");
  const Ended mixed =
      run("predict " + trained + quoted(dir / "bad.png") + quoted(one) + quoted(dir / "missing.png"), 3);
  for (const char* part : {"bad.png", "missing.png", "1.png: class"}) expect_has(mixed.out, part);

  run("predict " + trained + quoted(one) + "--html " + quoted(dir / "p.html"));
  const std::string page = read(dir / "p.html");
  for (const char* part : {"<!doctype html>", "data:image/png;base64,", "gradient &times; input", "Grad-CAM", "class1"})
    expect_has(page, part);
  run("predict " + trained + quoted(one) + "--html " + quoted(dir / "p.html"));  // such a page may be made anew
  EXPECT_EQ(read(dir / "p.html"), page);
  run("predict " + trained + quoted(one) + "--html " + quoted(dir / "bad.png"), 2);
  EXPECT_EQ(read(dir / "bad.png"), "no picture");
  EXPECT_EQ(page.find("<script"), page.npos);
  EXPECT_EQ(page.find("http"), page.npos);
}

TEST_F(WeightsCli, AWeightsFileNeedsItsModelAndNormalisation) {
  const std::string weights = quoted(*shared / "run" / "model.safetensors"),
                    one = quoted(*shared / "pictures" / "class0" / "0.png");
  expect_has(run("predict " + weights + one, 2).out, "--model");
  expect_has(run("predict " + weights + one + "--model convnet --size 16", 2).out, "--mean");
  const std::string config = read(*shared / "run" / "config.toml");
  const auto list = [&](const std::string& key) {
    const size_t at = config.find("\n" + key + " = [") + key.size() + 5;
    std::string numbers = config.substr(at, config.find(']', at) - at);
    std::erase(numbers, ' ');
    return numbers;
  };
  const std::string stats = "--mean " + list("mean") + " --std " + list("std") + " ";
  const auto of_file = json_of("predict " + weights + one + "--model convnet --size 16 --json " + stats);
  const auto of_run = json_of("predict " + trained + one + "--json");
  EXPECT_EQ(of_file[0]["top"][0]["p"], of_run[0]["top"][0]["p"]);
  EXPECT_EQ(of_file[0]["top"][0]["class"], of_run[0]["top"][0]["class"]);
}

TEST_F(WeightsCli, ExportWritesAModelOnce) {
  const std::string out = "-o " + quoted(dir / "m.onnx");
  expect_has(run("export " + trained + out + "--normalise --fold-bn").out, "input [N, 3, 16, 16] is pixel / 255");
  const std::string model = read(dir / "m.onnx");
  for (const char* part : {"linnet", "Conv", "Gemm", "logits", "class2"}) expect_has(model, part);
  EXPECT_EQ(model.find("BatchNormalization"), model.npos);
  run("export " + trained + out, 2);  // it exists
  expect_has(run("export " + quoted(*shared / "run" / "model.safetensors") +
                     "--model convnet --size 16 --normalise -o " + quoted(dir / "n.onnx"),
                 2)
                 .out,
             "normalisation");
}

}  // namespace
}  // namespace linnet
