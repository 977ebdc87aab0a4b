// Checksums in lower-case hexadecimal.
#pragma once
#include <memory>
#include <string>
#include <string_view>

namespace linnet {

// SHA-256 over the pieces in the order in which they come: 64 digits.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(std::string_view bytes);
  std::string finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};
std::string sha256(std::string_view bytes);

// XXH3 of 128 bits: 32 digits. Fast, finds accidents, no defence against intent.
class Xxh3 {
 public:
  Xxh3();
  ~Xxh3();
  Xxh3(const Xxh3&) = delete;
  Xxh3& operator=(const Xxh3&) = delete;
  void update(std::string_view bytes);
  std::string digest() const;  // of the bytes so far

 private:
  struct State;
  std::unique_ptr<State> state_;
};
std::string xxh3(std::string_view bytes);

}  // namespace linnet
