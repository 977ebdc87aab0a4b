// Every operation that is not a vendor library's, launched in one line for both backends. Compiled twice: by g++ with
// CpuExec, by nvcc with CudaExec.
#pragma once
#include <algorithm>
#include <cmath>

#include "augment.h"
#include "linnet/backend.h"
#include "loss.h"
#include "norm.h"
#include "window.h"

namespace linnet {

// Calls f with a value of the activation type: float, bf16 or fp16.
template <class F>
void by_type(DType dtype, const F& f) {
  if (dtype == DType::f32) return f(float{});
  if (dtype == DType::bf16) return f(bf16{});
  if (dtype == DType::fp16) return f(fp16{});
  fail(Exit::failure, "[backend] expected activations of f32, bf16 or fp16, got {}", name_of(dtype));
}

template <class Exec>
class SharedBackend : public Backend {
 public:
  explicit SharedBackend(Exec exec) : exec_(exec) {}

  void cast(const Tensor& y, const Tensor& x) override {
    by_type(x.dtype(), [&]<class From>(From) {
      by_type(y.dtype(), [&]<class To>(To) { exec_.for_each(x.numel(), Cast<From, To>{ptr<From>(x), ptr<To>(y)}); });
    });
  }
  void unary(const Unary& u, const Tensor& y, const Tensor& x) override {
    by_type(x.dtype(), [&]<class T>(T) {
      std::visit(
          [&](auto op) {
            exec_.for_each(x.numel(), UnaryForward<decltype(op), T>{op, ptr<T>(x), ptr<T>(y)});
          },
          u);
    });
  }
  void unary_grad(const Unary& u, const Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& y) override {
    by_type(x.dtype(), [&]<class T>(T) {
      std::visit(
          [&](auto op) {
            exec_.for_each(x.numel(), UnaryBackward<decltype(op), T>{op, ptr<T>(x), ptr<T>(y), ptr<T>(dy), ptr<T>(dx)});
          },
          u);
    });
  }
  void add(const Tensor& y, const Tensor& a, const Tensor& b) override {
    by_type(y.dtype(), [&]<class T>(T) { exec_.for_each(y.numel(), Add<T>{ptr<T>(a), ptr<T>(b), ptr<T>(y)}); });
  }
  void scale_by(const Tensor& y, const Tensor& x, const Tensor& factor) override {
    by_type(y.dtype(), [&]<class T>(T) {
      exec_.for_each(y.numel(), ScaleBy<T>{ptr<T>(x), ptr<float>(factor), ptr<T>(y)});
    });
  }
  void bias_add(const Tensor& y, const Tensor& x, const Tensor& bias) override {
    by_type(y.dtype(), [&]<class T>(T) {
      exec_.for_each_2d(x.dim(0), x.dim(1), BiasAdd<T>{ptr<T>(x), ptr<float>(bias), ptr<T>(y), x.dim(1)});
    });
  }
  void bias_grad(const Tensor& dbias, const Tensor& dy) override {
    by_type(dy.dtype(), [&]<class T>(T) {
      exec_.for_each(dy.dim(1), BiasGrad<T>{ptr<T>(dy), ptr<float>(dbias), dy.dim(0), dy.dim(1)}, dy.dim(0));
    });
  }

  void max_pool(const Tensor& y, const Tensor& where, const Tensor& x, Window w) override {
    by_type(x.dtype(), [&]<class T>(T) {
      exec_.for_each_2d(pixels(y), y.dim(3), MaxPool<T>{shape(x, y, w), ptr<T>(x), ptr<T>(y), ptr<int32_t>(where)},
                        w.height * w.width);
    });
  }
  void max_pool_grad(const Tensor& dx, const Tensor& dy, const Tensor& where, Window w) override {
    by_type(dx.dtype(), [&]<class T>(T) {
      exec_.for_each_2d(pixels(dx), dx.dim(3),
                        MaxPoolGrad<T>{shape(dx, dy, w), ptr<T>(dy), ptr<int32_t>(where), ptr<T>(dx)}, 4);
    });
  }
  void avg_pool(const Tensor& y, const Tensor& x, Window w) override {
    by_type(x.dtype(), [&]<class T>(T) {
      exec_.for_each_2d(pixels(y), y.dim(3), AvgPool<T>{shape(x, y, w), ptr<T>(x), ptr<T>(y)}, w.height * w.width);
    });
  }
  void avg_pool_grad(const Tensor& dx, const Tensor& dy, Window w) override {
    by_type(dx.dtype(), [&]<class T>(T) {
      exec_.for_each_2d(pixels(dx), dx.dim(3), AvgPoolGrad<T>{shape(dx, dy, w), ptr<T>(dy), ptr<T>(dx)}, 4);
    });
  }
  void shortcut(const Tensor& y, const Tensor& x, int stride) override {
    by_type(x.dtype(), [&]<class T>(T) {
      exec_.for_each_2d(pixels(y), y.dim(3), Shortcut<T>{shortcut_shape(x, y, stride), ptr<T>(x), ptr<T>(y)});
    });
  }
  void shortcut_grad(const Tensor& dx, const Tensor& dy, int stride) override {
    by_type(dx.dtype(), [&]<class T>(T) {
      exec_.for_each_2d(pixels(dx), dx.dim(3), ShortcutGrad<T>{shortcut_shape(dx, dy, stride), ptr<T>(dy), ptr<T>(dx)});
    });
  }
  void dropout(const Tensor& y, const Tensor& x, float p, uint32_t layer, const Tensor& step) override {
    by_type(x.dtype(), [&]<class T>(T) {
      exec_.for_each(x.numel(), ApplyDropout<T>{ptr<T>(x), ptr<T>(y), params(step), p, layer}, 16);
    });
  }

  void group_norm(const Tensor& y, const Tensor& saved, const Tensor& x, const Tensor& scale, const Tensor& bias,
                  int groups, float eps) override {
    by_type(x.dtype(), [&]<class T>(T) {
      const GroupShape s = group_shape(x, groups);
      exec_.for_each(
          x.dim(0) * groups,
          GroupNormForward<T>{s, ptr<T>(x), ptr<float>(scale), ptr<float>(bias), ptr<T>(y), ptr<float>(saved), eps},
          s.pixels * s.channels / groups);
    });
  }
  void group_norm_grad(const Tensor& dx, const Tensor& dscale, const Tensor& dbias, const Tensor& dy, const Tensor& x,
                       const Tensor& scale, const Tensor& saved, int groups) override {
    by_type(x.dtype(), [&]<class T>(T) {
      const GroupShape s = group_shape(x, groups);
      exec_.for_each(x.dim(0) * groups,
                     GroupNormGradInput<T>{s, ptr<T>(dy), ptr<T>(x), ptr<float>(scale), ptr<float>(saved), ptr<T>(dx)},
                     s.pixels * s.channels / groups);
      exec_.for_each(s.channels,
                     GroupNormGradParams<T>{s, x.dim(0), ptr<T>(dy), ptr<T>(x), ptr<float>(saved), ptr<float>(dscale),
                                            ptr<float>(dbias)},
                     x.dim(0) * s.pixels);
    });
  }

  void softmax_loss(const Tensor& loss, const Tensor& stats, const Tensor& dlogits, const Tensor& logits,
                    const Target& target, float smoothing, float scale) override {
    const bool mixed = bool(target.partner);
    by_type(logits.dtype(), [&]<class T>(T) {
      exec_.for_each(
          logits.dim(0),
          SoftmaxLoss<T>{ptr<T>(logits), ptr<int32_t>(target.label), mixed ? ptr<int32_t>(target.partner) : nullptr,
                         mixed ? ptr<float>(target.share) : nullptr, ptr<T>(dlogits), ptr<float>(stats), logits.dim(1),
                         smoothing, scale},
          logits.dim(1) * 8);
    });
    exec_.for_each(1, LossOfStats{ptr<float>(stats), ptr<float>(loss), stats.dim(0), scale});
  }
  void mse_loss(const Tensor& loss, const Tensor& dx, const Tensor& x, const Tensor& target) override {
    const double n = double(x.numel());
    by_type(x.dtype(), [&]<class T>(T) {
      exec_.reduce(x.numel(), SquaredError<T>{ptr<T>(x), ptr<T>(target)}, WriteScaled{ptr<float>(loss), 1 / n});
      exec_.for_each(x.numel(), SquaredErrorGrad<T>{ptr<T>(x), ptr<T>(target), ptr<T>(dx), float(2 / n)});
    });
  }
  void accumulate(const Tensor& totals, const Tensor& stats) override {
    exec_.for_each(stats.dim(1), AccumulateStats{ptr<float>(stats), ptr<double>(totals), stats.dim(0), stats.dim(1)},
                   stats.dim(0));
  }

  void make_batch(const Tensor& batch, const Target& target, const Tensor& draws, const BatchSource& source,
                  const Tensor& step, int64_t offset) override {
    if (source.augment.padding == Padding::zero)
      make_padded_batch<Padding::zero>(batch, target, draws, source, step, offset);
    else
      make_padded_batch<Padding::reflect>(batch, target, draws, source, step, offset);
  }

  void judge_step(const Tensor& step, const Tensor& grad, const Tensor* buffers, const Tensor& sums,
                  Clip clip) override {
    if (buffers) exec_.reduce(buffers->numel(), Residue{ptr<float>(*buffers)}, StoreResidue{memory(step)});
    exec_.reduce(grad.numel(), Square{ptr<float>(grad), clip}, JudgeStep{memory(step), ptr<double>(sums), clip});
  }
  void shift(const Rule& rule, const Flat& flat, int segment, const Tensor& step) override {
    std::visit(
        [&]<class R>(const R& r) {
          if constexpr (R::kShifts) {
            const Segment& s = flat.segments[size_t(segment)];
            ApplyShift<R> f{r, ptr<float>(flat.master) + s.begin, {}, memory(step), segment};
            for (int k = 0; k < R::kSlots; ++k) f.slot[k] = ptr<float>(flat.slots) + k * flat.n + s.begin;
            exec_.for_each(s.n, f);
          }
        },
        rule);
  }
  void update(const Rule& rule, const Flat& flat, int segment, Clip clip, const Tensor& step) override {
    std::visit(
        [&]<class R>(const R& r) {
          const Segment& s = flat.segments[size_t(segment)];
          const auto launch = [&]<bool kMixed>(std::bool_constant<kMixed>, int64_t begin, int64_t n, int64_t n_decay) {
            if (n == 0) return;
            ApplyRule<R, kMixed> f{
                r,      ptr<float>(flat.master) + begin, ptr<float>(flat.grad) + begin, {}, n_decay, clip, memory(step),
                segment};
            for (int k = 0; k < R::kSlots; ++k) f.slot[k] = ptr<float>(flat.slots) + k * flat.n + begin;
            exec_.for_each(n, f);
          };
          if (Exec::kLaunchesCost) {
            launch(std::true_type{}, s.begin, s.n, s.n_decay);
          } else {
            launch(std::false_type{}, s.begin, s.n_decay, s.n_decay);
            launch(std::false_type{}, s.begin + s.n_decay, s.n - s.n_decay, 0);
          }
        },
        rule);
  }
  void muon(const Muon& rule, const Flat& flat, const Matrix& at, int segment, Clip clip, const MuonMemory& memory_,
            const Tensor& step) override {
    const int64_t n = at.rows * at.columns, small = std::min(at.rows, at.columns);
    const bool wide = at.rows <= at.columns;
    const Tensor x = memory_.x.slice(0, {at.rows, at.columns}), y = memory_.y.slice(0, {at.rows, at.columns});
    const Tensor a = memory_.a.slice(0, {small, small}), b = memory_.b.slice(0, {small, small});
    const auto sum = [&](const Tensor& out, double f, const Tensor& p, double g, const Tensor& q) {
      exec_.for_each(out.numel(), WeightedSum{ptr<float>(p), ptr<float>(q), ptr<float>(out), float(f), float(g)});
    };
    exec_.for_each(n, MuonDirection{rule, ptr<float>(flat.grad) + at.offset, ptr<float>(flat.slots) + at.offset,
                                    ptr<float>(x), clip, memory(step)});
    exec_.reduce(n, Square{ptr<float>(x), {}}, WriteInverseNorm{ptr<float>(memory_.norm)});
    scale_by(x, x, memory_.norm);
    for (int k = 0; k < rule.iterations; ++k) {
      this->matmul(a, x, !wide, x, wide);  // x x^T, or x^T x where that is the smaller one
      this->matmul(b, a, false, a, false);
      sum(b, kMuonB, a, kMuonC, b);
      wide ? this->matmul(y, b, false, x, false) : this->matmul(y, x, false, b, false);
      sum(x, kMuonA, x, 1, y);
    }
    const float size = float(std::sqrt(std::max(1.0, double(at.rows) / double(at.columns))));
    exec_.for_each(
        n, MuonApply{rule, ptr<float>(flat.master) + at.offset, ptr<float>(x), at.decays, size, memory(step), segment});
  }
  void lookahead(const Lookahead& rule, const Tensor& w, const Tensor& slow, const Tensor& step) override {
    exec_.for_each(w.numel(), ApplyLookahead{rule, ptr<float>(w), ptr<float>(slow), memory(step)});
  }
  void moving_average(const Tensor& average, const Tensor& value, double decay, const Tensor& step) override {
    exec_.for_each(value.numel(),
                   MovingAverage{ptr<float>(average), ptr<float>(value), float(decay), float(1 - decay), memory(step)});
  }
  void commit(const Tensor& buffers, const Tensor& good, const Tensor& totals, const Tensor& sums, int64_t images,
              const Tensor& step) override {
    exec_.for_each(buffers.numel(), CommitBuffers{ptr<float>(buffers), ptr<float>(good), memory(step)});
    exec_.for_each(1, CommitSums{ptr<double>(totals), ptr<double>(sums), double(images), memory(step)});
  }

 protected:
  template <class T>
  static T* ptr(const Tensor& t) {
    return t.data<T>();
  }
  static StepMemory* memory(const Tensor& step) { return static_cast<StepMemory*>(step.raw()); }
  static const StepParams* params(const Tensor& step) { return &memory(step)->params; }

  Exec exec_;

 private:
  template <Padding kPadding>
  void make_padded_batch(const Tensor& batch, const Target& target, const Tensor& draws, const BatchSource& source,
                         const Tensor& step, int64_t offset) {
    const Augment& a = source.augment;
    const int64_t n = batch.dim(0), height = batch.dim(1), width = batch.dim(2), channels = batch.dim(3);
    auto* drawn = reinterpret_cast<SampleDraw*>(ptr<int32_t>(draws));
    exec_.for_each(n,
                   DrawSamples{ptr<int32_t>(source.order), ptr<int32_t>(source.labels), source.order.numel(), drawn,
                               ptr<int32_t>(target.label), a.mixes() ? ptr<int32_t>(target.partner) : nullptr,
                               a.mixes() ? ptr<float>(target.share) : nullptr, params(step), a, source.view, offset, n,
                               height, width},
                   a.mixes() ? 1024 : 64);
    const PixelSource<kPadding> pixels{ptr<uint8_t>(source.images), ptr<float>(source.table), height, width, channels};
    if (a.contrast > 0) exec_.for_each(n, GreyMeans<kPadding>{pixels, drawn}, height * width * 8);
    by_type(batch.dtype(), [&]<class T>(T) {
      if (!a.jitters() && a.cutout == 0 && !a.mixes())
        exec_.for_each_2d(n * height, width, CropFlipNormalize<T, kPadding>{pixels, drawn, ptr<T>(batch)},
                          channels * 2);
      else
        exec_.for_each_2d(n * height, width, AugmentPixels<T, kPadding>{pixels, drawn, ptr<T>(batch), a.jitters()},
                          channels * (a.jitters() ? 32 : 8));
    });
  }
  static int64_t pixels(const Tensor& t) { return t.dim(0) * t.dim(1) * t.dim(2); }
  static WindowShape shape(const Tensor& in, const Tensor& out, Window w) {
    return {in.dim(1), in.dim(2), in.dim(3), out.dim(1), out.dim(2), w.height, w.width, w.stride, w.pad};
  }
  static ShortcutShape shortcut_shape(const Tensor& in, const Tensor& out, int stride) {
    return {in.dim(1), in.dim(2), in.dim(3), out.dim(1), out.dim(2), out.dim(3), stride, (out.dim(3) - in.dim(3)) / 2};
  }
  static GroupShape group_shape(const Tensor& x, int groups) {
    return {x.rank() == 4 ? x.dim(1) * x.dim(2) : 1, x.dim(-1), groups};
  }
};

}  // namespace linnet
