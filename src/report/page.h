// The report as one HTML file that needs nothing else: Chart.js, the numbers and the pictures are in it.
#pragma once
#include "src/report/comparison.h"

namespace linnet {

struct PageOptions {
  std::string title;
  std::string made;  // date
  std::string command;
};

// `notes` gets what a person should know: why there is no picture, say. The test images are read from where the runs
// read them.
std::string report_page(const std::vector<Group>& groups, const Json& comparison, const PageOptions&,
                        std::vector<std::string>& notes);

// What such a page begins with.
constexpr std::string_view kReportBeginning = "<!doctype html>\n<!-- Linnet report -->";

}  // namespace linnet
