// The verbs. Each file of this folder defines one: it adds its options to the command line and says what to run.
#pragma once
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace linnet {

// What main() runs after parsing; returns the exit code.
using Command = std::function<int()>;

// CLI11's PositiveNumber names the largest double that there is when it refuses one.
inline CLI::Validator above_zero() {
  return CLI::Validator(
      [](const std::string& text) {
        char* end = nullptr;
        const double value = std::strtod(text.c_str(), &end);
        const bool good = end != text.c_str() && *end == 0 && std::isfinite(value) && value > 0;
        return good ? std::string() : fmt::format("expected a number above 0, got '{}'", text);
      },
      "ABOVE 0");
}

// Of a file to write: an empty name would mean none, and the work would be for nothing.
inline CLI::Validator file_name() {
  return CLI::Validator(
      [](const std::string& text) {
        return text.empty() ? std::string("expected the name of a file, got an empty one") : std::string();
      },
      "");
}

// What the verbs that read a config have in common.
inline void add_config_options(CLI::App& verb, std::string& config, std::vector<std::string>& set) {
  verb.add_option("config", config, "TOML file")->required();
  verb.add_option("-s,--set", set, "override a key (may be repeated)")->allow_extra_args(false);
}

void add_train(CLI::App&, Command&);
void add_resume(CLI::App&, Command&);
void add_fork(CLI::App&, Command&);
void add_check(CLI::App&, Command&);
void add_lr_find(CLI::App&, Command&);
void add_noise(CLI::App&, Command&);
void add_advise(CLI::App&, Command&);
void add_landscape(CLI::App&, Command&);
void add_play(CLI::App&, Command&);
void add_sweep(CLI::App&, Command&);
void add_report(CLI::App&, Command&);
void add_runs(CLI::App&, Command&);
void add_diff(CLI::App&, Command&);
void add_eval(CLI::App&, Command&);
void add_predict(CLI::App&, Command&);
void add_export(CLI::App&, Command&);
void add_data(CLI::App&, Command&);
void add_config(CLI::App&, Command&);
void add_list(CLI::App&, Command&);
void add_optim(CLI::App&, Command&);
void add_info(CLI::App&, Command&);
void add_schedule(CLI::App&, Command&);
void add_bench(CLI::App&, Command&);
void add_autopsy(CLI::App&, Command&);
void add_watch(CLI::App&, Command&);
void add_complete(CLI::App&, Command&);
// What `linnet __complete WORDS...` answers to a shell: a candidate for the last word a line.
int complete(const CLI::App&, const std::vector<std::string>& words);
void add_man(CLI::App&, Command&);

}  // namespace linnet
