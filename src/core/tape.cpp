#include "linnet/tape.h"

#include <utility>

#include "linnet/param.h"

namespace linnet {

Tensor Tape::leaf(Tensor x) {
  x.var = first_ + int64_t(grads_.size());
  grads_.emplace_back();
  return x;
}

Tensor Tape::track(Tensor y, Op op, Backward backward) {
  y = leaf(std::move(y));
  if (watcher_) watcher_(y, op);
  nodes_.push_back({y.var, std::move(backward)});
  return y;
}

size_t Tape::slot(const Tensor& x) const {
  require(x.var >= first_ && x.var - first_ < int64_t(grads_.size()),
          "[tape] this tensor was recorded before begin_step; run forward again");
  return size_t(x.var - first_);
}

void Tape::add_grad(const Tensor& x, Tensor dx) {
  if (!wants(x)) return;
  require(dx.shape() == x.shape(), "[tape] expected a gradient of shape {}, got {}", x.shape(), dx.shape());
  dx.var = -1;
  Tensor& sum = grads_[slot(x)];
  if (!sum) {
    sum = std::move(dx);
  } else if (sum.sole_owner()) {
    backend_.add(sum, sum, dx);
  } else {
    Tensor fresh = pool_.empty(sum.shape(), sum.dtype());
    backend_.add(fresh, sum, dx);
    sum = std::move(fresh);
  }
}

Tensor Tape::take_grad(const Tensor& x) {
  if (!wants(x)) return {};
  Tensor& sum = grads_[slot(x)];
  return sum && sum.sole_owner() ? std::exchange(sum, {}) : Tensor();
}

void Tape::add_grad(const Param& p, const std::function<void(const Tensor& dw)>& write) {
  if (written_.size() <= p.index) written_.resize(p.index + 1, 0);
  if (!written_[p.index]) {
    written_[p.index] = 1;
    write(p.grad);
    return;
  }
  Tensor more = pool_.empty(p.shape, DType::f32);
  write(more);
  backend_.add(p.grad, p.grad, more);
}

void Tape::begin_step() {
  nodes_.clear();
  first_ += int64_t(grads_.size());
  grads_.clear();
  written_.assign(written_.size(), 0);
}

void Tape::end_step(const std::vector<Param*>& all) {
  for (const Param* p : all)
    if (p->index >= written_.size() || !written_[p->index]) backend_.zero(p->grad);
}

void Tape::backward(const Tensor& y, Tensor dy) {
  require(wants(y), "[tape] backward needs a result that was recorded; run forward with Pass::tape set");
  for (Tensor& g : grads_) g = {};  // what an earlier backward left for its leaves
  add_grad(y, std::move(dy));
  while (!nodes_.empty()) {
    Node node = std::move(nodes_.back());
    nodes_.pop_back();  // when `node` goes, so does what its closure kept for backward
    if (Tensor g = std::move(grads_[size_t(node.var - first_)]); g) {
      if (gradient_watcher_) gradient_watcher_(node.var, g);
      node.backward(g);
    }
  }
}

Tensor Tape::grad(const Tensor& leaf) const { return wants(leaf) ? grads_[slot(leaf)] : Tensor(); }

}  // namespace linnet
