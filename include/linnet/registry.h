// Models, optimizers and schedules are tables of entries {name, summary, make}; this finds one.
#pragma once
#include <string>
#include <vector>

#include "linnet/error.h"
#include "linnet/text.h"

namespace linnet {

// Error(Exit::usage) for a name that is not in the table: it names the nearest one and lists all.
template <class Entry>
const Entry& find_entry(const std::vector<Entry>& table, const std::string& what, const std::string& name) {
  std::vector<std::string> names;
  std::string all;
  for (const Entry& entry : table) {
    if (entry.name == name) return entry;
    names.push_back(entry.name);
    all += (all.empty() ? "" : ", ") + entry.name;
  }
  const std::string near = nearest(name, names);
  fail(Exit::usage, "unknown {} '{}'{}; known are {}", what, escaped(name),
       near.empty() ? "" : fmt::format(": did you mean '{}'?", near), all);
}

}  // namespace linnet
