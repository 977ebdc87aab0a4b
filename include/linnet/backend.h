// THE SEAM. Everything above it (ops, layers, trainer) is the same for every device; everything below it is one folder
// in src/backend/. Signatures are fused on paper (batch norm + residual add + ReLU is one call): a backend may fuse or
// compose.
//
// Contracts that hold for every call:
//   - outputs are overwritten, never accumulated into; only the tape adds gradients;
//   - outputs do not overlap inputs unless the comment says "may be in place";
//   - the caller (src/ops) has checked shapes and types;
//   - a call may return before the work is done; upload, download and synchronize wait.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/augment.h"
#include "kernels/pointwise.h"
#include "kernels/update.h"
#include "linnet/tensor.h"

namespace linnet {

struct Conv {
  int stride = 1, pad = 0;
};
struct Window {
  int height = 2, width = 2, stride = 2, pad = 0;
};
struct Bn {
  float eps = 1e-5f, momentum = 0.1f;
  bool relu = false;  // y = max(0, bn(x) + residual)
};
struct BnState {  // each [channels], f32
  Tensor scale, bias, mean, var;
};
// A batch norm with a ReLU whose result is the input of a convolution. Its backward pass begins with sums over that
// result's gradient g (behind the ReLU), which conv_backward has at hand.
struct InputBn {
  Tensor x, saved;  // what bn_forward read and kept
  Tensor sums;      // [2, channels] f64: of g, and of g (x - mean)
  // false: its result was never written; the convolution, whose x is this one, makes it as it reads (in bf16 without
  // the rounding that writing it is), and sums must be had from it.
  bool applied = true;
};
// A batch norm whose input is the result y of a convolution. Its backward pass ends with a sum of three terms, which
// conv_backward can add up as it reads them: the gradient of y is a g + b (y - mean) + c, per channel.
struct OutputBn {
  Tensor y;
  Tensor factors;  // [4, channels] f32: a, b, mean, c
};

using Unary = std::variant<Relu, LeakyRelu, Sigmoid, Tanh, Silu, Gelu>;

// All trainable numbers in one buffer, one segment per parameter group; in each the n_decay first ones take weight
// decay. Frozen parameters come last and belong to no segment.
struct Segment {
  int64_t begin = 0, n = 0, n_decay = 0;
  int64_t n_matrix = 0;  // the first so many belong to weights of products
};
// A weight of a product within the flat buffers, as [rows, columns]: outputs by all the rest.
struct Matrix {
  int64_t offset, rows, columns;
  bool decays;
};
struct MuonMemory {  // for the largest matrix, f32
  Tensor x, y;       // [rows * columns]
  Tensor a, b;       // [min(rows, columns)^2]
  Tensor norm;       // [1]
};
struct Flat {
  Tensor master;   // [n] f32
  Tensor compute;  // [n] bf16 or fp16: the masters rounded; empty where products are f32
  Tensor grad;     // [n] f32
  Tensor slots;    // [slots, n] f32: the optimizer's state
  Tensor buffers;  // [m] f32: running statistics
  std::vector<Segment> segments;
  int64_t n = 0, n_trainable = 0;
};

// One data set, resident on the device, and how a batch is made from it.
struct BatchSource {
  Tensor images;  // [count, height, width, channels] u8
  Tensor labels;  // [count] i32
  Tensor order;   // [m] i32: the epoch's samples, in order
  Tensor table;   // [256, channels] f32: the normalised value of each byte
  Augment augment;
  View view;
};

// What the rows of a batch are: share * onehot(label) + (1 - share) * onehot(partner), or onehot(label) where there are
// no partners.
struct Target {
  Tensor label;                                        // [n] i32; -1: the row does not count
  Tensor partner, share;                               // [n] i32 and [n] f32 in [0, 1]; empty unless samples are mixed
  Target(Tensor labels) : label(std::move(labels)) {}  // NOLINT: plain labels are a target
  Target(Tensor labels, Tensor partners, Tensor shares)
      : label(std::move(labels)), partner(std::move(partners)), share(std::move(shares)) {}
};

// A step that can be run again: CPU calls the function, CUDA replays one captured graph.
struct Replay {
  virtual ~Replay() = default;
  virtual void run() = 0;
};

// What memory is asked for, while one of these lives: an error says who has how much. A string literal.
class MemoryFor {
 public:
  explicit MemoryFor(const char* what) : before_(current_) { current_ = what; }
  ~MemoryFor() { current_ = before_; }
  MemoryFor(const MemoryFor&) = delete;
  static const char* current() { return current_; }

 private:
  static thread_local const char* current_;
  const char* before_;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual Device device() const = 0;
  // For `linnet info`, env.json and the first line of a run: ("threads", "2"), ("oneDNN", "2.6.3"), ...
  virtual std::vector<std::pair<std::string, std::string>> info() const = 0;
  // The type of activations, f32 or bf16, in which training is fastest here: train.precision = "auto".
  virtual DType best_precision() const { return DType::f32; }
  // What was chosen by timing so far, as one line of text; a resumed run gives it back before its first step, and the
  // same is chosen again. Empty: nothing is chosen.
  virtual std::string choices() const { return ""; }
  virtual void set_choices(const std::string&) {}
  // What has been done so far. In the steady state of training neither `allocations` nor `waits` grows.
  struct Counters {
    int64_t allocations = 0;  // pieces of memory asked of the system
    int64_t waits = 0;        // the host waited for the device
    int64_t launches = 0;     // kernels of kernels/, or what stands for them on the CPU
  };
  virtual Counters counters() const { return {}; }

  // -- memory. Sizes in bytes; memory is aligned to 64 bytes and uninitialised. Error(Exit::device) when there is none
  // left.
  virtual std::shared_ptr<Block> allocate(size_t bytes) = 0;
  virtual void upload(const Tensor& dst, const void* host) = 0;  // dst.bytes() from host memory
  virtual void download(void* host, const Tensor& src) = 0;      // src.bytes() to host memory; waits for src
  virtual void copy(const Tensor& dst, const Tensor& src) = 0;   // same shape and type
  virtual void zero(const Tensor& dst) = 0;
  virtual void synchronize() = 0;
  virtual std::unique_ptr<Replay> capture(std::function<void()> step) = 0;

  // -- vendor libraries: oneDNN, or cuDNN and cuBLAS
  // y [n,oh,ow,k] = x [n,h,w,c] * w [k,r,s,c]. x, y and w (a parameter's `compute`) are f32 or 16-bit alike, dw is f32;
  // sums are f32 or better. moments [2,k] f64 (may be null) is for a batch norm of y: whoever has each channel's mean
  // and its sum of squared deviations from it at hand writes them and returns true; others return false.
  virtual bool conv_forward(const Tensor& y, const Tensor& x, const Tensor& w, Conv, const Tensor* moments) = 0;
  // The same of relu(bn(x)), which is made as x is read, from what bn_forward left in `saved`. Only where
  // takes_unapplied_bn, which says so for this x and w [k,r,s,c].
  virtual bool conv_of_bn_forward(const Tensor& /*y*/, const Tensor& /*x*/, const Tensor& /*saved*/,
                                  const Tensor& /*w*/, Conv, const Tensor* /*moments*/) {
    fail(Exit::failure, "[conv2d] this backend takes no batch norm that was not applied");
  }
  virtual bool takes_unapplied_bn(const Tensor& /*x*/, const Shape& /*w*/, Conv) const { return false; }
  virtual void conv_backward_data(const Tensor& dx, const Tensor& dy, const Tensor& w, Conv) = 0;
  virtual void conv_backward_weight(const Tensor& dw, const Tensor& dy, const Tensor& x, Conv) = 0;
  // Both at once, for they read the same dy. plus (may be null, may be dx) is added to dx: a gradient that x has
  // already. input (may be null) is for the batch norm that made x: whoever has each pixel of dx at hand puts it behind
  // the ReLU's mask, writes input->sums and returns true; others return false. output (null, unless
  // takes_output_bn): dy is its g.
  virtual bool conv_backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w,
                             Conv, const Tensor* plus, const InputBn* input, const OutputBn* output) = 0;
  // Whether conv_backward may be given an OutputBn for this x and w [k,r,s,c].
  virtual bool takes_output_bn(const Tensor& /*x*/, const Shape& /*w*/, Conv) const { return false; }
  // Over all but the last extent. train: batch statistics, running ones updated (unbiased variance), `saved` [4,
  // channels] f32 gets mean and 1/sqrt(var + eps) for backward; its other two rows are for what the backend likes to
  // keep. moments (may be null) are those of x, from conv_forward. y may be empty: it is left to conv_of_bn_forward.
  // Otherwise: running statistics, `saved` may be empty.
  virtual void bn_forward(const Tensor& y, const Tensor& saved, const Tensor& x, const Tensor* residual, const BnState&,
                          Bn, bool train, const Tensor* moments) = 0;
  // dresidual (may be null) gets dy behind the ReLU's mask, which is taken from y (or from x, of which y was made). One
  // of dx and dresidual may be dy: in place. Train mode's gradients. sums (may be null) are InputBn's, from
  // conv_backward: dy is behind the mask already, and dresidual is null. factors (may be null; only with sums) are
  // OutputBn's: they are written, and dx, which is left to conv_backward, is not.
  virtual void bn_backward(const Tensor& dx, const Tensor* dresidual, const Tensor& dscale, const Tensor& dbias,
                           const Tensor& dy, const Tensor& x, const Tensor& y, const Tensor& saved, const Tensor& scale,
                           Bn, const Tensor* sums, const Tensor* factors) = 0;
  // Evaluation in one: y = bn(conv(x)) with running statistics (+ residual, which may be null), then the ReLU if asked
  // for. Whoever can writes y and returns true.
  virtual bool conv_bn(const Tensor& /*y*/, const Tensor& /*x*/, const Tensor& /*w*/, Conv, const Tensor* /*residual*/,
                       const BnState&, Bn) {
    return false;
  }
  // c [m,n] = op(a) op(b), row-major; ta/tb: the matrix is stored transposed. a and b are f32 or 16-bit alike, and so
  // is c, or c is f32 where they are 16-bit.
  virtual void matmul(const Tensor& c, const Tensor& a, bool ta, const Tensor& b, bool tb) = 0;

  // -- functors of kernels/, launched by SharedBackend<Exec>
  virtual void cast(const Tensor& y, const Tensor& x) = 0;  // between f32, bf16 and fp16
  virtual void unary(const Unary&, const Tensor& y, const Tensor& x) = 0;
  virtual void unary_grad(const Unary&, const Tensor& dx, const Tensor& dy, const Tensor& x, const Tensor& y) = 0;
  virtual void add(const Tensor& y, const Tensor& a, const Tensor& b) = 0;            // y may be a: in place
  virtual void scale_by(const Tensor& y, const Tensor& x, const Tensor& factor) = 0;  // factor [1] f32; may be in place
  virtual void bias_add(const Tensor& y, const Tensor& x, const Tensor& bias) = 0;    // x [m,n]; may be in place
  virtual void bias_grad(const Tensor& dbias, const Tensor& dy) = 0;
  virtual void max_pool(const Tensor& y, const Tensor& where, const Tensor& x, Window) = 0;
  virtual void max_pool_grad(const Tensor& dx, const Tensor& dy, const Tensor& where, Window) = 0;
  virtual void avg_pool(const Tensor& y, const Tensor& x, Window) = 0;
  virtual void avg_pool_grad(const Tensor& dx, const Tensor& dy, Window) = 0;
  virtual void shortcut(const Tensor& y, const Tensor& x, int stride) = 0;
  virtual void shortcut_grad(const Tensor& dx, const Tensor& dy, int stride) = 0;
  virtual void dropout(const Tensor& y, const Tensor& x, float p, uint32_t layer, const Tensor& step) = 0;
  virtual void group_norm(const Tensor& y, const Tensor& saved, const Tensor& x, const Tensor& scale,
                          const Tensor& bias, int groups, float eps) = 0;
  virtual void group_norm_grad(const Tensor& dx, const Tensor& dscale, const Tensor& dbias, const Tensor& dy,
                               const Tensor& x, const Tensor& scale, const Tensor& saved, int groups) = 0;
  // loss [1] = scale * sum of row losses; stats [m,2] f32: loss, 1 if the largest logit is that of the label with the
  // larger share; dlogits carries scale.
  virtual void softmax_loss(const Tensor& loss, const Tensor& stats, const Tensor& dlogits, const Tensor& logits,
                            const Target&, float smoothing, float scale) = 0;
  virtual void mse_loss(const Tensor& loss, const Tensor& dx, const Tensor& x, const Tensor& target) = 0;
  virtual void accumulate(const Tensor& totals,
                          const Tensor& stats) = 0;  // totals [k] f64 += column sums of stats [m,k]
  // Fills batch [n,h,w,c] and its target with the samples order[step.first + offset ...]; draws [n,kDrawWords] i32
  // tells what was drawn. The target needs partner and share if the source's augment.mixes().
  virtual void make_batch(const Tensor& batch, const Target&, const Tensor& draws, const BatchSource&,
                          const Tensor& step, int64_t offset) = 0;

  // -- the end of a step (kernels/update.h). `step` holds StepMemory: parameters from the host, results for it.
  // Norm, clip factor and whether the step is good; grad [n_trainable], buffers [m] or null: the new running
  // statistics, sums [2] f64: the step's loss and correct count.
  virtual void judge_step(const Tensor& step, const Tensor& grad, const Tensor* buffers, const Tensor& sums, Clip) = 0;
  virtual void shift(const Rule&, const Flat&, int segment, const Tensor& step) = 0;
  virtual void update(const Rule&, const Flat&, int segment, Clip, const Tensor& step) = 0;
  // One matrix under Muon; update() with a Muon rule is for what is no matrix.
  virtual void muon(const Muon&, const Flat&, const Matrix&, int segment, Clip, const MuonMemory&,
                    const Tensor& step) = 0;
  virtual void lookahead(const Lookahead&, const Tensor& w, const Tensor& slow, const Tensor& step) = 0;
  virtual void moving_average(const Tensor& average, const Tensor& value, double decay, const Tensor& step) = 0;
  // buffers [m], good [m]: their last good values; totals [3] f64 += sums and the number of images, if the step is
  // good.
  virtual void commit(const Tensor& buffers, const Tensor& good, const Tensor& totals, const Tensor& sums,
                      int64_t images, const Tensor& step) = 0;
};

// What a CPU convolves with: own Winograd kernels wherever they can compute it, oneDNN's direct sum everywhere, or
// whichever is faster.
enum class ConvMethod { fastest, direct, winograd };

// How a backend computes where it has a choice; all but the first line is a GPU's.
struct BackendOptions {
  ConvMethod conv = ConvMethod::fastest;
  bool tf32 = false;          // f32 products may round their operands to 10 bits
  bool deterministic = true;  // only convolutions that give the same bits every time
  bool autotune = false;      // time the allowed ones, once; otherwise the first that is offered
};
// "cpu" or "cuda"; "auto" takes a GPU when there is a usable one; "check" is cuda with every result compared with the
// cpu's. Error(Exit::device) says why a GPU cannot be had.
std::unique_ptr<Backend> make_backend(const std::string& name, const BackendOptions& = {});

// A tensor for StepMemory on `backend`, and its parts. The last steps are read in their order, at most kTraceSteps.
Tensor make_step(Backend&);
void write_step(Backend&, const Tensor& step, const StepParams&);
StepResult read_step(Backend&, const Tensor& step);
void write_result(Backend&, const Tensor& step, const StepResult&);
std::vector<StepTrace> read_trace(Backend&, const Tensor& step);
void write_trace(Backend&, const Tensor& step, const std::vector<StepTrace>&);

}  // namespace linnet
