#include "checks.h"

namespace linnet {

Loss softmax_cross_entropy(Pass& p, const Tensor& logits, const Target& target, float smoothing, float scale) {
  require(logits.rank() == 2 && logits.dim(1) >= 2, "[softmax_cross_entropy] expected logits [n,classes], got {}",
          logits.shape());
  const auto require_rows = [&](const char* what, const Tensor& t, DType dtype) {
    require(t.shape() == Shape{logits.dim(0)} && t.dtype() == dtype,
            "[softmax_cross_entropy] expected {} [{}] of {}, got {} of {}", what, logits.dim(0), name_of(dtype),
            t.shape(), name_of(t.dtype()));
  };
  require_rows("labels", target.label, DType::i32);
  if (target.partner || target.share) {
    require_rows("partner labels", target.partner, DType::i32);
    require_rows("shares", target.share, DType::f32);
  }
  require(smoothing >= 0 && smoothing < 1, "[softmax_cross_entropy] expected label smoothing in [0, 1), got {}",
          smoothing);
  Tensor loss = p.pool.empty({1}, DType::f32);
  Tensor stats = p.pool.empty({logits.dim(0), 2}, DType::f32);
  Tensor dlogits = p.pool.empty(logits.shape(), logits.dtype());  // costs next to nothing beside the exponentials
  p.be.softmax_loss(loss, stats, dlogits, logits, target, smoothing, scale);
  if (!p.tape) return {loss, stats};
  loss = p.tape->track(loss, {"softmax_cross_entropy"},
                       [&be = p.be, &pool = p.pool, tape = p.tape, logits, dlogits](const Tensor& dloss) {
                         Tensor dx = pool.empty(logits.shape(), logits.dtype());
                         be.scale_by(dx, dlogits, dloss);
                         tape->add_grad(logits, std::move(dx));
                       });
  return {loss, stats};
}

Tensor mse_loss(Pass& p, const Tensor& x, const Tensor& target) {
  require(x.shape() == target.shape() && x.dtype() == target.dtype(),
          "[mse_loss] expected a target like {} of {}, got {} of {}", x.shape(), name_of(x.dtype()), target.shape(),
          name_of(target.dtype()));
  Tensor loss = p.pool.empty({1}, DType::f32);
  Tensor slope = p.pool.empty(x.shape(), x.dtype());
  p.be.mse_loss(loss, slope, x, target);
  if (!p.tape) return loss;
  return p.tape->track(loss, {"mse_loss"}, [&be = p.be, &pool = p.pool, tape = p.tape, x, slope](const Tensor& dloss) {
    Tensor dx = pool.empty(x.shape(), x.dtype());
    be.scale_by(dx, slope, dloss);
    tape->add_grad(x, std::move(dx));
  });
}

}  // namespace linnet
