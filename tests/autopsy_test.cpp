// Why a run diverged: what the numbers of its last step point to.
#include "src/report/autopsy.h"

#include <gtest/gtest.h>

#include "tiny_run.h"

namespace linnet {
namespace {

BadStep bad_at(int64_t step, const std::string& where, const std::vector<double>& norms, double lr = 0.05) {
  BadStep bad{.step = step, .loss = NAN, .where = where};
  for (size_t i = 0; i < norms.size(); ++i)
    bad.steps.push_back(
        {.step = step - int64_t(norms.size()) + int64_t(i) + 1, .loss = 2, .lr = lr, .grad_norm = float(norms[i])});
  return bad;
}

TEST(Autopsy, SuggestsOneThing) {
  Config config;
  config.optimizer = {.name = "sgd", .lr = 0.05, .momentum = 0.9};
  BadStep bad = bad_at(9, "conv2d conv2.weight", {1, 1, 1, 2, 15, NAN});
  EXPECT_EQ(suggest(bad, config).setting, "optimizer.lr=0.005");  // it had grown before
  bad = bad_at(9, "conv2d conv2.weight", {1, 1, 1, 2, 1, NAN});
  EXPECT_EQ(suggest(bad, config).setting, "optimizer.clip_norm=2");  // out of nothing
  bad.tensors = {{"the images", 1e30, 0, 100}, {"conv2d conv1.weight", 1e38, 5, 100}};
  EXPECT_EQ(suggest(bad, config).setting, "data.std= --set data.mean=");  // whatever the norms say
  bad = bad_at(0, "conv2d conv1.weight", {NAN});
  EXPECT_EQ(suggest(bad, config).setting, "");  // no update was made so far
  bad = bad_at(3, "weight conv1.weight", {1, 1, 1, NAN});
  EXPECT_EQ(suggest(bad, config).setting, "optimizer.lr=0.005");
  config.optimizer.lr = 1e4;
  EXPECT_EQ(suggest(bad_at(1, "conv2d conv1.weight", {1, NAN}, 1e4), config).setting, "optimizer.lr=0.01");
  config.train.precision = "fp16";
  bad = bad_at(3, "gradient of conv1.weight", {1, 1, 1, NAN});
  bad.loss = 2;
  EXPECT_EQ(suggest(bad, config).setting, "train.precision=bf16");
}

BadStep diverged(const Config& config) {
  TinyRun run(config);
  try {
    run.run();
  } catch (const Diverged& e) {
    return e.bad;
  }
  ADD_FAILURE() << "it did not diverge";
  return {};
}

// A learning rate of 1e30: the step's tensors come in the order of the net, and the first bad one is the place that is
// told.
TEST(Autopsy, OfARealDivergence) {
  Config config = tiny_config("convnet_nobn");
  config.optimizer = {.lr = 1e30};  // products of such weights are no floats
  const BadStep bad = diverged(config);
  ASSERT_GE(bad.steps.size(), 2u);
  EXPECT_EQ(bad.steps.back().step, bad.step);
  EXPECT_EQ(bad.steps.front().step, 0);
  EXPECT_NEAR(bad.steps.front().loss, 2.3, 2);  // a mean over images
  ASSERT_FALSE(bad.tensors.empty());
  EXPECT_EQ(bad.tensors.front().what, "the images");
  EXPECT_LT(bad.tensors.front().largest, 10);
  const auto first = std::ranges::find_if(bad.tensors, [](const TensorLook& t) { return t.nonfinite > 0; });
  ASSERT_NE(first, bad.tensors.end());
  EXPECT_EQ(first->what, bad.where);
  EXPECT_EQ(suggest(bad, config).setting, "optimizer.lr=0.01");

  const Autopsy a{
      .run = "runs/<x>", .config = config, .bad = bad, .suggestion = suggest(bad, config), .command = "linnet"};
  TinyRun run(config);
  const std::string page = autopsy_page(a, run.data.train, "");
  EXPECT_TRUE(page.starts_with(kAutopsyBeginning));
  EXPECT_EQ(page.find("<x>"), page.npos);
  size_t pictures = 0;
  for (size_t at = page.find("data:image/png"); at != page.npos; at = page.find("data:image/png", at + 1)) ++pictures;
  EXPECT_EQ(pictures, 32u);
  const std::string text = autopsy_text(a, {});
  EXPECT_NE(text.find("> " + bad.where), text.npos) << text;
}

// Accumulated batches: told is the one where something is wrong, once.
TEST(Autopsy, TellsTheBatchThatIsBad) {
  Config config = tiny_config("mlp");
  config.train.batch_size = 8;
  config.train.accumulate = 4;
  config.optimizer.lr = 1e30;
  const BadStep bad = diverged(config);
  EXPECT_EQ(std::ranges::count(bad.tensors, "the images", &TensorLook::what), 1);
}

TEST(Autopsy, APoisonedInputIsSeen) {
  Config config = tiny_config("convnet_nobn");
  config.data.mean = {0.5, 0.5, 0.5};
  config.data.std = {1e-30, 1e-30, 1e-30};  // finite, and far too large: products are not
  const BadStep bad = diverged(config);
  EXPECT_EQ(bad.step, 0);
  EXPECT_GT(bad.tensors.front().largest, 1e29);
  EXPECT_NE(suggest(bad, config).reason.find("it is the input"), std::string::npos) << suggest(bad, config).reason;
}

TEST(Autopsy, DamagedFilesAreErrors) {
  for (const char* text : {"", "{}", "[]", R"({"step":"x","epoch":0,"loss":1,"where":"","samples":[]})",
                           R"({"step":1e57,"epoch":0,"loss":1,"where":"","samples":[]})",
                           R"({"step":1,"epoch":0,"loss":1,"where":"","samples":[0,1e57]})",
                           R"({"step":9223372036854775807,"epoch":0,"loss":1,"where":"","samples":[]})",
                           R"({"step":1,"epoch":0,"loss":1,"where":"","samples":[-1]})",
                           R"({"step":1,"epoch":0,"loss":1,"where":"","samples":[],"steps":[{}]})",
                           R"({"step":1,"epoch":0,"loss":1,"where":"","samples":[],"tensors":3})", R"({"step":1,)"}) {
    EXPECT_THROW(parse_bad_step(text, "test"), Error) << text;
    try {
      parse_bad_step(text, "test");
    } catch (const Error& e) {
      const std::string message = e.what();
      EXPECT_TRUE(message.starts_with("test: expected ")) << message;
      EXPECT_NE(message.find("summary.json"), message.npos) << message;
      EXPECT_EQ(message.find("exception"), message.npos) << message;
    }
  }
}

}  // namespace
}  // namespace linnet
