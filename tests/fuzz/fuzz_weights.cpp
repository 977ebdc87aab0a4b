// PyTorch's names as a model has them. A line of the input is a tensor, "NAME N,N,...": of zeros, of at most 64
// numbers. Memory: the names a few times over, and an answer that lists them: 64 KiB + 64 x the input.
#include <charconv>
#include <memory>

#include "fuzz.h"
#include "linnet/calibration.h"
#include "linnet/model.h"
#include "linnet/weights.h"
#include "src/lab/reference_backend.h"

namespace {

// A convolution, a batch norm, a shortcut with weights, a last layer.
struct Model {
  linnet::ReferenceBackend backend;
  linnet::ParamStore store;
  Model() {
    store.add("conv1.weight", {2, 1, 1, 3}, true, linnet::constant(1), linnet::Kind::conv_weight);
    store.add("bn1.weight", {2}, false, linnet::constant(1));
    store.add("layer2.0.shortcut.0.weight", {2, 1, 1, 2}, true, linnet::constant(1), linnet::Kind::conv_weight);
    store.add("linear.weight", {3, 2}, true, linnet::constant(1));
    store.add("linear.bias", {3}, false, linnet::constant(1));
    store.add_buffer("bn1.running_var", {2}, 1);
    store.seal(backend, 1);
  }
  std::string digest() { return linnet::digest(linnet::get_weights(backend, store)); }
};

linnet::SafeTensors tensors_of(std::string_view text) {
  linnet::SafeTensors file;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    const size_t space = std::min(line.find(' '), line.size());
    linnet::StoredTensor tensor{"F32", {}, {}};
    int64_t numbers = 1;
    for (size_t at = space + 1; at < line.size() && tensor.shape.size() < 5; ++at) {
      int64_t n = 0;
      at = size_t(std::from_chars(line.data() + at, line.data() + line.size(), n).ptr - line.data());
      tensor.shape.push_back(std::min<int64_t>(std::max<int64_t>(n, 0), 4));
      numbers *= tensor.shape.back();
    }
    tensor.bytes.resize(size_t(std::min<int64_t>(numbers, 64)) * sizeof(float));
    file.tensors[std::string(line.substr(0, space))] = std::move(tensor);
  }
  return file;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const linnet::SafeTensors file = tensors_of(fuzz::text(data, size));
  // Most inputs change no model, so one serves until it is changed: to make one takes longer than the rest.
  static std::unique_ptr<Model> model;
  static std::string before;
  for (const linnet::Head head : {linnet::Head::given, linnet::Head::fresh}) {
    if (!model) before = (model = std::make_unique<Model>())->digest();
    const bool taken = fuzz::run(linnet::Exit::checkpoint, (64 << 10) + 64 * size,
                                 [&] { linnet::set_weights(model->backend, model->store, file, "w", head); });
    const bool changed = model->digest() != before;
    if (changed) model.reset();
    if (taken != changed) fuzz::finding("a model that is neither as before nor as the file", "");
    if (taken && head == linnet::Head::given && file.tensors.size() < 6) fuzz::finding("a tensor that was missing", "");
  }
  linnet::weights_facts(file);
  return 0;
}
