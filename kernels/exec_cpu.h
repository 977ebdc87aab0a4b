// The launch verbs on the CPU. Every verb cuts its range into pieces of a fixed size, so the result does not depend on
// the number of threads (docs/DESIGN.md, "Rules").
#pragma once
#include <algorithm>
#include <vector>

#include "hd.h"
#include "linnet/threads.h"

namespace linnet {

struct CpuExec {
  ThreadPool* pool;

  static constexpr int64_t kPiece = 1 << 14;  // elements: large enough to hide the hand-over, small enough to share out

  // f(i) for every i. `cost` is the work of one call in units of one simple element.
  template <class F>
  void for_each(int64_t n, const F& f, int64_t cost = 1) const {
    const int64_t piece = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, cost));
    pool->run((n + piece - 1) / piece, [&](int64_t k, int) {
      const int64_t end = std::min(n, (k + 1) * piece);
      const auto body = loop_body(f);
#pragma GCC ivdep
      for (int64_t i = k * piece; i < end; ++i) body(i);
    });
  }

  // f(row, column) for every pair: rows are shared out, columns run in the inner loop.
  template <class F>
  void for_each_2d(int64_t rows, int64_t columns, const F& f, int64_t cost = 1) const {
    const int64_t piece = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, columns * cost));
    pool->run((rows + piece - 1) / piece, [&](int64_t k, int) {
      const int64_t end = std::min(rows, (k + 1) * piece);
      for (int64_t row = k * piece; row < end; ++row) {
#pragma GCC ivdep
        for (int64_t c = 0; c < columns; ++c) f(row, c);
      }
    });
  }

  // finish(sum of term(i)) in double: eight lanes a piece (so that it vectorises), then lanes and pieces in order.
  template <class Term, class Finish>
  void reduce(int64_t n, const Term& term, const Finish& finish) const {
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
