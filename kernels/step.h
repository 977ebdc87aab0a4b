// Everything that changes from one step to the next. It lives in device memory and kernels take a pointer to it, never
// its values: a captured CUDA graph can then be replayed, and a resumed run needs little more than (seed, step).
#pragma once
#include "hd.h"

namespace linnet {

// What one parameter group's rule reads in a step, the same for all of its elements. In double: a rule converts once.
struct GroupStep {
  double lr = 0;
  double weight_decay = 0;
  int64_t t = 1;     // updates of this rule with this one, from 1
  double c[4] = {};  // the rule's own factors of this step, such as bias corrections: Rule::factors()
};

inline constexpr int kMaxGroups = 8;

// Written by the host before a step.
struct StepParams {
  int32_t epoch = 0;  // 0-based
  int64_t first = 0;  // position of the batch's first sample in the epoch's order
  int64_t step = 0;   // 0-based, over the whole run
  uint64_t seed = 0;
  int32_t max_bad_in_row = 0;  // more bad steps in a row than this, and all further ones are left out
  // The same where the loss is finite and only its gradient is not: in fp16 that is the loss scale's fault.
  int32_t max_overflows_in_row = 0;
  GroupStep group[kMaxGroups];
};

// Written by the device, read by the host when it wants to know.
struct StepResult {
  float clip_scale = 1;
  float grad_norm = 0;     // global L2 norm, before clipping it
  double residue = 0;      // of the new running statistics: 0, but NaN where one is not finite
  int32_t bad = 0;         // loss, gradient or statistics are not finite: the update is not applied
  int32_t bad_in_row = 0;  // so many have come one after the other
  int32_t halted = 0;      // too many
  int64_t bad_step = -1;   // the first of them
  int64_t clipped = 0;     // steps so far whose gradient was scaled down
  int64_t skipped = 0;     // steps so far that were bad
};

// One of the last steps, for whoever asks why a run diverged.
struct StepTrace {
  int64_t step = -1;  // 0-based; -1: there is none yet
  double loss = 0;    // sum over the step's images
  double lr = 0;      // of group 0
  float grad_norm = 0;
  int32_t bad = 0;
};
inline constexpr int kTraceSteps = 100;

struct StepMemory {
  StepParams params;
  StepResult result;
  StepTrace trace[kTraceSteps];  // step s is at s % kTraceSteps
};

}  // namespace linnet
