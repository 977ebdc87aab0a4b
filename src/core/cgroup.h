// What a container may use of the processors.
#pragma once
#include <filesystem>
#include <string>

namespace linnet {

// How many whole processors' time the CPU quotas of this process's control groups allow, rounded up; a million where
// there is none. Version 2 and 1; a group's ancestors limit it, too. `mount` and `self` are for tests.
int quota_cpus(const std::filesystem::path& mount = "/sys/fs/cgroup",
               const std::filesystem::path& self = "/proc/self/cgroup");

}  // namespace linnet
