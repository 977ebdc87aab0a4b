// The report's page as a reader sees it: in headless Chromium, driven by tests/report_browser.py. Skipped where there
// is no Chromium or no Selenium (`scripts/setup browser`).
#include <cstdlib>
#include <fstream>

#include "cli_run.h"
#include "temp_dir.h"

namespace linnet {
namespace {

TEST(ReportPage, ABrowserDrawsEveryPanelAndTheSwitchesWork) {
  const TempDir dir;
  std::ofstream(dir / "a.toml") << "[model]\nname = \"convnet\"\n[data]\nname = \"synthetic\"\nsamples = 400\n"
                                << "image_size = 16\nval = 80\n[optimizer]\nname = \"sgd\"\nlr = 0.05\n[train]\n"
                                << "epochs = 3\nbatch_size = 32\nseed = 0\n[log]\ninterval = 2\n"
                                << "[schedule]\nname = \"cosine\"\n";
  const std::string folder = "'" + dir.path().string() + "'";
  const Ended trained = run_in_shell("train " + folder + "/a.toml --out " + folder + "/run");
  ASSERT_EQ(trained.code, 0) << trained.out;
  // Debian's Selenium is its own Python's.
  const std::string command =
      "for p in python3 /usr/bin/python3; do $p -c 'import selenium' 2>/dev/null && "
      "exec $p tests/report_browser.py '" +
      std::filesystem::absolute(LINNET_EXE).string() + "' " + folder + "/run " + folder + "; done; exit 77";
  const int status = std::system(command.c_str());
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "there is no Chromium or no Selenium here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace linnet
