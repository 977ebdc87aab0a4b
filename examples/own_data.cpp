// A data set that no file holds: horizontal and vertical bars, grey, 16x16. Anything that fills pixels and labels will
// do.
#include "linnet/trainer.h"

#include <cstdio>
#include <random>

linnet::Images make_bars(int count, unsigned seed) {
  linnet::Images images{
      .height = 16, .width = 16, .channels = 1, .classes = 2, .class_names = {"horizontal", "vertical"}};
  std::mt19937 random(seed);
  for (int i = 0; i < count; ++i) {
    const unsigned place = random() % 14, label = random() % 2;
    for (unsigned y = 0; y < 16; ++y)
      for (unsigned x = 0; x < 16; ++x) {
        const unsigned across = label ? x : y;
        images.pixels.push_back(uint8_t(random() % 128 + (across >= place && across < place + 2 ? 100 : 0)));
      }
    images.labels.push_back(int32_t(label));
  }
  return images;
}

struct Result : linnet::Observer {
  double accuracy = 0;
  void on_row(const linnet::Row& row) override {
    if (row.kind == "test") accuracy = row["test/acc"];
  }
};

int main() {
  linnet::Config config;
  config.model.name = "convnet";
  config.augment.crop_pad = 0;
  config.augment.flip = "none";
  config.optimizer = {.name = "sgd", .lr = 0.05, .momentum = 0.9};
  config.schedule.name = "constant";
  config.train.epochs = 2;
  config.train.batch_size = 50;

  linnet::RunData data{.train = make_bars(1000, 1), .val = make_bars(200, 2), .test = [] { return make_bars(200, 3); }};
  const linnet::ChannelStats stats = linnet::channel_stats(data.train);
  config.data.mean.assign(stats.mean.begin(), stats.mean.end());
  config.data.std.assign(stats.std.begin(), stats.std.end());

  const auto backend = linnet::make_backend("auto");
  linnet::Trainer trainer(config, *backend, data);
  Result result;
  trainer.run({&result});
  std::printf("horizontal or vertical: %.1f %% right\n", 100 * result.accuracy);
  return result.accuracy > 0.9 ? 0 : 1;
}
