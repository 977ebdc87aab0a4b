// Saliency maps against finite differences and against hand-made nets; the gradient of a net in evaluation mode.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "linnet/trained.h"
#include "linnet/weights.h"

namespace linnet {
namespace {

// Random images and a net whose batch norms have statistics of their own.
struct Fixture {
  explicit Fixture(const std::string& model) : net(*backend, model, {.height = 16, .width = 16}, 3) {
    SafeTensors weights = get_weights(*backend, net.params());
    for (auto& [name, tensor] : weights.tensors)
      if (name.ends_with("running_mean") || name.ends_with("running_var"))
        for (size_t i = 0; i < tensor.bytes.size() / 4; ++i) {
          const float value = name.ends_with("mean") ? 0.1f * float(i % 5) - 0.2f : 0.5f + 0.1f * float(i % 7);
          std::memcpy(tensor.bytes.data() + 4 * i, &value, 4);
        }
    set_weights(*backend, net.params(), weights, "test");
  }
  std::unique_ptr<Backend> backend = make_backend("cpu");
  Net net;
};

// The gradient of one logit at the input, by the tape.
std::vector<float> input_gradient(Net& net, const std::vector<float>& image, int target, std::vector<float>* logits) {
  Backend& be = net.backend();
  Tape tape(be, net.pool());
  Pass pass{be, net.pool(), &tape};
  pass.explain = true;
  const Tensor batch = net.pool().empty({1, 16, 16, 3}, DType::f32);
  be.upload(batch, image.data());
  const Tensor x = tape.leaf(batch), y = net.forward(pass, x);
  logits->resize(size_t(y.numel()));
  be.download(logits->data(), y);
  std::vector<float> one(10, 0.f), dx(image.size());
  one[size_t(target)] = 1;
  const Tensor dy = net.pool().empty({1, 10}, DType::f32);
  be.upload(dy, one.data());
  tape.backward(y, dy);
  be.download(dx.data(), tape.grad(x));
  return dx;
}

TEST(Saliency, TheGradientInEvaluationModeIsThatOfTheNet) {
  for (const char* model : {"resnet20", "convnet", "mlp"}) {
    Fixture f(model);
    std::vector<float> image(16 * 16 * 3), logits;
    for (size_t i = 0; i < image.size(); ++i) image[i] = std::sin(float(i) * 0.37f);
    const std::vector<float> gradient = input_gradient(f.net, image, 4, &logits);
    // Along the gradient itself the logit rises by its squared norm: a check of all of its numbers.
    const double squares = std::inner_product(gradient.begin(), gradient.end(), gradient.begin(), 0.0);
    ASSERT_GT(squares, 0) << model;
    const float step = float(1e-3 / std::sqrt(squares));
    std::vector<float> up = image, down = image, high, low;
    for (size_t i = 0; i < image.size(); ++i) up[i] += step * gradient[i], down[i] -= step * gradient[i];
    input_gradient(f.net, up, 4, &high);
    input_gradient(f.net, down, 4, &low);
    const double slope = (double(high[4]) - double(low[4])) / (2 * double(step));
    EXPECT_NEAR(slope / squares, 1, 0.05) << model;
  }
}

TEST(Saliency, MapsAreInTheImagesSizeAndScaledToOne) {
  for (const char* model : {"resnet20", "convnet", "mlp"}) {
    Fixture f(model);
    const Images images = make_synthetic(4, Split::train, 1, 16);
    const BatchSource source = upload_source(*f.backend, images, {0.5, 0.5, 0.5}, {0.25, 0.25, 0.25});
    const Saliency s = saliency(f.net, source, 2, 7);
    ASSERT_EQ(s.gradient_input.size(), 256u);
    EXPECT_EQ(*std::ranges::max_element(s.gradient_input), 1.f);
    EXPECT_GE(*std::ranges::min_element(s.gradient_input), 0.f);
    EXPECT_EQ(s.grad_cam.size(), std::string(model) == "mlp" ? 0u : 256u);
    for (const float v : s.grad_cam) EXPECT_TRUE(v >= 0 && v <= 1);
    const Saliency other = saliency(f.net, source, 3, 7);
    EXPECT_NE(s.gradient_input, other.gradient_input);
    EXPECT_THROW(saliency(f.net, source, 0, 10), Error);
  }
}

// One convolution that passes the red channel on, and a last layer that looks at its mean: Grad-CAM is where red is.
TEST(Saliency, GradCamShowsWhatTheClassLooksAt) {
  const auto backend = make_backend("cpu");
  ParamStore store;
  struct RedNet : Module {
    explicit RedNet(const Scope& s) : conv(s / "conv", 3, 1, 1), linear(s / "linear", 1, 2) {}
    Tensor forward(Pass& p, const Tensor& x) override {
      return linear.forward(p, global_avg_pool(p, conv.forward(p, x)));
    }
    Conv2d conv;
    Linear linear;
  };
  add_model({"test_red", "of this test", {}, [](const Scope& s, const ModelOptions&) -> std::unique_ptr<Module> {
               return std::make_unique<RedNet>(s);
             }});
  Net net(*backend, "test_red", {.height = 8, .width = 8, .classes = 2}, 1);
  const float conv[] = {1, 0, 0}, linear[] = {1, -1}, bias[] = {0, 0};
  backend->upload(net.params().params()[0]->master, conv);
  backend->upload(net.params().params()[1]->master, linear);
  backend->upload(net.params().params()[2]->master, bias);
  Images images{.height = 8, .width = 8, .channels = 3, .classes = 2};
  images.pixels.assign(8 * 8 * 3, 0);
  images.labels = {0};
  for (int y = 0; y < 3; ++y)
    for (int x = 5; x < 8; ++x) images.pixels[size_t((y * 8 + x) * 3)] = 200;
  const BatchSource source = upload_source(*backend, images, {0, 0, 0}, {1, 1, 1});
  const Saliency s = saliency(net, source, 0, 0);
  for (int y = 0; y < 8; ++y)
    for (int x = 0; x < 8; ++x) {
      const float expected = y < 3 && x >= 5 ? 1.f : 0.f;
      EXPECT_NEAR(s.grad_cam[size_t(y * 8 + x)], expected, 1e-6) << y << x;
      EXPECT_NEAR(s.gradient_input[size_t(y * 8 + x)], expected, 1e-6) << y << x;
    }
  for (const float v : saliency(net, source, 0, 1).grad_cam) EXPECT_EQ(v, 0.f);  // red speaks against class 1
}

}  // namespace
}  // namespace linnet
