#include "linnet/weights.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <set>

#include "linnet/text.h"

namespace linnet {
namespace fs = std::filesystem;
namespace {

// A tensor of the model and how the file has it.
struct Slot {
  std::string name;
  std::vector<int64_t> shape;  // in the file
  Kind kind;
  bool buffer;
  int64_t offset;  // in Flat::master or Flat::buffers
  Tensor tensor;
};

std::vector<Slot> slots_of(ParamStore& store) {
  require(bool(store.flat().master), "[weights] the store is not sealed: the model has no values yet");
  std::vector<Slot> slots;
  for (const Param* p : store.params()) {
    std::vector<int64_t> shape(p->shape.begin(), p->shape.end());
    if (p->kind == Kind::conv_weight) {
      require(shape.size() == 4, "[weights] expected '{}' as [out, kernel_h, kernel_w, in], got {}", p->name, p->shape);
      shape = {shape[0], shape[3], shape[1], shape[2]};
    }
    slots.push_back({p->name, shape, p->kind, false, p->offset, p->master});
  }
  for (const Buffer& b : store.buffers())
    slots.push_back(
        {b.name, std::vector<int64_t>(b.shape.begin(), b.shape.end()), Kind::plain, true, b.offset, b.value});
  return slots;
}

// Walks a convolution's weights in both layouts at once: at(index in the file, index in memory).
template <class At>
void for_each_weight(const std::vector<int64_t>& shape, At at) {
  const int64_t out = shape[0], in = shape[1], height = shape[2], width = shape[3];
  int64_t file = 0;
  for (int64_t o = 0; o < out; ++o)
    for (int64_t i = 0; i < in; ++i)
      for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x) at(file++, ((o * height + y) * width + x) * in + i);
}

std::vector<float> to_file_layout(const Slot& slot, const std::vector<float>& memory) {
  if (slot.kind != Kind::conv_weight) return memory;
  std::vector<float> file(memory.size());
  for_each_weight(slot.shape, [&](int64_t f, int64_t m) { file[size_t(f)] = memory[size_t(m)]; });
  return file;
}

std::vector<float> to_memory_layout(const Slot& slot, const std::vector<float>& file) {
  if (slot.kind != Kind::conv_weight) return file;
  std::vector<float> memory(file.size());
  for_each_weight(slot.shape, [&](int64_t f, int64_t m) { memory[size_t(m)] = file[size_t(f)]; });
  return memory;
}

std::vector<float> floats_of(const StoredTensor& stored) {
  std::vector<float> values(stored.bytes.size() / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), stored.bytes.data(), values.size() * sizeof(float));
  return values;
}

// What keeps `stored` from being this tensor of the model; empty: nothing.
std::string difference(const Slot& slot, const StoredTensor& stored) {
  if (stored.dtype != "F32" || stored.shape != slot.shape)
    return fmt::format("expected F32 [{}], got {} [{}]", fmt::join(slot.shape, ","), escaped(stored.dtype),
                       fmt::join(stored.shape, ","));
  if (stored.bytes.size() != slot.tensor.bytes())
    return fmt::format("expected {} bytes, got {}", slot.tensor.bytes(), stored.bytes.size());
  const bool variance = slot.name.ends_with("running_var");
  const std::vector<float> values = floats_of(stored);
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) return fmt::format("expected finite numbers, got {} at {}", values[i], i);
    if (variance && values[i] < 0) return fmt::format("expected no variance below 0, got {} at {}", values[i], i);
  }
  return "";
}

// One line for each tensor that is missing, that does not fit, or that the model does not have.
std::vector<std::string> differences(const std::vector<Slot>& slots, const SafeTensors& weights) {
  std::vector<std::string> lines;
  std::set<std::string> known;
  for (const Slot& slot : slots) {
    known.insert(slot.name);
    const auto found = weights.tensors.find(slot.name);
    if (found == weights.tensors.end()) {
      lines.push_back(fmt::format("'{}' is missing: expected F32 [{}]", slot.name, fmt::join(slot.shape, ",")));
    } else if (const std::string why = difference(slot, found->second); !why.empty()) {
      lines.push_back(fmt::format("'{}': {}", slot.name, why));
    }
  }
  for (const auto& [name, stored] : weights.tensors)
    if (!known.contains(name) && name != "num_batches_tracked" && !name.ends_with(".num_batches_tracked"))
      lines.push_back(fmt::format("'{}' is left over: the model has no such tensor", escaped(name)));
  return lines;
}

}  // namespace

SafeTensors name_weights(ParamStore& store, std::span<const float> master, std::span<const float> buffers) {
  SafeTensors weights;
  for (const Slot& slot : slots_of(store)) {
    const auto flat = slot.buffer ? buffers : master;
    const auto part = flat.subspan(size_t(slot.offset), size_t(slot.tensor.numel()));
    const std::vector<float> values = to_file_layout(slot, {part.begin(), part.end()});
    const char* bytes = reinterpret_cast<const char*>(values.data());
    const bool added =
        weights.tensors.insert({slot.name, {"F32", slot.shape, {bytes, bytes + slot.tensor.bytes()}}}).second;
    require(added, "[weights] the model has two tensors named '{}'", slot.name);
  }
  return weights;
}

SafeTensors get_weights(Backend& backend, ParamStore& store) {
  const auto host = [&](const Tensor& t) {
    std::vector<float> values(static_cast<size_t>(t.numel()));
    backend.download(values.data(), t);
    return values;
  };
  slots_of(store);  // complains about a store without values
  return name_weights(store, host(store.flat().master), host(store.flat().buffers));
}

void set_weights(Backend& backend, ParamStore& store, const SafeTensors& weights, const std::string& origin) {
  const std::vector<Slot> slots = slots_of(store);
  const std::vector<std::string> lines = differences(slots, weights);
  if (!lines.empty())
    fail(Exit::checkpoint, "{} does not fit the model, which is unchanged; {} of its tensors differ:\n  {}", origin,
         lines.size(), fmt::join(lines, "\n  "));

  // Host memory may run out here, so the first upload waits until all is ready.
  std::vector<std::vector<float>> values;
  for (const Slot& slot : slots) values.push_back(to_memory_layout(slot, floats_of(weights.tensors.at(slot.name))));
  for (size_t i = 0; i < slots.size(); ++i) backend.upload(slots[i].tensor, values[i].data());
}

void save_weights(const fs::path& path, Backend& backend, ParamStore& store,
                  const std::map<std::string, std::string>& metadata) {
  SafeTensors weights = get_weights(backend, store);
  weights.metadata = metadata;
  write_safetensors(path, weights);
}

void load_weights(const fs::path& path, Backend& backend, ParamStore& store) {
  set_weights(backend, store, read_safetensors(path), path.string());
}

}  // namespace linnet
