// What a step's time goes to: a backend that hands every call on to another one and notes how long it took.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "linnet/param.h"

namespace linnet {

// One call through the seam.
struct CallSpan {
  const char* call;   // "conv_forward"
  const void* param;  // memory of the parameter that it was about (its compute, master or gradient), or null
  Shape shape;        // of its largest operand
  std::string note;   // "3x3, 16 to 32, stride 2"
  double flops = 0;   // two per multiplication and addition of convolutions and matrix products; else 0
  double bytes = 0;   // all operands once
  int64_t begin_ns = 0, ns = 0;
};

class CallLog {
 public:
  void start() { on_ = true; }
  void stop() { on_ = false; }
  bool on() const { return on_; }
  void add(CallSpan span) { spans_.push_back(std::move(span)); }
  void clear() { spans_.clear(); }
  const std::vector<CallSpan>& spans() const { return spans_; }

 private:
  bool on_ = false;
  std::vector<CallSpan> spans_;
};
// Results are those of `inner`, to the last bit. While the log is on, each call is waited for.
std::unique_ptr<Backend> make_profiler(std::unique_ptr<Backend> inner, std::shared_ptr<CallLog> log);

int64_t now_ns();  // of the clock that spans are measured by

// The name of the layer whose parameter lies at `param`: "layer1.0.conv1"; empty if there is none.
std::string layer_of(const void* param, const ParamStore&);

// Chrome's trace format (chrome://tracing, ui.perfetto.dev): one event a call, and one a step: steps[i] is when step
// number first + i began, the last entry when the last one ended.
std::string chrome_trace(const std::vector<CallSpan>&, const ParamStore&, const std::vector<int64_t>& steps,
                         int64_t first);

}  // namespace linnet
