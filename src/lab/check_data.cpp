// The checks `data` and `batch`: what the net is given.
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string_view>

#include "linnet/text.h"
#include "src/core/digest.h"
#include "src/lab/checks.h"

namespace linnet {

namespace {

std::string_view pixels_of(const Images& images, int64_t i) {
  const auto bytes = size_t(images.image_bytes());
  return {reinterpret_cast<const char*>(images.pixels.data()) + size_t(i) * bytes, bytes};
}

bool is_constant(std::string_view pixels) { return pixels.find_first_not_of(pixels.front()) == std::string_view::npos; }

// Where an image was first seen, by its bytes.
using Seen = std::map<std::string, int64_t>;

constexpr size_t kExamples = 3;  // of images with a fault

struct Scan {
  int64_t constant = 0, twice = 0, contradicting = 0;  // twice: seen within the split before
  std::vector<std::string> examples;                   // of those under two labels
};

std::string class_name(const Images& images, size_t label) {
  return label < images.class_names.size() ? escaped(images.class_names[label], 20) : std::to_string(label);
}
std::string class_of(const Images& images, int64_t i) { return class_name(images, size_t(images.labels[size_t(i)])); }

// " (such as ...; ...)"; nothing where there are none.
std::string list_of(const std::vector<std::string>& examples) {
  return examples.empty() ? "" : fmt::format(" (such as {})", fmt::join(examples, "; "));
}

Scan scan(const Images& images, Seen& seen) {
  Scan s;
  for (int64_t i = 0; i < images.size(); ++i) {
    const std::string_view pixels = pixels_of(images, i);
    s.constant += is_constant(pixels);
    const auto [at, fresh] = seen.emplace(xxh3(pixels), i);
    s.twice += !fresh;
    if (fresh || images.labels[size_t(at->second)] == images.labels[size_t(i)]) continue;
    if (++s.contradicting <= int64_t(kExamples))
      s.examples.push_back(
          fmt::format("image {}, {}, and {}, {}", at->second, class_of(images, at->second), i, class_of(images, i)));
  }
  return s;
}

// Of images of `b` that are in `a`: how many, and some of them.
std::pair<int64_t, std::vector<std::string>> shared_images(const Seen& a, const std::string& name_a, const Seen& b,
                                                           const std::string& name_b) {
  std::vector<std::pair<int64_t, int64_t>> both;  // places in b and in a
  for (const auto& [key, at] : b)
    if (const auto found = a.find(key); found != a.end()) both.emplace_back(at, found->second);
  std::ranges::sort(both);
  std::vector<std::string> examples;
  for (size_t i = 0; i < std::min(both.size(), kExamples); ++i)
    examples.push_back(fmt::format("image {} of {} is {} of {}", both[i].first, name_b, both[i].second, name_a));
  return {int64_t(both.size()), examples};
}

}  // namespace

CheckResult check_data(const Subject& s) {
  const Images test = s.data.test();
  const std::pair<const char*, const Images*> splits[] = {
      {"train", &s.data.train}, {"val", &s.data.val}, {"test", &test}};
  std::string picture, faults;
  const auto fault = [&](const std::string& text) { faults += (faults.empty() ? "" : "; ") + text; };
  Seen seen[3];
  for (size_t k = 0; k < 3; ++k) {
    const auto& [name, images] = splits[k];
    if (images->size() == 0) continue;
    const Scan found = scan(*images, seen[k]);
    picture += fmt::format("{:<6}{:>7} images, {} constant, {} twice, {} of them under two labels\n", name,
                           images->size(), found.constant, found.twice, found.contradicting);
    if (found.constant * 100 > images->size()) fault(fmt::format("{} constant images in {}", found.constant, name));
    if (found.contradicting * 100 > images->size())
      fault(fmt::format("{} of {} are there again with another label{}", counted(found.contradicting, "image"), name,
                        list_of(found.examples)));
  }
  for (const auto& [a, b] : {std::pair{0, 1}, std::pair{0, 2}, std::pair{1, 2}}) {
    const auto [shared, examples] = shared_images(seen[a], splits[a].first, seen[b], splits[b].first);
    if (shared == 0) continue;
    const std::string text = fmt::format("{} of {} {} in {}, too{}", counted(shared, "image"), splits[b].first,
                                         shared == 1 ? "is" : "are", splits[a].first, list_of(examples));
    picture += text + "\n";
    if (shared * 100 > splits[b].second->size()) fault(text);  // a few of them move no result
  }

  std::vector<int64_t> of_class(size_t(s.data.train.classes), 0);
  for (const int32_t label : s.data.train.labels) ++of_class[size_t(label)];
  std::vector<Bar> bars;
  for (size_t c = 0; c < of_class.size() && c < 20; ++c)
    bars.push_back({class_name(s.data.train, c), double(of_class[c])});
  picture += draw_bars(bars, s.terminal);
  const auto [fewest, most] = std::ranges::minmax(of_class);
  if (fewest == 0) fault("a class has no training image");
  if (fewest > 0 && most > 20 * fewest)
    fault(fmt::format("the largest class has {} training images and the smallest {}", most, fewest));
  for (const double v : s.config.data.std)
    if (!(v > 0) || !std::isfinite(1 / v)) fault("data.std is not above 0");
  return verdict(faults.empty(),
                 faults.empty() ? fmt::format("{} to {} training images a class", fewest, most) : faults, picture);
}

namespace {

constexpr int kAcross = 4, kDown = 2, kNarrowest = 12;  // images; characters that show what is in one

// A pixel of an image of `to` x `to_height` pixels made from a larger one: the mean of those that it covers.
std::array<int, 3> shrunk_pixel(const std::vector<uint8_t>& rgb, int width, int height, int to, int to_height, int x,
                                int y) {
  const int x0 = x * width / to, x1 = std::max(x0 + 1, (x + 1) * width / to);
  const int y0 = y * height / to_height, y1 = std::max(y0 + 1, (y + 1) * height / to_height);
  std::array<int, 3> sum{};
  for (int r = y0; r < y1; ++r)
    for (int c = x0; c < x1; ++c)
      for (size_t k = 0; k < 3; ++k) sum[k] += rgb[3 * (size_t(r) * size_t(width) + size_t(c)) + k];
  for (int& s : sum) s /= (x1 - x0) * (y1 - y0);
  return sum;
}

}  // namespace

// Two pixels a character: the upper one is the half block's colour, the lower one the background's. Plain: a grey
// scale.
std::string draw_images(const std::vector<std::vector<uint8_t>>& rgb, int width, int height, const Terminal& terminal,
                        bool colours) {
  const bool blocks = terminal.utf8 && colours;
  const int columns = std::max(terminal.columns, 1);
  const int across = std::clamp((columns + 1) / (kNarrowest + 1), 1, kAcross);
  const int wide = std::max(1, std::min(width, (columns - (across - 1)) / across));
  const int lines = std::max(1, wide * height / width / 2);
  std::string out;
  for (size_t first = 0; first < rgb.size() && first < size_t(kDown) * size_t(across); first += size_t(across)) {
    const size_t end = std::min(rgb.size(), first + size_t(across));
    if (first > 0) out += "\n";
    for (int line = 0; line < lines; ++line) {
      for (size_t n = first; n < end; ++n) {
        if (n > first) out += blocks ? "\x1b[0m " : " ";
        for (int x = 0; x < wide; ++x) {
          const auto a = shrunk_pixel(rgb[n], width, height, wide, 2 * lines, x, 2 * line);
          const auto b = shrunk_pixel(rgb[n], width, height, wide, 2 * lines, x, 2 * line + 1);
          if (blocks)
            out += fmt::format("\x1b[38;2;{};{};{};48;2;{};{};{}m▀", a[0], a[1], a[2], b[0], b[1], b[2]);
          else
            out += " .:-=+*#%@"[(a[0] + a[1] + a[2] + b[0] + b[1] + b[2]) * 9 / (6 * 255)];
        }
      }
      out += blocks ? "\x1b[0m\n" : "\n";
    }
  }
  return out;
}

CheckResult check_batch(const Subject& s) {
  constexpr int64_t kImages = 256;
  Config config = plain_config(s.config);
  config.train.batch_size = std::min(kImages, s.data.train.size());
  config.data.drop_last = false;
  config.train.precision = "f32";
  const RunData data = some_of(s.data.train, config.train.batch_size);
  config.train.batch_size = data.train.size();
  Trainer trainer(config, s.backend, data);
  trainer.step();
  const Tensor& batch = trainer.batch();
  const std::vector<float> x = on_host(s.backend, batch);
  const int height = data.train.height, width = data.train.width, channels = data.train.channels;

  double sum = 0, squares = 0;
  for (const float v : x) sum += double(v), squares += double(v) * double(v);
  const double mean = sum / double(x.size()), deviation = std::sqrt(squares / double(x.size()) - mean * mean);

  // Back in the colours that they had.
  const auto pixels = size_t(height) * size_t(width);
  std::vector<std::vector<uint8_t>> shown(size_t(std::min<int64_t>(kAcross * kDown, batch.dim(0))));
  for (size_t n = 0; n < shown.size(); ++n)
    for (size_t i = 0; i < pixels; ++i)
      for (int k = 0; k < 3; ++k) {
        const auto channel = size_t(std::min(k, channels - 1));
        const double v = double(x[(n * pixels + i) * size_t(channels) + channel]) * config.data.std[channel] +
                         config.data.mean[channel];
        shown[n].push_back(std::isfinite(v) ? uint8_t(std::clamp(std::lround(v * 255), 0L, 255L)) : 0);
      }
  const bool finite = std::isfinite(mean) && std::isfinite(deviation);
  const bool sound = finite && std::fabs(mean) < 1 && deviation > 0.25 && deviation < 4;
  // What normalises them is at fault where it does not fit the images as they are; else augmentation is.
  const ChannelStats stats = channel_stats(data.train);
  bool fits = true;
  for (size_t c = 0; c < stats.mean.size(); ++c) {
    const double m = (double(stats.mean[c]) - config.data.mean[c]) / config.data.std[c];
    const double d = double(stats.std[c]) / config.data.std[c];
    fits = fits && std::fabs(m) < 1 && d > 0.25 && d < 4;
  }
  return verdict(sound,
                 fmt::format("{} augmented images: mean {:.3f}, deviation {:.3f}", batch.dim(0), mean, deviation),
                 draw_images(shown, width, height, s.terminal, s.colours),
                 fits ? "weaken [augment] until a person knows the classes"
                      : "data.mean and data.std do not fit these images: leave them out, and they are measured");
}

}  // namespace linnet
