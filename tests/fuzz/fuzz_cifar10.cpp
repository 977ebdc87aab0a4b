// CIFAR-10's folder reader: the input is batches.meta.txt and test_batch.bin, parted by the first NUL. A batch that
// begins with "full" is stretched to a batch's exact size; to read it takes a thousand times as long as the rest, so of
// those that are longer only one in 64 is. Memory: 128 KiB + 4 x meta + 2 x batch (the raw bytes and
// the images) + 1 MiB of labels and messages.
#include <algorithm>
#include <filesystem>

#include "fuzz.h"
#include "linnet/dataset.h"
#include "tests/temp_dir.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::File meta("meta"), batch("batch");
  static const TempDir folder;
  static const bool linked = [] {
    std::filesystem::create_symlink(meta.path(), folder / "batches.meta.txt");
    std::filesystem::create_symlink(batch.path(), folder / "test_batch.bin");
    return true;
  }();
  if (!linked) return 0;
  const std::string_view input = fuzz::text(data, size);
  const size_t nul = std::min(input.find('\0'), size);
  const std::string_view records = input.substr(std::min(nul + 1, size));
  meta.set(input.substr(0, nul));
  batch.set(records.substr(0, 30'730'000));
  size_t batch_bytes = records.size();
  if (records.starts_with("full") && fuzz::one_in_64(records.substr(4))) batch.resize(off_t(batch_bytes = 30'730'000));
  fuzz::run(linnet::Exit::data, (1 << 20) + (128 << 10) + 8 * nul + 2 * batch_bytes + 40'000,
            [&] { linnet::load_cifar10(folder.path(), linnet::Split::test); });
  return 0;
}
