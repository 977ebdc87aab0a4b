#include "checks.h"

namespace linnet {

namespace {
Shape pooled_shape(const char* op, const Tensor& x, Window w) {
  require_nhwc(op, x);
  require(2 * w.pad <= w.height && 2 * w.pad <= w.width, "[{}] expected padding of at most half the window, got {}", op,
          w.pad);
  return {x.dim(0), window_extent(op, x.dim(1), w.height, w.stride, w.pad),
          window_extent(op, x.dim(2), w.width, w.stride, w.pad), x.dim(3)};
}
}  // namespace

Tensor max_pool(Pass& p, const Tensor& x, Window window) {
  Tensor y = p.pool.empty(pooled_shape("max_pool", x, window), x.dtype());
  Tensor where = p.pool.empty(y.shape(), DType::i32);
  p.be.max_pool(y, where, x, window);
  if (!p.tape) return y;
  return p.tape->track(y, {"max_pool"},
                       [&be = p.be, &pool = p.pool, tape = p.tape, x, where, window](const Tensor& dy) {
                         Tensor dx = pool.empty(x.shape(), x.dtype());
                         be.max_pool_grad(dx, dy, where, window);
                         tape->add_grad(x, std::move(dx));
                       });
}

Tensor avg_pool(Pass& p, const Tensor& x, Window window) {
  Tensor y = p.pool.empty(pooled_shape("avg_pool", x, window), x.dtype());
  p.be.avg_pool(y, x, window);
  if (!p.tape) return y;
  return p.tape->track(y, {"avg_pool"}, [&be = p.be, &pool = p.pool, tape = p.tape, x, window](const Tensor& dy) {
    Tensor dx = pool.empty(x.shape(), x.dtype());
    be.avg_pool_grad(dx, dy, window);
    tape->add_grad(x, std::move(dx));
  });
}

Tensor global_avg_pool(Pass& p, const Tensor& x) {
  require_nhwc("global_avg_pool", x);
  return flatten(p, avg_pool(p, x, {int(x.dim(1)), int(x.dim(2)), 1, 0}));
}

Tensor shortcut(Pass& p, const Tensor& x, int stride, int64_t channels) {
  require_nhwc("shortcut", x);
  require(stride > 0 && channels >= x.dim(3) && (channels - x.dim(3)) % 2 == 0,
          "[shortcut] cannot pad {} channels evenly to {} with stride {}", x.dim(3), channels, stride);
  Tensor y =
      p.pool.empty({x.dim(0), (x.dim(1) + stride - 1) / stride, (x.dim(2) + stride - 1) / stride, channels}, x.dtype());
  p.be.shortcut(y, x, stride);
  if (!p.tape) return y;
  return p.tape->track(y, {"shortcut"}, [&be = p.be, &pool = p.pool, tape = p.tape, x, stride](const Tensor& dy) {
    Tensor dx = pool.empty(x.shape(), x.dtype());
    be.shortcut_grad(dx, dy, stride);
    tape->add_grad(x, std::move(dx));
  });
}

}  // namespace linnet
