#include "linnet/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
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
  bool buffer;
  int64_t offset;  // in Flat::master or Flat::buffers
  Tensor tensor;
  std::vector<int64_t> planes;  // [out, channels, height, width] where memory has the channels last; else empty
};

std::vector<Slot> slots_of(ParamStore& store) {
  require(bool(store.flat().master), "[weights] the store is not sealed: the model has no values yet");
  std::vector<Slot> slots;
  for (const Param* p : store.params()) {
    std::vector<int64_t> shape(p->shape.begin(), p->shape.end()), planes;
    if (p->kind == Kind::conv_weight) {
      require(shape.size() == 4, "[weights] expected '{}' as [out, kernel_h, kernel_w, in], got {}", p->name, p->shape);
      planes = shape = {shape[0], shape[3], shape[1], shape[2]};
    } else if (const Shape& f = p->flattened; f.rank() == 3) {
      require(shape.size() == 2 && shape[1] == f.numel(), "[weights] expected '{}' as [out, {}], got {}", p->name,
              f.numel(), p->shape);
      planes = {shape[0], f[2], f[0], f[1]};
    }
    slots.push_back({p->name, shape, false, p->offset, p->master, planes});
  }
  for (const Buffer& b : store.buffers())
    slots.push_back({b.name, std::vector<int64_t>(b.shape.begin(), b.shape.end()), true, b.offset, b.value, {}});
  return slots;
}

// Walks weights in both layouts at once: at(index in the file, index in memory).
template <class At>
void for_each_weight(const std::vector<int64_t>& planes, At at) {
  const int64_t out = planes[0], in = planes[1], height = planes[2], width = planes[3];
  int64_t file = 0;
  for (int64_t o = 0; o < out; ++o)
    for (int64_t i = 0; i < in; ++i)
      for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x) at(file++, ((o * height + y) * width + x) * in + i);
}

std::vector<float> to_file_layout(const Slot& slot, const std::vector<float>& memory) {
  if (slot.planes.empty()) return memory;
  std::vector<float> file(memory.size());
  for_each_weight(slot.planes, [&](int64_t f, int64_t m) { file[size_t(f)] = memory[size_t(m)]; });
  return file;
}

std::vector<float> to_memory_layout(const Slot& slot, const std::vector<float>& file) {
  if (slot.planes.empty()) return file;
  std::vector<float> memory(file.size());
  for_each_weight(slot.planes, [&](int64_t f, int64_t m) { memory[size_t(m)] = file[size_t(f)]; });
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

bool is_counter(const std::string& name) {
  return name == "num_batches_tracked" || name.ends_with(".num_batches_tracked");
}

// The layer that gives the logits, by the prefix of its parameters: "linear.".
std::string head_of(ParamStore& store) {
  const std::string& last = store.params().back()->name;
  return last.substr(0, last.rfind('.') + 1);
}

void replace_prefix(std::string& name, std::string_view from, const std::string& to) {
  if (name.starts_with(from)) name.replace(0, from.size(), to);
}

// PyTorch's names as this model has them. A name that would then occur twice stays, and is seen to be left over.
std::map<std::string, const StoredTensor*> under_our_names(ParamStore& store, const SafeTensors& weights) {
  const auto parallel = [](const auto& t) { return t.first.starts_with("module."); };
  const bool wrapped = !weights.tensors.empty() && std::ranges::all_of(weights.tensors, parallel);
  std::set<std::string> known;
  for (const Param* p : store.params()) known.insert(p->name);
  for (const Buffer& b : store.buffers()) known.insert(b.name);
  const std::string head = store.params().empty() ? "" : head_of(store);

  std::map<std::string, const StoredTensor*> named;
  for (const auto& [file_name, tensor] : weights.tensors) {
    std::string name = wrapped ? file_name.substr(7) : file_name;
    if (is_counter(name)) continue;
    std::string ours = name;
    if (!known.contains(name)) {
      for (const char* last : {"fc.", "linear."}) replace_prefix(ours, last, head);
      if (const size_t at = ours.find(".downsample."); at != ours.npos) ours.replace(at, 12, ".shortcut.");
    }
    const bool taken =
        ours != name && (named.contains(ours) || weights.tensors.contains((wrapped ? "module." : "") + ours));
    if (!named.emplace(taken || !known.contains(ours) ? name : ours, &tensor).second) named[file_name] = &tensor;
  }
  return named;
}

// One line for each tensor that is missing, that does not fit, or that the model does not have.
std::vector<std::string> differences(const std::vector<Slot>& slots,
                                     const std::map<std::string, const StoredTensor*>& weights) {
  std::vector<std::string> lines;
  std::set<std::string> known;
  for (const Slot& slot : slots) {
    known.insert(slot.name);
    const auto found = weights.find(slot.name);
    if (found == weights.end()) {
      lines.push_back(fmt::format("'{}' is missing: expected F32 [{}]", slot.name, fmt::join(slot.shape, ",")));
    } else if (const std::string why = difference(slot, *found->second); !why.empty()) {
      lines.push_back(fmt::format("'{}': {}", slot.name, why));
    }
  }
  for (const auto& [name, stored] : weights)
    if (!known.contains(name))
      lines.push_back(fmt::format("'{}' is left over: the model has no such tensor", escaped(name)));
  return lines;
}

// Where all differences have one reason that can be named.
std::string_view advice(const std::vector<std::string>& lines, const std::string& head) {
  const auto all = [&](auto reason) { return std::ranges::all_of(lines, reason); };
  if (all([&](const std::string& line) { return !head.empty() && line.substr(1).starts_with(head); }))
    return "\nonly the last layer differs: `linnet fork --new-head` starts it anew, for other classes";
  if (all([](const std::string& line) { return line.find(".shortcut.") != line.npos; }))
    return "\nonly the shortcuts differ: model.shortcut = \"B\" has weights in them, \"A\" has none";
  const auto of_type = [](const std::string& line) {
    return line.find(", got ") != line.npos && line.find(", got F32 ") == line.npos &&
           line.find(": expected F32 [") != line.npos;
  };
  if (all(of_type)) return "\nnumbers are read in F32 alone: scripts/from_pytorch.py makes such a file";
  return "";
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

void set_weights(Backend& backend, ParamStore& store, const SafeTensors& weights, const std::string& origin,
                 Head head) {
  std::vector<Slot> slots = slots_of(store);
  std::map<std::string, const StoredTensor*> named = under_our_names(store, weights);
  const std::string last = store.params().empty() ? "" : head_of(store);
  const auto in_head = [&](const std::string& name) { return !last.empty() && name.starts_with(last); };
  if (head == Head::fresh) {
    std::erase_if(slots, [&](const Slot& slot) { return in_head(slot.name); });
    std::erase_if(named, [&](const auto& tensor) { return in_head(tensor.first); });
  }
  const std::vector<std::string> lines = differences(slots, named);
  if (!lines.empty()) {
    fail(Exit::checkpoint, "{} does not fit the model, which is unchanged; {} of its tensors differ:\n  {}{}", origin,
         lines.size(), fmt::join(lines, "\n  "), advice(lines, last));
  }

  // Host memory may run out here, so the first upload waits until all is ready.
  std::vector<std::vector<float>> values;
  for (const Slot& slot : slots) values.push_back(to_memory_layout(slot, floats_of(*named.at(slot.name))));
  for (size_t i = 0; i < slots.size(); ++i) backend.upload(slots[i].tensor, values[i].data());
}

WeightPlace find_weight(ParamStore& store, const std::string& text) {
  const size_t bracket = std::min(text.find('['), text.size());
  const std::string name = text.substr(0, bracket);
  std::vector<std::string> known;
  for (const Param* p : store.params()) known.push_back(p->name);
  const auto found = std::ranges::find(known, name);
  if (found == known.end()) {
    const std::string near = nearest(name, known);
    fail(Exit::usage, "log.probe: there is no weight '{}'; {}", escaped(name),
         near.empty() ? fmt::format("they are called {}, {}, ...", known.front(), known.back())
                      : fmt::format("did you mean '{}'?", near));
  }
  const size_t index = size_t(found - known.begin());
  const Slot slot = slots_of(store)[index];  // parameters come first, in their order
  std::vector<int64_t> at;
  const char *c = text.data() + std::min(bracket + 1, text.size()), *end = text.data() + text.size();
  for (int64_t i = 0; c < end && at.size() < slot.shape.size();
       ++c) {  // each number with the comma or bracket behind it
    const auto [next, error] = std::from_chars(c, end, i);
    const bool last = at.size() + 1 == slot.shape.size();
    if (error != std::errc() || i < 0 || i >= slot.shape[at.size()] || next == end || *next != (last ? ']' : ','))
      break;
    at.push_back(i);
    c = next;
  }
  if (at.size() != slot.shape.size() || c != end)
    fail(Exit::usage, "log.probe: expected {} indices below {}, as in {}[{}]; got '{}'", slot.shape.size(),
         fmt::join(slot.shape, ", "), name, fmt::join(std::vector<int64_t>(slot.shape.size(), 0), ","), escaped(text));
  int64_t offset = 0;
  if (const auto& p = slot.planes; !p.empty()) {  // [out, channels, height, width], of which one may be flattened
    if (at.size() == 2) at = {at[0], at[1] / (p[2] * p[3]), at[1] / p[3] % p[2], at[1] % p[3]};
    offset = ((at[0] * p[2] + at[2]) * p[3] + at[3]) * p[1] + at[1];
  } else {
    for (size_t i = 0; i < at.size(); ++i) offset = offset * slot.shape[i] + at[i];
  }
  return {store.params()[index], slot.offset + offset};
}

WeightsFacts weights_facts(const SafeTensors& weights) {
  WeightsFacts facts;
  for (const auto& [file_name, tensor] : weights.tensors) {
    std::string name = file_name;
    replace_prefix(name, "module.", "");
    if ((name == "linear.weight" || name == "fc.weight") && tensor.shape.size() == 2) facts.classes = tensor.shape[0];
    if (name == "conv1.weight" && tensor.shape.size() == 4) facts.channels = tensor.shape[1];
    for (const char* option_b : {".shortcut.0.weight", ".downsample.0.weight"})
      facts.projects = facts.projects || name.ends_with(option_b);
  }
  return facts;
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
