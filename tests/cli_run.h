// What the tests of the command line share: files as text, and the program through a shell.
#pragma once
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#ifndef LINNET_EXE
#define LINNET_EXE "build/linnet"
#endif

namespace linnet {

struct Ended {
  int code;              // -1: by a signal
  std::string out, err;  // of run_in_shell: both in out
};

inline std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

inline void expect_has(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), text.npos) << "no '" << part << "' in:\n" << text;
}

// A shell's command; what it writes to stdout.
inline Ended shell_output(const std::string& command) {
  FILE* pipe = popen(command.c_str(), "r");
  Ended ended{-1, "", ""};
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) ended.out.append(buffer, n);
  const int status = pclose(pipe);
  if (WIFEXITED(status)) ended.code = WEXITSTATUS(status);
  return ended;
}

// `linnet ARGUMENTS`, quoted as a shell takes them.
inline Ended run_in_shell(const std::string& arguments) {
  return shell_output("'" + std::filesystem::absolute(LINNET_EXE).string() + "' " + arguments + " 2>&1");
}

}  // namespace linnet
