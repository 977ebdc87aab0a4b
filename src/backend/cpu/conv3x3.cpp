#include "conv3x3.h"

#include <algorithm>
#include <cstring>

#include "kernels/norm.h"

namespace linnet {

namespace {

Conv3x3Shape shape_of(const Tensor& x, const Tensor& w) { return {x.dim(0), x.dim(1), x.dim(2), w.dim(3), w.dim(0)}; }

// The sums that are asked for in an InputBn: each piece of the tiles has its own, which are added up in order.
class InputSums {
 public:
  // y: the batch norm's result. memory: of floats(...). input: null if nothing is asked for.
  InputSums(const InputBn* input, const Tensor& y, int64_t pieces, float* memory)
      : input_(input), y_(y.raw()), channels_(y.dim(3)), pieces_(pieces), sums_(reinterpret_cast<double*>(memory)) {}
  static int64_t floats(const Tensor& y, int64_t pieces) { return pieces * 2 * y.dim(3) * 2; }

  // call(what the kernel gets for this piece)
  template <class Call>
  void of_piece(int64_t piece, const Call& call) const {
    if (!input_) return call(nullptr);
    double* const own = sums_ + piece * 2 * channels_;
    std::fill_n(own, 2 * channels_, 0.0);
    const float* const saved = input_->saved.data<float>();  // mean, 1/std, a, b
    const Conv3x3InputBn of_kernel{input_->x.raw(),       input_->applied ? y_ : nullptr, saved,
                                   saved + 2 * channels_, saved + 3 * channels_,          own,
                                   own + channels_};
    call(&of_kernel);
  }
  void add_up() const {
    if (!input_) return;
    double* const all = input_->sums.data<double>();
    std::fill_n(all, 2 * channels_, 0.0);
    for (int64_t i = 0; i < pieces_ * 2 * channels_; ++i) all[i % (2 * channels_)] += sums_[i];
  }

 private:
  const InputBn* input_;
  const void* y_;
  int64_t channels_, pieces_;
  double* sums_;
};

// What a convolution makes of its input where the batch norm and the ReLU before it were not applied; `saved`: of
// batch_norm_forward.
Conv3x3Norm norm_of(const Tensor& saved) {
  const int64_t channels = saved.dim(1);
  const float* const a = saved.data<float>() + 2 * channels;
  return {a, a + channels, true};
}

// Enough to keep many threads evenly busy. Each piece of a weight gradient costs a sum of its own, hence fewer of them.
constexpr int64_t kPieces = 64, kWeightPieces = 16;

}  // namespace

// Tiles in pieces of whole blocks, `least` at least: at most `pieces` of them.
struct Conv3x3::Pieces {
  int64_t tiles, size, count;
  Pieces(const Conv3x3Kernels& kernels, const Conv3x3Shape& s, int64_t pieces, int64_t least = 1)
      : tiles(kernels.tiles(s)) {
    const int64_t blocks = (tiles + kernels.block - 1) / kernels.block;
    size = std::max(least, (blocks + pieces - 1) / pieces) * kernels.block;
    count = (tiles + size - 1) / size;
  }
  int64_t first(int64_t piece) const { return piece * size; }
  int64_t end(int64_t piece) const { return std::min(tiles, first(piece) + size); }
};

Conv3x3::Conv3x3(ThreadPool& pool, Simd simd) : pool_(pool), simd_(simd), scratch_(size_t(pool.threads())) {
  require(simd <= best_simd(), "[conv2d] this processor has no {}", name_of(simd));
}

const Conv3x3Kernels& Conv3x3::kernels_for(DType type) const {
  require(type == DType::f32 || type == DType::bf16, "[conv2d] expected f32 or bf16, got {}", name_of(type));
  const bool half = type == DType::bf16;
#ifdef __x86_64__
  if (half && simd_ == Simd::amx) return direct_bf16_amx;
  if (half && simd_ == Simd::avx512_bf16) return winograd_bf16_avx512_bf16;
  if (simd_ >= Simd::avx512) return half ? winograd_bf16_avx512 : winograd_f32_avx512;
#endif
  return half ? winograd_bf16_avx2 : winograd_f32_avx2;
}

bool Conv3x3::knows_batch_norm(DType type) const { return kernels_for(type).knows_batch_norm; }

// Where the gradients are computed one by one, dy is read twice: to do that with three terms costs more than it saves.
bool Conv3x3::takes_output_bn(const Shape& w, DType type) const {
  const Conv3x3Kernels& kernels = kernels_for(type);
  return kernels.knows_batch_norm && w[0] * w[3] <= kernels.pairs_at_once;
}

bool Conv3x3::takes(const Shape& w, Conv conv) {
  return w.rank() == 4 && w[1] == 3 && w[2] == 3 && conv.stride == 1 && conv.pad == 1 && w[0] % kChannelGroup == 0 &&
         w[3] % kChannelGroup == 0;
}

float* Conv3x3::Buffer::at_least(int64_t floats) {
  if (floats > size) {
    const size_t bytes = (size_t(floats) * sizeof(float) + 63) / 64 * 64;
    size = 0;
    data.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!data) fail(Exit::device, "out of memory: {} MiB of workspace for a convolution", bytes >> 20);
    std::memset(data.get(), 0, bytes);  // the products also read rows of a block that nobody wrote
    size = floats;
  }
  return data.get();
}

float* Conv3x3::scratch(const Conv3x3Kernels& kernels, int thread, const Conv3x3Shape& s) {
  return scratch_[size_t(thread)].at_least(kernels.scratch_size(s));
}

// Calls run(piece, tail -> convolves that piece of y).
template <class Run>
void Conv3x3::for_pieces(const Conv3x3Kernels& kernels, const Tensor& y, const Tensor& x, const Conv3x3Norm* of_x,
                         const Conv3x3Shape& s, const Pieces& pieces, const Run& run) {
  pool_.run(pieces.count, [&](int64_t piece, int thread) {
    run(piece, [&](const Conv3x3Tail& tail) {
      kernels.convolve(y.raw(), x.raw(), of_x, filters_.data.get(), s, pieces.first(piece), pieces.end(piece),
                       scratch(kernels, thread, s), tail);
    });
  });
}

void Conv3x3::forward(const Tensor& y, const Tensor& x, const Tensor& w, double* moments, const Tensor* saved) {
  const Conv3x3Kernels& kernels = kernels_for(x.dtype());
  const Conv3x3Shape s = shape_of(x, w);
  const Pieces pieces(kernels, s, kPieces);
  const int64_t k = s.k, count = pieces.count;
  const Conv3x3Norm norm = saved ? norm_of(*saved) : Conv3x3Norm{};
  const Conv3x3Norm* const of_x = saved ? &norm : nullptr;
  pack_filters(kernels, w, false);
  if (!moments)
    return for_pieces(kernels, y, x, of_x, s, pieces, [](int64_t, const auto& convolve) { convolve(Conv3x3Tail{}); });

  // A piece's sums: how many pixels, the sums, those of squares, the shift (as floats).
  const int64_t stride = 1 + 3 * k;
  double* const sums = reinterpret_cast<double*>(sums_.at_least(2 * stride * count));
  for_pieces(kernels, y, x, of_x, s, pieces, [&](int64_t piece, const auto& convolve) {
    double* const own = sums + piece * stride;
    std::fill_n(own, 1 + 2 * k, 0.0);
    Conv3x3Sums of_piece{reinterpret_cast<float*>(own + 1 + 2 * k), own + 1, own + 1 + k, 0};
    convolve({.sums = &of_piece});
    own[0] = of_piece.pixels;
  });
  for (int64_t channel = 0; channel < k; ++channel) {
    Moments all;
    for (int64_t piece = 0; piece < count; ++piece) {
      const double *own = sums + piece * stride, n = own[0], sum = own[1 + channel], squares = own[1 + k + channel];
      const float shift = reinterpret_cast<const float*>(own + 1 + 2 * k)[channel];
      all = merge(all, {n, double(shift) + sum / n, std::max(0.0, squares - sum * sum / n)});
    }
    moments[channel] = all.mean;
    moments[k + channel] = all.m2;
  }
}

void Conv3x3::forward_bn(const Tensor& y, const Tensor& x, const Tensor& w, const Tensor* residual,
                         const Conv3x3Norm& norm) {
  const Conv3x3Kernels& kernels = kernels_for(x.dtype());
  const Conv3x3Shape s = shape_of(x, w);
  pack_filters(kernels, w, false);
  for_pieces(kernels, y, x, nullptr, s, Pieces(kernels, s, kPieces), [&](int64_t, const auto& convolve) {
    convolve({.plus = residual ? residual->raw() : nullptr, .norm = &norm});
  });
}

void Conv3x3::pack_filters(const Conv3x3Kernels& kernels, const Tensor& w, bool turned) {
  const int64_t c = w.dim(3), k = w.dim(0), groups_c = c / kChannelGroup, groups_k = k / kChannelGroup;
  float* packed = filters_.at_least(turned ? kernels.filters_size(k, c) : kernels.filters_size(c, k));
  const auto pack = turned ? kernels.turned_filters : kernels.filters;
  pool_.run(groups_c * groups_k,
            [&](int64_t pair, int) { pack(packed, w.raw(), c, k, pair / groups_k, pair % groups_k); });
}

void Conv3x3::backward_data(const Tensor& dx, const Tensor& dy, const Tensor& w) {
  data(kernels_for(dy.dtype()), dx, dy, w, nullptr, dx, nullptr);
}

void Conv3x3::data(const Conv3x3Kernels& kernels, const Tensor& dx, const Tensor& dy, const Tensor& w,
                   const Tensor* plus, const Tensor& x, const InputBn* input) {
  const Conv3x3Shape s{dx.dim(0), dx.dim(1), dx.dim(2), dy.dim(3), dx.dim(3)};
  const Pieces pieces(kernels, s, kPieces);
  const InputSums sums(input, x, pieces.count, sums_.at_least(InputSums::floats(x, pieces.count)));
  pack_filters(kernels, w, true);
  for_pieces(kernels, dx, dy, nullptr, s, pieces, [&](int64_t piece, const auto& convolve) {
    sums.of_piece(piece, [&](const Conv3x3InputBn* of_piece) {
      convolve({.plus = plus ? plus->raw() : nullptr, .input = of_piece});
    });
  });
  sums.add_up();
}

// Calls work(piece, sum, first, end, scratch) for pieces of the tiles, each of which gives a sum dw [k,3,3,c] of its
// own, and adds them up.
template <class Work>
void Conv3x3::for_weight_pieces(const Conv3x3Kernels& kernels, float* dw, const Conv3x3Shape& s, const Pieces& pieces,
                                const Work& work) {
  const int64_t count = s.k * 9 * s.c;
  if (pieces.count == 0) return void(std::memset(dw, 0, sizeof(float) * size_t(count)));

  // The first piece writes to dw itself, the others to partial sums.
  float* partial = partial_.at_least((pieces.count - 1) * count);
  const auto sum_of = [&](int64_t piece) { return piece == 0 ? dw : partial + (piece - 1) * count; };
  pool_.run(pieces.count, [&](int64_t piece, int thread) {
    work(piece, sum_of(piece), pieces.first(piece), pieces.end(piece), scratch(kernels, thread, s));
  });

  // A fixed tree of pairs over the pieces; elements are shared out by the row of a filter, 3 c of them.
  pool_.run(s.k * 3, [&](int64_t row, int) {
    const int64_t begin = row * 3 * s.c, end = begin + 3 * s.c;
    for (int64_t distance = 1; distance < pieces.count; distance *= 2)
      for (int64_t p = 0; p + distance < pieces.count; p += 2 * distance) {
        float* a = sum_of(p);
        const float* b = sum_of(p + distance);
        for (int64_t i = begin; i < end; ++i) a[i] += b[i];
      }
  });
}

void Conv3x3::backward_weight(const Tensor& dw, const Tensor& dy, const Tensor& x) {
  weight(kernels_for(dy.dtype()), dw, dy, x, nullptr);
}

void Conv3x3::weight(const Conv3x3Kernels& kernels, const Tensor& dw, const Tensor& dy, const Tensor& x,
                     const Conv3x3Norm* of_x) {
  const Conv3x3Shape s = shape_of(x, dw);
  const auto work = [&](int64_t, float* sum, int64_t first, int64_t end, float* memory) {
    kernels.weight_gradient(sum, dy.raw(), x.raw(), of_x, s, first, end, memory);
  };
  for_weight_pieces(kernels, dw.data<float>(), s, Pieces(kernels, s, kWeightPieces, kernels.weight_blocks), work);
}

bool Conv3x3::backward(const Tensor& dx, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& w,
                       const Tensor* plus, const InputBn* input, const OutputBn* output) {
  const Conv3x3Kernels& kernels = kernels_for(dy.dtype());
  const Conv3x3Shape s = shape_of(x, w);
  if (!kernels.knows_batch_norm) input = nullptr;
  const bool apply = input && !input->applied;
  const Conv3x3Norm norm = apply ? norm_of(input->saved) : Conv3x3Norm{};
  const Conv3x3Norm* const of_x = apply ? &norm : nullptr;
  if (s.c * s.k > kernels.pairs_at_once) {
    weight(kernels, dw, dy, x, of_x);
    data(kernels, dx, dy, w, plus, x, input);
    return input != nullptr;
  }
  Conv3x3OutputBn behind{};
  if (output) {
    const float* const factors = output->factors.data<float>();
    behind = {output->y.raw(), factors, factors + s.k, factors + 2 * s.k, factors + 3 * s.k};
  }
  const Pieces pieces(kernels, s, kWeightPieces, kernels.weight_blocks);
  const InputSums sums(input, x, pieces.count, sums_.at_least(InputSums::floats(x, pieces.count)));
  pack_filters(kernels, w, true);
  const auto work = [&](int64_t piece, float* sum, int64_t first, int64_t end, float* memory) {
    sums.of_piece(piece, [&](const Conv3x3InputBn* of_piece) {
      kernels.backward(dx.raw(), sum, dy.raw(), x.raw(), of_x, filters_.data.get(), s, first, end, memory,
                       {.plus = plus ? plus->raw() : nullptr, .input = of_piece}, output ? &behind : nullptr);
    });
  };
  for_weight_pieces(kernels, dw.data<float>(), s, pieces, work);
  sums.add_up();
  return input != nullptr;
}

}  // namespace linnet
