#include "linnet/run.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <sys/stat.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "linnet/commit.h"  // written by the build
#include "linnet/text.h"
#include "linnet/verdict.h"
#include "linnet/weights.h"
#include "src/core/digest.h"
#include "src/core/file.h"
#include "src/core/folder.h"
#include "src/core/json.h"
#include "src/train/run_lock.h"
#include "src/train/run_log.h"

namespace linnet {

namespace {

namespace fs = std::filesystem;

constexpr uint64_t kLogBytes = uint64_t(1) << 40;

// JSON has no NaN: such a value becomes null.
Json number(double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); }

Json number_or_name(double v) { return std::isfinite(v) ? Json(v) : Json(fmt::format("{}", v)); }

Json describe(const Images& images) { return {{"images", images.size()}, {"xxh3", digest(images)}}; }

Json describe(const RunData& data) {
  return {{"train", describe(data.train)}, {"val", describe(data.val)}, {"test", describe(data.test())}};
}

std::string utc_now() { return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr))); }

}  // namespace

std::string version() {
  const std::string commit = LINNET_COMMIT;
  return LINNET_VERSION + (commit.empty() ? "" : " (commit " + commit + ")");
}

fs::path new_run_dir(const Config& c) {
  const char* base = std::getenv("LINNET_RUNS");
  const fs::path root = base && *base ? base : "runs";
  const std::string name = fmt::format("{:%Y-%m-%d_%H%M%S}_{}_{}_s{}", fmt::localtime(std::time(nullptr)), c.model.name,
                                       c.optimizer.name, c.train.seed);
  std::error_code error;  // RunFolder says what is wrong with a folder that cannot be made
  make_folders(root, error);
  fs::path dir = root / name;
  // Creating it is what makes it ours: of two runs that start in the same second, one goes on to the next name.
  for (int i = 2; !make_folders(dir, error) && !error; ++i) dir = root / fmt::format("{}-{}", name, i);
  return dir;
}

// ---- Log -----------------------------------------------------------------------------------------------------------

namespace {
// `cp -al` of a run shares its logs, and what is cut here would be cut there: then a copy of its own takes its place.
fs::path own_file(const fs::path& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && info.st_nlink > 1)
    write_file_atomically(path, read_file(path, kLogBytes, Exit::checkpoint), Exit::checkpoint);
  return path;
}
}  // namespace

Log::Log(const fs::path& path)
    : path_(own_file(path)),
      fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666)),
      digest_(std::make_unique<Xxh3>()) {
  struct stat info {};
  if (fd_ < 0 || fstat(fd_, &info) != 0)
    fail(Exit::checkpoint, "cannot write {}: {}", path.string(), std::generic_category().message(errno));
  if (!S_ISREG(info.st_mode)) fail(Exit::checkpoint, "{} is no regular file; move it away", path.string());
  size_ = info.st_size;
}

Log::~Log() {
  if (fd_ >= 0) ::close(fd_);
}

void Log::append(const std::string& line) {
  const std::string text = line + "\n";
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = uninterrupted([&] { return ::write(fd_, text.data() + done, text.size() - done); });
    if (n < 0) fail(Exit::checkpoint, "cannot write {}: {}", path_.string(), std::generic_category().message(errno));
    done += size_t(n);
  }
  size_ += int64_t(text.size());
  digest_->update(text);
}

std::string Log::digest() const { return digest_->digest(); }

namespace {
void require_whole(const fs::path& log, int64_t has, int64_t size) {
  if (size > has)
    fail(Exit::checkpoint,
         "{} has {} bytes, and the checkpoint belongs to {}: lines of it were lost; put it back, or start anew from "
         "the weights with `linnet fork`",
         log.string(), has, size);
}
}  // namespace

void Log::cut(int64_t size) {
  require_whole(path_, size_, size);
  if (uninterrupted([&] { return ::ftruncate(fd_, size); }) != 0)
    fail(Exit::checkpoint, "cannot cut {}: {}", path_.string(), std::generic_category().message(errno));
  size_ = size;
  digest_ = std::make_unique<Xxh3>();
  digest_->update(read_file(path_, kLogBytes, Exit::checkpoint));
}

std::string Log::keep() {
  struct stat own {};
  struct stat named {};
  if (::fstat(fd_, &own) != 0) return "";
  const bool there = ::lstat(path_.c_str(), &named) == 0;
  if (!there && errno != ENOENT) return "";  // who knows; whatever is wrong will be told by what fails
  if (there && named.st_dev == own.st_dev && named.st_ino == own.st_ino) {
    if (own.st_size == size_) return "";
    return fmt::format(
        "{} is not as long as what was written to it: something else changes it, and lines may be lost\n",
        path_.string());
  }
  if (there)
    return fmt::format(
        "{} is another file than the one that this run writes, whose lines are lost at its end unless "
        "that file is moved away now\n",
        path_.string());
  std::string text(size_t(size_), '\0');
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = uninterrupted([&] { return ::pread(fd_, text.data() + done, text.size() - done, off_t(done)); });
    if (n <= 0) return fmt::format("{} was removed, and what it had cannot be read\n", path_.string());
    done += size_t(n);
  }
  write_file_atomically(path_, text, Exit::checkpoint);
  const int anew = ::open(path_.c_str(), O_RDWR | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (anew < 0) fail(Exit::checkpoint, "cannot write {}: {}", path_.string(), std::generic_category().message(errno));
  ::close(std::exchange(fd_, anew));
  return fmt::format("{} was removed; it was written anew, with all its lines\n", path_.string());
}

void Log::sync() {
  if (::fdatasync(fd_) != 0)
    fail(Exit::checkpoint, "cannot write {}: {}", path_.string(), std::generic_category().message(errno));
}

// ---- RunFolder -----------------------------------------------------------------------------------------------------

namespace {

constexpr size_t kMostOrigin = 500;  // bytes of what a fork's env.json says that it began from

// A file that tells about a run, which goes on as well without it.
Json read_told(const fs::path& file) {
  try {
    return read_json(file, Exit::checkpoint);
  } catch (const Error& e) {
    fail(e.exit, "{}; put the file back or move it away: the run can go on without it", e.what());
  }
}

// What write_file_atomically leaves when it is killed.
bool is_left_over(const fs::path& file) {
  const std::string name = file.filename().string();
  return name.starts_with(".linnet-") && name.ends_with(".tmp");
}

// What a run that was killed or refused before it began may leave in its folder: nothing that it would lose. A
// checkpoint of step 0 is that of a fork, the weights that it was given; a run that has begun has its config beside it.
bool is_of_no_run(const fs::path& file) {
  const auto is_of_checkpoint = [](const fs::directory_entry& e) {
    return e.path().extension() == ".safetensors" || e.path().extension() == ".json";
  };
  const auto is_worthless = [&](const fs::directory_entry& e) {
    const std::string name = e.path().filename().string();
    return is_unfinished_save(name) || (name == checkpoint_name(0) && e.is_directory() &&
                                        std::ranges::all_of(fs::directory_iterator(e.path()), is_of_checkpoint));
  };
  const fs::path name = file.filename();
  std::error_code error;
  if (name == "checkpoints" && fs::is_directory(fs::symlink_status(file, error)))
    return std::ranges::all_of(fs::directory_iterator(file), is_worthless);
  return name == "LOCK" || is_left_over(file);
}

void remove_left_overs(const fs::path& dir) {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(dir))
    if (is_left_over(entry.path())) found.push_back(entry.path());
  std::error_code ignored;  // they take space and do no harm
  for (const fs::path& file : found) fs::remove(file, ignored);
}

// What a log of which `size` bytes belong to a checkpoint has of them.
std::string kept_of(const fs::path& log, int64_t size) {
  std::error_code error;
  std::string text = fs::exists(log, error) ? read_file(log, kLogBytes, Exit::checkpoint) : "";
  require_whole(log, int64_t(text.size()), size);
  return text.substr(0, size_t(size));
}

// The last row of a kind in a log's text; an empty one if there is none.
Row last_row(const std::string& text, const std::string& kind, const fs::path& log) {
  const std::string mark = fmt::format("\"kind\":\"{}\"", kind);
  const size_t at = text.rfind(mark);
  if (at == text.npos) return {};
  const size_t before = text.rfind('\n', at), begin = before == text.npos ? 0 : before + 1;
  return parse_row(std::string_view(text).substr(begin, text.find('\n', at) - begin), log.string());
}

// The sittings before one that goes on with a run, which env.json told of so far: of each when it started, and what was
// not then as it is now. Anyone may have changed that file: short texts are taken of it, and the last thousand
// sittings.
Json earlier_sittings(const Json& before, const Json& now) {
  constexpr size_t kSittings = 1000, kText = 1000, kFacts = 50;
  const auto facts = [&](const Json& sitting, const auto& wanted) {
    Json kept = Json::object();
    if (sitting.is_object())
      for (const auto& [key, value] : sitting.items())
        if (kept.size() < kFacts && key.size() < kText && value.is_string() &&
            value.template get_ref<const std::string&>().size() < kText && wanted(key, value))
          kept[key] = value;
    return kept;
  };
  Json all = Json::array();
  if (const auto list = before.find("earlier"); list != before.end() && list->is_array())
    for (size_t i = list->size() - std::min(list->size(), kSittings - 1); i < list->size(); ++i)
      all.push_back(facts((*list)[i], [](const std::string&, const Json&) { return true; }));
  all.push_back(facts(before, [&](const std::string& key, const Json& value) {
    return key == "started" || (now.contains(key) && now[key] != value);
  }));
  return all;
}

// What the epochs in the log say together.
Json verdict_of(const fs::path& run) {
  std::vector<EpochResult> epochs;
  Json json = Json::object();
  try {
    for (const LoggedRow& row : read_rows(run))
      if (row.kind == "epoch") epochs.push_back(epoch_result(row));
  } catch (const Error&) {  // somebody has changed the log: that is no reason to fail
    return json;
  }
  if (epochs.empty()) return json;
  const Verdict verdict = judge_fit(epochs);
  json["fit"] = {{"verdict", verdict.kind}, {"text", verdict.text}};
  json["epochs_to"] = Json::object();  // "0.5": 3
  for (const Reached& r : epochs_to(epochs)) json["epochs_to"][fmt::format("{}", r.acc)] = r.epoch;
  return json;
}

}  // namespace

RunFolder::RunFolder(const fs::path& dir, const Config& config, Backend& backend, const RunData& data) : dir_(dir) {
  std::error_code error;
  if (fs::exists(dir, error) && !fs::is_directory(dir, error))
    fail(Exit::usage, "the run folder {} exists and is no folder; choose another with --out", dir.string());
  make_folders(dir, error);
  if (error)
    fail(Exit::checkpoint, "cannot create the run folder {}: {}; choose another with --out", dir.string(),
         error.message());
  if (fs::exists(dir / "config.toml", error)) {
    const RunLock free(dir);  // a run that goes on at this moment is told as that
    fail(Exit::usage, "there is a run in {} already: go on with it by `linnet resume`, or choose another with --out",
         dir.string());
  }
  for (const auto& entry : fs::directory_iterator(dir)) {
    if (is_of_no_run(entry.path())) continue;
    if (fs::exists(dir / "LOCK", error)) const RunLock free(dir);  // one that begins at this moment, too
    fail(Exit::usage, "the run folder {} exists and is not empty; choose another with --out", dir.string());
  }
  lock_ = std::make_unique<RunLock>(dir);
  if (fs::exists(dir / "config.toml", error))
    fail(Exit::locked, "another process has just started a run in {}", dir.string());
  fs::remove_all(dir / "checkpoints", error);  // of no run, or not there
  if (error)
    fail(Exit::checkpoint, "cannot remove {}, which belongs to no run: {}", (dir / "checkpoints").string(),
         error.message());
  open(config, backend, data);
}

RunFolder::RunFolder(const fs::path& dir, const Config& config, Backend& backend, const RunData& data, Existing)
    : dir_(dir), lock_(std::make_unique<RunLock>(dir)) {
  std::error_code error;
  Json before;
  if (fs::exists(dir / "env.json", error)) {
    before = read_told(dir / "env.json");
    const Json now = describe(data);
    for (const char* split : {"train", "val", "test"}) {
      const std::string was = text_at(before, fmt::format("/data/{}/xxh3", split));
      const std::string is = text_at(now, fmt::format("/{}/xxh3", split));
      if (!was.empty() && was != is)
        fail(
            Exit::data,
            "the run in {} was trained with other {} images: their XXH3 was {}, and now it is {}; set data.path to the "
            "images of then, or start a new run with `linnet fork`",
            dir.string(), split, was, is);
    }
  }
  if (fs::exists(dir / "summary.json", error)) {
    const std::string status = text_at(read_told(dir / "summary.json"), "/status");
    was_saved_ = status == "done" || status == "interrupted";
  }
  // One that was killed or failed says neither. But a run that has begun to train has a folder of checkpoints, and this
  // file is written behind one of them or where none is due before the end.
  const auto has = [&](const char* trace) {
    return fs::is_regular_file(dir / trace, error) && fs::file_size(dir / trace, error) > 0;
  };
  was_saved_ |= has("model.safetensors") || (!fs::exists(dir / "checkpoints", error) && has("metrics.jsonl"));
  open(config, backend, data);
  if (!before.is_object()) return;
  Json env = Json::parse(env_);
  if (const std::string weights = text_at(before, "/weights"); !weights.empty()) {
    if (weights.size() < 2 * kMostOrigin) env["weights"] = weights;
    was_saved_ = true;  // begin() came behind a checkpoint of them
  }
  env["earlier"] = earlier_sittings(before, env);
  env_ = env.dump(2) + "\n";
}

RunFolder::~RunFolder() {
  if (begun_ && status_ == "running") fail_run("failed", "it ended before the training began", nullptr, nullptr);
}

void RunFolder::open(const Config& config, Backend& backend, const RunData& data) {
  Json env = {{"linnet", version()}, {"compiler", LINNET_COMPILER}, {"started", utc_now()}};
  for (const auto& [key, value] : backend.info()) env[key] = value;
  env["data"] = describe(data);
  env["data"]["name"] = config.data.name;
  env["data"]["image"] = {data.train.height, data.train.width, data.train.channels};
  env["data"]["classes"] = data.train.classes;
  env["data"]["class_names"] = data.train.class_names;
  config_ = to_toml(config);
  env_ = env.dump(2) + "\n";
  facts_ = {{"linnet", version()}, {"compiler", LINNET_COMPILER}, {"data", digest(data.train)}};
  // What must not change in the middle of a run: an edited config.toml is seen by it.
  const Config defaults;
  std::string fixed;
  for (const ConfigChange& c : differences(defaults, config))
    if (!is_safe_to_change(c.key)) fixed += fmt::format("{} = {}\n", c.key, c.to);
  facts_["config"] = xxh3(fixed);
  for (const auto& [key, value] : backend.info())
    if (key != "threads") facts_[key] = value;  // any number of threads gives the same bits
}

void RunFolder::begin(const std::string& weights) {
  if (!weights.empty()) {
    Json env = Json::parse(env_);
    env["weights"] = escaped(weights, kMostOrigin);
    env_ = env.dump(2) + "\n";
  }
  remove_left_overs(dir_);
  write("config.toml", config_);
  write("env.json", env_);
  metrics_ = std::make_unique<Log>(dir_ / "metrics.jsonl");
  timing_ = std::make_unique<Log>(dir_ / "timing.jsonl");
  begun_ = true;
  write_summary();
}

RunState RunFolder::state() const {
  RunState s = state_;
  s.wall_s = wall_s();
  if (!begun_) return s;
  s.metrics_bytes = metrics_->size();
  s.timing_bytes = timing_->size();
  s.metrics_xxh3 = metrics_->digest();
  return s;
}

double RunFolder::wall_s() const {
  return state_.wall_s + std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
}

bool RunFolder::restore(const RunState& s) {
  require_own_folder();
  const fs::path log = dir_ / "metrics.jsonl";
  // Whatever is wrong with it is found before anything is written: a refused resume leaves the summary as it is.
  const std::string kept = kept_of(log, s.metrics_bytes);
  if (!kept.empty() && kept.back() != '\n')
    fail(Exit::checkpoint,
         "{} was changed: its first {} bytes, which belong to the checkpoint, end within a line; put it back, or start "
         "anew from the weights with `linnet fork`",
         log.string(), kept.size());
  const Row last_epoch = last_row(kept, "epoch", log);
  if (!begun_) begin();
  metrics_->cut(s.metrics_bytes);
  timing_->cut(std::min(s.timing_bytes, timing_->size()));  // it only tells the time: without it a run goes on
  state_ = s;
  started_ = std::chrono::steady_clock::now();
  last_epoch_ = last_epoch;
  test_ = {};
  return s.metrics_bytes == 0 || s.metrics_xxh3 == metrics_->digest();
}

int64_t RunFolder::last_logged_step() const try {
  const std::string text = read_file(dir_ / "metrics.jsonl", kLogBytes, Exit::checkpoint);
  const size_t end = text.rfind('\n'), before = end == 0 || end == text.npos ? text.npos : text.rfind('\n', end - 1);
  const size_t begin = before == text.npos ? 0 : before + 1;
  return end == text.npos ? 0 : parse_row(std::string_view(text).substr(begin, end - begin), "metrics.jsonl").step;
} catch (const Error&) {
  return 0;
}

std::string RunFolder::keep_logs() {
  if (!begun_ || !lock_->holds(dir_)) return "";  // moved: a checkpoint still goes where the folder is now
  std::string told;
  for (Log* log : {metrics_.get(), timing_.get()}) try {
      told += log->keep();
    } catch (const Error& e) {  // a disk that is full, say: no reason not to save
      told += fmt::format("{}\n", e.what());
    }
  return told;
}

void RunFolder::sync_logs() {
  if (!begun_) return;
  metrics_->sync();
  timing_->sync();
}

void RunFolder::on_row(const Row& row) {
  require(begun_, "[run] begin() comes before the first row");
  Json metrics = {{"schema", 1}, {"kind", row.kind}, {"epoch", row.epoch}, {"step", row.step}};
  for (const auto& [name, value] : row.values) metrics[name] = number(value);
  if (!row.hash.empty()) metrics["hash"] = row.hash;
  metrics_->append(metrics.dump());

  Json timing = {{"kind", row.kind}, {"epoch", row.epoch}, {"step", row.step}, {"wall_s", wall_s()}};
  if (row.img_per_s > 0) timing["img_per_s"] = row.img_per_s;
  timing_->append(timing.dump());

  if (row.kind == "test") test_ = row;
  if (row.kind != "epoch") return;
  last_epoch_ = row;
  if (const double acc = row["val/acc"]; acc > state_.best_val_acc) {
    state_.best_val_acc = acc;
    state_.best_epoch = row.epoch;
  }
}

std::string RunFolder::summary() const {
  Json json = {{"status", status_}};
  if (!reason_.empty()) json["reason"] = reason_;
  if (!last_epoch_.kind.empty()) {
    json["epoch"] = last_epoch_.epoch;
    json["step"] = last_epoch_.step;
    for (const auto& [name, value] : last_epoch_.values)
      if (!name.starts_with("update_ratio/")) json[name] = number(value);
    json["hash"] = last_epoch_.hash;
  }
  if (status_ != "running") json.update(verdict_of(dir_));
  if (state_.best_val_acc >= 0) json["best"] = {{"val/acc", state_.best_val_acc}, {"epoch", state_.best_epoch}};
  for (const auto& [name, value] : test_.values) json[name] = number(value);
  json["wall_s"] = timing_ ? wall_s() : 0.0;
  return json.dump(2) + "\n";
}

// Files are written by the folder's name, and another run may have it by now.
void RunFolder::require_own_folder() const {
  if (!lock_->holds(dir_))
    fail(Exit::checkpoint,
         "the folder of this run was moved or replaced: nothing is written to {}; go on where it is now with `linnet "
         "resume`",
         dir_.string());
}

void RunFolder::write(const char* name, const std::string& text) const {
  require_own_folder();
  write_file_atomically(dir_ / name, text, Exit::checkpoint);
}

void RunFolder::write_summary() { write("summary.json", summary()); }

void RunFolder::save(Trainer& trainer) {
  require_own_folder();
  Net& net = trainer.net();
  save_weights(dir_ / "model.safetensors", net.backend(), net.params(), {{"linnet", version()}});
  if (trainer.updater().has_average())
    trainer.updater().with_average(trainer.global_step() - trainer.last_result().skipped, [&] {
      save_weights(dir_ / "ema.safetensors", net.backend(), net.params(), {{"linnet", version()}});
    });
}

void RunFolder::finish(const std::string& status, Trainer& trainer, const std::string& reason) {
  save(trainer);
  save_predictions(trainer.test_predictions());
  status_ = status;
  reason_ = reason;
  write_summary();
}

// Columns, as an array of objects would repeat three names for every image.
void RunFolder::save_predictions(const std::vector<Prediction>& predictions) {
  if (predictions.empty()) return;
  std::vector<int32_t> label, predicted;
  std::vector<double> probability;
  for (const Prediction& p : predictions) {
    label.push_back(p.label);
    predicted.push_back(p.predicted);
    probability.push_back(std::round(double(p.probability) * 1e6) / 1e6);
  }
  const Json json = {
      {"schema", 1}, {"split", "test"}, {"label", label}, {"predicted", predicted}, {"probability", probability}};
  write("predictions.json", json.dump() + "\n");
}

void RunFolder::fail_run(const std::string& status, const std::string& reason, Trainer* trainer,
                         const BadStep* bad) noexcept {
  status_ = status;
  reason_ = reason;
  // Each as far as it can still be written: a second failure must not hide the error that ended the run.
  const auto attempt = [](const auto& write) {
    try {
      write();
    } catch (const std::exception&) {
    }
  };
  // Before its first checkpoint a run starts over: weights beside it would say that it had one. Behind two of them that
  // were due, or once it was resumed from one, they are gone, and its weights are what is left.
  const auto starts_over = [&] {
    const double due = trainer->config().checkpoint.epochs * double(trainer->steps_per_epoch());
    return due > 0 && double(trainer->global_step()) <= 2 * due && !was_saved_ &&
           !has_checkpoints(dir_ / "checkpoints");
  };
  if (trainer)
    attempt([&] {
      if (!starts_over()) save(*trainer);
    });
  if (bad)
    attempt([&] {
      Json json = {{"step", bad->step},     {"epoch", bad->epoch},     {"loss", number_or_name(bad->loss)},
                   {"where", bad->where},   {"samples", bad->samples}, {"tensors", Json::array()},
                   {"steps", Json::array()}};
      for (const TensorLook& t : bad->tensors)
        json["tensors"].push_back(
            {{"what", t.what}, {"largest", t.largest}, {"nonfinite", t.nonfinite}, {"numbers", t.numbers}});
      for (const StepTrace& t : bad->steps)
        json["steps"].push_back(
            {{"step", t.step}, {"loss", number(t.loss)}, {"grad_norm", number(t.grad_norm)}, {"lr", number(t.lr)}});
      write("nonfinite.json", json.dump(2) + "\n");
    });
  attempt([&] { write_summary(); });
}

}  // namespace linnet
