#include "console.h"

#include <fmt/chrono.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "linnet/text.h"

namespace linnet {

namespace {

constexpr auto kRedraw = std::chrono::milliseconds(100);
constexpr auto kHeartbeat = std::chrono::seconds(30);

// Asked at every redraw, so that a resized window is right at once.
size_t columns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

void line(const std::string& text) { tell(fmt::format("{:%H:%M:%S} {}\n", fmt::localtime(std::time(nullptr)), text)); }

// Parts side by side; one that does not fit the width starts a new line.
std::string wrapped(const std::vector<std::string>& parts, size_t width) {
  std::string text;
  size_t used = 0;
  for (const std::string& part : parts) {
    if (used > 0 && used + 2 + part.size() > width) {
      text += "\n";
      used = 0;
    }
    text += (text.empty() ? "" : "  ") + part;
    used += 2 + part.size();
  }
  return text;
}

}  // namespace

void tell(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

bool can_redraw() {
  const char *term = std::getenv("TERM"), *ci = std::getenv("CI");
  return isatty(STDERR_FILENO) && !(term && std::string_view(term) == "dumb") && !(ci && *ci);
}

bool colours_wanted() {
  const char* no = std::getenv("NO_COLOR");
  return !(no && *no);
}

Console::Console(int64_t epochs, int64_t steps_per_epoch, int64_t batch_size, int64_t first_step)
    : epochs_(epochs),
      steps_per_epoch_(steps_per_epoch),
      batch_size_(batch_size),
      first_step_(first_step),
      bar_(can_redraw()),
      rate_step_(first_step) {}

Console::~Console() { clear(); }

void Console::clear() {
  if (!drawn_) return;
  tell("\r\x1b[K");
  drawn_ = false;
}

std::string Console::eta(int64_t step) const {
  const double elapsed = std::chrono::duration<double>(Clock::now() - started_).count();
  return duration_text(elapsed / double(std::max<int64_t>(1, step - first_step_)) *
                       double(epochs_ * steps_per_epoch_ - step));
}

void Console::on_step(int64_t step, int64_t epoch) {
  const auto now = Clock::now();
  if (now - last_ < (bar_ ? std::chrono::duration_cast<Clock::duration>(kRedraw) : kHeartbeat)) return;
  const bool first = last_ == Clock::time_point{};
  last_ = now;
  if (const double s = std::chrono::duration<double>(now - rate_from_).count(); s > 1 || img_per_s_ == 0) {
    img_per_s_ = double((step - rate_step_) * batch_size_) / s;
    rate_from_ = now;
    rate_step_ = step;
  }
  if (bar_) return draw(step, epoch);
  if (first) return;
  // The first loss is known after log.interval steps.
  const std::string loss = std::isnan(loss_) ? "" : fmt::format("loss {:.4f} acc {:.2f} % ", loss_, 100 * acc_);
  line(fmt::format("epoch {}/{} step {}/{} {}{:.0f} img/s ETA {}", epoch + 1, epochs_, step - epoch * steps_per_epoch_,
                   steps_per_epoch_, loss, img_per_s_, eta(step)));
}

// Parts are dropped from the right until the line fits the window.
void Console::draw(int64_t step, int64_t epoch) {
  const int64_t done = step - epoch * steps_per_epoch_;
  const size_t width = columns() - 1;
  const std::string head = fmt::format("ep {}/{} ", epoch + 1, epochs_);
  std::vector<std::string> parts = {fmt::format(" {}/{}", done, steps_per_epoch_)};
  if (!std::isnan(loss_)) parts.push_back(fmt::format(" loss {:.3f} acc {:.1f}", loss_, 100 * acc_));
  parts.push_back(fmt::format(" ETA {}", eta(step)));
  parts.push_back(fmt::format(" {:.0f} img/s", img_per_s_));
  if (!std::isnan(lr_)) parts.push_back(fmt::format(" lr {:.3g}", lr_));
  const size_t bar_width = width >= 60 ? 20 : 8;
  std::string text = head;
  if (text.size() + bar_width + 2 <= width) {
    const auto filled = size_t(double(bar_width) * double(done) / double(steps_per_epoch_));
    text += "|" + std::string(filled, '#') + std::string(bar_width - filled, '-') + "|";
  }
  for (const std::string& part : parts)
    if (text.size() + part.size() <= width) text += part;
  tell(fmt::format("\r{}\x1b[K", text.substr(0, width)));
  drawn_ = true;
}

void Console::on_row(const Row& row) {
  if (row.kind == "step") {
    loss_ = row["train/loss"];
    acc_ = row["train/acc"];
    lr_ = row["lr"];
  }
  if (row.kind != "epoch") return;
  clear();
  std::vector<std::string> parts = {
      fmt::format("epoch {:>{}}/{}", row.epoch, std::to_string(epochs_).size(), epochs_),
      std::isnan(row["train/loss"])
          ? "all steps skipped"
          : fmt::format("train loss {:.4f} acc {:5.2f} %", row["train/loss"], 100 * row["train/acc"])};
  if (!std::isnan(row["val/acc"]))
    parts.push_back(fmt::format("val loss {:.4f} acc {:5.2f} %", row["val/loss"], 100 * row["val/acc"]));
  parts.push_back(fmt::format("lr {:.4g}", row["lr"]));
  if (row.img_per_s > 0) parts.push_back(fmt::format("{:.0f} img/s", row.img_per_s));
  parts.push_back(fmt::format("ETA {}", eta(row.step)));
  constexpr size_t kTime = 9;  // what line() puts in front
  line(wrapped(parts, bar_ ? columns() - std::min(columns(), kTime) : std::string::npos));
}

}  // namespace linnet
