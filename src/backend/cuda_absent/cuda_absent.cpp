// In the place of src/backend/cuda where Linnet is built without it.
#include "src/backend/backends.h"

namespace linnet {

std::string cuda_usable() { return "this build of Linnet has no CUDA backend"; }

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions&) {
  fail(Exit::device, "device 'cuda' cannot be used: {}. Use --device cpu or auto", cuda_usable());
}

}  // namespace linnet
