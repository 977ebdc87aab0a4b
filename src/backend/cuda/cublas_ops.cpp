#include "cublas_ops.h"

#include "check.h"
#include "cublas_library.h"

namespace linnet {

namespace {
constexpr size_t kWorkspaceBytes = size_t(32) << 20;  // what cuBLAS recommends for Hopper

cudaDataType_t type_of(const Tensor& t) {
  switch (t.dtype()) {
    case DType::f32:
      return CUDA_R_32F;
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::fp16:
      return CUDA_R_16F;
    default:
      fail(Exit::failure, "[matmul] expected f32, bf16 or fp16, got {}", name_of(t.dtype()));
  }
}
}  // namespace

CublasProducts::CublasProducts(CudaRuntime& runtime, bool tf32)
    : runtime_(runtime), tf32_(tf32), workspace_(runtime.allocate(kWorkspaceBytes)) {
  LINNET_CALL(cublas().create(&handle_));
  LINNET_CALL(cublas().set_stream(handle_, runtime.stream()));  // it resets the workspace: set that after it
  // A workspace of its own: none is allocated while a graph is captured, and results are the same in every run.
  LINNET_CALL(cublas().set_workspace(handle_, workspace_->data, kWorkspaceBytes));
  // Partial sums of 16-bit products stay f32.
  LINNET_CALL(cublas().set_math_mode(
      handle_, cublasMath_t(int(CUBLAS_DEFAULT_MATH) | int(CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION))));
  LINNET_CALL(cublas().set_atomics_mode(handle_, CUBLAS_ATOMICS_NOT_ALLOWED));
}

CublasProducts::~CublasProducts() { cublas().destroy(handle_); }

// cuBLAS counts columns first, so to it each row-major matrix is its transpose: it computes c' [n,m] = op(b)' op(a)'.
void CublasProducts::matmul(const Tensor& c, const Tensor& a, bool ta, const Tensor& b, bool tb) {
  const int64_t m = c.dim(0), n = c.dim(1), k = ta ? a.dim(0) : a.dim(1);
  if (m == 0 || n == 0) return;
  if (k == 0) return runtime_.zero(c.raw(), c.bytes());  // an empty sum
  const cublasComputeType_t compute = a.dtype() != DType::f32 ? CUBLAS_COMPUTE_32F
                                      : tf32_                 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                              : CUBLAS_COMPUTE_32F_PEDANTIC;
  const float one = 1, zero = 0;
  LINNET_CALL(cublas().gemm_ex_64(handle_, tb ? CUBLAS_OP_T : CUBLAS_OP_N, ta ? CUBLAS_OP_T : CUBLAS_OP_N, n, m, k,
                                  &one, b.raw(), type_of(b), tb ? k : n, a.raw(), type_of(a), ta ? m : k, &zero,
                                  c.raw(), type_of(c), n, compute, CUBLAS_GEMM_DEFAULT));
}

}  // namespace linnet
