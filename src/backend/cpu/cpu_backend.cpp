// The CPU backend: the shared functors on a thread pool, oneDNN for convolution and matrix products.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <new>

#include "batch_norm.h"
#include "conv3x3.h"
#include "convolution.h"
#include "cpu_info.h"
#include "kernels/exec_cpu.h"
#include "kernels/shared_backend.h"
#include "src/backend/backends.h"
#include "src/backend/batch_norm_with.h"

namespace linnet {

namespace {

struct CpuBlock : Block {
  CpuBlock(size_t size, std::shared_ptr<MemoryAccount> held) : account(std::move(held)), what(MemoryFor::current()) {
    // Large blocks lie on 2 MB pages where the kernel grants them: fewer TLB misses.
    constexpr size_t kHuge = size_t(2) << 20;
    const size_t alignment = size >= kHuge ? kHuge : 64;
    bytes = (size + alignment - 1) / alignment * alignment;
    data = std::aligned_alloc(alignment, bytes);
    if (!data)
      fail(Exit::device, "out of memory: {} MiB more were asked for, for {}. {}. Make the largest of these smaller",
           size >> 20, what, account->text());
    account->add(what, bytes);
    if (alignment == kHuge) madvise(data, bytes, MADV_HUGEPAGE);  // advice: a refusal costs speed only
  }
  ~CpuBlock() override {
    account->remove(what, bytes);
    std::free(data);
  }
  std::shared_ptr<MemoryAccount> account;
  const char* what;
};

struct CpuReplay : Replay {
  explicit CpuReplay(std::function<void()> step) : step(std::move(step)) {}
  void run() override { step(); }
  std::function<void()> step;
};

class CpuBackend final : public SharedBackend<CpuExec> {
 public:
  CpuBackend(int threads, ConvMethod method)
      : SharedBackend({nullptr}),
        pool_(threads),
        method_(method),
        convolutions_(pool_),
        conv3x3_(pool_, method == ConvMethod::winograd ? std::min(simd_, Simd::avx512_bf16) : simd_) {
    exec_.pool = &pool_;
    exec_.avx512 = simd_ >= Simd::avx512;
  }

  Device device() const override { return Device::cpu; }
  std::vector<std::pair<std::string, std::string>> info() const override {
    auto lines = cpu_info();
    lines.insert(lines.begin() + 1, {"threads", std::to_string(pool_.threads())});
    return lines;
  }

  Counters counters() const override { return {.allocations = allocations_, .launches = exec_.launches}; }

  std::shared_ptr<Block> allocate(size_t bytes) override {
    ++allocations_;
    return std::make_shared<CpuBlock>(bytes, account_);
  }
  void upload(const Tensor& dst, const void* host) override { move(dst.raw(), host, dst.bytes()); }
  void download(void* host, const Tensor& src) override { move(host, src.raw(), src.bytes()); }
  void copy(const Tensor& dst, const Tensor& src) override { move(dst.raw(), src.raw(), src.bytes()); }
  void zero(const Tensor& dst) override { std::memset(dst.raw(), 0, dst.bytes()); }
  void synchronize() override {}
  std::unique_ptr<Replay> capture(std::function<void()> step) override {
    return std::make_unique<CpuReplay>(std::move(step));
  }

  DType best_precision() const override { return has_fast_bf16() ? DType::bf16 : DType::f32; }

  // Own kernels where they apply (3x3, stride 1: nearly all of a ResNet), oneDNN for the rest.
  bool conv_forward(const Tensor& y, const Tensor& x, const Tensor& w, Conv conv, const Tensor* moments) override {
    if (x.dtype() == DType::fp16) {
      const Tensor wide_y = room(0, y);
      conv_forward(wide_y, widened(1, x), widened(2, w), conv, nullptr);
      cast(y, wide_y);
      return false;
    }
    if (!takes_own(w.shape(), conv)) {
      convolutions_.forward(y, x, w, conv);
      return false;
    }
    conv3x3_.forward(y, x, w, moments ? moments->data<double>() : nullptr);
    return moments != nullptr;
  }
  bool conv_of_bn_forward(const Tensor& y, const Tensor& x, const Tensor& saved, const Tensor& w, Conv,
                          const Tensor* moments) override {
    conv3x3_.forward(y, x, w, moments ? moments->data<double>() : nullptr, &saved);
    return moments != nullptr;
  }
  bool takes_unapplied_bn(const Tensor& x, const Shape& w, Conv conv) const override {
    return x.dtype() != DType::fp16 && takes_own(w, conv) && conv3x3_.knows_batch_norm(x.dtype());
  }
  void conv_backward_data(const Tensor& dx, const Tensor& dy, const Tensor& w, Conv conv) override {
    if (dx.dtype() == DType::fp16) {
      const Tensor wide_dx = room(0, dx);
      conv_backward_data(wide_dx, widened(1, dy), widened(2, w), conv);
      return cast(dx, wide_dx);
    }
    if (takes_own(w.shape(), conv))
      conv3x3_.backward_data(dx, dy, w);
    else
      convolutions_.backward_data(dx, dy, w, conv);
  }
  void conv_backward_weight(const Tensor& dw, const Tensor& dy, const Tensor& x, Conv conv) override {
    if (x.dtype() == DType::fp16) return conv_backward_weight(dw, widened(1, dy), widened(2, x), conv);
    if (takes_own(dw.shape(), conv))
      conv3x3_.backward_weight(dw, dy, x);
    else
      convolutions_.backward_weight(dw, dy, x, conv);
  }
  bool conv_backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w, Conv conv,
                     const Tensor* plus, const InputBn* input, const OutputBn* output) override {
    if (x.dtype() == DType::fp16) {
      const Tensor wide_dx = plus ? widened(0, *plus) : room(0, dx);
      conv_backward(wide_dx, dw, widened(1, dy), widened(2, x), widened(3, w), conv, plus ? &wide_dx : nullptr, nullptr,
                    nullptr);
      cast(dx, wide_dx);
      return false;
    }
    if (takes_own(w.shape(), conv)) return conv3x3_.backward(dx, dw, dy, x, w, plus, input, output);
    convolutions_.backward_weight(dw, dy, x, conv);
    const Tensor own = plus ? extra_.like(*this, dx) : dx;
    convolutions_.backward_data(own, dy, w, conv);
    if (plus) add(dx, *plus, own);
    return false;
  }
  bool takes_output_bn(const Tensor& x, const Shape& w, Conv conv) const override {
    return takes_unapplied_bn(x, w, conv) && conv3x3_.takes_output_bn(w, x.dtype());
  }
  bool conv_bn(const Tensor& y, const Tensor& x, const Tensor& w, Conv conv, const Tensor* residual,
               const BnState& state, Bn bn) override {
    if (!takes_unapplied_bn(x, w.shape(), conv)) return false;  // the same kernels
    factors_.resize(size_t(2 * y.dim(3)));
    float *a = factors_.data(), *b = a + y.dim(3);
    batch_norm_factors(state, bn, a, b);
    conv3x3_.forward_bn(y, x, w, residual, {a, b, bn.relu});
    return true;
  }
  void bn_forward(const Tensor& y, const Tensor& saved, const Tensor& x, const Tensor* residual, const BnState& state,
                  Bn bn, bool train, const Tensor* moments) override {
    if (x.dtype() == DType::fp16)
      return bn_forward_with<fp16>(exec_, bn_scratch(x), y, saved, x, residual, state, bn, train);
    batch_norm_forward(pool_, simd_, y, saved, x, residual, state, bn, train, moments);
  }
  void bn_backward(const Tensor& dx, const Tensor* dresidual, const Tensor& dscale, const Tensor& dbias,
                   const Tensor& dy, const Tensor& x, const Tensor& y, const Tensor& saved, const Tensor& scale, Bn bn,
                   const Tensor* sums, const Tensor* factors) override {
    if (x.dtype() == DType::fp16)
      return bn_backward_with<fp16>(exec_, bn_scratch(x), dx, dresidual, dscale, dbias, dy, x, y, saved, scale, bn);
    batch_norm_backward(pool_, simd_, dx, dresidual, dscale, dbias, dy, x, y, saved, scale, bn, sums, factors);
  }
  void matmul(const Tensor& c, const Tensor& a, bool ta, const Tensor& b, bool tb) override {
    if (a.dtype() == DType::fp16) {
      const Tensor wide_c = c.dtype() == DType::f32 ? c : room(0, c);
      matmul(wide_c, widened(1, a), ta, widened(2, b), tb);
      if (c.dtype() != DType::f32) cast(c, wide_c);
      return;
    }
    convolutions_.matmul(c, a, ta, b, tb);
  }

 private:
  static void move(void* to, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);  // an empty vector's data() may be null, which memcpy forbids
  }
  // fp16 has no kernels of its own here: operands are widened, f32 code computes, and the result is rounded.
  Tensor room(size_t slot, const Tensor& t) { return wide_[slot].like(*this, t, DType::f32); }
  Tensor widened(size_t slot, const Tensor& t) {
    const Tensor wide = room(slot, t);
    cast(wide, t);
    return wide;
  }
  void* bn_scratch(const Tensor& x) {
    const size_t bytes = BnScratch::bytes(bn_shape(x));
    if (!scratch_ || scratch_->bytes < bytes) scratch_ = allocate(bytes);
    return scratch_->data;
  }
  bool takes_own(const Shape& w, Conv conv) const { return method_ != ConvMethod::direct && Conv3x3::takes(w, conv); }

  ThreadPool pool_;
  ConvMethod method_;
  Simd simd_ = best_simd();
  Convolutions convolutions_;
  Conv3x3 conv3x3_;
  Spare extra_;
  std::array<Spare, 4> wide_;
  std::vector<float> factors_;
  std::shared_ptr<Block> scratch_;
  std::shared_ptr<MemoryAccount> account_ = std::make_shared<MemoryAccount>();
  int64_t allocations_ = 0;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int threads, ConvMethod method) {
  require_cpu();
  return std::make_unique<CpuBackend>(threads, method);
}

}  // namespace linnet
