// ResNet-20 on pictures that Linnet draws; config.data.name = "cifar10" trains on the real ones.
#include "linnet/trainer.h"
#include "linnet/weights.h"

#include <cstdio>

struct Print : linnet::Observer {
  double accuracy = 0;
  void on_row(const linnet::Row& row) override {
    if (row.kind == "epoch") std::printf("epoch %d  val/acc %.3f\n", int(row.epoch), row["val/acc"]);
    if (row.kind == "test") std::printf("test/acc %.3f\n", accuracy = row["test/acc"]);
  }
};

int main() {
  linnet::Config config;
  config.model.name = "resnet20";
  config.data = {.name = "synthetic", .val = 400, .samples = 4000, .image_size = 24};
  config.optimizer = {.name = "sgd", .lr = 0.1, .momentum = 0.9};
  config.schedule.name = "cosine";
  config.augment.crop_pad = 2;
  config.train.epochs = 6;
  config.train.batch_size = 50;

  const auto backend = linnet::make_backend("auto");
  const linnet::RunData data = linnet::load_run_data(config);
  linnet::Trainer trainer(config, *backend, data);
  Print print;
  trainer.run({&print});
  linnet::save_weights("resnet20.safetensors", *backend, trainer.net().params(), {{"made by", "examples/train.cpp"}});
  return print.accuracy > 0.2 ? 0 : 1;  // guessing: 0.1
}
