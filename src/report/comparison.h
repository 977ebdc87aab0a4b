// What runs say together: runs of one recipe (they differ in the seed alone) are a group, groups are compared.
#pragma once
#include <string>
#include <vector>

#include "src/report/run_record.h"

namespace linnet {

struct Group {
  std::string label;
  std::vector<RunRecord> runs;        // by seed, one of each
  std::vector<std::string> repeated;  // folders of further runs of these seeds: left out
};

// The groups in the order in which their first runs come. A group's label is what its folders' names have in common,
// where that tells the groups apart, or else the keys in which they differ.
std::vector<Group> group_runs(std::vector<RunRecord> runs);

// Every number of the report, for `--json`, the terminal and the page (docs/GUIDE.md, "Compare"): groups, targets,
// pairs, floor, config, environment. Accuracies are fractions of the test set, after the last epoch. targets:
// validation accuracies to reach; empty: chosen between the worst group and the best.
Json compare(const std::vector<Group>& groups, std::vector<double> targets);

// The numbers as a table for a terminal of this width.
std::string comparison_text(const Json& comparison);

// What the page draws, a value for each group: its curves by epoch and by step, the change of its layers.
Json curves(const std::vector<Group>& groups);

}  // namespace linnet
