#include "runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "check.h"
#include "src/backend/backends.h"

namespace linnet {

namespace {

constexpr size_t kOldestCudnn = 90800;  // plans are made for a device descriptor, new in 9.8

std::string cuda_version(int v) { return fmt::format("{}.{}", v / 1000, v % 1000 / 10); }
std::string cudnn_version(size_t v) { return fmt::format("{}.{}.{}", v / 10000, v / 100 % 100, v % 100); }

// "580.65.06"; the driver's own file is the one place that tells without NVML.
std::string driver_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string line, version = "unknown";
  std::getline(file, line);
  std::istringstream words(line);
  for (std::string word; words >> word;)
    if (word.find_first_not_of("0123456789.") == word.npos && word.find('.') != word.npos) version = word;
  return version;
}

// cudaMalloc aligns to 256 bytes.
struct CudaBlock : Block {
  CudaBlock(size_t size, std::shared_ptr<MemoryAccount> held) : account(std::move(held)), what(MemoryFor::current()) {
    bytes = std::max<size_t>(size, 1);
    const cudaError_t code = cudaMalloc(&data, bytes);
    if (code == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      fail(Exit::device,
           "out of GPU memory: {} MiB more were asked for, for {}. {}; {}. Make the largest of these smaller, or end "
           "other programs on the GPU",
           (bytes + (size_t(1) << 20) - 1) >> 20, what, account->text(), device_state());
    }
    check_call(code, "cudaMalloc");
    account->add(what, bytes);
  }
  ~CudaBlock() override {
    account->remove(what, bytes);
    cudaFree(data);  // a failure here repeats one that was reported
  }
  std::shared_ptr<MemoryAccount> account;
  const char* what;
};

struct GraphReplay : Replay {
  GraphReplay(cudaGraph_t graph, cudaStream_t stream) : stream(stream) {
    const cudaError_t code = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    check_call(code, "cudaGraphInstantiate");
  }
  ~GraphReplay() override { cudaGraphExecDestroy(executable); }
  void run() override { LINNET_CALL(cudaGraphLaunch(executable, stream)); }
  cudaGraphExec_t executable = nullptr;
  cudaStream_t stream;
};

}  // namespace

std::string cuda_usable() {
  int driver = 0, runtime = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return "no NVIDIA driver is installed (libcuda.so.1 was not found)";
  if (const cudaError_t code = cudaRuntimeGetVersion(&runtime); code != cudaSuccess) return cudaGetErrorString(code);
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) cudaGetLastError();
  if (code == cudaErrorInsufficientDriver)
    return fmt::format("the NVIDIA driver knows CUDA {}, this build of Linnet needs {}; update the driver",
                       cuda_version(driver), cuda_version(runtime));
  if (code == cudaErrorNoDevice || (code == cudaSuccess && count == 0)) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    return visible ? fmt::format("no GPU is visible (CUDA_VISIBLE_DEVICES is '{}')", visible)
                   : "there is no NVIDIA GPU";
  }
  if (code != cudaSuccess) return fmt::format("CUDA does not start: {}", cudaGetErrorString(code));

  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0) != cudaSuccess)
    return "the GPU does not tell its compute capability";
  if (major < 8)
    return fmt::format("the GPU has compute capability {}.{}, 8.0 (Ampere) or newer is needed", major, minor);
  if (const size_t cudnn = cudnnGetVersion(); cudnn < kOldestCudnn)
    return fmt::format("cuDNN {} was loaded, {} or newer is needed", cudnn_version(cudnn), cudnn_version(kOldestCudnn));
  return "";
}

Staging::Staging(cudaStream_t stream) : stream_(stream) {
  for (Slot& slot : slots_) {
    LINNET_CALL(cudaMallocHost(reinterpret_cast<void**>(&slot.memory), kSlotBytes));
    LINNET_CALL(cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming));
  }
}

Staging::~Staging() {
  for (const Slot& slot : slots_) {
    cudaEventDestroy(slot.done);
    cudaFreeHost(slot.memory);
  }
}

const Staging::Slot& Staging::next_slot() {
  const Slot& slot = slots_[next_++ % kSlots];
  LINNET_CALL(cudaEventSynchronize(slot.done));
  return slot;
}

void Staging::upload(void* device, const void* host, size_t bytes) {
  for (size_t at = 0; at < bytes; at += kSlotBytes) {
    const size_t n = std::min(kSlotBytes, bytes - at);
    const Slot& slot = next_slot();
    std::memcpy(slot.memory, static_cast<const char*>(host) + at, n);
    LINNET_CALL(cudaMemcpyAsync(static_cast<char*>(device) + at, slot.memory, n, cudaMemcpyHostToDevice, stream_));
    LINNET_CALL(cudaEventRecord(slot.done, stream_));
  }
}

void Staging::download(void* host, const void* device, size_t bytes) {
  for (size_t at = 0; at < bytes; at += kSlotBytes) {
    const size_t n = std::min(kSlotBytes, bytes - at);
    const Slot& slot = next_slot();
    LINNET_CALL(
        cudaMemcpyAsync(slot.memory, static_cast<const char*>(device) + at, n, cudaMemcpyDeviceToHost, stream_));
    LINNET_CALL(cudaStreamSynchronize(stream_));
    ++waits_;
    std::memcpy(static_cast<char*>(host) + at, slot.memory, n);
  }
}

CudaRuntime::CudaRuntime() {
  if (const std::string reason = cuda_usable(); !reason.empty())
    fail(Exit::device, "device 'cuda' cannot be used: {}. Use --device cpu or auto", reason);
  LINNET_CALL(cudaSetDevice(0));
  LINNET_CALL(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  staging_ = std::make_unique<Staging>(stream_);
}

CudaRuntime::~CudaRuntime() {
  cudaStreamSynchronize(stream_);  // failures were reported, or nobody waited for their results
  staging_.reset();
  cudaStreamDestroy(stream_);
}

std::vector<std::pair<std::string, std::string>> CudaRuntime::info() const {
  int driver = 0, runtime = 0;
  cudaDeviceProp p{};
  LINNET_CALL(cudaDriverGetVersion(&driver));
  LINNET_CALL(cudaRuntimeGetVersion(&runtime));
  LINNET_CALL(cudaGetDeviceProperties(&p, 0));
  return {{"device", p.name},
          {"compute capability", fmt::format("{}.{}", p.major, p.minor)},
          {"multiprocessors", std::to_string(p.multiProcessorCount)},
          {"memory", fmt::format("{} MiB", p.totalGlobalMem >> 20)},
          {"driver", fmt::format("{} (CUDA {})", driver_version(), cuda_version(driver))},
          {"runtime", "CUDA " + cuda_version(runtime)},
          {"cuDNN", cudnn_version(cudnnGetVersion())}};
}

std::shared_ptr<Block> CudaRuntime::allocate(size_t bytes) {
  ++allocations_;
  return std::make_shared<CudaBlock>(bytes, account_);
}

void CudaRuntime::upload(void* device, const void* host, size_t bytes) {
  require(!capturing_, "[cuda] upload inside a captured step: it would be replayed with the bytes of now");
  staging_->upload(device, host, bytes);
}

void CudaRuntime::download(void* host, const void* device, size_t bytes) {
  require(!capturing_, "[cuda] download inside a captured step: nothing has been computed yet");
  staging_->download(host, device, bytes);
}

void CudaRuntime::copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) LINNET_CALL(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_));
}

void CudaRuntime::zero(void* device, size_t bytes) {
  if (bytes > 0) LINNET_CALL(cudaMemsetAsync(device, 0, bytes, stream_));
}

void CudaRuntime::synchronize() {
  require(!capturing_, "[cuda] synchronize inside a captured step");
  LINNET_CALL(cudaStreamSynchronize(stream_));
  ++waits_;
}

std::unique_ptr<Replay> CudaRuntime::capture(const std::function<void()>& step) {
  // Relaxed: a step that meets a new shape while it is captured (the first one of a resumed run) may still allocate.
  LINNET_CALL(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed));
  cudaGraph_t graph = nullptr;
  capturing_ = true;
  try {
    step();
  } catch (...) {
    capturing_ = false;
    if (cudaStreamEndCapture(stream_, &graph) == cudaSuccess) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  capturing_ = false;
  LINNET_CALL(cudaStreamEndCapture(stream_, &graph));
  return std::make_unique<GraphReplay>(graph, stream_);
}

void* Scratch::at_least(size_t bytes) {
  const MemoryFor what("work space of convolutions and batch norm (train.batch_size)");
  if (pieces_.empty() || pieces_.back()->bytes < bytes) pieces_.push_back(runtime_.allocate(bytes));
  return pieces_.back()->data;
}

}  // namespace linnet
