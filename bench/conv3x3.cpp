// The own 3x3 convolutions (Winograd's, and AMX's direct sum in bf16) beside oneDNN's, on those of ResNet-20 with batch
// 128: milliseconds (the best of many interleaved runs, as other programs may disturb single ones) and, for all, the
// GFLOP/s of the direct sum. Usage: conv3x3 [threads [runs [f32 | bf16]]]
#include "src/backend/cpu/conv3x3.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string_view>
#include <vector>

#include "src/backend/cpu/convolution.h"

using namespace linnet;

namespace {

struct Heap : Block {
  explicit Heap(size_t size) : floats(size) { data = floats.data(), bytes = size * sizeof(float); }
  std::vector<float> floats;
};

Tensor noise(const Shape& shape, DType type) {
  static std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  Tensor t(std::make_shared<Heap>(size_t(shape.numel())), shape, type);
  for (int64_t i = 0; i < t.numel(); ++i)
    if (type == DType::bf16)
      t.data<bf16>()[i] = bf16(uniform(random));
    else
      t.data<float>()[i] = uniform(random);
  return t;
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
  const DType type = argc > 3 && std::string_view(argv[3]) == "bf16" ? DType::bf16 : DType::f32;
  Convolutions direct(pool);
  std::vector<std::pair<const char*, std::unique_ptr<Conv3x3>>> own;
  for (const Simd simd : {Simd::avx2, Simd::avx512, Simd::avx512_bf16, Simd::amx})
    if (simd <= best_simd() && (simd < Simd::avx512_bf16 || type == DType::bf16))
      own.emplace_back(name_of(simd), std::make_unique<Conv3x3>(pool, simd));

  std::printf("%d threads, best of %d runs: ms (GFLOP/s)\n%-10s %-16s %16s", pool.threads(), runs, "shape", "pass",
              "oneDNN");
  for (const auto& [name, kernels] : own) std::printf(" %16s", name);
  std::printf("\n");
  for (const Conv3x3Shape s : {Conv3x3Shape{128, 32, 32, 16, 16}, {128, 16, 16, 32, 32}, {128, 8, 8, 64, 64}}) {
    const Tensor x = noise({s.n, s.h, s.w, s.c}, type), y = noise({s.n, s.h, s.w, s.k}, type),
                 w = noise({s.k, 3, 3, s.c}, type);
    const Tensor dx = noise(x.shape(), type), dy = noise(y.shape(), type), dw = noise(w.shape(), DType::f32);
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
      for (const auto& entry : own)
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
