// A layer with a backward of its own, in a model of its own, which a config can then name.
#include "linnet/model.h"
#include "linnet/trainer.h"

#include <cmath>
#include <cstdio>

// y = scale * |x| with a learnt scale. Plain loops over host memory, so for the CPU backend only; a layer that is made
// of the operations of linnet/ops.h runs everywhere and needs no backward.
class ScaledAbs : public linnet::Module {
 public:
  explicit ScaledAbs(const linnet::Scope& s)
      : scale_(s.store.add(s.name("scale"), {1}, /*decay=*/false, linnet::constant(1))) {}

  linnet::Tensor forward(linnet::Pass& pass, const linnet::Tensor& x) override {
    linnet::Tensor y = pass.pool.empty(x.shape(), x.dtype());
    const float* in = x.data<float>();
    const float scale = scale_.master.data<float>()[0];
    for (int64_t i = 0; i < x.numel(); ++i) y.data<float>()[i] = scale * std::abs(in[i]);
    if (!pass.tape) return y;
    return pass.tape->track(
        y, {"scaled_abs", &scale_}, [this, x, scale, &pool = pass.pool, tape = pass.tape](const linnet::Tensor& dy) {
          linnet::Tensor dx = pool.empty(x.shape(), x.dtype());
          double dscale = 0;
          for (int64_t i = 0; i < x.numel(); ++i) {
            const float v = x.data<float>()[i], d = dy.data<float>()[i];
            dx.data<float>()[i] = d * scale * (v < 0 ? -1.f : 1.f);
            dscale += double(d) * std::abs(double(v));
          }
          tape->add_grad(scale_, [&](const linnet::Tensor& out) { out.data<float>()[0] = float(dscale); });
          tape->add_grad(x, dx);
        });
  }

 private:
  linnet::Param& scale_;
};

struct AbsNet : linnet::Module {
  AbsNet(const linnet::Scope& s, const linnet::ModelOptions& o)
      : conv(s / "conv", o.channels, 32, 3, {2, 1}),
        norm(s / "norm", 32),
        abs(s / "abs"),
        linear(s / "linear", 32, o.classes) {}
  linnet::Tensor forward(linnet::Pass& p, const linnet::Tensor& x) override {
    return linear.forward(p, linnet::global_avg_pool(p, abs.forward(p, norm.forward(p, conv.forward(p, x)))));
  }
  linnet::Conv2d conv;
  linnet::BatchNorm2d norm;
  ScaledAbs abs;
  linnet::Linear linear;
};

struct Result : linnet::Observer {
  double loss = 0;
  void on_row(const linnet::Row& row) override {
    if (row.kind == "epoch") std::printf("epoch %d  train/loss %.3f\n", int(row.epoch), loss = row["train/loss"]);
  }
};

int main() {
  linnet::add_model(
      {"absnet", "one convolution and |x|", {}, [](const linnet::Scope& s, const linnet::ModelOptions& o) {
         return std::unique_ptr<linnet::Module>(std::make_unique<AbsNet>(s, o));
       }});
  linnet::Config config = linnet::parse_config(R"(
    model.name = "absnet"
    data = { name = "synthetic", samples = 4000, val = 400, image_size = 16 }
    optimizer = { name = "adam", lr = 0.02 }
    train = { epochs = 10, batch_size = 50, device = "cpu", precision = "f32" }
  )",
                                               "own_layer.cpp");
  const auto backend = linnet::make_backend("cpu");
  const linnet::RunData data = linnet::load_run_data(config);
  linnet::Trainer trainer(config, *backend, data);
  Result result;
  trainer.run({&result});
  const float scale = trainer.net().params().params()[3]->master.data<float>()[0];
  std::printf("the scale was learnt: %.3f\n", double(scale));
  return result.loss < 2.28 && scale != 1 ? 0 : 1;  // guessing: ln 10 = 2.303
}
