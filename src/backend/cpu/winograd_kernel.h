// Winograd convolution F(4x4, 3x3), after Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015),
// https://arxiv.org/abs/1509.09308. Compiled once per instruction set, by kernels_*.cpp.
//
// The idea. A 4x4 tile of the output of a 3x3 convolution depends on a 6x6 patch of the input. The direct sum takes
// 4*4*3*3 = 144 multiplications per pair of channels. Take one dimension first: four outputs y of a filter g over six
// inputs d,
//     y[i] = d[i] g[0] + d[i+1] g[1] + d[i+2] g[2],   i = 0..3,
// can be had with six multiplications in place of twelve (Winograd 1980):
//     y = A^T [ (G g) . (B^T d) ]              "." is the product of elements; A^T is 4x6, G 6x3, B^T 6x6.
// Why it holds: the product of two polynomials with 3 and 4 coefficients has 6. Evaluate both at six points, here 0, 1,
// -1, 2, -2 and infinity, multiply the six pairs of values, interpolate: six multiplications. The sum above is the
// transpose of that product as a linear map, so its steps are the transposed ones in reverse order: first B^T, the
// transpose of interpolation; then the six multiplications with the filter's values G g (G has rows 1 p p^2, each times
// a constant that interpolation left over); then A^T, the transpose of evaluating four coefficients (rows 1 p p^2 p^3).
// In two dimensions the transforms act on columns, then on rows: 36 multiplications in place of 144.
//
// Over channels the products of elements become 36 matrix products, one for each position p of the 6x6:
//   1. data transform     V[p][tile][c] = B^T d B   for every tile and input channel
//   2. filter transform   U[p][c][k]    = G g G^T   for every pair of channels, once per call
//   3. 36 products        M[p] = V[p] U[p]          [tiles,c] x [c,k]: most of the time
//   4. output transform   y = A^T M A               for every tile and output channel
// The more channels, the more products share one transform.
//
// The gradient of the input is the same convolution with filters turned by 180 degrees and channels exchanged.
// The gradient of the weights is a convolution too: three outputs (the taps) of a "filter" of four pixels over six,
// F(3x3, 4x4). 3 + 4 coefficients again, so the same six points and the same B^T, a G with rows 1 p p^2 p^3 and an A^T
// with 1 p p^2. Which of x and dy is the filter is free; here x comes in 4x4 tiles and dy in 6x6 patches:
//     dw[2-r] = sum over tiles and i of x[i] dy[i+r],  r = 0..2, dy's patch beginning one pixel before the tile.
//
// Rounding: the points 2 and -2 make for errors some ten times those of the direct sum, a few 1e-6 of the largest
// value.
//
// Layout. Vectors run along channels. A block of tiles is kept as [channels/16][tile][36 (+1)][16], so that a transform
// writes one run of memory and the matrix products find everything at fixed distances.
//
#include "conv3x3_table.h"
#include "simd.h"

namespace linnet {

namespace {

constexpr int kRows = WINOGRAD_ROWS;
constexpr int kBlock = WINOGRAD_BLOCK;
constexpr int kGroup = kChannelGroup;
constexpr int kPositions = 36;  // of a transformed 6x6 tile

// A tile of one group. The 37th position is unused: 36 cache lines apart, tiles would compete for few of the cache's
// sets.
constexpr int kTile = (kPositions + 1) * kGroup;
constexpr int64_t kPlane = int64_t(kBlock) * kTile;  // all tiles of one group

// ---- The transforms of one line ----

// B^T d
inline void data_line(const V (&d)[6], V (&o)[6]) {
  const V a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], c = d[4] - d[2], e = 2 * (d[3] - d[1]);
  o[0] = 4 * d[0] - 5 * d[2] + d[4];
  o[1] = a + b;
  o[2] = a - b;
  o[3] = c + e;
  o[4] = c - e;
  o[5] = 4 * d[1] - 5 * d[3] + d[5];
}

// G g
inline void filter_line(const V (&g)[3], V (&o)[6]) {
  const V even = g[0] + g[2], far = g[0] + 4 * g[2];
  o[0] = g[0] / 4;
  o[1] = (even + g[1]) * (-1.f / 6);
  o[2] = (even - g[1]) * (-1.f / 6);
  o[3] = (far + 2 * g[1]) * (1.f / 24);
  o[4] = (far - 2 * g[1]) * (1.f / 24);
  o[5] = g[2];
}

// A^T m
inline void output_line(const V (&m)[6], V (&o)[4]) {
  const V a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
  o[0] = m[0] + a + c;
  o[1] = b + 2 * e;
  o[2] = a + 4 * c;
  o[3] = b + 8 * e + m[5];
}

// F(3,4), the weight gradient: G g without its constants 1/4, -1/6, -1/6, 1/24, 1/24, 1 ...
inline void tile_line(const V (&g)[4], V (&o)[6]) {
  const V a = g[0] + g[2], b = g[1] + g[3], c = g[0] + 4 * g[2], e = 2 * (g[1] + 4 * g[3]);
  o[0] = g[0];
  o[1] = a + b;
  o[2] = a - b;
  o[3] = c + e;
  o[4] = c - e;
  o[5] = g[3];
}

// ... which A^T m has in it, where they cost once per weight, not once per tile.
inline void tap_line(const V (&m)[6], V (&o)[3]) {
  const V a = (m[1] + m[2]) * (-1.f / 6), b = (m[1] - m[2]) * (-1.f / 6);
  const V c = (m[3] + m[4]) * (1.f / 24), e = (m[3] - m[4]) * (1.f / 24);
  o[0] = m[0] / 4 + a + c;
  o[1] = b + 2 * e;
  o[2] = a + 4 * c + m[5];
}

// `line` on every column, then on every row: In x In values become Out x Out. at(i, j) gives an input, put(i, j, v)
// takes an output.
template <int In, int Out, void (*line)(const V (&)[In], V (&)[Out]), class At, class Put>
[[gnu::always_inline]] inline void transform(const At& at, const Put& put) {
  V columns[Out][In];
  for (int j = 0; j < In; ++j) {
    V in[In], out[Out];
    for (int i = 0; i < In; ++i) in[i] = at(i, j);
    line(in, out);
    for (int i = 0; i < Out; ++i) columns[i][j] = out[i];
  }
  for (int i = 0; i < Out; ++i) {
    V out[Out];
    line(columns[i], out);
    for (int j = 0; j < Out; ++j) put(i, j, out[j]);
  }
}

// ---- Tiles ----

// Size x Size pixels of an image: a tile of 4x4 or the patch of 6x6 around it.
template <int Size>
struct Patch {
  int64_t image, row, column;  // of the first pixel; row and column are -1 where a patch reaches into the padding

  Patch(const Conv3x3Shape& s, int64_t tile) {
    const uint32_t wide = uint32_t(s.w + 3) / 4, high = uint32_t(s.h + 3) / 4;  // 32 bits: faster to divide
    const uint32_t line = uint32_t(tile) / wide;
    image = line / high;
    row = int64_t(line % high) * 4 - kRim;
    column = int64_t(uint32_t(tile) % wide) * 4 - kRim;
  }
  void next(const Conv3x3Shape& s) {
    column += 4;
    if (column + kRim < s.w) return;
    column = -kRim;
    row += 4;
    if (row + kRim < s.h) return;
    row = -kRim;
    ++image;
  }
  bool whole(const Conv3x3Shape& s) const {
    return row >= 0 && column >= 0 && row + Size <= s.h && column + Size <= s.w;
  }
  bool inside(const Conv3x3Shape& s, int i, int j) const {
    return uint64_t(row + i) < uint64_t(s.h) && uint64_t(column + j) < uint64_t(s.w);
  }
  int64_t offset(const Conv3x3Shape& s, int64_t channels) const {
    return ((image * s.h + row) * s.w + column) * channels;
  }

 private:
  static constexpr int kRim = (Size - 4) / 2;
};

// a v + b, per channel: batch norm as batch_norm_kernel.h applies it.
struct Affine {
  const float *a, *b;
  struct State {
    V a, b;
  };
  State begin(int64_t channel) const { return {load(a + channel), load(b + channel)}; }
  static V apply(const State& s, V v) { return v * s.a + s.b; }
};
inline V relu(V v) { return v < V{} ? V{} : v; }  // a NaN passes through

// Where a transform reads its pixels: an array [n,h,w,channels] ...
template <class T>
struct Pixels {
  const T* in;
  struct State {};
  State begin(int64_t) const { return {}; }
  V at(const State&, int64_t i) const { return load(in + i); }
};
// ... or what a batch norm and a ReLU that were not applied make of one ...
template <class T>
struct Applied : Affine {
  const T* in;
  V at(const State& s, int64_t i) const { return relu(apply(s, load(in + i))); }
};
// ... or the gradient that stands behind a batch norm.
template <class T>
struct BehindBn {
  const T *dy, *y;
  const float *a, *b, *mean, *c;
  struct State {
    V a, b, mean, c;
  };
  State begin(int64_t channel) const {
    return {load(a + channel), load(b + channel), load(mean + channel), load(c + channel)};
  }
  V at(const State& s, int64_t i) const { return s.a * load(dy + i) + (s.b * (load(y + i) - s.mean) + s.c); }
};

// Transforms the tiles first..end-1 of `in` into a block. Pixels outside the image are zero.
// (Neighbours share two columns of a 6x6 patch; to transform those once was tried: stores are the limit, no gain.)
template <int Size, void (*line)(const V (&)[Size], V (&)[6]), class From>
void read_tiles(float* block, From in, const Conv3x3Shape& s, int64_t channels, int64_t first, int64_t end) {
  const int64_t row = s.w * channels;
  Patch<Size> patch(s, first);
  for (int64_t t = first; t < end; ++t, patch.next(s)) {
    const int64_t origin = patch.offset(s, channels);
    const bool whole = patch.whole(s);
    for (int64_t c = 0; c < channels; c += kLanes) {
      float* to = block + c / kGroup * kPlane + (t - first) * kTile + c % kGroup;
      const auto put = [&](int i, int j, V v) { store(to + (i * 6 + j) * kGroup, v); };
      const auto state = in.begin(c);
      const auto pixel = [&](int i, int j) { return in.at(state, origin + i * row + j * channels + c); };
      if (whole)  // most patches of a large image: no tests in the loops
        transform<Size, 6, line>(pixel, put);
      else
        transform<Size, 6, line>([&](int i, int j) { return patch.inside(s, i, j) ? pixel(i, j) : V{}; }, put);
    }
  }
}

template <int Size, void (*line)(const V (&)[Size], V (&)[6]), class T>
void read_input(float* block, const T* x, const Conv3x3Norm* of_x, const Conv3x3Shape& s, int64_t first, int64_t end) {
  if (of_x)
    read_tiles<Size, line>(block, Applied<T>{{of_x->a, of_x->b}, x}, s, s.c, first, end);
  else
    read_tiles<Size, line>(block, Pixels<T>{x}, s, s.c, first, end);
}

// The patches of a gradient.
template <class T>
void read_gradient(float* block, const T* dy, const Conv3x3OutputBn* output, const Conv3x3Shape& s, int64_t channels,
                   int64_t first, int64_t end) {
  if (!output) return read_tiles<6, data_line>(block, Pixels<T>{dy}, s, channels, first, end);
  const BehindBn<T> from{dy, static_cast<const T*>(output->y), output->a, output->b, output->mean, output->c};
  read_tiles<6, data_line>(block, from, s, channels, first, end);
}

// What is done with outputs on their way to memory. Each of these is asked for the state of a vector of channels,
// which then passes every pixel of a tile; sums over a block of tiles are float, [channels] each.

// Nothing, or v + plus.
template <class T, bool kPlus>
struct Written {
  const T* plus;
  struct State {};
  State begin(int64_t) const { return {}; }
  V pass(State&, int64_t at, V v) const { return kPlus ? v + load(plus + at) : v; }
  void end(int64_t, State) const {}
  void next_tile() {}
};

// For batch normalisation: on the way to Conv3x3Sums.
struct WithMoments {
  float *shift, *sum, *squares;
  bool fresh;  // the shift is not known yet
  struct State {
    V shift, sum, squares;
    bool fresh;
  };
  State begin(int64_t c) const { return {fresh ? V{} : load(shift + c), load(sum + c), load(squares + c), fresh}; }
  V pass(State& s, int64_t, V v) const {
    if (s.fresh) s.shift = v;
    s.fresh = false;
    const V d = v - s.shift;
    s.sum += d;
    s.squares += d * d;
    return v;
  }
  void end(int64_t c, const State& s) const {
    if (fresh) store(shift + c, s.shift);
    store(sum + c, s.sum);
    store(squares + c, s.squares);
  }
  void next_tile() { fresh = false; }
};

// In evaluation: a v + b (+ plus), and the ReLU.
template <class T, bool kPlus, bool kRelu>
struct Normalised : Affine {
  const T* plus;
  V pass(const State& s, int64_t at, V v) const {
    v = apply(s, v);
    if (kPlus) v += load(plus + at);
    return kRelu ? relu(v) : v;
  }
  void end(int64_t, const State&) const {}
  void next_tile() {}
};

// For its gradient: v (+ plus) behind the ReLU's mask, on the way to Conv3x3InputBn.
template <class T, bool kPlus, bool kFromX>
struct BehindRelu {
  const T *plus, *x, *y;
  const float *mean, *a, *b;
  float *sum, *products;
  struct State {
    V mean, a, b, sum, products;
  };
  State begin(int64_t c) const { return {load(mean + c), load(a + c), load(b + c), load(sum + c), load(products + c)}; }
  V pass(State& s, int64_t at, V v) const {
    if (kPlus) v += load(plus + at);
    const V input = load(x + at);
    v = (kFromX ? input * s.a + s.b : load(y + at)) > V{} ? v : V{};
    s.sum += v;
    s.products += v * (input - s.mean);
    return v;
  }
  void end(int64_t c, const State& s) const {
    store(sum + c, s.sum);
    store(products + c, s.products);
  }
  void next_tile() {}
};

// The outputs of a block to the tiles first..end-1 of `out` [n,h,w,channels].
template <class T, class Tail>
void write_tiles(T* out, const float* block, const Conv3x3Shape& s, int64_t channels, int64_t first, int64_t end,
                 Tail tail) {
  const int64_t row = s.w * channels;
  Patch<4> patch(s, first);
  for (int64_t t = first; t < end; ++t, patch.next(s), tail.next_tile()) {
    const int64_t origin = patch.offset(s, channels);
    const bool whole = patch.whole(s);
    for (int64_t c = 0; c < channels; c += kLanes) {
      const float* from = block + c / kGroup * kPlane + (t - first) * kTile + c % kGroup;
      auto state = tail.begin(c);
      const auto at = [&](int i, int j) { return load(from + (i * 6 + j) * kGroup); };
      const auto put = [&](int i, int j, V v) __attribute__((always_inline)) {
        const int64_t at = origin + i * row + j * channels + c;
        store(out + at, tail.pass(state, at, v));
      };
      if (whole)  // all tiles, where h and w are multiples of 4
        transform<6, 4, output_line>(at, put);
      else
        transform<6, 4, output_line>(at, [&](int i, int j, V v) {
          if (patch.inside(s, i, j)) put(i, j, v);
        });
      tail.end(c, state);
    }
  }
}

// Adds a block's float sums to the piece's double ones.
void take_sums(double* total, float* of_block, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    total[c] += double(of_block[c]);
    of_block[c] = 0;
  }
}

// A block to memory, with all that `tail` asks for but sums. scratch: [2,channels].
template <class T>
void write_block(T* out, const float* block, const Conv3x3Shape& s, int64_t channels, int64_t first, int64_t end,
                 const Conv3x3Tail& tail, float* scratch) {
  const T* plus = static_cast<const T*>(tail.plus);
  const auto write = [&](auto way) { write_tiles(out, block, s, channels, first, end, way); };
  if (tail.norm) {
    const Affine norm{tail.norm->a, tail.norm->b};
    if (plus)
      return tail.norm->relu ? write(Normalised<T, true, true>{norm, plus})
                             : write(Normalised<T, true, false>{norm, plus});
    return tail.norm->relu ? write(Normalised<T, false, true>{norm, plus})
                           : write(Normalised<T, false, false>{norm, plus});
  }
  const Conv3x3InputBn* input = tail.input;
  if (!input) return plus ? write(Written<T, true>{plus}) : write(Written<T, false>{plus});
  float *sum = scratch, *products = sum + channels;
  __builtin_memset(scratch, 0, sizeof(float) * uint64_t(2 * channels));
  const auto behind_relu = [&]<bool kPlus, bool kFromX>() {
    write(BehindRelu<T, kPlus, kFromX>{plus, static_cast<const T*>(input->x), static_cast<const T*>(input->y),
                                       input->mean, input->a, input->b, sum, products});
  };
  if (plus)
    input->y ? behind_relu.template operator()<true, false>() : behind_relu.template operator()<true, true>();
  else
    input->y ? behind_relu.template operator()<false, false>() : behind_relu.template operator()<false, true>();
  take_sums(input->sum, sum, channels);
  take_sums(input->products, products, channels);
}

// ---- The matrix products ----

// A product keeps this many groups of channels in registers at a time: two vectors for each of its rows.
constexpr int kGroups = 2 * kLanes / kGroup;
template <int Groups>
constexpr int kRowsFor = (kRows * kGroups) / Groups;  // fewer groups leave registers for more rows
static_assert(kBlock % kRowsFor<1> == 0 && kRowsFor<1> <= kGroup && kGroup % kLanes == 0);

// Where vector i of a row lies, in groups that are `stride` floats apart.
inline int64_t place(int i, int64_t stride) { return i * kLanes / kGroup * stride + i * kLanes % kGroup; }

// For `Rows` tiles and `Groups` groups of outputs, at one position: m[tile][o] = sum over i of v[tile][i] u[i][o].
// m and v are in blocks; u is [group][inputs][16].
template <int Rows, int Groups>
void multiply(float* m, const float* v, const float* u, int64_t inputs) {
  constexpr int kVectors = Groups * kGroup / kLanes;
  V sums[Rows][kVectors];
  for (int r = 0; r < Rows; ++r)
    for (int o = 0; o < kVectors; ++o) sums[r][o] = V{};
  const float* const end = u + inputs * kGroup;
  do {
    for (int i = 0; i < kGroup; ++i, u += kGroup) {
      V factors[kVectors];
      for (int o = 0; o < kVectors; ++o) factors[o] = load(u + place(o, inputs * kGroup));
      for (int r = 0; r < Rows; ++r)
        for (int o = 0; o < kVectors; ++o) sums[r][o] += v[r * kTile + i] * factors[o];
    }
    v += kPlane;
  } while (u < end);
  for (int r = 0; r < Rows; ++r)
    for (int o = 0; o < kVectors; ++o) store(m + r * kTile + place(o, kPlane), sums[r][o]);
}

template <int Groups>
void multiply_group(float* m, const float* v, const float* u, int64_t tiles, int64_t inputs) {
  // Rows beyond `tiles` hold leftovers; nobody reads their products.
  for (int64_t t = 0; t < tiles; t += kRowsFor<Groups>)
    multiply<kRowsFor<Groups>, Groups>(m + t * kTile, v + t * kTile, u, inputs);
}

// All tiles and outputs of a block at one position.
void multiply_block(float* m, const float* v, const float* u, int64_t tiles, int64_t inputs, int64_t outputs) {
  int64_t group = 0;
  for (; group + kGroups <= outputs / kGroup; group += kGroups)
    multiply_group<kGroups>(m + group * kPlane, v, u + group * inputs * kGroup, tiles, inputs);
  for (; group < outputs / kGroup; ++group)
    multiply_group<1>(m + group * kPlane, v, u + group * inputs * kGroup, tiles, inputs);
}

// For `Rows` channels of dy and `Groups` groups of x, at one position: sums[k][c] += sum over tiles of
// y[tile][k] x[tile][c], for the first block of a piece = that. y and x are in blocks; sums is [group][outputs][16].
template <bool kFirst, int Rows, int Groups>
void accumulate(float* sums, const float* y, const float* x, int64_t tiles, int64_t outputs) {
  constexpr int kVectors = Groups * kGroup / kLanes;
  V s[Rows][kVectors];
  for (int r = 0; r < Rows; ++r)
    for (int i = 0; i < kVectors; ++i) s[r][i] = kFirst ? V{} : load(sums + r * kGroup + place(i, outputs * kGroup));
  int64_t t = 0;
  do {
    V factors[kVectors];
    for (int i = 0; i < kVectors; ++i) factors[i] = load(x + t * kTile + place(i, kPlane));
    for (int r = 0; r < Rows; ++r)
      for (int i = 0; i < kVectors; ++i) s[r][i] += y[t * kTile + r] * factors[i];
  } while (++t < tiles);
  for (int r = 0; r < Rows; ++r)
    for (int i = 0; i < kVectors; ++i) store(sums + r * kGroup + place(i, outputs * kGroup), s[r][i]);
}

template <bool kFirst, int Groups>
void accumulate_group(float* sums, const float* y, const float* x, int64_t tiles, int64_t outputs) {
  constexpr int kRest = kGroup % kRows;  // a group is 16 rows: as many full sets as fit, then the rest
  for (int64_t k = 0; k < outputs; k += kGroup, y += kPlane) {
    for (int r = 0; r + kRows <= kGroup; r += kRows)
      accumulate<kFirst, kRows, Groups>(sums + (k + r) * kGroup, y + r, x, tiles, outputs);
    if constexpr (kRest != 0)
      accumulate<kFirst, kRest, Groups>(sums + (k + kGroup - kRest) * kGroup, y + kGroup - kRest, x, tiles, outputs);
  }
}

template <bool kFirst>
void accumulate_block(float* sums, const float* y, const float* x, int64_t tiles, int64_t c, int64_t k) {
  int64_t group = 0;
  for (; group + kGroups <= c / kGroup; group += kGroups)
    accumulate_group<kFirst, kGroups>(sums + group * k * kGroup, y, x + group * kPlane, tiles, k);
  for (; group < c / kGroup; ++group)
    accumulate_group<kFirst, 1>(sums + group * k * kGroup, y, x + group * kPlane, tiles, k);
}

// ---- Prefetching ----

// The products leave activations alone: meanwhile the memory of the tiles first..first+tiles-1 of an array
// [n,h,w,channels] is fetched, a part at each position p. This doubles the speed for few channels. The place is exact
// where h and w are multiples of 4; fetching something else does no harm.
template <bool Write, class T>
void prefetch(const T* a, int64_t channels, int64_t first, int64_t tiles, int p) {
  const char* begin = reinterpret_cast<const char*>(a + first * 16 * channels);
  const int64_t bytes = tiles * 16 * channels * int64_t(sizeof(T));
  for (int64_t i = bytes * p / kPositions / 64 * 64; i < bytes * (p + 1) / kPositions; i += 64)
    __builtin_prefetch(begin + i, Write, Write ? 3 : 2);
}

// ---- What the driver calls ----

// Tiles of 4x4 pixels.
int64_t tiles(const Conv3x3Shape& s) { return s.n * ((s.h + 3) / 4) * ((s.w + 3) / 4); }

// From one position to the next in filters and in a weight gradient's sums. Transforms touch one line of each, and 36
// lines that are a multiple of 4 KB apart share a single set of the first-level cache: those are moved by a line.
inline int64_t apart(int64_t c, int64_t k) { return c * k + (c * k % 1024 == 0 ? kGroup : 0); }

int64_t filters_size(int64_t c, int64_t k) { return kPositions * apart(c, k); }

// Two inputs and an output of the products, the weight gradient's sums at all positions, sums for batch normalisation.
int64_t scratch_size(const Conv3x3Shape& s) {
  return (2 * s.c + s.k) / kGroup * kPlane + kPositions * apart(s.c, s.k) + 3 * (s.c + s.k);
}

// Up to so many pairs of channels both gradients are computed at once. It saves a transform of dy, but wants the
// filters and as many sums in the cache together: 1.2 MB for 4096 pairs.
constexpr int64_t kPairsAtOnce = WINOGRAD_PAIRS;

// A weight gradient's sums at all positions go through a transform and a reduction once per piece of the tiles: with
// 64 channels, as long as half a block's products take.
constexpr int64_t kWeightBlocks = 4;

// Vectors of filters run along their outputs, k, which lie 9 c numbers apart in w.
template <class T>
void filters(float* u, const void* w_, int64_t c, int64_t k, int64_t group_c, int64_t group_k) {
  const T* w = static_cast<const T*>(w_);
  for (int64_t in = group_c * kGroup; in < (group_c + 1) * kGroup; ++in)
    for (int64_t out = group_k * kGroup; out < (group_k + 1) * kGroup; out += kLanes) {
      float* to = u + (out / kGroup * c + in) * kGroup + out % kGroup;
      transform<3, 6, filter_line>(
          [&](int i, int j) {
            V v;
            for (int lane = 0; lane < kLanes; ++lane)
              v[lane] = load<float>(w + ((out + lane) * 9 + i * 3 + j) * c + in);
            return v;
          },
          [&](int i, int j, V v) { store(to + (i * 6 + j) * apart(c, k), v); });
    }
}

template <class T>
void turned_filters(float* u, const void* w_, int64_t c, int64_t k, int64_t group_c, int64_t group_k) {
  const T* w = static_cast<const T*>(w_);
  for (int64_t in = group_k * kGroup; in < (group_k + 1) * kGroup; ++in)
    for (int64_t out = group_c * kGroup; out < (group_c + 1) * kGroup; out += kLanes) {
      float* to = u + (out / kGroup * k + in) * kGroup + out % kGroup;
      transform<3, 6, filter_line>([&](int i, int j) { return load(w + (in * 9 + 8 - (i * 3 + j)) * c + out); },
                                   [&](int i, int j, V v) { store(to + (i * 6 + j) * apart(c, k), v); });
    }
}

template <class T>
void convolve(void* y_, const void* x_, const Conv3x3Norm* of_x, const float* u, const Conv3x3Shape& s, int64_t first,
              int64_t end, float* scratch, const Conv3x3Tail& tail) {
  T* y = static_cast<T*>(y_);
  const T* x = static_cast<const T*>(x_);
  Conv3x3Sums* const sums = tail.sums;
  float *v = scratch, *m = v + s.c / kGroup * kPlane, *rest = m + s.k / kGroup * kPlane;
  WithMoments moments{rest + 2 * s.k, rest, rest + s.k, true};
  if (sums) __builtin_memset(rest, 0, sizeof(float) * uint64_t(2 * s.k));
  for (int64_t t = first; t < end; t += kBlock) {
    const int64_t stop = t + kBlock < end ? t + kBlock : end;
    read_input<6, data_line>(v, x, of_x, s, t, stop);
    for (int p = 0; p < kPositions; ++p) {
      multiply_block(m + p * kGroup, v + p * kGroup, u + p * apart(s.c, s.k), stop - t, s.c, s.k);
      prefetch<true>(y, s.k, t, stop - t, p);
      prefetch<false>(x, s.c, stop, kBlock, p);
      if (tail.input) prefetch<false>(static_cast<const T*>(tail.input->x), s.k, t, stop - t, p);
      if (tail.input && tail.input->y) prefetch<false>(static_cast<const T*>(tail.input->y), s.k, t, stop - t, p);
    }
    if (!sums) {
      write_block(y, m, s, s.k, t, stop, tail, rest);
      continue;
    }
    write_tiles(y, m, s, s.k, t, stop, moments);
    moments.fresh = false;
    take_sums(sums->sum, moments.sum, s.k);
    take_sums(sums->squares, moments.squares, s.k);
  }
  if (!sums) return;
  __builtin_memcpy(sums->shift, moments.shift, sizeof(float) * uint64_t(s.k));
  Patch<4> patch(s, first);
  for (int64_t t = first; t < end; ++t, patch.next(s))
    sums->pixels +=
        double((s.h - patch.row < 4 ? s.h - patch.row : 4) * (s.w - patch.column < 4 ? s.w - patch.column : 4));
}

// dw [k,3,3,c] from the sums over tiles at all positions.
void write_weights(float* dw, const float* sums, int64_t c, int64_t k) {
  for (int64_t i = 0; i < c * k; i += kLanes) {  // in the order of the sums, [c/16][k][16]
    const int64_t out = i / kGroup % k, in = i / kGroup / k * kGroup + i % kGroup;
    const float* from = sums + i;
    float* to = dw + out * 9 * c + in;
    transform<6, 3, tap_line>([&](int i, int j) { return load(from + (i * 6 + j) * apart(c, k)); },
                              [&](int i, int j, V v) { store(to + (8 - (i * 3 + j)) * c, v); });
  }
}

// Both gradients, or that of the weights alone: they share the transform of dy.
template <class T, bool kData>
void backward_as(T* dx, float* dw, const T* dy, const T* x, const Conv3x3Norm* of_x, const float* turned,
                 const Conv3x3Shape& s, int64_t first, int64_t end, float* scratch, const Conv3x3Tail& tail,
                 const Conv3x3OutputBn* output) {
  float *vx = scratch, *vy = vx + s.c / kGroup * kPlane, *m = vy + s.k / kGroup * kPlane,
        *sums = m + s.c / kGroup * kPlane, *rest = sums + kPositions * apart(s.c, s.k);
  for (int64_t t = first; t < end; t += kBlock) {
    const int64_t stop = t + kBlock < end ? t + kBlock : end;
    read_input<4, tile_line>(vx, x, of_x, s, t, stop);
    read_gradient(vy, dy, output, s, s.k, t, stop);
    const auto add_block = t == first ? accumulate_block<true> : accumulate_block<false>;
    for (int p = 0; p < kPositions; ++p) {
      if (kData) multiply_block(m + p * kGroup, vy + p * kGroup, turned + p * apart(s.c, s.k), stop - t, s.k, s.c);
      add_block(sums + p * apart(s.c, s.k), vy + p * kGroup, vx + p * kGroup, stop - t, s.c, s.k);
      if (kData) prefetch<true>(dx, s.c, t, stop - t, p);
      if (kData && tail.input) prefetch<false>(static_cast<const T*>(tail.input->x), s.c, t, stop - t, p);
      prefetch<false>(x, s.c, stop, kBlock, p);
      prefetch<false>(dy, s.k, stop, kBlock, p);
      if (output) prefetch<false>(static_cast<const T*>(output->y), s.k, stop, kBlock, p);
    }
    if (kData) write_block(dx, m, s, s.c, t, stop, tail, rest);
  }
  write_weights(dw, sums, s.c, s.k);
}

template <class T>
void weight_gradient(float* dw, const void* dy, const void* x, const Conv3x3Norm* of_x, const Conv3x3Shape& s,
                     int64_t first, int64_t end, float* scratch) {
  backward_as<T, false>(nullptr, dw, static_cast<const T*>(dy), static_cast<const T*>(x), of_x, nullptr, s, first, end,
                        scratch, {}, nullptr);
}
template <class T>
void backward(void* dx, float* dw, const void* dy, const void* x, const Conv3x3Norm* of_x, const float* turned,
              const Conv3x3Shape& s, int64_t first, int64_t end, float* scratch, const Conv3x3Tail& tail,
              const Conv3x3OutputBn* output) {
  backward_as<T, true>(static_cast<T*>(dx), dw, static_cast<const T*>(dy), static_cast<const T*>(x), of_x, turned, s,
                       first, end, scratch, tail, output);
}

template <class T>
constexpr Conv3x3Kernels kWinograd = {kBlock,
                                      kWeightBlocks,
                                      kPairsAtOnce,
                                      true,
                                      tiles,
                                      filters_size,
                                      scratch_size,
                                      filters<T>,
                                      turned_filters<T>,
                                      convolve<T>,
                                      weight_gradient<T>,
                                      backward<T>};

}  // namespace

#ifndef SIMD_BF16_ONLY
extern const Conv3x3Kernels SIMD_NAME(winograd_f32) = kWinograd<float>;
#endif
extern const Conv3x3Kernels SIMD_NAME(winograd_bf16) = kWinograd<Half>;

}  // namespace linnet
