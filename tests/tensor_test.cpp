// Shapes and tensors: sizes that do not exist, views, types, ownership.
#include "linnet/tensor.h"

#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <vector>

namespace linnet {
namespace {

struct HostBlock : Block {
  explicit HostBlock(size_t n) : memory(n) {
    data = memory.data();
    bytes = n;
  }
  std::vector<char> memory;
};

Tensor make(const Shape& shape, DType dtype = DType::f32) {
  return Tensor(std::make_shared<HostBlock>(size_t(shape.numel()) * size_of(dtype)), shape, dtype);
}

TEST(Shape, KnowsItsSize) {
  const Shape s{128, 32, 16, 3};
  EXPECT_EQ(s.rank(), 4);
  EXPECT_EQ(s[1], 32);
  EXPECT_EQ(s[-1], 3);
  EXPECT_EQ(s.numel(), 128 * 32 * 16 * 3);
  EXPECT_EQ(to_string(s), "[128,32,16,3]");
  EXPECT_EQ(fmt::format("{}", Shape{}), "[]");
  EXPECT_EQ(Shape{}.numel(), 1);
  EXPECT_EQ((Shape{4, 0}).numel(), 0);
  EXPECT_EQ((Shape{2, 3}), (Shape{2, 3}));
  EXPECT_NE((Shape{2, 3}), (Shape{2, 3, 1}));
}

TEST(Shape, RefusesWhatIsNoSize) {
  EXPECT_THROW((Shape{1, 2, 3, 4, 5}), Error);
  EXPECT_THROW((Shape{2, -1}).numel(), Error);
  EXPECT_THROW((Shape{int64_t(1) << 32, int64_t(1) << 32}).numel(), Error);
  // The elements can be counted, their bytes cannot.
  EXPECT_THROW((Shape{int64_t(1) << 62}).numel(), Error);
  EXPECT_EQ((Shape{int64_t(1) << 59}).numel(), int64_t(1) << 59);
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(size_of(DType::u8), 1u);
  EXPECT_EQ(size_of(DType::bf16), 2u);
  EXPECT_EQ(size_of(DType::i32), 4u);
  EXPECT_EQ(size_of(DType::f32), 4u);
  EXPECT_EQ(size_of(DType::f64), 8u);
  EXPECT_STREQ(name_of(DType::bf16), "bf16");
  EXPECT_EQ(dtype_of<double>, DType::f64);
}

TEST(Tensor, GivesElementsOfItsTypeOnly) {
  const Tensor t = make({2, 3});
  EXPECT_EQ(t.bytes(), 24u);
  EXPECT_NE(t.data<float>(), nullptr);
  EXPECT_THROW(t.data<int32_t>(), Error);
  EXPECT_FALSE(Tensor());
  EXPECT_EQ(Tensor().raw(), nullptr);
}

TEST(Tensor, MustFitItsMemory) {
  const auto block = std::make_shared<HostBlock>(24);
  EXPECT_NO_THROW(Tensor(block, {6}, DType::f32));
  EXPECT_THROW(Tensor(block, {7}, DType::f32), Error);
  EXPECT_THROW(Tensor(block, {6}, DType::f32, 4), Error);
  EXPECT_THROW(Tensor(nullptr, {1}, DType::f32), Error);
}

TEST(Tensor, CopiesAndViewsShareMemory) {
  const Tensor t = make({4, 3});
  std::iota(t.data<float>(), t.data<float>() + 12, 0.f);
  EXPECT_TRUE(t.sole_owner());
  const Tensor flat = t.reshape({12}), row = t.slice(6, {1, 3});
  EXPECT_FALSE(t.sole_owner());
  EXPECT_EQ(flat.raw(), t.raw());
  EXPECT_EQ(row.data<float>()[0], 6.f);
  EXPECT_EQ(row.slice(1, {2}).data<float>()[0], 7.f);  // a view of a view
  EXPECT_EQ(t.slice(12, {0}).numel(), 0);
}

TEST(Tensor, RefusesViewsOutsideOfIt) {
  const Tensor t = make({4, 3});
  EXPECT_THROW(t.reshape({13}), Error);
  EXPECT_THROW(t.slice(-1, {1}), Error);
  EXPECT_THROW(t.slice(10, {3}), Error);
  EXPECT_THROW(t.slice(std::numeric_limits<int64_t>::max(), {2}), Error);
}

TEST(Tensor, AReshapedTensorKeepsItsPlaceOnTheTapeASliceDoesNot) {
  Tensor t = make({4});
  EXPECT_EQ(t.var, -1);
  t.var = 7;
  EXPECT_EQ(t.reshape({2, 2}).var, 7);
  EXPECT_EQ(t.slice(0, {2}).var, -1);
}

}  // namespace
}  // namespace linnet
