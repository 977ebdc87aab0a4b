// Configs: every class of mistake with its exact place, several in one pass, overrides, origins, hostile text.
#include "linnet/config.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <clocale>
#include <fstream>
#include <locale>
#include <variant>

#include "linnet/error.h"
#include "tests/temp_dir.h"

namespace linnet {
namespace {

using Overrides = std::vector<std::string>;

// The message of the Error(Exit::usage) that `f` throws; "" if it throws none.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit, Exit::usage);
    return error.what();
  }
  return "";
}

std::string error_in(std::string_view text, const Overrides& overrides = {}) {
  return error_of([&] { parse_config(text, "c.toml", overrides); });
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++n;
  return n;
}

void expect_has(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), text.npos) << "no '" << part << "' in:\n" << text;
}

using Value = std::variant<std::string, bool, int64_t, double, std::vector<double>>;
std::map<std::string, Value> values(const Config& config) {
  std::map<std::string, Value> all;
  visit(config, [&](const Key& key, const auto& value) { all[std::string(key.name)] = value; });
  return all;
}

TEST(Config, EmptyFileGivesTheDefaults) { EXPECT_EQ(values(parse_config("", "c.toml")), values(Config{})); }

TEST(Config, ReadsEveryType) {
  const Config c = parse_config(
      "[data]\nname = 'synthetic'\nmean = [0, 0.5, 1]\nstd = [0.25, 1, 1]\nshuffle = false\n"
      "[train]\nepochs = 1_000\n[optimizer]\nlr = 1\n",
      "c.toml");
  EXPECT_EQ(c.data.name, "synthetic");
  EXPECT_EQ(c.data.mean, (std::vector<double>{0, 0.5, 1}));
  EXPECT_FALSE(c.data.shuffle);
  EXPECT_EQ(c.train.epochs, 1000);
  EXPECT_EQ(c.optimizer.lr, 1.0);  // an integer is a number
}

TEST(Config, ErrorHasTheDocumentedForm) {
  EXPECT_EQ(error_in("# SGD\n[optimizer]\nlr = 0.1\nmomentun = 0.9\n"),
            "error: unknown key 'optimizer.momentun'\n"
            "  --> c.toml:4:1\n"
            "   4 | momentun = 0.9\n"
            "     | ^^^^^^^^\n"
            "help: did you mean 'optimizer.momentum'?");
}

struct Case {
  const char* label;
  std::string text;
  std::string place;    // line:column
  std::string message;  // a part of it
  std::string help;     // a part of it; "-": there is none
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.label; }

class ConfigMistake : public ::testing::TestWithParam<Case> {};

TEST_P(ConfigMistake, IsReportedOnceAtItsPlace) {
  const Case& c = GetParam();
  const std::string error = error_in(c.text);
  EXPECT_EQ(count(error, "error: "), 1u) << error;
  expect_has(error, "error: " + c.message);
  expect_has(error, "--> c.toml:" + c.place + "\n");
  if (c.help == "-")
    EXPECT_EQ(error.find("help:"), error.npos) << error;
  else
    expect_has(error, "help: " + c.help);
}

const std::string kSynthetic = "data.name = 'synthetic'\n";

INSTANTIATE_TEST_SUITE_P(
    Mistakes, ConfigMistake,
    ::testing::Values(
        Case{"UnknownKey", "[train]\n  epoch = 3\n", "2:3", "unknown key 'train.epoch'",
             "did you mean 'train.epochs'?"},
        Case{"UnknownKeyNothingNear", "[train]\nworkers = 3\n", "2:1", "unknown key 'train.workers'", "-"},
        Case{"KeyOfAnotherSection", "[train]\nlr = 3\n", "2:1", "unknown key 'train.lr'",
             "did you mean 'optimizer.lr'?"},
        Case{"KeyOfNoSection", "lr = 3\n", "1:1", "unknown key 'lr'", "did you mean 'optimizer.lr'?"},
        Case{"AmbiguousName", "[log]\nname = 3\n", "2:1", "unknown key 'log.name'", "-"},
        Case{"DottedKey", "optimizer.lrr = 3\n", "1:11", "unknown key 'optimizer.lrr'", "did you mean 'optimizer.lr'?"},
        Case{"InlineKey", "train = {seed = 1, epoch = 3}\n", "1:20", "unknown key 'train.epoch'", "did you mean"},
        Case{"QuotedDottedKey", "'optimizer.lr' = 3\n", "1:1", "unknown key 'optimizer.lr'",
             "write optimizer.lr without"},
        Case{"SubSection", "[optimizer.sgd]\nlr = 1\n", "1:12", "unknown key 'optimizer.sgd'", "-"},
        Case{"UnknownSection", "\n[optimzer]\nlr = 1\n", "2:2", "unknown section 'optimzer'",
             "did you mean 'optimizer'?"},
        Case{"SectionAsValue", "optimizer = 'sgd'\n", "1:1", "'optimizer' is a section, got the string 'sgd'",
             "write [optimizer]"},
        Case{"SectionAsList", "[[optimizer]]\nlr = 1\n", "1:3", "'optimizer' is a section, got a list", "write"},
        Case{"StringForNumber", "[optimizer]\nlr = '0.1'\n", "2:6",
             "optimizer.lr expects a number, got the string '0.1'", "-"},
        Case{"NumberForString", "[model]\nname = 20\n", "2:8", "model.name expects a string, got 20", "-"},
        Case{"NumberForBool", "[data]\nshuffle = 1\n", "2:11", "data.shuffle expects true or false, got 1", "-"},
        Case{"WholeFloatForInteger", "[data]\nval = 5000.0\n", "2:7", "data.val expects an integer, got 5000.0",
             "write 5000"},
        Case{"FloatForInteger", "[data]\nval = 0.5\n", "2:7", "data.val expects an integer, got 0.5", "-"},
        Case{"NumberForList", "schedule.milestones = 100\n", "1:23", "schedule.milestones expects a list of numbers",
             "write [100, 150]"},
        Case{"StringInList", "schedule.milestones = [1, 'b']\n", "1:27",
             "schedule.milestones expects a number, got the string 'b'", "-"},
        Case{"DateForNumber", "optimizer.lr = 2020-01-01\n", "1:16", "optimizer.lr expects a number, got a date", "-"},
        Case{"SectionForNumber", "[optimizer.lr]\n", "1:1", "optimizer.lr expects a number, got a section", "-"},
        Case{"BelowMin", "[train]\nepochs = 0\n", "2:10", "train.epochs must be >= 1 and <= 1000000, got 0", "-"},
        Case{"AtExcludedMin", "[optimizer]\nlr = 0\n", "2:6", "optimizer.lr must be > 0 and <= 10000, got 0", "-"},
        Case{"AtExcludedMax", "[optimizer]\nmomentum = 1.0\n", "2:12",
             "optimizer.momentum must be >= 0 and < 1, got 1.0", "-"},
        Case{"JustAboveAnExactMax", "train.seed = 9007199254740993\n", "1:14", "train.seed must be", "-"},
        Case{"ElementOutOfRange", "data.mean = [0.5, 2, 0.5]\ndata.std = [1, 1, 1]\n", "1:19",
             "data.mean must be >= 0 and <= 1, got 2", "-"},
        Case{"Nan", "optimizer.clip_norm = nan\n", "1:23", "optimizer.clip_norm must be finite, got nan", "-"},
        Case{"Infinity", "optimizer.clip_norm = +inf\n", "1:23", "optimizer.clip_norm must be finite, got inf", "-"},
        Case{"Choice", "[schedule]\nname = 'cosinus'\n", "2:8",
             "schedule.name expects one of constant, step, multistep, exponential, cosine, linear, polynomial, "
             "one_cycle, plateau, got the string 'cosinus'",
             "did you mean 'cosine'?"},
        Case{"ControlCharacterInString", "data.path = \"a\\u0000b\"\n", "1:13",
             "data.path expects a string of printable UTF-8, got the string 'a\\x00b'", "-"},
        Case{"DuplicateKey", "[optimizer]\nlr = 0.1\nmomentum = 0\n lr = 0.2\n", "4:2", "duplicate key 'lr'",
             "it stands"},
        Case{"DuplicateDottedKey", "[optimizer]\nlr = 0.1\n[train]\nseed=1\nseed=[1,\n2]\n", "5:1",
             "duplicate key 'seed'", "it stands"},
        Case{"DuplicateSection", "[optimizer]\nlr = 0.1\n[log]\n[optimizer]\nlr = -1\n", "4:2",
             "duplicate section 'optimizer'", "it stands"},
        Case{"NotUsed", "[model]\nname = 'linear'\ndropout = 0.5\n", "3:1",
             "'model.dropout' is not used with model.name = \"linear\"",
             "remove it, or reset it with `--set model.dropout=`; it is used with resnet8, resnet20"},
        Case{"UnknownModel", "[model]\nname = 'resnet21'\n", "2:8", "model.name expects one of resnet8, resnet20",
             "did you mean 'resnet20'?"},
        Case{"UnknownOptimizer", "[optimizer]\nname = 'sdg'\nlr = 1\n", "2:8", "optimizer.name expects one of sgd",
             "did you mean 'sgd'?"},
        Case{"NotUsedData", "data.samples = 100\n", "1:6", "'data.samples' is not used with data.name = \"cifar10\"",
             "remove it"},
        Case{"MilestonesOrder", "schedule.milestones = [100, 100]\n", "1:10",
             "schedule.milestones must increase strictly, got [100, 100]", "-"},
        Case{"MilestonesBeyondTheEnd", "schedule.milestones = [100, 200]\n", "1:10",
             "schedule.milestones must be below train.epochs = 200, got [100, 200]", "-"},
        Case{"WarmupTooLong", "[train]\nepochs = 4\n[schedule]\nwarmup = 4.5\n", "4:1",
             "schedule.warmup = 4.5 is longer than train.epochs = 4", "-"},
        Case{"MinLr", "schedule.name = 'cosine'\nschedule.min_lr = 0.5\noptimizer.lr = 0.1\n", "2:10",
             "schedule.min_lr = 0.5 is above optimizer.lr = 0.1", "-"},
        Case{"NesterovWithoutMomentum", "[optimizer]\nnesterov = true\nmomentum = 0\n", "2:1",
             "nesterov = true needs a momentum above 0", "-"},
        Case{"NesterovWithDampening", "[optimizer]\ndampening = 0.1\nnesterov = true\nmomentum = 0.9\n", "3:1",
             "nesterov = true needs dampening = 0", "-"},
        Case{"BetaOne", "[optimizer]\nname = 'adam'\nbetas = [0.9, 1]\n", "3:15",
             "optimizer.betas must be >= 0 and < 1, got 1", "-"},
        Case{"OneBeta", "[optimizer]\nname = 'adam'\nbetas = [0.9]\n", "3:1", "betas must be two numbers", "-"},
        Case{"AlphaOne", "[optimizer]\nname = 'rmsprop'\nalpha = 1\n", "3:9", "optimizer.alpha must be >= 0 and < 1",
             "-"},
        Case{"EpsTooSmall", "[optimizer]\nname = 'adam'\neps = 1e-11\n", "3:7",
             "optimizer.eps must be >= 1e-10 and <= 1, got 1e-11", "-"},
        Case{"EpsZero", "[optimizer]\nname = 'adagrad'\neps = 0\n", "3:7", "optimizer.eps must be >= 1e-10", "-"},
        Case{"MomentumWhereThereIsNone", "[optimizer]\nname = 'adam'\nmomentum = 0.9\n", "3:1",
             "'optimizer.momentum' is not used with optimizer.name = \"adam\"",
             "remove it, or reset it with `--set optimizer.momentum=`; it is used with sgd, nag, sgdw, rmsprop, muon"},
        Case{"UnknownForm", "[optimizer]\nform = 'acumulate'\nmomentum = 0.9\n", "2:8",
             "optimizer.form expects one of accumulate, ewa, ewa_corrected, inside, accumulate_corrected, got the "
             "string 'acumulate'",
             "did you mean 'accumulate'?"},
        Case{"FormOfAnotherOptimizer", "[optimizer]\nname = 'adam'\nform = 'ewa'\n", "3:8",
             "optimizer.form expects one of standard, uncorrected", "-"},
        Case{"FormWhereThereIsNone", "[optimizer]\nname = 'lion'\nform = 'ewa'\n", "3:1",
             "'optimizer.form' is not used with optimizer.name = \"lion\"", "remove it"},
        Case{"FormNeedsMomentum", "[optimizer]\nform = 'ewa'\n", "2:1", "form = 'ewa' needs a momentum above 0", "-"},
        Case{"AmsgradForm", "[optimizer]\nname = 'adam'\nform = 'amsgrad_paper'\n", "3:1",
             "form = 'amsgrad_paper' needs amsgrad = true", "-"},
        Case{"NoKerasPreset", "[optimizer]\nname = 'radam'\npreset = 'keras'\n", "3:1", "radam has no Keras preset",
             "-"},
        Case{"UnknownPreset", "[optimizer]\npreset = 'jax'\n", "2:10", "optimizer.preset expects one of pytorch, keras",
             "-"},
        Case{"PlateauWithoutValidation", "[data]\nval = 0\n[schedule]\nname = 'plateau'\n", "4:1",
             "the plateau schedule watches the validation images, and none are held out (data.val or data.val_share = "
             "0)",
             "-"},
        Case{"PatienceWithoutValidation", "[data]\nval = 0\n[train]\npatience = 3\n", "4:1",
             "early stopping watches the validation images", "-"},
        Case{"GroupWithoutMatch", "[[group]]\nlr = 0.1\n", "1:1", "a group needs `match`", "for example"},
        Case{"GroupUnknownKey", "[[group]]\nmatch = '*'\nmomentun = 0.1\n", "3:1", "unknown key 'group.momentun'",
             "did you mean 'group.momentum'?"},
        Case{"GroupUnusedKey", "[[group]]\nmatch = '*'\nname = 'adam'\nmomentum = 0.1\n", "4:1",
             "'group.momentum' is not used with optimizer.name = \"adam\"", "remove it"},
        Case{"GroupBadValue", "[[group]]\nmatch = '*'\n[[group]]\nmatch = 'a'\nlr = -1\n", "5:6",
             "group.lr must be > 0 and <= 10000, got -1", "-"},
        Case{"GroupBadCombination", "[[group]]\nmatch = '*'\nnesterov = true\n", "3:1",
             "nesterov = true needs a momentum above 0", "-"},
        Case{"GroupUnknownOptimizer", "[[group]]\nmatch = '*'\nname = 'adamm'\n", "3:8",
             "group.name expects one of sgd", "did you mean 'adam'?"},
        Case{"GroupFrozenAndTrained", "[[group]]\nmatch = '*'\nfrozen = true\nlr = 0.1\n", "4:1",
             "'group.lr' is not used in a frozen group", "remove it, or remove `frozen`"},
        Case{"GroupAsSection", "[group]\nmatch = '*'\n", "1:2", "'group' is a list of sections", "write [[group]]"},
        Case{"PhaseWithoutStart", "[[phase]]\nstate = 'fresh'\n", "1:1",
             "a phase starts at an epoch or on a plateau: set one of `epoch` and `plateau`", "-"},
        Case{"PhaseWithTwoStarts", "[[phase]]\nepoch = 3\nplateau = 2\n", "2:1", "a phase starts at an epoch or on a",
             "-"},
        Case{"PhaseAfterTheEnd", "[train]\nepochs = 5\n[[phase]]\nepoch = 5\n", "4:1",
             "a phase must start before train.epochs = 5, got epoch 5", "-"},
        Case{"PhaseOrder", "[[phase]]\nepoch = 30\n[[phase]]\nepoch = 20\n", "4:1",
             "a phase must start after the one before it (epoch 30), got epoch 20", "-"},
        Case{"PhasePlateauWithoutValidation", "data.val = 0\n[[phase]]\nplateau = 2\n", "3:1",
             "a plateau is seen on the validation images, and none are held out (data.val or data.val_share = 0)", "-"},
        Case{"PhaseScheduleWithoutValidation",
             "data.val = 0\n[[phase]]\nepoch = 2\n[phase.schedule]\nname = 'plateau'\n", "5:1",
             "the plateau schedule watches the validation images", "-"},
        Case{"PhaseMilestones", "[[phase]]\nepoch = 150\n[phase.schedule]\nname = 'multistep'\nmilestones = [10, 50]\n",
             "5:1", "schedule.milestones must be below the phase's epochs = 50, got [10, 50]", "-"},
        Case{"FirstPhaseMilestones", "[schedule]\nmilestones = [100]\n[[phase]]\nepoch = 80\n", "2:1",
             "schedule.milestones must be below the first phase's epochs = 80, got [100]", "-"},
        Case{"PhaseUnusedKey", "[[phase]]\nepoch = 2\n[phase.schedule]\ngamma = 0.5\n", "4:1",
             "'phase.schedule.gamma' is not used with schedule.name = \"constant\"", "remove it"},
        Case{"PhaseUnknownKey", "[[phase]]\nepoch = 2\nlr = 0.1\n", "3:1", "unknown key 'phase.lr'", "-"},
        Case{"PhaseOptimizerAsValue", "[[phase]]\nepoch = 2\noptimizer = 'adam'\n", "3:1",
             "'phase.optimizer' is a section, got the string 'adam'", "-"},
        Case{"PhaseState", "[[phase]]\nepoch = 2\nstate = 'caried'\n", "3:9",
             "phase.state expects one of fresh, carried, got the string 'caried'", "did you mean 'carried'?"},
        Case{"PhaseNothingToCarry",
             "[optimizer]\nmomentum = 0.9\n[[phase]]\nepoch = 2\nstate = 'carried'\n[phase.optimizer]\nname = "
             "'adam'\n",
             "5:1", "from sgd to adam there is no average of the gradient, and nothing else, to carry", "-"},
        Case{"MeanWithoutStd", "[data]\nmean = [0.5]\n", "2:1", "data.mean and data.std need 3 values each", "-"},
        Case{"TwoMeans", "[data]\nmean = [0.5, 0.5]\nstd = [1, 1]\n", "2:1", "data.mean and data.std need 3 values",
             "-"},
        Case{"StdOfAnotherLength", "[data]\nmean = [0.5]\nstd = [1, 1, 1]\n", "2:1", "data.mean and data.std need",
             "-"},
        Case{"ValTakesAll", kSynthetic + "data.val = 100\ndata.samples = 100\n", "2:6",
             "data.val = 100 leaves no training image of data.samples = 100", "-"},
        Case{"DefaultValTakesAll", kSynthetic + "data.samples = 100\n", "2:6", "data.val = 5000 leaves no", "-"},
        Case{"UnquotedString", "[schedule]\nname = cosine\nmin_lr = 0\n", "2:8", "TOML syntax: ", "text stands in"},
        Case{"CapitalTrue", "data.shuffle = True\n", "1:16",
             "TOML syntax: ", "text stands in \"quotes\"; a switch is true"},
        Case{"NoValue", "[train]\nseed =\n", "2:7", "TOML syntax: ", "-"},
        Case{"OpenList", "schedule.milestones = [1, 2\n[train]\nepoch = 1\n", "2:1", "TOML syntax: ", "-"},
        Case{"OpenString", "data.path = 'x\n", "1:15", "TOML syntax: ", "-"},
        Case{"OpenHeader", "[train\nepoch = 1\n", "1:7", "TOML syntax: ", "-"},
        Case{"TooLargeForADouble", "optimizer.lr = 1e999\n", "1:21", "TOML syntax: ", "-"},
        Case{"TooLargeForAnInteger", "train.seed = 99999999999999999999\n", "1:34", "TOML syntax: ", "-"},
        Case{"ColumnsAreCharacters", "data = {path = '\u00e9\u00e9', pth = 1}\n", "1:22", "unknown key 'data.pth'",
             "did you mean 'data.path'?"},
        Case{"WindowsLines", "\xef\xbb\xbf[train]\r\nepoch = 1\r\n", "2:1", "unknown key 'train.epoch'",
             "did you mean"},
        Case{"Nul", std::string("[train]\nseed\0 = 1\n", 18), "2:5", "control character 0x00", "-"},
        Case{"Escape", "# \x1b[31mred\n", "1:3", "control character 0x1b", "-"},
        Case{"NotUtf8", "[train]\n# \xff\n", "2:3", "byte 0xff is not UTF-8 text", "-"},
        Case{"OverlongUtf8", "# \xc0\xaf\n", "1:3", "byte 0xc0 is not UTF-8 text", "-"},
        Case{"CutUtf8", "# \xe2\x82", "1:3", "byte 0xe2 is not UTF-8 text", "-"},
        Case{"DeepKey", "a.b.c.d.e.f.g.h = 1\na.b.c.d.e.f.g.h.i = 2\n", "2:16", "a key of more than 8 parts", "-"},
        Case{"DeepList", "a = " + std::string(17, '[') + std::string(17, ']'), "1:21", "brackets more than 16 deep",
             "-"},
        Case{"NamelessSection", "[train]\n[ }\n", "2:3", "TOML syntax: ", "-"},
        Case{"NoNameAtAll", "[train]\n[\n", "2:2", "TOML syntax: ", "-"},
        Case{"BracketForValue", "train.seed = ]\n", "1:14", "TOML syntax: ", "-"},
        Case{"EmptySection", "[]\n", "1:2", "TOML syntax: ", "-"},
        Case{"LettersOutsideOfQuotes", "[train]\n[\u00e9]\n", "2:2", "TOML syntax: ", "-"},
        Case{"NoBreakSpace", "lr\u00a0= 0.1\n", "1:3", "TOML syntax: ", "-"},
        Case{"LongText", "data.path = \"\"\"\nx\"\"\"\n", "1:13", "text of several lines; write it on one", "-"},
        Case{"LongString", "data.path = '" + std::string(5000, 'x') + "'\n", "1:13", "a string of more than 4096 bytes",
             "-"},
        Case{"LargeText", std::string((64 << 10) + 1, '\n'), "1:1", "more than 65536 bytes", "-"}),
    [](const auto& info) { return info.param.label; });

TEST(Config, CaretStandsUnderTheValue) {
  expect_has(error_in("[optimizer]\n\tlr   = -0.25  # no\n"),
             "   2 |  lr   = -0.25  # no\n"
             "     |         ^^^^^");
}

TEST(Config, ReportsEverythingInOnePassFromTopToBottom) {
  const std::string error = error_in(
      "[model]\nnam = 'x'\n[train]\nepochs = 5000.0\nseed = 1\nseed = 2\nbatch_size = = 3\n"
      "[optimizr]\nlr = 3\n[schedule]\nname = 'cosinus'\n",
      {"train.epochs=0", "optimizer.momentun=0.9"});
  EXPECT_EQ(count(error, "error: "), 8u) << error;
  size_t last = 0;
  for (const char* place : {"c.toml:2:1\n", "c.toml:4:10\n", "c.toml:6:1\n", "c.toml:7:14\n", "c.toml:8:2\n",
                            "c.toml:11:8\n", "--set\n     | train.epochs=0", "--set\n     | optimizer.momentun"}) {
    const size_t at = error.find(place);
    ASSERT_NE(at, error.npos) << place << error;
    EXPECT_LT(last, at) << place << error;
    last = at;
  }
}

TEST(Config, ReportsRulesBesideOtherMistakes) {
  const std::string error =
      error_in("[schedule]\nmilestones = [2, 1]\nmin_lr = 0\n[train]\nepoch = 3\nseed=1\nseed=1\n");
  EXPECT_EQ(count(error, "error: "), 4u) << error;
}

TEST(Config, AWrongValueDoesNotBringAlongARule) {
  EXPECT_EQ(count(error_in("schedule.name = 'cosinus'\nschedule.min_lr = 0\n"), "error: "), 1u);
  EXPECT_EQ(count(error_in("train.epochs = 'x'\nschedule.milestones = [300]\n"), "error: "), 1u);
  EXPECT_EQ(count(error_in("schedule.name = cosine\nschedule.min_lr = 0\n"), "error: "), 1u);
}

TEST(Config, ManyMistakesAreCut) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += fmt::format("key{} = 1\n", i);
  const std::string error = error_in(text);
  EXPECT_EQ(count(error, "error: "), 50u);
  expect_has(error, "and 950 more");
}

// ---- Overrides -----------------------------------------------------------------------------------------------------

TEST(ConfigOverride, IsTypedByTheKeyAndTheLastOneWins) {
  const Config c = parse_config("[train]\nepochs = 10\n", "c.toml",
                                {"train.epochs=20", "optimizer.lr=1e-3", "optimizer.lr=2", "data.shuffle=false",
                                 "schedule.milestones=[10, 15]", "model.name=resnet56", "data.path=a b=c#d"});
  EXPECT_EQ(c.train.epochs, 20);
  EXPECT_EQ(c.optimizer.lr, 2.0);
  EXPECT_FALSE(c.data.shuffle);
  EXPECT_EQ(c.schedule.milestones, (std::vector<double>{10, 15}));
  EXPECT_EQ(c.model.name, "resnet56");
  EXPECT_EQ(c.data.path, "a b=c#d");
}

TEST(ConfigOverride, EmptyValueResetsToTheDefault) {
  const Config c =
      parse_config("[train]\nepochs = 10\n[model]\nname = 'mlp'\n", "c.toml", {"train.epochs=", "model.name="});
  EXPECT_EQ(c.train.epochs, Config{}.train.epochs);
  EXPECT_EQ(c.model.name, Config{}.model.name);
}

TEST(ConfigOverride, ErrorHasTheDocumentedForm) {
  EXPECT_EQ(error_in("", {"optimizer.momentun=0.9"}),
            "error: unknown key 'optimizer.momentun'\n"
            "  --> --set\n"
            "     | optimizer.momentun=0.9\n"
            "     | ^^^^^^^^^^^^^^^^^^\n"
            "help: did you mean 'optimizer.momentum'?");
  expect_has(error_in("", {"optimizer.lr=-1"}),
             "     | optimizer.lr=-1\n"
             "     |              ^^");
  expect_has(error_in("", {"schedule.milestones=[1, -2]"}),
             "     | schedule.milestones=[1, -2]\n"
             "     |                         ^^");
  expect_has(error_in("", {"train.epochs=many"}),
             "     | train.epochs=many\n"
             "     |              ^^^^");
}

TEST(ConfigOverride, RefusesWhatTheFileRefuses) {
  for (const auto& [text, message] : std::map<std::string, std::string>{
           {"train.epochs", "--set expects key=value"},
           {"", "--set expects key=value"},
           {"=1", "unknown key ''"},
           {"momentun=", "unknown key 'momentun'"},
           {"lr=1", "unknown key 'lr'"},
           {"optimizer=sgd", "unknown key 'optimizer'"},
           {"train.epochs=5.0", "train.epochs expects an integer, got 5.0"},
           {"train.epochs=5 # five", "train.epochs expects an integer, got the string '5 # five'"},
           {"train.epochs=5\nx=1", "train.epochs expects an integer, got the string '5\\x0ax=1'"},
           {"train.epochs=0", "train.epochs must be >= 1"},
           {"optimizer.lr=0,5", "optimizer.lr expects a number, got the string '0,5'"},
           {"optimizer.lr=nan", "optimizer.lr must be finite, got nan"},
           {"data.shuffle=yes", "data.shuffle expects true or false, got the string 'yes'"},
           {"data.name=cifar",
            "data.name expects one of cifar10, cifar100, folder, pack, synthetic, got the string 'cifar'"},
           {"data.path=\x1b[2J", "data.path expects a string of printable UTF-8, got the string '\\x1b[2J'"},
           {"data.path=\xff", "data.path expects a string of printable UTF-8, got the string '\\xff'"},
           {"train.seed=" + std::string(5000, '1'), "an override of more than 4096 bytes"},
           {"train.seed=" + std::string(4000, '['), "train.seed expects an integer"}}) {
    const std::string error = error_in("", {text});
    EXPECT_EQ(count(error, "error: "), 1u) << error;
    expect_has(error, message);
    EXPECT_EQ(error.find_first_of("\x1b\xff"), error.npos);
  }
}

TEST(ConfigOverride, DoesNotExcuseTheFile) {  // the file is checked whole
  expect_has(error_in("train.epochs = 0\n", {"train.epochs=5"}), "--> c.toml:1:16");
}

TEST(ConfigOverride, UnusedKeysAndRulesAreCheckedOnTheCombination) {
  const std::string file = "[schedule]\nname = 'multistep'\nmilestones = [100]\n";
  const std::string error = error_in(file, {"schedule.name=cosine"});
  expect_has(error, "'schedule.milestones' is not used with schedule.name = \"cosine\"\n  --> c.toml:3:1\n");
  expect_has(error, "help: remove it, or reset it with `--set schedule.milestones=`; it is used with multistep");
  const Config c =
      parse_config(file, "c.toml", {"schedule.name=cosine", "schedule.milestones=", "schedule.min_lr=0.0001"});
  EXPECT_EQ(c.schedule.name, "cosine");
  EXPECT_EQ(c.schedule.min_lr, 0.0001);

  expect_has(error_in(file, {"train.epochs=100"}), "--> c.toml:3:1");
  expect_has(error_in("", {"schedule.warmup=300"}), "--> --set\n     | schedule.warmup=300");
  expect_has(error_in("", {"schedule.min_lr=0"}), "help: leave it out; it is used with exponential, cosine, linear");
  EXPECT_EQ(error_in("train.epochs = 5\nschedule.warmup = 7\n", {"train.epochs=10"}), "");
}

// ---- Out again -----------------------------------------------------------------------------------------------------

TEST(ConfigToml, RoundTrips) {
  const std::vector<Overrides> runs = {
      {},
      {"data.name=synthetic", "data.samples=20000", "data.mean=[0.1,0.2,0.5]", "data.std=[0.3333333333333333,1,0.5]"},
      {"model.name=mlp", "optimizer.lr=1e-7", "schedule.name=cosine", "schedule.min_lr=5e-324"},
      {"schedule.milestones=[0.1, 100, 1.5e2]", "train.seed=9007199254740992", "optimizer.clip_norm=1e300"},
      {"data.path=C:\\\"quoted\" \u00e9 # ]", "data.shuffle=false", "optimizer.weight_decay=0.30000000000000004"},
  };
  for (const Overrides& overrides : runs)
    for (const bool docs : {false, true}) {
      const Config c = parse_config("", "c.toml", overrides);
      const std::string text = to_toml(c, docs);
      EXPECT_EQ(values(parse_config(text, "again.toml")), values(c)) << text;
      EXPECT_EQ(to_toml(parse_config(text, "again.toml"), docs), text);
    }
}

const std::string kGroupsAndPhases = R"(
[optimizer]
name = "adamw"
betas = [0.8, 0.95]
weight_decay = 0.05
[lookahead]
k = 5
[train]
epochs = 30
[[group]]
match = "conv1.* | a = \"b\""
frozen = true
[[group]]
match = "*.bias"
lr = 0.0003
weight_decay = 0
[[group]]
match = "linear.weight"
name = "rmsprop"
preset = "keras"
centered = true
[[phase]]
epoch = 10
[phase.optimizer]
name = "sgd"
lr = 0.05
momentum = 0.9
[phase.schedule]
name = "cosine"
warmup = 0.5
[[phase]]
plateau = 3
state = "carried"
[phase.optimizer]
form = "ewa"
)";

TEST(ConfigToml, RoundTripsGroupsAndPhases) {
  const Config c = parse_config(kGroupsAndPhases, "c.toml");
  ASSERT_EQ(c.groups.size(), 3u);
  ASSERT_EQ(c.phases.size(), 2u);
  EXPECT_TRUE(c.groups[0].frozen);
  EXPECT_EQ(c.groups[0].match, "conv1.* | a = \"b\"");
  EXPECT_EQ(c.groups[1].optimizer.name, "adamw");  // what a group does not say, it has from [optimizer]
  EXPECT_EQ(c.groups[1].optimizer.betas, (std::vector<double>{0.8, 0.95}));
  EXPECT_EQ(c.groups[1].optimizer.lr, 0.0003);
  EXPECT_EQ(c.groups[2].optimizer.eps, 1e-7);  // another optimizer has its own defaults
  EXPECT_EQ(c.groups[2].optimizer.form, "inside");
  EXPECT_EQ(c.phases[0].schedule.name, "cosine");
  EXPECT_EQ(c.phases[1].schedule.name, "constant");
  EXPECT_EQ(c.phases[1].optimizer.name, "sgd");  // as the phase before it
  EXPECT_EQ(c.phases[1].optimizer.lr, 0.05);
  EXPECT_EQ(c.phases[1].optimizer.form, "ewa");
  for (const bool docs : {false, true}) {
    const std::string text = to_toml(c, docs);
    const Config again = parse_config(text, "again.toml");
    EXPECT_EQ(to_toml(again, docs), text);
    EXPECT_TRUE(differences(c, again).empty());
    EXPECT_EQ(again.groups[2].optimizer.centered, true);
    EXPECT_EQ(again.phases[1].plateau, 3);
    EXPECT_EQ(again.phases[0].schedule.warmup, 0.5);
  }
}

TEST(ConfigDifferences, NameEachKeyThatChanged) {
  const Config from = parse_config(kGroupsAndPhases, "c.toml");
  const auto text = [](const std::vector<ConfigChange>& changes) {
    std::string all;
    for (const ConfigChange& c : changes) all += fmt::format("{}: {} -> {}\n", c.key, c.from, c.to);
    return all;
  };
  EXPECT_EQ(text(differences(from, from)), "");
  EXPECT_EQ(text(differences(from, parse_config(kGroupsAndPhases, "c.toml", {"train.epochs=40", "data.val=100"}))),
            "data.val: 5000 -> 100\ntrain.epochs: 30 -> 40\n");
  Config to = from;
  to.groups[1].optimizer.lr = 0.001;
  to.groups[0].match = "x = y";
  to.phases[0].schedule.warmup = 1;
  to.phases[1].optimizer.form = "inside";
  to.phases[1].state = "fresh";
  EXPECT_EQ(text(differences(from, to)),
            "group 1.match: \"conv1.* | a = \\\"b\\\"\" -> \"x = y\"\n"
            "group 2.lr: 0.0003 -> 0.001\n"
            "phase 1.schedule.warmup: 0.5 -> 1\n"
            "phase 2.state: \"carried\" -> \"fresh\"\n"
            "phase 2.optimizer.form: \"ewa\" -> \"inside\"\n");
  to = from;
  to.groups.pop_back();
  to.phases.clear();
  const std::string gone = text(differences(from, to));
  expect_has(gone, "group 3.match: \"linear.weight\" -> \n");
  expect_has(gone, "phase 1.epoch: 10 -> \n");
  expect_has(text(differences(to, from)), "group 3.centered:  -> true\n");
  // Another optimizer brings and takes keys.
  const std::string other =
      text(differences(parse_config("", "a", {}), parse_config("", "b", {"optimizer.name=lion"})));
  expect_has(other, "optimizer.name: \"sgd\" -> \"lion\"\n");
  expect_has(other, "optimizer.momentum: 0 -> \n");
  expect_has(other, "optimizer.betas:  -> [0.9, 0.99]\n");
}

TEST(ConfigGroups, AsManyAsThereIsRoomFor) {
  std::string text;
  for (int i = 0; i < 7; ++i) text += fmt::format("[[group]]\nmatch = 'p{}'\n", i);
  EXPECT_EQ(error_in(text), "");
  expect_has(error_in(text + "[[group]]\nmatch = 'p7'\n"), "more than 7 groups");
}

TEST(ConfigToml, ShowsWhatHasAnEffectShortestFirstToLast) {
  const std::string text = to_toml(parse_config("", "c.toml", {"schedule.name=cosine", "optimizer.lr=0.1"}));
  expect_has(text,
             "[schedule]\nname = \"cosine\"\ninterval = \"step\"\nwarmup = 0\nwarmup_from = \"base\"\nmin_lr = "
             "0\nperiod = 0\nperiod_factor = 1\n");
  expect_has(text, "\nlr = 0.1\n");
  EXPECT_EQ(text.find("milestones"), text.npos);
  EXPECT_EQ(text.find("samples"), text.npos);
  EXPECT_LT(text.find("[model]"), text.find("[data]"));
  EXPECT_LT(text.find("[schedule]"), text.find("[train]"));
  EXPECT_EQ(text.find('#'), text.npos);
  expect_has(to_toml(Config{}, true), "# base learning rate; > 0 and <= 10000\nlr = 0.001\n");
}

struct DecimalComma : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

TEST(ConfigToml, NumbersDoNotDependOnTheLocale) {
  const std::string before = std::setlocale(LC_ALL, nullptr);
  const std::locale old = std::locale::global(std::locale(std::locale::classic(), new DecimalComma));
  std::setlocale(LC_ALL, "de_DE.UTF-8");  // where it is installed, C's locale too
  const Config c = parse_config("optimizer.lr = 0.25\ntrain.epochs = 12345\n", "c.toml", {"schedule.gamma=0.5"});
  const std::string text = to_toml(c);
  std::locale::global(old);
  std::setlocale(LC_ALL, before.c_str());
  EXPECT_EQ(c.optimizer.lr, 0.25);
  EXPECT_EQ(c.schedule.gamma, 0.5);
  expect_has(text, "lr = 0.25\n");
  expect_has(text, "epochs = 12345\n");
}

// ---- Files ---------------------------------------------------------------------------------------------------------

class ConfigFile : public ::testing::Test {
 protected:
  std::filesystem::path write(const std::string& name, std::string_view text) {
    const std::filesystem::path file = folder_.path() / name;
    std::ofstream(file, std::ios::binary) << text;
    return file;
  }
  std::string error_at(const std::filesystem::path& file) {
    return error_of([&] { load_config(file); });
  }
  TempDir folder_;
};

TEST_F(ConfigFile, SaysWhereEachValueCameFrom) {
  const auto file = write("c.toml", "[optimizer]\nlr = 0.2\nmomentum = 0.8\nweight_decay = 0\n");
  Origins origins;
  const Config c = load_config(file, {"optimizer.momentum=0.7", "optimizer.weight_decay=", "train.seed=3"}, origins);
  EXPECT_EQ(c.optimizer.lr, 0.2);
  EXPECT_EQ(origins.at("optimizer.lr"), file.string() + ":2");
  EXPECT_EQ(origins.at("optimizer.momentum"), "--set");
  EXPECT_EQ(origins.at("optimizer.weight_decay"), "default");
  EXPECT_EQ(origins.at("train.seed"), "--set");
  EXPECT_EQ(origins.at("train.epochs"), "default");
  EXPECT_FALSE(origins.contains("data.samples"));  // has no effect
}

TEST_F(ConfigFile, NamesTheFileInErrors) {
  const auto file = write("c.toml", "x = 1\n");
  expect_has(error_at(file), "--> " + file.string() + ":1:1\n");
}

TEST_F(ConfigFile, MissingFileNamesANearOne) {
  const auto file = write("resnet20.toml", "");
  for (const char* name : {"resnet20", "resnet2.toml", "resent20.toml"}) {
    const std::string error = error_at(folder_.path() / name);
    expect_has(error, "there is no config file '" + (folder_.path() / name).string() + "'");
    expect_has(error, "help: did you mean '" + file.string() + "'?");
  }
  EXPECT_EQ(error_at(folder_.path() / "vgg.toml").find("help"), std::string::npos);
  expect_has(error_at(folder_.path() / "no" / "such" / "folder.toml"), "there is no config file");
}

TEST_F(ConfigFile, RefusesAFolderAndAFileItMayNotRead) {
  expect_has(error_at(folder_.path()), "is a folder, expected a config file");
  const auto file = write("c.toml", "");
  std::filesystem::permissions(file, std::filesystem::perms::none);
  if (geteuid() != 0) expect_has(error_at(file), "cannot read config file '" + file.string() + "': Permission denied");
  expect_has(error_at(folder_.path() / std::string(300, 'x')), "cannot read config file");
}

TEST_F(ConfigFile, RefusesWhatIsTooLarge) {
  std::string dotted = "a";  // 262 KB of dotted key end the stack of toml++ 3.3
  for (int i = 0; i < 131000; ++i) dotted += ".a";
  expect_has(error_at(write("large.toml", dotted + " = 1\n")), "is too large for a config file: more than 65536 bytes");
  if (std::filesystem::exists("/dev/zero")) expect_has(error_at("/dev/zero"), "too large");
}

TEST_F(ConfigFile, RefusesABinaryFile) {
  std::string bytes;
  for (int i = 0; i < 4096; ++i) bytes += static_cast<char>(i * 37 % 256);
  expect_has(error_at(write("b.toml", bytes)), "control character 0x00");
}

// ---- Hostile text --------------------------------------------------------------------------------------------------

TEST(ConfigHostile, DeepTextWithinTheSizeLimit) {
  for (const char* unit : {"a.", "\"\".", "[", "{a=", "[[", "[{a=["}) {
    std::string text;
    while (text.size() < 60000) text += unit;
    for (const char* before : {"", "x = ", "[", "x = {y = ", "x = \"\"\"a\"\"\"\", "})
      for (const char* after : {"", "a = 1\n", "a]\n"}) {
        const std::string error = error_in(before + text + after);
        EXPECT_NE(error, "");
        EXPECT_LT(error.size(), 2000u);
      }
  }
}

TEST(ConfigHostile, MessagesAreEscapedAndCut) {
  const std::string name(50000, 'n');
  const std::string error = error_in("\"a\\u001b[31m\\u202e" + std::string(3000, 'n') + "\" = 1\n" + name + " = 1\n");
  EXPECT_EQ(count(error, "error: "), 2u);
  expect_has(error, "unknown key 'a\\x1b[31m\\u202enn");
  EXPECT_LT(error.size(), 2000u);
  expect_has(error_in("# \u202e\u00e9\n# \u009b\n"), "   2 | # \\x9b\n");
}

TEST(ConfigHostile, EveryPrefixOfAFileIsReadOrRefused) {
  std::string text = to_toml(parse_config("", "c.toml", {"schedule.milestones=[100, 150]"}), true);
  text += "[x]\na = \"\\\"\u00e9\"\nb = 'c'\nd = {e = [1, {f = 1}], 'g'.h = 2020-01-01T00:00:00Z}\n";
  for (size_t n = 0; n < text.size(); n += 7) {
    error_in(text.substr(0, n));
    error_in(text.substr(n));
  }
  for (size_t n = 0; n < text.size(); n += 3)
    for (const char c : {'"', '\'', '[', '}', '\n', '=', '.', '\\', '#', '\x80'}) {
      std::string changed = text;
      changed[n] = c;
      error_in(changed);
    }
}

}  // namespace
}  // namespace linnet
