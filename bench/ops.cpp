// Time of each operation of a ResNet-20 step at batch 128, on the backend named by LINNET_BENCH_DEVICE (default cpu).
// GFLOP/s counts two per multiply-add, padding included; GB/s counts each operand once.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdlib>
#include <sstream>

#include "linnet/backend.h"
#include "linnet/config.h"
#include "linnet/optimizer.h"
#include "linnet/pool.h"

namespace {

using namespace linnet;
constexpr int64_t kBatch = 128;

Backend& backend() {
  static const auto be = make_backend(std::getenv("LINNET_BENCH_DEVICE") ? std::getenv("LINNET_BENCH_DEVICE") : "cpu");
  return *be;
}

// Random-looking contents: denormals or zeros would flatter some instructions.
Tensor filled(const Shape& shape) {
  Tensor t(backend().allocate(size_t(shape.numel()) * 4), shape, DType::f32);
  std::vector<float> values(size_t(shape.numel()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = float((i * 2654435761u >> 8) % 2001) / 1000.f - 1;
  backend().upload(t, values.data());
  return t;
}

template <class F>
void time(benchmark::State& state, double flops, double bytes, const F& f) {
  for (auto _ : state) {
    f();
    backend().synchronize();
  }
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  if (flops > 0) state.counters["GFLOP/s"] = benchmark::Counter(flops * 1e-9, rate);
  if (bytes > 0) state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, rate);
}

struct ConvShape {
  int64_t in, out, size;
  int stride;
};
const ConvShape kConvs[] = {{3, 16, 32, 1},  {16, 16, 32, 1}, {16, 32, 32, 2},
                            {32, 32, 16, 1}, {32, 64, 16, 2}, {64, 64, 8, 1}};

void conv(benchmark::State& state, ConvShape s, char pass) {
  const int64_t o = s.size / s.stride;
  const Tensor x = filled({kBatch, s.size, s.size, s.in}), w = filled({s.out, 3, 3, s.in}),
               y = filled({kBatch, o, o, s.out}), dw = filled(w.shape()), dx = filled(x.shape());
  const Conv c{s.stride, 1};
  const double flops = 2.0 * double(y.numel() * 9 * s.in);
  const auto run = [&] {
    if (pass == 'f') backend().conv_forward(y, x, w, c, nullptr);
    if (pass == 'd') backend().conv_backward_data(dx, y, w, c);
    if (pass == 'w') backend().conv_backward_weight(dw, y, x, c);
  };
  run();  // builds the plan
  time(state, flops, 0, run);
}

void bn(benchmark::State& state, int64_t channels, int64_t size, bool forward) {
  const Shape shape{kBatch, size, size, channels};
  const Tensor x = filled(shape), y = filled(shape), r = filled(shape), dx = filled(shape), dr = filled(shape);
  const Tensor saved = filled({4, channels}), a = filled({channels}), b = filled({channels});
  const BnState bn_state{filled({channels}), filled({channels}), filled({channels}), filled({channels})};
  const Bn bn{.relu = true};
  if (forward)
    time(state, 0, 4.0 * double(x.bytes()),
         [&] { backend().bn_forward(y, saved, x, &r, bn_state, bn, true, nullptr); });
  else
    time(state, 0, 8.0 * double(x.bytes()),
         [&] { backend().bn_backward(dx, &dr, a, b, r, x, y, saved, bn_state.scale, bn, nullptr, nullptr); });
}

void add(benchmark::State& state) {
  const Tensor x = filled({kBatch, 32, 32, 16}), y = filled(x.shape());
  time(state, 0, 3.0 * double(x.bytes()), [&] { backend().add(y, y, x); });
}

// All parameters of a ResNet-20 under one rule, beside a copy of as many words as the rule reads and writes.
constexpr int64_t kParameters = 272474;

double copy_seconds(int64_t words) {
  const Tensor from = filled({kParameters * words / 2}), to = filled(from.shape());
  double best = 1;
  for (int k = 0; k < 200; ++k) {
    const auto begin = std::chrono::steady_clock::now();
    backend().copy(to, from);
    backend().synchronize();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

void update(benchmark::State& state, const Rule& rule) {
  const int64_t n = kParameters;
  Flat flat;
  flat.master = filled({n});
  flat.grad = filled({n});
  flat.slots = Tensor(backend().allocate(size_t(n * std::max(1, slots_of(rule))) * 4), {slots_of(rule), n}, DType::f32);
  backend().zero(flat.slots);
  flat.segments = {{.begin = 0, .n = n, .n_decay = n - 1376}};  // batch norm and biases do not decay
  flat.n = flat.n_trainable = n;
  const Tensor step = make_step(backend());
  StepParams params;
  params.group[0] = group_step(rule, 1e-3, 1e-4, 10);
  write_step(backend(), step, params);
  double best = 1;
  for (auto _ : state) {
    const auto begin = std::chrono::steady_clock::now();
    backend().shift(rule, flat, 0, step);
    backend().update(rule, flat, 0, {}, step);
    backend().synchronize();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  state.counters["words"] = words_moved(rule);
  state.counters["us_best"] = best * 1e6;
  state.counters["by_copy"] = best / copy_seconds(words_moved(rule));
}

}  // namespace

int main(int argc, char** argv) {
  for (const ConvShape& s : kConvs)
    for (const char pass : {'f', 'd', 'w'}) {
      if (pass == 'd' && s.in == 3) continue;  // nobody asks for the gradient of an image
      const char* name = pass == 'f' ? "forward" : pass == 'd' ? "backward_data" : "backward_weight";
      benchmark::RegisterBenchmark(fmt::format("conv_{}/{}-{}@{}/s{}", name, s.in, s.out, s.size, s.stride).c_str(),
                                   conv, s, pass)
          ->UseRealTime();
    }
  for (const auto& [channels, size] : {std::pair<int64_t, int64_t>{16, 32}, {32, 16}, {64, 8}})
    for (const bool forward : {true, false})
      benchmark::RegisterBenchmark(
          fmt::format("bn_add_relu_{}/{}@{}", forward ? "forward" : "backward", channels, size).c_str(), bn, channels,
          size, forward)
          ->UseRealTime();
  benchmark::RegisterBenchmark("add/16@32", add)->UseRealTime();
  // Counter by_copy is the best time by that of a copy of the same words.
  for (const char* keys :
       {"name=sgd", "name=sgd momentum=0.9", "name=sgd momentum=0.9 nesterov=true", "name=sgdw momentum=0.9",
        "name=nag", "name=adagrad", "name=rmsprop", "name=rmsprop centered=true", "name=rmsprop momentum=0.9",
        "name=rmsprop centered=true momentum=0.9", "name=adam", "name=adam amsgrad=true", "name=adamw", "name=nadam",
        "name=radam", "name=lion"}) {
    std::vector<std::string> overrides;
    std::istringstream words(keys);
    for (std::string key; words >> key;) overrides.push_back("optimizer." + key);
    const Rule rule = make_rule(parse_config("", "bench", overrides).optimizer);
    benchmark::RegisterBenchmark(fmt::format("update/{}", keys + 5).c_str(), update, rule)->UseRealTime();
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
