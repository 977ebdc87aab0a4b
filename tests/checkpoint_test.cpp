// Checkpoints: round trips, every bit flipped and every length cut off, which one is loaded, which ones stay, failing
// disks, and the writer's thread. Kills and failing system calls: tests/torture/kill_save.py.
#include "linnet/checkpoint.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <set>

#include "linnet/error.h"
#include "src/core/digest.h"
#include "src/core/file.h"
#include "src/core/json.h"
#include "tests/temp_dir.h"

namespace linnet {
namespace {
namespace fs = std::filesystem;
using Steps = std::vector<int64_t>;

std::string slurp(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
void spill(const fs::path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

StoredTensor floats(const std::vector<float>& values) {
  StoredTensor t{"F32", {int64_t(values.size())}, std::vector<char>(values.size() * 4)};
  std::memcpy(t.bytes.data(), values.data(), t.bytes.size());
  return t;
}

// Content that follows from the step alone.
Checkpoint example(int64_t step, size_t numbers = 6) {
  std::vector<float> values(numbers);
  for (size_t i = 0; i < numbers; ++i) values[i] = float(step) + float(i) / 8;
  Checkpoint c{step, step / 10};
  c.tensors["model"].tensors["conv.weight"] = floats(values);
  c.tensors["model"].metadata["format"] = "pt";
  c.tensors["optim"].tensors["momentum"] = floats(values);
  c.tensors["optim"].tensors["count"] = {"I64", {}, std::vector<char>(8, char(step))};
  c.state = fmt::format(R"({{"seen":{},"lr":0.1}})", step * 128);
  c.facts = {{"config", sha256("c")}, {"device", "cpu \"x\""}};
  return c;
}

bool same(const Checkpoint& a, const Checkpoint& b) {
  const auto equal = [](const SafeTensors& x, const SafeTensors& y) {
    return x.metadata == y.metadata && std::ranges::equal(x.tensors, y.tensors, [](const auto& s, const auto& t) {
             return s.first == t.first && s.second.dtype == t.second.dtype && s.second.shape == t.second.shape &&
                    s.second.bytes == t.second.bytes;
           });
  };
  return a.step == b.step && a.epoch == b.epoch && a.state == b.state && a.facts == b.facts &&
         std::ranges::equal(a.tensors, b.tensors, [&](const auto& x, const auto& y) {
           return x.first == y.first && equal(x.second, y.second);
         });
}

// A run folder with these steps saved.
struct SavedRun {
  TempDir dir;
  fs::path folder = dir / "checkpoints";
  explicit SavedRun(const Steps& steps = {}, Retention retention = {}, size_t numbers = 6) {
    CheckpointStore store(folder, retention);
    for (const int64_t step : steps) EXPECT_EQ(store.save(example(step, numbers), false), "");
  }
  fs::path at(int64_t step, const std::string& file = "") const { return folder / fmt::format("{:08}", step) / file; }
  std::set<std::string> names() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename());
    return names;
  }
};

// The step that is loaded, with the content of that step; -1: none is there.
int64_t loaded_step(const fs::path& folder, std::vector<Rejected>* rejected = nullptr) {
  std::vector<Rejected> ignored;
  const auto c = load_latest_checkpoint(folder, rejected ? *rejected : ignored);
  if (!c) return -1;
  const size_t bytes = c->tensors.at("model").tensors.at("conv.weight").bytes.size();
  EXPECT_TRUE(same(*c, example(c->step, bytes / 4))) << "wrong content of step " << c->step;
  return c->step;
}

template <class Do>
std::string message_of(Exit exit, Do what) {
  try {
    what();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit, exit) << error.what();
    return error.what();
  }
  return "";
}
bool has(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

TEST(Checkpoint, RoundTrip) {
  SavedRun run({7, 12000});
  std::vector<Rejected> rejected;
  CheckpointStore store(run.folder);
  const auto c = store.load_latest(rejected);
  ASSERT_TRUE(c);
  EXPECT_TRUE(same(*c, example(12000)));
  EXPECT_FALSE(same(*c, example(7)));  // the control
  EXPECT_TRUE(same(store.load(7), example(7)));
  EXPECT_TRUE(rejected.empty());
  EXPECT_EQ(store.steps(), (Steps{7, 12000}));
  std::set<std::string> files;
  for (const auto& entry : fs::directory_iterator(run.at(12000))) files.insert(entry.path().filename());
  EXPECT_EQ(files, (std::set<std::string>{"MANIFEST.json", "model.safetensors", "optim.safetensors", "state.json"}));
  // Any tool reads the files.
  EXPECT_EQ(read_safetensors(run.at(7, "model.safetensors")).tensors.size(), 1u);
  EXPECT_EQ(read_json(run.at(7, "state.json"), Exit::data)["seen"], 7 * 128);
  const Json m = read_json(run.at(12000, "MANIFEST.json"), Exit::data);
  EXPECT_EQ(m["step"], 12000);
  EXPECT_EQ(m["previous"], read_json(run.at(7, "MANIFEST.json"), Exit::data)["sha256"]);
  EXPECT_EQ(m["files"]["state.json"]["sha256"], sha256(slurp(run.at(12000, "state.json"))));
}

TEST(Checkpoint, NothingThereIsNoError) {
  const SavedRun run;
  EXPECT_EQ(loaded_step(run.folder), -1);
  EXPECT_EQ(loaded_step(run.dir / "missing"), -1);
}

TEST(Checkpoint, KnownDigests) {
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(xxh3(""), "99aa06d3014798d86001c324468d497f");
}

// Every change is found, named with its file, and the checkpoint before it is used.
TEST(Checkpoint, EveryBitFlippedAndEveryLength) {
  const SavedRun run({1, 2});
  int changes = 0;
  const auto expect_found = [&](const fs::path& file) {
    std::vector<Rejected> rejected;
    ASSERT_EQ(loaded_step(run.folder, &rejected), 1);
    ASSERT_EQ(rejected.size(), 1u);
    ASSERT_EQ(rejected[0].name, "00000002");
    ASSERT_TRUE(has(rejected[0].reason, file.filename())) << rejected[0].reason;
    ++changes;
  };
  ASSERT_EQ(loaded_step(run.folder), 2);
  for (const auto& entry : fs::directory_iterator(run.at(2))) {
    const fs::path file = entry.path();
    const std::string sound = slurp(file);
    ASSERT_LE(sound.size(), 2000u);
    const Fd fd(open(file.c_str(), O_WRONLY | O_CLOEXEC));  // in place: a file written anew is much slower
    const auto put = [&](size_t i, char byte) { ASSERT_EQ(pwrite(fd.get(), &byte, 1, off_t(i)), 1); };
    for (size_t i = 0; i < sound.size(); ++i) {
      for (int bit = 0; bit < 8; ++bit) {
        put(i, char(sound[i] ^ (1 << bit)));
        expect_found(file);
        if (HasFatalFailure()) FAIL() << file << " byte " << i << " bit " << bit;
      }
      put(i, sound[i]);
    }
    ASSERT_EQ(loaded_step(run.folder), 2);
    for (size_t n = sound.size(); n-- > 0;) {
      fs::resize_file(file, n);
      expect_found(file);
      if (HasFatalFailure()) FAIL() << file << " cut to " << n;
    }
    for (const size_t n : {1, 7, 512, 4096}) {
      spill(file, sound + std::string(n, '\0'));
      expect_found(file);
    }
    spill(file, sound);
  }
  EXPECT_EQ(loaded_step(run.folder), 2);  // the control: whole again
  EXPECT_GE(changes, 10'000);
}

TEST(Checkpoint, LargerDamage) {
  const SavedRun run({1, 2}, {}, 5000);
  const auto refused_as = [&](const std::string& kind) {
    std::vector<Rejected> rejected;
    EXPECT_EQ(loaded_step(run.folder, &rejected), 1) << kind;
    EXPECT_TRUE(rejected.size() == 1 && has(rejected[0].reason, kind)) << kind << ": " << rejected[0].reason;
  };
  const fs::path model = run.at(2, "model.safetensors"), optim = run.at(2, "optim.safetensors"),
                 keep = run.dir / "keep";

  fs::copy(run.at(2), keep);
  const auto restore = [&] {
    fs::remove_all(run.at(2));
    fs::copy(keep, run.at(2));
    ASSERT_EQ(loaded_step(run.folder), 2);
  };
  fs::rename(model, run.dir / "x"), fs::rename(optim, model), fs::rename(run.dir / "x", optim);
  refused_as("model.safetensors: expected ");  // swapped
  restore();
  fs::copy_file(run.at(1, "model.safetensors"), model, fs::copy_options::overwrite_existing);
  refused_as("expected SHA-256");  // of the same size, from another step
  restore();
  fs::copy_file(run.at(1, "MANIFEST.json"), run.at(2, "MANIFEST.json"), fs::copy_options::overwrite_existing);
  refused_as("expected step 2, got 1");
  restore();
  std::string bytes = slurp(model);
  bytes.replace(4096, 4096, 4096, '\0');
  spill(model, bytes);
  refused_as("expected SHA-256");  // a zeroed page
  restore();
  for (const char* file : {"model.safetensors", "optim.safetensors", "state.json", "MANIFEST.json"}) {
    fs::remove(run.at(2, file));
    refused_as(file);
    fs::create_symlink(keep / file, run.at(2, file));  // the right bytes, but not the checkpoint's own
    refused_as(file);
    fs::remove(run.at(2, file));
    fs::create_directory(run.at(2, file));
    refused_as("regular file");
    fs::remove(run.at(2, file));
    ASSERT_EQ(mkfifo(run.at(2, file).c_str(), 0600), 0);
    refused_as("regular file");
    restore();
  }
  fs::remove_all(run.at(2));
  fs::create_symlink(keep, run.folder / "00000002");
  refused_as("open it as a folder");
  fs::remove(run.folder / "00000002");
  spill(run.folder / "00000002", "a file");
  refused_as("open it as a folder");
  fs::remove(run.folder / "00000002");
  fs::copy(run.at(1), run.at(3));
  std::vector<Rejected> rejected;
  EXPECT_EQ(loaded_step(run.folder, &rejected), 1);  // an old one under a newer name
}

// LINNET_TORTURE=100000 overwrites that many times.
TEST(Checkpoint, BytesOverwrittenAtRandom) {
  const SavedRun run({1, 2}, {}, 20'000);
  const char* asked = std::getenv("LINNET_TORTURE");
  std::mt19937 random(1);
  const std::vector<std::string> files = {"model.safetensors", "optim.safetensors", "state.json", "MANIFEST.json"};
  for (int round = 0, rounds = asked ? std::atoi(asked) : 200; round < rounds; ++round) {
    const fs::path file = run.at(2, files[random() % files.size()]);
    const std::string sound = slurp(file);
    std::string bytes = sound;
    for (size_t n = random() % 4 + 1; n > 0; --n) bytes[random() % bytes.size()] = char(random());
    if (bytes == sound) continue;
    spill(file, bytes);
    ASSERT_EQ(loaded_step(run.folder), 1) << file << " round " << round;
    spill(file, sound);
  }
  EXPECT_EQ(loaded_step(run.folder), 2);
}

// A MANIFEST whose own digest is right, as only someone with intent makes it.
TEST(Checkpoint, HostileManifests) {
  const SavedRun run({1, 2});
  const fs::path file = run.at(2, "MANIFEST.json");
  const std::string sound = slurp(file);
  const auto forge = [&](const std::string& from, const std::string& to) {
    std::string body = sound.substr(0, sound.size() - 78);
    const size_t at = body.find(from);
    ASSERT_NE(at, body.npos) << from;
    body.replace(at, from.size(), to);
    spill(file, body + ",\"sha256\":\"" + sha256(body) + "\"}\n");
  };
  forge("\"epoch\":0", "\"epoch\":0 ");
  EXPECT_EQ(loaded_step(run.folder), 2);  // the control: forging as such works
  const std::pair<std::string, std::string> forgeries[] = {
      {"\"step\":2", "\"step\":3"},
      {"\"step\":2", "\"step\":2.0"},
      {"\"step\":2", "\"step\":-2"},
      {"\"step\":2", "\"step\":18446744073709551618"},
      {"\"step\":2", "\"step\":2,\"step\":2"},
      {"\"step\":2", "\"step\":2,\"more\":2"},
      {"\"number\":2", "\"number\":9223372036854775807"},
      {"\"best_step\":null", "\"best_step\":\"2\""},
      {"\"previous\":\"", "\"previous\":\"zz"},
      {"\"facts\":{", "\"facts\":{\"a\":1,"},
      {"\"facts\":{", "\"facts\":[],\"x\":{"},
      {"\"state.json\":{", "\"../state.json\":{"},
      {"\"model.safetensors\":{\"size\"", "\"../model.safetensors\":{\"size\""},
      {"\"tensors\":{\"model.safetensors\"", "\"tensors\":{\"../../x.safetensors\""},
      {"\"tensors\":{\"model.safetensors\"", "\"tensors\":{\"state.json\""},
      {"\"conv.weight\"", "\"conv.bias\""},
      {"\"shape\":[6]", "\"shape\":[3,2]"},
      {"\"shape\":[6]", "\"shape\":6"},
      {"\"dtype\":\"F32\"", "\"dtype\":\"I32\""},
      {"\"xxh3\":\"", "\"xxh3\":\"0"},
      {"\"size\":", "\"size\":1"},
      {"\"size\":", "\"size\":9223372036854775807,\"x\":"},
      {"{\"format\":1", "[{\"format\":1"},
      {"\"format\":1", "\"format\":\"1\""},
  };
  for (const auto& [from, to] : forgeries) {
    forge(from, to);
    EXPECT_EQ(loaded_step(run.folder), 1) << from << " -> " << to;
  }
  for (const std::string& body : {std::string("{"), std::string("{\"a\":1"), std::string("[["), std::string("")}) {
    spill(file, body + ",\"sha256\":\"" + sha256(body) + "\"}\n");
    EXPECT_EQ(loaded_step(run.folder), 1) << body;
  }
  // A newer format is no damage: going back to an older checkpoint would lose steps without need.
  forge("\"format\":1", "\"format\":2");
  EXPECT_TRUE(has(message_of(Exit::checkpoint, [&] { loaded_step(run.folder); }), "format 2"));
}

TEST(Checkpoint, TheHighestStepNeverTheNewestTime) {
  const SavedRun run({5, 99999999, 100000000});
  std::mt19937 random(3);
  for (int round = 0; round < 20; ++round) {
    for (const auto& entry : fs::recursive_directory_iterator(run.folder))
      fs::last_write_time(entry.path(), fs::file_time_type() + std::chrono::hours(random() % 400'000));
    EXPECT_EQ(loaded_step(run.folder), 100000000);
  }
}

TEST(Checkpoint, MovedCopiedAndLinkedFoldersLoadTheSame) {
  const SavedRun run({1, 2, 3});
  for (const auto& entry : fs::recursive_directory_iterator(run.folder))
    EXPECT_FALSE(entry.is_regular_file() && has(slurp(entry.path()), run.dir.path().filename())) << entry.path();
  fs::copy(run.folder, run.dir / "copy", fs::copy_options::recursive);
  EXPECT_EQ(loaded_step(run.dir / "copy"), 3);
  fs::create_directory_symlink("copy", run.dir / "link");
  EXPECT_EQ(loaded_step(run.dir / "link"), 3);
  fs::rename(run.dir / "copy", run.dir / "moved");
  CheckpointStore store(run.dir / "moved/");
  store.save(example(4), true);
  EXPECT_EQ(loaded_step(run.dir / "moved"), 4);
}

TEST(Checkpoint, BadOnesAreSetAsideOnlyOnceAGoodOneWasFound) {
  SavedRun run({1, 2, 3});
  spill(run.at(3, "state.json"), "x");
  fs::remove(run.at(2, "MANIFEST.json"));
  const std::string first = slurp(run.at(1, "MANIFEST.json"));
  spill(run.at(1, "MANIFEST.json"), "x");
  std::vector<Rejected> rejected;
  {
    CheckpointStore store(run.folder);
    const std::string message = message_of(Exit::checkpoint, [&] { store.load_latest(rejected); });
    for (const char* part : {"00000001", "00000002", "00000003", "state.json", "MANIFEST.json"})
      EXPECT_TRUE(has(message, part)) << message;
    EXPECT_EQ(run.names(), (std::set<std::string>{"00000001", "00000002", "00000003"}));
  }
  spill(run.at(1, "MANIFEST.json"), first);
  fs::create_directory(run.folder / "00000003.bad-size");
  rejected.clear();
  CheckpointStore store(run.folder);
  ASSERT_TRUE(store.load_latest(rejected));
  ASSERT_EQ(rejected.size(), 2u);
  EXPECT_EQ(rejected[0].name, "00000003");
  EXPECT_EQ(run.names(),
            (std::set<std::string>{"00000001", "00000002.bad-missing", "00000003.bad-size", "00000003.bad-size-2"}));
  EXPECT_EQ(store.save(example(2), false), "");
  EXPECT_EQ(loaded_step(run.folder), 2);

  // Never start over silently: what was set aside counts.
  fs::remove_all(run.at(1)), fs::remove_all(run.at(2));
  EXPECT_TRUE(has(message_of(Exit::checkpoint, [&] { loaded_step(run.folder); }), "set aside"));
}

TEST(Checkpoint, WhatAKilledProcessLeftIsRemovedByTheOwnerOnly) {
  SavedRun run({1});
  for (const char* name : {".tmp-00000002-1", ".del-00000000"}) {
    fs::create_directory(run.folder / name);
    spill(run.folder / name / "model.safetensors", "half");
  }
  EXPECT_EQ(loaded_step(run.folder), 1);
  EXPECT_EQ(run.names().size(), 3u);
  const CheckpointStore store(run.folder);
  EXPECT_EQ(run.names(), (std::set<std::string>{"00000001"}));
}

TEST(Checkpoint, NumbersThatAreNotFiniteAreNeverSaved) {
  SavedRun run({1});
  CheckpointStore store(run.folder);
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const auto bits = [](const std::string& dtype, auto value) {
    StoredTensor t{dtype, {2}, std::vector<char>(2 * sizeof value)};
    std::memcpy(t.bytes.data() + sizeof value, &value, sizeof value);
    return t;
  };
  for (const StoredTensor& t :
       {bits("F32", nan), bits("F32", -nan), bits("F32", inf), bits("F32", -inf), bits("F64", double(nan)),
        bits("F64", double(-inf)), bits("F16", uint16_t(0xfc00)), bits("F16", uint16_t(0x7c01)),
        bits("BF16", uint16_t(0x7f80)), bits("BF16", uint16_t(0xffc0))})
    for (const char* file : {"model", "optim"}) {
      Checkpoint c = example(2);
      c.tensors[file].tensors["bad"] = t;
      const std::string message = message_of(Exit::diverged, [&] { store.save(c, true); });
      EXPECT_TRUE(has(message, "'bad': number 1 is not finite")) << t.dtype << message;
    }
  EXPECT_EQ(run.names(), (std::set<std::string>{"00000001"}));
  EXPECT_FALSE(store.best_step());
  Checkpoint c = example(2);  // the control: the largest numbers, and bits that are no float
  c.tensors["model"].tensors["bad"] = bits("F32", std::numeric_limits<float>::max());
  c.tensors["model"].tensors["half"] = bits("F16", uint16_t(0x7bff));
  c.tensors["model"].tensors["whole"] = bits("I32", int32_t(-1));
  EXPECT_EQ(store.save(c, true), "");
}

TEST(Checkpoint, OldStepsAreRefusedAndTheNewestIsReplaced) {
  SavedRun run({1, 2, 3});
  CheckpointStore store(run.folder);
  EXPECT_TRUE(has(message_of(Exit::checkpoint, [&] { store.save(example(2), false); }), "00000003 is newer"));
  Checkpoint c = example(3);
  c.state = "{\"again\":1}";
  EXPECT_EQ(store.save(c, true), "");
  EXPECT_EQ(store.load(3).state, c.state);
  EXPECT_EQ(store.best_step(), 3);
  EXPECT_EQ(run.names(), (std::set<std::string>{"00000001", "00000002", "00000003"}));
}

// Against the rule itself, over stores that are closed and opened again in between.
TEST(Checkpoint, TheRightOnesStay) {
  std::mt19937 random(5);
  for (int round = 0; round < 6; ++round) {
    SavedRun run;
    const Retention retention{round % 3 + 1, round % 4};
    auto store = std::make_unique<CheckpointStore>(run.folder, retention);
    std::map<int64_t, int64_t> there;  // step -> number of its save
    int64_t best = -1, step = 0;
    for (int64_t number = 1; number <= 10; ++number) {
      step += int64_t(random() % 3) + 1;
      const bool is_best = random() % 4 == 0;
      if (is_best) best = step;
      ASSERT_EQ(store->save(example(step), is_best), "");
      there[step] = number;
      int newer = 0;
      for (auto it = there.rbegin(); it != there.rend();) {
        const bool stays = newer++ < std::max(retention.keep, 2) || it->first == best ||
                           (retention.every > 0 && it->second % retention.every == 0);
        it = stays ? std::next(it) : std::make_reverse_iterator(there.erase(std::next(it).base()));
      }
      Steps expected;
      for (const auto& [s, n] : there) expected.push_back(s);
      ASSERT_EQ(store->steps(), expected) << "keep " << retention.keep << " every " << retention.every;
      ASSERT_EQ(run.names().size(), expected.size());
      ASSERT_EQ(store->best_step().value_or(-1), best);
      if (random() % 3 == 0) {
        store = std::make_unique<CheckpointStore>(run.folder, retention);
        std::vector<Rejected> rejected;
        ASSERT_EQ(store->load_latest(rejected)->step, step);
      }
    }
    for (const int64_t s : store->steps()) EXPECT_TRUE(same(store->load(s), example(s)));
  }
}

// What a stopped run saves takes nobody's place: it goes with the next one, and nothing goes back to it.
TEST(Checkpoint, AStopgapIsNotCounted) {
  SavedRun run;
  const Retention retention{.keep = 3, .every = 2};
  const auto stopgap = [](int64_t step) {
    Checkpoint c = example(step);
    c.stopgap = true;
    return c;
  };
  auto store = std::make_unique<CheckpointStore>(run.folder, retention);
  std::vector<Rejected> rejected;
  ASSERT_EQ(store->save(stopgap(1), false), "");  // before the first that is due
  store = std::make_unique<CheckpointStore>(run.folder, retention);
  EXPECT_FALSE(store->load_latest(rejected, {}, 1));
  EXPECT_EQ(store->load_latest(rejected)->step, 1);
  for (const int64_t step : {2, 4, 6}) ASSERT_EQ(store->save(example(step), false), "");
  EXPECT_EQ(store->steps(), (Steps{2, 4, 6}));
  ASSERT_EQ(store->save(stopgap(7), false), "");
  EXPECT_EQ(store->steps(), (Steps{2, 4, 6, 7}));
  store = std::make_unique<CheckpointStore>(run.folder, retention);
  EXPECT_EQ(store->load_latest(rejected)->step, 7);
  for (const int64_t step : {8, 10, 12, 14}) ASSERT_EQ(store->save(example(step), false), "");
  EXPECT_EQ(store->steps(), (Steps{4, 8, 10, 12, 14}));  // every second one, as without the stopgaps
  ASSERT_EQ(store->save(stopgap(15), false), "");
  EXPECT_EQ(store->load_latest(rejected, {}, 16)->step, 14);
  EXPECT_TRUE(run.names().contains("00000015.bad-diverged"));
  EXPECT_TRUE(rejected.empty());
}

// Not every file system can exchange two names: then it takes two steps, and a kill between them loses nothing.
TEST(Checkpoint, SavedAgainWhereNamesCannotBeExchanged) {
  SavedRun run({1, 2, 3});
  const pid_t child = fork();
  if (child == 0) {
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    if (seccomp_rule_add(filter, SCMP_ACT_ERRNO(EINVAL), SCMP_SYS(renameat2), 1,
                         SCMP_A4(SCMP_CMP_EQ, RENAME_EXCHANGE)) != 0 ||
        seccomp_load(filter) != 0)
      _exit(77);
    try {
      CheckpointStore store(run.folder, {});
      const bool refused = ::renameat2(AT_FDCWD, run.at(1).c_str(), AT_FDCWD, run.at(2).c_str(), RENAME_EXCHANGE) != 0;
      Checkpoint again = example(3);
      again.state = R"({"again":1})";
      const bool saved = store.save(again, false).empty() && same(store.load(3), again);
      _exit(!refused ? 2 : saved ? 0 : 1);
    } catch (const std::exception&) {
      _exit(3);
    }
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77) GTEST_SKIP() << "no seccomp here";
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(run.names(), (std::set<std::string>{"00000001", "00000002", "00000003"}));
  EXPECT_NE(slurp(run.at(3, "state.json")), example(3).state);

  fs::rename(run.at(3), run.folder / ".old-00000003");  // killed between the two
  CheckpointStore store(run.folder, {});
  EXPECT_EQ(store.steps(), (Steps{1, 2, 3}));
  fs::create_directory(run.folder / ".old-00000002");  // and behind both
  EXPECT_EQ(CheckpointStore(run.folder, {}).steps(), (Steps{1, 2, 3}));
  EXPECT_EQ(run.names().size(), 3u);
}

// Who reads the folder of a run that trains finds the newest one, though those that it knew of may be gone by then.
TEST(Checkpoint, TheFolderIsListedAgainWhereItChangesMeanwhile) {
  SavedRun run({1, 2, 3});
  std::vector<Rejected> rejected;
  int64_t next = 4;
  const auto use = [&](const Checkpoint& c) {
    if (next > 6) return;
    CheckpointStore(run.folder, {}).save(example(next++), false);
    fail(Exit::checkpoint, "step {} is not for this test", c.step);
  };
  EXPECT_EQ(load_latest_checkpoint(run.folder, rejected, use)->step, 6);
  EXPECT_TRUE(rejected.empty());
}

// A step that is saved again is the same save: `every` counts on as if it had been one.
TEST(Checkpoint, SavedAgainItKeepsItsNumber) {
  SavedRun run;
  CheckpointStore store(run.folder, {.keep = 1, .every = 3});
  for (const int64_t step : {1, 2, 3}) ASSERT_EQ(store.save(example(step), false), "");
  Checkpoint again = example(3);
  again.state = R"({"stopped":1})";
  for (const bool stopgap : {false, true, false}) {
    again.stopgap = stopgap;
    ASSERT_EQ(store.save(again, false), "");
    EXPECT_TRUE(same(store.load(3), again));
    EXPECT_EQ(parse_json(slurp(run.folder / "00000003" / "MANIFEST.json"), "", Exit::failure)["number"], 3) << stopgap;
  }
  for (const int64_t step : {4, 5, 6, 7, 8}) ASSERT_EQ(store.save(example(step), false), "");
  EXPECT_EQ(store.steps(), (Steps{3, 6, 7, 8}));  // two sound ones, the 3rd and the 6th
}

// A kill behind the last save of a run, before the oldest one went: nothing is saved after it.
TEST(Checkpoint, WhatIsTooManyGoesOnLoading) {
  SavedRun run({1, 2, 3, 4, 5, 6}, {.keep = 10});
  CheckpointStore store(run.folder, {.keep = 3, .every = 2});
  EXPECT_EQ(store.steps(), (Steps{1, 2, 3, 4, 5, 6}));  // before one is known to be sound, none goes
  std::vector<Rejected> rejected;
  EXPECT_EQ(store.load_latest(rejected)->step, 6);
  EXPECT_EQ(store.steps(), (Steps{2, 4, 5, 6}));
  EXPECT_EQ(run.names().size(), 4u);
}

// G7: what is damaged does not count as one of the two.
TEST(Checkpoint, TwoSoundOnesStay) {
  SavedRun run({1, 2, 3, 4}, {.keep = 10});
  spill(run.at(3, "state.json"), "x");
  spill(run.at(4, "state.json"), "x");
  {
    CheckpointStore store(run.folder, {.keep = 1});
    EXPECT_TRUE(has(store.save(example(5), false), "checkpoint 00000004 cannot be relied on"));
    EXPECT_EQ(run.names(), (std::set<std::string>{"00000002", "00000005"}));
  }
  spill(run.at(5, "state.json"), "x");
  EXPECT_EQ(loaded_step(run.folder), 2);
}

// A child process whose mounts and limits end with it. 77: it could not set them up.
int in_child(const std::function<int()>& body) {
  const pid_t pid = fork();
  if (pid == 0) _exit(body());
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool mount_disk(const fs::path& folder, const char* size) {
  return unshare(CLONE_NEWNS) == 0 && mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         mount("tmpfs", folder.c_str(), "tmpfs", 0, size) == 0;
}

TEST(Checkpoint, AFileSizeLimitIsAnErrorAndHarmsNothing) {
  const SavedRun run({1, 2});
  EXPECT_EQ(in_child([&] {
              std::signal(SIGXFSZ, SIG_IGN);
              const rlimit limit{4096, 4096};
              setrlimit(RLIMIT_FSIZE, &limit);
              CheckpointStore store(run.folder);
              const std::string message = message_of(Exit::checkpoint, [&] { store.save(example(3, 5000), true); });
              if (!has(message, "model.safetensors") || !has(message, "File too large")) return 1;
              store.save(example(4), false);  // a small one fits
              return store.best_step() ? 2 : 0;
            }),
            0);
  EXPECT_EQ(loaded_step(run.folder), 4);
  EXPECT_EQ(run.names().size(), 3u);
}

TEST(Checkpoint, AFullDiskCostsTheOldestFirst) {
  const TempDir disk;
  const int result = in_child([&] {
    if (!mount_disk(disk.path(), "size=400k")) return 77;
    CheckpointStore store(disk / "c", {.keep = 100});
    for (int64_t step = 1; step <= 20; ++step) {  // of 80 KiB each
      store.save(example(step, 10'000), step == 2);
      if (loaded_step(disk / "c") != step ||
          store.best_step() != (step >= 2 ? std::optional<int64_t>(2) : std::nullopt))
        return 1;
    }
    if (!same(store.load(2), example(2, 10'000)) || store.steps() != Steps{2, 18, 19, 20}) return 2;
    // Too large, whatever is dropped: an error, and two and the best remain.
    if (!has(message_of(Exit::checkpoint, [&] { store.save(example(21, 60'000), false); }), "No space left")) return 3;
    if (loaded_step(disk / "c") != 20 || store.steps() != Steps{2, 19, 20}) return 4;
    if (message_of(Exit::checkpoint, [&] { require_free_space(disk / "c", 1 << 20, 3); }).empty()) return 5;
    return testing::Test::HasFailure() ? 6 : 0;
  });
  if (result == 77) GTEST_SKIP() << "no right to mount a tmpfs";
  EXPECT_EQ(result, 0);
}

TEST(Checkpoint, AReadOnlyDiskCanBeReadAndSavingSaysWhy) {
  const SavedRun run({1, 2});
  const int result = in_child([&] {
    if (!mount_disk(run.dir.path(), "size=1m")) return 77;
    CheckpointStore store(run.folder);
    store.save(example(1), false);
    if (mount(nullptr, run.dir.path().c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) != 0) return 77;
    if (!has(message_of(Exit::checkpoint, [&] { store.save(example(2), false); }), "Read-only")) return 1;
    return loaded_step(run.folder) == 1 ? 0 : 2;
  });
  if (result == 77) GTEST_SKIP() << "no right to mount a tmpfs";
  EXPECT_EQ(result, 0);
}

TEST(Checkpoint, FreeSpaceIsAskedForWithTheNumbers) {
  const TempDir dir;
  EXPECT_NO_THROW(require_free_space(dir.path(), 1000, 3));
  for (const uint64_t bytes : {uint64_t(1) << 60, ~uint64_t(0)}) {
    const std::string message = message_of(Exit::checkpoint, [&] { require_free_space(dir.path(), bytes, 3); });
    EXPECT_TRUE(has(message, fmt::format("4 checkpoints of {} bytes", bytes))) << message;
  }
  EXPECT_NE(message_of(Exit::checkpoint, [&] { require_free_space(dir / "missing", 1, 3); }), "");
}

TEST(CheckpointWriter, SavesOnItsOwnThread) {
  SavedRun run;
  CheckpointStore store(run.folder);
  std::vector<int64_t> done;
  std::thread::id made_on;
  CheckpointWriter writer(store, [&](const CheckpointWriter::Done& d) {
    EXPECT_EQ(d.warning, "");
    EXPECT_GT(d.seconds, 0);
    EXPECT_EQ(d.best, d.step == 3);
    done.push_back(d.step);
  });
  for (int64_t step = 1; step <= 5; ++step)
    writer.submit(
        [&, step] {
          made_on = std::this_thread::get_id();
          return example(step);
        },
        step == 3);
  writer.wait();
  EXPECT_EQ(done, (Steps{1, 2, 3, 4, 5}));
  EXPECT_NE(made_on, std::this_thread::get_id());
  EXPECT_EQ(store.best_step(), 3);
  EXPECT_EQ(loaded_step(run.folder), 5);
}

TEST(CheckpointWriter, OneSaveAtATimeWithManyWhoSubmit) {
  SavedRun run;
  CheckpointStore store(run.folder);
  std::atomic<int> under_way = 0, most = 0;
  int64_t next = 0, count = 0;  // touched by the writer's thread only: TSan would see a second one
  {
    CheckpointWriter writer(store, [&](const CheckpointWriter::Done&) { ++count, --under_way; });
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
      threads.emplace_back([&] {
        for (int i = 0; i < 5; ++i)
          writer.submit(
              [&] {
                most = std::max(most.load(), ++under_way);
                return example(++next);
              },
              false);
      });
    for (std::thread& t : threads) t.join();
  }  // the end waits for the last one
  EXPECT_EQ(count, 20);
  EXPECT_EQ(most, 1);
  EXPECT_EQ(loaded_step(run.folder), 20);
}

TEST(CheckpointWriter, AnErrorComesWithTheNextCallAndOnce) {
  SavedRun run;
  CheckpointStore store(run.folder);
  CheckpointWriter writer(store, nullptr);
  const auto bad = [] {
    Checkpoint c = example(1);
    c.tensors["model"].tensors["w"] = floats({std::numeric_limits<float>::quiet_NaN()});
    return c;
  };
  writer.submit(bad, false);
  EXPECT_THROW(writer.wait(), Error);
  EXPECT_NO_THROW(writer.wait());
  writer.submit(bad, false);
  EXPECT_THROW(writer.submit([] { return example(2); }, false), Error);
  writer.submit([]() -> Checkpoint { throw std::runtime_error("no memory"); }, false);
  EXPECT_THROW(writer.wait(), std::runtime_error);
  writer.submit([] { return example(3); }, false);  // the control: it still works
  writer.wait();
  EXPECT_EQ(loaded_step(run.folder), 3);
}

}  // namespace
}  // namespace linnet
