#include "cublas_library.h"

#include <dlfcn.h>

#include "linnet/error.h"

namespace linnet {

namespace {

void* open_library() {
  // By name, as the linker would have found it; then where it lay when Linnet was built.
  for (const char* file : {LINNET_CUBLAS_NAME, LINNET_CUBLAS_FILE})
    if (void* library = dlopen(file, RTLD_NOW | RTLD_LOCAL)) return library;
  fail(Exit::device, "[cublas] {} cannot be loaded: {}. Install cuBLAS, or name its folder in LD_LIBRARY_PATH",
       LINNET_CUBLAS_NAME, dlerror());
}

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (!function) fail(Exit::device, "[cublas] {} has no {}: is it of another version?", LINNET_CUBLAS_NAME, name);
}

Cublas load() {
  void* library = open_library();
  Cublas c{};
  find(library, "cublasCreate_v2", c.create);
  find(library, "cublasDestroy_v2", c.destroy);
  find(library, "cublasSetStream_v2", c.set_stream);
  find(library, "cublasSetWorkspace_v2", c.set_workspace);
  find(library, "cublasSetMathMode", c.set_math_mode);
  find(library, "cublasSetAtomicsMode", c.set_atomics_mode);
  find(library, "cublasGemmEx_64", c.gemm_ex_64);
  find(library, "cublasGetStatusString", c.status_string);
  find(library, "cublasGetStatusName", c.status_name);
  return c;
}

}  // namespace

const Cublas& cublas() {
  static const Cublas loaded = load();
  return loaded;
}

}  // namespace linnet
