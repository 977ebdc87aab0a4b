// linnet data get|verify|stats|pack
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "console.h"
#include "linnet/dataset.h"
#include "linnet/error.h"
#include "linnet/pack.h"
#include "linnet/trainer.h"
#include "src/core/file.h"

namespace linnet {

namespace {

struct Options {
  std::string name = "cifar10", path;
  bool json = false;
};

struct PackOptions {
  std::string source, out;
  Config config;  // its [data] says how
};

// Both parts of a CIFAR, or all three of a folder or a pack.
std::vector<std::pair<std::string, Images>> parts_of(const Options& o, std::string& where) {
  Config config;
  config.data.name = o.name;
  config.data.path = o.path;
  const bool fine = o.name == "cifar100";
  if (fine || o.name == "cifar10") {
    const auto path = fine ? find_cifar100(o.path) : find_cifar10(o.path);
    if (path.empty())
      fail(Exit::data,
           "{} is not on this machine; `linnet data get {}` downloads it, or name its folder in $LINNET_DATA",
           fine ? "CIFAR-100" : "CIFAR-10", o.name);
    where = path.string();
    const auto load = [&](Split split) { return fine ? load_cifar100(path, split) : load_cifar10(path, split); };
    return {{"train", load(Split::train)}, {"test", load(Split::test)}};
  }
  if (o.path.empty()) fail(Exit::usage, "name the {} behind --name {}", o.name, o.name);
  where = o.path;
  DataSet set = o.name == "pack" ? read_pack(o.path).set : load_image_folder(o.path, folder_options(config));
  for (const std::string& note : notes_of(set)) tell("note: " + note + "\n");
  return {{"train", std::move(set.train)}, {"val", std::move(set.val)}, {"test", std::move(set.test)}};
}

int get(const Options& o) {
  const bool fine = o.name == "cifar100";
  const char* title = fine ? "CIFAR-100" : "CIFAR-10";
  if (const auto there = fine ? find_cifar100("") : find_cifar10(""); !there.empty()) {
    fmt::print("{}\n", there.string());
    return int(Exit::ok);
  }
  if (cache_dir().empty())
    fail(Exit::data, "there is no cache folder to download to: set HOME or XDG_CACHE_HOME to an absolute path");
  const bool terminal = can_redraw();
  const auto path = download(fine ? cifar100_archive() : cifar10_archive(),
                             cache_dir() / (fine ? "cifar-100-binary.tar.gz" : "cifar-10-binary.tar.gz"),
                             [&](int64_t done, int64_t total) {
                               if (terminal)
                                 fmt::print(stderr, "\r{}: {:3} %  {} of {} MiB\x1b[K", title,
                                            100 * done / std::max<int64_t>(total, 1), done >> 20, total >> 20);
                             });
  if (terminal) fmt::print(stderr, "\n");
  fine ? load_cifar100(path, Split::train) : load_cifar10(path, Split::train);  // what was downloaded can be read, too
  fmt::print("{}\n", path.string());
  return int(Exit::ok);
}

// digest() of CIFAR-10 as it was published.
constexpr std::pair<const char*, const char*> kCifar10[] = {{"train", "ee1c324a14ca9be8"},
                                                            {"test", "7551e67dc08a6ae4"}};

int verify(const Options& o) {
  std::string where, counts, others;
  for (const auto& [name, images] : parts_of(o, where)) {
    const auto published = std::ranges::find(kCifar10, name, [](const auto& known) { return known.first; });
    if (o.name == "cifar10" && published != std::end(kCifar10) && digest(images) != published->second)
      others += fmt::format(
          "note: its {} images are not those of CIFAR-10 as it was published: their XXH3 is {}, expected {}. A byte "
          "was "
          "changed, or the files are others or in another order; where they are gone, `linnet data get` fetches "
          "those\n",
          name, digest(images), published->second);
    counts += fmt::format("{} {} {}", counts.empty() ? "" : ",", images.size(),
                          name == "train" ? "training"
                          : name == "val" ? "validation"
                                          : "test");
  }
  fmt::print("{}: ok,{} images\n", where, counts);
  tell(others);
  return int(Exit::ok);
}

int stats(const Options& o) {
  std::string where;
  nlohmann::ordered_json out;
  for (const auto& [name, images] : parts_of(o, where)) {
    if (images.size() == 0) continue;
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

int pack(const PackOptions& o) {
  require_absent(o.out);
  const DataSet set = load_image_folder(o.source, folder_options(o.config));
  for (const std::string& note : notes_of(set)) tell("note: " + note + "\n");
  write_pack(o.out, set, o.source);
  const ChannelStats s = channel_stats(set.train);
  fmt::print(
      "{}: {} training, {} validation, {} test images of {}x{}x{} in {} classes; mean {:.4f}, deviation {:.4f}\n",
      o.out, set.train.size(), set.val.size(), set.test.size(), set.train.height, set.train.width, set.train.channels,
      set.train.classes, fmt::join(s.mean, " "), fmt::join(s.std, " "));
  return int(Exit::ok);
}

void add_pack(CLI::App& verb, Command& command) {
  auto o = std::make_shared<PackOptions>();
  auto& data = o->config.data;
  CLI::App* sub = verb.add_subcommand(
      "pack",
      "decode a folder of pictures (a folder per class) into one checked file, for data.name = \"pack\"\n\n"
      "  linnet data pack photos -o photos.pack --size 64");
  sub->add_option("folder", o->source, "PATH/CLASS/*.png or .jpg, or PATH/train/CLASS/..., PATH/val, PATH/test")
      ->required();
  sub->add_option("-o,--out", o->out, "the file; must not exist")->check(file_name())->required();
  sub->add_option("--size", data.image_size, "height and width, pixels")->check(CLI::Range(16, 224));
  sub->add_option("--channels", data.channels, "3: colour, 1: grey")->check(CLI::IsMember({1, 3}));
  sub->add_option("--fit", data.fit, "crop: the middle square; stretch")->check(CLI::IsMember({"crop", "stretch"}));
  sub->add_option("--val-share", data.val_share, "share held out for validation, unless there is val/")
      ->check(CLI::Range(0.0, 0.45));
  sub->add_option("--test-share", data.test_share, "share kept for the test, unless there is test/")
      ->check(CLI::Range(0.0, 0.45));
  sub->add_option("--corrupt", data.corrupt, "pictures that cannot be read: refuse, or skip with a note")
      ->check(CLI::IsMember({"refuse", "skip"}));
  sub->add_flag("--trusted", data.trusted, "decode in this process, for pictures of your own");
  sub->callback([o, &command] { command = [o] { return pack(*o); }; });
}

}  // namespace

void add_data(CLI::App& app, Command& command) {
  CLI::App* verb = app.add_subcommand("data",
                                      "Get, check and pack data sets.\n\n"
                                      "  linnet data get cifar10\n"
                                      "  linnet data pack photos -o photos.pack --size 64");
  verb->require_subcommand(1);
  auto options = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* what, int (*run)(const Options&)) {
    CLI::App* sub = verb->add_subcommand(name, what);
    sub->callback([options, &command, run] { command = [options, run] { return run(*options); }; });
    return sub;
  };
  add("get", "download a CIFAR into the cache unless it is there; prints its path", get)
      ->add_option("name", options->name, "cifar10 or cifar100")
      ->check(CLI::IsMember({"cifar10", "cifar100"}));
  const auto add_place = [&](CLI::App* sub) {
    sub->add_option("path", options->path, "folder, archive or pack");
    sub->add_option("--name", options->name, "what it is: cifar10, cifar100, folder or pack")
        ->check(CLI::IsMember({"cifar10", "cifar100", "folder", "pack"}));
    return sub;
  };
  add_place(add("verify", "read every record or picture and check it", verify));
  add_place(add("stats", "counts, means and deviations", stats))->add_flag("--json", options->json, "JSON on stdout");
  add_pack(*verb, command);
}

}  // namespace linnet
