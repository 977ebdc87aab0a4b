#include "linnet/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "kernels/rng.h"
#include "linnet/optimizer.h"
#include "linnet/weights.h"
#include "src/core/digest.h"

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

// A rewind makes the learning rate smaller, so that the run does not diverge at the same place again.
constexpr double kRewindFactor = 0.5;

double square(double x) { return x * x; }

bool all_finite(Backend& backend, const Tensor& x) {
  const auto check = [&]<class T>(T) {
    std::vector<T> values(static_cast<size_t>(x.numel()));
    backend.download(values.data(), x);
    return std::ranges::all_of(values, [](T v) { return is_finite(double(float(v))); });
  };
  switch (x.dtype()) {
    case DType::f32:
      return check(float{});
    case DType::bf16:
      return check(bf16{});
    case DType::fp16:
      return check(fp16{});
    default:
      return true;
  }
}

Augment augment_of(const Config& config) {
  const auto& c = config.augment;
  Augment a;
  a.crop_pad = int(c.crop_pad);
  a.padding = c.padding == "reflect" ? Padding::reflect : Padding::zero;
  a.flip = c.flip == "random" ? Flip::random : c.flip == "alternating" ? Flip::alternating : Flip::none;
  a.brightness = float(c.brightness);
  a.contrast = float(c.contrast);
  a.saturation = float(c.saturation);
  a.hue = float(c.hue);
  a.cutout = int(c.cutout);
  a.mixup = float(c.mixup);
  a.cutmix = float(c.cutmix);
  return a;
}

}  // namespace

double Row::operator[](std::string_view name) const {
  for (const auto& [key, value] : values)
    if (key == name) return value;
  return std::numeric_limits<double>::quiet_NaN();
}

bool Watch::update(double value, bool larger, int64_t at_epoch) {
  if (std::isnan(best) || (larger ? value > best : value < best)) {
    *this = {value, at_epoch, 0};
    return true;
  }
  ++waited;
  return false;
}

Trainer::Trainer(const Config& config, Backend& backend, const RunData& data)
    : config_(config),
      backend_(backend),
      data_(data),
      batches_per_epoch_(linnet::batches_per_epoch(data.train.size(), config.train.batch_size, config.data.drop_last)),
      accumulate_(config.train.accumulate > 0 ? config.train.accumulate : std::max<int64_t>(1, batches_per_epoch_)),
      steps_per_epoch_(linnet::steps_per_epoch(config, data.train.size())),
      loss_scale_(float(loss_scale_of(config))),
      updater_(backend, config, scaled_lr(config, 1, data.train.size())),
      net_(backend, config.model.name, model_options(config, data.train), uint64_t(config.train.seed),
           updater_.layout()),
      tape_(backend, net_.pool()) {
  if (steps_per_epoch_ == 0)
    fail(Exit::usage,
         "{} training images do not fill {}one batch of {}; use a smaller train.batch_size or train.accumulate, or "
         "data.drop_last = false with train.accumulate_tail = \"flush\"",
         data.train.size(), accumulate_ == 1 ? "" : fmt::format("the {} batches of a step, ", accumulate_),
         config.train.batch_size);
  updater_.attach(net_.params());
  train_ = upload_source(backend, data.train, config.data.mean, config.data.std);
  train_.augment = augment_of(config);
  if (data.val.size() > 0) val_ = upload_source(backend, data.val, config.data.mean, config.data.std);
  if (config.log.smoothing > 0) smooth_.emplace(config.log.smoothing);

  step_memory_ = make_step(backend);
  one_ = net_.pool().empty({1}, DType::f32);
  const float one = 1;
  backend.upload(one_, &one);
  step_sums_ = net_.pool().zeros({2}, DType::f64);
  loss_ = net_.pool().zeros({1}, DType::f32);
  totals_ = net_.pool().zeros({3}, DType::f64);
  const auto room = [&](const Tensor& like) {
    Tensor t(backend.allocate(like.bytes()), like.shape(), like.dtype());
    backend.copy(t, like);
    return t;
  };
  before_ = room(net_.params().flat().master);
  if (config.train.patience > 0) {
    best_ = room(net_.params().flat().master);
    best_buffers_ = room(net_.params().flat().buffers);
  }
  enter_phase(0, true);
  begin_epoch();
}

// ---- Learning rate and phases --------------------------------------------------------------------------------------

// `restored`: the updater's state is that of the phase already.
void Trainer::enter_phase(int64_t phase, bool restored) {
  if (!restored) {
    const double last_lr = learning_rate(at_.step - 1) / updater_.base_lr();
    at_.phase = phase;
    at_.phase_step = at_.step;
    at_.phase_epoch = at_.epoch;
    at_.phase_watch = {};
    updater_.start_phase(int(phase), at_.step, last_lr);
    at_.update_start = updater_.update_start();
  }
  const ScheduleConfig& schedule = phase == 0 ? config_.schedule : config_.phases[size_t(phase) - 1].schedule;
  const PhaseSpan span = phase_span(config_, size_t(phase), at_.phase_epoch);
  schedule_ = make_schedule(schedule, updater_.base_lr(), steps_per_epoch_, span.epochs);
  plateau_.reset();
  if (schedule.name == "plateau") plateau_.emplace(schedule, updater_.base_lr());
  repeated_.clear();  // a captured step is that of the phase before
}

double Trainer::learning_rate(int64_t step) const {
  return schedule_(step - at_.phase_step) * (plateau_ ? plateau_->factor() : 1) *
         std::pow(kRewindFactor, double(at_.rewinds));
}

// ---- A step --------------------------------------------------------------------------------------------------------

void Trainer::begin_epoch() {
  order_ = epoch_order(data_.train.size(), uint64_t(config_.train.seed), at_.epoch, config_.data.shuffle);
  backend_.upload(train_.order, order_.data());
}

void Trainer::start_epoch(int64_t epoch) {
  at_.epoch = epoch;
  at_.in_epoch = 0;
  begin_epoch();
}

int64_t Trainer::count_images(int64_t first_batch, int64_t batches) const {
  const int64_t batch = config_.train.batch_size, n = data_.train.size();
  return std::min(n, (first_batch + batches) * batch) - first_batch * batch;
}

void Trainer::write_params() {
  StepParams params{.epoch = int32_t(at_.epoch),
                    .first = at_.in_epoch * accumulate_ * config_.train.batch_size,
                    .step = at_.step,
                    .seed = uint64_t(config_.train.seed)};
  params.max_bad_in_row = config_.train.on_nonfinite == "skip" ? int32_t(config_.train.max_skips) : 0;
  params.max_overflows_in_row = net_.type() == DType::fp16 ? int32_t(config_.train.max_skips) : params.max_bad_in_row;
  updater_.fill(params, at_.step, learning_rate(at_.step) / updater_.base_lr());
  write_step(backend_, step_memory_, params);
}

void Trainer::step() {
  write_params();
  const int64_t first = at_.in_epoch * accumulate_;
  const int64_t batches = std::min(accumulate_, batches_per_epoch_ - first), images = count_images(first, batches);
  // Two eager steps fill the pool and the plan caches; from then on a step is one captured graph. An epoch's last,
  // smaller step gets one of its own.
  Repeated& r = repeated_[images];
  if (config_.train.graph && r.eager >= 2) {
    if (!r.replay) r.replay = backend_.capture([this, batches, images] { compute(batches, images); });
    r.replay->run();
  } else {
    compute(batches, images);
    ++r.eager;
  }
  ++at_.step;
  ++at_.in_epoch;
}

// One step, as a function of what step_memory_ says: nothing here may depend on host values that change per step.
void Trainer::compute(int64_t batches, int64_t images) {
  Pool& pool = net_.pool();
  backend_.zero(step_sums_);
  updater_.before_forward(step_memory_);
  tape_.begin_step();
  for (int64_t b = 0; b < batches; ++b) {
    const int64_t offset = b * config_.train.batch_size, count = std::min(config_.train.batch_size, images - offset);
    batch_ = pool.empty({count, data_.train.height, data_.train.width, data_.train.channels}, net_.type());
    labels_ = pool.empty({count}, DType::i32);
    Target target = labels_;
    if (train_.augment.mixes()) target = {labels_, pool.empty({count}, DType::i32), pool.empty({count}, DType::f32)};
    const Tensor draws = pool.empty({count, kDrawWords}, DType::i32);
    backend_.make_batch(batch_, target, draws, train_, step_memory_, offset);
    Pass pass{backend_, pool, &tape_, true, step_memory_, uint32_t(b)};
    const Tensor logits = net_.forward(pass, batch_);
    // The mean over all images of the step, however they are cut into batches, times the loss scale.
    const Loss loss =
        softmax_cross_entropy(pass, logits, target, float(config_.train.label_smoothing), loss_scale_ / float(images));
    backend_.accumulate(step_sums_, loss.stats);
    tape_.backward(loss.loss, one_);
    backend_.copy(loss_, loss.loss);  // to one place, whichever captured step is replayed
  }
  tape_.end_step(net_.params().params());
  updater_.apply(step_memory_, step_sums_, totals_, images);
}

float Trainer::last_loss() {
  float loss;
  backend_.download(&loss, loss_);
  return loss / loss_scale_;
}

std::vector<float> Trainer::gradient() {
  const Tensor& grad = net_.params().flat().grad;
  std::vector<float> values(size_t(grad.numel()));
  backend_.download(values.data(), grad);
  for (float& v : values) v /= loss_scale_;
  return values;
}

// Reads the device's accumulators and starts them anew.
Sums Trainer::take_sums() {
  double totals[3];
  backend_.download(totals, totals_);
  backend_.zero(totals_);
  return {totals[0], totals[1], totals[2]};
}

// ---- A step that is not finite -------------------------------------------------------------------------------------

// Throws when bad steps have come that the run's policy does not allow. On a GPU this waits for the device.
void Trainer::check_result() {
  const StepResult result = read_step(backend_, step_memory_);
  known_good_ = at_.step;
  if (!result.halted) return;
  BadStep bad = examine_bad_step(result.bad_step);
  if (net_.type() == DType::fp16 && std::isfinite(bad.loss)) {
    const std::string overflow = fmt::format(
        "the gradient is not finite in fp16, in {} steps one after the other from epoch {}, step {} on; the first "
        "value "
        "is in {}. Use a smaller train.loss_scale (it is {}), or train.precision = \"bf16\"",
        result.bad_in_row, bad.epoch + 1, bad.step + 1, bad.where, loss_scale_);
    throw Diverged(overflow, std::move(bad));
  }
  const std::string message = fmt::format(
      "training diverged: the loss is {} in epoch {}, step {}; the first value that is not finite is in {}. Use a "
      "smaller "
      "optimizer.lr, a longer schedule.warmup or optimizer.clip_norm = 1",
      std::fabs(bad.loss), bad.epoch + 1, bad.step + 1, bad.where);  // a NaN has a sign, too
  throw Diverged(message, std::move(bad));
}

// Runs the bad step again, looking at every tensor. Weights and state are what they were before it: it was not applied.
BadStep Trainer::examine_bad_step(int64_t step) {
  const Progress now = at_;
  at_.step = step;
  at_.in_epoch = now.in_epoch - (now.step - step);
  for (; at_.in_epoch < 0; at_.in_epoch += steps_per_epoch_) --at_.epoch;  // bad steps in a row may span epochs
  if (at_.epoch != now.epoch) begin_epoch();
  BadStep bad{.step = step, .epoch = at_.epoch};
  const auto look = [&](const Tensor& x, const std::string& what) {
    if (bad.where.empty() && !all_finite(backend_, x)) bad.where = what;
  };
  for (const Param* p : net_.params().params()) look(p->master, "weight " + p->name);
  tape_.watch([&](const Tensor& y, Op op) {
    look(batch_, "the images");
    if (op.param && bad.where.empty()) look(op.param->master, "weight " + op.param->name);
    if (std::string_view(op.name) != "flatten")
      look(y, op.param ? fmt::format("{} {}", op.name, op.param->name) : op.name);
  });
  write_params();
  const int64_t first = at_.in_epoch * accumulate_, batches = std::min(accumulate_, batches_per_epoch_ - first);
  const int64_t images = count_images(first, batches);
  const StepResult before = read_step(backend_, step_memory_);
  compute(batches, images);
  const bool statistics = is_finite(before.residue) && is_finite(read_step(backend_, step_memory_).residue);
  write_result(backend_, step_memory_, before);
  tape_.watch({});
  for (const Param* p : net_.params().params()) look(p->grad, "gradient of " + p->name);
  if (bad.where.empty() && !statistics) bad.where = "the running statistics of batch norm";
  if (bad.where.empty()) bad.where = "the sum of the squared gradients";
  double sums[2];
  backend_.download(sums, step_sums_);
  bad.loss = sums[0] / double(images);
  const int64_t begin = first * config_.train.batch_size;
  bad.samples.assign(order_.begin() + begin, order_.begin() + begin + images);
  at_ = now;
  if (bad.epoch != now.epoch) begin_epoch();
  return bad;
}

// ---- The run -------------------------------------------------------------------------------------------------------

// A GPU fails behind the host's back: what is known is the last step after which it has answered.
Outcome Trainer::run(const std::vector<Observer*>& observers, const std::function<bool()>& stop) {
  known_good_ = at_.step;
  try {
    return run_steps(observers, stop);
  } catch (const Error& e) {
    if (e.exit != Exit::device) throw;
    fail(Exit::device, "{} (in step {}{})", e.what(), known_good_ + 1,
         at_.step > known_good_ ? fmt::format(" or later, at most {}", at_.step + 1) : "");
  }
}

Outcome Trainer::run_steps(const std::vector<Observer*>& observers, const std::function<bool()>& stop) {
  const auto report = [&](Row row) {
    row.epoch = at_.epoch + (row.kind == "step" && at_.in_epoch == steps_per_epoch_ ? 1 : 0);
    row.step = at_.step;
    for (Observer* o : observers) o->on_row(row);
  };
  const auto rewound = [&] {
    if (config_.train.on_nonfinite != "rewind" || at_.rewinds >= config_.train.max_skips) return false;
    const int64_t rewinds = at_.rewinds;
    bool done = false;
    for (Observer* o : observers) done = done || o->on_rewind(*this);
    if (done) at_.rewinds = rewinds + 1;
    return done;
  };
  // On a GPU a look at the result waits for the device: there it is taken with the metrics.
  const bool look_every_step = backend_.device() == Device::cpu;

  double mark = now_s(), epoch_mark = mark;
  while (at_.epoch < config_.train.epochs && !at_.stopped) {
    while (at_.in_epoch < steps_per_epoch_) {
      if (stop()) return Outcome::interrupted;
      if (at_.in_epoch + 1 == steps_per_epoch_) backend_.copy(before_, net_.params().flat().master);
      step();
      for (Observer* o : observers) o->on_step(at_.step, at_.epoch);
      const bool row_due = at_.step % config_.log.interval == 0 || at_.in_epoch == steps_per_epoch_;
      try {
        if (look_every_step || row_due) check_result();
      } catch (const Diverged&) {
        if (!rewound()) throw;
        continue;
      }
      if (row_due) {
        const Sums sums = take_sums();
        at_.epoch_sums += sums;
        const StepResult result = read_step(backend_, step_memory_);
        Row row{.kind = "step"};
        row.values = {{"train/loss", sums.mean_loss()},
                      {"train/acc", sums.mean_correct()},
                      {"lr", learning_rate(at_.step - 1)},
                      {"grad_norm", double(result.grad_norm)}};
        if (smooth_)  // a row of which all steps were skipped has no loss
          row.values.emplace_back("train/loss_smooth",
                                  sums.images > 0 ? smooth_->update(sums.mean_loss()) : smooth_->value());
        if (config_.clip.norm > 0)
          row.values.emplace_back("clipped_share", double(result.clipped) / double(at_.step - result.skipped));
        if (result.skipped > 0) row.values.emplace_back("skipped", double(result.skipped));
        const double t = now_s();
        row.img_per_s = sums.images / (t - std::exchange(mark, t));
        report(row);
      }
      if (at_.in_epoch < steps_per_epoch_)
        for (Observer* o : observers) o->on_boundary(*this, false);
    }
    const double t = now_s();
    Row row;
    try {
      row = epoch_row(t - std::exchange(epoch_mark, t));
    } catch (const Diverged&) {
      if (!rewound()) throw;
      continue;
    }
    const bool over = end_epoch(row);
    report(row);
    at_.stopped = over;
    for (Observer* o : observers) o->on_boundary(*this, true);
  }

  if (stop()) return Outcome::interrupted;
  report(test_row());
  return Outcome::done;
}

Row Trainer::epoch_row(double seconds) {
  Row row{.kind = "epoch"};
  row.values = {{"train/loss", at_.epoch_sums.mean_loss()}, {"train/acc", at_.epoch_sums.mean_correct()}};
  row.img_per_s = at_.epoch_sums.images / seconds;
  const auto measure = [&](const char* loss, const char* acc) {
    const Accuracy val = net_.evaluate(*val_, config_.train.eval_batch_size, data_.train.classes);
    if (!std::isfinite(val.loss))
      throw Diverged(fmt::format("training diverged: the loss on the validation images is {} after epoch {}. Use a "
                                 "smaller optimizer.lr, a longer schedule.warmup or optimizer.clip_norm = 1",
                                 std::fabs(val.loss), at_.epoch + 1),
                     {.step = at_.step - 1, .epoch = at_.epoch, .loss = val.loss, .where = "the validation images"});
    row.values.insert(row.values.end(), {{loss, val.loss}, {acc, val.acc}});
  };
  if (val_) {
    measure("val/loss", "val/acc");
    if (updater_.has_average())
      updater_.with_average(at_.step - last_result().skipped, [&] { measure("val/ema_loss", "val/ema_acc"); });
  }
  row.values.emplace_back("lr", learning_rate(at_.step - 1));
  add_update_ratios(row);
  row.hash = state_hash();
  return row;
}

// |change| / |weights| of each layer's weights in the epoch's last step; about 1e-3 is usual.
void Trainer::add_update_ratios(Row& row) {
  const ParamStore& store = net_.params();
  std::vector<float> before(size_t(before_.numel())), after(before.size());
  backend_.download(before.data(), before_);
  backend_.download(after.data(), store.flat().master);
  for (const Param* p : store.params()) {
    if (p->group < 0 || p->shape.rank() < 2) continue;
    double change = 0, norm = 0;
    for (auto i = size_t(p->offset); i < size_t(p->offset + p->shape.numel()); ++i) {
      change += square(double(after[i]) - double(before[i]));
      norm += square(double(before[i]));
    }
    row.values.emplace_back("update_ratio/" + p->name.substr(0, p->name.rfind('.')), std::sqrt(change / norm));
  }
}

// What an epoch's result means for the next one. Returns whether the training is over.
bool Trainer::end_epoch(const Row& row) {
  bool over = false;
  if (plateau_)
    plateau_->update(
        row[config_.phases.empty() || at_.phase == 0 ? config_.schedule.metric
                                                     : config_.phases[size_t(at_.phase) - 1].schedule.metric]);
  if (config_.train.patience > 0) {
    const bool larger = config_.train.stop_metric == "val/acc";
    const Flat& flat = net_.params().flat();
    if (at_.stop_watch.update(row[config_.train.stop_metric], larger, at_.epoch + 1)) {
      backend_.copy(best_, flat.master);
      backend_.copy(best_buffers_, flat.buffers);
    }
    over = at_.stop_watch.waited >= config_.train.patience;
    if (over || at_.epoch + 1 == config_.train.epochs) {
      backend_.copy(flat.master, best_);
      backend_.copy(flat.buffers, best_buffers_);
    }
  }
  ++at_.epoch;
  at_.in_epoch = 0;
  at_.epoch_sums = {};
  if (over || at_.epoch == config_.train.epochs) return over;

  if (size_t(at_.phase) < config_.phases.size()) {
    const PhaseConfig& next = config_.phases[size_t(at_.phase)];
    if (next.plateau > 0) at_.phase_watch.update(row["val/loss"], false, at_.epoch);
    if (next.plateau > 0 ? at_.phase_watch.waited >= next.plateau : at_.epoch >= next.epoch)
      enter_phase(at_.phase + 1, false);
  }
  begin_epoch();
  return false;
}

Row Trainer::test_row() {
  const Images test = data_.test();
  const BatchSource source = upload_source(backend_, test, config_.data.mean, config_.data.std);
  Row row{.kind = "test"};
  const auto measure = [&](const std::string& prefix, const std::vector<View>& views) {
    const Accuracy a = net_.evaluate(source, config_.train.eval_batch_size, test.classes, views);
    if (!std::isfinite(a.loss))
      throw Diverged(fmt::format("training diverged: the loss on the test images is {}", std::fabs(a.loss)),
                     {.step = at_.step - 1, .epoch = at_.epoch, .loss = a.loss, .where = "the test images"});
    row.values.insert(row.values.end(), {{prefix + "loss", a.loss}, {prefix + "acc", a.acc}});
    if (prefix == "test/") test_predictions_ = a.predictions;
  };
  const auto measure_all = [&](const std::string& prefix) {
    measure(prefix, {View{}});
    if (config_.train.tta != "none") measure(prefix + "tta_", test_views(config_.train.tta));
  };
  measure_all("test/");
  if (updater_.has_average())
    updater_.with_average(at_.step - last_result().skipped, [&] { measure_all("test/ema_"); });
  if (config_.train.patience > 0) row.values.emplace_back("best_epoch", double(at_.stop_watch.epoch));
  return row;
}

// ---- State ---------------------------------------------------------------------------------------------------------

Progress Trainer::progress() {
  Progress p = at_;
  if (plateau_) p.plateau = plateau_->state();
  if (smooth_) p.smooth = smooth_->state();
  p.result = read_step(backend_, step_memory_);
  p.totals.resize(3);
  backend_.download(p.totals.data(), totals_);
  return p;
}

std::vector<std::pair<std::string, Tensor>> Trainer::tensors() {
  const Flat& flat = net_.params().flat();
  std::vector<std::pair<std::string, Tensor>> all = {{"master", flat.master}, {"buffers", flat.buffers}};
  for (auto& named : updater_.state()) all.push_back(std::move(named));
  if (best_) all.insert(all.end(), {{"best", best_}, {"best_buffers", best_buffers_}});
  return all;
}

void Trainer::restore(const Progress& p) {
  at_ = p;
  updater_.restored(int(p.phase), p.update_start);
  enter_phase(p.phase, true);
  if (plateau_) plateau_->restore(p.plateau);
  if (smooth_) smooth_->restore(p.smooth);
  write_result(backend_, step_memory_, p.result);
  backend_.upload(totals_, p.totals.data());
  begin_epoch();
}

void Trainer::start_from(const SafeTensors& weights, const std::string& origin, Head head) {
  set_weights(backend_, net_.params(), weights, origin, head);
  updater_.start_from_weights();
}

std::string Trainer::state_hash() {
  std::string all;
  for (const auto& [name, tensor] : tensors()) {
    const size_t at = all.size();
    all.resize(at + tensor.bytes());
    backend_.download(all.data() + at, tensor);
  }
  return xxh3(all);
}

}  // namespace linnet
