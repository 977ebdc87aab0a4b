#include "linnet/backend.h"

#include <algorithm>
#include <cstddef>
#include <functional>

#include "backends.h"

namespace linnet {

std::unique_ptr<Backend> make_backend(const std::string& name, const BackendOptions& options) {
  if (name == "cpu") return make_cpu_backend(default_threads(), options.conv);
  if (name == "cuda") return make_cuda_backend(options);
  if (name == "auto") return make_backend(cuda_usable().empty() ? "cuda" : "cpu", options);
  if (name == "check")
    return make_check_backend(make_cuda_backend(options), make_backend("cpu", options), options.tf32);
  fail(Exit::usage, "unknown device '{}': expected auto, cpu, cuda or check", name);
}

std::string MemoryAccount::text() const {
  std::vector<std::pair<size_t, std::string>> lines;
  size_t all = 0;
  const std::lock_guard lock(mutex_);
  for (const auto& [what, bytes] : bytes_) {
    if (bytes == 0) continue;
    lines.emplace_back(bytes, what);
    all += bytes;
  }
  std::ranges::sort(lines, std::greater<>());
  std::string text = fmt::format("Linnet holds {} MiB", all >> 20);
  for (size_t i = 0; i < lines.size(); ++i)
    text += fmt::format("{} {} MiB for {}", i ? "," : ":", lines[i].first >> 20, lines[i].second);
  return text;
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
Tensor trace_of(const Tensor& step) {
  return step.slice(int64_t(offsetof(StepMemory, trace)), {int64_t(sizeof(StepMemory::trace))});
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

std::vector<StepTrace> read_trace(Backend& backend, const Tensor& step) {
  std::vector<StepTrace> trace(kTraceSteps);
  backend.download(trace.data(), trace_of(step));
  std::erase_if(trace, [](const StepTrace& t) { return t.step < 0; });
  std::ranges::sort(trace, {}, &StepTrace::step);
  return trace;
}

void write_trace(Backend& backend, const Tensor& step, const std::vector<StepTrace>& steps) {
  std::vector<StepTrace> trace(kTraceSteps);
  for (const StepTrace& t : steps) trace[size_t(t.step % kTraceSteps)] = t;
  backend.upload(trace_of(step), trace.data());
}

}  // namespace linnet
