// Reverse-mode differentiation. Ops record themselves in creation order, which is a topological order already, so
// backward is a loop over a vector in reverse, freeing as it goes.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "linnet/backend.h"
#include "linnet/pool.h"

namespace linnet {

struct Param;

// What made a tensor: the op and one of its parameters, if it has any.
struct Op {
  const char* name;
  const Param* param = nullptr;
};

class Tape {
 public:
  using Backward = std::function<void(const Tensor& dy)>;

  Tape(Backend& backend, Pool& pool) : backend_(backend), pool_(pool) {}

  // A tensor whose gradient is wanted although no op made it (an input; tests).
  Tensor leaf(Tensor x);
  // Records that op made y. `backward` gets dy once, when all users of y have added theirs.
  Tensor track(Tensor y, Op op, Backward backward);
  // Called with every result as it is recorded, to look at it; empty: nobody looks.
  using Watcher = std::function<void(const Tensor& y, Op op)>;
  void watch(Watcher watcher) { watcher_ = std::move(watcher); }
  bool watched() const { return watcher_ != nullptr; }  // then every result has to be there (in bf16: rounded)
  // Called in backward with every result's gradient, complete, before its op gets it; `var` is the result's
  // Tensor::var.
  using GradientWatcher = std::function<void(int64_t var, const Tensor& dy)>;
  void watch_gradients(GradientWatcher watcher) { gradient_watcher_ = std::move(watcher); }
  bool gradients_watched() const { return gradient_watcher_ != nullptr; }  // then none may be left to the next op

  // What an op's backward calls for each of its inputs. The first writer moves in, later ones add; a constant (var -1)
  // is left out. An addition is done in place only by the sole owner of the memory: `add` hands one dy to both its
  // inputs.
  void add_grad(const Tensor& x, Tensor dx);
  // For a parameter: write(dw) overwrites dw. The first use since begin_step writes into the flat gradient itself.
  void add_grad(const Param& p, const std::function<void(const Tensor& dw)>& write);
  // The gradient that x has so far, for an op that adds its own to it while it computes it, in place, and then calls
  // add_grad with the sum. Empty if there is none, or if somebody else holds its memory, too.
  Tensor take_grad(const Tensor& x);
  // Whether anybody wants the gradient of x; if not, an op need not compute it.
  static bool wants(const Tensor& x) { return x.var >= 0; }
  // Whether x was recorded last. An op that is recorded now is then its first user, so the last to add to its gradient:
  // what it adds makes that whole.
  bool is_newest(const Tensor& x) const { return wants(x) && x.var == first_ + int64_t(grads_.size()) - 1; }

  // Forgets everything recorded and starts a new sum of parameter gradients. backward() may run several times before
  // the update: gradients accumulate.
  void begin_step();
  // Zeroes the gradients of parameters that no backward reached, so that the flat buffer is whole.
  void end_step(const std::vector<Param*>& all);

  // Differentiates y with respect to everything recorded, starting from dy; empties the tape.
  void backward(const Tensor& y, Tensor dy);
  // The gradient that backward left for a leaf; empty if nothing reached it.
  Tensor grad(const Tensor& leaf) const;

 private:
  size_t slot(const Tensor& x) const;
  struct Node {
    int64_t var;
    Backward backward;
  };
  Backend& backend_;
  Pool& pool_;
  std::vector<Node> nodes_;
  int64_t first_ = 0;          // the first var of this step: vars are never used again, so a stale tensor is seen
  std::vector<Tensor> grads_;  // by var - first_
  std::vector<char> written_;  // by Param::index, since begin_step
  Watcher watcher_;
  GradientWatcher gradient_watcher_;
};

// What every forward needs, passed explicitly: no global mode, no hidden state.
struct Pass {
  Backend& be;
  Pool& pool;
  Tape* tape = nullptr;  // null: inference, nothing is recorded
  bool train = false;    // batch statistics and dropout
  Tensor step = {};      // StepMemory on the device; needed by dropout only
  uint32_t batch = 0;    // which of the step's batches this is: each has dropout masks of its own
  // What the last convolution knows of its result: Tensor::var, conv_forward's moments, and what its backward pass
  // would do for the batch norm that follows (null: nothing).
  struct {
    int64_t var = -1;
    Tensor value;
    std::shared_ptr<OutputBn> norm;
  } moments = {};
  // And the other way round: the last batch norm with a ReLU, for the backward pass of a convolution that follows.
  struct {
    int64_t var = -1;
    std::shared_ptr<InputBn> value;
  } norm = {};
  bool explain = false;  // gradients of a net in evaluation mode, of inputs only: batch norm's parameters get none
};

}  // namespace linnet
