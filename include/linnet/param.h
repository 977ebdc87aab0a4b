// Parameters and buffers of a model. Layers add theirs by name while the model is built; seal() then lays all
// parameters out in one flat buffer, the decayed ones first, so that update, clipping and saving are one operation
// each.
#pragma once
#include <deque>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "linnet/backend.h"
#include "linnet/pool.h"

namespace linnet {

// Fills a parameter's first values. `seed` and `index` (of the parameter) name its random numbers.
using Init = std::function<void(std::span<float> values, uint64_t seed, uint32_t index)>;
Init constant(float value);
// N(0, 2 / fan_in): He et al. 2015, for layers followed by a ReLU.
Init he_normal(int64_t fan_in);
// U(-bound, bound).
Init uniform(float bound);

// Convolution weights are [out, kernel_h, kernel_w, in] in memory and PyTorch's [out, in, kernel_h, kernel_w] in files.
// So are those of a linear layer behind flatten(), as far as their inputs go (Param::flattened).
enum class Kind { plain, conv_weight };

struct Param {
  std::string name;  // as PyTorch's module would call it: "layer1.0.conv1.weight"
  Shape shape;
  bool decay = true;
  Kind kind = Kind::plain;
  Shape flattened = {};  // a linear layer's inputs as flatten() found them: [height, width, channels]; none: no rank
  size_t index = 0;
  int group = 0;       // whose settings it is trained with; -1: frozen
  int64_t offset = 0;  // where it starts in the flat buffers
  // Views of Flat, from seal() on. Products read `compute`: the master itself in f32, its rounded copy in bf16
  // (ParamStore::round).
  Tensor master, compute, grad;
  Init init;
};

struct Buffer {  // state that is not trained: running mean and variance
  std::string name;
  Shape shape;
  float fill = 0;
  int64_t offset = 0;  // where it starts in Flat::buffers
  Tensor value;
};

// How training sees the parameters.
struct Layout {
  int slots = 0;               // words of optimizer state per parameter
  bool decay_all = false;      // weight decay for biases and normalisation too
  DType compute = DType::f32;  // of activations and of the weights that products read: f32 or bf16
  int groups = 1;
  std::function<int(const std::string& name)>
      group;  // of a parameter, below `groups`; -1: frozen; none: all in group 0
};

class ParamStore {
 public:
  // References stay valid. `decay`: a weight of a product; false for biases and normalisation.
  Param& add(const std::string& name, const Shape&, bool decay, Init, Kind = Kind::plain);
  Buffer& add_buffer(const std::string& name, const Shape&, float fill);

  // Lays out the flat buffers on `backend` and fills in first values.
  void seal(Backend&, uint64_t seed, const Layout& = {});

  // After the masters were changed: brings the rounded copies that products read up to date.
  void round(Backend&) const;

  const Flat& flat() const { return flat_; }
  const std::vector<Param*>& params() const { return ordered_; }  // in creation order
  std::deque<Buffer>& buffers() { return buffers_; }
  int64_t count() const;                             // trainable numbers, padding not counted
  uint32_t next_layer_id() { return layer_ids_++; }  // names a dropout layer's random numbers

 private:
  std::deque<Param> params_;
  std::deque<Buffer> buffers_;
  std::vector<Param*> ordered_;
  Flat flat_;
  uint32_t layer_ids_ = 0;
};

// Where in the model a layer is being built: store / "layer1" / "0" / "conv1".
struct Scope {
  ParamStore& store;
  std::string prefix;
  Scope operator/(const std::string& child) const { return {store, prefix.empty() ? child : prefix + "." + child}; }
  std::string name(const std::string& leaf) const { return prefix.empty() ? leaf : prefix + "." + leaf; }
};

}  // namespace linnet
