// linnet info
#include <nlohmann/json.hpp>

#include "cli.h"
#include "linnet/run.h"
#include "src/backend/backends.h"

namespace linnet {

void add_info(CLI::App& app, Command& command) {
  CLI::App* verb = app.add_subcommand("info", "Say what this build is and what it can use here.");
  auto json = std::make_shared<bool>(false);
  verb->add_flag("--json", *json, "JSON on stdout");
  verb->callback([json, &command] {
    command = [json] {
      const std::string no_cuda = cuda_usable();
      nlohmann::ordered_json out = {{"linnet", version()}, {"cuda", no_cuda.empty() ? "usable" : no_cuda}};
      for (const auto& [key, value] : make_backend("cpu")->info()) out["cpu"][key] = value;
      if (no_cuda.empty())
        for (const auto& [key, value] : make_backend("cuda")->info()) out["gpu"][key] = value;
      if (*json) {
        fmt::print("{}\n", out.dump());
        return 0;
      }
      const nlohmann::ordered_json flat = out.flatten();
      for (const auto& [key, value] : flat.items()) fmt::print("{:<18} {}\n", key.substr(1), value.get<std::string>());
      return 0;
    };
  });
}

}  // namespace linnet
