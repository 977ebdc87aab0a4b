#include "linnet/backend.h"

#include "backends.h"

namespace linnet {

std::unique_ptr<Backend> make_backend(const std::string& name) {
  if (name == "cpu") return make_cpu_backend();
  if (name == "cuda") return make_cuda_backend();
  if (name == "auto") return cuda_usable().empty() ? make_cuda_backend() : make_cpu_backend();
  fail(Exit::usage, "unknown device '{}': expected auto, cpu or cuda", name);
}

Tensor make_step(Backend& backend) {
  Tensor step(backend.allocate(sizeof(StepParams)), {int64_t(sizeof(StepParams))}, DType::u8);
  write_step(backend, step, {});
  return step;
}

void write_step(Backend& backend, const Tensor& step, const StepParams& params) { backend.upload(step, &params); }

StepParams read_step(Backend& backend, const Tensor& step) {
  StepParams params;
  backend.download(&params, step);
  return params;
}

}  // namespace linnet
