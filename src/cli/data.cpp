// linnet data get|verify|stats
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "console.h"
#include "linnet/dataset.h"
#include "linnet/error.h"

namespace linnet {

namespace {

struct Options {
  std::string path;
  bool json = false;
};

std::filesystem::path located(const Options& o) {
  const std::filesystem::path path = find_cifar10(o.path);
  if (path.empty())
    fail(Exit::data,
         "CIFAR-10 is not on this machine; `linnet data get cifar10` downloads it, or name its folder in "
         "$LINNET_DATA");
  return path;
}

int get(const Options&) {
  if (const std::filesystem::path there = find_cifar10(""); !there.empty()) {
    fmt::print("{}\n", there.string());
    return int(Exit::ok);
  }
  if (cache_dir().empty())
    fail(Exit::data, "there is no cache folder to download to: set HOME or XDG_CACHE_HOME to an absolute path");
  const bool terminal = can_redraw();
  const auto path =
      download(cifar10_archive(), cache_dir() / "cifar-10-binary.tar.gz", [&](int64_t done, int64_t total) {
        if (terminal)
          fmt::print(stderr, "\rCIFAR-10: {:3} %  {} of {} MiB\x1b[K", 100 * done / std::max<int64_t>(total, 1),
                     done >> 20, total >> 20);
      });
  if (terminal) fmt::print(stderr, "\n");
  load_cifar10(path, Split::train);  // what was downloaded can be read, too
  fmt::print("{}\n", path.string());
  return int(Exit::ok);
}

int verify(const Options& o) {
  const auto path = located(o);
  const Images train = load_cifar10(path, Split::train), test = load_cifar10(path, Split::test);
  fmt::print("{}: ok, {} training and {} test images\n", path.string(), train.size(), test.size());
  return int(Exit::ok);
}

int stats(const Options& o) {
  const auto path = located(o);
  nlohmann::ordered_json out;
  for (const auto& [name, split] : {std::pair{"train", Split::train}, {"test", Split::test}}) {
    const Images images = load_cifar10(path, split);
    const ChannelStats s = channel_stats(images);
    std::vector<int64_t> count(size_t(images.classes));
    for (const int32_t label : images.labels) ++count[size_t(label)];
    out[name] = {{"n", images.size()}, {"mean", s.mean}, {"std", s.std}, {"per_class", count}};
    if (o.json) continue;
    fmt::print("{}: {} images of {}x{}x{}\n", name, images.size(), images.height, images.width, images.channels);
    for (int c = 0; c < images.channels; ++c)
      fmt::print("  channel {}: mean {:.6f}, deviation {:.6f}\n", c, s.mean[size_t(c)], s.std[size_t(c)]);
    for (size_t c = 0; c < count.size(); ++c) fmt::print("  {:<12} {}\n", images.class_names[c], count[c]);
  }
  if (o.json) fmt::print("{}\n", out.dump());
  return int(Exit::ok);
}

}  // namespace

void add_data(CLI::App& app, Command& command) {
  CLI::App* verb = app.add_subcommand("data", "Get and check data sets.\n\n  linnet data get cifar10");
  verb->require_subcommand(1);
  auto options = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* what, int (*run)(const Options&)) {
    CLI::App* sub = verb->add_subcommand(name, what);
    sub->callback([options, &command, run] { command = [options, run] { return run(*options); }; });
    return sub;
  };
  add("get", "download CIFAR-10 into the cache unless it is there; prints its path", get)
      ->add_option("name", options->path, "cifar10")
      ->check(CLI::IsMember({"cifar10"}));
  add("verify", "read every record and check it", verify)->add_option("path", options->path, "folder or archive");
  CLI::App* s = add("stats", "counts, means and deviations", stats);
  s->add_option("path", options->path, "folder or archive");
  s->add_flag("--json", options->json, "JSON on stdout");
}

}  // namespace linnet
