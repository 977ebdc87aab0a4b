// What a device is asked for and what becomes of its failures: launches, allocations and waits are counted, memory has
// names, an error says where it was, and what was chosen by timing is chosen again.
#include "flat_run.h"
#include "kernels/exec_cpu.h"
#include "linnet/run.h"
#include "temp_dir.h"
#include "tiny_run.h"

namespace linnet {
namespace {

class DeviceTest : public OpTest {
 protected:
  template <class F>
  int64_t launches(const F& f) {
    const int64_t before = be().counters().launches;
    f();
    return be().counters().launches - before;
  }
};
LINNET_ON_EVERY_BACKEND(DeviceTest);

// Over the flat buffer: one kernel updates on a GPU (two simpler ones are faster on a CPU), the clip factor comes out
// of the sum of squares (a reduction is two launches), and nothing is zeroed, as gradients are overwritten.
TEST_P(DeviceTest, AStepEndsInAFewLaunches) {
  const Flat flat = flat_of(be(), random_values(1000, 1), random_values(1000, 2), 1, 600);
  const Tensor step = make_step(be()), sums = tensor_of(be(), {2}, DType::f64, {1, 0});
  const Rule rule{Momentum{}};
  EXPECT_EQ(launches([&] { be().judge_step(step, flat.grad, nullptr, sums, {.norm = 1}); }), 2);
  EXPECT_EQ(launches([&] { be().update(rule, flat, 0, {.norm = 1}, step); }), be().device() == Device::cuda ? 1 : 2);
}

// The GPU's single launch is the CPU's two, to the last bit.
TEST(Device, OneUpdateForDecayedAndOthers) {
  const auto be = make_cpu_backend(2);
  Momentum rule;
  rule.momentum = 0.9;
  const Clip clip{.norm = 1, .value = 0.5, .loss_scale = 8};
  for (int64_t n_decay : {0, 1, 600, 1000}) {
    const auto updated = [&](bool at_once) {
      const Flat flat = flat_of(*be, random_values(1000, 1), random_values(1000, 2), 1, n_decay);
      const Tensor step = make_step(*be), sums = tensor_of(*be, {2}, DType::f64, {1, 0});
      StepParams params;
      params.group[0] = group_step(rule, 0.1, 0.01, 1);
      write_step(*be, step, params);
      be->judge_step(step, flat.grad, nullptr, sums, clip);
      ThreadPool pool(2);
      if (at_once)
        CpuExec{&pool}.for_each(1000, ApplyRule<Momentum, true>{rule,
                                                                flat.master.data<float>(),
                                                                flat.grad.data<float>(),
                                                                {flat.slots.data<float>()},
                                                                n_decay,
                                                                clip,
                                                                static_cast<StepMemory*>(step.raw()),
                                                                0});
      else
        be->update(rule, flat, 0, clip, step);
      return Results{{"w", download(*be, flat.master)}, {"v", download(*be, flat.slots)}};
    };
    expect_same_bits(updated(true), updated(false));
  }
}

// With a smaller batch at the end of each epoch, too: it has a graph of its own.
TEST_P(DeviceTest, TheSteadyStateAllocatesNothingAndWaitsForNothing) {
  Config config = tiny_config("resnet20");
  config.data.drop_last = false;
  config.train.batch_size = 40;  // 96 images: 40, 40, 16
  config.train.device = GetParam();
  const RunData data = load_run_data(config);
  Trainer trainer(config, be(), data);
  Backend::Counters before;
  for (int64_t epoch = 0; epoch < 4; ++epoch) {
    trainer.start_epoch(epoch);
    if (epoch == 3) before = be().counters();
    for (int i = 0; i < 3; ++i) trainer.step();
  }
  EXPECT_EQ(be().counters().allocations, before.allocations);
  EXPECT_EQ(be().counters().waits, before.waits);
  EXPECT_GT(before.allocations, 0);
}

TEST_P(DeviceTest, NoGraphGivesTheSameBits) {
  Config config = tiny_config("resnet20");
  config.data.drop_last = false;
  const auto hash = [&](bool graph) {
    config.train.graph = graph;
    config.train.autotune = false;
    const RunData data = load_run_data(config);
    const auto backend = make_backend(GetParam(), backend_options(config));
    Trainer trainer(config, *backend, data);
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      trainer.start_epoch(epoch);
      for (int i = 0; i < 3; ++i) trainer.step();
    }
    return trainer.state_hash();
  };
  EXPECT_EQ(hash(false), hash(true));
}

// A device that fails after some convolutions, and, like a GPU, is asked only now and then how it is.
struct FailingDevice : ReferenceBackend {
  int left;
  Device kind;
  FailingDevice(int convolutions, Device d) : left(convolutions), kind(d) {}
  Device device() const override { return kind; }
  bool conv_forward(const Tensor& y, const Tensor& x, const Tensor& w, Conv conv, const Tensor* m) override {
    if (left-- == 0) fail(Exit::device, "[cuda] an illegal memory access was encountered");
    return ReferenceBackend::conv_forward(y, x, w, conv, m);
  }
};

TEST(Device, AFailureNamesTheStep) {
  Config config = tiny_config("plain20");
  config.data.image_size = 8;
  config.train.batch_size = 4;
  config.log.interval = 50;
  const auto message = [&](Device kind) {
    const RunData data = load_run_data(config);
    FailingDevice backend(19 * 5 + 3, kind);  // in the sixth step; the first three are looked at
    Trainer trainer(config, backend, data);
    return error_of([&] { trainer.run({}); });
  };
  EXPECT_EQ(message(Device::cpu), "[cuda] an illegal memory access was encountered (in step 6)");
  EXPECT_EQ(message(Device::cuda), "[cuda] an illegal memory access was encountered (in step 4 or later, at most 6)");
}

// ---- train.verify_every: a step computed twice ----------------------------------------------------------------------

// In one convolution of many a bit of its weights turns round, as in memory that errs.
struct ErringMemory : ReferenceBackend {
  int left;
  explicit ErringMemory(int convolutions) : left(convolutions) {}
  bool conv_forward(const Tensor& y, const Tensor& x, const Tensor& w, Conv conv, const Tensor* m) override {
    if (left-- == 0) reinterpret_cast<uint32_t*>(w.data<float>())[3] ^= 1u << 12;
    return ReferenceBackend::conv_forward(y, x, w, conv, m);
  }
};

TEST(Verify, ABitThatTurnsRoundInAVerifiedStepEndsTheRun) {
  Config config = tiny_config("plain20");
  config.data.image_size = 8;
  config.train.batch_size = 4;
  config.train.verify_every = 2;
  const RunData data = load_run_data(config);
  const auto message = [&](int convolutions) {
    ErringMemory backend(convolutions);
    Trainer trainer(config, backend, data);
    return error_of([&] { trainer.run({}, [&] { return trainer.global_step() == 4; }); });
  };
  constexpr int kStep = 19;  // convolutions; steps 1, 2 and 2 again, 3, 4 and 4 again
  for (const int at : {kStep + 3, 2 * kStep + 3, 4 * kStep + 18, 5 * kStep})
    EXPECT_NE(message(at).find("'master' differs: memory or a processor"), std::string::npos) << at << message(at);
  EXPECT_NE(message(kStep).find("(in step 2)"), std::string::npos) << message(kStep);
  EXPECT_EQ(message(100 * kStep), "no error");
  EXPECT_EQ(message(3 * kStep + 3), "no error");  // step 3 is not verified: what it gives is taken
}

TEST(Verify, ChangesNothing) {
  const auto hashes = [](int64_t every, const std::function<void(Config&)>& change) {
    Config config = tiny_config("convnet");
    change(config);
    config.train.verify_every = every;
    TinyRun run(config);
    run.run([&] { return run.trainer.last_result().skipped == 4; });  // before weights out of bounds are evaluated
    std::string all = run.trainer.state_hash();
    for (const Row& row : run.rows)
      for (const auto& [name, value] : row.values) all += fmt::format(" {} {}", name, value);
    return all;
  };
  const std::pair<const char*, std::function<void(Config&)>> cases[] = {
      {"momentum", [](Config&) {}},
      {"accumulation", [](Config& c) { c.train.accumulate = 2; }},
      {"adam, averages, lookahead",
       [](Config& c) {
         c.optimizer = {.name = "adam", .form = "standard", .lr = 0.001};
         c.ema.decay = 0.9;
         c.lookahead.k = 2;
       }},
      {"skipped steps",
       [](Config& c) {
         c.train.batch_size = 4;
         c.optimizer.lr = 1e30;
         c.train.on_nonfinite = "skip";
       }},
  };
  for (const auto& [name, change] : cases)
    for (const int64_t every : {1, 2}) EXPECT_EQ(hashes(0, change), hashes(every, change)) << name << every;
}

TEST(Device, MemoryHasNames) {
  MemoryAccount account;
  EXPECT_STREQ(MemoryFor::current(), "other things");
  {
    const MemoryFor images("images");
    account.add(MemoryFor::current(), size_t(3) << 20);
    {
      const MemoryFor weights("weights");
      account.add(MemoryFor::current(), size_t(5) << 20);
    }
    account.add(MemoryFor::current(), size_t(1) << 20);
  }
  EXPECT_STREQ(MemoryFor::current(), "other things");
  EXPECT_EQ(account.text(), "Linnet holds 9 MiB: 5 MiB for weights, 4 MiB for images");
  account.remove("weights", size_t(5) << 20);
  EXPECT_EQ(account.text(), "Linnet holds 4 MiB: 4 MiB for images");
}

// What autotuning chose lies in the checkpoint, and the next process gets it before its first step.
TEST(Device, ChoicesGoThroughACheckpoint) {
  struct Chooser : ReferenceBackend {
    std::string text;
    std::string choices() const override { return text; }
    void set_choices(const std::string& given) override { text = given; }
  };
  const TempDir dir;
  Config config = tiny_config("plain20");
  config.data.image_size = 8;
  const RunData data = load_run_data(config);
  Chooser first, second;
  first.text = "cuDNN 91900 on a GPU\n28:2=1 conv2d forward of 8 images\n";
  {
    Trainer trainer(config, first, data);
    RunFolder run(dir.path() / "run", config, first, data);
    RunCheckpoints checkpoints(run, trainer);
    run.begin();
    checkpoints.save_now(trainer);
  }
  Trainer trainer(config, second, data);
  RunFolder run(dir.path() / "run", config, second, data, RunFolder::Existing{});
  RunCheckpoints checkpoints(run, trainer);
  EXPECT_TRUE(checkpoints.load(trainer));
  EXPECT_EQ(second.text, first.text);
}

}  // namespace
}  // namespace linnet
