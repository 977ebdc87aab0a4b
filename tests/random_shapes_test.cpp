// Every op but convolution (conv_test.cpp) on 20 random shapes: values and gradients against the reference. The other
// tests' lists hold the shapes somebody thought of.
#include "op_case.h"

namespace linnet {
namespace {

// The same numbers in every run: a shape that fails can be named and tried again.
class Draws {
 public:
  int64_t between(int64_t least, int64_t most) {
    return least + below(random4(4, Draw::test, item_++).v[0], uint32_t(most - least + 1));
  }
  int64_t channels() { return between(1, 70); }
  int64_t batch() { return between(1, 19); }
  // Up to `kLargest` elements, so that the slow oracle (and the sanitizers) are done in time.
  Shape image(int64_t least_height = 1, int64_t least_width = 1) {
    for (;;) {
      const Shape x{batch(), between(least_height, 20), between(least_width, 20), channels()};
      if (x.numel() <= kLargest) return x;
    }
  }
  // For norms: sometimes [n,c], always 8 values or more for each mean and variance. Of two values that are nearly alike
  // no float keeps the variance's digits, and their gradient is 0 but for rounding.
  Shape normed() {
    for (;;) {
      const Shape x = between(0, 4) == 0 ? Shape{batch(), channels()} : image();
      if (x.numel() / x[-1] >= kFewest) return x;
    }
  }
  static constexpr int64_t kLargest = 10'000, kFewest = 8;

 private:
  uint64_t item_ = 0;
};

class RandomShapesTest : public OpTest {
 protected:
  // make(Draws&) -> OpCase
  template <class F>
  void check(const F& make) {
    Draws draws;
    for (int i = 0; i < 20; ++i) check_against_reference(make(draws), be());
  }
};
LINNET_ON_EVERY_BACKEND(RandomShapesTest);

// With a ReLU the gradient's mask is taken from y: rounding must not change a sign, and at this seed none is so near 0.
TEST_P(RandomShapesTest, BatchNorm) {
  for (bool train : {true, false})
    for (bool relu : {false, true})
      for (bool residual : {false, true})
        check([&](Draws& draws) {
          const Shape x = draws.normed(), c{x[-1]};
          const auto f = [=](Pass& p, const Operands& o) {
            return batch_norm(p, o.x[0], *o.w[0], *o.w[1], *o.state[0], *o.state[1], {.relu = relu},
                              residual ? &o.x[1] : nullptr);
          };
          return OpCase{.name = fmt::format("batch_norm {} train {} relu {} residual {}", x, train, relu, residual),
                        .inputs = std::vector<Shape>(residual ? 2 : 1, x),
                        .params = {c, c},
                        .state = {c, c},
                        .f = f,
                        .train = train};
        });
}

TEST_P(RandomShapesTest, GroupNorm) {
  check([](Draws& draws) {
    Shape x = draws.normed();
    int groups = int(draws.between(1, 8));
    while (x[-1] % groups != 0 || x.numel() / x[0] / groups < Draws::kFewest) {
      x = draws.normed();
      groups = int(draws.between(1, 8));
    }
    const auto f = [=](Pass& p, const Operands& o) { return group_norm(p, o.x[0], *o.w[0], *o.w[1], groups); };
    return OpCase{.name = fmt::format("group_norm {} in {} groups", x, groups),
                  .inputs = {x},
                  .params = {{x[-1]}, {x[-1]}},
                  .f = f};
  });
}

TEST_P(RandomShapesTest, LayerNorm) {
  check([](Draws& draws) {
    Shape x = draws.normed();
    while (x.numel() / x[0] < Draws::kFewest) x = draws.normed();
    const auto f = [](Pass& p, const Operands& o) { return layer_norm(p, o.x[0], *o.w[0], *o.w[1]); };
    return OpCase{.name = fmt::format("layer_norm {}", x), .inputs = {x}, .params = {{x[-1]}, {x[-1]}}, .f = f};
  });
}

TEST_P(RandomShapesTest, Activations) {
  for (const Unary& op :
       {Unary(Relu{}), Unary(LeakyRelu{0.2f}), Unary(Sigmoid{}), Unary(Tanh{}), Unary(Silu{}), Unary(Gelu{})})
    check([&](Draws& draws) {
      const Shape x = draws.image();
      const auto f = [op](Pass& p, const Operands& o) { return unary(p, o.x[0], op); };
      return OpCase{.name = fmt::format("activation {} {}", op.index(), x), .inputs = {x}, .f = f};
    });
}

TEST_P(RandomShapesTest, Add) {
  check([](Draws& draws) {
    const Shape x = draws.image();
    const auto f = [](Pass& p, const Operands& o) { return add(p, o.x[0], o.x[1]); };
    return OpCase{.name = fmt::format("add {}", x), .inputs = {x, x}, .f = f};
  });
}

TEST_P(RandomShapesTest, Dropout) {
  check([](Draws& draws) {
    const Shape x = draws.image();
    const float probability = float(draws.between(0, 9)) / 10;
    const uint32_t layer = uint32_t(draws.between(0, 100));
    const auto f = [=](Pass& p, const Operands& o) { return dropout(p, o.x[0], probability, layer); };
    return OpCase{.name = fmt::format("dropout {} {}", x, probability), .inputs = {x}, .f = f};
  });
}

TEST_P(RandomShapesTest, Pooling) {
  for (bool max : {true, false})
    check([&](Draws& draws) {
      Window w{
          .height = int(draws.between(1, 5)), .width = int(draws.between(1, 5)), .stride = int(draws.between(1, 4))};
      w.pad = int(draws.between(0, std::min(w.height, w.width) / 2));
      const Shape x = draws.image(std::max(1, w.height - 2 * w.pad), std::max(1, w.width - 2 * w.pad));
      const auto f = [=](Pass& p, const Operands& o) { return max ? max_pool(p, o.x[0], w) : avg_pool(p, o.x[0], w); };
      return OpCase{.name = fmt::format("{}_pool {} window {}x{}, stride {}, pad {}", max ? "max" : "avg", x, w.height,
                                        w.width, w.stride, w.pad),
                    .inputs = {x},
                    .f = f};
    });
}

TEST_P(RandomShapesTest, GlobalAvgPool) {
  check([](Draws& draws) {
    const Shape x = draws.image();
    const auto f = [](Pass& p, const Operands& o) { return global_avg_pool(p, o.x[0]); };
    return OpCase{.name = fmt::format("global_avg_pool {}", x), .inputs = {x}, .f = f};
  });
}

TEST_P(RandomShapesTest, ShortcutA) {
  check([](Draws& draws) {
    const Shape x = draws.image();
    const int stride = int(draws.between(1, 3));
    const int64_t channels = x[3] + 2 * draws.between(0, 35);
    const auto f = [=](Pass& p, const Operands& o) { return shortcut(p, o.x[0], stride, channels); };
    return OpCase{
        .name = fmt::format("shortcut {} stride {} -> {} channels", x, stride, channels), .inputs = {x}, .f = f};
  });
}

TEST_P(RandomShapesTest, Linear) {
  check([](Draws& draws) {
    const int64_t n = draws.batch(), in = draws.channels(), out = draws.channels();
    const auto f = [](Pass& p, const Operands& o) { return linear(p, o.x[0], *o.w[0], *o.w[1]); };
    return OpCase{.name = fmt::format("linear [{},{}] -> {}", n, in, out),
                  .inputs = {{n, in}},
                  .params = {{out, in}, {out}},
                  .f = f};
  });
}

TEST_P(RandomShapesTest, SoftmaxCrossEntropy) {
  check([](Draws& draws) {
    const int64_t rows = draws.batch(), classes = draws.between(2, 70);
    const float smoothing = float(draws.between(0, 4)) / 8;
    std::vector<double> labels;  // -1: the row does not count
    for (int64_t i = 0; i < rows; ++i) labels.push_back(double(draws.between(-1, classes - 1)));
    const auto f = [=](Pass& p, const Operands& o) {
      const Tensor target = tensor_of(p.be, {rows}, DType::i32, labels);
      return softmax_cross_entropy(p, o.x[0], target, smoothing, 1 / float(rows)).loss;
    };
    return OpCase{.name = fmt::format("softmax_cross_entropy [{},{}] smoothing {}", rows, classes, smoothing),
                  .inputs = {{rows, classes}},
                  .f = f};
  });
}

TEST_P(RandomShapesTest, MseLoss) {
  check([](Draws& draws) {
    const Shape x = draws.image();
    const auto f = [x](Pass& p, const Operands& o) {
      return mse_loss(p, o.x[0], tensor_of(p.be, x, o.x[0].dtype(), random_values(x.numel(), 9)));
    };
    return OpCase{.name = fmt::format("mse_loss {}", x), .inputs = {x}, .f = f};
  });
}

}  // namespace
}  // namespace linnet
