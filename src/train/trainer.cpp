#include "linnet/trainer.h"

#include <xxhash.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/rng.h"
#include "linnet/optimizer.h"

namespace linnet {

namespace {

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Fisher-Yates with the epoch's own random numbers: the order is a pure function of (seed, epoch).
std::vector<int32_t> epoch_order(int64_t n, uint64_t seed, int64_t epoch, bool shuffle) {
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = n - 1; shuffle && i > 0; --i) {
    const uint32_t r = random4(seed, Draw::shuffle, uint64_t(i), uint32_t(epoch)).v[0];
    std::swap(order[size_t(i)], order[below(r, uint32_t(i + 1))]);
  }
  return order;
}

[[noreturn]] void fail_diverged(double loss, const std::string& where) {
  fail(Exit::diverged,
       "training diverged: the loss is {} {}. Use a smaller optimizer.lr, a longer schedule.warmup or "
       "optimizer.clip_norm = 1",
       std::fabs(loss), where);  // a NaN has a sign, too
}

}  // namespace

double Row::operator[](std::string_view name) const {
  for (const auto& [key, value] : values)
    if (key == name) return value;
  return std::numeric_limits<double>::quiet_NaN();
}

Trainer::Trainer(const Config& config, Backend& backend, const RunData& data)
    : config_(config),
      backend_(backend),
      data_(data),
      rule_(make_rule(config)),
      net_(backend, config.model.name, model_options(config, data.train), uint64_t(config.train.seed), slots_of(rule_),
           config.optimizer.decay_norm_and_bias),
      tape_(backend, net_.pool()) {
  const int64_t n = data.train.size(), batch = config.train.batch_size;
  steps_per_epoch_ = config.data.drop_last ? n / batch : (n + batch - 1) / batch;
  if (steps_per_epoch_ == 0)
    fail(Exit::usage,
         "{} training images do not fill one batch of {}; use a smaller train.batch_size or "
         "data.drop_last = false",
         n, batch);
  schedule_ = make_schedule(config, steps_per_epoch_);
  train_ = upload_source(backend, data.train, config.data.mean, config.data.std);
  train_.crop_pad = int(config.augment.crop_pad);
  train_.flip = config.augment.flip;
  if (data.val.size() > 0) val_ = upload_source(backend, data.val, config.data.mean, config.data.std);

  params_step_ = make_step(backend);
  one_ = net_.pool().empty({1}, DType::f32);
  const float one = 1;
  backend.upload(one_, &one);
  totals_ = net_.pool().zeros({2}, DType::f64);
}

void Trainer::start_epoch(int64_t epoch) {
  epoch_ = epoch;
  in_epoch_ = 0;
  const auto order = epoch_order(data_.train.size(), uint64_t(config_.train.seed), epoch, config_.data.shuffle);
  backend_.upload(train_.order, order.data());
}

void Trainer::step() {
  const int64_t batch = config_.train.batch_size, first = in_epoch_ * batch;
  const int64_t count = std::min(batch, data_.train.size() - first);
  write_step(backend_, params_step_,
             {.lr = schedule_(step_),
              .weight_decay = float(config_.optimizer.weight_decay),
              .epoch = int32_t(epoch_),
              .first = first,
              .step = step_,
              .seed = uint64_t(config_.train.seed)});
  // Two eager steps fill the pool and the plan caches; from then on a full batch is one captured step.
  if (count == batch && eager_steps_ >= 2) {
    if (!replay_) replay_ = backend_.capture([this] { compute(config_.train.batch_size); });
    replay_->run();
  } else {
    compute(count);
    eager_steps_ += count == batch;
  }
  ++step_;
  ++in_epoch_;
  counted_ += count;
}

// One step, as a function of what params_step_ says: nothing here may depend on host values that change per step.
void Trainer::compute(int64_t count) {
  Pool& pool = net_.pool();
  batch_ = pool.empty({count, data_.train.height, data_.train.width, data_.train.channels}, DType::f32);
  labels_ = pool.empty({count}, DType::i32);
  Tensor draws = pool.empty({count, 4}, DType::i32);
  backend_.make_batch(batch_, labels_, draws, train_, params_step_);

  tape_.begin_step();
  Pass pass{backend_, pool, &tape_, true, params_step_};
  const Tensor logits = net_.forward(pass, batch_);
  const Loss loss =
      softmax_cross_entropy(pass, logits, labels_, float(config_.train.label_smoothing), 1.f / float(count));
  backend_.accumulate(totals_, loss.stats);
  tape_.backward(loss.loss, one_);
  tape_.end_step(net_.params().params());
  loss_ = loss.loss;

  const Flat& flat = net_.params().flat();
  backend_.clip_scale(params_step_, flat.grad, float(config_.optimizer.clip_norm));
  backend_.update(rule_, flat, params_step_);
}

float Trainer::last_loss() {
  float loss;
  backend_.download(&loss, loss_);
  return loss;
}

// Reads the device's accumulators (the only wait of a step) and starts them anew.
Trainer::Sums Trainer::take_sums() {
  double totals[2];
  backend_.download(totals, totals_);
  backend_.zero(totals_);
  const Sums sums{totals[0], totals[1], std::exchange(counted_, 0)};
  if (!std::isfinite(sums.loss))
    fail_diverged(sums.loss, fmt::format("in epoch {}, before step {}", epoch_ + 1, step_));
  return sums;
}

Outcome Trainer::run(const std::vector<Observer*>& observers, const std::function<bool()>& stop) {
  const auto report = [&](Row row) {
    row.epoch = epoch_ + (in_epoch_ == steps_per_epoch_ ? 1 : 0);
    row.step = step_;
    for (Observer* o : observers) o->on_row(row);
  };
  for (int64_t epoch = 0; epoch < config_.train.epochs; ++epoch) {
    start_epoch(epoch);
    Sums epoch_sums;
    double mark = now_s();
    const double epoch_mark = mark;
    while (in_epoch_ < steps_per_epoch_) {
      if (stop()) return Outcome::interrupted;
      step();
      for (Observer* o : observers) o->on_step(step_, epoch_);
      if (step_ % config_.log.interval != 0 && in_epoch_ != steps_per_epoch_) continue;
      const Sums sums = take_sums();
      epoch_sums += sums;
      Row row{.kind = "step"};
      row.values = {{"train/loss", sums.mean_loss()},
                    {"train/acc", sums.mean_correct()},
                    {"lr", double(schedule_(step_ - 1))},
                    {"grad_norm", double(read_step(backend_, params_step_).grad_norm)}};
      const double t = now_s();
      row.img_per_s = double(sums.images) / (t - std::exchange(mark, t));
      report(row);
    }
    Row row{.kind = "epoch"};
    row.values = {{"train/loss", epoch_sums.mean_loss()}, {"train/acc", epoch_sums.mean_correct()}};
    row.img_per_s = double(epoch_sums.images) / (now_s() - epoch_mark);
    if (val_) {
      const Accuracy val = net_.evaluate(*val_, config_.train.eval_batch_size, data_.train.classes);
      if (!std::isfinite(val.loss))
        fail_diverged(val.loss, fmt::format("on the validation images after epoch {}", epoch + 1));
      row.values.insert(row.values.end(), {{"val/loss", val.loss}, {"val/acc", val.acc}});
    }
    row.values.emplace_back("lr", double(schedule_(step_ - 1)));
    row.hash = state_hash();
    report(row);
  }

  if (stop()) return Outcome::interrupted;
  const Images test = data_.test();
  const Accuracy accuracy = net_.evaluate(upload_source(backend_, test, config_.data.mean, config_.data.std),
                                          config_.train.eval_batch_size, test.classes);
  if (!std::isfinite(accuracy.loss)) fail_diverged(accuracy.loss, "on the test images");
  Row row{.kind = "test"};
  row.values = {{"test/loss", accuracy.loss}, {"test/acc", accuracy.acc}};
  report(row);
  return Outcome::done;
}

std::string Trainer::state_hash() {
  XXH3_state_t* state = XXH3_createState();
  XXH3_128bits_reset(state);
  const auto add = [&](const Tensor& t) {
    std::vector<char> bytes(t.bytes());
    backend_.download(bytes.data(), t);
    XXH3_128bits_update(state, bytes.data(), bytes.size());
  };
  add(net_.params().flat().master);
  add(net_.params().flat().slots);
  for (const Buffer& b : net_.params().buffers()) add(b.value);
  const XXH128_hash_t hash = XXH3_128bits_digest(state);
  XXH3_freeState(state);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace linnet
