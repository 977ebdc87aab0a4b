#include "linnet/param.h"

#include "kernels/rng.h"

namespace linnet {

Init constant(float value) {
  return [value](std::span<float> v, uint64_t, uint32_t) { std::fill(v.begin(), v.end(), value); };
}

Init he_normal(int64_t fan_in) {
  const float deviation = std::sqrt(2.f / float(fan_in));
  return [deviation](std::span<float> v, uint64_t seed, uint32_t index) {
    for (size_t i = 0; i < v.size(); ++i) {
      const Random4 r = random4(seed, Draw::init, i, 0, index);
      v[i] = deviation * normal_float(r.v[0], r.v[1]);
    }
  };
}

Init uniform(float bound) {
  return [bound](std::span<float> v, uint64_t seed, uint32_t index) {
    for (size_t i = 0; i < v.size(); ++i)
      v[i] = bound * (2 * unit_float(random4(seed, Draw::init, i, 0, index).v[0]) - 1);
  };
}

Param& ParamStore::add(const std::string& name, const Shape& shape, bool decay, Init init, Kind kind) {
  require(!flat_.master, "[param] '{}' comes too late: the store is sealed", name);
  for (const Param* p : ordered_) require(p->name != name, "[param] there are two parameters named '{}'", name);
  params_.push_back(
      {.name = name, .shape = shape, .decay = decay, .kind = kind, .index = params_.size(), .init = std::move(init)});
  ordered_.push_back(&params_.back());
  return params_.back();
}

Buffer& ParamStore::add_buffer(const std::string& name, const Shape& shape, float fill) {
  for (const Buffer& b : buffers_) require(b.name != name, "[param] there are two buffers named '{}'", name);
  buffers_.push_back({.name = name, .shape = shape, .fill = fill});
  return buffers_.back();
}

void ParamStore::seal(Backend& backend, uint64_t seed, const Layout& layout) {
  require(!flat_.master, "[param] the store is sealed already");
  const MemoryFor what("weights, gradients and the optimizer's state (the model)");
  // Each parameter starts on a 64-byte line; the numbers between are zero and stay zero under every rule.
  const auto padded = [](int64_t n) { return (n + 15) / 16 * 16; };
  const auto decays = [&](const Param& p) { return p.decay || layout.decay_all; };
  for (Param* p : ordered_) p->group = layout.group ? layout.group(p->name) : 0;

  // Group by group, in each the decayed ones first, among those the matrices; the frozen ones at the end.
  std::vector<Param*> order;
  const auto append = [&](int group, bool decayed) {
    for (const bool matrix : {true, false})
      for (Param* p : ordered_)
        if (p->group == group && decays(*p) == decayed && (p->shape.rank() >= 2) == matrix) {
          order.push_back(p);
          flat_.n += padded(p->shape.numel());
          if (matrix && group >= 0) flat_.segments.back().n_matrix = flat_.n - flat_.segments.back().begin;
        }
  };
  for (int group = 0; group < layout.groups; ++group) {
    Segment& segment = flat_.segments.emplace_back();
    segment.begin = flat_.n;
    append(group, true);
    segment.n_decay = flat_.n - segment.begin;
    append(group, false);
    segment.n = flat_.n - segment.begin;
  }
  flat_.n_trainable = flat_.n;
  append(-1, true);
  append(-1, false);
  require(order.size() == ordered_.size(), "[param] a parameter's group is not one of the {}", layout.groups);

  std::vector<float> values(size_t(flat_.n), 0.f);
  const auto make = [&](const Shape& shape) {
    Tensor t(backend.allocate(size_t(shape.numel()) * sizeof(float)), shape, DType::f32);
    backend.zero(t);
    return t;
  };
  flat_.master = make({flat_.n});
  flat_.grad = make({flat_.n});
  flat_.slots = make({layout.slots, flat_.n});
  int64_t at = 0;
  for (Param* p : order) {
    p->offset = at;
    p->master = flat_.master.slice(at, p->shape);
    p->compute = p->master;
    p->grad = flat_.grad.slice(at, p->shape);
    p->init(std::span(values).subspan(size_t(at), size_t(p->shape.numel())), seed, uint32_t(p->index));
    at += padded(p->shape.numel());
  }
  backend.upload(flat_.master, values.data());
  if (layout.compute != DType::f32) {
    flat_.compute = Tensor(backend.allocate(size_t(flat_.n) * size_of(layout.compute)), {flat_.n}, layout.compute);
    for (Param* p : order) p->compute = flat_.compute.slice(p->offset, p->shape);
    round(backend);
  }

  int64_t count = 0;
  for (const Buffer& b : buffers_) count += padded(b.shape.numel());
  std::vector<float> fill(static_cast<size_t>(count), 0.f);
  flat_.buffers = make({count});
  at = 0;
  for (Buffer& b : buffers_) {
    b.offset = at;
    b.value = flat_.buffers.slice(at, b.shape);
    std::fill_n(fill.begin() + at, b.shape.numel(), b.fill);
    at += padded(b.shape.numel());
  }
  backend.upload(flat_.buffers, fill.data());
}

void ParamStore::round(Backend& backend) const {
  if (flat_.compute) backend.cast(flat_.compute, flat_.master);
}

int64_t ParamStore::count() const {
  int64_t n = 0;
  for (const Param* p : ordered_) n += p->shape.numel();
  return n;
}

}  // namespace linnet
