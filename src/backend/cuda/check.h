// Return codes of CUDA, cuBLAS and cuDNN become errors that name the call, its code and the state of the device.
#pragma once
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>

#include <string>

namespace linnet {

void check_call(cudaError_t, const char* call);
void check_call(cublasStatus_t, const char* call);
void check_call(cudnnStatus_t, const char* call);
#define LINNET_CALL(call) ::linnet::check_call((call), #call)

// "NVIDIA H100 80GB HBM3: 70133 of 81559 MiB free", or that it does not answer any more.
std::string device_state();

}  // namespace linnet
