// The pool gives memory back and hands it out again; training asks the backend for none once it has settled.
#include "linnet/pool.h"

#include <gtest/gtest.h>

#include "tiny_run.h"

namespace linnet {
namespace {

TEST(Pool, HandsOutAgainWhatCameBack) {
  const auto backend = make_cpu_backend(1);
  Pool pool(*backend);
  const void* first;
  {
    const Tensor a = pool.empty({100}, DType::f32), b = pool.empty({100}, DType::f32);
    EXPECT_NE(a.raw(), b.raw());
    first = a.raw();
    EXPECT_EQ(pool.misses(), 2);
  }
  const Tensor c = pool.empty({50, 2}, DType::f32), d = pool.empty({400}, DType::u8);
  EXPECT_EQ(pool.misses(), 2);
  EXPECT_TRUE(c.raw() == first || d.raw() == first);
  const Tensor view = c.slice(10, {5});
  const Tensor e = pool.empty({100}, DType::f32);
  EXPECT_EQ(pool.misses(), 3);
}

TEST(Pool, AViewKeepsTheMemory) {
  const auto backend = make_cpu_backend(1);
  Pool pool(*backend);
  Tensor view = pool.empty({100}, DType::f32).slice(0, {1});
  EXPECT_NE(pool.empty({100}, DType::f32).raw(), view.raw());
  EXPECT_EQ(pool.misses(), 2);
}

// Backends round sizes up as they like (the CPU's to 2 MiB pages): every size must find its block again.
TEST(Pool, ReusesEverySize) {
  const auto backend = make_cpu_backend(1);
  Pool pool(*backend);
  for (const int64_t bytes :
       {0, 1, 255, 256, 257, 65535, 65536, 70000, (2 << 20) - 1, 2 << 20, (2 << 20) + 1, 5000000}) {
    pool.empty({bytes}, DType::u8);
    const int64_t misses = pool.misses();
    for (int i = 0; i < 3; ++i) pool.empty({bytes}, DType::u8);
    EXPECT_EQ(pool.misses(), misses) << bytes << " bytes";
  }
}

TEST(Pool, ZerosAreZeroInUsedMemory) {
  const auto backend = make_cpu_backend(1);
  Pool pool(*backend);
  Tensor dirty = pool.empty({64}, DType::i32);
  std::fill_n(dirty.data<int32_t>(), 64, -1);
  const void* memory = dirty.raw();
  dirty = {};
  const Tensor zeros = pool.zeros({64}, DType::i32);
  ASSERT_EQ(zeros.raw(), memory);
  EXPECT_EQ(std::count(zeros.data<int32_t>(), zeros.data<int32_t>() + 64, 0), 64);
}

TEST(Pool, TensorsMayOutliveIt) {
  const auto backend = make_cpu_backend(1);
  Tensor t;
  {
    Pool pool(*backend);
    t = pool.zeros({8}, DType::f32);
  }
  EXPECT_EQ(t.data<float>()[7], 0.f);
}

TEST(Pool, TrainingAllocatesNothingFromTheThirdStepOn) {
  for (const char* model : {"resnet20", "convnet"}) {
    TinyRun run(tiny_config(model));
    run.trainer.start_epoch(0);
    run.trainer.step();
    run.trainer.step();
    const int64_t misses = run.trainer.net().pool().misses();
    EXPECT_GT(misses, 0);
    run.trainer.step();
    for (int64_t epoch = 1; epoch < 3; ++epoch) {
      run.trainer.start_epoch(epoch);
      for (int i = 0; i < 3; ++i) run.trainer.step();
    }
    EXPECT_EQ(run.trainer.net().pool().misses(), misses) << model;
  }
}

TEST(Pool, NeitherDoesItWithARaggedLastBatch) {
  Config config = tiny_config("resnet20");
  config.data.drop_last = false;
  config.train.batch_size = 40;  // 40, 40, 16
  TinyRun run(config);
  ASSERT_EQ(run.trainer.steps_per_epoch(), 3);
  int64_t misses = 0;
  for (int64_t epoch = 0; epoch < 4; ++epoch) {
    run.trainer.start_epoch(epoch);
    for (int i = 0; i < 3; ++i) run.trainer.step();
    if (epoch == 0) misses = run.trainer.net().pool().misses();
  }
  EXPECT_EQ(run.trainer.net().pool().misses(), misses);
}

// Activations above 2 MiB that are no multiple of it.
TEST(Pool, EvaluationAllocatesNothingFromTheSecondBatchOn) {
  const auto backend = make_cpu_backend(2);
  const Images images = make_synthetic(150, Split::test, 0, 32);
  Net net(*backend, "convnet", {}, 0);
  const BatchSource source = upload_source(*backend, images, {0.5, 0.5, 0.5}, {0.25, 0.25, 0.25});
  net.evaluate(source, 50, 10);
  const int64_t misses = net.pool().misses();
  net.evaluate(source, 50, 10);
  EXPECT_EQ(net.pool().misses(), misses);
}

}  // namespace
}  // namespace linnet
