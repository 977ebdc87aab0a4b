#include "convolution.h"

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <dnnl.hpp>
#include <map>
#include <new>
#include <string_view>
#include <tuple>

#include "plain_convolution.h"

namespace linnet {

namespace {

// More chunks than most machines have threads; few enough that a call's overhead (microseconds) does not show.
constexpr int64_t kChunks = 16;

dnnl::memory::data_type type_of(const Tensor& t) {
  switch (t.dtype()) {
    case DType::f32:
      return dnnl::memory::data_type::f32;
    case DType::bf16:
      return dnnl::memory::data_type::bf16;
    default:
      fail(Exit::failure, "[conv2d] expected f32 or bf16, got {}", name_of(t.dtype()));
  }
}

enum class Pass { forward, data, weight };

// A convolution's geometry for a chunk of n images; the key of the plan cache.
struct Geometry {
  Pass pass;
  dnnl::memory::data_type type;
  int64_t n, h, w, c, k, r, s, oh, ow;
  int stride, pad;
  auto key() const { return std::tuple(pass, type, n, h, w, c, k, r, s, oh, ow, stride, pad); }
  bool operator<(const Geometry& other) const { return key() < other.key(); }
};

// A single-threaded primitive and the memory it wants.
struct Plan {
  dnnl::primitive primitive;
  dnnl::memory::desc x, w, y, scratch;
  bool plain = false;  // oneDNN has only its reference implementation: plain_convolution.h is faster
};

// Memory that only grows: after the first steps nothing is allocated any more.
struct Buffer {
  std::shared_ptr<void> data;
  size_t bytes = 0;
  void* at_least(size_t wanted) {
    if (wanted > bytes) {
      data.reset(std::aligned_alloc(64, (wanted + 63) / 64 * 64), std::free);
      if (!data) fail(Exit::device, "out of memory: {} MiB of workspace for a convolution", wanted >> 20);
      bytes = wanted;
    }
    return data.get();
  }
};

// oneDNN threads through OpenMP, whose setting is per thread. One each: the chunks are what runs in parallel.
void one_openmp_thread() {
  thread_local const bool done = (omp_set_num_threads(1), true);
  (void)done;
}

// oneDNN 2.6 does not look whether it got memory as it makes a primitive, and ends the process by a signal where it got
// none. It takes less than this.
void require_room() {
  constexpr size_t kRoom = 32 << 20;
  void* const room = ::mmap(nullptr, kRoom, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) throw std::bad_alloc();
  ::munmap(room, kRoom);
}

// Padding on the far side, such that the window's last position is the output's last. May not be negative.
int64_t far_pad(int64_t in, int64_t out, int64_t size, int stride, int pad) {
  return std::max<int64_t>(0, (out - 1) * stride + size - in - pad);
}

Plan make_plan(const Geometry& g, const dnnl::engine& engine) {
  using dnnl::memory;
  using tag = memory::format_tag;
  const memory::dims strides{g.stride, g.stride}, near{g.pad, g.pad},
      far{far_pad(g.h, g.oh, g.r, g.stride, g.pad), far_pad(g.w, g.ow, g.s, g.stride, g.pad)};
  const memory::desc x({g.n, g.c, g.h, g.w}, g.type, tag::nhwc), y({g.n, g.k, g.oh, g.ow}, g.type, tag::nhwc);
  const memory::desc w({g.k, g.c, g.r, g.s}, g.type, tag::any),
      dw({g.k, g.c, g.r, g.s}, memory::data_type::f32, tag::any);
  const auto direct = dnnl::algorithm::convolution_direct;
  const auto training = dnnl::prop_kind::forward_training;
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);

#if DNNL_VERSION_MAJOR >= 3
  const dnnl::convolution_forward::primitive_desc forward(engine, training, direct, x, w, y, strides, near, far, attr);
#else
  const dnnl::convolution_forward::primitive_desc forward({training, direct, x, w, y, strides, near, far}, attr,
                                                          engine);
#endif
  const auto plan = [&](auto pd, auto primitive, const memory::desc& weights) -> Plan {
    const bool reference = std::string_view(pd.impl_info_str()).find("ref") != std::string_view::npos;
    return {primitive, x, weights, y, pd.scratchpad_desc(), reference};
  };
  switch (g.pass) {
    case Pass::forward:
      return plan(forward, dnnl::convolution_forward(forward), forward.weights_desc());
    case Pass::data: {
#if DNNL_VERSION_MAJOR >= 3
      const dnnl::convolution_backward_data::primitive_desc pd(engine, direct, x, w, y, strides, near, far, forward,
                                                               attr);
#else
      const dnnl::convolution_backward_data::primitive_desc pd({direct, x, w, y, strides, near, far}, attr, engine,
                                                               forward);
#endif
      return plan(pd, dnnl::convolution_backward_data(pd), pd.weights_desc());
    }
    case Pass::weight: {
#if DNNL_VERSION_MAJOR >= 3
      const dnnl::convolution_backward_weights::primitive_desc pd(engine, direct, x, dw, y, strides, near, far, forward,
                                                                  attr);
#else
      const dnnl::convolution_backward_weights::primitive_desc pd({direct, x, dw, y, strides, near, far}, attr, engine,
                                                                  forward);
#endif
      return plan(pd, dnnl::convolution_backward_weights(pd), pd.diff_weights_desc());
    }
  }
  fail(Exit::failure, "[conv2d] unknown pass");
}

}  // namespace

struct Convolutions::Impl {
  explicit Impl(ThreadPool& pool) : pool(pool), workers(size_t(pool.threads())) {
    for (Worker& w : workers) w.stream = dnnl::stream(engine);
  }

  struct Worker {
    dnnl::stream stream;
    Buffer scratch;
  };

  const Plan& plan(const Geometry& g) {
    one_openmp_thread();
    if (const auto found = plans.find(g); found != plans.end()) return found->second;
    require_room();
    try {
      return plans.emplace(g, make_plan(g, engine)).first->second;
    } catch (const dnnl::error& e) {
      fail(Exit::device,
           "[conv2d] oneDNN on this processor cannot convolve {} images {}x{}x{} with {} filters {}x{}{}: {}", g.n, g.h,
           g.w, g.c, g.k, g.r, g.s,
           g.type == dnnl::memory::data_type::bf16 ? " in bf16 (AVX-512 is needed; use f32)" : "", e.message);
    }
  }

  static Geometry geometry(Pass pass, const Tensor& x, const Tensor& y, const Shape& w, Conv conv) {
    return {pass, type_of(x), x.dim(0), x.dim(1), x.dim(2),    x.dim(3), w[0],
            w[1], w[2],       y.dim(1), y.dim(2), conv.stride, conv.pad};
  }

  dnnl::memory::desc user_weights(const Geometry& g, dnnl::memory::data_type type) const {
    return {{g.k, g.c, g.r, g.s}, type, dnnl::memory::format_tag::ohwi};
  }

  void reorder(const dnnl::memory::desc& from, void* src, const dnnl::memory::desc& to, void* dst) {
    dnnl::memory a(from, engine, src), b(to, engine, dst);
    dnnl::reorder(a, b).execute(workers[0].stream, a, b);
    workers[0].stream.wait();
  }

  // Runs `g` in chunks of images. `weights(chunk)` is the memory the chunk's primitive reads or writes as weights.
  template <class Weights>
  void run(Geometry g, void* x, void* y, size_t element, const Weights& weights) {
    const int64_t total = g.n, size = chunk_size(total), chunks = (total + size - 1) / size;
    g.n = size;
    const Plan& whole = plan(g);
    g.n = total - (chunks - 1) * size;
    const Plan& last = plan(g);
    pool.run(chunks, [&](int64_t chunk, int thread) {
      one_openmp_thread();
      Worker& worker = workers[size_t(thread)];
      const Plan& p = chunk == chunks - 1 ? last : whole;
      const int64_t first = chunk * size;
      dnnl::memory mx(p.x, engine, static_cast<char*>(x) + size_t(first * g.h * g.w * g.c) * element);
      dnnl::memory my(p.y, engine, static_cast<char*>(y) + size_t(first * g.oh * g.ow * g.k) * element);
      dnnl::memory mw(p.w, engine, weights(chunk));
      dnnl::memory scratch(p.scratch, engine, worker.scratch.at_least(p.scratch.get_size()));
      const bool fwd = g.pass == Pass::forward;
      const bool weight = g.pass == Pass::weight;
      p.primitive.execute(worker.stream, {{g.pass == Pass::data ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, mx},
                                          {fwd ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, my},
                                          {weight ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, mw},
                                          {DNNL_ARG_SCRATCHPAD, scratch}});
      worker.stream.wait();
    });
  }

  static int64_t chunk_size(int64_t n) { return std::max<int64_t>(1, (n + kChunks - 1) / kChunks); }

  // Forward and backward-data read the weights, in the layout that oneDNN chose.
  void run_with_weights(const Geometry& g, void* x, void* y, size_t element, const Tensor& w) {
    Geometry chunk = g;
    chunk.n = chunk_size(g.n);
    const dnnl::memory::desc wanted = plan(chunk).w, given = user_weights(g, type_of(w));
    void* data = w.raw();
    if (wanted != given) {
      data = weights.at_least(wanted.get_size());
      reorder(given, w.raw(), wanted, data);
    }
    run(g, x, y, element, [&](int64_t) { return data; });
  }

  // Whether the call has to do without oneDNN, for its full chunks or for the last one.
  bool is_plain(Geometry g) {
    const int64_t total = g.n, size = chunk_size(total);
    g.n = size;
    if (plan(g).plain) return true;
    g.n = total - (total - 1) / size * size;
    return plan(g).plain;
  }

  // The tensor's numbers as floats; of bf16 ones a copy.
  const float* widened(const Tensor& t, Buffer& buffer) {
    if (t.dtype() != DType::bf16) return t.data<float>();
    float* wide = static_cast<float*>(buffer.at_least(size_t(t.numel()) * sizeof(float)));
    std::transform(t.data<bf16>(), t.data<bf16>() + t.numel(), wide, [](bf16 v) { return float(v); });
    return wide;
  }
  // Where floats for the tensor can be written; narrow() then rounds the numbers begin..end-1 into a bf16 one.
  float* room_for(const Tensor& t, Buffer& buffer) {
    return t.dtype() == DType::bf16 ? static_cast<float*>(buffer.at_least(size_t(t.numel()) * sizeof(float)))
                                    : t.data<float>();
  }
  static void narrow(const Tensor& t, const float* wide, int64_t begin, int64_t end) {
    if (t.dtype() == DType::bf16)
      std::transform(wide + begin, wide + end, t.data<bf16>() + begin, [](float v) { return bf16(v); });
  }

  // work(first, end, chunk) for chunks of n images.
  template <class Work>
  void for_chunks(int64_t n, const Work& work) {
    const int64_t size = chunk_size(n);
    pool.run((n + size - 1) / size,
             [&](int64_t chunk, int) { work(chunk * size, std::min(n, (chunk + 1) * size), chunk); });
  }

  ThreadPool& pool;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  std::map<Geometry, Plan> plans;
  std::vector<Worker> workers;
  Buffer weights, partial;
  Buffer wide_a, wide_b, wide_c;  // bf16 operands as floats
};

Convolutions::Convolutions(ThreadPool& pool) : impl_(std::make_unique<Impl>(pool)) {}
Convolutions::~Convolutions() = default;

static PlainShape plain_shape(const Geometry& g) {
  return {g.n, g.h, g.w, g.c, g.k, g.r, g.s, g.oh, g.ow, g.stride, g.pad};
}

void Convolutions::forward(const Tensor& y, const Tensor& x, const Tensor& w, Conv conv) {
  if (x.dim(0) == 0) return;
  Impl& im = *impl_;
  const Geometry g = Impl::geometry(Pass::forward, x, y, w.shape(), conv);
  if (!im.is_plain(g)) return im.run_with_weights(g, x.raw(), y.raw(), size_of(x.dtype()), w);
  const float *px = im.widened(x, im.wide_a), *pw = im.widened(w, im.wide_b);
  float* py = im.room_for(y, im.wide_c);
  im.for_chunks(g.n, [&](int64_t first, int64_t end, int64_t) {
    plain_forward(py, px, pw, plain_shape(g), first, end);
    Impl::narrow(y, py, first * g.oh * g.ow * g.k, end * g.oh * g.ow * g.k);
  });
}

void Convolutions::backward_data(const Tensor& dx, const Tensor& dy, const Tensor& w, Conv conv) {
  if (dx.dim(0) == 0) return;
  Impl& im = *impl_;
  const Geometry g = Impl::geometry(Pass::data, dx, dy, w.shape(), conv);
  if (!im.is_plain(g)) return im.run_with_weights(g, dx.raw(), dy.raw(), size_of(dx.dtype()), w);
  const float *py = im.widened(dy, im.wide_a), *pw = im.widened(w, im.wide_b);
  float* px = im.room_for(dx, im.wide_c);
  im.for_chunks(g.n, [&](int64_t first, int64_t end, int64_t) {
    plain_backward_data(px, py, pw, plain_shape(g), first, end);
    Impl::narrow(dx, px, first * g.h * g.w * g.c, end * g.h * g.w * g.c);
  });
}

void Convolutions::backward_weight(const Tensor& dw, const Tensor& dy, const Tensor& x, Conv conv) {
  if (x.dim(0) == 0) {  // an empty sum
    std::memset(dw.raw(), 0, dw.bytes());
    return;
  }
  Impl& im = *impl_;
  const Geometry g = Impl::geometry(Pass::weight, x, dy, dw.shape(), conv);
  if (im.is_plain(g)) {
    const float *py = im.widened(dy, im.wide_a), *px = im.widened(x, im.wide_b);
    const int64_t n = dw.numel(), sums = (g.n + Impl::chunk_size(g.n) - 1) / Impl::chunk_size(g.n);
    float* own = static_cast<float*>(im.partial.at_least(size_t(sums * n) * sizeof(float)));
    im.for_chunks(g.n, [&](int64_t begin, int64_t end, int64_t chunk) {
      plain_backward_weight(own + chunk * n, py, px, plain_shape(g), begin, end);
    });
    float* out = dw.data<float>();
    std::fill_n(out, n, 0.f);
    for (int64_t chunk = 0; chunk < sums; ++chunk)
      for (int64_t i = 0; i < n; ++i) out[i] += own[chunk * n + i];
    return;
  }
  Geometry first = g;
  first.n = Impl::chunk_size(g.n);
  const dnnl::memory::desc layout = im.plan(first).w;
  Geometry tail = g;
  const int64_t chunks = (g.n + first.n - 1) / first.n;
  tail.n = g.n - (chunks - 1) * first.n;
  // The tail's primitive may choose another layout; its partial sum is brought into the first one's.
  const dnnl::memory::desc tail_layout = im.plan(tail).w;

  const int64_t count = int64_t(layout.get_size() / sizeof(float));
  const size_t stride = (std::max(layout.get_size(), tail_layout.get_size()) + 63) / 64 * 64;
  char* partial = static_cast<char*>(im.partial.at_least(stride * size_t(chunks + 1)));
  im.run(g, x.raw(), dy.raw(), size_of(x.dtype()), [&](int64_t chunk) { return partial + stride * size_t(chunk); });
  if (tail_layout != layout) {
    char* last = partial + stride * size_t(chunks - 1);
    im.reorder(tail_layout, last, layout, last + stride);
    std::memcpy(last, last + stride, layout.get_size());
  }

  // Fixed pairwise tree over the chunks; elements are shared out in pieces of fixed size.
  constexpr int64_t kPiece = 4096;
  im.pool.run((count + kPiece - 1) / kPiece, [&](int64_t piece, int) {
    const int64_t begin = piece * kPiece, end = std::min(count, begin + kPiece);
    for (int64_t distance = 1; distance < chunks; distance *= 2)
      for (int64_t c = 0; c + distance < chunks; c += 2 * distance) {
        float* a = reinterpret_cast<float*>(partial + stride * size_t(c));
        const float* b = reinterpret_cast<const float*>(partial + stride * size_t(c + distance));
        for (int64_t i = begin; i < end; ++i) a[i] += b[i];
      }
  });
  im.reorder(layout, partial, im.user_weights(g, dnnl::memory::data_type::f32), dw.raw());
}

// bf16 operands are widened first and the result is rounded at the end: these products are small.
void Convolutions::matmul(const Tensor& c, const Tensor& a, bool ta, const Tensor& b, bool tb) {
  const int64_t m = c.dim(0), n = c.dim(1), k = ta ? a.dim(0) : a.dim(1);
  const int64_t rows = Impl::chunk_size(m);
  Impl& im = *impl_;
  const float *pa = im.widened(a, im.wide_a), *pb = im.widened(b, im.wide_b);
  float* pc = im.room_for(c, im.wide_c);
  if (k == 0) std::fill_n(pc, c.numel(), 0.f);  // an empty sum, which sgemm leaves undone
  im.pool.run((m + rows - 1) / rows, [&](int64_t chunk, int) {
    one_openmp_thread();
    const int64_t first = chunk * rows, count = std::min(rows, m - first);
    dnnl::sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', count, n, k, 1.f, pa + (ta ? first : first * k), ta ? m : k, pb,
                tb ? k : n, 0.f, pc + first * n, n);
    Impl::narrow(c, pc, first * n, (first + count) * n);
  });
}

}  // namespace linnet
