// Why a run diverged, of its nonfinite.json: the steps before, the step's tensors from the images to the gradients, its
// images, and one thing to try.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "linnet/trainer.h"
#include "src/core/json.h"
#include "src/report/plot.h"

namespace linnet {

// Of the text of nonfinite.json. Error(Exit::checkpoint), with `origin` as the file's name, for what Linnet did not
// write.
BadStep parse_bad_step(std::string_view text, const std::string& origin);

// What the step's numbers point to, and the one setting to change for it ("optimizer.lr=0.1"; empty: none helps).
struct Suggestion {
  std::string reason, setting;
};
Suggestion suggest(const BadStep&, const Config&);

struct Autopsy {
  std::string run;  // its folder
  Config config;
  BadStep bad;
  Suggestion suggestion;
  std::string command;  // to try it
};
std::string autopsy_text(const Autopsy&, const Terminal&);
Json autopsy_json(const Autopsy&);
// A self-contained page. `images`: those of training; empty, and `note` says why there are no pictures.
std::string autopsy_page(const Autopsy&, const Images& images, const std::string& note);
inline constexpr std::string_view kAutopsyBeginning = "<!doctype html>\n<!-- Linnet autopsy -->";

}  // namespace linnet
