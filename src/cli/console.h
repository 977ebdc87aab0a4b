// What a person sees of a run on stderr: a progress bar on a terminal, whole lines elsewhere.
#pragma once
#include <chrono>
#include <cmath>
#include <string>

#include "linnet/trainer.h"

namespace linnet {

// Writes to stderr. That nobody listens any more is no reason to end a run: errors are passed over.
void tell(const std::string& text);

// Whether stderr is a terminal on which a line can be drawn anew.
bool can_redraw();

// Whether a person wants colours: NO_COLOR is not set, or empty (no-color.org).
bool colours_wanted();

class Console : public Observer {
 public:
  // first_step: where a resumed run begins.
  Console(int64_t epochs, int64_t steps_per_epoch, int64_t batch_size, int64_t first_step = 0);
  ~Console() override;
  void on_step(int64_t step, int64_t epoch) override;
  void on_row(const Row&) override;
  // Clears the bar, so that a message may follow.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  void draw(int64_t step, int64_t epoch);
  std::string eta(int64_t step) const;

  int64_t epochs_, steps_per_epoch_, batch_size_, first_step_;
  bool bar_, drawn_ = false;
  double loss_ = NAN, acc_ = NAN, lr_ = NAN;  // of the last row; none yet
  Clock::time_point started_ = Clock::now(), last_ = {}, rate_from_ = Clock::now();
  int64_t rate_step_;
  double img_per_s_ = 0;
};

}  // namespace linnet
