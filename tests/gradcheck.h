// One test that tests any layer: the gradients that the tape computes on a backend, in float, against central
// differences of the oracle's forward pass in double, both of the scalar sum(weight * y) with fixed random weights.
#pragma once
#include "op_case.h"

namespace linnet {

// (f(x + h) - f(x - h)) / 2h for every element of a tensor in the oracle's memory. A float cannot hold every x + h: the
// distance between the two points is measured, not assumed.
template <class T>
std::vector<double> central_differences(OpRun& oracle, const Tensor& t, double h) {
  std::vector<double> slopes;
  T* x = t.data<T>();
  for (int64_t i = 0; i < t.numel(); ++i) {
    const T here = x[i], above = T(double(here) + h), below = T(double(here) - h);
    x[i] = above;
    const double up = oracle.value();
    x[i] = below;
    const double down = oracle.value();
    x[i] = here;
    slopes.push_back((up - down) / (double(above) - double(below)));
  }
  return slopes;
}

// The differences themselves err by h^2 / 6 f''' (1e-8 f''' for h = 2^-12) and 2^-53 f / h (1e-12), far below the float
// gradients' own error: the case's tolerance is for the latter alone. A loss's value is a float: see loss_test.cpp.
inline void check_gradients(const OpCase& c, Backend& be) {
  SCOPED_TRACE(c.name + ", central differences");
  Results got = OpRun(c, be).run();
  got.erase(got.begin());  // y
  got.resize(got.size() - c.state.size());

  ReferenceBackend reference;
  OpRun oracle(c, reference, DType::f64);
  Results want;
  for (const Tensor& x : oracle.operands().x) want.push_back({"", central_differences<double>(oracle, x, c.h)});
  for (const Param* w : oracle.operands().w) want.push_back({"", central_differences<float>(oracle, w->master, c.h)});
  expect_close(got, want, c.tolerance);
}

}  // namespace linnet
