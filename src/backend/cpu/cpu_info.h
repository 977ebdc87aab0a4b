// What this processor is and can do.
#pragma once
#include <string>
#include <utility>
#include <vector>

namespace linnet {

// ("device", model name), ("instructions", ...), ("oneDNN", version).
std::vector<std::pair<std::string, std::string>> cpu_info();
// Error(Exit::device) if the processor lacks the instructions Linnet was built for.
void require_cpu();

}  // namespace linnet
