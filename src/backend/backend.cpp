#include "linnet/backend.h"

#include <cstddef>

#include "backends.h"

namespace linnet {

std::unique_ptr<Backend> make_backend(const std::string& name, ConvMethod conv) {
  if (name == "cpu") return make_cpu_backend(default_threads(), conv);
  if (name == "cuda") return make_cuda_backend();
  if (name == "auto") return make_backend(cuda_usable().empty() ? "cuda" : "cpu", conv);
  fail(Exit::usage, "unknown device '{}': expected auto, cpu or cuda", name);
}

Tensor make_step(Backend& backend) {
  Tensor step(backend.allocate(sizeof(StepMemory)), {int64_t(sizeof(StepMemory))}, DType::u8);
  const StepMemory fresh;
  backend.upload(step, &fresh);
  return step;
}

namespace {
Tensor params_of(const Tensor& step) { return step.slice(0, {int64_t(sizeof(StepParams))}); }
Tensor result_of(const Tensor& step) {
  return step.slice(int64_t(offsetof(StepMemory, result)), {int64_t(sizeof(StepResult))});
}
}  // namespace

void write_step(Backend& backend, const Tensor& step, const StepParams& params) {
  backend.upload(params_of(step), &params);
}

StepResult read_step(Backend& backend, const Tensor& step) {
  StepResult result;
  backend.download(&result, result_of(step));
  return result;
}

void write_result(Backend& backend, const Tensor& step, const StepResult& result) {
  backend.upload(result_of(step), &result);
}

}  // namespace linnet
