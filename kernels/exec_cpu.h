// The launch verbs on the CPU. Every verb cuts its range into pieces of a fixed size, so the result does not depend on
// the number of threads (docs/DESIGN.md, "Rules").
#pragma once
#include <algorithm>
#include <vector>

#include "hd.h"
#include "linnet/threads.h"

namespace linnet {

// A loop that is compiled twice, the second time for AVX-512: the functors are inlined into both. Either gives the same
// bits.
#if defined(__x86_64__) && defined(__AVX2__)
#define LINNET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define LINNET_AVX512
#endif
template <class F>
void loop_plain(int64_t begin, int64_t end, const F& f) {
  const F body = f;  // its own: no store can change it
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) body(i);
}
template <class F>
LINNET_AVX512 void loop_avx512(int64_t begin, int64_t end, const F& f) {
  const F body = f;
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) body(i);
}
template <class F>
LINNET_HD void row_of(const F& body, int64_t row, int64_t columns) {
  if constexpr (requires { body.row(row, columns); }) {
    body.row(row, columns);
  } else {
#pragma GCC ivdep
    for (int64_t c = 0; c < columns; ++c) body(row, c);
  }
}
template <class F>
void rows_plain(int64_t begin, int64_t end, int64_t columns, const F& f) {
  const F body = f;
  for (int64_t row = begin; row < end; ++row) row_of(body, row, columns);
}
template <class F>
LINNET_AVX512 void rows_avx512(int64_t begin, int64_t end, int64_t columns, const F& f) {
  const F body = f;
  for (int64_t row = begin; row < end; ++row) row_of(body, row, columns);
}

struct CpuExec {
  ThreadPool* pool;
  bool avx512 = false;           // the processor has it
  mutable int64_t launches = 0;  // so far, to count what a GPU would be given

  static constexpr bool kLaunchesCost = false;
  static constexpr int64_t kPiece = 1 << 14;  // elements: large enough to hide the hand-over, small enough to share out

  // f(i) for every i. `cost` is the work of one call in units of one simple element.
  template <class F>
  void for_each(int64_t n, const F& f, int64_t cost = 1) const {
    launches += n > 0;
    const int64_t piece = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, cost));
    pool->run((n + piece - 1) / piece, [&](int64_t k, int) {
      const int64_t end = std::min(n, (k + 1) * piece);
      const auto body = loop_body(f);
      (avx512 ? loop_avx512<decltype(body)> : loop_plain<decltype(body)>)(k * piece, end, body);
    });
  }

  // f(row, column) for every pair: rows are shared out, columns run in the inner loop.
  template <class F>
  void for_each_2d(int64_t rows, int64_t columns, const F& f, int64_t cost = 1) const {
    launches += rows * columns > 0;
    const int64_t piece = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, columns * cost));
    pool->run((rows + piece - 1) / piece, [&](int64_t k, int) {
      const int64_t end = std::min(rows, (k + 1) * piece);
      (avx512 ? rows_avx512<F> : rows_plain<F>)(k * piece, end, columns, f);
    });
  }

  // finish(sum of term(i)) in double: eight lanes a piece (so that it vectorises), then lanes and pieces in order.
  template <class Term, class Finish>
  void reduce(int64_t n, const Term& term, const Finish& finish) const {
    launches += n > 0 ? 2 : 1;
    constexpr int kLanes = 8;
    const int64_t pieces = (n + kPiece - 1) / kPiece;
    std::vector<double> partial(size_t(pieces), 0.0);
    pool->run(pieces, [&](int64_t k, int) {
      double lane[kLanes] = {};
      const int64_t begin = k * kPiece, end = std::min(n, begin + kPiece);
      int64_t i = begin;
      for (; i + kLanes <= end; i += kLanes)
        for (int j = 0; j < kLanes; ++j) lane[j] += term(i + j);
      for (; i < end; ++i) lane[(i - begin) % kLanes] += term(i);
      for (double l : lane) partial[size_t(k)] += l;
    });
    double total = 0;
    for (double p : partial) total += p;
    finish(total);
  }
};

}  // namespace linnet
