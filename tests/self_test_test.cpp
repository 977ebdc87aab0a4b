// The start-up self-test passes in this build; tests/torture/fast_math.sh shows that it fails in those that it is for.
#include "src/core/self_test.h"

#include <gtest/gtest.h>

namespace linnet {
namespace {

TEST(SelfTest, PassesInThisBuild) { EXPECT_NO_THROW(self_test()); }

}  // namespace
}  // namespace linnet
