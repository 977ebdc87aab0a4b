// Folders of pictures, packs and CIFAR-100.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "linnet/config.h"
#include "linnet/dataset.h"
#include "linnet/error.h"
#include "linnet/pack.h"
#include "linnet/safetensors.h"
#include "linnet/trainer.h"
#include "tests/picture_files.h"
#include "tests/temp_dir.h"

namespace linnet {
namespace {

namespace fs = std::filesystem;

template <class F>
std::string data_error(F f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.exit, Exit::data) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "expected an Error";
  return "";
}
void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), text.npos) << "no '" << part << "' in: " << text;
}

// The pictures' numbers are in their green channel.
std::set<int> numbers(const Images& images) {
  std::set<int> found;
  for (int64_t i = 0; i < images.size(); ++i) found.insert(images.pixels[size_t(i * images.image_bytes()) + 1]);
  return found;
}

TEST(ImageFolder, ClassesAreFoldersAndEveryPictureIsInOnePart) {
  const TempDir dir;
  write_classes(dir.path(), 4, 50);
  write_bytes(dir / "class0" / "notes.txt", "not a picture");
  write_bytes(dir / "class0" / ".hidden.png", "not looked at");
  const DataSet set = load_image_folder(dir.path(), {.form = {.size = 16}});
  EXPECT_EQ(set.train.class_names, (std::vector<std::string>{"class0", "class1", "class2", "class3"}));
  EXPECT_EQ(set.passed_over, 1);
  EXPECT_EQ(set.train.size() + set.val.size() + set.test.size(), 200);
  EXPECT_NEAR(double(set.val.size()), 20, 12);
  EXPECT_NEAR(double(set.test.size()), 20, 12);
  std::set<int> all = numbers(set.train);
  for (const Images* part : {&set.val, &set.test})
    for (const int n : numbers(*part)) EXPECT_TRUE(all.insert(n).second) << n;
  EXPECT_EQ(all.size(), 200u);
  for (int64_t i = 0; i < set.train.size(); ++i) {
    const uint8_t* pixel = set.train.pixels.data() + i * set.train.image_bytes();
    ASSERT_EQ(pixel[0], 20 * set.train.labels[size_t(i)]);
    ASSERT_EQ(pixel[2], 200 - pixel[1]);
  }
}

TEST(ImageFolder, TheSplitStaysWhenPicturesComeAndTheThreadsDoNotMatter) {
  const TempDir dir;
  write_classes(dir.path(), 3, 30);
  const FolderOptions options{.form = {.size = 16}, .threads = 1};
  const DataSet before = load_image_folder(dir.path(), options);
  write_bytes(dir / "class1" / "000-new.png", plain_png(20, 20, 250, 100));
  FolderOptions trusted = options;
  trusted.threads = 3;
  trusted.trusted = true;
  const DataSet after = load_image_folder(dir.path(), trusted);
  for (const auto& [then, now] : {std::pair(&before.val, &after.val), {&before.test, &after.test}}) {
    std::set<int> numbers_now = numbers(*now);
    numbers_now.erase(250);
    EXPECT_EQ(numbers(*then), numbers_now);
  }
}

TEST(ImageFolder, GivenFoldersAreTheSplits) {
  const TempDir dir;
  write_classes(dir / "train", 2, 20);
  write_classes(dir / "test", 2, 3);
  DataSet set = load_image_folder(dir.path(), {.form = {.size = 16}, .val_share = 0});
  EXPECT_EQ(set.train.size(), 40);
  EXPECT_EQ(set.val.size(), 0);
  EXPECT_EQ(set.test.size(), 6);
  write_classes(dir / "val", 2, 4);
  set = load_image_folder(dir.path(), {.form = {.size = 16}});
  EXPECT_EQ(set.train.size(), 40);
  EXPECT_EQ(set.val.size(), 8);
  write_bytes(dir / "test" / "other" / "a.png", plain_png(20, 0, 0, 0));
  expect_part(data_error([&] { load_image_folder(dir.path(), {}); }), "no class 'other'");
}

TEST(ImageFolder, CorruptPicturesAreListedOrSkipped) {
  const TempDir dir;
  write_classes(dir.path(), 2, 20);
  const std::string whole = plain_png(20, 1, 2, 3);
  write_bytes(dir / "class0" / "cut.png", whole.substr(0, whole.size() - 20));
  write_bytes(dir / "class1" / "text.jpg", "not a picture");
  write_bytes(dir / "class1" / "empty.png", "");
  const std::string message = data_error([&] { load_image_folder(dir.path(), {.form = {.size = 16}}); });
  for (const char* part : {"3 of its pictures", "cut.png", "text.jpg", "empty.png", "data.corrupt = \"skip\""})
    expect_part(message, part);
  const DataSet set = load_image_folder(dir.path(), {.form = {.size = 16}, .skip_corrupt = true});
  EXPECT_EQ(set.skipped.size(), 3u);
  EXPECT_EQ(set.train.size() + set.val.size() + set.test.size(), 40);
}

// A pipe would be waited for, a device read without an end; a link may lead nowhere.
TEST(ImageFolder, WhatIsNoFileIsListedAsABadPicture) {
  const TempDir dir;
  write_classes(dir.path(), 2, 20);
  ASSERT_EQ(::mkfifo((dir / "class0" / "pipe.png").c_str(), 0600), 0);
  fs::create_symlink("/dev/zero", dir / "class0" / "zero.jpg");
  fs::create_symlink("nowhere", dir / "class1" / "link.png");
  const std::string message = data_error([&] { load_image_folder(dir.path(), {.form = {.size = 16}}); });
  for (const char* part : {"3 of its pictures", "pipe.png: expected a regular file", "zero.jpg: expected", "link.png"})
    expect_part(message, part);
  EXPECT_EQ(load_image_folder(dir.path(), {.form = {.size = 16}, .skip_corrupt = true}).skipped.size(), 3u);
}

TEST(ImageFolder, WhatIsNoDataSetIsRefused) {
  const TempDir dir;
  expect_part(data_error([&] { load_image_folder(dir / "missing", {}); }), "no such folder");
  expect_part(data_error([&] { load_image_folder(dir.path(), {}); }), "expected 2 to");
  write_classes(dir.path(), 2, 10);
  fs::create_directories(dir / "none");
  expect_part(data_error([&] { load_image_folder(dir.path(), {}); }), "'none' has no training picture");
  fs::remove(dir / "none");
  fs::create_directories(dir / "a\nb");
  expect_part(data_error([&] { load_image_folder(dir.path(), {}); }), "unprintable");
}

TEST(Picture, IsBroughtIntoItsForm) {
  PictureReader reader(true);
  // 2 x 4, left half black, right half white, the last column red.
  const std::string png = png_of(2, 4, 3, {0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0,  //
                                           0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0});
  const Decoded cropped = reader.decode(png, "a.png", {.size = 2, .channels = 3});
  EXPECT_EQ(cropped.height, 2);
  EXPECT_EQ(cropped.width, 4);
  EXPECT_EQ(cropped.pixels, (std::vector<uint8_t>{0, 0, 0, 255, 255, 255, 0, 0, 0, 255, 255, 255}));  // the middle
  const Decoded grey = reader.decode(png_of(1, 1, 3, {255, 0, 0}), "b.png", {.size = 1, .channels = 1});
  EXPECT_EQ(grey.pixels, std::vector<uint8_t>{76});  // Pillow's L of pure red
  const Decoded colour = reader.decode(png_of(1, 1, 1, {9}), "c.png", {.size = 1, .channels = 3});
  EXPECT_EQ(colour.pixels, (std::vector<uint8_t>{9, 9, 9}));
  const Decoded alpha = reader.decode(png_of(1, 1, 4, {1, 2, 3, 0}), "d.png", {.size = 1, .channels = 3});
  EXPECT_EQ(alpha.pixels, (std::vector<uint8_t>{1, 2, 3}));
  const Decoded stretched = reader.decode(png, "e.png", {.size = 16, .channels = 3, .crop = false});
  ASSERT_EQ(stretched.pixels.size(), 16u * 16 * 3);
  EXPECT_EQ(stretched.pixels[0], 0);
  EXPECT_GT(stretched.pixels[15 * 3], 240);  // red at the right edge
  EXPECT_LT(stretched.pixels[15 * 3 + 1], 60);
  const Decoded shrunk = reader.decode(plain_png(300, 10, 20, 30), "f.png", {.size = 224, .channels = 3});
  EXPECT_EQ(std::ranges::count(shrunk.pixels, 20), 224 * 224);  // one colour stays that colour
}

class PackTest : public testing::Test {
 protected:
  PackTest() {
    write_classes(dir / "pictures", 3, 20);
    set = load_image_folder(dir / "pictures", {.form = {.size = 16, .channels = 1}});
    write_pack(file, set, "pictures");
  }
  std::string refusal(const std::function<void(SafeTensors&)>& change) {
    SafeTensors pack = read_safetensors(file);
    change(pack);
    write_safetensors(dir / "bad.pack", pack);
    return data_error([&] { read_pack(dir / "bad.pack"); });
  }
  const TempDir dir;
  const fs::path file = dir / "p.pack";
  DataSet set;
};

TEST_F(PackTest, HoldsTheImagesAndTheirStatistics) {
  const Pack pack = read_pack(file);
  for (const auto& [a, b] :
       {std::pair(&set.train, &pack.set.train), {&set.val, &pack.set.val}, {&set.test, &pack.set.test}}) {
    EXPECT_EQ(a->pixels, b->pixels);
    EXPECT_EQ(a->labels, b->labels);
    EXPECT_EQ(a->class_names, b->class_names);
    EXPECT_EQ(b->channels, 1);
  }
  EXPECT_EQ(pack.stats.mean, channel_stats(set.train).mean);
  EXPECT_EQ(pack.stats.std, channel_stats(set.train).std);
}

TEST_F(PackTest, ALimitTakesTheSameImagesForEverySeed) {
  const auto limited = [&](int64_t limit, int64_t seed) {
    Config config = parse_config("data.name = 'pack'", "test");
    config.data.path = file;
    config.data.limit = limit;
    config.train.seed = seed;
    return load_run_data(config);
  };
  const RunData some = limited(10, 0), all = limited(0, 0);
  EXPECT_EQ(some.train.size(), 10);
  EXPECT_EQ(some.train.pixels, limited(10, 1).train.pixels);
  EXPECT_EQ(some.val.pixels, set.val.pixels);
  EXPECT_EQ(some.test().pixels, set.test.pixels);
  std::set<std::string> whole;
  const auto image = [](const Images& images, int64_t i) {
    const int64_t bytes = images.height * images.width * images.channels;
    return std::string(images.pixels.begin() + i * bytes, images.pixels.begin() + (i + 1) * bytes);
  };
  for (int64_t i = 0; i < all.train.size(); ++i) whole.insert(image(all.train, i));
  for (int64_t i = 0; i < 10; ++i) EXPECT_TRUE(whole.contains(image(some.train, i)));
  EXPECT_EQ(limited(set.train.size(), 0).train.pixels, set.train.pixels);
  try {
    limited(set.train.size() + 1, 0);
    ADD_FAILURE() << "expected an Error";
  } catch (const Error& e) {
    EXPECT_EQ(e.exit, Exit::usage);
    expect_part(e.what(), "data.limit");
  }
}

TEST_F(PackTest, DamageIsSeen) {
  expect_part(refusal([](auto& p) { p.tensors["train.pixels"].bytes[7] ^= 1; }), "damaged");
  expect_part(refusal([](auto& p) { p.tensors["val.labels"].bytes[0] ^= 1; }), "val");
  expect_part(refusal([](auto& p) { p.tensors["test.labels"].bytes[3] = 127; }), "label");
  expect_part(refusal([](auto& p) { p.tensors["test.labels"].bytes[3] = -1; }), "label");
  expect_part(refusal([](auto& p) { p.tensors.erase("val.pixels"); }), "val.pixels");
  expect_part(refusal([](auto& p) { p.tensors["more"] = {"U8", {1}, {0}}; }), "'more' too many");
  expect_part(refusal([](auto& p) { p.metadata["format"] = "other"; }), "format");
  expect_part(refusal([](auto& p) { p.metadata.erase("xxh3.train"); }), "xxh3.train");
  expect_part(refusal([](auto& p) { p.metadata["classes"] = "[\"a\"]"; }), "class names");
  expect_part(refusal([](auto& p) { p.metadata["classes"] = "{"; }), "");
  expect_part(refusal([](auto& p) { p.metadata["classes"] = "[\"a\", 1, \"b\"]"; }), "printable");
  expect_part(refusal([](auto& p) { p.metadata["mean"] = "[1, 2]"; }), "mean");
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 1);
  expect_part(data_error([&] { read_pack(file); }), "p.pack");
  expect_part(data_error([&] { read_pack(dir / "missing.pack"); }), "missing.pack");
}

// A file of `records` zeros with a few records written into it: 150 MB that take no room.
void write_cifar100(const fs::path& path, int64_t records) {
  write_bytes(path, "");
  fs::resize_file(path, uint64_t(records) * 3074);
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  for (const int64_t r : {int64_t(1), records - 1}) {
    std::string record(3074, char(r % 200));
    record[0] = 19;
    record[1] = 99;
    record[2] = 77;  // the first red value
    file.seekp(r * 3074);
    file << record;
  }
}

TEST(Cifar100, IsReadWithBothLabelSets) {
  const TempDir dir;
  const fs::path folder = dir / "cifar-100-binary";
  write_cifar100(folder / "train.bin", 50000);
  write_cifar100(folder / "test.bin", 10000);
  std::string fine, coarse;
  for (int i = 0; i < 100; ++i) fine += "fine" + std::to_string(i) + "\n";
  for (int i = 0; i < 20; ++i) coarse += "coarse" + std::to_string(i) + "\n";
  write_bytes(folder / "fine_label_names.txt", fine);
  expect_part(data_error([&] { load_cifar100(dir.path(), Split::test, true); }), "coarse_label_names.txt");
  write_bytes(folder / "coarse_label_names.txt", coarse);

  const Images train = load_cifar100(dir.path(), Split::train), test = load_cifar100(dir.path(), Split::test, true);
  EXPECT_EQ(train.size(), 50000);
  EXPECT_EQ(train.classes, 100);
  EXPECT_EQ(train.class_names[99], "fine99");
  EXPECT_EQ(train.labels[0], 0);
  EXPECT_EQ(train.labels[1], 99);
  EXPECT_EQ(train.pixels[3072], 77);  // red, then green
  EXPECT_EQ(train.pixels[3073], 1);
  EXPECT_EQ(test.size(), 10000);
  EXPECT_EQ(test.classes, 20);
  EXPECT_EQ(test.labels[9999], 19);
  EXPECT_EQ(test.class_names[19], "coarse19");
  EXPECT_EQ(find_cifar100(dir.path()), folder);

  std::fstream(folder / "test.bin", std::ios::in | std::ios::out | std::ios::binary).seekp(3074 * 5 + 1) << char(100);
  expect_part(data_error([&] { load_cifar100(dir.path(), Split::test); }), "record 5 (byte 15371) has label 100");
  fs::resize_file(folder / "test.bin", 30'740'001);
  expect_part(data_error([&] { load_cifar100(dir.path(), Split::test); }), "expected 30740000 bytes");
  fs::remove(folder / "test.bin");
  expect_part(data_error([&] { find_cifar100(dir.path()); }), "missing test.bin");
}

}  // namespace
}  // namespace linnet
