// Batch norm on the CPU, with the residual add and the ReLU in the same pass.
#pragma once
#include "linnet/backend.h"
#include "linnet/threads.h"

namespace linnet {

void batch_norm_forward(ThreadPool&, const Tensor& y, const Tensor& saved, const Tensor& x, const Tensor* residual,
                        const BnState&, Bn, bool train);
void batch_norm_backward(ThreadPool&, const Tensor& dx, const Tensor* dresidual, const Tensor& dscale,
                         const Tensor& dbias, const Tensor& dy, const Tensor& x, const Tensor& y, const Tensor& saved,
                         const Tensor& scale, Bn);

}  // namespace linnet
