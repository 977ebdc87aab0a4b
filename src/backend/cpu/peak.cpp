// What this machine can do at most, measured when it is asked for: other programs share it.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "peak_table.h"
#include "simd_level.h"
#include "src/backend/backends.h"

namespace linnet {

namespace {

template <class F>
double best_seconds(int times, const F& f) {
  double best = 1e9;
  for (int i = 0; i < times; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace

CpuPeak measure_cpu_peak(int threads, DType type) {
  const bool in_tiles = type == DType::bf16 && best_simd() == Simd::amx;
#ifdef __x86_64__
  const PeakKernel& kernel = in_tiles ? peak_amx : best_simd() >= Simd::avx512 ? peak_avx512 : peak_avx2;
#else
  const PeakKernel& kernel = peak_avx2;
#endif
  ThreadPool pool(threads);
  constexpr int64_t kRounds = 200'000;  // some milliseconds
  volatile double keep = 0;
  const double multiply =
      best_seconds(10, [&] { pool.run(threads, [&](int64_t, int) { keep = kernel.run(kRounds); }); });

  // Far more than the caches hold; each thread copies its own part.
  constexpr size_t kBytes = size_t(128) << 20;
  std::vector<char> from(kBytes, 1), to(kBytes, 2);
  const double copy = best_seconds(5, [&] {
    pool.run(threads, [&](int64_t part, int) {
      const size_t begin = kBytes / size_t(threads) * size_t(part);
      std::memcpy(to.data() + begin, from.data() + begin, kBytes / size_t(threads));
    });
  });
  return {double(kernel.flops) * double(kRounds) * threads / multiply * 1e-9, 2 * double(kBytes) / copy * 1e-9,
          in_tiles ? "bf16 (AMX)" : "f32"};
}

}  // namespace linnet
