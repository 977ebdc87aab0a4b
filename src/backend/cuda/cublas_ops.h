// Matrix products through cuBLAS.
#pragma once
#include "linnet/backend.h"
#include "runtime.h"

struct cublasContext;  // cublasHandle_t points to one

namespace linnet {

class CublasProducts {
 public:
  CublasProducts(CudaRuntime&, bool tf32);
  ~CublasProducts();
  CublasProducts(const CublasProducts&) = delete;
  // c [m,n] = op(a) op(b), row-major, as Backend::matmul; sums are f32
  void matmul(const Tensor& c, const Tensor& a, bool ta, const Tensor& b, bool tb);

 private:
  CudaRuntime& runtime_;
  bool tf32_;
  std::shared_ptr<Block> workspace_;
  cublasContext* handle_ = nullptr;
};

}  // namespace linnet
