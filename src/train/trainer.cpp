#include "linnet/trainer.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

#include "kernels/rng.h"
#include "linnet/optimizer.h"
#include "linnet/warnings.h"
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

constexpr int64_t kFirstRows = 3;  // steps at the beginning that each get a row: how a run begins tells most

// A rewind makes the learning rate smaller, so that the run does not diverge at the same place again.
constexpr double kRewindFactor = 0.5;

TensorLook look_at(Backend& backend, const Tensor& x, const std::string& what) {
  TensorLook look{.what = what, .numbers = x.numel()};
  const auto read = [&]<class T>(T) {
    std::vector<T> values(static_cast<size_t>(x.numel()));
    backend.download(values.data(), x);
    for (const T v : values) {
      const double size = std::fabs(double(float(v)));
      if (is_finite(size))
        look.largest = std::max(look.largest, size);
      else
        ++look.nonfinite;
    }
  };
  if (x.dtype() == DType::f32) read(float{});
  if (x.dtype() == DType::bf16) read(bf16{});
  if (x.dtype() == DType::fp16) read(fp16{});
  return look;
}

// Where it is no step that failed: weights that are far too large tell of the layer.
std::vector<TensorLook> look_at_weights(Backend& backend, ParamStore& store) {
  std::vector<TensorLook> all;
  for (const Param* p : store.params()) all.push_back(look_at(backend, p->master, "weight " + p->name));
  for (const Buffer& b : store.buffers()) all.push_back(look_at(backend, b.value, b.name));
  return all;
}

// A step, or an evaluation, that was given up between two of its batches.
struct GivenUp {};

Tensor room_for(Backend& backend, const Tensor& like) {
  Tensor t(backend.allocate(like.bytes()), like.shape(), like.dtype());
  backend.copy(t, like);
  return t;
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
  dynamics_.emplace(backend, net_.params(), updater_, config.log.probe);
  if (config.train.patience > 0) {
    best_ = room_for(backend, net_.params().flat().master);
    best_buffers_ = room_for(backend, net_.params().flat().buffers);
  }
  enter_phase(0, true);
  begin_epoch();
  // bf16 where the processor is not made for it: a net that it cannot convolve is refused before a run's folder is
  // made.
  if (net_.type() == DType::bf16 && backend.best_precision() != DType::bf16) {
    BatchSource one = train_;
    one.order = train_.order.slice(0, {1});
    net_.logits(one, 1);
  }
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

// A step's batches and images: the epoch's last step may have fewer.
int64_t Trainer::batches_of(int64_t in_epoch) const {
  return std::min(accumulate_, batches_per_epoch_ - in_epoch * accumulate_);
}
int64_t Trainer::images_of(int64_t in_epoch) const {
  const int64_t first = in_epoch * accumulate_ * config_.train.batch_size;
  return std::min(data_.train.size() - first, batches_of(in_epoch) * config_.train.batch_size);
}

void Trainer::write_params() {
  params_ = {.epoch = int32_t(at_.epoch),
             .first = at_.in_epoch * accumulate_ * config_.train.batch_size,
             .step = at_.step,
             .seed = uint64_t(config_.train.seed)};
  params_.max_bad_in_row = config_.train.on_nonfinite == "skip" ? int32_t(config_.train.max_skips) : 0;
  params_.max_overflows_in_row = net_.type() == DType::fp16 ? int32_t(config_.train.max_skips) : params_.max_bad_in_row;
  updater_.fill(params_, at_.step, learning_rate(at_.step) / updater_.base_lr());
  write_step(backend_, step_memory_, params_);
}

void Trainer::step() {
  write_params();
  const int64_t batches = batches_of(at_.in_epoch), images = images_of(at_.in_epoch);
  // Two eager steps fill the pool and the plan caches; from then on a step is one captured graph. An epoch's last,
  // smaller step gets one of its own.
  Repeated& r = repeated_[images];
  if (batches > 1 && stop_) {
    stoppable_compute(batches, images);
  } else if (config_.train.graph && r.eager >= 2) {
    if (!r.replay) r.replay = backend_.capture([this, batches, images] { compute(batches, images); });
    r.replay->run();
  } else {
    compute(batches, images);
    ++r.eager;
  }
  ++at_.step;
  ++at_.in_epoch;
}

// With many batches a step takes minutes, and a signal's sender does not wait that long. All that a step changes before
// its update are the running statistics and, where its rule looks ahead (Nesterov), the weights and a slot.
void Trainer::stoppable_compute(int64_t batches, int64_t images) {
  const Flat& flat = net_.params().flat();
  const Tensor changed[] = {flat.master, flat.buffers, flat.slots};
  if (begin_.empty())
    for (const Tensor& t : changed) begin_.push_back(room_for(backend_, t));
  for (size_t i = 0; i < begin_.size(); ++i) backend_.copy(begin_[i], changed[i]);
  try {
    compute(batches, images);
  } catch (const GivenUp&) {
    for (size_t i = 0; i < begin_.size(); ++i) backend_.copy(changed[i], begin_[i]);
    throw;
  }
}

// A step computed twice from the same state. Where the bits differ the machine has erred, and nobody knows which of the
// two is right: nothing of it may be saved, as after any fault of a device.
void Trainer::verified_step() {
  std::vector<std::pair<std::string, Tensor>> state = tensors();
  state.insert(state.end(), {{"the step's result", step_memory_}, {"the sums of the loss", totals_}});
  const auto read_all = [&] {
    std::vector<std::string> all;
    for (const auto& [name, tensor] : state) backend_.download(all.emplace_back(tensor.bytes(), 0).data(), tensor);
    return all;
  };
  const Progress begin = at_;
  const std::vector<std::string> before = read_all();
  step();
  const std::vector<std::string> once = read_all();
  for (size_t i = 0; i < state.size(); ++i) backend_.upload(state[i].second, before[i].data());
  updater_.restored(int(begin.phase), updater_.update_start());
  at_ = begin;
  step();
  const std::vector<std::string> twice = read_all();
  known_good_ = begin.step;
  for (size_t i = 0; i < state.size(); ++i) {
    if (once[i] == twice[i]) continue;
    at_ = begin;
    fail(Exit::device,
         "[verify] the step was computed twice from the same state, and '{}' differs: memory or a processor of this "
         "machine makes mistakes. Nothing of the step was saved; test the machine, then `linnet resume` goes on from "
         "the last checkpoint",
         state[i].first);
  }
}

// One step, as a function of what step_memory_ says: nothing here may depend on host values that change per step.
void Trainer::compute(int64_t batches, int64_t images) {
  Pool& pool = net_.pool();
  backend_.zero(step_sums_);
  updater_.before_forward(step_memory_);
  tape_.begin_step();
  for (int64_t b = 0; b < batches; ++b) {
    if (b > 0 && stop_ && stop_()) throw GivenUp{};
    batch_of_step_ = b;
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
      "training diverged: the loss is {} in epoch {}, step {}; the first value that is not finite is in {}. Use {}",
      std::fabs(bad.loss), bad.epoch + 1, bad.step + 1, bad.where, shorter_steps(config_));  // a NaN has a sign, too
  throw Diverged(message, std::move(bad));
}

// Runs the bad step again, looking at every tensor. Weights and state are what they were before it: it was not applied.
BadStep Trainer::examine_bad_step(int64_t step) {
  const Progress now = at_;
  at_.step = step;
  at_.in_epoch = now.in_epoch - (now.step - step);
  for (; at_.in_epoch < 0; at_.in_epoch += steps_per_epoch_) --at_.epoch;  // bad steps in a row may span epochs
  if (at_.epoch != now.epoch) begin_epoch();
  BadStep bad{.step = step, .epoch = at_.epoch, .steps = last_steps()};
  const auto look = [&](const Tensor& x, const std::string& what, bool tell) {
    TensorLook seen = look_at(backend_, x, what);
    if (bad.where.empty() && seen.nonfinite > 0) bad.where = what;
    if (tell || seen.nonfinite > 0) bad.tensors.push_back(std::move(seen));
  };
  for (const Param* p : net_.params().params()) look(p->master, "weight " + p->name, false);
  std::string statistic;  // the first running one that is not finite; the judged step takes it back
  int64_t batch = -1;
  tape_.watch([&](const Tensor& y, Op op) {
    if (std::string_view(op.name) == "batch_norm" && statistic.empty()) {
      for (const Buffer& b : net_.params().buffers())
        if (statistic.empty() && look_at(backend_, b.value, b.name).nonfinite > 0) statistic = b.name;
    }
    if (batch_of_step_ != batch) {  // what is told is the first batch where something is wrong
      if (batch >= 0 && !bad.where.empty()) return;
      if (batch >= 0) bad.tensors.clear();
      batch = batch_of_step_;
      look(batch_, "the images", true);
    }
    if (op.param && bad.where.empty()) look(op.param->master, "weight " + op.param->name, false);
    if (std::string_view(op.name) != "flatten")
      look(y, op.param ? fmt::format("{} {}", op.name, op.param->name) : op.name, true);
  });
  write_params();
  const int64_t batches = batches_of(at_.in_epoch), images = images_of(at_.in_epoch);
  const StepResult before = read_step(backend_, step_memory_);
  // Who asks for a stop waits: this ends the run, or a rewind does.
  const std::function<bool()> stop = std::exchange(stop_, {});
  compute(batches, images);
  stop_ = stop;
  const bool statistics = is_finite(before.residue) && is_finite(read_step(backend_, step_memory_).residue);
  write_result(backend_, step_memory_, before);
  tape_.watch({});
  if (bad.where.empty() && !statistic.empty()) bad.where = "the running statistics " + statistic;
  for (const Param* p : net_.params().params())
    if (p->group >= 0) look(p->grad, "gradient of " + p->name, p->shape.rank() >= 2);
  if (bad.where.empty() && !statistics) bad.where = "the running statistics of batch norm";
  if (bad.where.empty()) bad.where = "the sum of the squared gradients";
  double sums[2];
  backend_.download(sums, step_sums_);
  bad.loss = sums[0] / double(images);
  const int64_t begin = at_.in_epoch * accumulate_ * config_.train.batch_size;
  bad.samples.assign(order_.begin() + begin, order_.begin() + begin + images);
  at_ = now;
  if (bad.epoch != now.epoch) begin_epoch();
  return bad;
}

// Back to a checkpoint, with a smaller learning rate. A run that does not get past the bad step from there goes back to
// an older one: what was saved last may be lost already. All that decides it is part of the state, so that a run that
// is killed on the way goes the same way again.
bool Trainer::rewind(const std::vector<Observer*>& observers, const BadStep& bad) {
  if (config_.train.on_nonfinite != "rewind" || at_.rewinds >= config_.train.max_skips) return false;
  const Progress failed = at_;
  const int64_t newest = bad.step <= failed.rewound_from ? failed.rewound_to.back() - 1 : bad.step;
  bool done = false;
  for (Observer* o : observers) done = done || o->on_rewind(*this, newest);
  if (!done) return false;
  continue_epochs();  // with the learning rate of then
  at_.rewinds = failed.rewinds + 1;
  at_.rewound_from = std::max(failed.rewound_from, bad.step);
  at_.rewound_to = failed.rewound_to;
  at_.rewound_to.push_back(at_.step);
  return true;
}

// The same with what was tried in vain.
Diverged Trainer::after_rewinds(const Diverged& d) const {
  if (config_.train.on_nonfinite != "rewind") return d;
  const std::string no_more = at_.rewinds >= config_.train.max_skips
                                  ? fmt::format("train.max_skips = {} allows no more", config_.train.max_skips)
                                  : "there is no checkpoint to go back to";
  if (at_.rewinds == 0) return {fmt::format("{}; {}", no_more, d.what()), d.bad};
  return {fmt::format("training went back {} time{} (to step {}), each time with half the learning rate; {}; {}",
                      at_.rewinds, at_.rewinds == 1 ? "" : "s", fmt::join(at_.rewound_to, ", "), no_more, d.what()),
          d.bad};
}

std::vector<StepTrace> Trainer::last_steps() {
  std::vector<StepTrace> steps = read_trace(backend_, step_memory_);
  for (StepTrace& s : steps) s.loss /= double(images_of(s.step % steps_per_epoch_));
  return steps;
}

// ---- The run -------------------------------------------------------------------------------------------------------

// A GPU fails behind the host's back: what is known is the last step after which it has answered.
Outcome Trainer::run(const std::vector<Observer*>& observers, const std::function<bool()>& stop) {
  known_good_ = at_.step;
  if (backend_.device() == Device::cpu) stop_ = stop;  // a captured graph asks nobody
  try {
    const Outcome outcome = run_steps(observers, stop);
    stop_ = {};
    return outcome;
  } catch (const Error& e) {
    stop_ = {};
    if (e.exit != Exit::device) throw;
    fail(Exit::device, "{} (in step {}{})", e.what(), known_good_ + 1,
         at_.step > known_good_ ? fmt::format(" or later, at most {}", at_.step + 1) : "");
  }
}

Outcome Trainer::run_steps(const std::vector<Observer*>& observers, const std::function<bool()>& stop) {
  const auto report = [&](Row row) {
    row.epoch = at_.epoch + (at_.in_epoch == steps_per_epoch_ ? 1 : 0);
    row.step = at_.step;
    for (Observer* o : observers) o->on_row(row);
  };
  // On a GPU a look at the result waits for the device: there it is taken with the metrics.
  const bool look_every_step = backend_.device() == Device::cpu;

  continue_epochs();
  double mark = now_s(), epoch_mark = mark;
  while (at_.epoch < config_.train.epochs && !at_.stopped) {
    while (at_.in_epoch < steps_per_epoch_) {
      if (stop()) return Outcome::interrupted;
      const bool due = row_due(1), layers = layers_due(1);
      if (due || layers || row_due(2)) dynamics_->before_step(at_.step);
      const int64_t every = config_.train.verify_every;
      try {
        every > 0 && (at_.step + 1) % every == 0 ? verified_step() : step();
      } catch (const GivenUp&) {
        if (due || layers || row_due(2)) dynamics_->take_back();
        return Outcome::interrupted;
      }
      for (Observer* o : observers) o->on_step(at_.step, at_.epoch);
      try {
        if (look_every_step || due || layers) check_result();
      } catch (const Diverged& d) {
        if (!rewind(observers, d.bad)) throw after_rewinds(d);
        continue;
      }
      if (due || layers) {
        const bool asks_gradient = layers || !config_.log.probe.empty();
        dynamics_->look(at_.step, params_, asks_gradient ? gradient() : std::vector<float>(), layers);
      }
      if (due) {
        const double t = now_s();
        report(step_row(t - std::exchange(mark, t)));
      }
      if (layers) {
        Row row{.kind = "layers"};
        dynamics_->add_layers(row);
        report(row);
      }
      if (at_.in_epoch < steps_per_epoch_)
        for (Observer* o : observers) o->on_boundary(*this, false);
    }
    const double t = now_s();
    Row row;
    try {
      row = epoch_row(t - std::exchange(epoch_mark, t));
    } catch (const GivenUp&) {
      return Outcome::interrupted;
    } catch (const Diverged& d) {
      if (!rewind(observers, d.bad)) throw after_rewinds(d);
      continue;
    }
    const bool over = end_epoch(row);
    report(row);
    at_.stopped = over;
    for (Observer* o : observers) o->on_boundary(*this, true);
  }

  if (stop()) return Outcome::interrupted;
  try {
    report(test_row());
  } catch (const GivenUp&) {
    return Outcome::interrupted;
  }
  return Outcome::done;
}

// Whether the step after `ahead` - 1 others gets a row of metrics, or of its layers.
bool Trainer::row_due(int64_t ahead) const {
  const int64_t step = at_.step + ahead, in_epoch = (at_.in_epoch + ahead - 1) % steps_per_epoch_ + 1;
  return step <= kFirstRows || step % config_.log.interval == 0 || in_epoch == steps_per_epoch_;
}

bool Trainer::layers_due(int64_t ahead) const {
  const int64_t step = at_.step + ahead, in_epoch = (at_.in_epoch + ahead - 1) % steps_per_epoch_ + 1;
  return config_.log.layers > 0 && (step % config_.log.layers == 0 || in_epoch == steps_per_epoch_);
}

Row Trainer::step_row(double seconds) {
  const Sums sums = take_sums();
  at_.epoch_sums += sums;
  const StepResult result = read_step(backend_, step_memory_);
  Row row{.kind = "step", .img_per_s = sums.images / seconds};
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
  dynamics_->add_to(row);
  return row;
}

Accuracy Trainer::evaluate(const BatchSource& source, int classes, const std::vector<View>& views) {
  return net_.evaluate(source, config_.train.eval_batch_size, classes, views, nullptr, [this] {
    if (stop_ && stop_()) throw GivenUp{};
  });
}

Row Trainer::epoch_row(double seconds) {
  Row row{.kind = "epoch"};
  row.values = {{"train/loss", at_.epoch_sums.mean_loss()}, {"train/acc", at_.epoch_sums.mean_correct()}};
  row.img_per_s = (at_.epoch_sums.images - std::exchange(images_before_, 0)) / seconds;
  const auto measure = [&](const char* loss, const char* acc) {
    const Accuracy val = evaluate(*val_, data_.train.classes);
    if (!std::isfinite(val.loss))
      throw Diverged(fmt::format("training diverged: the loss on the validation images is {} after epoch {}. Use {}",
                                 std::fabs(val.loss), at_.epoch + 1, shorter_steps(config_)),
                     {.step = at_.step - 1,
                      .epoch = at_.epoch,
                      .loss = val.loss,
                      .where = "the validation images",
                      .tensors = look_at_weights(backend_, net_.params()),
                      .steps = last_steps()});
    row.values.insert(row.values.end(), {{loss, val.loss}, {acc, val.acc}});
  };
  if (val_) {
    measure("val/loss", "val/acc");
    if (updater_.has_average())
      updater_.with_average(at_.step - last_result().skipped, [&] { measure("val/ema_loss", "val/ema_acc"); });
  }
  row.values.emplace_back("lr", learning_rate(at_.step - 1));
  dynamics_->add_update_ratios(row);
  row.hash = state_hash();
  return row;
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
    if (over || at_.epoch + 1 == config_.train.epochs) exchange_best();
  }
  ++at_.epoch;
  at_.in_epoch = 0;
  at_.epoch_sums = {};
  if (size_t(at_.phase) < config_.phases.size() && config_.phases[size_t(at_.phase)].plateau > 0)
    at_.phase_watch.update(row["val/loss"], false, at_.epoch);
  if (!over && at_.epoch < config_.train.epochs) begin_next_epoch();
  return over;
}

bool Trainer::end_with_best() {
  if (config_.train.patience == 0 || at_.best_in_use || at_.step == 0 || at_.epoch < config_.train.epochs) return false;
  exchange_best();
  return true;
}

void Trainer::continue_epochs() {
  if (at_.step == 0 || at_.in_epoch != 0 || at_.epoch >= config_.train.epochs || at_.stopped) return;
  if (at_.best_in_use) {
    exchange_best();
    updater_.restored(int(at_.phase), at_.update_start);  // a skipped step goes back to these buffers
  }
  begin_next_epoch();
}

// In the phase that is due, unless one has just begun.
void Trainer::begin_next_epoch() {
  if (size_t(at_.phase) < config_.phases.size() && at_.phase_epoch < at_.epoch) {
    const PhaseConfig& next = config_.phases[size_t(at_.phase)];
    if (next.plateau > 0 ? at_.phase_watch.waited >= next.plateau : at_.epoch >= next.epoch)
      enter_phase(at_.phase + 1, false);
  }
  begin_epoch();
}

// The weights of early stopping's best epoch come into use, and the last ones into their place; or back.
void Trainer::exchange_best() {
  const auto exchange = [&](const Tensor& a, const Tensor& b) {
    const Tensor kept = room_for(backend_, a);
    backend_.copy(a, b);
    backend_.copy(b, kept);
  };
  exchange(net_.params().flat().master, best_);
  exchange(net_.params().flat().buffers, best_buffers_);
  at_.best_in_use = !at_.best_in_use;
}

Row Trainer::test_row() {
  const Images test = data_.test();
  const BatchSource source = upload_source(backend_, test, config_.data.mean, config_.data.std);
  Row row{.kind = "test"};
  const auto measure = [&](const std::string& prefix, const std::vector<View>& views) {
    const Accuracy a = evaluate(source, test.classes, views);
    if (!std::isfinite(a.loss))
      throw Diverged(fmt::format("training diverged: the loss on the test images is {}", std::fabs(a.loss)),
                     {.step = at_.step - 1,
                      .epoch = at_.epoch,
                      .loss = a.loss,
                      .where = "the test images",
                      .tensors = look_at_weights(backend_, net_.params()),
                      .steps = last_steps()});
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
  p.plateau = plateau_ ? plateau_->state() : PlateauState{};  // that of a phase before is over
  if (smooth_) p.smooth = smooth_->state();
  p.result = read_step(backend_, step_memory_);
  p.totals.resize(3);
  backend_.download(p.totals.data(), totals_);
  const Tensor& last = at_.best_in_use ? best_ : net_.params().flat().master;
  p.directions = row_due(1) ? dynamics_->directions(at_.step, last) : "";
  p.update_ratios = at_.in_epoch == steps_per_epoch_ ? dynamics_->update_ratios() : std::vector<double>();
  p.trace = read_trace(backend_, step_memory_);
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
  // These become indices: a state that was made to be wrong must not get that far.
  // An epoch whose last step is done is not over before it is evaluated.
  const int64_t begun = p.in_epoch == steps_per_epoch_ ? p.step - 1 : p.step;
  if (begun / steps_per_epoch_ != p.epoch || begun % steps_per_epoch_ != p.in_epoch - (p.step - begun) || p.phase < 0 ||
      size_t(p.phase) > config_.phases.size())
    fail(Exit::checkpoint,
         "step = {}, epoch = {}, in_epoch = {} and phase = {} do not fit together in this config: an epoch has {} "
         "steps, "
         "and there are {} phases after the first",
         p.step, p.epoch, p.in_epoch, p.phase, steps_per_epoch_, config_.phases.size());
  const int64_t least = p.phase > 0 ? 1 : 0, most = p.phase > 0 ? p.epoch : 0;
  if (p.phase_epoch < least || p.phase_epoch > most || p.phase_step / steps_per_epoch_ != p.phase_epoch ||
      p.phase_step % steps_per_epoch_ != 0 || p.update_start > p.phase_step)
    fail(Exit::checkpoint,
         "phase = {}, phase_epoch = {}, phase_step = {} and update_start = {} do not fit together: an epoch has {} "
         "steps",
         p.phase, p.phase_epoch, p.phase_step, p.update_start, steps_per_epoch_);
  if ((p.stopped || p.best_in_use) && !best_)
    fail(Exit::checkpoint, "'stopped' or 'best_in_use' is true, but this config has no train.patience");
  if ((p.stopped || p.best_in_use) && p.in_epoch != 0)
    fail(Exit::checkpoint, "'stopped' or 'best_in_use' is true in the middle of an epoch");
  if (!p.update_ratios.empty() && p.in_epoch != steps_per_epoch_)
    fail(Exit::checkpoint, "'update_ratios' has numbers, expected none but behind the last step of an epoch");
  at_ = p;
  images_before_ = p.epoch_sums.images;
  updater_.restored(int(p.phase), p.update_start);
  enter_phase(p.phase, true);
  if (plateau_) plateau_->restore(p.plateau);
  if (smooth_) smooth_->restore(p.smooth);
  write_result(backend_, step_memory_, p.result);
  write_trace(backend_, step_memory_, p.trace);
  dynamics_->restore(p.step, p.directions, p.update_ratios);
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
