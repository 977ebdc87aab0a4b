// Checkpoints that survive a kill, a power cut, a full disk and damaged files.
//
//   RUN/checkpoints/00012000/model.safetensors   whatever the caller names: NAME.safetensors, readable by any tool
//                            optim.safetensors
//                            state.json          counters and the like, as the caller wrote it
//                            MANIFEST.json       what is there, each file with its SHA-256, each tensor with its XXH3
//
// A checkpoint is written under a temporary name, synced, read back, and gets its name by one rename. Steps decide
// which is newer, never a clock. No path in a file is followed, so a run folder can be moved and copied.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "linnet/safetensors.h"

namespace linnet {

class Folder;

// Whether there is one in `folder`, sound or not; also where that cannot be found out.
bool has_checkpoints(const std::filesystem::path& folder);

struct Checkpoint {
  int64_t step = 0, epoch = 0;
  bool stopgap = false;                        // saved because the run was stopped, not because one was due
  std::map<std::string, SafeTensors> tensors;  // "model", "optim": a-z, 0-9 and _
  std::string state = "{}";                    // JSON text
  std::map<std::string, std::string> facts;    // kept in the MANIFEST: versions, device, digests of config and data
};

// A checkpoint that could not be used, and why.
struct Rejected {
  std::string name, reason;
};

// A step for CheckpointStore::load_latest that admits every checkpoint; any other one is a rewind's.
constexpr int64_t kNewest = std::numeric_limits<int64_t>::max();

// The newest checkpoint that is sound to the last bit and holds finite numbers only; what is newer and is not goes to
// `rejected`. Nothing on the disk is changed and no lock is needed. nullopt where nothing was ever saved;
// Error(Exit::checkpoint) that names each where none is sound, and where a sound one may merely be unreadable now (no
// permission, no memory, a newer format).
// `use` as in CheckpointStore::load_latest.
std::optional<Checkpoint> load_latest_checkpoint(const std::filesystem::path& folder, std::vector<Rejected>& rejected,
                                                 const std::function<void(const Checkpoint&)>& use = {});

struct Retention {
  int keep = 3;       // the newest so many stay
  int64_t every = 0;  // every so many saves, one stays for ever; 0: none
};

// The name of a step's checkpoint in its folder; whether a name there is that of a save that was killed on its way.
std::string checkpoint_name(int64_t step);
bool is_unfinished_save(std::string_view name);

// The checkpoints of a run that this process trains. The caller holds the run's lock (src/train/run_lock.h) and has
// SIGXFSZ ignored. Not for two threads at once.
class CheckpointStore {
 public:
  // Makes the folder where it is missing and removes what a killed process left half written.
  explicit CheckpointStore(std::filesystem::path folder, Retention = {});
  ~CheckpointStore();

  // When it returns, a power cut leaves this checkpoint. Then old ones go: the newest `keep`, the best and every
  // `every`-th stay, and never fewer than two that were read back and found sound. Returns what went wrong with that
  // (empty: nothing), as it does not harm the checkpoint. A failed write is tried once more from the start; with a full
  // disk, after removing the oldest one that need not stay. `best`: it is the best so far. The step may be the newest
  // one's: that is replaced. A stopgap takes nobody's place: it isn't counted, and goes when the next one is saved.
  // Error(Exit::diverged) where a number is not finite, Error(Exit::checkpoint) for the rest; what was there, remains.
  std::string save(const Checkpoint&, bool best);

  // As load_latest_checkpoint; the rejected are then renamed to STEP.bad-REASON. `use` takes one into use, and throws
  // Error(Exit::checkpoint) where it cannot: then it is rejected, too. With `newest`, it is the latest up to that step
  // or, where there is none, the one after it, and never a stopgap, so that a run that was stopped goes back to where
  // it would have gone without; those that are newer than what was loaded become STEP.bad-diverged, and those of the
  // rewind before are removed.
  std::optional<Checkpoint> load_latest(std::vector<Rejected>& rejected,
                                        const std::function<void(const Checkpoint&)>& use = {},
                                        int64_t newest = kNewest);
  Checkpoint load(int64_t step) const;

  std::vector<int64_t> steps() const;                         // ascending
  std::optional<int64_t> best_step() const { return best_; }  // of the last save that was `best`, if it is still there

 private:
  struct Saved {
    int64_t number = 0;     // the how-many-eth save of the run; a stopgap has that of the save before it
    std::string digest;     // of its MANIFEST; empty where that cannot be read
    bool verified = false;  // all of it was read by this process and found sound
  };
  void publish(const Checkpoint&, struct Manifest&);
  void put_back();
  bool verified(int64_t step);
  bool must_stay(int64_t step) const;
  bool is_stopgap(int64_t step) const;
  void retain();
  void drop_oldest();
  void remove(const std::vector<int64_t>& steps);
  void sweep();

  std::unique_ptr<Folder> folder_;
  Retention retention_;
  std::map<int64_t, Saved> saved_;
  std::optional<int64_t> best_;
  int64_t saves_ = 0;
  std::string warning_;
};

// Saves on a thread of its own, one checkpoint at a time, while training goes on.
class CheckpointWriter {
 public:
  struct Done {
    int64_t step;
    bool best;
    double seconds;
    std::string warning;  // of CheckpointStore::save
  };
  // `done` runs on the writer's thread after each save that worked. Both must outlive the writer; the store is the
  // writer's alone while a save is under way.
  CheckpointWriter(CheckpointStore& store, std::function<void(const Done&)> done);
  // Waits for the save under way. Call wait() before: an error can't be thrown from here.
  ~CheckpointWriter();

  // Waits for the save before it, throws what that one threw, and returns. `make` runs on the writer's thread, so it
  // owns its copy of the state.
  void submit(std::function<Checkpoint()> make, bool best);
  void wait();

 private:
  void work();
  void wait(std::unique_lock<std::mutex>&);

  CheckpointStore& store_;
  const std::function<void(const Done&)> done_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<Checkpoint()> make_;  // empty: nothing to do
  bool best_ = false, stop_ = false;
  std::exception_ptr error_;
  std::thread thread_;
};

// Error(Exit::checkpoint) with the numbers, where the disk of `folder` has no room for keep + 1 checkpoints of this
// size and 16 MiB of logs.
void require_free_space(const std::filesystem::path& folder, uint64_t bytes_per_checkpoint, int keep);

}  // namespace linnet
