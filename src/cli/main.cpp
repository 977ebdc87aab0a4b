// The command line. Every error ends here: one message on stderr, one exit code (docs/DESIGN.md, "Rules").
#include <fcntl.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>

#include "cli.h"
#include "linnet/error.h"
#include "linnet/run.h"
#include "linnet/text.h"
#include "src/core/self_test.h"

namespace {

// A closed stdin, stdout or stderr would give its number to the next file that is opened: a run's metrics, say.
void open_standard_streams() {
  int fd = open("/dev/null", O_RDWR);
  while (fd >= 0 && fd <= STDERR_FILENO) fd = open("/dev/null", O_RDWR);
  if (fd > STDERR_FILENO) close(fd);
}

// A message may name a path, and a path may hold what moves a cursor: of that only the ends of lines are kept.
std::string printable(std::string_view message) {
  std::string text;
  for (;;) {
    const size_t end = message.find('\n');
    text += linnet::escaped(message.substr(0, end), std::string::npos);
    if (end == message.npos) return text;
    text += '\n';
    message.remove_prefix(end + 1);
  }
}

constexpr const char* kOutOfMemory = "error: out of memory; use a smaller train.batch_size or model\n";

// Libraries allocate where nothing may throw (nlohmann's destructor, a thread's start). A run is whole at any instant,
// so there the end is a message and the code for memory instead of SIGABRT; any other cause is a bug and aborts.
[[noreturn]] void end_out_of_memory() noexcept {
  try {
    if (const std::exception_ptr e = std::current_exception()) std::rethrow_exception(e);
  } catch (const std::bad_alloc&) {
    [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, kOutOfMemory, std::strlen(kOutOfMemory));
    ::_exit(int(linnet::Exit::device));
  } catch (...) {
  }
  std::abort();
}

}  // namespace

int main(int argc, char** argv) {
  using namespace linnet;
  open_standard_streams();
  self_test();
  std::set_terminate(end_out_of_memory);
  std::signal(SIGXFSZ, SIG_IGN);  // a file-size limit is then a write error with a message, not a kill
  CLI::App app{
      "Linnet trains small convolutional networks on CIFAR-10.\n\n"
      "  linnet train configs/quickstart.toml            train, and find the run under runs/\n"
      "  linnet eval runs/NAME                           measure a finished run on the test set\n"
      "  linnet sweep A.toml B.toml --seeds 0-4 --out runs/cmp && linnet report runs/cmp -o report.html\n"
      "  linnet config show configs/resnet20.toml        every setting, with what it means"};
  app.name("linnet");
  app.set_version_flag("-V,--version", version());
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::help);
  Command command;
  add_train(app, command);
  add_resume(app, command);
  add_fork(app, command);
  add_check(app, command);
  add_lr_find(app, command);
  add_noise(app, command);
  add_advise(app, command);
  add_landscape(app, command);
  add_play(app, command);
  add_sweep(app, command);
  add_report(app, command);
  add_runs(app, command);
  add_diff(app, command);
  add_eval(app, command);
  add_predict(app, command);
  add_export(app, command);
  add_data(app, command);
  add_config(app, command);
  add_list(app, command);
  add_optim(app, command);
  add_info(app, command);
  add_schedule(app, command);
  add_bench(app, command);
  add_watch(app, command);
  add_autopsy(app, command);
  add_complete(app, command);
  add_man(app, command);

  // Before the parsing, which would take the options of a half-written line for its own.
  if (argc > 1 && std::string_view(argv[1]) == "__complete") return complete(app, {argv + 2, argv + argc});

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& e) {
    return app.exit(e);
  } catch (const CLI::CallForAllHelp& e) {
    return app.exit(e);
  } catch (const CLI::CallForVersion& e) {
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    if (argc > 1 && argv[1][0] != '-' && app.get_subcommands().empty()) {
      std::vector<std::string> verbs;
      for (const CLI::App* verb : app.get_subcommands({})) verbs.push_back(verb->get_name());
      const std::string near = nearest(argv[1], verbs);
      fmt::print(stderr, "error: unknown verb '{}'{}; known are {}\n", escaped(argv[1]),
                 near.empty() ? "" : fmt::format(": did you mean '{}'?", near), fmt::join(verbs, ", "));
      return int(Exit::usage);
    }
    std::fprintf(stderr, "error: %s\nhelp: linnet --help lists the verbs, linnet VERB --help the options of one\n",
                 printable(e.what()).c_str());
    return int(Exit::usage);
  }

  try {
    const int code = command();
    if (std::fflush(stdout) != 0 || std::ferror(stdout)) fail(Exit::failure, "not all of the output could be written");
    return code;
  } catch (const Error& e) {
    const std::string text = printable(e.what());
    std::fprintf(stderr, "%s%s\n", text.starts_with("error:") ? "" : "error: ", text.c_str());
    return int(e.exit);
  } catch (const std::bad_alloc&) {
    std::fputs(kOutOfMemory, stderr);
    return int(Exit::device);
  } catch (const std::filesystem::filesystem_error& e) {
    std::fprintf(stderr, "error: %s: %s; see to it that this program may use it\n",
                 printable(e.path1().string()).c_str(), e.code().message().c_str());
    return int(Exit::checkpoint);
  } catch (const std::system_error& e) {
    const bool limit = e.code() == std::errc::resource_unavailable_try_again;  // a thread that cannot be started
    std::fprintf(stderr, "error: %s%s\n", printable(e.what()).c_str(),
                 limit ? ": no more memory or threads; raise the limits (ulimit), or set OMP_NUM_THREADS lower" : "");
    return int(limit ? Exit::device : Exit::failure);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "error: %s\n", printable(e.what()).c_str());
    return int(Exit::failure);
  }
}
