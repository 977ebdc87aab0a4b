#include "checks.h"

namespace linnet {

Shape conv2d_shape(const Tensor& x, const Param& w, Conv conv) {
  require_nhwc("conv2d", x);
  require(w.shape.rank() == 4, "[conv2d] expected a weight [out,kernel_h,kernel_w,in], got {}", w.shape);
  require(x.dim(3) == w.shape[3], "[conv2d] expected NHWC input with {} channels, got {}", w.shape[3], x.shape());
  const int64_t oh = window_extent("conv2d", x.dim(1), w.shape[1], conv.stride, conv.pad);
  const int64_t ow = window_extent("conv2d", x.dim(2), w.shape[2], conv.stride, conv.pad);
  return {x.dim(0), oh, ow, w.shape[0]};
}

Tensor conv2d(Pass& p, const Tensor& x, const Param& w, Conv conv) {
  Tensor y = p.pool.empty(conv2d_shape(x, w, conv), x.dtype());
  Tensor moments = p.tape && p.train ? p.pool.empty({2, w.shape[0]}, DType::f64) : Tensor();
  const std::shared_ptr<InputBn> norm =
      p.tape && p.norm.var == x.var && p.tape->is_newest(x) && !p.tape->gradients_watched()
          ? std::exchange(p.norm.value, {})
          : nullptr;
  const Tensor* const wanted = moments ? &moments : nullptr;
  const bool known = norm && !norm->applied ? p.be.conv_of_bn_forward(y, x, norm->saved, w.compute, conv, wanted)
                                            : p.be.conv_forward(y, x, w.compute, conv, wanted);
  if (!known) moments = {};
  if (!p.tape) return y;
  const auto output =
      p.train && p.be.takes_output_bn(x, w.shape, conv) && Tape::wants(x) ? std::make_shared<OutputBn>() : nullptr;
  y = p.tape->track(
      y, {"conv2d", &w}, [&be = p.be, &pool = p.pool, tape = p.tape, x, &w, conv, norm, output](const Tensor& dy) {
        if (!Tape::wants(x))  // the first layer: nobody asks for the gradient of an image
          return tape->add_grad(w, [&](const Tensor& dw) { be.conv_backward_weight(dw, dy, x, conv); });
        const Tensor so_far = tape->take_grad(x);  // of a residual's other branch
        Tensor dx = so_far ? so_far : pool.empty(x.shape(), x.dtype());
        InputBn* const input = norm && !tape->grad(x) ? norm.get() : nullptr;  // not if more is added to dx behind it
        if (input) input->sums = pool.empty({2, x.dim(3)}, DType::f64);
        bool summed = false;
        tape->add_grad(w, [&](const Tensor& dw) {
          summed = be.conv_backward(dx, dw, dy, x, w.compute, conv, so_far ? &so_far : nullptr, input,
                                    output && output->factors ? output.get() : nullptr);
        });
        require(!norm || norm->applied || summed, "[conv2d] the batch norm before it was left to it, and is not done");
        if (input && !summed) input->sums = {};
        tape->add_grad(x, std::move(dx));
      });
  p.moments = {y.var, std::move(moments), output};
  return y;
}

}  // namespace linnet
