// linnet completion SHELL: what a shell sources. The candidates come from the program itself (`linnet __complete`), so
// that they are always those of the verbs, options, keys and names that there are.
#include <algorithm>

#include "cli.h"
#include "linnet/config.h"
#include "linnet/model.h"
#include "linnet/optimizer.h"
#include "linnet/schedule.h"

namespace linnet {

namespace {

using Words = std::vector<std::string>;

constexpr const char* kBash = R"sh(# linnet completion bash >> ~/.bash_completion
_linnet() {
  local line=${COMP_LINE:0:COMP_POINT} words=()
  read -ra words <<<"$line"
  [[ $line == *' ' ]] && words+=("")
  local IFS=$'\n'
  local current=${words[-1]}
  COMPREPLY=($(linnet __complete "${words[@]:1}" 2>/dev/null))
  if [[ $current == *=* ]]; then COMPREPLY=("${COMPREPLY[@]#"${current%%=*}="}"); fi  # bash breaks words at "="
  [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
  return 0
}
complete -o default -F _linnet linnet
)sh";
constexpr const char* kZsh = R"sh(#compdef linnet
# linnet completion zsh > "${fpath[1]}/_linnet"
_linnet() {
  local -a found
  found=(${(f)"$(linnet __complete "${(@)words[2,CURRENT]}" 2>/dev/null)"})
  (( ${#found} )) && compadd -Q -S '' -- $found || _files
}
compdef _linnet linnet
)sh";
constexpr const char* kFish = R"sh(# linnet completion fish > ~/.config/fish/completions/linnet.fish
function __linnet_found
  linnet __complete (commandline -opc)[2..] (commandline -ct) 2>/dev/null
end
complete -c linnet -f -a '(__linnet_found)'
complete -c linnet -n 'test -z "$(__linnet_found)"' -F
)sh";

template <class Entry>
Words names_of(const std::vector<Entry>& table) {
  Words names;
  for (const Entry& e : table) names.emplace_back(e.name);
  return names;
}

// "key=" for each config key; behind a "key=" the values that it can take, where they are names.
Words settings(const std::string& current) {
  Words found;
  const size_t equals = current.find('=');
  Config config;
  visit(config, [&](const Key& key, auto&) {
    const std::string name(key.name);
    if (equals == current.npos) {
      found.push_back(name + "=");
      return;
    }
    if (current.substr(0, equals) != name) return;
    Words values(key.choices.begin(), key.choices.end());
    if (name == "model.name") values = names_of(models());
    if (name == "optimizer.name") values = names_of(optimizers());
    if (name == "schedule.name") values = names_of(schedules());
    for (const std::string& value : values) found.push_back(name + "=" + value);
  });
  return found;
}

// What may stand in the place of the last of `words`; nothing where it is a file.
Words candidates(const CLI::App& app, const Words& words) {
  const CLI::App* verb = &app;
  for (size_t i = 0; i + 1 < words.size(); ++i)
    for (const CLI::App* sub : verb->get_subcommands([](const CLI::App*) { return true; }))
      if (sub->get_name() == words[i]) {
        verb = sub;
        break;
      }
  const std::string current = words.empty() ? "" : words.back(),
                    before = words.size() > 1 ? words[words.size() - 2] : "";
  Words found;
  if (before == "--set" || before == "-s") {
    found = settings(current);
  } else if (current.starts_with("-")) {
    for (const CLI::Option* option : verb->get_options())
      for (const std::string& name : option->get_lnames()) found.push_back("--" + name);
  } else if (!before.starts_with("-")) {
    for (const CLI::App* sub : verb->get_subcommands([](const CLI::App*) { return true; }))
      found.push_back(sub->get_name());
    if (verb->get_name() == "list" && before == "list") found = {"models", "optimizers", "schedules", "warnings"};
    if (before == "completion") found = {"bash", "fish", "zsh"};
    if (verb->get_name() == "show" || verb->get_name() == "trace") {
      if (verb->get_parent()->get_name() == "optim") found = names_of(optimizers());
    }
  }
  std::erase_if(found, [&](const std::string& f) { return !f.starts_with(current); });
  std::ranges::sort(found);
  return found;
}

}  // namespace

int complete(const CLI::App& app, const std::vector<std::string>& words) {
  for (const std::string& word : candidates(app, words)) fmt::print("{}\n", word);
  return int(Exit::ok);
}

void add_complete(CLI::App& app, Command& command) {
  auto shell = std::make_shared<std::string>();
  CLI::App* print = app.add_subcommand("completion",
                                       "Print what completes verbs, options, config keys and names in a shell.\n\n"
                                       "  source <(linnet completion bash)");
  print->add_option("shell", *shell, "bash, zsh or fish")->required()->check(CLI::IsMember({"bash", "zsh", "fish"}));
  print->callback([shell, &command] {
    command = [shell] {
      fmt::print("{}", *shell == "bash" ? kBash : *shell == "zsh" ? kZsh : kFish);
      return int(Exit::ok);
    };
  });
}

}  // namespace linnet
