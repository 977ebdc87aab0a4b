// The sanitizers call these for every allocation, also those inside of libraries.
#include <sanitizer/allocator_interface.h>

#include "fuzz.h"

namespace {
// volatile: to the optimizer no malloc reads or writes a variable of ours.
volatile bool armed = false;
volatile size_t live = 0;
size_t limit_bytes = 0;

void on_malloc(const volatile void*, size_t size) {
  if (!armed) return;
  live = live + size;
  if (live <= limit_bytes) return;
  armed = false;
  std::fprintf(stderr, "FINDING: %zu bytes allocated, %zu allowed\n", size_t(live), limit_bytes);
  std::abort();
}
void on_free(const volatile void* block) {
  if (!armed || !block) return;
  const size_t size = __sanitizer_get_allocated_size(block);
  live = live - (size < live ? size : live);  // what was there before is freed too
}
}  // namespace

namespace fuzz {
AllocationLimit::AllocationLimit(size_t bytes) {
  static const bool counts = [] {  // a limit that counts nothing would find nothing
    if (__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free) == 0) return false;
    limit_bytes = 4096;
    armed = true;
    void* volatile block = std::malloc(1000);
    armed = false;
    std::free(block);
    return live == 1000;
  }();
  if (!counts) finding("the target itself", "cannot count allocations");
  limit_bytes = bytes;
  live = 0;
  armed = true;
}
AllocationLimit::~AllocationLimit() { armed = false; }
}  // namespace fuzz
