// How far a classifier's probabilities can be believed, and the temperature that makes them honest: Guo, Pleiss, Sun
// and Weinberger, "On Calibration of Modern Neural Networks", 2017. Logits are [n, classes], row by row; labels [n] in
// [0, classes).
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "linnet/safetensors.h"

namespace linnet {

// softmax(row / temperature).
std::vector<double> probabilities(std::span<const float> row, double temperature = 1);

// Mean negative log-likelihood of the labels under softmax(logits / temperature).
double mean_nll(std::span<const float> logits, std::span<const int32_t> labels, double temperature = 1);

// Expected calibration error over 15 equal bins of the largest probability: the mean of |accuracy - confidence| of the
// bins, weighted by their images (formula 3 of the paper). In [0, 1].
double calibration_error(std::span<const float> logits, std::span<const int32_t> labels, double temperature = 1);
// The same of each image's largest probability, and whether that class is right.
double calibration_error(std::span<const double> confidence, const std::vector<bool>& right);

// The temperature in [0.05, 20] with the least mean_nll; the class with the largest logit stays the same.
double fit_temperature(std::span<const float> logits, std::span<const int32_t> labels);

// A run's calibration.json: what was fitted, on the validation images, for which weights.
struct Calibration {
  double temperature = 1;
  int64_t images = 0;
  double nll_before = 0, nll_after = 0, ece_before = 0, ece_after = 0;
  std::string weights;  // digest() of the weights it belongs to
};
Calibration calibrate(std::span<const float> logits, std::span<const int32_t> labels, const SafeTensors& weights);

// XXH3 over names, shapes and numbers, 32 digits.
std::string digest(const SafeTensors& weights);

// Error(Exit::checkpoint) if the file cannot be written, or holds something that write_calibration did not write.
void write_calibration(const std::filesystem::path& run, const Calibration&);
Calibration parse_calibration(const std::string& text, const std::string& origin);
std::optional<Calibration> read_calibration(const std::filesystem::path& run);  // empty: there is none

}  // namespace linnet
