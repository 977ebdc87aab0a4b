// 3x3 convolutions with stride 1 in bf16 as direct sums, in the tiles of AMX: 8 registers of 16 rows with 64 bytes, and
// one instruction, C [16,16] += A [16,32] B [32,16], of bf16 numbers summed in f32, which takes 16 cycles: 16 times the
// products that AVX-512 does in f32. Winograd's algorithm would save products, which no longer matter, and pay with
// transforms, which do. CMakeLists.txt compiles this one file for AMX; it is called only where the processor has that.
// Intel's manual for optimization (chapter "Intel AMX") and for the instructions: TDPBF16PS.
//
// The idea. An image's rows are copied with their padding, a band of them at a time, into memory that stays in the
// nearest caches: positions, w + 2 to a row, each with its channels side by side. Number the outputs like the inputs,
// row after row and w + 2 to a row: output q then needs the inputs q + row (w + 2) + column, and 16 outputs in a line
// need 16 inputs in a line, whatever rows they are in. (The two outputs at the end of a row are of no use.)
//
//   forward   y[q] [k] = sum over rows r of   x[q + r (w+2) ...] [3 c] * w [3 c] [k]
//             The three taps of a row lie side by side in memory: 3 c numbers, in steps of 32. A is x as it lies; B,
//             the filters in an order of their own, two numbers of a sum side by side, as the instruction wants them.
//   gradient of the input: the same with the filters turned by 180 degrees and channels exchanged.
//   gradient of the weights: dw[tap] [k][c] = sum over q of dy[q] [k] * x[q + tap] [c]
//             Now positions are what is summed over. A is dy transposed, [k][position]; B is x, its positions in pairs,
//             [pair][c][2], once in pairs that begin at even positions and once at odd ones, for half of the taps each:
//             so all tiles lie on cache lines. Outputs of no use have a dy of zero. Several bands are done at a time,
//             for the sums are f32 and many.
#if defined(__AMX_BF16__) || defined(__AMXBF16__)  // GCC's name, clang's
#define SIMD_LANES 16
#include <immintrin.h>

#include "conv3x3_table.h"
#include "peak_table.h"
#include "simd.h"

namespace linnet {

namespace {

constexpr int64_t kRows = 16;       // of a tile
constexpr int64_t kStep = 32;       // numbers of a sum that one instruction takes
constexpr int64_t kTile = 512;      // bf16 numbers in a tile
constexpr int64_t kSums = 256;      // f32 numbers in a tile
constexpr int64_t kAhead = 64;      // outputs that may be computed beyond a band's last one, for nothing
constexpr int64_t kGathered = 512;  // positions whose weight gradient is summed in registers before it goes to memory

// All eight tiles are whole: 16 rows of 64 bytes. (Intel's manual, "palette 1".)
struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
// A thread whose tiles are in use costs the system more to put aside: they are given back after each piece of work.
struct Tiles {
  Tiles() {
    static constexpr TileConfig config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
};

// The compiler does not know that tiles are loaded from memory: what was written for them must be there.
inline void finish_stores() { __asm__ volatile("" ::: "memory"); }

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// ---- Bands ----

// How an image is cut into bands of rows: what a band needs lies in some 32 KB.
struct Bands {
  int64_t pitch;  // positions in a row
  int64_t rows;   // of outputs in a band; the last one of an image may have fewer
  int64_t count;  // in an image
  explicit Bands(const Conv3x3Shape& s) : pitch(s.w + 2) {
    const int64_t most = larger(1, 32768 / (pitch * 3 * (s.c + s.k)));
    count = (s.h + most - 1) / most;
    rows = (s.h + count - 1) / count;
    count = (s.h + rows - 1) / rows;
  }
  int64_t outputs() const { return rows * pitch; }
  int64_t inputs() const { return (rows + 2) * pitch; }
  int64_t gathered() const { return larger(1, kGathered / inputs()); }
};

struct Band {
  int64_t image, first, rows;  // output rows first .. first + rows - 1
  Band(const Bands& bands, const Conv3x3Shape& s, int64_t tile)
      : image(tile / bands.count), first(tile % bands.count * bands.rows), rows(smaller(bands.rows, s.h - first)) {}
};

// A band's inputs from `images` [n,h,w,channels], with zeros around the image and up to `positions`.
void pad(Half* to, const Half* images, const Conv3x3Shape& s, int64_t channels, const Band& band, int64_t positions) {
  const int64_t pitch = s.w + 2, line = s.w * channels;
  Half* at = to;
  for (int64_t row = band.first - 1; row <= band.first + band.rows; ++row, at += pitch * channels) {
    if (row < 0 || row >= s.h) {
      __builtin_memset(at, 0, sizeof(Half) * uint64_t(pitch * channels));
      continue;
    }
    __builtin_memset(at, 0, sizeof(Half) * uint64_t(channels));
    __builtin_memcpy(at + channels, images + (band.image * s.h + row) * line, sizeof(Half) * uint64_t(line));
    __builtin_memset(at + channels + line, 0, sizeof(Half) * uint64_t(channels));
  }
  __builtin_memset(at, 0, sizeof(Half) * uint64_t(to + positions * channels - at));
}

// The memory of a band's pixels in a tensor [n,h,w,channels], fetched while others are computed with: a few lines at a
// time, as the processor has room for only so many on their way.
class Fetch {
 public:
  Fetch() = default;
  Fetch(const Half* images, const Conv3x3Shape& s, int64_t channels, const Band& band)
      : at_(images + (band.image * s.h + band.first) * s.w * channels), end_(at_ + band.rows * s.w * channels) {}
  template <bool kWrite>
  void next(int64_t lines) {
    for (int64_t i = 0; i < lines && at_ < end_; ++i, at_ += 32) __builtin_prefetch(at_, kWrite, 2);
  }

 private:
  const Half *at_ = nullptr, *end_ = nullptr;
};
struct Fetches {
  Fetch x, dy, plus, written;
  void next() {
    x.next<false>(8);
    dy.next<false>(8);
    plus.next<false>(8);
    written.next<true>(8);
  }
};

// ---- Filters ----

// The 3 c numbers of a row of taps, in steps of 32. Where they do not fill the last step, it begins earlier, and what
// it has from the step before is multiplied by zero.
int64_t steps(int64_t c) { return (3 * c + kStep - 1) / kStep; }
int64_t step_at(int64_t step, int64_t c) { return smaller(step * kStep, 3 * c - kStep); }

// A tile for each group of outputs, row of taps and step, 16 bit numbers; as floats, half as many.
int64_t filters_size(int64_t c, int64_t k) { return k / kChannelGroup * 3 * steps(c) * kTile / 2; }

// Half a tile for each row and column of taps. value(input, output, row, column): the filter.
template <class Value>
void pack(Half* filters, int64_t inputs, int64_t group_in, int64_t group_out, const Value& value) {
  for (int row = 0; row < 3; ++row)
    for (int column = 0; column < 3; ++column) {
      const int64_t in = group_in * kChannelGroup, first = column * inputs + in;  // of the row's 3 c
      const int64_t step = first / kStep, at = first - step_at(step, inputs);
      Half* const tile = filters + ((group_out * 3 + row) * steps(inputs) + step) * kTile;
      for (int64_t i = 0; i < kChannelGroup; ++i)
        for (int64_t o = 0; o < kChannelGroup; ++o)
          tile[((at + i) / 2 * kChannelGroup + o) * 2 + (at + i) % 2] =
              value(in + i, group_out * kChannelGroup + o, row, column);
      if (at + kChannelGroup == kStep && step * kStep > step_at(step, inputs))  // the half that the step before had
        __builtin_memset(tile, 0, sizeof(Half) * kTile / 2);
    }
}

void filters(float* packed, const void* w_, int64_t c, int64_t k, int64_t group_c, int64_t group_k) {
  const Half* w = static_cast<const Half*>(w_);
  (void)k;
  pack(reinterpret_cast<Half*>(packed), c, group_c, group_k,
       [&](int64_t in, int64_t out, int row, int column) { return w[(out * 9 + row * 3 + column) * c + in]; });
}

void turned_filters(float* packed, const void* w_, int64_t c, int64_t k, int64_t group_c, int64_t group_k) {
  const Half* w = static_cast<const Half*>(w_);
  pack(reinterpret_cast<Half*>(packed), k, group_k, group_c,
       [&](int64_t in, int64_t out, int row, int column) { return w[(in * 9 + 8 - (row * 3 + column)) * c + out]; });
}

// ---- Forward ----

// out [positions,k] f32 = in [positions,c] * filters, for two groups of outputs: two by two tiles.
void multiply_two(float* out, const Half* in, const Half* filters, int64_t positions, int64_t pitch, int64_t c,
                  int64_t k, Fetches& fetches) {
  const int64_t count = steps(c), group = 3 * count * kTile;
  finish_stores();
  for (int64_t q = 0; q < positions; q += 2 * kRows, out += 2 * kRows * k) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const Half* b = filters;
    for (int64_t row = 0; row < 3; ++row)
      for (int64_t step = 0; step < count; ++step, b += kTile) {
        fetches.next();
        const Half* a = in + (q + row * pitch) * c + step_at(step, c);
        _tile_loadd(4, a, 2 * c);
        _tile_loadd(5, a + kRows * c, 2 * c);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(7, b + group, 64);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    _tile_stored(0, out, 4 * k);
    _tile_stored(1, out + kRows * k, 4 * k);
    _tile_stored(2, out + kChannelGroup, 4 * k);
    _tile_stored(3, out + kChannelGroup + kRows * k, 4 * k);
  }
}

// The same for one group: three tiles, so that no sum waits for its own last product.
void multiply_one(float* out, const Half* in, const Half* filters, int64_t positions, int64_t pitch, int64_t c,
                  int64_t k, Fetches& fetches) {
  const int64_t count = steps(c);
  finish_stores();
  for (int64_t q = 0; q < positions; q += 3 * kRows, out += 3 * kRows * k) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    const Half* b = filters;
    for (int64_t row = 0; row < 3; ++row)
      for (int64_t step = 0; step < count; ++step, b += kTile) {
        fetches.next();
        const Half* a = in + (q + row * pitch) * c + step_at(step, c);
        _tile_loadd(6, b, 64);
        _tile_loadd(3, a, 2 * c);
        _tile_dpbf16ps(0, 3, 6);
        _tile_loadd(4, a + kRows * c, 2 * c);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(5, a + 2 * kRows * c, 2 * c);
        _tile_dpbf16ps(2, 5, 6);
      }
    _tile_stored(0, out, 4 * k);
    _tile_stored(1, out + kRows * k, 4 * k);
    _tile_stored(2, out + 2 * kRows * k, 4 * k);
  }
}

void multiply(float* out, const Half* in, const Half* filters, int64_t positions, int64_t pitch, int64_t c, int64_t k,
              Fetches fetches) {
  const int64_t group = 3 * steps(c) * kTile;
  int64_t o = 0;
  for (; o + 2 * kChannelGroup <= k; o += 2 * kChannelGroup)
    multiply_two(out + o, in, filters + o / kChannelGroup * group, positions, pitch, c, k, fetches);
  if (o < k) multiply_one(out + o, in, filters + o / kChannelGroup * group, positions, pitch, c, k, fetches);
}

// A band's outputs (+ plus) to their places in y [n,h,w,k], and their sums: two of each, as an addition takes four
// cycles.
template <bool kPlus, bool kSums>
void write(Half* y, const Half* plus, const float* out, const Conv3x3Shape& s, int64_t k, const Band& band,
           Conv3x3Sums* sums, bool fresh) {
  const int64_t pitch = s.w + 2;
  for (int64_t o = 0; o < k; o += kChannelGroup) {
    V shift{}, sum[2] = {}, squares[2] = {};
    if (kSums) shift = load(fresh ? out + o : sums->shift + o);
    const auto pixel = [&](int64_t at, const float* from, int which) {
      const V v = load(from);
      store(y + at, kPlus ? v + load(plus + at) : v);
      if (!kSums) return;
      const V d = v - shift;
      sum[which] += d;
      squares[which] += d * d;
    };
    for (int64_t row = 0; row < band.rows; ++row) {
      const float* from = out + row * pitch * k + o;
      const int64_t at = ((band.image * s.h + band.first + row) * s.w) * k + o, end = at + s.w * k;
      int64_t i = at;
      for (; i + k < end; i += 2 * k, from += 2 * k) {
        pixel(i, from, 0);
        pixel(i + k, from + k, 1);
      }
      if (i < end) pixel(i, from, 0);
    }
    if (!kSums) continue;
    if (fresh) store(sums->shift + o, shift);
    for (int lane = 0; lane < kLanes; ++lane) {
      sums->sum[o + lane] += double(sum[0][lane] + sum[1][lane]);
      sums->squares[o + lane] += double(squares[0][lane] + squares[1][lane]);
    }
  }
  if (kSums) sums->pixels += double(band.rows * s.w);
}

// Memory of a piece of work. `padded`: a band's inputs; for weights the x of all bands that are gathered, whose pairs
// and whose dy by channels are the other arrays. Without memory it only tells its size.
struct Scratch {
  float *out, *sums;
  Half *padded, *padded_x, *even, *odd, *turned;
  int64_t plane;  // positions of a group of channels in even and odd, or of a channel in turned
  int64_t size;   // in floats
  Scratch(float* memory, const Conv3x3Shape& s, const Bands& bands) {
    const int64_t most = larger(s.c, s.k);
    plane = rounded_up(bands.gathered() * bands.inputs() + kAhead, kStep);
    size = 0;
    const auto take = [&](int64_t floats) {
      float* taken = memory ? memory + size : nullptr;
      size += rounded_up(floats, 16);
      return taken;
    };
    const auto take_halves = [&](int64_t halves) { return reinterpret_cast<Half*>(take(halves / 2)); };
    out = take((bands.outputs() + kAhead) * most);
    sums = take(9 * s.c * s.k);
    padded = take_halves((bands.inputs() + kAhead) * most);
    padded_x = take_halves((plane + kAhead) * s.c);
    even = take_halves(plane * s.c);
    odd = take_halves(plane * s.c);
    turned = take_halves(plane * s.k);
  }
};

int64_t scratch_size(const Conv3x3Shape& s) { return Scratch(nullptr, s, Bands(s)).size; }

int64_t tiles(const Conv3x3Shape& s) { return s.n * Bands(s).count; }

// One band of y [n,h,w,k], whose inputs are padded already.
void convolve_band(Half* y, const Half* plus, const float* filters, const Conv3x3Shape& s, int64_t c, int64_t k,
                   const Bands& bands, const Band& band, const Scratch& memory, Conv3x3Sums* sums, bool fresh,
                   const Fetches& fetches) {
  multiply(memory.out, memory.padded, reinterpret_cast<const Half*>(filters), band.rows * bands.pitch, bands.pitch, c,
           k, fetches);
  if (sums)
    write<false, true>(y, nullptr, memory.out, s, k, band, sums, fresh);
  else if (plus)
    write<true, false>(y, plus, memory.out, s, k, band, nullptr, false);
  else
    write<false, false>(y, nullptr, memory.out, s, k, band, nullptr, false);
}

void convolve(void* y, const void* x, const Conv3x3Norm*, const float* filters, const Conv3x3Shape& s, int64_t first,
              int64_t end, float* scratch, const Conv3x3Tail& tail) {
  const void* const plus = tail.plus;
  Conv3x3Sums* const sums = tail.sums;
  const Tiles tiles;
  const Bands bands(s);
  const Scratch memory(scratch, s, bands);
  for (int64_t tile = first; tile < end; ++tile) {
    const Band band(bands, s, tile);
    pad(memory.padded, static_cast<const Half*>(x), s, s.c, band, bands.inputs() + kAhead);
    Fetches fetches;
    const Band next(bands, s, tile + 1);
    fetches.x = Fetch(static_cast<const Half*>(x), s, s.c, next);
    fetches.written = Fetch(static_cast<const Half*>(y), s, s.k, band);
    if (plus) fetches.plus = Fetch(static_cast<const Half*>(plus), s, s.k, band);
    convolve_band(static_cast<Half*>(y), static_cast<const Half*>(plus), filters, s, s.c, s.k, bands, band, memory,
                  sums, tile == first, fetches);
  }
}

// ---- The gradient of the weights ----

// [position][channels] -> [channels / 16][pair of positions][16][2], pairs that begin at even positions and at odd
// ones.
void to_pairs(Half* even, Half* odd, const Half* padded, int64_t channels, int64_t positions, int64_t plane) {
  const auto wide = [&](int64_t p, int64_t c) {
    Halves h;
    __builtin_memcpy(&h, padded + p * channels + c, sizeof h);
    return __builtin_convertvector(h, Words);
  };
  for (int64_t c = 0; c < channels; c += kChannelGroup) {
    Words a = wide(0, c);
    for (int64_t p = 0; p < positions; p += 2) {
      const Words b = wide(p + 1, c), next = wide(p + 2, c), ab = a | (b << 16), bc = b | (next << 16);
      __builtin_memcpy(even + c * plane + p * kChannelGroup, &ab, sizeof ab);
      __builtin_memcpy(odd + c * plane + p * kChannelGroup, &bc, sizeof bc);
      a = next;
    }
  }
}

// Rows and columns of 16 x 16 words exchanged. Interleaving rows i and i + 8 turns the eight bits of a word's place
// (row, column) round by one; four times is half a turn.
void transpose(Words (&rows)[16]) {
  for (int round = 0; round < 4; ++round) {
    Words next[16];
    for (int i = 0; i < 8; ++i) {
      const Words a = rows[i], b = rows[i + 8];
      next[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      next[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    for (int i = 0; i < 16; ++i) rows[i] = next[i];
  }
}

// [position][channels] -> [channels][plane], zeros from position `real` to `positions`, rounded up to whole tiles.
void to_channels(Half* turned, const Half* padded, int64_t channels, int64_t real, int64_t positions, int64_t plane) {
  for (int64_t c = 0; c < channels; c += kChannelGroup)
    for (int64_t p = 0; p < positions; p += kStep) {
      Words rows[16];
      for (int64_t i = 0; i < 16; ++i) {
        Halves even{}, odd{};
        const Half* from = padded + (p + 2 * i) * channels + c;
        if (p + 2 * i < real) __builtin_memcpy(&even, from, sizeof even);
        if (p + 2 * i + 1 < real) __builtin_memcpy(&odd, from + channels, sizeof odd);
        rows[i] = __builtin_convertvector(even, Words) | widened(odd);
      }
      transpose(rows);
      for (int64_t i = 0; i < 16; ++i) __builtin_memcpy(turned + (c + i) * plane + p, &rows[i], sizeof rows[i]);
    }
}

// sums [row][k/16][c/16][column][16][16] += the products of `outputs` positions of dy and theirs of x.
void accumulate(const Scratch& memory, const Conv3x3Shape& s, int64_t pitch, int64_t outputs) {
  const int64_t plane = memory.plane;
  float* sums = memory.sums;
  finish_stores();
  for (int64_t row = 0; row < 3; ++row)
    for (int64_t k = 0; k < s.k; k += kChannelGroup)
      for (int64_t c = 0; c < s.c; c += kChannelGroup, sums += 3 * kSums) {
        const auto pairs_from = [&](int64_t position) {
          return (position % 2 ? memory.odd : memory.even) + c * plane + position / 2 * 2 * kChannelGroup;
        };
        const Half *dy = memory.turned + k * plane, *x0 = pairs_from(row * pitch), *x1 = pairs_from(row * pitch + 1),
                   *x2 = pairs_from(row * pitch + 2);
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + kSums, 64);
        _tile_loadd(2, sums + 2 * kSums, 64);
        for (int64_t q = 0; q < outputs; q += kStep) {
          _tile_loadd(3, dy + q, 2 * plane);
          _tile_loadd(4, x0 + q * kChannelGroup, 64);
          _tile_dpbf16ps(0, 3, 4);
          _tile_loadd(5, x1 + q * kChannelGroup, 64);
          _tile_dpbf16ps(1, 3, 5);
          _tile_loadd(6, x2 + q * kChannelGroup, 64);
          _tile_dpbf16ps(2, 3, 6);
        }
        _tile_stored(0, sums, 64);
        _tile_stored(1, sums + kSums, 64);
        _tile_stored(2, sums + 2 * kSums, 64);
      }
}

// dw [k,3,3,c] from the sums.
void write_weights(float* dw, const float* sums, const Conv3x3Shape& s) {
  for (int64_t row = 0; row < 3; ++row)
    for (int64_t k = 0; k < s.k; k += kChannelGroup)
      for (int64_t c = 0; c < s.c; c += kChannelGroup)
        for (int64_t column = 0; column < 3; ++column, sums += kSums)
          for (int64_t i = 0; i < kChannelGroup; ++i)
            store(dw + ((k + i) * 9 + row * 3 + column) * s.c + c, load(sums + i * kChannelGroup));
}

// Both gradients, or that of the weights alone.
template <bool kData>
void backward_as(Half* dx, float* dw, const Half* dy, const Half* x, const Half* plus, const float* turned_filters,
                 const Conv3x3Shape& s, int64_t first, int64_t end, float* scratch) {
  const Tiles tiles;
  const Bands bands(s);
  const Scratch memory(scratch, s, bands);
  const int64_t stride = bands.inputs(), most = bands.gathered(), plane = memory.plane;
  __builtin_memset(memory.sums, 0, sizeof(float) * uint64_t(9 * s.c * s.k));
  __builtin_memset(memory.turned, 0, sizeof(Half) * uint64_t(plane * s.k));  // what lies between the bands' outputs
  for (int64_t tile = first; tile < end; tile += most) {
    const int64_t count = smaller(most, end - tile), outputs = (count - 1) * stride + bands.outputs();
    for (int64_t i = 0; i < count; ++i) {
      const Band band(bands, s, tile + i);
      pad(memory.padded_x + i * stride * s.c, x, s, s.c, band, i == count - 1 ? stride + kAhead : stride);
      pad(memory.padded, dy, s, s.k, band, stride + kAhead);
      // The first output's dy is in the second row and column of what is padded.
      to_channels(memory.turned + i * stride, memory.padded + (bands.pitch + 1) * s.k, s.k, band.rows * bands.pitch,
                  bands.outputs(), plane);
      if (!kData) continue;
      Fetches fetches;
      const Band next(bands, s, tile + i + 1);
      fetches.x = Fetch(x, s, s.c, next);
      fetches.dy = Fetch(dy, s, s.k, next);
      if (plus) fetches.plus = Fetch(plus, s, s.c, band);
      fetches.written = Fetch(dx, s, s.c, band);
      convolve_band(dx, plus, turned_filters, s, s.k, s.c, bands, band, memory, nullptr, false, fetches);
    }
    // The last tile of positions may reach beyond the last output: into another group's, if that had more bands.
    for (int64_t k = 0; k < s.k; ++k) __builtin_memset(memory.turned + k * plane + outputs, 0, sizeof(Half) * kStep);
    to_pairs(memory.even, memory.odd, memory.padded_x, s.c, rounded_up(count * stride, 2) + kStep + 2, plane);
    accumulate(memory, s, bands.pitch, outputs);
  }
  write_weights(dw, memory.sums, s);
}

void weight_gradient(float* dw, const void* dy, const void* x, const Conv3x3Norm*, const Conv3x3Shape& s, int64_t first,
                     int64_t end, float* scratch) {
  backward_as<false>(nullptr, dw, static_cast<const Half*>(dy), static_cast<const Half*>(x), nullptr, nullptr, s, first,
                     end, scratch);
}
void backward(void* dx, float* dw, const void* dy, const void* x, const Conv3x3Norm*, const float* turned_filters,
              const Conv3x3Shape& s, int64_t first, int64_t end, float* scratch, const Conv3x3Tail& tail,
              const Conv3x3OutputBn*) {
  backward_as<true>(static_cast<Half*>(dx), dw, static_cast<const Half*>(dy), static_cast<const Half*>(x),
                    static_cast<const Half*>(tail.plus), turned_filters, s, first, end, scratch);
}

// As many products as there can be: four sums hide an addition's latency, and nothing but registers is touched.
double multiply_zeros(int64_t rounds) {
  const Tiles tiles;  // all zero
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  return 0;
}

}  // namespace

extern const PeakKernel peak_amx = {4 * 2 * kRows * kStep * kChannelGroup, multiply_zeros};

// Knows nothing of batch norms but their moments: false.
extern const Conv3x3Kernels direct_bf16_amx = {
    1,       1, INT64_MAX, false, tiles, filters_size, scratch_size, filters, turned_filters, convolve, weight_gradient,
    backward};

}  // namespace linnet
#endif
