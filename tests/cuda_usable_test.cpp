// Whether a GPU can be used is answered in words, on every machine and in every build, without a crash.
#include <gtest/gtest.h>

#include "src/backend/backends.h"

namespace linnet {
namespace {

TEST(CudaUsable, TheReasonReachesTheUser) {
  const std::string reason = cuda_usable();
  if (reason.empty()) GTEST_SKIP() << "a GPU can be used here";
  fmt::print("cuda_usable: {}\n", reason);
  EXPECT_GT(reason.size(), 10u);
  try {
    make_backend("cuda");
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.exit, Exit::device);
    EXPECT_EQ(std::string(e.what()), "device 'cuda' cannot be used: " + reason + ". Use --device cpu or auto");
  }
}

TEST(CudaUsable, AutoTakesWhatIsThere) {
  EXPECT_EQ(make_backend("auto")->device(), cuda_usable().empty() ? Device::cuda : Device::cpu);
  EXPECT_EQ(cuda_usable(), cuda_usable());  // asking changes nothing
}

}  // namespace
}  // namespace linnet
