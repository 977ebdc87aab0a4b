// What measures a core's peak (peak.cpp), compiled once per instruction set.
#pragma once
#include <stdint.h>

namespace linnet {

struct PeakKernel {
  int64_t flops;  // of a round
  double (*run)(int64_t rounds);
};

extern const PeakKernel peak_avx2, peak_avx512, peak_amx;

}  // namespace linnet
