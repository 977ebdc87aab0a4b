// Files of tests/golden/. ctest runs every test from the top of the checkout; who runs one by hand does so there, too.
// (Not found through __FILE__: a test that ccache has taken from another checkout would look there.)
#pragma once
#include <filesystem>
#include <stdexcept>
#include <string>

namespace linnet {

inline std::filesystem::path golden(const std::string& name) {
  const std::filesystem::path path = std::filesystem::path("tests/golden") / name;
  if (!std::filesystem::exists(path))
    throw std::runtime_error(path.string() + " is not there: run the tests from the top of the checkout");
  return path;
}

}  // namespace linnet
