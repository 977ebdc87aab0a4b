// linnet predict RUN|WEIGHTS IMAGE...
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>

#include "console.h"
#include "linnet/text.h"
#include "linnet/trained.h"
#include "picture_html.h"
#include "src/core/file.h"
#include "trained_options.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;

struct Options : TrainedOptions {
  std::string target, html, device = "cpu";
  std::vector<std::string> images;
  int64_t top = 5;
  bool json = false, trusted = false;
};

constexpr size_t kBatch = 256;

// Files as they are, the pictures of folders sorted by path; "-" is stdin.
std::vector<std::string> expand(const std::vector<std::string>& given) {
  std::vector<std::string> all;
  for (const std::string& name : given) {
    if (name == "-" || !fs::is_directory(name)) {
      all.push_back(name);
      continue;
    }
    std::vector<std::string> found;
    std::error_code error;
    for (fs::recursive_directory_iterator at(name, error), end; !error && at != end; at.increment(error))
      if (is_picture(at->path()) && !at->is_directory(error)) found.push_back(at->path().string());
    if (error) fail(Exit::data, "cannot read the folder {}: {}", escaped(name), error.message());
    if (found.empty()) fail(Exit::data, "{}: no .png, .jpg or .jpeg in this folder", escaped(name));
    std::ranges::sort(found);
    all.insert(all.end(), found.begin(), found.end());
  }
  return all;
}

Decoded read_one(PictureReader& reader, const std::string& name, const PictureForm& form) {
  if (name != "-") return reader.read(name, form);
  constexpr size_t kMost = 64 << 20;
  std::string bytes(kMost + 1, '\0');
  bytes.resize(std::fread(bytes.data(), 1, bytes.size(), stdin));
  if (bytes.size() > kMost) fail(Exit::data, "stdin: expected a picture of at most {} bytes", kMost);
  return reader.decode(bytes, "stdin", form);
}

std::vector<int> best_classes(const std::vector<double>& p, int64_t top) {
  std::vector<int> order(p.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int a, int b) { return p[size_t(a)] > p[size_t(b)]; });
  order.resize(std::min(order.size(), size_t(top)));
  return order;
}

// What came of the pictures: lines, JSON or a page.
class Report {
 public:
  Report(const Options& o, const Trained& t) : o_(o), t_(t) {}

  void add(const std::string& name, const Decoded& picture, const std::vector<double>& p, Net& net,
           const BatchSource& source, int64_t index) {
    const std::vector<int> best = best_classes(p, o_.top);
    nlohmann::ordered_json top = nlohmann::ordered_json::array();
    std::string line;
    for (const int c : best) {
      const std::string& label = t_.class_names[size_t(c)];
      top.push_back({{"class", c}, {"label", label}, {"p", p[size_t(c)]}});
      line += fmt::format("{} {} {:.1f} %", line.empty() ? "" : ",", escaped(label), 100 * p[size_t(c)]);
    }
    if (o_.json)
      json_.push_back({{"image", name}, {"top", top}});
    else
      fmt::print("{}:{}\n", escaped(name, 1000), line);
    if (!o_.html.empty()) {
      PicturePage::Entry entry{name, picture.pixels, {}, saliency(net, source, index, best[0])};
      for (const int c : best) entry.top.emplace_back(t_.class_names[size_t(c)], p[size_t(c)]);
      page_.add(entry, t_.options.height, t_.options.channels);
    }
  }
  void add_error(const std::string& name, const std::string& message) {
    failed_ = true;
    tell("error: " + message + "\n");
    if (o_.json) json_.push_back({{"image", name}, {"error", message}});
  }

  int finish() {
    if (o_.json) fmt::print("{}\n", json_.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    if (!o_.html.empty())
      write_file_atomically(o_.html, page_.text(fmt::format("{} ({})", t_.config.model.name, t_.origin)),
                            Exit::checkpoint);
    return int(failed_ ? Exit::data : Exit::ok);
  }

 private:
  const Options& o_;
  const Trained& t_;
  nlohmann::ordered_json json_ = nlohmann::ordered_json::array();
  PicturePage page_;
  bool failed_ = false;
};

int predict(const Options& o) {
  if (!o.html.empty()) require_replaceable(o.html, PicturePage::kBeginning, "page of `linnet predict`");
  const Trained trained = open_trained(o.target, o);
  for (const std::string& note : trained.notes) tell("note: " + note + "\n");
  const auto& [mean, std] = std::pair(trained.config.data.mean, trained.config.data.std);
  const PictureForm form = trained.form();
  if (mean.size() != size_t(form.channels) || std.size() != size_t(form.channels))
    fail(Exit::usage,
         "the normalisation of {} channels is needed: --mean and --std, as in training; got {} and {} numbers",
         form.channels, mean.size(), std.size());
  const std::vector<std::string> names = expand(o.images);
  PictureReader reader(o.trusted);  // a process of its own, before there are threads
  const auto backend = make_backend(o.device);
  Net net = trained.build(*backend);
  const double temperature = trained.calibration ? trained.calibration->temperature : 1;
  const auto classes = size_t(trained.options.classes);

  Report report(o, trained);
  for (size_t first = 0; first < names.size(); first += kBatch) {
    Images images{.height = form.size, .width = form.size, .channels = form.channels, .classes = int(classes)};
    std::vector<std::pair<std::string, Decoded>> pictures;
    for (size_t i = first; i < std::min(first + kBatch, names.size()); ++i) {
      try {
        Decoded picture = read_one(reader, names[i], form);
        images.pixels.insert(images.pixels.end(), picture.pixels.begin(), picture.pixels.end());
        images.labels.push_back(0);
        pictures.emplace_back(names[i], std::move(picture));
      } catch (const Error& e) {
        if (e.exit != Exit::data) throw;
        report.add_error(names[i], e.what());
      }
    }
    if (pictures.empty()) continue;
    const BatchSource source = upload_source(*backend, images, mean, std);
    const std::vector<float> logits = net.logits(source, 32);
    for (size_t i = 0; i < pictures.size(); ++i)
      report.add(pictures[i].first, pictures[i].second,
                 probabilities(std::span(logits).subspan(i * classes, classes), temperature), net, source, int64_t(i));
  }
  return report.finish();
}

}  // namespace

void add_predict(CLI::App& app, Command& command) {
  auto o = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("predict",
                                      "Say what is in pictures (PNG, JPEG), with probabilities.\n\n"
                                      "  linnet predict runs/NAME cat.jpg photos/ --html look.html\n"
                                      "  linnet predict net.safetensors --model resnet20 --mean 0.491,0.482,0.447 "
                                      "--std 0.247,0.243,0.262 cat.jpg");
  add_trained_options(*verb, o->target, *o);
  add_size_option(*verb, *o);
  verb->add_option("images", o->images, "files, folders, or - for stdin")->required();
  verb->add_option("-k,--top", o->top, "how many classes are shown")->check(CLI::Range(1, 100'000));
  verb->add_flag("--json", o->json, "JSON on stdout");
  verb->add_option("--html", o->html, "also write a page with the pictures and what the net looked at")
      ->check(file_name());
  verb->add_option("--device", o->device, "auto, cpu or cuda");
  verb->add_flag("--trusted", o->trusted, "decode in this process, for pictures of your own");
  verb->callback([o, &command] { command = [o] { return predict(*o); }; });
}

}  // namespace linnet
