// `linnet lr-find` and `play`, as a person runs them.
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "cli_run.h"
#include "temp_dir.h"

namespace linnet {
namespace {

using nlohmann::json;

class Lab : public testing::Test {
 protected:
  std::string config() {
    const auto path = dir_ / "c.toml";
    std::ofstream(path) << "model.name = 'mlp'\ndata.name = 'synthetic'\ndata.samples = 400\ndata.val = 40\n"
                           "data.image_size = 16\ntrain.batch_size = 16\n";
    return "'" + path.string() + "'";
  }
  TempDir dir_;
};

TEST_F(Lab, LrFindComparesBatchSizesAndOptimizers) {
  const std::string svg = (dir_ / "r.svg").string();
  const Ended e = run_in_shell("lr-find " + config() +
                               " --batch 8,16 --optimizer sgd,adam --steps 12 --seeds 2 --json --svg '" + svg + "'");
  ASSERT_EQ(e.code, 0) << e.out;
  const json found = json::parse(e.out);
  ASSERT_EQ(found.size(), 4u);
  EXPECT_EQ(found[3]["setting"], "adam, batch 16");
  EXPECT_EQ(found[0]["seeds"].size(), 2u);
  EXPECT_NEAR(found[0]["seeds"][1]["lr"][0], 1e-6, 1e-18);
  EXPECT_EQ(found[0]["seeds"][0]["loss"].size(), found[0]["seeds"][0]["lr"].size());
  expect_has(read(svg), "</svg>");
  EXPECT_EQ(run_in_shell("lr-find " + config() + " --from 1 --to 0.1").code, 2);
  EXPECT_EQ(run_in_shell("lr-find " + config() + " --batch 1000").code, 2);
}

TEST_F(Lab, LrFindAdvisesNothingWhereNothingFell) {
  const std::string high = "lr-find " + config() + " --steps 30 --seeds 2 --from 1e3 --to 1e8";
  const Ended e = run_in_shell(high);
  EXPECT_EQ(e.code, 0) << e.out;
  expect_has(e.out, "the loss rises from the first rates on");
  expect_has(e.out, "No rate follows");
  EXPECT_EQ(e.out.find("worth a try"), e.out.npos) << e.out;
  const json j = json::parse(run_in_shell(high + " --json").out)[0];
  EXPECT_TRUE(j["from"].is_null() && j["steepest"].is_null() && j["to"].is_null()) << j;
  expect_has(j["doubt"], "the loss rises");
  expect_has(j["cure"], "--from");
  expect_has(run_in_shell("lr-find " + config() + " --steps 10 --seeds 1").out, "10 rates are too few");
}

TEST_F(Lab, LrFindRefusesBeforeItTrains) {
  for (const std::string& bad : {std::string("inf"), std::string("0"), std::string("-1"), "1" + std::string(309, '0')})
    for (const char* option : {" --to ", " --from "}) {
      const Ended e = run_in_shell("lr-find " + config() + option + bad);
      EXPECT_EQ(e.code, 2) << option << bad;
      expect_has(e.out, "expected a number above 0, got '");
    }
  for (const char* names : {"sgd,nope", "sgd,,adam", "sgd,", "''"}) {
    const Ended e = run_in_shell("lr-find " + config() + " --steps 10 --optimizer " + names);
    EXPECT_EQ(e.code, 2) << names << e.out;
    EXPECT_EQ(e.out.find("done"), e.out.npos) << e.out;
  }
  expect_has(run_in_shell("lr-find " + config() + " --optimizer sgd,,adam").out, "got an empty one");
  expect_has(run_in_shell("lr-find " + config() + " --svg ''").out, "expected the name of a file");
}

TEST_F(Lab, OnlyADrawingOfItsKindIsReplaced) {
  const std::string mine = (dir_ / "mine").string(), svg = (dir_ / "s.svg").string();
  std::ofstream(mine) << "my own work";
  const std::string play = "play bowl --optimizer sgd:lr=0.1 --steps 3";
  for (const std::string& verb :
       {play + " --svg ", play + " -o ", "lr-find " + config() + " --steps 10 --seeds 1 --svg ",
        "schedule " + config() + " --svg "}) {
    const Ended e = run_in_shell(verb + "'" + mine + "'");
    EXPECT_EQ(e.code, 2) << verb << e.out;
    expect_has(e.out, "choose another file");
    EXPECT_EQ(read(mine), "my own work") << verb;
  }
  for (int twice = 0; twice < 2; ++twice) EXPECT_EQ(run_in_shell(play + " --svg '" + svg + "'").code, 0);
  EXPECT_EQ(run_in_shell("schedule " + config() + " --svg '" + svg + "'").code, 0);
  EXPECT_EQ(run_in_shell(play + " -o '" + svg + "'").code, 2);  // a drawing is no page
}

TEST_F(Lab, PlayDrawsAndCounts) {
  const std::string page = (dir_ / "p.html").string();
  const Ended e = run_in_shell("play ravine --optimizer sgd:lr=0.09 --optimizer sgd:lr=0.1 --json -o '" + page + "'");
  ASSERT_EQ(e.code, 0) << e.out;
  const json j = json::parse(e.out);
  EXPECT_EQ(j["optimizers"][0]["converged"], 43);
  EXPECT_TRUE(j["optimizers"][1]["converged"].is_null());
  EXPECT_NEAR(j["optimizers"][1]["reversed"], 1, 1e-9);  // w2 goes from 2 to -2 and back
  const std::string html = read(page);
  for (const char* part : {"type=\"range\"", "<path class=\"way\"", "lr 0.03: "}) expect_has(html, part);
  for (const char* part : {"src=", "href=", "@import"}) EXPECT_EQ(html.find(part), html.npos);  // it loads nothing
  EXPECT_EQ(run_in_shell("play bow --optimizer sgd").code, 2);
  EXPECT_EQ(run_in_shell("play bowl --optimizer sdg").code, 2);
  EXPECT_EQ(run_in_shell("play bowl --optimizer sgd --start 1").code, 2);
}

TEST_F(Lab, PlayRefusesWhatItWouldHaveToGuess) {
  for (const char* bad : {"''", ":lr=1", "sgd:", "sgd:lr", "sgd:lr=", "sgd:=1", "sgd::lr=1", "sgd:lr=0.1:lr=0.2",
                          "sgd:name=adam", "sgd --start=nan,1", "sgd --start=inf,1", "sgd --grid=0.1,nan"}) {
    const Ended e = run_in_shell(std::string("play bowl --steps 3 --optimizer ") + bad);
    EXPECT_EQ(e.code, 2) << bad << e.out;
    expect_has(e.out, "expected ");
  }
  for (const char* bad : {"0", "-1", "inf"})
    expect_has(run_in_shell(std::string("play bowl --optimizer sgd --grid=") + bad).out, "expected a number above 0");
  const Ended twice = run_in_shell("play bowl --optimizer sgd -o linnet-same.svg --svg ./linnet-same.svg");
  EXPECT_EQ(twice.code, 2) << twice.out;
  for (const char* option : {" -o ''", " --svg ''"}) {
    const Ended e = run_in_shell(std::string("play bowl --optimizer sgd") + option);
    EXPECT_EQ(e.code, 2) << e.out;
    expect_has(e.out, "expected the name of a file");
  }
  const std::string svg = (dir_ / "x.svg").string(), same = (dir_ / "./x.svg").string();
  EXPECT_EQ(run_in_shell("play bowl --steps 3 --optimizer sgd --svg '" + svg + "' -o '" + same + "'").code, 2);
  EXPECT_FALSE(std::filesystem::exists(svg));
  EXPECT_EQ(run_in_shell("play bowl --steps 3 --optimizer adam:lr=0.1:betas=[0.9,0.99]").code, 0);
}

TEST_F(Lab, AFileThatCannotBeWrittenIsSeenBeforeTheWork) {
  const std::string gone = (dir_ / "gone" / "a.svg").string();
  for (const std::string& verb :
       {"lr-find " + config() + " --steps 10 --seeds 1 --svg ", std::string("play bowl --optimizer sgd --svg "),
        std::string("play bowl --optimizer sgd -o ")}) {
    const Ended e = run_in_shell(verb + "'" + gone + "'");
    EXPECT_EQ(e.code, 4) << verb << e.out;
    for (const char* work : {"done", "steps to"}) EXPECT_EQ(e.out.find(work), e.out.npos) << e.out;
  }
}

// The corners and the steps of the first way of a page.
struct DrawnWay {
  std::vector<std::string> corners;
  std::vector<int64_t> steps;
};
DrawnWay first_way(const std::string& html) {
  const auto attribute = [&](const std::string& name) {
    const size_t at = html.find(name + "=\"", html.find("class=\"way\"")) + name.size() + 2;
    return std::istringstream(html.substr(at, html.find('"', at) - at));
  };
  DrawnWay way;
  std::istringstream corners = attribute(" d"), steps = attribute("data-steps");
  for (std::string one; corners >> one;) way.corners.push_back(one);
  for (int64_t one = 0; steps >> one;) way.steps.push_back(one);
  return way;
}

TEST_F(Lab, PlaysPageCoversAllStepsAndDrawsAGridOnce) {
  const std::string page = (dir_ / "p.html").string();
  const Ended e = run_in_shell(
      "play ravine --steps 20001 --optimizer sgd:lr=1e-6 --optimizer sgd:lr=2e-6 --optimizer sgd:lr=1:momentum=0 "
      "--json -o '" +
      page + "'");
  ASSERT_EQ(e.code, 0) << e.out;
  const std::string html = read(page);
  const DrawnWay way = first_way(html);
  ASSERT_EQ(way.corners.size(), way.steps.size());
  EXPECT_LT(way.corners.size(), 2000u);           // it creeps
  EXPECT_EQ(way.corners.front(), "M648.0,80.0");  // (4, 2) of -5 to 5 and -3 to 3
  EXPECT_EQ(way.steps.back(), 20001);
  const json path = json::parse(e.out)["optimizers"][0]["path"];
  for (size_t k = 0; k < way.corners.size(); ++k) {
    double x = 0, y = 0;
    ASSERT_EQ(std::sscanf(way.corners[k].c_str() + 1, "%lf,%lf", &x, &y), 2);
    EXPECT_NEAR(x, 72 * (5 + path[way.steps[k]][0].get<double>()), 0.06);
    EXPECT_NEAR(y, 80 * (3 - path[way.steps[k]][1].get<double>()), 0.06);
  }
  for (const char* part :
       {"max=\"20001\"", "<title>minimum</title>", "<title>start</title>", ">w1</text>", ">-4</text>"})
    expect_has(html, part);
  size_t grids = 0;
  for (size_t at = 0; (at = html.find("<h3>", at)) != html.npos; ++at) ++grids;
  EXPECT_EQ(grids, 2u);  // sgd, sgd:momentum=0
}

// Each step crosses the ravine: none may be left out, or a way is drawn that never was.
TEST_F(Lab, PlayDrawsEachCrossing) {
  const std::string page = (dir_ / "p.html").string();
  ASSERT_EQ(run_in_shell("play ravine --steps 5000 --optimizer sgd:lr=0.1 -o '" + page + "'").code, 0);
  const DrawnWay way = first_way(read(page));
  ASSERT_EQ(way.corners.size(), 5001u);
  for (size_t k = 1; k < way.corners.size(); ++k) EXPECT_EQ(way.steps[k], int64_t(k));
  ASSERT_EQ(run_in_shell("play ravine --steps 30000 --optimizer sgd:lr=0.1 -o '" + page + "'").code, 0);
  const DrawnWay longer = first_way(read(page));  // its two ends, with a gap between
  ASSERT_EQ(longer.corners.size(), 20000u);
  EXPECT_EQ(longer.corners[10000][0], 'M');
  EXPECT_EQ(longer.steps[9999], 9999);
  EXPECT_EQ(longer.steps.back(), 30000);
}

TEST_F(Lab, LrFindNamesSixCurvesBelowInSixLooks) {
  const std::string svg = (dir_ / "r.svg").string();
  ASSERT_EQ(
      run_in_shell("lr-find " + config() + " --batch 8,9,10,11,12,13 --steps 10 --seeds 1 --svg '" + svg + "'").code,
      0);
  const std::string drawn = read(svg);
  std::set<std::string> looks;
  for (size_t at = 0; (at = drawn.find("<line class=\"key ", at)) != drawn.npos; ++at)
    looks.insert(drawn.substr(drawn.find("stroke=", at), 16));
  EXPECT_EQ(looks.size(), 6u);
  double width = 0, height = 0, y = 0;
  ASSERT_EQ(std::sscanf(drawn.c_str() + drawn.find("viewBox=\"") + 9, "0 0 %lf %lf", &width, &height), 2);
  const size_t name = drawn.find(", batch 13</text>");
  ASSERT_NE(name, drawn.npos);
  ASSERT_EQ(std::sscanf(drawn.c_str() + drawn.rfind(" y=\"", name), " y=\"%lf", &y), 1);
  EXPECT_GT(y, 360);  // below the picture
  EXPECT_LT(y, height);
}

TEST_F(Lab, FurtherWaysAreDashedAndNamedBelow) {
  const std::string svg = (dir_ / "many.svg").string();
  std::string verb = "play bowl --steps 20 --svg '" + svg + "'";
  for (int k = 1; k <= 40; ++k) verb += " --optimizer sgd:lr=0.0" + std::to_string(k);
  ASSERT_EQ(run_in_shell(verb).code, 0);
  const std::string drawn = read(svg);
  std::set<std::string> looks;
  for (size_t at = 0; (at = drawn.find("class=\"way\" ", at)) != drawn.npos; ++at)
    looks.insert(drawn.substr(at, drawn.find(" points", at) - at));
  EXPECT_EQ(looks.size(), 40u);
  const size_t box = drawn.find("viewBox=\"") + 9;
  double left = 0, top = 0, width = 0, height = 0;
  ASSERT_EQ(std::sscanf(drawn.c_str() + box, "%lf %lf %lf %lf", &left, &top, &width, &height), 4);
  for (int k = 1; k <= 40; ++k) {
    const size_t name = drawn.find(">sgd:lr=0.0" + std::to_string(k) + "</text>");
    ASSERT_NE(name, drawn.npos);
    double y = 0;
    ASSERT_EQ(std::sscanf(drawn.c_str() + drawn.rfind("y=\"", name), "y=\"%lf", &y), 1);
    EXPECT_GT(y, 480);  // below the field
    EXPECT_LT(y, top + height);
  }
}

TEST_F(Lab, NoiseFollowsTheLawAndAdviceHasReasons) {
  const std::string few = " --batch 8,16 --samples 8 --steps 3 --json";
  const Ended e = run_in_shell("noise " + config() + few);
  ASSERT_EQ(e.code, 0) << e.out;
  const json n = json::parse(e.out)["start"];
  EXPECT_NEAR(n[0]["deviation"].get<double>() / n[1]["deviation"].get<double>(), std::sqrt(2), 0.4);
  const Ended a = run_in_shell("advise " + config() + few + " --set optimizer.momentum=0");
  ASSERT_EQ(a.code, 0) << a.out;
  const json advice = json::parse(a.out.substr(a.out.find('{')))["advice"];  // behind what it does meanwhile
  for (const json& one : advice) EXPECT_FALSE(one["reason"].get<std::string>().empty());
  const auto of = [&](const char* key) {
    for (const json& one : advice)
      if (one["key"] == key) return one;
    return json();
  };
  EXPECT_EQ(of("optimizer.momentum")["advised"], "0.9");
  // The rate follows from the range test at the advised batch alone, whatever the noise is measured with.
  const Ended more =
      run_in_shell("advise " + config() + " --batch 8 --samples 20 --steps 9 --json --set optimizer.momentum=0");
  ASSERT_EQ(more.code, 0) << more.out;
  const json lr = json::parse(a.out.substr(a.out.find('{')))["lr"];
  const json other = json::parse(more.out.substr(more.out.find('{')));
  if (other["advice"][0]["advised"] == of("train.batch_size")["advised"]) {
    EXPECT_EQ(other["lr"], lr);
  }
  expect_has(of("optimizer.lr")["reason"], "3 seeds");
  if (!lr["doubt"].is_null()) {
    EXPECT_EQ(of("optimizer.lr")["advised"], of("optimizer.lr")["now"]);
    expect_has(of("optimizer.lr")["reason"], lr["doubt"]);
  } else {
    expect_has(of("optimizer.lr")["reason"], "ten times");
  }
  EXPECT_EQ(run_in_shell("noise " + config() + " --batch 300").code, 2);
}

// The rate of the steps is that after train.lr_scaling, and they have as many images as the config's.
TEST_F(Lab, AdviceReckonsWithScalingAndAccumulation) {
  const std::string few = "advise " + config() + " --batch 8 --samples 4 --steps 2 --json --set train.accumulate=2";
  const auto lr_of = [&](const std::string& more) {
    const Ended e = run_in_shell(few + more);
    EXPECT_EQ(e.code, 0) << e.out;
    const json said = json::parse(e.out.substr(e.out.find('{')));
    for (const json& one : said["advice"])
      if (one["key"] == "optimizer.lr") return one["reason"].get<std::string>();
    return std::string();
  };
  const std::string plain = lr_of("");
  if (plain.find("advises no rate") == plain.npos) {
    expect_has(plain, "32 images a step");
    expect_has(lr_of(" --set train.lr_scaling=linear --set train.lr_batch_size=8"), "which train.lr_scaling makes");
  }
  expect_has(lr_of(" --set train.accumulate=200 --set data.samples=4000"), "too many for a short test");
}

// A rate that cannot be right is replaced, with or without a range test that can say by which.
TEST_F(Lab, AdviceReplacesAbsurdRates) {
  const auto lr_of = [&](const std::string& more) {
    const Ended e = run_in_shell("advise " + config() + " --batch 8 --samples 4 --json" +
                                 (more.find("--steps") == more.npos ? " --steps 5" : "") + more);
    EXPECT_EQ(e.code, 0) << e.out;
    const json said = json::parse(e.out.substr(e.out.find('{')));
    for (const json& one : said["advice"])
      if (one["key"] == "optimizer.lr") return one;
    return json();
  };
  const std::string doubt = " --set train.accumulate=200 --set data.samples=4000 --set optimizer.name=adam";
  const json low = lr_of(doubt + " --set optimizer.lr=1e-7");
  EXPECT_EQ(low["advised"], "0.001");
  expect_has(low["reason"], "advises no rate");
  expect_has(low["reason"], "the middle of these");
  EXPECT_EQ(lr_of(doubt + " --set optimizer.lr=0.002")["advised"], "0.002");
  const json high = lr_of(" --set optimizer.lr=1e4");
  EXPECT_LT(std::stod(high["advised"].get<std::string>()), 10);
  const json wild =
      lr_of(" --steps 40 --set model.name=convnet_nobn --set optimizer.lr=0.1 --set optimizer.momentum=0.99");
  EXPECT_LT(std::stod(wild["advised"].get<std::string>()), 0.1);
  expect_has(wild["reason"], "training at 0.1 diverged");
}

// What is advised is measured together: with momentum steps are longer, and so are those of a larger batch's rule.
TEST_F(Lab, AdviceOnTheRateIsForTheAdvisedMomentumAndBatch) {
  const Ended e =
      run_in_shell("advise " + config() +
                   " --batch 8 --samples 4 --steps 2 --json --set optimizer.momentum=0 --set data.samples=3000");
  ASSERT_EQ(e.code, 0) << e.out;
  const json advice = json::parse(e.out.substr(e.out.find('{')))["advice"];
  std::map<std::string, json> of;
  for (const json& one : advice) of[one["key"]] = one;
  EXPECT_EQ(of["optimizer.momentum"]["advised"], "0.9");
  expect_has(e.out, "steps of " + of["train.batch_size"]["advised"].get<std::string>() + " images");  // the range test
  if (of["optimizer.lr"]["reason"].get<std::string>().find("advises no rate") == std::string::npos)
    expect_has(of["optimizer.lr"]["reason"], "momentum 0.9");
  EXPECT_FALSE(of.contains("train.lr_scaling"));
}

// Ten images fill no batch: training would refuse them. What needs a batch fails, and the others still speak.
TEST_F(Lab, ACheckThatNeedsMoreImagesFails) {
  const Ended e =
      run_in_shell("check " + config() + " --only data,loss,resume --json --set data.samples=12 --set data.val=2");
  EXPECT_EQ(e.code, 5) << e.out;
  const json said = json::parse(e.out);
  ASSERT_EQ(said["checks"].size(), 3u) << e.out;
  for (const json& check : said["checks"]) {
    EXPECT_EQ(check["verdict"], "FAIL") << e.out;
    if (check["check"] != "data") {
      expect_has(check["text"], "do not fill one batch of 16");
    }
  }
}

TEST_F(Lab, ACheckThatIsSkippedHasNotPassed) {
  const std::string few = "check " + config() + " --only labels --set data.samples=200 --set data.val=20";
  const Ended e = run_in_shell(few);
  EXPECT_EQ(e.code, 0) << e.out;
  expect_has(e.out, "0 failed, 1 skipped, 0 passed");
  EXPECT_EQ(json::parse(run_in_shell(few + " --json").out)["skipped"], 1);
  const Ended failed = run_in_shell("check " + config() + " --only loss --json --set optimizer.lr=1e4");
  EXPECT_EQ(failed.code, 5) << failed.out;
  expect_has(json::parse(failed.out)["checks"][0]["advice"], "optimizer.clip_norm = 1");
  expect_has(json::parse(failed.out)["warnings"][0], "W2: lr = 10000");
}

TEST_F(Lab, LandscapeOfARun) {
  const std::string run = (dir_ / "run").string(), page = (dir_ / "s.html").string();
  const Ended t = run_in_shell("train " + config() + " --epochs 1 --out '" + run + "' --set log.tensorboard=false");
  ASSERT_EQ(t.code, 0) << t.out;
  const std::string few = "landscape '" + run + "' --images 32 --points 3 ";
  const Ended e = run_in_shell(few + "--hessian 3 --json -o '" + page + "'");
  ASSERT_EQ(e.code, 0) << e.out;
  expect_has(e.out, "20 losses and at most 6 gradients of 32 images: about ");  // on stderr
  const json j = json::parse(e.out.substr(e.out.find('{')));
  EXPECT_EQ(j["grid"].size(), 3u);
  EXPECT_EQ(j["grid"][1][1], j["loss"]);  // the middle is the net itself
  EXPECT_EQ(j["line"]["loss"][2], j["loss"]);
  for (const char* part : {"<h2>Two directions</h2>", " at most.</p>\n<p>largest eigenvalue", "<g class=\"scale\">"})
    expect_has(read(page), part);
  const Ended unsettled = run_in_shell(few + "--hessian 1");
  expect_has(unsettled.out, "not settled after 1 power iteration;");
  EXPECT_EQ(unsettled.out.find("stable below"), std::string::npos) << unsettled.out;

  const Ended unnamed = run_in_shell(few + "-o ''");
  EXPECT_EQ(unnamed.code, 2);
  expect_has(unnamed.out, "expected the name of a file");

  // Told before the work.
  for (const char* place : {"/nonexistent/x.html", "/proc/x.html"}) {
    const Ended late = run_in_shell(few + "-o " + place);
    EXPECT_EQ(late.code, 4) << late.out;
    EXPECT_TRUE(late.out.starts_with("error: cannot write ")) << late.out;
  }
  for (const char* wrong : {"--span -1", "--radius 0", "--span nan"}) {
    const Ended usage = run_in_shell(few + wrong);
    EXPECT_EQ(usage.code, 2);
    expect_has(usage.out, ": expected a number above 0, got '");
  }
  const Ended toml = run_in_shell("landscape '" + run + "/config.toml'");
  EXPECT_EQ(toml.code, 2);
  expect_has(toml.out, "config.toml: expected the folder of a run, or a .safetensors file of weights");
}

// A learning rate of 1e4: the message points to the autopsy, which needs nothing but the run's folder.
TEST_F(Lab, AutopsyOfADivergedRun) {
  const std::string run = (dir_ / "run").string();
  const Ended trained =
      run_in_shell("train " + config() + " --out '" + run +
                   "' --set optimizer.lr=1e4 --set model.name=convnet_nobn --set log.tensorboard=false");
  EXPECT_EQ(trained.code, 5) << trained.out;
  expect_has(trained.out, "what led to it: linnet autopsy " + run);
  const Ended e = run_in_shell("autopsy '" + run + "'");
  ASSERT_EQ(e.code, 0) << e.out;
  const json bad = json::parse(read(dir_ / "run" / "nonfinite.json"));
  EXPECT_EQ(bad["steps"].size(), bad["step"].get<size_t>() + 1);
  for (const std::string& part :
       {"first seen in: " + bad["where"].get<std::string>(), std::string("the images"), std::string("usual for sgd"),
        std::string("/config.toml --set optimizer.lr=0.01\n"), std::string("gradient norm")})
    expect_has(e.out, part);
  const std::string page = read(dir_ / "run" / "autopsy.html");
  for (const char* part : {"data:image/png;base64,", "<svg", "class=\"first\"", "optimizer.lr=0.01"})
    expect_has(page, part);
  for (const char* part : {"src=\"http", "href=", "@import", "<script"}) EXPECT_EQ(page.find(part), page.npos);
  const Ended as_json = run_in_shell("autopsy '" + run + "' --json 2>/dev/null; true");
  EXPECT_EQ(json::parse(as_json.out)["suggestion"]["setting"], "optimizer.lr=0.01");
  EXPECT_EQ(json::parse(as_json.out)["step"], bad["step"].get<int64_t>() + 1);  // as metrics.jsonl counts

  const std::string other = (dir_ / "mine.html").string();
  std::ofstream(other) << "a page of mine";
  EXPECT_EQ(run_in_shell("autopsy '" + run + "' -o '" + other + "'").code, 2);
  EXPECT_EQ(read(other), "a page of mine");
  EXPECT_EQ(run_in_shell("autopsy '" + dir_.path().string() + "'").code, 2);
  const Ended unwritten = run_in_shell("autopsy '" + run + "' -o /nonexistent/x.html");  // the text comes all the same
  EXPECT_EQ(unwritten.code, 4);
  for (const char* part : {"what to do: ", "no page is written: ", "-o FILE"}) expect_has(unwritten.out, part);

  json negative = bad;
  negative["step"] = -5;
  std::ofstream(dir_ / "run" / "nonfinite.json") << negative;
  const Ended damaged = run_in_shell("autopsy '" + run + "'");
  EXPECT_EQ(damaged.code, 4);
  expect_has(damaged.out, "expected a step and an epoch from 0 to 10^18, got step -5");
}

TEST_F(Lab, AutopsyOfAPoisonedInput) {
  const std::string run = (dir_ / "run").string();
  EXPECT_EQ(run_in_shell("train " + config() + " --out '" + run +
                         "' --set model.name=convnet_nobn --set log.tensorboard=false --set 'data.mean=[0.5,0.5,0.5]' "
                         "--set 'data.std=[1e-30,1e-30,1e-30]'")
                .code,
            5);
  const Ended e = run_in_shell("autopsy '" + run + "'");
  ASSERT_EQ(e.code, 0) << e.out;
  expect_has(e.out, "so it is the input");
  expect_has(e.out, "--set data.std= --set data.mean=\n");
  // The suggestion helps.
  const Ended again = run_in_shell("train '" + run + "/config.toml' --out '" + (dir_ / "again").string() +
                                   "' --epochs 1 --set data.std= --set data.mean=");
  EXPECT_EQ(again.code, 0) << again.out;
  for (const char* part : {"fit: ", "run: "}) expect_has(again.out, part);
  const json summary = json::parse(read(dir_ / "again" / "summary.json"));
  EXPECT_TRUE(summary.contains("fit") && summary.contains("epochs_to")) << summary;
}

}  // namespace
}  // namespace linnet
