// A process of this very program, its output in a file.
#pragma once
#include <sys/types.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace linnet {

// Starts `linnet ARGUMENTS` with these variables set; what it prints is appended to `log`. It gets no signals of this
// terminal (whoever starts it passes them on, once) and SIGTERM when this process dies.
pid_t start_linnet(const std::vector<std::string>& arguments,
                   const std::vector<std::pair<std::string, std::string>>& variables, const std::filesystem::path& log);

}  // namespace linnet
