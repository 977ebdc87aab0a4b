// The tensor: a value that names a shape, an element type and a share of a piece of memory. Copying a Tensor never
// copies elements. Activations are NHWC: [batch, height, width, channels]; convolution weights are [out, kernel_h,
// kernel_w, in].
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>

#include "kernels/hd.h"
#include "linnet/error.h"

namespace linnet {

enum class DType : uint8_t { u8, i32, f32, bf16, fp16, f64 };
enum class Device : uint8_t { cpu, cuda };

size_t size_of(DType);
const char* name_of(DType);

template <class T>
inline constexpr DType dtype_of = [] { static_assert(sizeof(T) == 0, "not an element type"); }();
template <>
inline constexpr DType dtype_of<uint8_t> = DType::u8;
template <>
inline constexpr DType dtype_of<int32_t> = DType::i32;
template <>
inline constexpr DType dtype_of<float> = DType::f32;
template <>
inline constexpr DType dtype_of<bf16> = DType::bf16;
template <>
inline constexpr DType dtype_of<fp16> = DType::fp16;
template <>
inline constexpr DType dtype_of<double> = DType::f64;

// Up to four extents, stored inline: making a Shape allocates nothing.
class Shape {
 public:
  static constexpr int kMaxRank = 4;
  Shape() = default;
  Shape(std::initializer_list<int64_t> extents);
  int rank() const { return rank_; }
  // s[-1] is the last extent.
  int64_t operator[](int i) const { return extents_[size_t(i < 0 ? i + rank_ : i)]; }
  // The number of elements; throws when their bytes do not fit into 63 bits or an extent is negative.
  int64_t numel() const;
  const int64_t* begin() const { return extents_.data(); }
  const int64_t* end() const { return extents_.data() + rank_; }
  bool operator==(const Shape&) const = default;

 private:
  std::array<int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};
std::string to_string(const Shape&);  // "[128,32,32,3]"

// One piece of a device's memory. Backends make them (Backend::allocate), the Pool recycles them.
struct Block {
  void* data = nullptr;
  size_t bytes = 0;
  virtual ~Block() = default;
};

class Tensor {
 public:
  Tensor() = default;
  Tensor(std::shared_ptr<Block> block, const Shape& shape, DType dtype, int64_t offset_bytes = 0);

  explicit operator bool() const { return block_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[i]; }
  int rank() const { return shape_.rank(); }
  DType dtype() const { return dtype_; }
  int64_t numel() const { return numel_; }
  size_t bytes() const { return size_t(numel_) * size_of(dtype_); }

  // The elements, in the memory of the backend that made them. Throws unless T is the element type.
  template <class T>
  T* data() const {
    require(dtype_of<T> == dtype_, "[tensor] expected elements of type {}, the tensor holds {}", name_of(dtype_of<T>),
            name_of(dtype_));
    return static_cast<T*>(raw());
  }
  void* raw() const { return block_ ? static_cast<char*>(block_->data) + offset_ : nullptr; }

  // The same elements under another shape of the same size.
  Tensor reshape(const Shape&) const;
  // A view of `shape` elements from element `first` on; parameters are such views of one flat buffer.
  Tensor slice(int64_t first, const Shape&) const;
  // Whether nobody else holds this memory. Only then may a gradient be added to in place (tape.h).
  bool sole_owner() const { return block_.use_count() == 1; }

  int64_t var = -1;  // its number on the tape; -1 for a constant

 private:
  std::shared_ptr<Block> block_;
  int64_t offset_ = 0;  // bytes
  Shape shape_;
  int64_t numel_ = 0;
  DType dtype_ = DType::f32;
};

}  // namespace linnet

template <>
struct fmt::formatter<linnet::Shape> {
  constexpr auto parse(fmt::format_parse_context& context) { return context.begin(); }
  template <class Context>
  auto format(const linnet::Shape& s, Context& context) const {
    const std::string text = linnet::to_string(s);
    return std::copy(text.begin(), text.end(), context.out());
  }
};
