// The built program as a person or a script runs it: in a pipe and on a terminal, with good input and with every kind
// of bad input, stopped by signals. What it prints and how it ends is a promise.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "cli_run.h"
#include "linnet/config.h"
#include "linnet/safetensors.h"
#include "temp_dir.h"

namespace linnet {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

void write(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

class Cli : public testing::Test {
 protected:
  using Args = std::vector<std::string>;

  // What a child does before it becomes linnet: nothing of this machine's settings shows through.
  [[noreturn]] void exec(const Args& args, const char* term) {
    for (const char* name : {"LINNET_DATA", "CI", "NO_COLOR", "COLUMNS"}) unsetenv(name);
    setenv("HOME", (dir_ / "home").c_str(), 1);
    setenv("XDG_CACHE_HOME", (dir_ / "home").c_str(), 1);
    setenv("LINNET_RUNS", (dir_ / "runs").c_str(), 1);
    setenv("TERM", term, 1);
    for (const auto& [name, value] : env_) setenv(name.c_str(), value.c_str(), 1);
    std::vector<char*> argv = {const_cast<char*>("linnet")};
    for (const std::string& a : args) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    execv(exe_.c_str(), argv.data());
    _exit(127);
  }

  // Output goes to files: as far as the program can tell, they are pipes.
  pid_t start(const Args& args) {
    const pid_t pid = fork();
    if (pid > 0) return pid;
    const auto redirect = [&](const char* name, int to) {
      dup2(open((dir_ / name).c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666), to);
    };
    redirect("out", STDOUT_FILENO);
    redirect("err", STDERR_FILENO);
    exec(args, "xterm");
  }
  Ended wait(pid_t pid) {
    int status = 0;
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read(dir_ / "out"), read(dir_ / "err")};
  }
  Ended linnet(const Args& args) { return wait(start(args)); }

  // All that the program writes on a terminal of `columns` columns; newlines are "\n".
  std::string on_terminal(const Args& args, unsigned short columns, const char* term, double* seconds = nullptr) {
    int terminal = -1;
    const winsize size{.ws_row = 24, .ws_col = columns};
    const pid_t pid = forkpty(&terminal, nullptr, nullptr, &size);
    if (pid == 0) exec(args, term);
    std::string all;
    char buffer[4096];
    const Clock::time_point begin = Clock::now();
    for (ssize_t n; (n = ::read(terminal, buffer, sizeof buffer)) > 0;) all.append(buffer, size_t(n));
    if (seconds) *seconds = seconds_since(begin);
    close(terminal);
    int status = 0;
    waitpid(pid, &status, 0);
    EXPECT_EQ(status, 0) << all;
    for (size_t at; (at = all.find("\r\n")) != all.npos;) all.erase(at, 1);
    return all;
  }

  // A config of a run of about a second; `extra` are further lines.
  fs::path config(const std::string& extra = "") {
    const fs::path path = dir_ / "tiny.toml";
    write(path,
          "data.name = 'synthetic'\ndata.samples = 120\ndata.val = 24\ndata.image_size = 16\nmodel.name = 'convnet'\n"
          "train.epochs = 2\ntrain.batch_size = 32\nlog.interval = 1\noptimizer.lr = 0.02\n" +
              extra);
    return path;
  }
  std::string out() { return (dir_ / "run").string(); }

  // Starts a run and returns once it has written its first row.
  pid_t start_long_run(const Args& more) {
    Args args = {"train", config(), "--out", out(), "--set", "train.epochs=100000"};
    args.insert(args.end(), more.begin(), more.end());
    const pid_t pid = start(args);
    const Clock::time_point begin = Clock::now();
    while (read(dir_ / "run" / "metrics.jsonl").empty() && seconds_since(begin) < 60)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return pid;
  }

  TempDir dir_;
  std::map<std::string, std::string> env_;  // of the programs, beside what exec() sets
  const std::string exe_ = fs::absolute(LINNET_EXE).string();
};

// ---- A run, end to end
// -----------------------------------------------------------------------------------------------

TEST_F(Cli, TrainsEvaluatesAndLeavesACompleteFolder) {
  const Ended train = linnet({"train", config(), "--out", out(), "--seed", "3", "--json"});
  ASSERT_EQ(train.code, 0) << train.err;
  const fs::path run = dir_ / "run";

  const json summary = json::parse(read(run / "summary.json"));
  EXPECT_EQ(summary["status"], "done");
  EXPECT_EQ(summary["epoch"], 2);
  EXPECT_EQ(summary["step"], 6);
  EXPECT_EQ(summary["hash"].get<std::string>().size(), 32u);
  const json printed = json::parse(train.out);  // with --json, stdout is the summary and nothing else
  EXPECT_EQ(printed["test/acc"], summary["test/acc"]);

  std::vector<json> rows, times;
  for (const std::string& line : lines_of(read(run / "metrics.jsonl"))) rows.push_back(json::parse(line));
  for (const std::string& line : lines_of(read(run / "timing.jsonl"))) times.push_back(json::parse(line));
  ASSERT_EQ(rows.size(), 6u + 2 + 2 + 1);  // of steps, layers, epochs, and the test's
  EXPECT_EQ(times.size(), rows.size());
  for (const char* name : {"train/loss", "train/acc", "lr", "grad_norm"})
    EXPECT_TRUE(rows[0][name].is_number()) << name;
  for (const char* name : {"train/loss", "train/acc", "val/loss", "val/acc", "lr"})
    EXPECT_TRUE(rows[4][name].is_number()) << name;
  EXPECT_EQ(rows[3]["kind"], "layers");
  EXPECT_EQ(rows[4]["kind"], "epoch");
  EXPECT_EQ(rows[10]["kind"], "test");
  EXPECT_EQ(rows[10]["test/acc"], summary["test/acc"]);
  EXPECT_GE(times[3]["wall_s"], 0.0);

  const json env = json::parse(read(run / "env.json"));
  for (const char* name : {"linnet", "compiler", "started", "threads"}) EXPECT_TRUE(env[name].is_string()) << name;
  EXPECT_EQ(env["data"]["train"]["images"], 96);
  EXPECT_EQ(read_safetensors(run / "model.safetensors").tensors.count("conv1.weight"), 1u);
  EXPECT_EQ(load_config(run / "config.toml").train.seed, 3);

  // The same program on the same weights: the same number, by the run's name or the file's.
  const Ended eval = linnet({"eval", out(), "--json"});
  ASSERT_EQ(eval.code, 0) << eval.err;
  const json measured = json::parse(eval.out);
  EXPECT_EQ(measured["acc"], summary["test/acc"]);
  EXPECT_EQ(measured["loss"], summary["test/loss"]);
  EXPECT_EQ(measured["n"], 24);
  EXPECT_EQ(measured["per_class"].size(), 10u);
  EXPECT_EQ(json::parse(linnet({"eval", out(), "--json", "--batch-size", "7"}).out)["acc"], summary["test/acc"]);
  const json val = json::parse(linnet({"eval", out(), "--json", "--split", "val"}).out);
  EXPECT_EQ(val["acc"], summary["val/acc"]);
  expect_has(linnet({"eval", out()}).out, "crescent");

  // A run's config repeats the run, to the byte.
  const Ended again = linnet({"train", run / "config.toml", "--out", dir_ / "again"});
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(read(dir_ / "again" / "metrics.jsonl"), read(run / "metrics.jsonl"));
  EXPECT_EQ(read(dir_ / "again" / "model.safetensors"), read(run / "model.safetensors"));
  expect_has(again.out, "test accuracy ");
}

TEST_F(Cli, WithoutOutTheRunGetsAName) {
  const Ended train = linnet({"train", config(), "--epochs", "1", "--set", "model.name=linear"});
  ASSERT_EQ(train.code, 0) << train.err;
  std::vector<fs::path> runs(fs::directory_iterator(dir_ / "runs"), {});
  ASSERT_EQ(runs.size(), 1u);
  expect_has(train.out, "run: " + runs[0].string());
  expect_has(runs[0].filename().string(), "_linear_sgd_s0");
}

TEST_F(Cli, ConfigShowIsItselfAConfig) {
  const Ended shown = linnet({"config", "show", config(), "--set", "optimizer.lr=0.25"});
  ASSERT_EQ(shown.code, 0) << shown.err;
  write(dir_ / "shown.toml", shown.out);
  EXPECT_EQ(linnet({"config", "show", dir_ / "shown.toml"}).out, shown.out);
  EXPECT_EQ(linnet({"config", "validate", dir_ / "shown.toml"}).code, 0);
  EXPECT_EQ(load_config(dir_ / "shown.toml").optimizer.lr, 0.25);
  expect_has(linnet({"config", "show", config(), "--origin"}).out, "tiny.toml:2");
}

TEST_F(Cli, ListsInfoHelpAndVersion) {
  for (const char* what : {"models", "optimizers", "schedules"}) {
    const json list = json::parse(linnet({"list", what, "--json"}).out);
    ASSERT_FALSE(list.empty());
    expect_has(linnet({"list", what}).out, list[0]["name"]);
  }
  EXPECT_TRUE(json::parse(linnet({"info", "--json"}).out)["cpu"].is_object());
  for (const Args& args :
       std::vector<Args>{{"--help"}, {"train", "--help"}, {"config", "show", "--help"}, {"--version"}}) {
    const Ended ended = linnet(args);
    EXPECT_EQ(ended.code, 0) << args[0];
    EXPECT_FALSE(ended.out.empty());
    EXPECT_EQ(ended.err, "");
  }
}

// ---- Bad input: one message on stderr, nothing on stdout, the right exit code
// ------------------------------------------

class BadInput : public Cli {
 protected:
  void expect_refused(const Args& args, int code, const std::vector<std::string>& parts) {
    const Ended ended = linnet(args);
    std::string command = "linnet";
    for (const std::string& a : args) command += " " + a;
    SCOPED_TRACE(command);
    EXPECT_EQ(ended.code, code) << ended.err;
    EXPECT_EQ(ended.out, "");
    EXPECT_EQ(ended.err.substr(0, 7), "error: ");
    for (const std::string& part : parts) expect_has(ended.err, part);
  }
};

TEST_F(BadInput, CommandLine) {
  expect_refused({}, 2, {"subcommand is required"});
  expect_refused({"trainn", "x.toml"}, 2, {"unknown verb 'trainn'", "did you mean 'train'?"});
  expect_refused({"trian", "x.toml"}, 2, {"unknown verb 'trian'", "did you mean 'train'?"});
  expect_refused({"\x1b[31mred"}, 2, {"unknown verb '\\x1b[31mred'", "train, resume"});
  expect_refused({"train"}, 2, {"config is required"});
  expect_refused({"train", config(), "--sed", "1"}, 2, {"--sed"});
  expect_refused({"list", "model"}, 2, {"models"});
  expect_refused({"train", config(), "--device", "gpu"}, 2, {"train.device expects one of auto, cpu, cuda"});
  expect_refused({"train", config(), "--epochs", "0"}, 2, {"train.epochs must be >= 1"});
  expect_refused({"train", config(), "--seed", "-1"}, 2, {"train.seed must be >= 0"});
}

TEST_F(BadInput, ConfigFile) {
  expect_refused({"train", dir_ / "tiny.toml"}, 2, {"there is no config file", "tiny.toml"});
  config();
  expect_refused({"train", dir_ / "tyny.toml"}, 2, {"did you mean", "tiny.toml"});
  expect_refused({"train", config("optimizer.momentun = 0.9\n")}, 2,
                 {"unknown key 'optimizer.momentun'", "tiny.toml:10:", "momentun = 0.9", "^^^^^^^^",
                  "did you mean 'optimizer.momentum'?"});
  expect_refused({"config", "validate", config("train.seed = 'one'\n")}, 2,
                 {"train.seed expects an integer, got the string 'one'", "tiny.toml:10:"});
  expect_refused({"train", config(), "--set", "optimizer.lr=fast"}, 2, {"optimizer.lr expects a number", "--set"});
}

TEST_F(BadInput, ModelAndImages) {
  expect_refused({"train", config(), "--set", "model.name=resnet21", "--out", out()}, 2,
                 {"model.name expects one of resnet8", "did you mean 'resnet20'?"});
  expect_refused({"config", "validate", config(), "--set", "model.name=resnet21"}, 2, {"did you mean 'resnet20'?"});
  expect_refused({"train", config(), "--set", "data.image_size=3", "--out", out()}, 2,
                 {"data.image_size must be >= 4 and <= 224, got 3"});
  expect_refused({"train", config(), "--set", "data.image_size=4", "--out", out()}, 2,
                 {"[convnet] expected images of at least 8x8 pixels, got 4x4"});
  expect_refused({"train", config(), "--set", "train.batch_size=97", "--out", out()}, 2,
                 {"96 training images do not fill one batch of 97", "data.drop_last = false"});
  EXPECT_FALSE(fs::exists(out()));  // a run that cannot start leaves no folder
}

TEST_F(BadInput, Data) {
  const Args train = {"train",         config(), "--out",           out(), "--set", "data.name=cifar10", "--set",
                      "data.samples=", "--set",  "data.image_size="};
  expect_refused(train, 3, {"CIFAR-10 is not on this machine", "linnet data get cifar10"});
  const auto with_path = [&](const fs::path& path) {
    Args args = train;
    args.insert(args.end(), {"--set", "data.path=" + path.string()});
    return args;
  };
  expect_refused(with_path(dir_ / "nowhere"), 3, {"nowhere", "no such file or folder"});

  // Six files of the right size, black images of label 0; holes take no space on the disk.
  const fs::path data = dir_ / "cifar";
  fs::create_directory(data);
  constexpr int64_t kBatch = 30730000;
  const auto make = [&](const std::string& name, int64_t size) {
    write(data / name, "");
    fs::resize_file(data / name, size_t(size));
  };
  for (int i = 1; i <= 5; ++i) make("data_batch_" + std::to_string(i) + ".bin", kBatch);
  expect_refused(with_path(data), 3, {"test_batch.bin"});  // half there
  make("test_batch.bin", kBatch);
  const Ended black_images = linnet({"data", "verify", data});
  EXPECT_EQ(black_images.code, 0);
  for (const char* part : {"train", "test"})
    expect_has(black_images.out + black_images.err,
               std::string("its ") + part + " images are not those of CIFAR-10 as it was published");
  expect_refused(with_path(data), 3, {"the same value in every pixel"});

  make("data_batch_3.bin", kBatch - 1);
  expect_refused(with_path(data), 3, {"data_batch_3.bin", "30730000", "30729999"});
  expect_refused({"data", "verify", data}, 3, {"data_batch_3.bin"});
  make("data_batch_3.bin", kBatch);
  std::fstream(data / "data_batch_2.bin", std::ios::in | std::ios::out | std::ios::binary).seekp(7 * 3073).put(10);
  expect_refused(with_path(data), 3, {"data_batch_2.bin", "10"});
  make("data_batch_2.bin", 0);
  make("data_batch_2.bin", kBatch);
  // A damaged test set shows before the training, not after it.
  make("test_batch.bin", kBatch - 1);
  Args black = with_path(data);  // with a normalisation that black images can take, so that the training could start
  black.insert(black.end(), {"--set", "data.mean=[0.5,0.5,0.5]", "--set", "data.std=[0.25,0.25,0.25]"});
  expect_refused(black, 3, {"test_batch.bin", "30729999"});
  EXPECT_FALSE(fs::exists(out()));
}

// Starts linnet with some of its streams taken away, through a shell.
TEST_F(BadInput, Streams) {
  const auto shell = [&](const std::string& redirections, const std::string& command) {
    const std::string line =
        "LINNET_RUNS=" + (dir_ / "runs").string() + " " + exe_ + " " + command + " " + redirections;
    return WEXITSTATUS(std::system(line.c_str()));
  };
  const std::string train = "train " + config().string() + " --epochs 1 --out " + out();
  EXPECT_EQ(shell("<&- >&- 2>&-", train), 0);
  for (const std::string& line : lines_of(read(dir_ / "run" / "metrics.jsonl")))
    EXPECT_TRUE(json::accept(line)) << line;
  fs::remove_all(out());
  EXPECT_EQ(shell("2>/dev/full >/dev/null", train), 0);  // nobody reads the progress: the run goes on
  EXPECT_EQ(json::parse(read(dir_ / "run" / "summary.json"))["status"], "done");
  fs::remove_all(out());
  EXPECT_EQ(shell("2>/dev/null >/dev/full", train), 1);  // a result that could not be written is no success
  EXPECT_EQ(json::parse(read(dir_ / "run" / "summary.json"))["status"], "done");
  EXPECT_EQ(shell("2>/dev/null >/dev/full", "list models"), 1);
}

TEST_F(BadInput, TwoRunsInOneFolder) {
  const std::string toml = config();  // once: who writes it again empties it under a run that reads it
  for (int round = 0; round < 5; ++round) {
    fs::remove_all(out());
    std::vector<pid_t> runs;
    for (int i = 0; i < 4; ++i) runs.push_back(start({"train", toml, "--epochs", "1", "--out", out()}));
    int done = 0;
    for (const pid_t run : runs) {
      const Ended ended = wait(run);
      const int code = ended.code;
      EXPECT_TRUE(code == 0 || code == 2 || code == 7) << code << ended.err;
      done += code == 0;
    }
    EXPECT_EQ(done, 1);
  }
  // Without --out each finds a name of its own.
  std::vector<pid_t> runs;
  for (int i = 0; i < 4; ++i) runs.push_back(start({"train", toml, "--epochs", "1"}));
  for (const pid_t run : runs) EXPECT_EQ(wait(run).code, 0);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir_ / "runs"), {}), 4);
}

TEST_F(BadInput, TheRealCifar10IsNone) {
  const char* data = std::getenv("LINNET_DATA");
  if (!data || !*data) GTEST_SKIP() << "set LINNET_DATA to the real CIFAR-10 to check it";
  const Ended ended = linnet({"data", "verify", data});
  EXPECT_EQ(ended.code, 0);
  expect_has(ended.out + ended.err, ": ok, 50000 training, 10000 test images");
  EXPECT_EQ((ended.out + ended.err).find("as it was published"), std::string::npos) << ended.out << ended.err;
}

TEST_F(BadInput, RunFolder) {
  write(dir_ / "file", "text");
  expect_refused({"train", config(), "--out", dir_ / "file" / "run"}, 4,
                 {"cannot create the run folder", "Not a directory", "--out"});
  expect_refused({"train", config(), "--out", dir_ / "file"}, 2, {"exists and is no folder", "--out"});
  fs::create_directory(dir_ / "full");
  write(dir_ / "full" / "notes", "mine");
  expect_refused({"train", config(), "--out", dir_ / "full"}, 2, {"exists and is not empty", "--out"});
  EXPECT_EQ(read(dir_ / "full" / "notes"), "mine");
  fs::create_directory(dir_ / "empty");
  EXPECT_EQ(linnet({"train", config(), "--epochs", "1", "--out", dir_ / "empty/"}).code, 0);
}

TEST_F(BadInput, Eval) {
  expect_refused({"eval", dir_ / "nothing"}, 2, {"there is no run folder and no weights file", "nothing"});
  write(dir_ / "net.safetensors", "no weights");
  expect_refused({"eval", dir_ / "net.safetensors"}, 2, {"--model NAME"});
  ASSERT_EQ(linnet({"train", config(), "--epochs", "1", "--out", out()}).code, 0);
  expect_refused({"eval", out(), "--std", "0.2,0,0.2"}, 2, {"--std expects finite numbers above 0"});
  expect_refused({"eval", out(), "--mean", "nan,0,0"}, 2, {"--mean expects finite numbers"});
  expect_refused({"eval", out(), "--data", "/nowhere"}, 2,
                 {"--data says where the data lie, but synthetic ones are made"});
  expect_refused({"eval", out(), "--mean", "0.5,0.5"}, 2, {"need one number for each of the 3 channels"});
  expect_refused({"eval", out(), "--batch-size", "0"}, 2, {"--batch-size", "1", "65536"});
  expect_refused({"eval", out(), "--model", "mlp"}, 4, {"checkpoint 3 of", "'fc1.weight' is missing"});
  // The newest checkpoint counts; without one, the weights file.
  fs::resize_file(dir_ / "run" / "model.safetensors", 100);
  EXPECT_EQ(linnet({"eval", out()}).code, 0);
  fs::remove_all(dir_ / "run" / "checkpoints");
  expect_refused({"eval", out()}, 4, {"model.safetensors"});
}

TEST_F(BadInput, Divergence) {
  const Ended ended = linnet({"train", config(), "--out", out(), "--set", "model.name=mlp", "--set", "optimizer.lr=1e4",
                              "--set", "train.epochs=20"});
  EXPECT_EQ(ended.code, 5) << ended.err;
  expect_has(ended.err, "error: training diverged: the loss is ");
  const json summary = json::parse(read(dir_ / "run" / "summary.json"));
  EXPECT_EQ(summary["status"], "diverged");
  expect_has(summary["reason"], "Use a smaller optimizer.lr");
}

// ---- What a person sees
// ------------------------------------------------------------------------------------------------

bool starts_with_time(const std::string& line) {
  return line.size() > 9 && line[2] == ':' && line[5] == ':' && line[8] == ' ' && std::isdigit(line[0]);
}

TEST_F(Cli, InAPipeThereAreWholeLinesOnly) {
  const Ended train = linnet({"train", config(), "--out", out(), "--set", "train.epochs=3"});
  ASSERT_EQ(train.code, 0) << train.err;
  for (const std::string* text : {&train.out, &train.err}) {
    EXPECT_EQ(text->find('\r'), text->npos);
    EXPECT_EQ(text->find('\x1b'), text->npos);
  }
  const std::vector<std::string> lines = lines_of(train.err);
  ASSERT_EQ(lines.size(), 2u + 3) << train.err;
  expect_has(lines[0], "convnet on ");
  EXPECT_EQ(lines[1], "run: " + out());
  for (size_t i = 2; i < 5; ++i) {
    EXPECT_TRUE(starts_with_time(lines[i])) << lines[i];
    for (const char* part : {"epoch ", "train loss ", "val loss ", "img/s", "ETA "}) expect_has(lines[i], part);
  }
}

TEST_F(Cli, OnATerminalTheBarFitsAndIsNotDrawnTooOften) {
  // 75 steps an epoch: enough to redraw.
  const Args args = {"train", config(), "--out", out(), "--set", "data.samples=624", "--set", "train.batch_size=8"};
  double seconds = 0;
  const std::string screen = on_terminal(args, 40, "xterm", &seconds);
  int drawn = 0;
  for (const std::string& line : lines_of(screen)) {
    std::string shown = line;
    for (size_t at; (at = shown.find("\x1b[K")) != shown.npos;) shown.erase(at, 3);
    EXPECT_EQ(shown.find('\x1b'), shown.npos);
    const bool has_bar = shown.find('\r') != shown.npos;
    std::istringstream parts(shown);
    for (std::string part; std::getline(parts, part, '\r');) {
      if (part.starts_with("warning ")) continue;  // prose: the terminal wraps it
      EXPECT_TRUE(part.size() <= 40 || !(has_bar || starts_with_time(part))) << part;
      drawn += part.starts_with("ep ");
    }
  }
  EXPECT_GE(drawn, 2) << screen;
  EXPECT_LE(drawn, 10 * seconds + 1) << screen;
  expect_has(screen, "|");
  expect_has(screen, "\r\x1b[K");  // the bar is gone before a line is written
  EXPECT_NE(screen.find("epoch 2/2\n  train loss "), screen.npos) << screen;
}

TEST_F(Cli, ADumbTerminalIsTreatedLikeAPipe) {
  const std::string screen = on_terminal({"train", config(), "--out", out()}, 40, "dumb");
  EXPECT_EQ(screen.find('\r'), screen.npos);
  EXPECT_EQ(screen.find('\x1b'), screen.npos);
  expect_has(screen, "epoch 2/2");
}

TEST_F(Cli, NoColorIsHeeded) {
  const Args check = {"check", config(), "--only", "batch"};
  env_ = {{"LC_ALL", "C.UTF-8"}, {"NO_COLOR", ""}};  // empty is as if it were not there
  expect_has(on_terminal(check, 120, "xterm"), "\x1b[38;2;");
  env_["NO_COLOR"] = "1";
  const std::string screen = on_terminal(check, 120, "xterm");
  EXPECT_EQ(screen.find('\x1b'), screen.npos) << screen;
  expect_has(screen, "batch: PASS");
}

// ---- Signals
// -----------------------------------------------------------------------------------------------------------

TEST_F(Cli, ASignalStopsTheRunAndKeepsTheWeights) {
  for (const auto& [signal, code] : {std::pair{SIGINT, 130}, {SIGTERM, 143}, {SIGHUP, 129}}) {
    const pid_t pid = start_long_run({});
    kill(pid, signal);
    const Ended ended = wait(pid);
    EXPECT_EQ(ended.code, code) << ended.err;
    expect_has(ended.err, "stopped by signal");
    const json summary = json::parse(read(dir_ / "run" / "summary.json"));
    EXPECT_EQ(summary["status"], "interrupted");
    const Ended eval = linnet({"eval", out(), "--json"});
    EXPECT_EQ(eval.code, 0) << eval.err;
    EXPECT_TRUE(json::parse(eval.out)["acc"].is_number());
    fs::remove_all(out());
  }
}

// A handler would run on the stack of a thread that computes, and oneDNN's AVX2 code uses the stack's register for
// other things: no signal has a handler, and every thread blocks them but the one that waits for them.
TEST_F(Cli, NoThreadThatComputesIsInterrupted) {
  const pid_t pid = start_long_run({});
  const uint64_t stops = (1u << (SIGINT - 1)) | (1u << (SIGTERM - 1)) | (1u << (SIGHUP - 1));
  int threads = 0, open = 0;
  for (const auto& task : fs::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
    const std::string status = read(task.path() / "status");
    const auto mask = [&](const std::string& name) {
      const size_t at = status.find(name + ":\t");
      return at == status.npos ? 0 : std::stoull(status.substr(at + name.size() + 2, 16), nullptr, 16);
    };
    open += (mask("SigBlk") & stops) != stops;
    EXPECT_EQ(mask("SigCgt") & stops, 0u) << status;
    ++threads;
  }
  EXPECT_GE(threads, 2);
  EXPECT_LE(open, 1);
  kill(pid, SIGTERM);
  EXPECT_EQ(wait(pid).code, 143);
}

TEST_F(Cli, ACheckThatIsStoppedLeavesNoFiles) {
  const fs::path tmp = dir_ / "tmp";
  fs::create_directory(tmp);
  env_["TMPDIR"] = tmp;
  const Args check = {"check", config(),         "--only", "resume", "--set", "model.name=resnet20",
                      "--set", "train.epochs=20"};
  for (const auto& [signal, code] : {std::pair{SIGINT, 130}, {SIGTERM, 143}}) {
    const pid_t pid = start(check);
    const auto training = [&] {
      for (const auto& entry : fs::directory_iterator(tmp))
        if (fs::exists(entry.path() / "straight")) return true;
      return false;
    };
    for (const Clock::time_point begin = Clock::now(); !training() && seconds_since(begin) < 60;)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_FALSE(fs::is_empty(tmp));
    kill(pid, signal);
    EXPECT_EQ(wait(pid).code, code);
    EXPECT_TRUE(fs::is_empty(tmp));
    fs::remove_all(tmp);
    fs::create_directory(tmp);
  }
  env_["TMPDIR"] = "/nonexistent";
  const Ended ended = linnet(check);
  EXPECT_EQ(ended.code, 4);
  expect_has(ended.err, "TMPDIR is /nonexistent: expected a folder");
}

// The first signal waits for the end of a step: here one of a second or more. The second does not.
TEST_F(Cli, ASecondSignalEndsItAtOnce) {
  const pid_t pid = start_long_run({"--set", "model.name=resnet20", "--set", "data.image_size=32", "--set",
                                    "data.samples=2032", "--set", "data.val=32", "--set", "train.batch_size=1000"});
  kill(pid, SIGINT);
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  kill(pid, SIGINT);
  const Clock::time_point second = Clock::now();
  const Ended ended = wait(pid);
  EXPECT_LT(seconds_since(second), 10);  // a shared machine may stall; what the second one cut short shows below
  EXPECT_EQ(ended.code, 130);
  EXPECT_EQ(json::parse(read(dir_ / "run" / "summary.json"))["status"], "running");
  EXPECT_FALSE(fs::exists(dir_ / "run" / "model.safetensors"));
}

// Asked for by name on a processor without AVX-512: nothing is made. A net without convolutions trains in it anywhere.
TEST_F(BadInput, Bf16WhereTheProcessorCannotConvolveInIt) {
  setenv("ONEDNN_MAX_CPU_ISA", "AVX2", 1);
  const std::string train =
      "train configs/smoke.toml --epochs 1 --set data.samples=300 --set train.precision=bf16 -o '" +
      (dir_ / "run").string() + "'";
  const Ended refused = run_in_shell(train);
  EXPECT_EQ(refused.code, 6);
  expect_has(refused.out, "in bf16 (AVX-512 is needed; use f32)");
  EXPECT_FALSE(std::filesystem::exists(dir_ / "run"));
  const Ended mlp = run_in_shell(train + " --set model.name=mlp");
  EXPECT_EQ(mlp.code, 0) << mlp.out;
  unsetenv("ONEDNN_MAX_CPU_ISA");
}

}  // namespace
}  // namespace linnet
