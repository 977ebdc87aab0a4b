// linnet man: the manual page, made from what the command line knows of itself.
#include "cli.h"
#include "linnet/run.h"

namespace linnet {

namespace {

// roff reads a backslash, and a dot or an apostrophe at a line's beginning, as its own.
std::string roff(const std::string& text) {
  std::string out;
  bool first = true;
  for (const char c : text) {
    if (first && (c == '.' || c == '\'')) out += "\\&";
    out += c == '\\' ? "\\e" : c == '-' ? "\\-" : std::string(1, c);
    first = c == '\n';
  }
  return out;
}

// A description's lines that begin with two blanks are examples.
std::string paragraphs(const std::string& text) {
  std::string out;
  bool example = false;
  for (size_t at = 0, end; at < text.size(); at = end + 1) {
    end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    if (line.starts_with("  ") != example) out += (example = !example) ? ".nf\n" : ".fi\n";
    out += line.empty() ? ".PP\n" : roff(line) + "\n";
  }
  return out + (example ? ".fi\n" : "");
}

std::string page_of(const CLI::App& verb, const std::string& name) {
  std::string out = fmt::format(".SS {}\n{}", roff(name), paragraphs(verb.get_description()));
  for (const CLI::Option* option : verb.get_options()) {
    if (option->get_group().empty() || option->check_lname("help")) continue;
    const bool flag = option->get_items_expected_max() == 0;
    out += fmt::format(".TP\n.B {}{}\n{}\n", roff(option->get_name(option->get_positional())),
                       flag || option->get_positional() ? "" : " " + roff(option->get_type_name()),
                       roff(option->get_description()));
  }
  for (const CLI::App* sub : verb.get_subcommands([](const CLI::App*) { return true; }))
    if (!sub->get_group().empty()) out += page_of(*sub, name + " " + sub->get_name());
  return out;
}

std::string manual(const CLI::App& app) {
  std::string out = fmt::format(
      ".TH LINNET 1 \"\" \"linnet {}\" \"User Commands\"\n"
      ".SH NAME\nlinnet \\- train small convolutional networks on CIFAR\\-10\n"
      ".SH SYNOPSIS\n.B linnet\n.I verb\n[options]\n.SH DESCRIPTION\n{}.SH VERBS\n",
      roff(version()), paragraphs(app.get_description()));
  for (const CLI::App* verb : app.get_subcommands([](const CLI::App*) { return true; }))
    if (!verb->get_group().empty()) out += page_of(*verb, verb->get_name());
  return out + R"(.SH EXIT STATUS
.TP
.B 0
success
.TP
.B 1
any other failure
.TP
.B 2
the command line or a config is wrong
.TP
.B 3
data are missing or damaged
.TP
.B 4
a checkpoint, a weights file or the disk
.TP
.B 5
training diverged, or a check failed
.TP
.B 6
the GPU or memory
.TP
.B 7
the run belongs to another process
.TP
.B 128+n
stopped by signal n, after saving
.SH ENVIRONMENT
.TP
.B LINNET_DATA
folder that holds the data sets
.TP
.B LINNET_RUNS
where runs are made, instead of ./runs
.TP
.B OMP_NUM_THREADS
number of threads
.TP
.B NO_COLOR, TERM, COLUMNS, CI
how much a terminal is drawn on
)";
}

}  // namespace

void add_man(CLI::App& app, Command& command) {
  CLI::App* verb = app.add_subcommand("man", "Print the manual page.\n\n  linnet man | man -l -");
  verb->callback([&app, &command] {
    command = [&app] {
      fmt::print("{}", manual(app));
      return int(Exit::ok);
    };
  });
}

}  // namespace linnet
