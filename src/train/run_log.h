// The rows of a run's metrics.jsonl, read back.
#pragma once
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "linnet/trainer.h"

namespace linnet {

// A row with what timing.jsonl says of it; NaN where it says nothing.
struct LoggedRow : Row {
  double wall_s = std::numeric_limits<double>::quiet_NaN();
};

// One line of metrics.jsonl as it was reported. Error(Exit::checkpoint) that names `place` if Linnet has not written
// it.
Row parse_row(std::string_view line, const std::string& place);

// All of them, in order; none if there is no log yet. A last line that is still being written is left out.
std::vector<LoggedRow> read_rows(const std::filesystem::path& run);

}  // namespace linnet
