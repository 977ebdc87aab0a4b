// A page of pictures with their predictions and saliency maps: one file, no scripts, nothing loaded.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "linnet/trained.h"

namespace linnet {

class PicturePage {
 public:
  struct Entry {
    std::string name;
    std::vector<uint8_t> pixels;  // size x size x channels, as the net saw them
    std::vector<std::pair<std::string, double>> top;
    Saliency saliency;
  };
  void add(const Entry&, int size, int channels);
  std::string text(const std::string& title) const;
  static constexpr std::string_view kBeginning = "<!doctype html>\n<!-- Linnet pictures -->";

 private:
  std::string body_;
};

}  // namespace linnet
