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

// What the calls were made for: a step, or the end of an epoch.
struct PhaseTime {
  std::string name;
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

// Chrome's trace format (chrome://tracing, ui.perfetto.dev): one event a call, and one a phase.
std::string chrome_trace(const std::vector<CallSpan>&, const ParamStore&, const std::vector<PhaseTime>& phases);

}  // namespace linnet
