// The tape: sums of gradients, and what it refuses.
#include "linnet/tape.h"

#include <gtest/gtest.h>

#include "linnet/ops.h"
#include "linnet/param.h"
#include "src/backend/backends.h"

namespace linnet {
namespace {

class TapeTest : public testing::Test {
 protected:
  Tensor tensor(const std::vector<float>& values) {
    const Tensor t(backend_->allocate(values.size() * 4), {int64_t(values.size())}, DType::f32);
    backend_->upload(t, values.data());
    return t;
  }
  Tensor matrix(const std::vector<float>& values, int64_t rows) {
    return tensor(values).reshape({rows, int64_t(values.size()) / rows});
  }
  std::vector<float> values(const Tensor& t) {
    std::vector<float> v(size_t(t.numel()));
    backend_->download(v.data(), t);
    return v;
  }
  std::vector<float> grad(const Tensor& leaf) { return values(tape_.grad(leaf)); }
  // Two parameters: a [1,2] weight and its bias [1].
  void make_params() {
    weight_ = &store_.add("weight", {1, 2}, true, constant(0.5f));
    bias_ = &store_.add("bias", {1}, false, constant(0));
    store_.seal(*backend_, 0);
  }

  using Floats = std::vector<float>;
  std::unique_ptr<Backend> backend_ = make_cpu_backend(1);
  Pool pool_{*backend_};
  Tape tape_{*backend_, pool_};
  Pass pass_{*backend_, pool_, &tape_, true};
  ParamStore store_;
  Param *weight_ = nullptr, *bias_ = nullptr;
};

TEST_F(TapeTest, AnInputUsedTwiceGetsBothGradients) {
  const Tensor x = tape_.leaf(tensor({1, -2, 3}));
  const Tensor y = add(pass_, relu(pass_, x), x);
  tape_.backward(y, tensor({1, 10, 100}));
  EXPECT_EQ(grad(x), (Floats{2, 10, 200}));
}

TEST_F(TapeTest, TheSameTensorAddedToItself) {
  const Tensor x = tape_.leaf(tensor({1, 2}));
  Tensor y = add(pass_, x, x);
  y = add(pass_, y, y);
  tape_.backward(y, tensor({1, 10}));
  EXPECT_EQ(grad(x), (Floats{4, 40}));
}

// add hands one dy to both inputs. Whoever adds to it in place changes the other's gradient.
TEST_F(TapeTest, AGradientThatIsSharedIsNotAddedToInPlace) {
  const Tensor a = tape_.leaf(tensor({1, 2})), b = tape_.leaf(tensor({3, 4}));
  const Tensor used_again = relu(pass_, a);  // its gradient arrives at `a` after add's
  const Tensor y = add(pass_, add(pass_, a, b), used_again);
  const Tensor dy = tensor({1, 10});
  tape_.backward(y, dy);
  EXPECT_EQ(grad(a), (Floats{2, 20}));
  EXPECT_EQ(grad(b), (Floats{1, 10}));
  EXPECT_EQ(values(dy), (Floats{1, 10}));  // nor what the caller gave
}

TEST_F(TapeTest, FlattenGivesItsGradientTheInputsShape) {
  const Tensor x = tape_.leaf(tensor({1, 2, 3, 4}).reshape({1, 2, 2, 1}));
  tape_.backward(flatten(pass_, x), matrix({1, 2, 3, 4}, 1));
  EXPECT_EQ(tape_.grad(x).shape(), x.shape());
  EXPECT_EQ(grad(x), (Floats{1, 2, 3, 4}));
}

TEST_F(TapeTest, ABranchThatIsNotUsedAddsNothing) {
  const Tensor x = tape_.leaf(tensor({1, 2})), other = tape_.leaf(tensor({1, 2}));
  const Tensor y = relu(pass_, x);
  relu(pass_, y);
  relu(pass_, other);
  tape_.backward(y, tensor({1, 1}));
  EXPECT_EQ(grad(x), (Floats{1, 1}));
  EXPECT_FALSE(tape_.grad(other));
}

TEST_F(TapeTest, AConstantHasNoGradient) {
  const Tensor x = tape_.leaf(tensor({1})), constant = tensor({5});
  tape_.backward(add(pass_, x, constant), tensor({1}));
  EXPECT_EQ(grad(x), (Floats{1}));
  EXPECT_FALSE(tape_.grad(constant));
}

TEST_F(TapeTest, ParameterGradientsAccumulateUntilTheNextStep) {
  make_params();
  const auto forward_and_backward = [&](const Floats& x) {
    tape_.backward(linear(pass_, matrix(x, 1), *weight_, *bias_), matrix({1}, 1));
  };
  tape_.begin_step();
  forward_and_backward({1, 2});
  forward_and_backward({10, 20});
  forward_and_backward({100, 200});
  tape_.end_step(store_.params());
  EXPECT_EQ(values(weight_->grad), (Floats{111, 222}));
  EXPECT_EQ(values(bias_->grad), (Floats{3}));
  tape_.begin_step();
  forward_and_backward({1, 2});
  tape_.end_step(store_.params());
  EXPECT_EQ(values(weight_->grad), (Floats{1, 2}));
}

TEST_F(TapeTest, AParameterThatWasNotReachedGetsZero) {
  make_params();
  backend_->upload(weight_->grad, Floats{7, 7}.data());
  backend_->upload(bias_->grad, Floats{7}.data());
  tape_.begin_step();
  const Tensor x = tape_.leaf(matrix({1, 2}, 1));
  linear(pass_, x, *weight_, *bias_);
  tape_.backward(relu(pass_, x), matrix({1, 1}, 1));
  tape_.end_step(store_.params());
  EXPECT_EQ(values(weight_->grad), (Floats{0, 0}));
  EXPECT_EQ(values(bias_->grad), (Floats{0}));
}

TEST_F(TapeTest, BackwardReleasesWhatTheForwardKept) {
  const Tensor x = tape_.leaf(tensor({1, 2}));
  std::weak_ptr<int> kept;
  {
    const auto something = std::make_shared<int>(1);
    kept = something;
    const Tensor y =
        tape_.track(tensor({1, 2}), {"test"}, [this, x, something](const Tensor& dy) { tape_.add_grad(x, dy); });
    tape_.backward(y, tensor({1, 1}));
  }
  EXPECT_TRUE(kept.expired());
}

TEST_F(TapeTest, RefusesATensorOfAnEarlierStep) {
  const Tensor old = tape_.leaf(tensor({1, 2}));
  const Tensor old_result = relu(pass_, old);
  tape_.begin_step();
  EXPECT_THROW(tape_.grad(old), Error);
  EXPECT_THROW(tape_.backward(old_result, tensor({1, 1})), Error);
  // Also once the new step has recorded as much as the old one had.
  const Tensor x = tape_.leaf(tensor({3, 4}));
  const Tensor y = add(pass_, x, old);
  EXPECT_THROW(tape_.backward(y, tensor({1, 1})), Error);
}

TEST_F(TapeTest, RefusesWhatItCannotDifferentiate) {
  const Tensor x = tape_.leaf(tensor({1, 2}));
  EXPECT_THROW(tape_.backward(tensor({1, 2}), tensor({1, 1})), Error);
  const Tensor y = relu(pass_, x);
  EXPECT_THROW(tape_.backward(y, tensor({1, 1, 1})), Error);
}

TEST_F(TapeTest, WithoutATapeNothingIsRecorded) {
  Pass inference{*backend_, pool_};
  EXPECT_FALSE(Tape::wants(relu(inference, tensor({1}))));
}

}  // namespace
}  // namespace linnet
