#include "linnet/tensorboard.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/crc.hpp>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>

#include "linnet/config.h"
#include "proto/tensorboard.pb.h"  // made of proto/tensorboard.proto

namespace linnet {

namespace pb = tensorboard;

namespace {

constexpr int kBuckets = 64;
constexpr int kStrings = 7;  // TensorFlow's DT_STRING

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

std::string little_endian(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += char(value >> (8 * i));
  return out;
}

// CRC-32C, rotated and shifted as TensorFlow does, so that the checksum of a text that holds checksums is of use.
std::string masked_crc(std::string_view bytes) {
  boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> crc;
  crc.process_bytes(bytes.data(), bytes.size());
  const uint32_t c = crc.checksum();
  return little_endian(((c >> 15) | (c << 17)) + 0xa282ead8u, 4);
}

// Of a flat tensor's finite elements; the ranges of the buckets are equal.
pb::Histogram histogram(std::span<const float> values) {
  pb::Histogram h;
  double low = INFINITY, high = -INFINITY, sum = 0, squares = 0, count = 0;
  for (const float v : values) {
    if (!std::isfinite(v)) continue;
    low = std::min(low, double(v));
    high = std::max(high, double(v));
    sum += v;
    squares += double(v) * v;
    ++count;
  }
  if (count == 0) return h;
  h.set_min(low);
  h.set_max(high);
  h.set_num(count);
  h.set_sum(sum);
  h.set_sum_squares(squares);
  const double width = high > low ? (high - low) / kBuckets : 1;
  std::vector<double> buckets(kBuckets, 0.0);
  for (const float v : values)
    if (std::isfinite(v)) ++buckets[size_t(std::min<double>(kBuckets - 1, (v - low) / width))];
  for (int i = 0; i < kBuckets; ++i) {
    h.add_bucket_limit(low + width * (i + 1));
    h.add_bucket(buckets[size_t(i)]);
  }
  return h;
}

void add_text(pb::Summary& summary, const std::string& tag, const std::string& text) {
  pb::Summary::Value& value = *summary.add_value();
  value.set_tag(tag);
  value.mutable_metadata()->mutable_plugin_data()->set_plugin_name("text");
  value.mutable_tensor()->set_dtype(kStrings);
  value.mutable_tensor()->mutable_tensor_shape()->add_dim()->set_size(1);
  value.mutable_tensor()->add_string_val(text);
}

void add_hparams(pb::Summary& summary, const std::string& tag, const pb::HParams& hparams) {
  pb::Summary::Value& value = *summary.add_value();
  value.set_tag(tag);
  pb::SummaryMetadata::PluginData& data = *value.mutable_metadata()->mutable_plugin_data();
  data.set_plugin_name("hparams");
  data.set_content(hparams.SerializeAsString());
}

pb::HParams::Value value_of(const std::string& text) {
  pb::HParams::Value value;
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && end == text.data() + text.size())
    value.set_number_value(number);
  else if (text == "true" || text == "false")
    value.set_bool_value(text == "true");
  else
    value.set_string_value(text.starts_with('"') ? text.substr(1, text.size() - 2) : text);
  return value;
}

// What a config says beside the defaults, and the keys that every comparison needs.
pb::HParams hparams_of(const Config& config) {
  pb::HParams hparams;
  auto& keys = *hparams.mutable_session_start_info()->mutable_hparams();
  hparams.mutable_session_start_info()->set_start_time_secs(now());
  for (const ConfigChange& c : differences(Config{}, config)) keys[c.key] = value_of(c.to);
  keys["model.name"] = value_of(config.model.name);
  keys["optimizer.name"] = value_of(config.optimizer.name);
  keys["optimizer.lr"].set_number_value(config.optimizer.lr);
  keys["train.batch_size"].set_number_value(double(config.train.batch_size));
  keys["train.seed"].set_number_value(double(config.train.seed));
  return hparams;
}

}  // namespace

std::string tfrecord(std::string_view bytes) {
  const std::string length = little_endian(bytes.size(), 8);
  return length + masked_crc(length) + std::string(bytes) + masked_crc(bytes);
}

TensorBoard::TensorBoard(const std::filesystem::path& run, const Trainer& trainer)
    : first_step_(trainer.global_step()), last_step_(trainer.global_step()) {
  const std::filesystem::path folder = run / "tensorboard";
  std::error_code error;
  std::filesystem::create_directory(folder, error);
  char host[256] = "localhost";
  gethostname(host, sizeof host - 1);
  // TensorBoard reads the files of a folder in the order of their names: the time has ten digits until 2286.
  const auto seconds = int64_t(now());
  for (int n = 0;; ++n) {
    path_ = folder / fmt::format("events.out.tfevents.{:010}.{}.{}.{}", seconds, host, ::getpid(), n);
    if (!std::filesystem::exists(path_, error)) break;
  }
  file_.open(path_, std::ios::binary);
  pb::Event version;
  version.set_file_version("brain.Event:2");
  write(version, 0);
  if (last_step_ > 0) {
    start_from(last_step_ + 1);
    return;
  }
  pb::Event event;
  add_text(*event.mutable_summary(), "config", "```toml\n" + to_toml(trainer.config()) + "\n```");
  add_hparams(*event.mutable_summary(), "_hparams_/session_start_info", hparams_of(trainer.config()));
  write(event, 0);
}

void TensorBoard::start_from(int64_t step) {
  pb::Event event;
  event.mutable_session_log()->set_status(pb::SessionLog::START);
  write(event, step);
}

void TensorBoard::write(pb::Event& event, int64_t step) {
  event.set_wall_time(now());
  event.set_step(step);
  errno = 0;  // a stream says only that it failed
  file_ << tfrecord(event.SerializeAsString()) << std::flush;
  if (!file_)
    fail(Exit::checkpoint, "cannot write {}: {}; set log.tensorboard = false to do without it", path_.string(),
         errno == 0 ? "it cannot be opened" : std::generic_category().message(errno));
}

void TensorBoard::on_row(const Row& row) {
  if (row.step < last_step_) start_from(row.step);  // the run went back to a checkpoint
  last_step_ = row.step;
  pb::Event event;
  const auto add = [&](const std::string& tag, double value) {
    pb::Summary::Value& v = *event.mutable_summary()->add_value();
    v.set_tag(tag);
    v.set_simple_value(float(value));
  };
  // The mean over an epoch is another curve than that over the last few steps.
  for (const auto& [name, value] : row.values) add(row.kind == "step" ? "step/" + name : name, value);
  if (row.img_per_s > 0) add(row.kind == "step" ? "step/img_per_s" : "img_per_s", row.img_per_s);
  if (row.kind == "test") {
    pb::HParams end;
    end.mutable_session_end_info()->set_status(1);
    end.mutable_session_end_info()->set_end_time_secs(now());
    add_hparams(*event.mutable_summary(), "_hparams_/session_end_info", end);
  }
  write(event, row.kind == "test" ? row.step + 1 : row.step);  // a run that goes on takes its test row back
}

void TensorBoard::on_boundary(Trainer& trainer, bool epoch_done) {
  if (!epoch_done) return;
  Backend& backend = trainer.net().backend();
  pb::Event event;
  const std::vector<float> gradient = trainer.gradient();
  std::vector<float> values;
  const auto add = [&](const std::string& tag) {
    pb::Summary::Value& v = *event.mutable_summary()->add_value();
    v.set_tag(tag);
    *v.mutable_histo() = histogram(values);
  };
  const bool has_gradient = trainer.global_step() > first_step_;  // else it was another sitting's
  for (const Param* p : trainer.net().params().params()) {
    values.resize(size_t(p->master.numel()));
    backend.download(values.data(), p->master);
    add("weights/" + p->name);
    if (!has_gradient) continue;
    const float* of_param = gradient.data() + p->offset;
    values.assign(of_param, of_param + p->shape.numel());
    add("gradients/" + p->name);
  }
  write(event, trainer.global_step());
}

void TensorBoard::add_image(const std::string& tag, int64_t step, int height, int width, int channels,
                            const uint8_t* pixels) {
  pb::Event event;
  pb::Summary::Value& value = *event.mutable_summary()->add_value();
  value.set_tag(tag);
  value.mutable_image()->set_height(height);
  value.mutable_image()->set_width(width);
  value.mutable_image()->set_colorspace(channels);
  value.mutable_image()->set_encoded_image_string(to_png(pixels, height, width, channels));
  write(event, step);
}

void TensorBoard::add_samples(const Images& images) {
  constexpr int kSide = 4;
  const size_t row = size_t(images.width) * size_t(images.channels), wide = kSide * row;
  std::vector<uint8_t> grid(wide * size_t(images.height) * kSide);
  for (int64_t n = 0; n < std::min<int64_t>(kSide * kSide, images.size()); ++n)
    for (int y = 0; y < images.height; ++y)
      std::copy_n(images.pixels.data() + n * images.image_bytes() + y * int64_t(row), row,
                  grid.data() + size_t(n / kSide * images.height + y) * wide + size_t(n % kSide) * row);
  add_image("samples", 0, kSide * images.height, kSide * images.width, images.channels, grid.data());
}

void TensorBoard::add_confusion(const std::vector<Prediction>& predictions, int classes, int64_t step) {
  const auto c = size_t(classes);
  std::vector<double> counts(c * c), of_label(c);
  for (const Prediction& p : predictions) {
    ++counts[size_t(p.label) * c + size_t(p.predicted)];
    ++of_label[size_t(p.label)];
  }
  const size_t cell = std::max<size_t>(1, 200 / c), side = cell * c;  // in pixels
  std::vector<uint8_t> grey(side * side);
  for (size_t y = 0; y < side; ++y)
    for (size_t x = 0; x < side; ++x) {
      const size_t label = y / cell;
      grey[y * side + x] = uint8_t(255 - 255 * counts[label * c + x / cell] / std::max(1.0, of_label[label]));
    }
  add_image("confusion", step, int(side), int(side), 1, grey.data());
}

}  // namespace linnet
