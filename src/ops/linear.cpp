#include "checks.h"

namespace linnet {

Tensor linear(Pass& p, const Tensor& x, const Param& w, const Param& bias) {
  require(w.shape.rank() == 2, "[linear] expected a weight [out,in], got {}", w.shape);
  require(x.rank() == 2 && x.dim(1) == w.shape[1], "[linear] expected input [n,{}], got {}", w.shape[1], x.shape());
  require(bias.shape == Shape{w.shape[0]}, "[linear] expected a bias [{}], got {}", w.shape[0], bias.shape);
  Tensor y = p.pool.empty({x.dim(0), w.shape[0]}, x.dtype());
  p.be.matmul(y, x, false, w.compute, true);
  p.be.bias_add(y, y, bias.master);
  if (!p.tape) return y;
  return p.tape->track(y, {"linear", &w}, [&be = p.be, &pool = p.pool, tape = p.tape, x, &w, &bias](const Tensor& dy) {
    tape->add_grad(w, [&](const Tensor& dw) { be.matmul(dw, dy, true, x, false); });
    tape->add_grad(bias, [&](const Tensor& db) { be.bias_grad(db, dy); });
    if (!Tape::wants(x)) return;
    Tensor dx = pool.empty(x.shape(), x.dtype());
    be.matmul(dx, dy, false, w.compute, false);
    tape->add_grad(x, std::move(dx));
  });
}

}  // namespace linnet
