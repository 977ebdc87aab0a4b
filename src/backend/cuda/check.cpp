#include "check.h"

#include <cxxabi.h>

#include <cstdlib>
#include <memory>
#include <typeinfo>

#include "cublas_library.h"
#include "linnet/error.h"

namespace linnet {

std::string device_state() {
  int device = 0;
  size_t free = 0, total = 0;
  cudaDeviceProp properties{};
  if (cudaGetDevice(&device) != cudaSuccess || cudaGetDeviceProperties(&properties, device) != cudaSuccess ||
      cudaMemGetInfo(&free, &total) != cudaSuccess)
    return "the GPU does not answer any more; start the program again";
  return fmt::format("{}: {} of {} MiB free", properties.name, free >> 20, total >> 20);
}

void check_call(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // or the next launch's check would report this one again
  fail(Exit::device, "[cuda] {} failed, or work before it did: {} ({}). {}", call, cudaGetErrorString(code),
       cudaGetErrorName(code), device_state());
}

void check_call(cublasStatus_t code, const char* call) {
  if (code == CUBLAS_STATUS_SUCCESS) return;
  fail(Exit::device, "[cublas] {} failed: {} ({}). {}", call, cublas().status_string(code), cublas().status_name(code),
       device_state());
}

void check_call(cudnnStatus_t code, const char* call) {
  if (code == CUDNN_STATUS_SUCCESS) return;
  char detail[512] = "";
  cudnnGetLastErrorString(detail, sizeof detail);
  fail(Exit::device, "[cudnn {}] {} failed: {}. {} {}", cudnnGetVersion(), call, cudnnGetErrorString(code), detail,
       device_state());
}

// Declared in kernels/exec_cuda.cuh.
void check_launch(const std::type_info& functor) {
  const cudaError_t code = cudaGetLastError();
  if (code == cudaSuccess) return;
  const std::unique_ptr<char, void (*)(void*)> name(abi::__cxa_demangle(functor.name(), nullptr, nullptr, nullptr),
                                                    std::free);
  check_call(code, fmt::format("the launch of {}", name ? name.get() : functor.name()).c_str());
}

}  // namespace linnet
