// One op on given shapes, run on any backend with the same random numbers. The checks below hold for every op, so a
// test of an op is a row: its shapes and its call.
#pragma once
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "linnet/ops.h"
#include "src/backend/backends.h"
#include "src/lab/reference_backend.h"

namespace linnet {

struct Operands {
  std::vector<Tensor> x;
  std::vector<Param*> w;
  std::vector<Buffer*> state;
};

// Float sums against double ones: K terms of random sign err by about sqrt(K) 2^-24 of the result's usual size, at most
// 4e-6 for the largest K here (4000); the bound is 2.5 times that, relative to the array's largest magnitude.
inline constexpr double kFloatTolerance = 1e-5;
// bf16 keeps 8 bits. Two roundings of nearly the same number differ by at most one unit in the last place: 2^-7 of the
// value.
inline constexpr double kBf16Tolerance = 0x1p-7;
inline constexpr double kFp16Tolerance = 0x1p-10;  // of 11 bits

struct OpCase {
  std::string name;
  std::vector<Shape> inputs;  // N(0, 1)
  std::vector<Shape> params;  // N(0, 1)
  std::vector<Shape> state;   // in 0.5..1.5: running mean and variance
  std::function<Tensor(Pass&, const Operands&)> f;
  bool train = true;   // false: evaluation, no gradients
  double h = 0x1p-12;  // step of the central differences
  double tolerance = kFloatTolerance;
};

// What a run left behind: "y", "input 0", "param 1" (gradients), "state 0".
struct Result {
  std::string name;
  std::vector<double> v;
};
using Results = std::vector<Result>;

// Kept away from 0, where ReLU has a kink that central differences would step over.
inline std::vector<double> random_values(int64_t n, uint32_t stream) {
  std::vector<double> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const Random4 r = random4(1, Draw::test, uint64_t(i), 0, stream);
    const float x = normal_float(r.v[0], r.v[1]);
    v[size_t(i)] = double(x + std::copysign(0x1p-6f, x));
  }
  return v;
}

inline void upload(Backend& be, const Tensor& t, const std::vector<double>& values) {
  ReferenceBackend host;
  const Tensor staged(host.allocate(t.bytes()), t.shape(), t.dtype());
  for (int64_t i = 0; i < t.numel(); ++i) Values::round_to(staged, i, values[size_t(i)]);
  be.upload(t, staged.raw());
}

inline std::vector<double> download(Backend& be, const Tensor& t) {
  ReferenceBackend host;
  const Tensor staged(host.allocate(t.bytes()), t.shape(), t.dtype());
  be.download(staged.raw(), t);
  return Values(staged).v;
}

// A tensor of its own memory with these values.
inline Tensor tensor_of(Backend& be, const Shape& shape, DType dtype, const std::vector<double>& values) {
  const Tensor t(be.allocate(size_t(shape.numel()) * size_of(dtype)), shape, dtype);
  upload(be, t, values);
  return t;
}

class OpRun {
 public:
  OpRun(const OpCase& c, Backend& be, DType dtype = DType::f32) : c_(c), be_(be), pool_(be), tape_(be, pool_) {
    for (size_t i = 0; i < c.inputs.size(); ++i) {
      const int64_t n = c.inputs[i].numel();
      operands_.x.push_back(tensor_of(be, c.inputs[i], dtype, random_values(n, 100 + uint32_t(i))));
    }
    for (size_t i = 0; i < c.params.size(); ++i) {
      const Init init = [](std::span<float> v, uint64_t, uint32_t index) {
        const std::vector<double> values = random_values(int64_t(v.size()), 200 + index);
        std::copy(values.begin(), values.end(), v.begin());
      };
      operands_.w.push_back(&store_.add("param " + std::to_string(i), c.params[i], true, init));
    }
    for (size_t i = 0; i < c.state.size(); ++i)
      operands_.state.push_back(&store_.add_buffer("state " + std::to_string(i), c.state[i], 0));
    if (!c.params.empty()) store_.seal(be, 0, {.compute = dtype == DType::f64 ? DType::f32 : dtype});
    reset_state();
    step_ = make_step(be);
    write_step(be, step_, {.step = 5, .seed = 11});
  }

  // Forward and backward, everything they leave.
  Results run() {
    Operands leaves = operands_;
    tape_.begin_step();
    for (Tensor& x : leaves.x) x = tape_.leaf(x);
    Pass pass{be_, pool_, c_.train ? &tape_ : nullptr, c_.train, step_};
    const Tensor y = c_.f(pass, leaves);
    Results out{{"y", download(be_, y)}};
    if (c_.train) {
      tape_.backward(y, tensor_of(be_, y.shape(), y.dtype(), weights(y.numel())));
      tape_.end_step(store_.params());
      for (size_t i = 0; i < leaves.x.size(); ++i)
        out.push_back({"input " + std::to_string(i), download(be_, tape_.grad(leaves.x[i]))});
      for (const Param* w : operands_.w) out.push_back({w->name, download(be_, w->grad)});
    }
    for (const Buffer* b : operands_.state) out.push_back({b->name, download(be_, b->value)});
    return out;
  }

  // A run on NaN leaves NaN in all memory that the pool will hand out again: a later run shows whoever adds to an
  // output instead of overwriting it.
  void poison() {
    for (const Tensor& x : operands_.x)
      upload(be_, x, std::vector<double>(size_t(x.numel()), std::numeric_limits<double>::quiet_NaN()));
    run();
    for (size_t i = 0; i < operands_.x.size(); ++i)
      upload(be_, operands_.x[i], random_values(operands_.x[i].numel(), 100 + uint32_t(i)));
    reset_state();
  }

  // The scalar whose gradient run() computes: sum of weight times y.
  double value() {
    Pass pass{be_, pool_, nullptr, c_.train, step_};
    const std::vector<double> y = download(be_, c_.f(pass, operands_)), w = weights(int64_t(y.size()));
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += w[i] * y[i];
    return sum;
  }
  const Operands& operands() const { return operands_; }

 private:
  static std::vector<double> weights(int64_t n) { return random_values(n, 300); }
  void reset_state() {
    for (Buffer* b : operands_.state) {
      std::vector<double> v = random_values(b->shape.numel(), 400);
      for (double& e : v) e = 0.5 + 1 / (1 + std::exp(e));
      upload(be_, b->value, v);
    }
  }

  const OpCase& c_;
  Backend& be_;
  Pool pool_;
  Tape tape_;
  ParamStore store_;
  Operands operands_;
  Tensor step_;
};

inline void expect_close(const Results& got, const Results& want, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t k = 0; k < got.size(); ++k) {
    ASSERT_EQ(got[k].v.size(), want[k].v.size()) << got[k].name;
    double largest = 0;
    for (double e : want[k].v) largest = std::max(largest, std::abs(e));
    for (size_t i = 0; i < got[k].v.size(); ++i)
      ASSERT_LE(std::abs(got[k].v[i] - want[k].v[i]), tolerance * largest)
          << got[k].name << "[" << i << "]: got " << got[k].v[i] << ", expected " << want[k].v[i];
  }
}

inline void expect_same_bits(const Results& got, const Results& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t k = 0; k < got.size(); ++k) {
    ASSERT_EQ(got[k].v.size(), want[k].v.size()) << got[k].name;
    EXPECT_EQ(std::memcmp(got[k].v.data(), want[k].v.data(), got[k].v.size() * sizeof(double)), 0) << got[k].name;
  }
}

// Values and gradients against the oracle's.
inline void check_against_reference(const OpCase& c, Backend& be, DType dtype = DType::f32) {
  SCOPED_TRACE(c.name);
  ReferenceBackend reference;
  OpRun run(c, be, dtype);
  run.poison();
  const double tolerance = dtype == DType::bf16 ? kBf16Tolerance : dtype == DType::fp16 ? kFp16Tolerance : c.tolerance;
  expect_close(run.run(), OpRun(c, reference, dtype).run(), tolerance);
}

// The same in bf16. False where oneDNN convolves it on AVX-512 only and this processor has none: refused, in words.
inline bool check_in_bf16(const OpCase& c, Backend& be) {
  try {
    check_against_reference(c, be, DType::bf16);
    return true;
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("AVX-512 is needed"), std::string::npos) << e.what();
    EXPECT_NE(be.best_precision(), DType::bf16) << "refused where bf16 is the best: " << e.what();
    return false;
  }
}

// f(x) + f(x) with the same x and the same parameters: twice everything, to the last bit.
inline void check_used_twice(const OpCase& c, Backend& be) {
  SCOPED_TRACE(c.name + ", used twice");
  OpCase doubled = c;
  doubled.f = [&](Pass& p, const Operands& o) {
    const Tensor a = c.f(p, o), b = c.f(p, o);
    return add(p, a, b);
  };
  Results once = OpRun(c, be).run(), twice = OpRun(doubled, be).run();
  once.resize(once.size() - c.state.size());
  twice.resize(once.size());
  for (Result& r : once)
    for (double& e : r.v) e *= 2;
  expect_same_bits(twice, once);
}

// Same bits for any number of threads, and from run to run.
inline void check_same_bits(const OpCase& c, DType dtype = DType::f32) {
  SCOPED_TRACE(c.name + ", threads");
  const auto one = make_cpu_backend(1);
  const Results want = OpRun(c, *one, dtype).run();
  for (int threads : {1, 2, 3, 7}) {
    SCOPED_TRACE(threads);
    const auto be = make_cpu_backend(threads);
    expect_same_bits(OpRun(c, *be, dtype).run(), want);
  }
}

// A test that runs on every backend that is there.
class OpTest : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Backend> backend_ = make_backend(GetParam());
  Backend& be() { return *backend_; }
};
inline std::vector<std::string> backends_here() {
  return cuda_usable().empty() ? std::vector<std::string>{"cpu", "cuda"} : std::vector<std::string>{"cpu"};
}
#define LINNET_ON_EVERY_BACKEND(suite) \
  INSTANTIATE_TEST_SUITE_P(On, suite, testing::ValuesIn(backends_here()), [](const auto& i) { return i.param; })

// The message of the Error that f throws.
template <class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace linnet
