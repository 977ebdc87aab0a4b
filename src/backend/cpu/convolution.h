// Convolutions on the CPU through oneDNN. The batch is cut into a fixed number of chunks, each computed by one thread
// with a single-threaded primitive; partial weight gradients are added in a fixed tree. oneDNN's own threading would
// change the bits of backward-weights with the number of threads; this does not, and it is as fast.
#pragma once
#include <memory>

#include "linnet/backend.h"
#include "linnet/threads.h"

namespace linnet {

class Convolutions {
 public:
  explicit Convolutions(ThreadPool&);
  ~Convolutions();
  void forward(const Tensor& y, const Tensor& x, const Tensor& w, Conv);
  void backward_data(const Tensor& dx, const Tensor& dy, const Tensor& w, Conv);
  void backward_weight(const Tensor& dw, const Tensor& dy, const Tensor& x, Conv);
  // c [m,n] = op(a) op(b), summed in f32: chunks of c's rows.
  void matmul(const Tensor& c, const Tensor& a, bool ta, const Tensor& b, bool tb);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace linnet
