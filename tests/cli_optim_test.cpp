// `linnet optim` as a person or a script runs it.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli_run.h"

namespace linnet {
namespace {

using nlohmann::json;

Ended optim(const std::string& arguments) { return run_in_shell("optim " + arguments); }
json parsed(const std::string& arguments) {
  const Ended ended = optim(arguments + " --json");
  EXPECT_EQ(ended.code, 0) << ended.out;
  return json::parse(ended.out, nullptr, false);
}

TEST(CliOptim, TracesInDouble) {
  const json t = parsed("trace adam --w0=0 --grads=0.2,0.1,-0.05 --lr 0.1 --double");
  const std::vector<double> w = t["w"], m = t["state"]["m"], v = t["state"]["v"];
  ASSERT_EQ(w.size(), 3u);
  EXPECT_NEAR(w[2], -0.24958408637654383, 1e-13);
  EXPECT_NEAR(m[2], 0.0202, 1e-14);
  EXPECT_NEAR(v[2], 5.241004e-05, 1e-16);
  EXPECT_EQ(t["precision"], "f64");
}

TEST(CliOptim, TracesInFloatUnlessAsked) {
  const std::vector<double> w = parsed("trace sgd --w0=1 --grads=0.1 --lr 0.1")["w"];
  EXPECT_EQ(w[0], double(float(w[0])));
  EXPECT_NEAR(w[0], 0.99, 1e-7);
}

TEST(CliOptim, NegativeNumbersAndKeysWithOrWithoutTheirSection) {
  const std::string rest =
      " --set momentum=0.9 --set optimizer.nesterov=true --w0=-1 --grads=-0.1,0.2 --lr 0.1 --double";
  const std::vector<double> w = parsed("trace sgd" + rest)["w"];
  EXPECT_NEAR(w[0], -1 + 0.1 * 0.19, 1e-15);
}

TEST(CliOptim, SeveralWeights) {
  const json t = parsed("trace sgd --w0=1,-2 --grads='0.1,0.2;0,-1' --lr 1 --double");
  EXPECT_EQ(t["w"].size(), 2u);
  EXPECT_NEAR(t["w"][1][0].get<double>(), 0.9, 1e-15);
  EXPECT_NEAR(t["w"][1][1].get<double>(), -1.2, 1e-15);
  // Without ';' a number is a step's gradient for all of them; "a,b;" is one step.
  EXPECT_NEAR(parsed("trace sgd --w0=1,-2 --grads=1,1 --lr 1 --double")["w"][1][1].get<double>(), -4, 1e-15);
  EXPECT_EQ(parsed("trace sgd --w0=1,-2 --grads='1,2;' --lr 1")["w"].size(), 1u);
}

TEST(CliOptim, Lookahead) {
  const json t = parsed("trace sgd --set lookahead.k=2 --w0=1 --grads=0.2,0.1,-0.05,0.2 --lr 0.1 --double");
  EXPECT_NEAR(t["w"][3].get<double>(), 0.9775, 1e-14);
}

TEST(CliOptim, SaysWhereNagTakesItsGradients) {
  EXPECT_EQ(parsed("trace nag --w0=1 --grads=0.2,0.1")["gradients_at"], "look-ahead point");
  expect_has(optim("trace nag --w0=1 --grads=0.2,0.1").out, "look-ahead points");
}

TEST(CliOptim, ATableForPeople) {
  const Ended ended = optim("trace sgd --set momentum=0.9 --w0=1 --grads=0.5,0.5 --lr 0.5 --double");
  EXPECT_EQ(ended.code, 0);
  expect_has(ended.out, "step");
  expect_has(ended.out, "0.95");
}

TEST(CliOptim, MistakesAreThoseOfAConfig) {
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"trace adan --grads=1", "did you mean 'adam'?"},
      {"trace adam --set beta=1 --grads=1", "did you mean 'optimizer.betas'?"},
      {"trace adam --set momentum=0.9 --grads=1", "momentum"},
      {"trace sgd --set nesterov=true --grads=1", "momentum above 0"},
      {"trace adam --set 'betas=[0.9, 1]' --grads=1", "< 1"},
      {"trace adam --lr 0 --grads=1", "> 0"},
      {"trace adam --lr x --grads=1", "--lr expects numbers"},
      {"trace adam --grads=1,x", "'x'"},
      {"trace adam --grads=1,nan", "'nan'"},
      {"trace adam --w0=1,2 --grads='1,2;3'", "step 2 has 1 gradient, but"},
      {"trace adam --set clip_norm=1 --grads=1", "clipping"},
      {"trace adam", "--grads"},
      {"show adan", "did you mean 'adam'?"}};
  for (const auto& [arguments, message] : wrong) {
    const Ended ended = optim(arguments);
    EXPECT_EQ(ended.code, 2) << arguments << ": " << ended.out;
    expect_has(ended.out, message);
  }
}

TEST(CliOptim, ShowsEveryOptimizer) {
  for (const std::string name :
       {"sgd", "nag", "sgdw", "adagrad", "rmsprop", "adam", "adamw", "nadam", "radam", "lion"}) {
    const json s = parsed("show " + name);
    EXPECT_EQ(s["name"], name);
    EXPECT_TRUE(s["defaults"]["lr"].is_number()) << name;
    EXPECT_FALSE(s["memory"].empty()) << name;
    const Ended text = optim("show " + name);
    EXPECT_EQ(text.code, 0);
    expect_has(text.out, "words moved");
  }
  EXPECT_EQ(parsed("show adam")["memory"][0]["words_moved"], 7);
  EXPECT_EQ(parsed("show adam")["keras"]["form"], "eps_hat");
  EXPECT_TRUE(parsed("show radam")["keras"].is_null());
}

}  // namespace
}  // namespace linnet
