// What each backend folder defines. A missing backend is a folder that defines the same symbols and says so.
#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "linnet/backend.h"
#include "linnet/threads.h"

namespace linnet {

std::unique_ptr<Backend> make_cpu_backend(int threads = default_threads(), ConvMethod = ConvMethod::fastest);

// Who has how much of a device's memory (MemoryFor), for the error when there is none left.
class MemoryAccount {
 public:
  void add(const char* what, size_t bytes) {
    const std::lock_guard lock(mutex_);
    bytes_[what] += bytes;
  }
  void remove(const char* what, size_t bytes) {
    const std::lock_guard lock(mutex_);
    bytes_[what] -= bytes;
  }
  std::string text() const;  // "Linnet holds 812 MiB: 700 MiB for activations, ..."

 private:
  mutable std::mutex mutex_;  // a block may be given back on any thread
  std::map<std::string, size_t> bytes_;
};

// Memory of a backend's own for a result that another call takes up at once. It only grows, and a piece that became too
// small stays: a captured step may hold its address.
class Spare {
 public:
  Tensor like(Backend& backend, const Tensor& t) { return like(backend, t, t.dtype()); }
  Tensor like(Backend& backend, const Tensor& t, DType dtype) {
    const size_t bytes = size_t(t.numel()) * size_of(dtype);
    const MemoryFor what("work space of convolutions (train.batch_size)");
    if (pieces_.empty() || pieces_.back()->bytes < bytes) pieces_.push_back(backend.allocate(bytes));
    return Tensor(pieces_.back(), t.shape(), dtype);
  }

 private:
  std::vector<std::shared_ptr<Block>> pieces_;
};

// Multiplications and additions, and memory read and written by a copy of what no cache holds.
struct CpuPeak {
  double gflops, gbytes;  // per second
  std::string unit;       // what multiplied: "f32", or "bf16 (AMX)"
};
// In the unit that computes with activations of that type.
CpuPeak measure_cpu_peak(int threads, DType);

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& = {});
// Runs every call on `tested` and, with the same operands, on `trusted`; Error(Exit::diverged) at the first result that
// differs by more than rounding can explain, with the call, the shapes and the error. tf32: the first one may round so.
std::unique_ptr<Backend> make_check_backend(std::unique_ptr<Backend> tested, std::unique_ptr<Backend> trusted,
                                            bool tf32 = false);
// Empty if a GPU can be used, else the reason why not.
std::string cuda_usable();

}  // namespace linnet
