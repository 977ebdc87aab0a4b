// Winograd beside oneDNN's direct convolutions, on the 3x3 convolutions of ResNet-20 with batch 128: milliseconds (the
// best of many interleaved runs, as other programs may disturb single ones) and, for both, the GFLOP/s of the direct
// sum. Usage: winograd [threads [runs]]
#include "src/backend/cpu/winograd.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "src/backend/cpu/convolution.h"

using namespace linnet;

namespace {

struct Heap : Block {
  explicit Heap(size_t size) : floats(size) { data = floats.data(), bytes = size * sizeof(float); }
  std::vector<float> floats;
};

Tensor noise(const Shape& shape) {
  static std::mt19937 random(1);
  auto block = std::make_shared<Heap>(size_t(shape.numel()));
  for (float& x : block->floats) x = std::uniform_real_distribution<float>(-1, 1)(random);
  return Tensor(block, shape, DType::f32);
}

double milliseconds(const std::function<void()>& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int argc, char** argv) {
  ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : default_threads());
  const int runs = argc > 2 ? std::atoi(argv[2]) : 100;
  Convolutions direct(pool);
  std::vector<std::pair<const char*, std::unique_ptr<Winograd>>> winograds;
  winograds.emplace_back("avx2", std::make_unique<Winograd>(pool, Simd::avx2));
  if (best_simd() == Simd::avx512) winograds.emplace_back("avx512", std::make_unique<Winograd>(pool, Simd::avx512));

  std::printf("%d threads, best of %d runs: ms (GFLOP/s)\n%-10s %-16s %16s", pool.threads(), runs, "shape", "pass",
              "oneDNN");
  for (const auto& [name, winograd] : winograds) std::printf(" %16s", name);
  std::printf("\n");
  for (const WinogradShape s : {WinogradShape{128, 32, 32, 16, 16}, {128, 16, 16, 32, 32}, {128, 8, 8, 64, 64}}) {
    const Tensor x = noise({s.n, s.h, s.w, s.c}), y = noise({s.n, s.h, s.w, s.k}), w = noise({s.k, 3, 3, s.c});
    const Tensor dx = noise(x.shape()), dy = noise(y.shape()), dw = noise(w.shape());
    const Conv conv{.stride = 1, .pad = 1};
    const char* passes[] = {"forward", "backward data", "backward weight", "backward"};
    for (int pass = 0; pass < 4; ++pass) {
      std::vector<std::function<void()>> ways;
      ways.push_back([&] {
        if (pass == 0) direct.forward(y, x, w, conv);
        if (pass == 1) direct.backward_data(dx, dy, w, conv);
        if (pass >= 2) direct.backward_weight(dw, dy, x, conv);
        if (pass == 3) direct.backward_data(dx, dy, w, conv);
      });
      for (const auto& entry : winograds)
        ways.push_back([&] {
          if (pass == 0) entry.second->forward(y, x, w);
          if (pass == 1) entry.second->backward_data(dx, dy, w);
          if (pass == 2) entry.second->backward_weight(dw, dy, x);
          if (pass == 3) entry.second->backward(dx, dw, dy, x, w);
        });
      std::vector<double> best(ways.size(), 1e9);
      for (int run = 0; run < runs; ++run)
        for (size_t i = 0; i < ways.size(); ++i) best[i] = std::min(best[i], milliseconds(ways[i]));
      const double gflop = (pass == 3 ? 2 : 1) * 2e-9 * 9 * double(s.n * s.h * s.w * s.c * s.k);
      std::printf("%3dx%-6d %-16s", int(s.c), int(s.h), passes[pass]);
      for (double ms : best) std::printf(" %7.3f (%6.0f)", ms, gflop / ms * 1e3);
      std::printf("\n");
    }
  }
}
