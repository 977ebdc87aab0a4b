#include "linnet/run.h"

#include <fmt/chrono.h>
#include <xxhash.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "linnet/commit.h"  // written by the build
#include "linnet/weights.h"
#include "src/core/file.h"

namespace linnet {

namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

// JSON has no NaN: such a value becomes null.
Json number(double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); }

std::string hash_of(const Images& images) {
  return fmt::format("{:016x}", XXH3_64bits_withSeed(images.pixels.data(), images.pixels.size(),
                                                     XXH3_64bits(images.labels.data(), images.labels.size() * 4)));
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
  fs::create_directories(root, error);
  fs::path dir = root / name;
  // Creating it is what makes it ours: of two runs that start in the same second, one goes on to the next name.
  for (int i = 2; !fs::create_directory(dir, error) && !error; ++i) dir = root / fmt::format("{}-{}", name, i);
  return dir;
}

RunFolder::RunFolder(const fs::path& dir, const Config& config, Backend& backend, const RunData& data) : dir_(dir) {
  std::error_code error;
  if (fs::exists(dir, error) && !fs::is_directory(dir, error))
    fail(Exit::usage, "the run folder {} exists and is no folder; choose another with --out", dir.string());
  if (fs::exists(dir, error) && !fs::is_empty(dir, error))
    fail(Exit::usage, "the run folder {} exists and is not empty; choose another with --out", dir.string());
  fs::create_directories(dir, error);
  if (error)
    fail(Exit::checkpoint, "cannot create the run folder {}: {}; choose another with --out", dir.string(),
         error.message());
  // Of two processes that find the same empty folder, the one that creates this file has it.
  if (std::FILE* claim = std::fopen((dir / "config.toml").c_str(), "wx"))
    std::fclose(claim);
  else
    fail(errno == EEXIST ? Exit::locked : Exit::checkpoint, "cannot start a run in {}: {}", dir.string(),
         errno == EEXIST ? "another process has just started one there" : std::generic_category().message(errno));

  write_file_atomically(dir / "config.toml", to_toml(config), Exit::checkpoint);
  Json env = {{"linnet", version()}, {"compiler", LINNET_COMPILER}, {"started", utc_now()}};
  for (const auto& [key, value] : backend.info()) env[key] = value;
  env["data"] = {{"name", config.data.name},
                 {"train", {{"images", data.train.size()}, {"xxh3", hash_of(data.train)}}},
                 {"val", {{"images", data.val.size()}, {"xxh3", hash_of(data.val)}}}};
  write_file_atomically(dir / "env.json", env.dump(2) + "\n", Exit::checkpoint);
  metrics_.open(dir / "metrics.jsonl");
  timing_.open(dir / "timing.jsonl");
  write_summary();
}

void RunFolder::append(std::ofstream& file, const std::string& name, const std::string& line) {
  file << line << '\n' << std::flush;
  if (!file)
    fail(Exit::checkpoint, "cannot write {}: {}", (dir_ / name).string(), std::generic_category().message(errno));
}

void RunFolder::on_row(const Row& row) {
  Json metrics = {{"schema", 1}, {"kind", row.kind}, {"epoch", row.epoch}, {"step", row.step}};
  for (const auto& [name, value] : row.values) metrics[name] = number(value);
  if (!row.hash.empty()) metrics["hash"] = row.hash;
  append(metrics_, "metrics.jsonl", metrics.dump());

  const double wall = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  Json timing = {{"kind", row.kind}, {"epoch", row.epoch}, {"step", row.step}, {"wall_s", wall}};
  if (row.img_per_s > 0) timing["img_per_s"] = row.img_per_s;
  append(timing_, "timing.jsonl", timing.dump());

  if (row.kind == "test") test_ = row;
  if (row.kind != "epoch") return;
  last_epoch_ = row;
  if (const double acc = row["val/acc"]; acc > best_val_acc_) {
    best_val_acc_ = acc;
    best_epoch_ = row.epoch;
  }
}

std::string RunFolder::summary() const {
  Json json = {{"status", status_}};
  if (!reason_.empty()) json["reason"] = reason_;
  if (!last_epoch_.kind.empty()) {
    json["epoch"] = last_epoch_.epoch;
    json["step"] = last_epoch_.step;
    for (const auto& [name, value] : last_epoch_.values) json[name] = number(value);
    json["hash"] = last_epoch_.hash;
  }
  if (best_val_acc_ >= 0) json["best"] = {{"val/acc", best_val_acc_}, {"epoch", best_epoch_}};
  for (const auto& [name, value] : test_.values) json[name] = number(value);
  json["wall_s"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
  return json.dump(2) + "\n";
}

void RunFolder::write_summary() { write_file_atomically(dir_ / "summary.json", summary(), Exit::checkpoint); }

void RunFolder::save(Net& net) {
  save_weights(dir_ / "model.safetensors", net.backend(), net.params(), {{"linnet", version()}});
}

void RunFolder::finish(const std::string& status, Net& net, const std::string& reason) {
  save(net);
  status_ = status;
  reason_ = reason;
  write_summary();
}

void RunFolder::fail_run(const std::string& status, const std::string& reason, Net* net) noexcept {
  status_ = status;
  reason_ = reason;
  // Each as far as it can still be written: a second failure must not hide the error that ended the run.
  const auto attempt = [](const auto& write) {
    try {
      write();
    } catch (const std::exception&) {
    }
  };
  if (net) attempt([&] { save(*net); });
  attempt([&] { write_summary(); });
}

}  // namespace linnet
