// linnet config show|validate CONFIG
#include "linnet/config.h"

#include "cli.h"
#include "linnet/error.h"

namespace linnet {

namespace {

struct Options {
  std::string config;
  std::vector<std::string> set;
  bool origin = false;
};

int show(const Options& o) {
  Origins origins;
  const Config config = load_config(o.config, o.set, origins);
  if (!o.origin) {
    fmt::print("{}", to_toml(config, true));
  } else {
    for (const auto& [key, origin] : origins) fmt::print("{:<32} {}\n", key, origin);
  }
  return int(Exit::ok);
}

int validate(const Options& o) {
  load_config(o.config, o.set);
  fmt::print("{}: ok\n", o.config);
  return int(Exit::ok);
}

}  // namespace

void add_config(CLI::App& app, Command& command) {
  CLI::App* verb =
      app.add_subcommand("config", "Show or check a config file.\n\n  linnet config show configs/resnet20.toml");
  verb->require_subcommand(1);
  auto options = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* what, int (*run)(const Options&)) {
    CLI::App* sub = verb->add_subcommand(name, what);
    add_config_options(*sub, options->config, options->set);
    sub->callback([options, &command, run] { command = [options, run] { return run(*options); }; });
    return sub;
  };
  add("show", "every key that has an effect, its value and what it means", show)
      ->add_flag("--origin", options->origin, "where each value comes from");
  add("validate", "report every mistake, or say ok", validate);
}

}  // namespace linnet
