// TensorBoard event files of a run: `tensorboard --logdir runs`.
#pragma once
#include <filesystem>
#include <fstream>
#include <span>

#include "linnet/dataset.h"
#include "linnet/trainer.h"

namespace linnet::tensorboard {
class Event;
}

namespace linnet {

// Writes RUN/tensorboard/events.out.tfevents.*: each row's numbers, histograms of weights and gradients once an epoch,
// the config as text, and its keys as hyperparameters. A run that is resumed, or goes back after a step that was not
// finite, begins with a SessionLog START, so that TensorBoard forgets what was logged beyond that step.
// Errors are Exit::checkpoint, as those of the run's other logs.
class TensorBoard : public Observer {
 public:
  TensorBoard(const std::filesystem::path& run, const Trainer&);
  void on_row(const Row&) override;
  void on_boundary(Trainer&, bool epoch_done) override;
  // The first images of a data set, in rows of four, as one picture.
  void add_samples(const Images&);
  // The confusion matrix as a picture: a row is a label, and the darker a cell, the more of its images were called
  // that.
  void add_confusion(const std::vector<Prediction>&, int classes, int64_t step);

 private:
  void add_image(const std::string& tag, int64_t step, int height, int width, int channels, const uint8_t* pixels);
  void start_from(int64_t step);
  void write(tensorboard::Event&, int64_t step);

  std::filesystem::path path_;
  std::ofstream file_;
  int64_t first_step_ = 0, last_step_ = 0;
};

// One record of an event file: its length, the bytes, and a checksum of each (TensorFlow's tfrecord).
std::string tfrecord(std::string_view bytes);

}  // namespace linnet
