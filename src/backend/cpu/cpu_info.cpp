#include "cpu_info.h"

#include <fmt/core.h>

#include <dnnl.hpp>
#include <fstream>

#include "linnet/error.h"
#include "simd_level.h"

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace linnet {

namespace {
std::string model_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown processor";
}

#ifdef __x86_64__
// Tiles make a thread's registers 8 KB larger: a process asks the kernel (Linux 5.16) before it uses them, once for all
// its threads. https://docs.kernel.org/arch/x86/xstate.html
bool may_use_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTile) == 0 || (d & kBf16) == 0) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif
}  // namespace

Simd best_simd() {
#ifdef __x86_64__
  static const Simd best = [] {
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq"))
      return Simd::avx2;
    return __builtin_cpu_supports("avx512bf16") && may_use_amx() ? Simd::amx : Simd::avx512;
  }();
  return best;
#else
  return Simd::avx2;
#endif
}

std::vector<std::pair<std::string, std::string>> cpu_info() {
  std::string features;
#ifdef __x86_64__
  const std::pair<const char*, bool> known[] = {{"avx2", bool(__builtin_cpu_supports("avx2"))},
                                                {"fma", bool(__builtin_cpu_supports("fma"))},
                                                {"avx512f", bool(__builtin_cpu_supports("avx512f"))},
                                                {"avx512bf16", bool(__builtin_cpu_supports("avx512bf16"))},
                                                {"amx", best_simd() == Simd::amx}};
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
