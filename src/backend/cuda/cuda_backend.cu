// The CUDA backend: the shared functors launched as kernels, cuDNN for convolutions, cuBLAS for matrix products, one
// stream. Compiled, never run so far: docs/GPU_TODO.md says what is still to be shown.
#include "nvcc_fmt.h"

#include "cublas_ops.h"
#include "cudnn_ops.h"
#include "kernels/exec_cuda.cuh"
#include "kernels/shared_backend.h"
#include "runtime.h"
#include "src/backend/backends.h"
#include "src/backend/batch_norm_with.h"

namespace linnet {

namespace {

class CudaBackend final : public SharedBackend<CudaExec> {
 public:
  explicit CudaBackend(const BackendOptions& options)
      : SharedBackend({}),
        partial_(runtime_.allocate(kReduceMaxBlocks * sizeof(double))),
        scratch_(runtime_),
        convolutions_(runtime_, scratch_, options),
        products_(runtime_, options.tf32) {
    exec_ = {runtime_.stream(), static_cast<double*>(partial_->data)};
  }

  Device device() const override { return Device::cuda; }
  std::vector<std::pair<std::string, std::string>> info() const override { return runtime_.info(); }

  DType best_precision() const override { return DType::bf16; }
  std::string choices() const override { return convolutions_.choices().text(); }
  void set_choices(const std::string& text) override { convolutions_.choices().take(text); }
  Counters counters() const override { return {runtime_.allocations(), runtime_.waits(), exec_.launches}; }

  std::shared_ptr<Block> allocate(size_t bytes) override { return runtime_.allocate(bytes); }
  void upload(const Tensor& dst, const void* host) override { runtime_.upload(dst.raw(), host, dst.bytes()); }
  void download(void* host, const Tensor& src) override { runtime_.download(host, src.raw(), src.bytes()); }
  void copy(const Tensor& dst, const Tensor& src) override { runtime_.copy(dst.raw(), src.raw(), dst.bytes()); }
  void zero(const Tensor& dst) override { runtime_.zero(dst.raw(), dst.bytes()); }
  void synchronize() override { runtime_.synchronize(); }
  std::unique_ptr<Replay> capture(std::function<void()> step) override { return runtime_.capture(step); }

  bool conv_forward(const Tensor& y, const Tensor& x, const Tensor& w, Conv conv, const Tensor*) override {
    convolutions_.forward(y, x, w, conv);
    return false;
  }
  void conv_backward_data(const Tensor& dx, const Tensor& dy, const Tensor& w, Conv conv) override {
    convolutions_.backward_data(dx, dy, w, conv);
  }
  void conv_backward_weight(const Tensor& dw, const Tensor& dy, const Tensor& x, Conv conv) override {
    if (x.dtype() == DType::f32) return convolutions_.backward_weight(dw, dy, x, conv);
    const Tensor rounded = weight_.like(*this, dw, x.dtype());  // cuDNN writes 16 bits where it reads 16
    convolutions_.backward_weight(rounded, dy, x, conv);
    cast(dw, rounded);
  }
  bool conv_backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w, Conv conv,
                     const Tensor* plus, const InputBn*, const OutputBn*) override {
    conv_backward_weight(dw, dy, x, conv);
    const Tensor own = plus ? extra_.like(*this, dx) : dx;
    convolutions_.backward_data(own, dy, w, conv);
    if (plus) add(dx, *plus, own);
    return false;
  }
  void bn_forward(const Tensor& y, const Tensor& saved, const Tensor& x, const Tensor* residual, const BnState& state,
                  Bn bn, bool train, const Tensor*) override {
    by_type(x.dtype(),
            [&]<class T>(T) { bn_forward_with<T>(exec_, bn_scratch(x), y, saved, x, residual, state, bn, train); });
  }
  void bn_backward(const Tensor& dx, const Tensor* dresidual, const Tensor& dscale, const Tensor& dbias,
                   const Tensor& dy, const Tensor& x, const Tensor& y, const Tensor& saved, const Tensor& scale, Bn bn,
                   const Tensor*, const Tensor*) override {
    by_type(x.dtype(), [&]<class T>(T) {
      bn_backward_with<T>(exec_, bn_scratch(x), dx, dresidual, dscale, dbias, dy, x, y, saved, scale, bn);
    });
  }
  void matmul(const Tensor& c, const Tensor& a, bool ta, const Tensor& b, bool tb) override {
    products_.matmul(c, a, ta, b, tb);
  }

 private:
  void* bn_scratch(const Tensor& x) { return scratch_.at_least(BnScratch::bytes(bn_shape(x))); }

  CudaRuntime runtime_;
  std::shared_ptr<Block> partial_;
  Scratch scratch_;
  CudnnConvolutions convolutions_;
  CublasProducts products_;
  Spare extra_, weight_;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  return std::make_unique<CudaBackend>(options);
}

}  // namespace linnet
