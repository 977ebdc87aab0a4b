// What each backend folder defines. A missing backend is a folder that defines the same symbols and says so.
#pragma once
#include <memory>
#include <string>

#include "linnet/backend.h"
#include "linnet/threads.h"

namespace linnet {

std::unique_ptr<Backend> make_cpu_backend(int threads = default_threads(), ConvMethod = ConvMethod::fastest);

// Memory of a backend's own for a result that another call takes up at once. It only grows.
class Spare {
 public:
  Tensor like(Backend& backend, const Tensor& t) {
    if (!block_ || block_->bytes < t.bytes()) block_ = backend.allocate(t.bytes());
    return Tensor(block_, t.shape(), t.dtype());
  }

 private:
  std::shared_ptr<Block> block_;
};

// Multiplications and additions in f32, and memory read and written by a copy of what no cache holds.
struct CpuPeak {
  double gflops, gbytes;  // per second
};
CpuPeak measure_cpu_peak(int threads);

std::unique_ptr<Backend> make_cuda_backend();
// Empty if a GPU can be used, else the reason why not.
std::string cuda_usable();

}  // namespace linnet
