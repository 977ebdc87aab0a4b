// What the compiler and the machine must get right before anything else is worth checking.
#pragma once

namespace linnet {

// Error(Exit::failure) where this program cannot see a NaN or an infinity (-ffast-math compiles the question away) or
// where its checksum is wrong. Takes microseconds; main() calls it first.
void self_test();

}  // namespace linnet
