// Pooling and the parameter-free shortcut on every backend.
#include "gradcheck.h"

namespace linnet {
namespace {

OpCase pool_case(bool max, const Shape& x, Window w) {
  return {.name = fmt::format("{}_pool {} window {}x{}, stride {}, pad {}", max ? "max" : "avg", x, w.height, w.width,
                              w.stride, w.pad),
          .inputs = {x},
          .f = [=](Pass& p, const Operands& o) { return max ? max_pool(p, o.x[0], w) : avg_pool(p, o.x[0], w); }};
}
OpCase global_case(const Shape& x) {
  return {.name = fmt::format("global_avg_pool {}", x), .inputs = {x}, .f = [](Pass& p, const Operands& o) {
            return global_avg_pool(p, o.x[0]);
          }};
}
OpCase shortcut_case(const Shape& x, int stride, int64_t channels) {
  return {.name = fmt::format("shortcut {} stride {} -> {} channels", x, stride, channels),
          .inputs = {x},
          .f = [=](Pass& p, const Operands& o) { return shortcut(p, o.x[0], stride, channels); }};
}

std::vector<OpCase> all_cases(const std::vector<Shape>& shapes) {
  std::vector<OpCase> all;
  for (const Shape& x : shapes) {
    for (bool max : {false, true})
      for (Window w :
           {Window{2, 2, 2, 0}, {3, 3, 2, 1}, {3, 3, 1, 1}, {2, 3, 1, 0}, {3, 2, 3, 1}, {5, 5, 2, 2}, {1, 1, 2, 0}})
        if (x[1] + 2 * w.pad >= w.height && x[2] + 2 * w.pad >= w.width) all.push_back(pool_case(max, x, w));
    all.push_back(global_case(x));
    for (int stride : {1, 2, 3})
      for (int64_t more : {0, 2, 16}) all.push_back(shortcut_case(x, stride, x[3] + more));
  }
  return all;
}

class WindowTest : public OpTest {};
LINNET_ON_EVERY_BACKEND(WindowTest);

TEST_P(WindowTest, AgainstReference) {
  for (const OpCase& c :
       all_cases({{1, 2, 2, 1}, {2, 5, 7, 3}, {17, 8, 8, 7}, {33, 7, 4, 8}, {3, 9, 9, 33}, {2, 1, 1, 5}}))
    check_against_reference(c, be());
}

TEST_P(WindowTest, SixteenBits) {
  for (DType dtype : {DType::bf16, DType::fp16})
    for (const OpCase& c : all_cases({{3, 7, 6, 5}})) check_against_reference(c, be(), dtype);
}

TEST_P(WindowTest, CentralDifferences) {
  for (const OpCase& c : all_cases({{2, 5, 4, 2}})) check_gradients(c, be());
}

TEST_P(WindowTest, UsedTwice) {
  for (const OpCase& c : all_cases({{2, 5, 4, 3}})) check_used_twice(c, be());
}

TEST(Window, SameBitsForAnyNumberOfThreads) {
  for (const OpCase& c : all_cases({{17, 8, 8, 24}})) check_same_bits(c);
}

// Of equal numbers the first is the maximum, a NaN always is: as PyTorch.
TEST_P(WindowTest, MaxPoolTiesAndNan) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Pool pool(be());
  Tape tape(be(), pool);
  Pass p{be(), pool, &tape};
  const Tensor x = tape.leaf(tensor_of(be(), {1, 2, 4, 1}, DType::f32, {5, 5, 1, nan, 5, 5, 9, 2}));
  const Tensor y = max_pool(p, x, {2, 2, 2, 0});
  tape.backward(y, tensor_of(be(), y.shape(), DType::f32, {1, 2}));
  EXPECT_EQ(download(be(), y)[0], 5);
  EXPECT_TRUE(std::isnan(download(be(), y)[1]));
  EXPECT_EQ(download(be(), tape.grad(x)), (std::vector<double>{1, 0, 0, 2, 0, 0, 0, 0}));
}

// Padding is never the maximum, but it counts in the mean (PyTorch's defaults).
TEST_P(WindowTest, Padding) {
  Pool pool(be());
  Pass p{be(), pool};
  const Tensor x = tensor_of(be(), {1, 1, 1, 1}, DType::f32, {-6});
  EXPECT_EQ(download(be(), max_pool(p, x, {3, 3, 1, 1})), std::vector<double>{-6});
  EXPECT_NEAR(download(be(), avg_pool(p, x, {3, 3, 1, 1}))[0], -6.0 / 9, 1e-7);
}

TEST_P(WindowTest, ErrorsNameOpExpectedAndGot) {
  Pool pool(be());
  Pass p{be(), pool};
  const Tensor x = pool.zeros({1, 4, 4, 3}, DType::f32), flat = pool.zeros({4, 3}, DType::f32);
  EXPECT_EQ(error_of([&] { max_pool(p, flat, {}); }), "[max_pool] expected NHWC input [n,h,w,c], got [4,3]");
  EXPECT_EQ(error_of([&] {
              avg_pool(p, x, {5, 2, 1, 0});
            }),
            "[avg_pool] a window of 5 with stride 1 and padding 0 does not fit an extent of 4");
  EXPECT_EQ(error_of([&] {
              max_pool(p, x, {2, 2, 2, 2});
            }),
            "[max_pool] expected padding of at most half the window, got 2");
  EXPECT_EQ(error_of([&] { global_avg_pool(p, flat); }), "[global_avg_pool] expected NHWC input [n,h,w,c], got [4,3]");
  EXPECT_EQ(error_of([&] { shortcut(p, x, 2, 4); }), "[shortcut] cannot pad 3 channels evenly to 4 with stride 2");
}

}  // namespace
}  // namespace linnet
