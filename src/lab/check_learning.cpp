// The checks `loss`, `overfit`, `labels` and `eval`: short trainings that a sound net cannot fail.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include "kernels/rng.h"
#include "linnet/optimizer.h"
#include "linnet/warnings.h"
#include "src/lab/checks.h"

namespace linnet {

namespace {

std::string curve(const Subject& s, const std::string& title, const std::vector<double>& y) {
  Series series{.name = title, .x = {}, .y = y};
  for (size_t i = 0; i < y.size(); ++i) series.x.push_back(double(i + 1));
  return draw_text({.title = title, .x_label = "step", .series = {series}}, s.terminal, 8);
}

// Adam as it comes: these checks are about the net and its data, not about the config's optimizer.
Config with_adam(Config c) {
  c.optimizer = default_settings("adam", "pytorch");
  c.groups.clear();
  c.clip = {};
  c.train.lr_scaling = "none";
  return at_constant_lr(c);
}

}  // namespace

namespace {

// The loss of a net that knows how frequent each class is, and nothing of the images: the labels' entropy.
double loss_of_guessing(const Images& images) {
  std::vector<double> counts(size_t(images.classes), 0);
  for (const int32_t label : images.labels) ++counts[size_t(label)];
  double entropy = 0;
  for (const double n : counts)
    if (n > 0) entropy -= n / double(images.size()) * std::log(n / double(images.size()));
  return entropy;
}

// Mean of the last ten of some losses, or of all where there are fewer.
double tail_mean(const std::vector<double>& losses) {
  const auto tail = std::span(losses).last(std::min<size_t>(10, losses.size()));
  return std::accumulate(tail.begin(), tail.end(), 0.0) / double(tail.size());
}

}  // namespace

CheckResult check_loss(const Subject& s) {
  constexpr int64_t kSteps = 50, kMore = 200;
  const double chance = std::log(double(s.data.train.classes));
  Config config = plain_config(s.config);
  const RunData data = some_of(s.data.train, kSteps * config.train.batch_size);
  config = at_first_lr(config, s.data.train.size(), data.train.size());
  Trainer trainer(config, s.backend, data);
  // The same images before and after: a batch's own loss is too noisy to show a slow fall.
  const BatchSource source = upload_source(s.backend, data.train, config.data.mean, config.data.std);
  const Batch fixed = plain_batch(trainer.net(), source, std::min<int64_t>(256, data.train.size()));
  const double first = loss_of(trainer.net(), fixed, true);
  ShortRun run;
  std::string text = fmt::format("first loss {:.4g} (ln {} is {:.4g})", first, s.data.train.classes, chance);
  double last = first, lowest = first;
  const auto train = [&](int64_t steps) {
    const ShortRun more = train_steps(trainer, steps);
    run.steps.insert(run.steps.end(), more.steps.begin(), more.steps.end());
    run.diverged = more.diverged;
    if (!run.diverged.empty()) return;
    last = loss_of(trainer.net(), fixed, true);
    lowest = std::min(lowest, last);
    text += fmt::format("; {:.4g} after {} batches", last, run.steps.size());
  };
  // On its way down to the loss of guessing a net only unlearns its first answers: below it, it has learnt.
  const double guessing = loss_of_guessing(data.train);
  const auto learns = [&] { return last < 0.98 * guessing; };
  // A large rate may throw the loss up for a while and yet train well, and a small one takes its time.
  train(kSteps);
  const double early = last;
  if (run.diverged.empty() && !learns()) train(kMore);
  // A warmup hides the rate that it leads to: one that is not usual is looked at.
  const auto warmup = std::llround(config.schedule.warmup * double(trainer.steps_per_epoch()));
  const UsualLr usual = usual_lr(config.optimizer);
  if (run.diverged.empty() && warmup > int64_t(run.steps.size()) && !usual.holds(config.optimizer.lr)) {
    const double full = trainer.learning_rate(warmup);
    trainer.use_schedule([=](int64_t) { return full; });
    train(kMore);
    text += " (of these " + std::to_string(kMore) + " at the full rate)";
  }

  const bool start = first > chance / 2 && first < 2 * chance;
  std::string advice;
  const auto fault = [&](const std::string& what, const std::string& cure) {
    text += ": " + what;
    advice += (advice.empty() ? "" : "; ") + cure;
  };
  const std::string shorter = "use " + shorter_steps(s.config), beside = lr_beside_usual(config.optimizer);
  const std::string rises =
      usual.holds(config.optimizer.lr)
          ? "it rises: " + shorter + "; at a sound rate it may be the labels: see the check `labels`"
          : "it rises, and " + beside + ": " + shorter;
  if (!run.diverged.empty()) fault("exploding: " + run.diverged, rises);
  if (!start)
    fault("the first loss is far from chance",
          first > chance ? "the first loss is too high: smaller first weights in the last layer, or batch norm"
                         : "the first loss is too low: the net knows the labels already; look for them in the images");
  const bool falls = last < first - 1e-4 * chance;
  if (!run.diverged.empty() || learns() || (falls && !start)) {
    // nothing to say, or said already
  } else if (falls && last < early - 5e-3 * chance && warmup > int64_t(run.steps.size()) &&
             usual.holds(config.optimizer.lr)) {
    text += fmt::format(" (the warmup takes {} steps: its full rate is not seen here)", warmup);
  } else if (lowest < 0.98 * guessing) {
    fault("it has learnt and forgets it again at this rate", beside + ": use a smaller one");
  } else if (const std::vector<double> losses = run.column("train/loss"); tail_mean(losses) > 1.02 * losses.front()) {
    fault("rising", rises);
  } else {
    const double lr = config.optimizer.lr;
    fault(falls ? "it only comes near the loss of guessing" : "flat",
          lr < usual.low ? beside + ": begin there"
          : lr > usual.high
              ? beside + ": " + shorter
              : "see in linnet lr-find whether a smaller rate teaches, and look at the checks `flow` and `labels`");
  }
  return verdict(advice.empty(), text, curve(s, "loss of each batch", run.column("train/loss")), advice);
}

CheckResult check_overfit(const Subject& s) {
  constexpr int64_t kImages = 16, kSteps = 100;
  constexpr double kEnough = 0.95;
  Config config = at_constant_lr(plain_config(s.config));
  config.augment = {.crop_pad = 0, .flip = "none"};
  config.model.dropout = 0;
  config.train.label_smoothing = 0;
  config.train.lr_scaling = "none";
  config.train.batch_size = kImages;
  config.data.drop_last = false;
  const RunData data = some_of(s.data.train, kImages);
  std::string picture, text;
  // The config's learning rate may be meant for other batches or for a warmup: others say whether the net can learn.
  for (const double factor : {1.0, 10.0, 0.1, 100.0}) {
    Config tried = config;
    const auto scale = [&](OptimizerConfig& o) {
      o.lr *= factor;
      o.weight_decay = 0;
    };
    scale(tried.optimizer);
    for (GroupConfig& group : tried.groups) scale(group.optimizer);
    Trainer trainer(tried, s.backend, data);
    const ShortRun run = train_steps(trainer, kSteps, [](const Row& row) { return row["train/acc"] >= kEnough; });
    const std::vector<double> acc = run.column("train/acc");
    if (picture.empty() || (!acc.empty() && acc.back() >= kEnough))
      picture = curve(
          s, fmt::format("share of {} images that are right, lr {:.3g}", data.train.size(), tried.optimizer.lr), acc);
    if (!acc.empty() && acc.back() >= kEnough)
      return verdict(
          true,
          fmt::format("{:.0f} % of {} images in {} steps with {}, lr {:.3g}{}", 100 * acc.back(), data.train.size(),
                      acc.size(), tried.optimizer.name, tried.optimizer.lr, text.empty() ? "" : " (not " + text + ")"),
          picture);
    text += fmt::format(
        "{}with lr {:.3g}: {}", text.empty() ? "" : ", ", tried.optimizer.lr,
        run.diverged.empty() ? fmt::format("{:.0f} %", acc.empty() ? 0 : 100 * std::ranges::max(acc)) : "diverged");
  }
  return verdict(false, fmt::format("{} images are not learnt in {} steps; {}", data.train.size(), kSteps, text),
                 picture,
                 usual_lr(config.optimizer).holds(config.optimizer.lr)
                     ? ""
                     : lr_beside_usual(config.optimizer) + "; try these before you doubt the net");
}

namespace {

void shuffle_labels(Images& images, uint64_t seed) {
  for (int64_t i = images.size() - 1; i > 0; --i)
    std::swap(images.labels[size_t(i)],
              images.labels[below(random4(seed, Draw::shuffle, uint64_t(i), 77).v[0], uint32_t(i + 1))]);
}

constexpr int64_t kLearnSteps = 100, kLearnBatch = 64;

// Accuracy on the held-out images after a short training.
double learnt(const Subject& s, const RunData& data, int64_t steps, std::string& diverged) {
  Config config = with_adam(plain_config(s.config));
  config.train.batch_size = kLearnBatch;
  const RunData shown{.train = data.train, .val = {}, .test = data.test, .notes = {}};
  Trainer trainer(config, s.backend, shown);
  const ShortRun run = train_steps(trainer, steps);
  if (diverged.empty()) diverged = run.diverged;
  const BatchSource val = upload_source(s.backend, data.val, config.data.mean, config.data.std);
  return trainer.net().evaluate(val, config.train.eval_batch_size, data.val.classes).acc;
}

}  // namespace

CheckResult check_labels(const Subject& s) {
  constexpr int64_t kHeld = 1000, kFewest = 200;
  RunData data = some_of(s.data.train, kLearnSteps * kLearnBatch, kHeld);
  if (data.val.size() < kFewest || data.train.size() < kLearnBatch)
    return {CheckResult::Verdict::skipped, fmt::format("{} training images are too few", s.data.train.size()), ""};
  // The most frequent class is what a net without eyes says.
  std::vector<double> counts(size_t(data.val.classes), 0);
  for (const int32_t label : data.val.labels) ++counts[size_t(label)];
  const double n = double(data.val.size()), chance = std::ranges::max(counts) / n;
  const double sigma = std::sqrt(chance * (1 - chance) / n), limit = chance + 4 * sigma;
  std::string diverged;
  int64_t steps = kLearnSteps;
  double with_true = learnt(s, data, steps, diverged);
  if (with_true <= limit && diverged.empty()) {  // a slow net on few images needs longer
    steps *= 4;
    with_true = learnt(s, data, steps, diverged);
  }
  shuffle_labels(data.train, 1);
  shuffle_labels(data.val, 2);
  const double with_shuffled = learnt(s, data, steps, diverged);
  const std::string picture = draw_bars(
      {{"true labels", 100 * with_true}, {"shuffled", 100 * with_shuffled}, {"limit", 100 * limit}}, s.terminal);
  if (!diverged.empty())
    return {CheckResult::Verdict::fail, diverged, picture, "the net does not train: see the check `overfit`"};
  const std::string text = fmt::format(
      "{:.1f} % of {:.0f} held-out images with true labels after {} steps, {:.1f} % with shuffled ones; chance "
      "is {:.1f} % (4 sigma: {:.1f} %)",
      100 * with_true, n, steps, 100 * with_shuffled, 100 * chance, 100 * limit);
  if (with_shuffled > limit)
    return {CheckResult::Verdict::fail, text + ": shuffled labels can be learnt", picture,
            "images are in both parts: see the check `data`"};
  if (with_true > limit) return verdict(true, text, picture);
  // Above chance, but not so far that chance is out of the question.
  if (with_true > chance + 2 * sigma)
    return {CheckResult::Verdict::skipped, text + ": too few images to tell chance from learning", picture};
  return {CheckResult::Verdict::fail, text + ": the true labels teach nothing", picture,
          "the labels do not belong to the images, or the net cannot learn. Where `overfit` passes it can: look at the "
          "labels then"};
}

CheckResult check_eval(const Subject& s) {
  Config config = with_adam(plain_config(s.config));
  config.train.batch_size = std::min(kLearnBatch, s.data.train.size());
  const RunData data = some_of(s.data.train, kLearnSteps * config.train.batch_size);
  Trainer trainer(config, s.backend, data);
  const ShortRun run = train_steps(trainer, kLearnSteps);
  if (!run.diverged.empty()) return verdict(false, run.diverged);
  const BatchSource source = upload_source(s.backend, data.train, config.data.mean, config.data.std);
  const Batch batch = plain_batch(trainer.net(), source, std::min<int64_t>(256, data.train.size()));
  // First with the running statistics, as the other pass changes them.
  const double eval = loss_of(trainer.net(), batch, false), train = loss_of(trainer.net(), batch, true);
  return verdict(std::isfinite(eval) && eval < 1.5 * train + 0.5,
                 fmt::format("loss {:.3f} with running statistics, {:.3f} with the batch's own", eval, train),
                 draw_bars({{"running", eval}, {"batch", train}}, s.terminal));
}

}  // namespace linnet
