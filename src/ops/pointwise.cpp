#include "checks.h"

namespace linnet {

Tensor unary(Pass& p, const Tensor& x, const Unary& op) {
  Tensor y = p.pool.empty(x.shape(), x.dtype());
  p.be.unary(op, y, x);
  if (!p.tape) return y;
  return p.tape->track(y, {"activation"}, [&be = p.be, &pool = p.pool, tape = p.tape, x, y, op](const Tensor& dy) {
    Tensor dx = pool.empty(x.shape(), x.dtype());
    be.unary_grad(op, dx, dy, x, y);
    tape->add_grad(x, std::move(dx));
  });
}

Tensor add(Pass& p, const Tensor& a, const Tensor& b) {
  require(a.shape() == b.shape() && a.dtype() == b.dtype(),
          "[add] expected two tensors alike, got {} of {} and {} of {}", a.shape(), name_of(a.dtype()), b.shape(),
          name_of(b.dtype()));
  Tensor y = p.pool.empty(a.shape(), a.dtype());
  p.be.add(y, a, b);
  if (!p.tape) return y;
  return p.tape->track(y, {"add"}, [tape = p.tape, a, b](const Tensor& dy) {
    tape->add_grad(a, dy);
    tape->add_grad(b, dy);
  });
}

Tensor flatten(Pass& p, const Tensor& x) {
  require(x.rank() >= 2, "[flatten] expected [n,...], got {}", x.shape());
  const Tensor y = x.reshape({x.dim(0), x.dim(0) ? x.numel() / x.dim(0) : 0});
  if (!p.tape) return y;
  return p.tape->track(y, {"flatten"},
                       [tape = p.tape, x](const Tensor& dy) { tape->add_grad(x, dy.reshape(x.shape())); });
}

Tensor dropout(Pass& p, const Tensor& x, float probability, uint32_t layer) {
  require(probability >= 0 && probability < 1, "[dropout] expected a probability in [0, 1), got {}", probability);
  if (!p.train || probability == 0) return x;
  require(bool(p.step), "[dropout] needs Pass::step: its random numbers depend on the step");
  Tensor y = p.pool.empty(x.shape(), x.dtype());
  layer += p.batch << 16;
  p.be.dropout(y, x, probability, layer, p.step);
  if (!p.tape) return y;
  return p.tape->track(
      y, {"dropout"},
      [&be = p.be, &pool = p.pool, tape = p.tape, x, probability, layer, step = p.step](const Tensor& dy) {
        Tensor dx = pool.empty(x.shape(), x.dtype());
        be.dropout(dx, dy, probability, layer, step);
        tape->add_grad(x, std::move(dx));
      });
}

}  // namespace linnet
