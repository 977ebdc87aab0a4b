// Batch norm on the CPU, with the residual add and the ReLU in the same pass.
#pragma once
#include "linnet/backend.h"
#include "linnet/threads.h"
#include "simd_level.h"

namespace linnet {

// `saved` [4, channels]: mean, 1/std, and a and b of y = a x + b; a is NaN where a residual was added. y may be
// empty: then only `saved` and the running statistics are written.
void batch_norm_forward(ThreadPool&, Simd, const Tensor& y, const Tensor& saved, const Tensor& x,
                        const Tensor* residual, const BnState&, Bn, bool train, const Tensor* moments);
// sums and factors as Backend::bn_backward has them: with sums y is not read, with factors dx is not written.
// batch_norm_factors: evaluation's a and b of y = a x + b, [channels].
void batch_norm_factors(const BnState&, Bn, float* a, float* b);
void batch_norm_backward(ThreadPool&, Simd, const Tensor& dx, const Tensor* dresidual, const Tensor& dscale,
                         const Tensor& dbias, const Tensor& dy, const Tensor& x, const Tensor& y, const Tensor& saved,
                         const Tensor& scale, Bn, const Tensor* sums, const Tensor* factors);

}  // namespace linnet
