#include "linnet/tensor.h"

namespace linnet {

size_t size_of(DType d) {
  switch (d) {
    case DType::u8:
      return 1;
    case DType::bf16:
    case DType::fp16:
      return 2;
    case DType::i32:
    case DType::f32:
      return 4;
    case DType::f64:
      return 8;
  }
  fail(Exit::failure, "[dtype] unknown value {}", int(d));
}

const char* name_of(DType d) {
  switch (d) {
    case DType::u8:
      return "u8";
    case DType::i32:
      return "i32";
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::fp16:
      return "fp16";
    case DType::f64:
      return "f64";
  }
  return "unknown";
}

Shape::Shape(std::initializer_list<int64_t> extents) : rank_(int(extents.size())) {
  require(extents.size() <= kMaxRank, "[shape] expected at most {} extents, got {}", int(kMaxRank), extents.size());
  std::copy(extents.begin(), extents.end(), extents_.begin());
}

int64_t Shape::numel() const {
  constexpr int64_t kMost = INT64_MAX / 8;  // the bytes must fit, too
  int64_t n = 1;
  for (int64_t extent : *this) {
    require(extent >= 0 && !__builtin_mul_overflow(n, extent, &n) && n <= kMost, "[shape] {} is not a size",
            to_string(*this));
  }
  return n;
}

std::string to_string(const Shape& s) {
  std::string out = "[";
  for (int64_t extent : s) out += (out.size() > 1 ? "," : "") + std::to_string(extent);
  return out + "]";
}

Tensor::Tensor(std::shared_ptr<Block> block, const Shape& shape, DType dtype, int64_t offset_bytes)
    : block_(std::move(block)), offset_(offset_bytes), shape_(shape), numel_(shape.numel()), dtype_(dtype) {
  require(block_ && size_t(offset_) + bytes() <= block_->bytes, "[tensor] {} of {} does not fit its memory", shape,
          name_of(dtype));
}

Tensor Tensor::reshape(const Shape& shape) const {
  require(shape.numel() == numel_, "[reshape] expected a shape of {} elements like {}, got {}", numel_, shape_, shape);
  Tensor t = *this;
  t.shape_ = shape;
  return t;
}

Tensor Tensor::slice(int64_t first, const Shape& shape) const {
  require(first >= 0 && first <= numel_ - shape.numel(), "[slice] {} elements from {} are outside a tensor of {}",
          shape.numel(), first, numel_);
  Tensor t(block_, shape, dtype_, offset_ + first * int64_t(size_of(dtype_)));
  return t;
}

}  // namespace linnet
