// One GPU and one stream: memory, copies, capture. The first visible device is taken; CUDA_VISIBLE_DEVICES chooses it.
#pragma once
#include <cuda_runtime_api.h>

#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "linnet/backend.h"
#include "src/backend/backends.h"

namespace linnet {

// Copies between ordinary host memory and the device pass through a ring of pinned slots: an upload returns once the
// bytes lie in a slot, so the host may be a few steps ahead of the device and its own memory is free at once.
class Staging {
 public:
  explicit Staging(cudaStream_t);
  ~Staging();
  Staging(const Staging&) = delete;
  void upload(void* device, const void* host, size_t bytes);
  void download(void* host, const void* device, size_t bytes);  // waits for the stream
  int64_t waits() const { return waits_; }

 private:
  static constexpr size_t kSlots = 4, kSlotBytes = size_t(1) << 20;
  struct Slot {
    char* memory;
    cudaEvent_t done;  // behind the last copy out of this slot
  };
  const Slot& next_slot();  // waits until it is free
  cudaStream_t stream_;
  std::array<Slot, kSlots> slots_{};
  size_t next_ = 0;
  int64_t waits_ = 0;  // for results; not for a free slot, which only keeps the host from running far ahead
};

class CudaRuntime {
 public:
  CudaRuntime();  // Error(Exit::device) unless cuda_usable()
  ~CudaRuntime();
  CudaRuntime(const CudaRuntime&) = delete;

  cudaStream_t stream() const { return stream_; }
  std::vector<std::pair<std::string, std::string>> info() const;

  bool capturing() const { return capturing_; }
  int64_t allocations() const { return allocations_; }
  int64_t waits() const { return waits_ + staging_->waits(); }

  std::shared_ptr<Block> allocate(size_t bytes);
  void upload(void* device, const void* host, size_t bytes);
  void download(void* host, const void* device, size_t bytes);
  void copy(void* to, const void* from, size_t bytes);
  void zero(void* device, size_t bytes);
  void synchronize();
  // Records what `step` puts on the stream; Replay::run puts it there again as one graph.
  std::unique_ptr<Replay> capture(const std::function<void()>& step);

 private:
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Staging> staging_;
  bool capturing_ = false;
  std::shared_ptr<MemoryAccount> account_ = std::make_shared<MemoryAccount>();
  int64_t allocations_ = 0, waits_ = 0;
};

// Working memory that grows. Everything runs on one stream, so one piece serves every call in turn. A piece that became
// too small stays: a captured graph may hold its address.
class Scratch {
 public:
  explicit Scratch(CudaRuntime& runtime) : runtime_(runtime) {}
  void* at_least(size_t bytes);

 private:
  CudaRuntime& runtime_;
  std::vector<std::shared_ptr<Block>> pieces_;
};

}  // namespace linnet
