#include "cublas_ops.h"

#include "check.h"

namespace linnet {

namespace {
constexpr size_t kWorkspaceBytes = size_t(32) << 20;  // what cuBLAS recommends for Hopper
}

CublasProducts::CublasProducts(CudaRuntime& runtime)
    : runtime_(runtime), workspace_(runtime.allocate(kWorkspaceBytes)) {
  LINNET_CALL(cublasCreate(&handle_));
  LINNET_CALL(cublasSetStream(handle_, runtime.stream()));  // it resets the workspace: set that after it
  // A workspace of its own: none is allocated while a graph is captured, and results are the same in every run.
  LINNET_CALL(cublasSetWorkspace(handle_, workspace_->data, kWorkspaceBytes));
  LINNET_CALL(cublasSetMathMode(handle_, CUBLAS_PEDANTIC_MATH));  // no TF32
  LINNET_CALL(cublasSetAtomicsMode(handle_, CUBLAS_ATOMICS_NOT_ALLOWED));
}

CublasProducts::~CublasProducts() { cublasDestroy(handle_); }

// cuBLAS counts columns first, so to it each row-major matrix is its transpose: it computes c' [n,m] = op(b)' op(a)'.
void CublasProducts::matmul(const Tensor& c, const Tensor& a, bool ta, const Tensor& b, bool tb) {
  for (const Tensor* t : {&a, &b, &c})
    if (t->dtype() != DType::f32)
      fail(Exit::usage, "[matmul] the cuda backend multiplies f32 only, got {}; set train.precision = \"f32\"",
           name_of(t->dtype()));
  const int64_t m = c.dim(0), n = c.dim(1), k = ta ? a.dim(0) : a.dim(1);
  const float *pa = a.data<float>(), *pb = b.data<float>();
  float* pc = c.data<float>();
  if (m == 0 || n == 0) return;
  if (k == 0) return runtime_.zero(pc, c.bytes());  // an empty sum
  const float one = 1, zero = 0;
  LINNET_CALL(cublasSgemm_64(handle_, tb ? CUBLAS_OP_T : CUBLAS_OP_N, ta ? CUBLAS_OP_T : CUBLAS_OP_N, n, m, k, &one, pb,
                             tb ? k : n, pa, ta ? m : k, &zero, pc, n));
}

}  // namespace linnet
