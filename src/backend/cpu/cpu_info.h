// What this processor is and can do.
#pragma once
#include <string>
#include <utility>
#include <vector>

namespace linnet {

// ("device", model name), ("instructions", ...), ("oneDNN", version).
std::vector<std::pair<std::string, std::string>> cpu_info();
// Whether it multiplies bf16 numbers (AVX512_BF16, AMX).
bool has_fast_bf16();
// Error(Exit::device) if the processor lacks the instructions Linnet was built for.
void require_cpu();

}  // namespace linnet
