#include "linnet/calibration.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "linnet/error.h"
#include "src/core/digest.h"
#include "src/core/file.h"
#include "src/core/json.h"

namespace linnet {

namespace {

constexpr double kColdest = 0.05, kHottest = 20;
constexpr int kBins = 15;

size_t classes_of(std::span<const float> logits, std::span<const int32_t> labels) {
  const size_t classes = labels.empty() ? 0 : logits.size() / labels.size();
  require(classes >= 2 && classes * labels.size() == logits.size() &&
              std::ranges::all_of(labels, [&](int32_t label) { return label >= 0 && size_t(label) < classes; }),
          "[calibration] expected logits [n, classes] and n labels below classes, got {} logits and {} labels",
          logits.size(), labels.size());
  return classes;
}

// log(sum(exp(row / temperature))), without overflow.
double log_sum(std::span<const float> row, double temperature) {
  const double top = double(*std::ranges::max_element(row));
  double sum = 0;
  for (const float z : row) sum += std::exp((double(z) - top) / temperature);
  return top / temperature + std::log(sum);
}

}  // namespace

std::vector<double> probabilities(std::span<const float> row, double temperature) {
  const double total = log_sum(row, temperature);
  std::vector<double> p;
  for (const float z : row) p.push_back(std::exp(double(z) / temperature - total));
  return p;
}

double mean_nll(std::span<const float> logits, std::span<const int32_t> labels, double temperature) {
  const size_t classes = classes_of(logits, labels);
  double sum = 0;
  for (size_t i = 0; i < labels.size(); ++i) {
    const auto row = logits.subspan(i * classes, classes);
    sum += log_sum(row, temperature) - double(row[size_t(labels[i])]) / temperature;
  }
  return sum / double(labels.size());
}

double calibration_error(std::span<const float> logits, std::span<const int32_t> labels, double temperature) {
  const size_t classes = classes_of(logits, labels);
  std::vector<double> confidence;
  std::vector<bool> right;
  for (size_t i = 0; i < labels.size(); ++i) {
    const auto p = probabilities(logits.subspan(i * classes, classes), temperature);
    const auto best = std::ranges::max_element(p);
    confidence.push_back(*best);
    right.push_back(best - p.begin() == labels[i]);
  }
  return calibration_error(confidence, right);
}

double calibration_error(std::span<const double> confidence, const std::vector<bool>& right) {
  require(!right.empty() && confidence.size() == right.size(),
          "[calibration] expected a confidence for each of at least one image, got {} for {}", confidence.size(),
          right.size());
  std::array<double, kBins> gap{};  // right answers minus expected ones
  for (size_t i = 0; i < right.size(); ++i) {
    const auto bin = size_t(std::clamp(int(std::ceil(confidence[i] * kBins)) - 1, 0, kBins - 1));
    gap[bin] += double(right[i]) - confidence[i];
  }
  double error = 0;
  for (const double g : gap) error += std::abs(g);
  return error / double(right.size());
}

double fit_temperature(std::span<const float> logits, std::span<const int32_t> labels) {
  // The mean is convex in 1 / T, hence has one minimum in log T: a golden-section search.
  constexpr double kGolden = 0.6180339887498949;
  double low = std::log(kColdest), high = std::log(kHottest);
  const auto at = [&](double log_t) { return mean_nll(logits, labels, std::exp(log_t)); };
  double left = high - kGolden * (high - low), right = low + kGolden * (high - low);
  double of_left = at(left), of_right = at(right);
  while (high - low > 1e-5) {
    if (of_left <= of_right) {
      high = std::exchange(right, left);
      of_right = of_left;
      of_left = at(left = high - kGolden * (high - low));
    } else {
      low = std::exchange(left, right);
      of_left = of_right;
      of_right = at(right = low + kGolden * (high - low));
    }
  }
  return std::exp((low + high) / 2);
}

std::string digest(const SafeTensors& weights) {
  std::string all;
  for (const auto& [name, tensor] : weights.tensors)
    all += fmt::format("{} {} {} {}\n", name, tensor.dtype, fmt::join(tensor.shape, ","),
                       xxh3({tensor.bytes.data(), tensor.bytes.size()}));
  return xxh3(all);
}

Calibration calibrate(std::span<const float> logits, std::span<const int32_t> labels, const SafeTensors& weights) {
  const double t = fit_temperature(logits, labels);
  return {.temperature = t,
          .images = int64_t(labels.size()),
          .nll_before = mean_nll(logits, labels),
          .nll_after = mean_nll(logits, labels, t),
          .ece_before = calibration_error(logits, labels),
          .ece_after = calibration_error(logits, labels, t),
          .weights = digest(weights)};
}

void write_calibration(const std::filesystem::path& run, const Calibration& c) {
  const Json json = {{"temperature", c.temperature},
                     {"split", "val"},
                     {"images", c.images},
                     {"nll", {{"before", c.nll_before}, {"after", c.nll_after}}},
                     {"ece", {{"before", c.ece_before}, {"after", c.ece_after}}},
                     {"weights", c.weights}};
  write_file_atomically(run / "calibration.json", json.dump(2) + "\n", Exit::checkpoint);
}

Calibration parse_calibration(const std::string& text, const std::string& origin) {
  const Json json = parse_json(text, origin, Exit::checkpoint);
  Calibration c;
  try {
    if (!json.at("images").is_number_integer()) fail(Exit::checkpoint, "{}: 'images' is no whole number", origin);
    c = {json.at("temperature"),
         json.at("images"),
         json.at("nll").at("before"),
         json.at("nll").at("after"),
         json.at("ece").at("before"),
         json.at("ece").at("after"),
         json.at("weights").get<std::string>()};
  } catch (const Json::exception& e) {
    fail(Exit::checkpoint, "{}: not what `linnet eval --calibrate` wrote: {}; run it again", origin, e.what());
  }
  if (!(c.temperature >= kColdest / 2 && c.temperature <= kHottest * 2))
    fail(Exit::checkpoint, "{}: expected a temperature from {} to {}, got {}; run `linnet eval --calibrate` again",
         origin, kColdest, kHottest, c.temperature);
  return c;
}

std::optional<Calibration> read_calibration(const std::filesystem::path& run) {
  const std::filesystem::path file = run / "calibration.json";
  std::error_code error;
  if (!std::filesystem::exists(file, error)) return {};
  return parse_calibration(read_file(file, 64 << 10, Exit::checkpoint), file.string());
}

}  // namespace linnet
