// Everything that changes from one step to the next. It lives in device memory and kernels take a pointer to it, never
// its values: a captured CUDA graph can then be replayed, and a resumed run needs little more than (seed, step).
#pragma once
#include "hd.h"

namespace linnet {

struct StepParams {
  float lr = 0;
  float weight_decay = 0;
  float clip_scale = 1;  // written on the device by clip_scale()
  float grad_norm = 0;   // likewise: the global L2 norm before clipping
  int32_t epoch = 0;     // 0-based
  int64_t first = 0;     // position of the batch's first sample in the epoch's order
  int64_t step = 0;      // 0-based, over the whole run
  uint64_t seed = 0;
};

}  // namespace linnet
