#include "cpu_info.h"

#include <fmt/core.h>

#include <dnnl.hpp>
#include <fstream>

#include "linnet/error.h"

namespace linnet {

namespace {
std::string model_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown processor";
}
}  // namespace

std::vector<std::pair<std::string, std::string>> cpu_info() {
  std::string features;
#ifdef __x86_64__
  const std::pair<const char*, bool> known[] = {{"avx2", bool(__builtin_cpu_supports("avx2"))},
                                                {"fma", bool(__builtin_cpu_supports("fma"))},
                                                {"avx512f", bool(__builtin_cpu_supports("avx512f"))},
                                                {"avx512bf16", bool(__builtin_cpu_supports("avx512bf16"))}};
  for (const auto& [name, there] : known)
    if (there) features += (features.empty() ? "" : " ") + std::string(name);
#endif
  const dnnl::version_t* v = dnnl::version();
  return {{"device", model_name()},
          {"instructions", features},
          {"oneDNN", fmt::format("{}.{}.{}", v->major, v->minor, v->patch)}};
}

bool has_fast_bf16() {
#ifdef __x86_64__
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

void require_cpu() {
#ifdef __AVX2__
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
    fail(Exit::device,
         "this processor ({}) has no AVX2 and FMA, for which Linnet was built; configure with "
         "-DLINNET_ARCH=x86-64 and build again",
         model_name());
#endif
}

}  // namespace linnet
