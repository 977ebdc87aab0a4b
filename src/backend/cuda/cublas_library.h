// cuBLAS, loaded with the first CUDA backend and not with the program: libcublasLt's own start touches 148 MB and takes
// 0.07 s, which every command would pay, also where there is no GPU.
#pragma once
#include <cublas_v2.h>

namespace linnet {

// The functions that Linnet calls, under their names without the prefix.
struct Cublas {
  decltype(&::cublasCreate) create;
  decltype(&::cublasDestroy) destroy;
  decltype(&::cublasSetStream) set_stream;
  decltype(&::cublasSetWorkspace) set_workspace;
  decltype(&::cublasSetMathMode) set_math_mode;
  decltype(&::cublasSetAtomicsMode) set_atomics_mode;
  decltype(&::cublasGemmEx_64) gemm_ex_64;
  decltype(&::cublasGetStatusString) status_string;
  decltype(&::cublasGetStatusName) status_name;
};
// Error(Exit::device) where it is not found. Never unloaded.
const Cublas& cublas();

}  // namespace linnet
