// The diff that CONTRIBUTING.md shows is what the files say.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <sstream>

namespace linnet {
namespace {

std::string content(const std::string& file) {  // tests run in the repository's root
  std::ifstream in(file);
  EXPECT_TRUE(in) << file;
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(Contributing, ShowsTheFilesAsTheyAre) {
  std::istringstream page(content("CONTRIBUTING.md"));
  std::string file, text;
  int checked = 0;
  for (std::string line; std::getline(page, line);) {
    if (line.starts_with("+++ ")) {
      file = line.substr(4);
      text = content(file);
    } else if (line.starts_with("+") && !file.empty()) {
      EXPECT_NE(text.find(line.substr(1) + "\n"), std::string::npos) << file << " has no line " << line.substr(1);
      ++checked;
    }
  }
  EXPECT_GT(checked, 40);
}

}  // namespace
}  // namespace linnet
