// A model ready to run, its data on the device, and its evaluation.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>

#include "linnet/pack.h"
#include "linnet/trainer.h"

namespace linnet {

namespace {

Tensor upload(Backend& backend, const Shape& shape, DType dtype, const void* data) {
  Tensor t(backend.allocate(size_t(shape.numel()) * size_of(dtype)), shape, dtype);
  backend.upload(t, data);
  return t;
}

// The test images are read at the start, to see that they can be, and at the end: they must be the same then.
std::function<Images()> unchanged(const std::function<Images()>& load) {
  return [load, first = std::make_shared<std::string>()] {
    Images images = load();
    const std::string now = digest(images);
    if (first->empty()) *first = now;
    if (now != *first)
      fail(Exit::data, "the test images changed while the run went on: their XXH3 was {}, and now it is {}", *first,
           now);
    return images;
  };
}

}  // namespace

namespace {

// One of the two CIFARs, whose test images lie in a file of their own.
RunData load_cifar(const Config& config, const char* title, std::filesystem::path (*find)(const std::filesystem::path&),
                   const std::function<Images(const std::filesystem::path&, Split)>& load) {
  const std::filesystem::path path = find(config.data.path);
  if (path.empty())
    fail(Exit::data,
         "{} is not on this machine. Download it with `linnet data get {}`, name the folder that holds it in "
         "$LINNET_DATA or data.path, or train on generated images with --set data.name=synthetic",
         title, config.data.name);
  RunData data;
  data.train = load(path, Split::train);
  data.test = unchanged([=] { return load(path, Split::test); });
  return data;
}

RunData load_synthetic(const Config& config) {
  const int64_t samples = config.data.samples;
  const int size = int(config.data.image_size);
  RunData data;
  data.train = make_synthetic(samples, Split::train, 0, size);
  data.test = [=] { return make_synthetic(std::max<int64_t>(10, samples / 5), Split::test, 0, size); };
  return data;
}

// A data set that is read whole; the test images stay in memory.
RunData all_of(DataSet set) {
  RunData data{.train = std::move(set.train), .val = std::move(set.val)};
  data.notes = notes_of(set);
  data.test = [test = std::make_shared<const Images>(std::move(set.test))] { return *test; };
  return data;
}

RunData load_source(const Config& config) {
  const std::string& name = config.data.name;
  if (name == "synthetic") return load_synthetic(config);
  if (name == "cifar10") return load_cifar(config, "CIFAR-10", find_cifar10, load_cifar10);
  if (name == "cifar100")
    return load_cifar(
        config, "CIFAR-100", find_cifar100,
        [coarse = config.data.labels == "coarse"](auto path, Split s) { return load_cifar100(path, s, coarse); });
  if (config.data.path.empty())
    fail(Exit::usage, "data.name = \"{}\" needs data.path: the {}", name,
         name == "pack" ? "file that `linnet data pack` wrote" : "folder with a folder of pictures per class");
  if (name == "folder") return all_of(load_image_folder(config.data.path, folder_options(config)));
  return all_of(read_pack(config.data.path).set);
}

}  // namespace

FolderOptions folder_options(const Config& config) {
  const auto& d = config.data;
  return {.form = {int(d.image_size), int(d.channels), d.fit == "crop"},
          .val_share = d.val_share,
          .test_share = d.test_share,
          .skip_corrupt = d.corrupt == "skip",
          .trusted = d.trusted};
}

std::vector<std::string> notes_of(const DataSet& set) {
  std::vector<std::string> notes;
  for (const BadImage& bad : set.skipped) notes.push_back("skipped: " + bad.reason);
  if (!set.skipped.empty()) notes.push_back(fmt::format("{} pictures skipped in all", set.skipped.size()));
  if (set.passed_over > 0) notes.push_back(fmt::format("{} files passed over: no .png, .jpg, .jpeg", set.passed_over));
  return notes;
}

RunData load_run_data(Config& config) {
  RunData data = load_source(config);
  if (config.data.name != "folder" && config.data.name != "pack") {
    const Images all = std::move(data.train);
    const HoldOut split = hold_out(all.size(), config.data.val);
    data.train = subset(all, split.train);
    data.val = subset(all, split.val);
  } else if (data.val.size() == 0 && (config.train.patience > 0 || config.schedule.name == "plateau")) {
    fail(Exit::data, "{} has no validation images, and early stopping or the plateau schedule needs some",
         config.data.path);
  } else if (data.test().size() == 0) {
    fail(Exit::data, "{} has no test images; add a folder test/, or raise data.test_share", config.data.path);
  }
  if (const int64_t n = data.train.size(), limit = config.data.limit; limit > n)
    fail(Exit::usage, "data.limit = {} is more than the {} training images; 0 takes all", limit, n);
  else if (limit > 0 && limit < n)
    data.train = subset(data.train, hold_out(n, limit).val);
  if (config.data.mean.empty()) {
    const ChannelStats stats = channel_stats(data.train);
    config.data.mean.assign(stats.mean.begin(), stats.mean.end());
    config.data.std.assign(stats.std.begin(), stats.std.end());
    if (std::ranges::find(config.data.std, 0) != config.data.std.end())
      fail(Exit::data,
           "a colour channel has the same value in every pixel of the training images; check the data, or set "
           "data.mean and data.std");
  }
  if (int64_t(config.data.mean.size()) != data.train.channels || config.data.std.size() != config.data.mean.size())
    fail(Exit::usage, "data.mean and data.std need one number for each of the {} channels, got {} and {}",
         data.train.channels, config.data.mean.size(), config.data.std.size());
  return data;
}

DType precision_of(const Config& config, const Backend& backend) {
  if (config.train.precision == "auto") return backend.best_precision();
  if (config.train.precision == "fp16") return DType::fp16;
  return config.train.precision == "bf16" ? DType::bf16 : DType::f32;
}

BackendOptions backend_options(const Config& config) {
  const auto& t = config.train;
  const ConvMethod conv = t.conv == "direct"     ? ConvMethod::direct
                          : t.conv == "winograd" ? ConvMethod::winograd
                                                 : ConvMethod::fastest;
  return {conv, t.tf32, t.deterministic, t.autotune};
}

// A gradient's small numbers get lost below 2^-24 in fp16; 1024 is far enough from both of its ends for ResNets.
double loss_scale_of(const Config& config) {
  if (config.train.loss_scale > 0) return config.train.loss_scale;
  return config.train.precision == "fp16" ? 1024 : 1;
}

BatchSource upload_source(Backend& backend, const Images& images, const std::vector<double>& mean,
                          const std::vector<double>& std) {
  const MemoryFor what("images (data.samples, data.image_size)");
  const int64_t n = images.size(), channels = images.channels;
  std::vector<float> table(size_t(256 * channels));
  for (int64_t v = 0; v < 256; ++v)
    for (int64_t c = 0; c < channels; ++c)
      table[size_t(v * channels + c)] = float((double(v) / 255 - mean[size_t(c)]) / std[size_t(c)]);
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  BatchSource source;
  source.images = upload(backend, {n, images.height, images.width, channels}, DType::u8, images.pixels.data());
  source.labels = upload(backend, {n}, DType::i32, images.labels.data());
  source.order = upload(backend, {n}, DType::i32, order.data());
  source.table = upload(backend, {256, channels}, DType::f32, table.data());
  return source;
}

ModelOptions model_options(const Config& config, const Images& like) {
  return {like.height, like.width, like.channels, like.classes, config.model.shortcut[0], float(config.model.dropout)};
}

Net::Net(Backend& backend, const std::string& model, const ModelOptions& options, uint64_t seed, const Layout& layout)
    : backend_(backend), type_(layout.compute), pool_(backend), model_(make_model(model, params_, options)) {
  params_.seal(backend, seed, layout);
}

Tensor Net::forward(Pass& pass, const Tensor& x) {
  params_.round(backend_);  // every time, whoever has changed the masters: it costs a thousandth of a step
  return model_->forward(pass, x);
}

// Calls f with the logits of each batch, the mean over the views; of the last batch only `images` rows count.
void Net::each_batch(const BatchSource& given, int64_t batch_size, const std::vector<View>& views,
                     const std::function<void()>& before_batch,
                     const std::function<void(const Tensor&, const Tensor&, int64_t)>& f) {
  BatchSource source = given;
  source.augment = {.padding = given.augment.padding};
  const int64_t n = source.order.numel();
  batch_size = std::min(batch_size, std::max<int64_t>(n, 1));
  const Shape image = source.images.shape();
  const Tensor step = make_step(backend_), share = pool_.empty({1}, DType::f32);
  const float one_of = 1.f / float(views.size());
  backend_.upload(share, &one_of);
  for (int64_t first = 0; first < n; first += batch_size) {
    if (before_batch) before_batch();
    Tensor batch = pool_.empty({batch_size, image[1], image[2], image[3]}, type_);
    Tensor batch_labels = pool_.empty({batch_size}, DType::i32);
    Tensor draws = pool_.empty({batch_size, kDrawWords}, DType::i32);
    write_step(backend_, step, {.first = first});
    Pass pass{backend_, pool_};
    Tensor logits;
    for (const View& view : views) {
      source.view = view;
      backend_.make_batch(batch, batch_labels, draws, source, step, 0);  // past the end: label -1
      const Tensor out = forward(pass, batch);
      const Tensor of_view = pool_.empty(out.shape(), DType::f32);
      backend_.cast(of_view, out);
      logits = logits ? add(pass, logits, of_view) : of_view;
    }
    if (views.size() > 1) backend_.scale_by(logits, logits, share);
    f(logits, batch_labels, std::min(batch_size, n - first));
  }
}

namespace {

// The first of the largest logits, and its softmax.
Prediction predict(std::span<const float> logits, int32_t label) {
  const auto largest = std::ranges::max_element(logits);
  double sum = 0;
  for (const float z : logits) sum += std::exp(double(z) - double(*largest));
  return {label, int32_t(largest - logits.begin()), float(1 / sum)};
}

void append_rows(std::vector<float>& all, Backend& backend, const Tensor& logits, int64_t rows) {
  std::vector<float> batch(size_t(logits.numel()));
  backend.download(batch.data(), logits);
  all.insert(all.end(), batch.begin(), batch.begin() + rows * logits.dim(1));
}

}  // namespace

Accuracy Net::evaluate(const BatchSource& source, int64_t batch_size, int classes, const std::vector<View>& views,
                       std::vector<float>* kept, const std::function<void()>& before_batch) {
  std::vector<float> stats, outputs;
  std::vector<int32_t> labels;
  std::vector<double> right(size_t(classes), 0), count(size_t(classes), 0);
  Accuracy result;
  each_batch(source, batch_size, views, before_batch,
             [&](const Tensor& logits, const Tensor& batch_labels, int64_t images) {
               Pass pass{backend_, pool_};
               const Loss loss = softmax_cross_entropy(pass, logits, batch_labels, 0, 1);
               stats.resize(size_t(loss.stats.numel()));
               labels.resize(size_t(batch_labels.numel()));
               backend_.download(stats.data(), loss.stats);
               backend_.download(labels.data(), batch_labels);
               outputs.clear();
               append_rows(outputs, backend_, logits, images);
               for (int64_t i = 0; i < images; ++i) {
                 const auto label = size_t(labels[size_t(i)]);
                 result.loss += double(stats[size_t(i * 2)]);
                 right[label] += double(stats[size_t(i * 2 + 1)]);
                 count[label] += 1;
                 const auto of_image = std::span(outputs).subspan(size_t(i) * size_t(classes), size_t(classes));
                 result.predictions.push_back(predict(of_image, labels[size_t(i)]));
               }
               if (kept) kept->insert(kept->end(), outputs.begin(), outputs.end());
             });
  result.n = source.order.numel();
  for (size_t c = 0; c < size_t(classes); ++c) {
    result.acc += right[c];
    result.per_class.push_back(count[c] > 0 ? right[c] / count[c] : std::numeric_limits<double>::quiet_NaN());
  }
  result.loss /= double(result.n);
  result.acc /= double(result.n);
  return result;
}

std::vector<float> Net::logits(const BatchSource& source, int64_t batch_size) {
  std::vector<float> all;
  each_batch(source, batch_size, {View{}}, {},
             [&](const Tensor& logits, const Tensor&, int64_t images) { append_rows(all, backend_, logits, images); });
  return all;
}

std::vector<View> test_views(const std::string& tta) {
  if (tta == "none") return {View{}};
  std::vector<std::pair<int, int>> shifts = {{0, 0}};
  if (tta == "flip_shift") shifts.insert(shifts.end(), {{-1, -1}, {1, 1}});
  std::vector<View> views;
  for (const auto& [dx, dy] : shifts)
    for (const bool flip : {false, true}) views.push_back({flip, dx, dy});
  return views;
}

}  // namespace linnet
