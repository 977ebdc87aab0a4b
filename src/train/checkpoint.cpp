#include "linnet/checkpoint.h"

#include <fmt/format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <string_view>

#include "linnet/error.h"
#include "linnet/text.h"
#include "src/core/digest.h"
#include "src/core/file.h"
#include "src/core/folder.h"
#include "src/core/json.h"
#include "src/train/manifest.h"

namespace linnet {
namespace fs = std::filesystem;
namespace {

const std::string kManifest = "MANIFEST.json", kState = "state.json", kTensors = ".safetensors";
constexpr int kSound = 2;      // so many verified checkpoints always stay
constexpr int kListings = 10;  // of a folder that changes while it is read

const std::string kUnfinished = ".tmp-";  // begins the name of a save on its way
const std::string kReplaced = ".old-";    // and that of one whose step is saved again

// The step of a checkpoint's folder name; nullopt: the name is not one that checkpoint_name() gives.
std::optional<int64_t> step_of(const std::string& name) {
  if (name.size() < 8 || name.size() > 18 || name.find_first_not_of("0123456789") != name.npos) return {};
  const int64_t step = std::stoll(name);
  return checkpoint_name(step) == name ? std::optional(step) : std::nullopt;
}

std::vector<int64_t> steps_in(const Folder& folder) {
  std::vector<int64_t> steps;
  for (const std::string& name : folder.names())
    if (const auto step = step_of(name)) steps.push_back(*step);
  std::ranges::sort(steps);
  return steps;
}

// The names that CheckpointStore gives to tensor files; nothing else is ever opened.
bool is_tensor_file(const std::string& file) {
  if (!file.ends_with(kTensors) || file.size() == kTensors.size()) return false;
  const std::string name = file.substr(0, file.size() - kTensors.size());
  return name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == name.npos;
}

// Numbers by their bits: no compiler flag can hide a NaN then. `exponent`: its bits, all set for NaN and infinity.
template <class Bits>
std::optional<size_t> first_nonfinite(const std::vector<char>& bytes, Bits exponent) {
  for (size_t i = 0; i < bytes.size() / sizeof(Bits); ++i) {
    Bits bits;
    std::memcpy(&bits, bytes.data() + i * sizeof bits, sizeof bits);
    if ((bits & exponent) == exponent) return i;
  }
  return {};
}

std::optional<size_t> first_nonfinite(const StoredTensor& t) {
  if (t.dtype == "F64") return first_nonfinite<uint64_t>(t.bytes, 0x7ff0'0000'0000'0000);
  if (t.dtype == "F32") return first_nonfinite<uint32_t>(t.bytes, 0x7f80'0000);
  if (t.dtype == "F16") return first_nonfinite<uint16_t>(t.bytes, 0x7c00);
  if (t.dtype == "BF16") return first_nonfinite<uint16_t>(t.bytes, 0x7f80);
  return {};
}

Manifest::Tensor describe(const StoredTensor& t) { return {t.dtype, t.shape, xxh3({t.bytes.data(), t.bytes.size()})}; }

// ---- Loading

// Runs what reads one checkpoint. Content that is wrong becomes Damage of this kind, and so does what is missing or
// cannot be read even at the second try. Any other failed call says nothing about the checkpoint and goes through.
template <class Read>
auto checked(const std::string& kind, Read read) {
  for (bool again = true;; again = false) try {
      return read();
    } catch (const Damage&) {
      throw;
    } catch (const FileError& error) {
      const bool missing = error.code == ENOENT || error.code == ENOTDIR || error.code == ELOOP;
      if (!missing && error.code != EIO) throw;
      if (error.code == EIO && again) continue;
      throw Damage(missing ? "missing" : "unreadable", error.what());
    } catch (const Error& error) {
      if (error.exit != Exit::checkpoint) throw;
      throw Damage(kind, error.what());
    }
}

Manifest read_manifest(const Folder& folder, int64_t step) {
  const std::string place = (folder.path() / kManifest).string();
  const std::string text = checked("manifest", [&] {
    const InputFile file = folder.open(kManifest);
    if (file.size() > kMaxJsonBytes)
      fail(Exit::checkpoint, "{}: expected at most {} bytes, got {}", place, kMaxJsonBytes, file.size());
    return file.read_all();
  });
  Manifest m = parse_manifest(text, place);
  if (m.step != step) throw Damage("step", fmt::format("{}: expected step {}, got {}", place, step, m.step));
  return m;
}

std::string read_listed(const Folder& folder, const std::string& name, const Manifest::File& listed) {
  return checked("unreadable", [&] {
    const InputFile file = folder.open(name);
    const std::string place = (folder.path() / name).string();
    if (file.size() != listed.size)
      throw Damage("size", fmt::format("{}: expected {} bytes, got {}", place, listed.size, file.size()));
    std::string bytes = file.read_all();
    if (const std::string got = sha256(bytes); got != listed.sha256)
      throw Damage("sha256", fmt::format("{}: expected SHA-256 {}, got {}", place, listed.sha256, got));
    return bytes;
  });
}

// The tensors of one file, each as the MANIFEST lists it.
SafeTensors parse_listed(const std::string& bytes, const std::map<std::string, Manifest::Tensor>& listed,
                         const std::string& place) {
  SafeTensors contents = checked("header", [&] { return parse_safetensors(bytes, place); });
  const auto refuse = [&](const std::string& kind, const std::string& name, const std::string& problem) {
    throw Damage(kind, fmt::format("{}: tensor '{}': {}", place, escaped(name), problem));
  };
  for (const auto& [name, expected] : listed)
    if (!contents.tensors.contains(name)) refuse("tensors", name, "is missing");
  for (const auto& [name, tensor] : contents.tensors) {
    const auto expected = listed.find(name);
    if (expected == listed.end()) refuse("tensors", name, "is not listed in the MANIFEST");
    const Manifest::Tensor got = describe(tensor), &want = expected->second;
    if (got != want)
      refuse("xxh3", name,
             fmt::format("expected {} [{}] with XXH3 {}, got {} [{}] with {}", escaped(want.dtype),
                         fmt::join(want.shape, ","), want.xxh3, got.dtype, fmt::join(got.shape, ","), got.xxh3));
    if (const auto at = first_nonfinite(tensor)) refuse("finite", name, fmt::format("number {} is not finite", *at));
  }
  return contents;
}

struct Loaded {
  Checkpoint checkpoint;
  Manifest manifest;
};

Loaded load_from(const Folder& folders, int64_t step) {
  const auto folder = checked("missing", [&] { return std::make_unique<Folder>(folders, checkpoint_name(step)); });
  Loaded loaded{{}, read_manifest(*folder, step)};
  const Manifest& m = loaded.manifest;
  Checkpoint& c = loaded.checkpoint;
  c.step = m.step, c.epoch = m.epoch, c.facts = m.facts;
  const std::string place = (folder->path() / kManifest).string();
  if (!m.files.contains(kState) || m.files.size() != m.tensors.size() + 1)
    throw Damage("manifest", place + ": expected state.json and the files of the tensors");
  for (const auto& [file, listed] : m.tensors)
    if (!m.files.contains(file) || !is_tensor_file(file))
      throw Damage("manifest", fmt::format("{}: expected the file of '{}'", place, escaped(file)));

  for (const auto& [file, listed] : m.files) {
    std::string bytes = read_listed(*folder, file, listed);
    const std::string path = (folder->path() / file).string();
    if (file == kState) {
      checked("state", [&] { return parse_json(bytes, path, Exit::checkpoint); });
      c.state = std::move(bytes);
    } else {
      c.tensors[file.substr(0, file.size() - kTensors.size())] = parse_listed(bytes, m.tensors.at(file), path);
    }
  }
  return loaded;
}

struct Refusal {
  int64_t step;
  std::string kind;
};

// The latest of `steps`, which are ascending.
std::optional<Loaded> find_latest(const Folder& folder, std::vector<int64_t> steps, std::vector<Rejected>& rejected,
                                  std::vector<Refusal>& refusals, const std::function<void(const Checkpoint&)>& use,
                                  int64_t newest) {
  std::reverse(steps.begin(), std::ranges::upper_bound(steps, newest));
  for (const int64_t step : steps) try {
      Loaded loaded = load_from(folder, step);
      if (use) checked("state", [&] { use(loaded.checkpoint); });
      return loaded;
    } catch (const Damage& damage) {
      rejected.push_back({checkpoint_name(step), damage.what()});
      refusals.push_back({step, damage.kind});
    }
  std::string list;
  for (const Rejected& r : rejected) list += fmt::format("\n  {}: {}", r.name, r.reason);
  for (const std::string& name : folder.names())
    if (name.find(".bad-") != name.npos) list += fmt::format("\n  {}: was set aside before", escaped(name));
  if (list.empty() || newest != kNewest) return {};  // a rewind does without
  fail(Exit::checkpoint,
       "{}: none of the checkpoints can be used, and starting over would lose them:{}\n"
       "To start again, choose another folder with --out.",
       folder.path().string(), list);
}

// ---- Saving

// Writes one file of a checkpoint and describes it. What it writes, it hashes.
Manifest::File write_file(const Folder& folder, const std::string& name, const std::vector<std::string_view>& pieces) {
  const auto check = [&](bool done, const char* what) {
    const int code = errno;
    if (!done) throw FileError(Exit::checkpoint, code, fmt::format("{}: {}", (folder.path() / name).string(), what));
  };
  NewFile file(folder.fd(), name);
  check(file.created(), "cannot be made");
  Manifest::File described;
  Sha256 digest;
  for (const std::string_view piece : pieces) {
    check(file.write(piece), "cannot be written");
    digest.update(piece);
    described.size += piece.size();
  }
  described.sha256 = digest.finish();
  check(file.sync(), "cannot be synced");
  check(file.close(), "cannot be closed");
  return described;
}

// Reads back what was just written, under its temporary name: only what can be read gets a checkpoint's name.
void read_back(const Folder& folder, const Manifest& written) {
  try {
    const Manifest m = read_manifest(folder, written.step);
    if (m.digest != written.digest) throw Damage("manifest", "another MANIFEST");
    for (const auto& [file, listed] : m.files) read_listed(folder, file, listed);
  } catch (const Damage& damage) {
    throw FileError(Exit::checkpoint, EIO, fmt::format("what was written reads back differently: {}", damage.what()));
  }
}

void check_contents(const Checkpoint& c) {
  require(c.step >= 0 && c.step < kManifestLimit && c.epoch >= 0 && c.epoch < kManifestLimit,
          "[checkpoint] expected a step and an epoch from 0 to 10^18, got {} and {}", c.step, c.epoch);
  parse_json(c.state, "the state of the checkpoint", Exit::failure);
  for (const auto& [file, contents] : c.tensors) {
    require(is_tensor_file(file + kTensors), "[checkpoint] expected a name of a-z, 0-9 and _, got '{}'", escaped(file));
    for (const auto& [name, tensor] : contents.tensors)
      if (const auto at = first_nonfinite(tensor))
        fail(Exit::diverged,
             "step {}: {} tensor '{}': number {} is not finite; this state is not saved, the checkpoints "
             "before it are unchanged",
             c.step, file, escaped(name), *at);
  }
}

// When each was saved: a step that is saved again is another checkpoint.
std::vector<std::pair<int64_t, fs::file_time_type>> times_of(const fs::path& folder,
                                                             const std::vector<int64_t>& steps) {
  std::vector<std::pair<int64_t, fs::file_time_type>> all;
  std::error_code gone;
  for (const int64_t step : steps) all.emplace_back(step, fs::last_write_time(folder / checkpoint_name(step), gone));
  return all;
}

}  // namespace

bool has_checkpoints(const fs::path& path) try {
  return !steps_in(Folder(path, Exit::checkpoint)).empty();
} catch (const FileError&) {
  return true;
}

std::optional<Checkpoint> load_latest_checkpoint(const fs::path& path, std::vector<Rejected>& rejected,
                                                 const std::function<void(const Checkpoint&)>& use) {
  std::optional<Folder> folder;
  try {
    folder.emplace(path, Exit::checkpoint);
  } catch (const FileError& error) {
    if (error.code == ENOENT) return {};
    throw;
  }
  // The run may be training, and its old checkpoints go while they are read: then there are newer ones.
  const std::vector<Rejected> before = rejected;
  for (int tries = 1;; ++tries) {
    const auto steps = steps_in(*folder);
    const auto times = times_of(path, steps);
    const auto changed = [&] { return tries < kListings && times_of(path, steps_in(*folder)) != times; };
    std::vector<Refusal> refusals;
    rejected = before;
    try {
      auto loaded = find_latest(*folder, steps, rejected, refusals, use, kNewest);
      if (loaded && (refusals.empty() || !changed())) return std::move(loaded->checkpoint);
      if (!loaded && !changed()) return {};
    } catch (const Error&) {
      if (!changed()) throw;
    }
  }
}

std::string checkpoint_name(int64_t step) { return fmt::format("{:08}", step); }
bool is_unfinished_save(std::string_view name) { return name.starts_with(kUnfinished); }

CheckpointStore::CheckpointStore(fs::path path, Retention retention) : retention_(retention) {
  require(retention.keep >= 1 && retention.every >= 0, "[checkpoint] expected keep >= 1 and every >= 0, got {} and {}",
          retention.keep, retention.every);
  if (!path.has_filename()) path = path.parent_path();  // it ended with a slash
  const fs::path parent_path = path.has_parent_path() ? path.parent_path() : ".";
  const Folder parent(parent_path, Exit::checkpoint);
  if (!parent.has(path.filename().string())) parent.make(path.filename().string());
  parent.sync();
  folder_ = std::make_unique<Folder>(path, Exit::checkpoint);
  sweep();
  for (const int64_t step : steps_in(*folder_)) {
    Saved& saved = saved_[step];
    try {
      const Manifest m =
          checked("missing", [&] { return read_manifest(Folder(*folder_, checkpoint_name(step)), step); });
      saved = {m.number, m.digest};
      best_ = m.best_step;
      saves_ = m.number;
    } catch (const Damage&) {  // load_latest() will say so
    }
  }
  if (best_ && !saved_.contains(*best_)) best_.reset();
}

CheckpointStore::~CheckpointStore() = default;

std::string CheckpointStore::save(const Checkpoint& c, bool best) {
  check_contents(c);
  if (!saved_.empty() && saved_.rbegin()->first > c.step)
    fail(Exit::checkpoint,
         "{}: step {} is not saved, as {} is newer: resume from that one, or fork into another folder",
         folder_->path().string(), c.step, checkpoint_name(saved_.rbegin()->first));

  const auto same = saved_.find(c.step);  // written again: of a stopgap, or with early stopping's weights in use
  const bool counted = same != saved_.end() && !is_stopgap(c.step);
  Manifest m{c.step, c.epoch, c.stopgap || counted ? saves_ : saves_ + 1};
  m.best_step = best ? c.step : best_;
  if (const auto before = saved_.lower_bound(c.step); before != saved_.begin())
    m.previous = std::prev(before)->second.digest;
  m.facts = c.facts;
  try {
    publish(c, m);
  } catch (const FileError& error) {
    if (error.code == ENOSPC || error.code == EDQUOT) drop_oldest();
    try {
      publish(c, m);
    } catch (const FileError& again) {
      fail(Exit::checkpoint, "step {} cannot be saved: {}; {}", c.step, again.what(),
           again.code == ENOENT ? "was the folder removed?" : "the checkpoints before it are unchanged");
    }
  }
  saved_[c.step] = {m.number, m.digest, true};
  saves_ = m.number;
  best_ = m.best_step;
  retain();
  sweep();
  return std::exchange(warning_, "");
}

// One try: on an error nothing is left of it, and the next try opens every file anew.
void CheckpointStore::publish(const Checkpoint& c, Manifest& m) {
  const std::string name = checkpoint_name(c.step), temporary = fmt::format("{}{}-{}", kUnfinished, name, ::getpid());
  folder_->remove(temporary);  // of a killed process with the same number
  try {
    folder_->make(temporary);
    const Folder folder(*folder_, temporary);
    for (const auto& [file, contents] : c.tensors) {
      const SafeTensorsBytes bytes = to_safetensors_bytes(contents, file + kTensors);
      std::vector<std::string_view> pieces = {bytes.header};
      pieces.insert(pieces.end(), bytes.tensors.begin(), bytes.tensors.end());
      m.files[file + kTensors] = write_file(folder, file + kTensors, pieces);
      auto& listed = m.tensors[file + kTensors];
      for (const auto& [tensor, stored] : contents.tensors) listed[tensor] = describe(stored);
    }
    m.files[kState] = write_file(folder, kState, {c.state});
    write_file(folder, kManifest, {to_text(m)});
    folder.sync();
    read_back(folder, m);
    if (!folder_->has(name)) {
      folder_->rename(temporary, name);
    } else if (!folder_->exchange(temporary, name)) {  // in two steps: after a kill in between, put_back()
      folder_->remove(kReplaced + name);               // of a try that failed behind both
      folder_->rename(name, kReplaced + name);
      folder_->rename(temporary, name);
    }
    folder_->sync();
    if (folder_->has(kReplaced + name)) {
      folder_->remove(kUnfinished + name);
      folder_->rename(kReplaced + name, kUnfinished + name);  // for sweep()
    }
  } catch (...) {
    try {
      put_back();
      folder_->remove(temporary);
    } catch (const FileError&) {  // the error above says why; sweep() tries again
    }
    throw;
  }
}

std::optional<Checkpoint> CheckpointStore::load_latest(std::vector<Rejected>& rejected,
                                                       const std::function<void(const Checkpoint&)>& use,
                                                       int64_t newest) {
  std::vector<Refusal> refusals;
  std::vector<int64_t> steps = steps_in(*folder_);
  if (newest != kNewest) std::erase_if(steps, [&](int64_t s) { return is_stopgap(s); });
  auto loaded = find_latest(*folder_, steps, rejected, refusals, use, newest);
  if (!loaded) return {};
  const auto set_aside = [&](int64_t step, const std::string& kind) {
    const std::string name = fmt::format("{}.bad-{}", checkpoint_name(step), kind);
    std::string free = name;
    for (int n = 2; folder_->has(free); ++n) free = fmt::format("{}-{}", name, n);
    folder_->rename(checkpoint_name(step), free);
    saved_.erase(step);
  };
  for (const auto& [step, kind] : refusals) set_aside(step, kind);
  const Manifest& m = loaded->manifest;
  saved_[m.step] = {m.number, m.digest, true};
  // What the rewind before this one has set aside goes: many would fill the disk.
  if (saved_.rbegin()->first > m.step)
    for (const std::string& name : folder_->names())
      if (name.find(".bad-diverged") != name.npos) try {
          folder_->remove(name);
        } catch (const FileError& error) {
          warning_ += fmt::format("a checkpoint that was set aside is not removed: {}\n", error.what());
        }
  // The newest first: a kill in between leaves what the run would have gone back to before.
  bool changed = !refusals.empty();
  for (; saved_.rbegin()->first > m.step; changed = true) set_aside(saved_.rbegin()->first, "diverged");
  if (changed) folder_->sync();

  saves_ = m.number;
  best_ = m.best_step && saved_.contains(*m.best_step) ? m.best_step : std::nullopt;
  retain();  // a run that was killed between its last save and this has no other save to come
  return std::move(loaded->checkpoint);
}

Checkpoint CheckpointStore::load(int64_t step) const { return load_from(*folder_, step).checkpoint; }

std::vector<int64_t> CheckpointStore::steps() const {
  std::vector<int64_t> steps;
  for (const auto& [step, saved] : saved_) steps.push_back(step);
  return steps;
}

// ---- Removing old ones. What fails here is told as a warning: it harms no checkpoint.

bool CheckpointStore::must_stay(int64_t step) const {
  const int64_t number = saved_.at(step).number;
  return step == best_ || (retention_.every > 0 && number > 0 && number % retention_.every == 0);
}

bool CheckpointStore::is_stopgap(int64_t step) const {
  const auto it = saved_.find(step);
  if (it == saved_.end() || it->second.digest.empty()) return false;
  return it->second.number == (it == saved_.begin() ? 0 : std::prev(it)->second.number);
}

bool CheckpointStore::verified(int64_t step) {
  Saved& saved = saved_.at(step);
  if (!saved.verified) try {
      load_from(*folder_, step);
      saved.verified = true;
    } catch (const Error& error) {
      warning_ += fmt::format("checkpoint {} cannot be relied on: {}\n", checkpoint_name(step), error.what());
    }
  return saved.verified;
}

void CheckpointStore::retain() {
  std::vector<int64_t> old;
  int newer = 0, sound = 0;
  for (auto it = saved_.rbegin(); it != saved_.rend(); ++it) {
    const int64_t step = it->first;
    if (is_stopgap(step)) {
      if (it != saved_.rbegin()) old.push_back(step);
      continue;
    }
    const bool needed = sound < kSound && verified(step);
    sound += needed;
    if (newer++ >= retention_.keep && !needed && !must_stay(step)) old.push_back(step);
  }
  remove(old);
}

void CheckpointStore::drop_oldest() {
  std::vector<int64_t> old;
  int sound = 0;
  for (auto it = saved_.rbegin(); it != saved_.rend(); ++it)
    if (sound < kSound)
      sound += verified(it->first);
    else if (!must_stay(it->first))
      old = {it->first};
  remove(old);
}

// First the names go, for good; a power cut in between leaves no half of a checkpoint under its name.
void CheckpointStore::remove(const std::vector<int64_t>& steps) {
  if (steps.empty()) return;
  try {
    for (const int64_t step : steps) {
      folder_->rename(checkpoint_name(step), ".del-" + checkpoint_name(step));
      saved_.erase(step);
    }
    folder_->sync();
    for (const int64_t step : steps) folder_->remove(".del-" + checkpoint_name(step));
  } catch (const FileError& error) {
    warning_ += fmt::format("an old checkpoint is not removed: {}\n", error.what());
  }
}

void CheckpointStore::sweep() {
  const auto attempt = [&](const auto& act) {
    try {
      act();
    } catch (const FileError& error) {
      warning_ += fmt::format("what was left of a checkpoint is not removed: {}\n", error.what());
    }
  };
  attempt([&] {
    put_back();
    for (const std::string& name : folder_->names())
      if (is_unfinished_save(name) || name.starts_with(kReplaced) || name.starts_with(".del-"))
        attempt([&] { folder_->remove(name); });
  });
}

// What was to be replaced and was not: it is the checkpoint of its step still.
void CheckpointStore::put_back() {
  for (const std::string& replaced : folder_->names())
    if (replaced.starts_with(kReplaced))
      if (const std::string name = replaced.substr(kReplaced.size()); step_of(name) && !folder_->has(name)) {
        folder_->rename(replaced, name);
        folder_->sync();
      }
}

void require_free_space(const fs::path& folder, uint64_t bytes_per_checkpoint, int keep) {
  constexpr uint64_t kLogs = 16 << 20;
  struct statvfs disk;
  if (uninterrupted([&] { return ::statvfs(folder.c_str(), &disk); }) != 0)
    throw FileError(Exit::checkpoint, errno, fmt::format("cannot ask for the free space of {}", folder.string()));
  const uint64_t available = uint64_t(disk.f_bavail) * disk.f_frsize;
  uint64_t needed;
  if (__builtin_mul_overflow(bytes_per_checkpoint, uint64_t(keep) + 1, &needed) ||
      __builtin_add_overflow(needed, kLogs, &needed))
    needed = UINT64_MAX;
  if (available < needed)
    fail(Exit::checkpoint,
         "{}: {} checkpoints of {} bytes and the logs need {} bytes, {} are free; free some or keep fewer "
         "checkpoints (checkpoint.keep)",
         folder.string(), keep + 1, bytes_per_checkpoint, needed, available);
}

}  // namespace linnet
