// MANIFEST.json: what a checkpoint holds and how each part is recognised. It ends with its own SHA-256.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "linnet/error.h"

namespace linnet {

// The content of a checkpoint is not what was saved. `kind`: one word for it, fit for a file name.
class Damage : public Error {
 public:
  Damage(std::string kind, const std::string& message) : Error(Exit::checkpoint, message), kind(std::move(kind)) {}
  std::string kind;
};

// Every number is below it: none overflows when one is added, and a step has at most 18 digits.
constexpr int64_t kManifestLimit = 1'000'000'000'000'000'000;

struct Manifest {
  struct File {
    uint64_t size = 0;
    std::string sha256;
  };
  struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    std::string xxh3;
    bool operator==(const Tensor&) const = default;
  };

  int64_t step = 0, epoch = 0;
  int64_t number = 0;                // of the save, counted from the run's beginning
  std::optional<int64_t> best_step;  // the best so far, this one included
  std::string previous;              // digest of the MANIFEST before; empty: there was none
  std::map<std::string, std::string> facts;
  std::map<std::string, File> files;
  std::map<std::string, std::map<std::string, Tensor>> tensors;  // by file and name
  std::string digest;                                            // its own, not part of the text before it
};

// Fills in the digest.
std::string to_text(Manifest&);

// Damage where it is not as to_text() writes it; Error(Exit::checkpoint) where a newer Linnet wrote it. `place` names
// the file in messages.
Manifest parse_manifest(const std::string& text, const std::string& place);

}  // namespace linnet
