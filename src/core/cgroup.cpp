#include "src/core/cgroup.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

namespace linnet {

namespace {

namespace fs = std::filesystem;
constexpr int kNoLimit = 1'000'000;

std::string first_word(const fs::path& file, std::string* second = nullptr) {
  std::ifstream in(file);
  std::string word;
  in >> word;
  if (second) in >> *second;
  return word;
}

int cpus(const std::string& quota, const std::string& period) {
  const double q = std::strtod(quota.c_str(), nullptr), p = std::strtod(period.c_str(), nullptr);
  return q > 0 && p > 0 && q / p < kNoLimit ? std::max(1, int(std::ceil(q / p))) : kNoLimit;  // "max" and -1: no quota
}

int cpus_of(const fs::path& group) {
  std::string period;
  const std::string quota = first_word(group / "cpu.max", &period);  // version 2: "200000 100000"
  if (!quota.empty()) return cpus(quota, period);
  return cpus(first_word(group / "cpu.cfs_quota_us"), first_word(group / "cpu.cfs_period_us"));
}

// Of a group and of all above it, up to the mount point.
int least(const fs::path& mount, const std::string& group) {
  int least = cpus_of(mount);
  fs::path at = mount;
  for (const fs::path& part : fs::path(group).relative_path()) {
    if (part == "..") break;  // of another namespace: not visible here
    least = std::min(least, cpus_of(at /= part));
  }
  return least;
}

}  // namespace

int quota_cpus(const fs::path& mount, const fs::path& self) {
  int cpus = std::min(least(mount, ""), least(mount / "cpu", ""));
  std::ifstream file(self);  // lines "0::/group" (version 2) or "4:cpu,cpuacct:/group"
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), group = line.substr(second + 1);
    if (controllers.empty()) cpus = std::min({cpus, least(mount, group), least(mount / "unified", group)});
    if (("," + controllers + ",").find(",cpu,") != line.npos)
      cpus = std::min({cpus, least(mount / "cpu", group), least(mount / controllers, group)});
  }
  return cpus;
}

}  // namespace linnet
