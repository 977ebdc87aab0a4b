// What tests/torture/kill_save.py kills: saves checkpoints whose content follows from the step, one after the other.
//
//   save_child FOLDER N          loads the newest, prints "loaded STEP", saves N more, prints "saved STEP" after each
//   save_child FOLDER --check    prints "loaded STEP" or "nothing"; exit 9 if the content is not that of the step
//   ... --naive                  the control: one file, overwritten in place, without checksum or fsync
//
// Exit 4: a clear refusal.
#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "linnet/checkpoint.h"
#include "linnet/error.h"
#include "src/core/file.h"
#include "src/train/run_lock.h"

using namespace linnet;
namespace fs = std::filesystem;

namespace {

constexpr int kWrong = 9;
constexpr size_t kNumbers = 20'000;

std::vector<char> numbers(int64_t step, size_t count) {
  std::vector<char> bytes(count * sizeof(float));
  for (size_t i = 0; i < count; ++i) {
    const float value = float(step * 7 + int64_t(i) % 1000);
    std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
  }
  return bytes;
}

Checkpoint make(int64_t step) {
  Checkpoint c{step, step / 4};
  c.tensors["model"].tensors["w"] = {"F32", {int64_t(kNumbers)}, numbers(step, kNumbers)};
  c.tensors["optim"].tensors["m"] = {"F32", {100}, numbers(step + 1, 100)};
  c.state = fmt::format("{{\"step\":{}}}", step);
  c.facts["version"] = "torture";
  return c;
}

bool right(const Checkpoint& c) {
  const Checkpoint want = make(c.step);
  return c.epoch == want.epoch && c.state == want.state && c.facts == want.facts &&
         c.tensors.at("model").tensors.at("w").bytes == want.tensors.at("model").tensors.at("w").bytes &&
         c.tensors.at("optim").tensors.at("m").bytes == want.tensors.at("optim").tensors.at("m").bytes;
}

// One write, so that a kill leaves the whole line or nothing.
void say(const std::string& line) {
  const std::string text = line + "\n";
  if (uninterrupted([&] { return ::write(STDOUT_FILENO, text.data(), text.size()); }) < 0)
    fail(Exit::checkpoint, "cannot write to stdout");
}

// For people; fmt::print would throw where stderr fails.
void tell(const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); }

int64_t say_loaded(const std::optional<Checkpoint>& c) {
  if (c && !right(*c)) std::exit(kWrong);
  say(c ? fmt::format("loaded {}", c->step) : "nothing");
  return c ? c->step : 0;
}

void run(const fs::path& folder, int saves) {
  const RunLock lock(folder);
  CheckpointStore store(folder / "checkpoints", {.keep = 2, .every = 5});
  std::vector<Rejected> rejected;
  int64_t step = say_loaded(store.load_latest(rejected));
  for (const Rejected& r : rejected) tell(fmt::format("rejected {}: {}", r.name, r.reason));
  for (int i = 0; i < saves; ++i) {
    ++step;
    if (const std::string warning = store.save(make(step), step % 3 == 0); !warning.empty())
      tell("warning: " + warning);
    say(fmt::format("saved {}", step));
  }
}

// ---- The control

std::optional<Checkpoint> load_naive(const fs::path& file) {
  if (!fs::exists(file)) return {};
  const std::string bytes = read_file(file, 1 << 20, Exit::checkpoint);
  if (bytes.size() != sizeof(int64_t) + kNumbers * sizeof(float)) fail(Exit::checkpoint, "it is cut off");
  Checkpoint c{};
  std::memcpy(&c.step, bytes.data(), sizeof c.step);
  const int64_t step = c.step;
  c = make(step);
  std::copy(bytes.begin() + sizeof step, bytes.end(), c.tensors["model"].tensors["w"].bytes.begin());
  return c;
}

void run_naive(const fs::path& file, int saves) {
  int64_t step = say_loaded(load_naive(file));
  for (int i = 0; i < saves; ++i) {
    const int fd = ::open(file.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    ++step;
    std::string bytes(reinterpret_cast<const char*>(&step), sizeof step);
    const std::vector<char> w = numbers(step, kNumbers);
    bytes.append(w.data(), w.size());
    for (size_t at = 0; at < bytes.size(); at += 4096)
      if (::write(fd, bytes.data() + at, std::min<size_t>(4096, bytes.size() - at)) < 0)
        fail(Exit::checkpoint, "write");
    ::close(fd);
    say(fmt::format("saved {}", step));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  std::signal(SIGXFSZ, SIG_IGN);
  const fs::path folder = argv[1];
  const std::string what = argv[2];
  const bool naive = argc > 3 && std::string(argv[3]) == "--naive";
  try {
    std::vector<Rejected> rejected;
    if (what == "--check")
      say_loaded(naive ? load_naive(folder / "naive") : load_latest_checkpoint(folder / "checkpoints", rejected));
    else if (naive)
      run_naive(folder / "naive", std::atoi(what.c_str()));
    else
      run(folder, std::atoi(what.c_str()));
  } catch (const Error& error) {
    tell(fmt::format("error: {}", error.what()));
    return int(error.exit);
  }
}
