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

// oneDNN's own limit, ONEDNN_MAX_CPU_ISA, holds for our kernels too: =AVX2 runs all as a narrower processor would.
bool may_use(dnnl::cpu_isa isa) {
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & static_cast<unsigned>(isa)) ==
         static_cast<unsigned>(isa);
}
#endif
}  // namespace

Simd best_simd() {
#ifdef __x86_64__
  static const Simd best = [] {
    if (!may_use(dnnl::cpu_isa::avx512_core)) return Simd::avx2;  // F, VL, BW and DQ
    if (!has_fast_bf16()) return Simd::avx512;
    return may_use(dnnl::cpu_isa::avx512_core_amx) && may_use_amx() ? Simd::amx : Simd::avx512_bf16;
  }();
  return best;
#else
  return Simd::avx2;
#endif
}

const char* name_of(Simd simd) {
  constexpr const char* kNames[] = {"AVX2", "AVX-512", "AVX512_BF16", "AMX"};
  return kNames[static_cast<int>(simd)];
}

std::vector<std::pair<std::string, std::string>> cpu_info() {
  std::string features;
#ifdef __x86_64__
  const std::pair<const char*, bool> known[] = {{"avx2", bool(__builtin_cpu_supports("avx2"))},
                                                {"fma", bool(__builtin_cpu_supports("fma"))},
                                                {"avx512f", best_simd() != Simd::avx2},
                                                {"avx512bf16", has_fast_bf16()},
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
  static const bool fast = may_use(dnnl::cpu_isa::avx512_core_bf16);
  return fast;
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
