// `linnet watch`, `completion` and `man`, as a person and a shell use them.
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "cli_run.h"
#include "linnet/text.h"
#include "temp_dir.h"

namespace {

using linnet::Ended;
using linnet::expect_has;
using linnet::lines_of;
using linnet::run_in_shell;

class Watch : public testing::Test {
 protected:
  // A finished run of four epochs.
  std::string run(const std::string& name) {
    std::ofstream(dir_ / "c.toml") << "model.name = 'linear'\ndata = { name = 'synthetic', samples = 96, val = 32 }\n"
                                      "train = { epochs = 4, batch_size = 32 }\nlog.interval = 1\n"
                                      "log.tensorboard = false\n";
    const std::string out = (dir_ / name).string();
    const Ended ended = run_in_shell("train " + (dir_ / "c.toml").string() + " --out " + out);
    EXPECT_EQ(ended.code, 0) << ended.out;
    return out;
  }
  TempDir dir_;
};

TEST_F(Watch, InAPipeItPrintsOnce) {
  const std::string a = run("a"), b = run("b");
  const Ended ended = run_in_shell("watch " + a + " --against " + b);
  ASSERT_EQ(ended.code, 0) << ended.out;
  for (const char* part :
       {"a: linear with sgd, seed 0: done\n", "epoch 4 of 4, step 8", "val/acc\n", "learning rate\n", "gradient norm\n",
        "fit: ", "gradient norm by layer, step 8\n", "  update ", "update norm\n", "o a\n", "* to beat: b\n"})
    expect_has(ended.out, part);
  EXPECT_EQ(ended.out.find('\x1b'), std::string::npos);
}

TEST_F(Watch, OnATerminalItFitsAndPutsTheScreenBack) {
  const std::string a = run("a");
  int terminal = -1;
  const winsize size{.ws_row = 20, .ws_col = 40};
  const pid_t pid = forkpty(&terminal, nullptr, nullptr, &size);
  if (pid == 0) {
    setenv("TERM", "xterm", 1);
    setenv("LC_ALL", "C", 1);
    const std::string exe = std::filesystem::absolute(LINNET_EXE).string();
    execl(exe.c_str(), "linnet", "watch", a.c_str(), "--interval", "0.1", nullptr);
    _exit(127);
  }
  std::string screen;
  char buffer[4096];
  bool asked = false;
  for (ssize_t n; (n = ::read(terminal, buffer, sizeof buffer)) > 0;) {
    screen.append(buffer, size_t(n));
    if (!asked && screen.find("q: leave") != screen.npos) asked = ::write(terminal, "q", 1) == 1;
  }
  close(terminal);
  int status = 0;
  waitpid(pid, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(screen.starts_with("\x1b[?1049h\x1b[?25l")) << screen;
  EXPECT_TRUE(screen.ends_with("\x1b[?25h\x1b[?1049l")) << screen;
  std::string first = screen.substr(screen.find("\x1b[H") + 3);
  first = first.substr(0, first.find("\x1b[J"));
  for (size_t at; (at = first.find("\x1b[K")) != first.npos;) first.erase(at, 3);
  const std::vector<std::string> lines = lines_of(first);
  EXPECT_LE(lines.size(), 20u);
  for (const std::string& line : lines) EXPECT_LE(line.size(), 41u) << line;  // with its \r
}

TEST_F(Watch, AFolderThatIsNoRunIsRefused) {
  const Ended ended = run_in_shell("watch " + dir_.path().string());
  EXPECT_EQ(ended.code, 2);
  expect_has(ended.out, "expected a folder with a config.toml");
}

// What a shell asks for at each place of a line.
TEST(Completion, KnowsVerbsOptionsKeysAndNames) {
  const auto found = [](const std::string& words) { return lines_of(run_in_shell("__complete " + words).out); };
  const auto has = [](const std::vector<std::string>& all, const char* one) {
    return std::ranges::count(all, one) == 1;
  };
  EXPECT_TRUE(has(found("''"), "train"));
  EXPECT_FALSE(has(found("''"), "__complete"));
  EXPECT_EQ(found("tra"), std::vector<std::string>{"train"});
  EXPECT_TRUE(has(found("train --"), "--max-time"));
  EXPECT_TRUE(has(found("train c.toml --set optimizer.l"), "optimizer.lr="));
  EXPECT_EQ(found("train --set train.lr_scaling=s"), std::vector<std::string>{"train.lr_scaling=sqrt"});
  EXPECT_TRUE(has(found("train --set optimizer.name=a"), "optimizer.name=adamw"));
  EXPECT_EQ(found("list op"), std::vector<std::string>{"optimizers"});
  EXPECT_TRUE(found("train con").empty());  // the shell completes files
}

// What `lines` print in that shell, where "linnet" is the program.
std::string in_shell(const std::string& shell, const std::string& lines) {
  const std::string exe = std::filesystem::absolute(LINNET_EXE).string();
  return linnet::shell_output("PATH=" + exe.substr(0, exe.rfind('/')) + ":$PATH; " + shell + " -c '" + lines + "' 2>&1")
      .out;
}

bool is_installed(const std::string& shell) { return linnet::shell_output("command -v " + shell).code == 0; }

TEST(Completion, BashTakesTheScript) {
  EXPECT_EQ(in_shell("bash",
                     "source <(linnet completion bash); COMP_LINE=\"linnet train --set optimizer.name=adamw\"; "
                     "COMP_POINT=${#COMP_LINE}; _linnet; echo \"${COMPREPLY[@]}\""),
            "adamw\n");
}

TEST(Completion, ZshTakesTheScript) {
  if (!is_installed("zsh")) GTEST_SKIP() << "no zsh here";
  const std::string begin =
      "compdef() { }; compadd() { print -l -- \"${@[5,-1]}\"; }; _files() { print files; }; "
      "source <(linnet completion zsh); ";  // the words behind compadd -Q -S "" --
  EXPECT_EQ(in_shell("zsh -f", begin + "words=(linnet tra); CURRENT=2; _linnet"), "train\n");
  EXPECT_EQ(in_shell("zsh -f", begin + "words=(linnet train --set optimizer.name=adamw); CURRENT=4; _linnet"),
            "optimizer.name=adamw\n");
  EXPECT_EQ(in_shell("zsh -f", begin + "words=(linnet train con); CURRENT=3; _linnet"), "files\n");
}

TEST(Completion, FishTakesTheScript) {
  if (!is_installed("fish")) GTEST_SKIP() << "no fish here";
  const std::string begin = "linnet completion fish | source; ";
  EXPECT_EQ(in_shell("fish -N", begin + "complete -C \"linnet tra\""), "train\n");
  EXPECT_EQ(in_shell("fish -N", begin + "complete -C \"linnet train --set optimizer.name=adamw\""),
            "optimizer.name=adamw\n");
  EXPECT_EQ(in_shell("fish -N", begin + "cd /; complete -C \"linnet train etc\""), "etc/\n");
}

TEST(Completion, EveryShellHasAScript) {
  for (const char* shell : {"bash", "zsh", "fish"})
    expect_has(run_in_shell(std::string("completion ") + shell).out, "linnet __complete ");
  EXPECT_EQ(run_in_shell("completion tcsh").code, 2);
}

TEST(Man, HasEachVerbAndItsOptions) {
  const std::string page = run_in_shell("man").out;
  EXPECT_TRUE(page.starts_with(".TH LINNET 1")) << page.substr(0, 100);
  for (const char* part : {".SS train\n", ".SS optim trace\n", "\\-\\-max\\-time", ".SH EXIT STATUS\n"})
    expect_has(page, part);
}

}  // namespace
