// CIFAR-100's folder reader: the input is fine_label_names.txt and test.bin, parted by the first NUL. A file that
// begins with "full" is stretched to its exact size, one in 64. Memory: as for CIFAR-10, fuzz_cifar10.cpp.
#include <algorithm>
#include <filesystem>

#include "fuzz.h"
#include "linnet/dataset.h"
#include "tests/temp_dir.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::File names("names"), images("images");
  static const TempDir folder;
  static const bool linked = [] {
    std::filesystem::create_symlink(names.path(), folder / "fine_label_names.txt");
    std::filesystem::create_symlink(names.path(), folder / "coarse_label_names.txt");
    std::filesystem::create_symlink(images.path(), folder / "test.bin");
    return true;
  }();
  if (!linked) return 0;
  const std::string_view input = fuzz::text(data, size);
  const size_t nul = std::min(input.find('\0'), size);
  const std::string_view records = input.substr(std::min(nul + 1, size));
  names.set(input.substr(0, nul));
  images.set(records);
  size_t bytes = records.size();
  if (records.starts_with("full") && fuzz::one_in_64(records.substr(4))) images.resize(off_t(bytes = 30'740'000));
  for (const bool coarse : {false, true})
    fuzz::run(linnet::Exit::data, (1 << 20) + (128 << 10) + 8 * nul + 2 * bytes + 40'000,
              [&] { linnet::load_cifar100(folder.path(), linnet::Split::test, coarse); });
  return 0;
}
