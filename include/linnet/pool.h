// Recycles device memory between steps. Shapes are static, so from the second step on every request finds a block that
// an earlier step returned: training allocates nothing (tests/pool_test.cpp).
#pragma once
#include <map>
#include <memory>
#include <vector>

#include "linnet/tensor.h"

namespace linnet {

class Backend;

// Not thread-safe: one thread drives a backend. Tensors may outlive the Pool.
class Pool {
 public:
  explicit Pool(Backend&);
  // Uninitialised memory for `shape` elements; goes back to the pool when the last Tensor on it is gone.
  Tensor empty(const Shape&, DType);
  Tensor zeros(const Shape&, DType);
  // How often the backend had to be asked for memory.
  int64_t misses() const { return misses_; }

 private:
  using FreeList = std::multimap<size_t, std::shared_ptr<Block>>;
  Backend& backend_;
  std::shared_ptr<FreeList> free_ = std::make_shared<FreeList>();
  int64_t misses_ = 0;
};

}  // namespace linnet
