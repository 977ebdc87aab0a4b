#include "linnet/pool.h"

#include "linnet/backend.h"

namespace linnet {

thread_local const char* MemoryFor::current_ = "other things";

namespace {
// Sizes are rounded up so that the few odd sizes of a step share blocks.
size_t rounded(size_t bytes) {
  const size_t unit = bytes < (size_t(1) << 16) ? 256 : size_t(1) << 12;
  return (std::max<size_t>(bytes, 1) + unit - 1) / unit * unit;
}

// Holds a block while a Tensor uses it and hands it back at the end, under the size that was asked for: the backend's
// own block may be larger.
struct Lease : Block {
  std::shared_ptr<Block> block;
  std::weak_ptr<std::multimap<size_t, std::shared_ptr<Block>>> home;
  ~Lease() override {
    if (auto list = home.lock()) list->emplace(bytes, std::move(block));
  }
};
}  // namespace

Pool::Pool(Backend& backend) : backend_(backend) {}

Tensor Pool::empty(const Shape& shape, DType dtype) {
  const size_t bytes = rounded(size_t(shape.numel()) * size_of(dtype));
  auto lease = std::make_shared<Lease>();
  lease->home = free_;
  // Only exact sizes are reused: a best fit would let a small tensor take a large one's block and cause a miss later.
  // Of several the one that came back last: it may still be in a cache.
  if (auto found = free_->upper_bound(bytes); found != free_->begin() && (--found)->first == bytes) {
    lease->block = std::move(free_->extract(found).mapped());
  } else {
    const MemoryFor what("activations and their gradients (train.batch_size, the model)");
    lease->block = backend_.allocate(bytes);
    ++misses_;
  }
  lease->data = lease->block->data;
  lease->bytes = bytes;
  return Tensor(std::move(lease), shape, dtype);
}

Tensor Pool::zeros(const Shape& shape, DType dtype) {
  Tensor t = empty(shape, dtype);
  backend_.zero(t);
  return t;
}

}  // namespace linnet
