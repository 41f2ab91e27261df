// The module's one symbol: hosts/host.h on TensorRT and CUDA. No exception leaves it, and the thread's current device
// is after every call what it was before.
#include <optional>
#include <string>

#include "core/error.hpp"
#include "cuda/launch.hpp"
#include "hosts/table.hpp"
#include "hosts/tensorrt/session.hpp"

struct ArcflowHostModel {
  std::shared_ptr<const arcflow::tensorrt::Model> model;
};
struct ArcflowHostSession {
  arcflow::tensorrt::Session session;
};
struct ArcflowHostBuffer {
  arcflow::tensorrt::Buffer buffer;
};

namespace {

using arcflow::core::Error;
using arcflow::hosts::product;
using namespace arcflow::tensorrt;

constexpr std::int64_t kFloat = sizeof(float);

// Makes the device of a model or a session the thread's current one.
struct OnDevice {
  explicit OnDevice(const ArcflowHostModel* model) { guard.emplace(model->model->device()); }
  explicit OnDevice(const ArcflowHostSession* session) { guard.emplace(session->session.device()); }
  explicit OnDevice(const void*) {}
  std::optional<DeviceGuard> guard;
};

template <class T>
T* address(ArcflowHostBuffer* buffer, std::uint64_t bytes, std::uint64_t offset = 0) {
  if (buffer == nullptr) throw Error(ARCFLOW_INTERNAL, "a buffer is missing");
  return static_cast<T*>(buffer->buffer.at(offset, bytes));
}

std::vector<Bound> bound(const ArcflowHostBinding* bindings, std::size_t count) {
  std::vector<Bound> result;
  for (std::size_t i = 0; i < count; ++i) {
    const ArcflowHostBinding& one = bindings[i];
    void* const at = address<void>(one.buffer, 0, one.offset);
    result.push_back({one.name, at, {one.dims, one.dims + one.rank}, one.buffer->buffer.bytes() - one.offset});
  }
  return result;
}

struct Host : arcflow::hosts::Unprepared {
  static void model_create(const ArcflowHostOptions* options, const ArcflowHostNetwork* networks, std::size_t count,
                           ArcflowHostModel** out) {
    *out = new ArcflowHostModel{std::make_shared<const Model>(*options, networks, count)};
  }

  static void model_destroy(ArcflowHostModel* model) {
    delete model;  // a session may live on; the engines go with the last of them
  }

  static const char* model_backend(const ArcflowHostModel* model) { return model->model->backend().c_str(); }

  static void model_memory(const ArcflowHostModel* model, std::uint64_t* host, std::uint64_t* device) {
    *host = 0;
    *device = model->model->bytes();
  }

  static void session_create(ArcflowHostModel* model, void* stream, ArcflowHostSession** out) {
    *out = new ArcflowHostSession{Session(model->model, stream)};
  }

  static void session_destroy(ArcflowHostSession* session) { delete session; }

  static void session_memory(const ArcflowHostSession* session, std::uint64_t* host, std::uint64_t* device) {
    *host = session->session.host_bytes();
    *device = session->session.device_bytes();
  }

  static void buffer_create(ArcflowHostSession* session, std::uint64_t bytes, ArcflowHostBuffer** out) {
    *out = new ArcflowHostBuffer{session->session.make_buffer(bytes)};
  }

  static void buffer_destroy(ArcflowHostBuffer* buffer) { delete buffer; }

  static void write(ArcflowHostSession* session, ArcflowHostBuffer* to, std::uint64_t offset, const void* from,
                    std::uint64_t bytes) {
    session->session.write(to->buffer, offset, from, bytes);
  }

  static void read(ArcflowHostSession* session, ArcflowHostBuffer* from, std::uint64_t offset, void* to,
                   std::uint64_t bytes) {
    session->session.read(from->buffer, offset, to, bytes);
  }

  static void copy(ArcflowHostSession* session, ArcflowHostBuffer* from, std::uint64_t from_offset,
                   ArcflowHostBuffer* to, std::uint64_t to_offset, std::uint64_t bytes) {
    const void* const source = address<void>(from, bytes, from_offset);
    void* const target = address<void>(to, bytes, to_offset);
    if (bytes == 0 || source == target) return;
    session->session.put([source, target, bytes](cudaStream_t stream) {
      check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, stream), "copying on the GPU");
    });
  }

  static void run(ArcflowHostSession* session, std::size_t network, const ArcflowHostBinding* inputs,
                  std::size_t input_count, const ArcflowHostBinding* outputs, std::size_t output_count) {
    session->session.run(network, bound(inputs, input_count), bound(outputs, output_count));
  }

  static void normal(ArcflowHostSession* session, std::uint64_t seed, ArcflowHostBuffer* buffer, std::uint64_t offset,
                     std::uint64_t count) {
    const std::uint64_t bytes = product({kFloat, static_cast<std::int64_t>(count)});
    auto* const out = address<float>(buffer, bytes, offset);
    session->session.put([seed, count, out](cudaStream_t stream) {
      check(arcflow::cuda::normal(seed, 0, count, out, stream), "making noise");
    });
  }

  static void advance(ArcflowHostSession* session, const ArcflowHostAdvance* a) {
    if (a->type != kArcflowFloat32 && a->type != kArcflowFloat16 && a->type != kArcflowBfloat16) {
      throw Error(ARCFLOW_INTERNAL, "advance: a field of type " + std::to_string(a->type));
    }
    const std::int64_t value = a->type == kArcflowFloat32 ? 4 : 2;
    const std::uint64_t state = product({kFloat, a->batch, a->tokens, a->channels});
    arcflow::cuda::Advance arguments{};
    arguments.means = address<void>(a->means, product({value, a->batch, a->tokens, a->modes, a->channels}));
    arguments.logweights = address<void>(a->logweights, product({value, a->batch, a->tokens, a->modes, a->positions}));
    const std::uint64_t rates = product({value, a->batch, a->tokens, a->modes - 1, a->positions});
    // One mode has no rates, and perhaps no buffer for them.
    arguments.loggammas = rates == 0 ? arguments.logweights : address<void>(a->loggammas, rates);
    arguments.x = address<float>(a->x, state);
    arguments.out = address<float>(a->out, state);
    arguments.type = static_cast<arcflow::cuda::Type>(a->type);
    arguments.tokens = a->batch * a->tokens;
    arguments.modes = a->modes;
    arguments.channels = a->channels;
    arguments.positions = a->positions;
    arguments.sigma_src = a->sigma_src;
    arguments.sigma_a = a->sigma_a;
    arguments.sigma_b = a->sigma_b;
    session->session.put(
        [arguments](cudaStream_t stream) { check(arcflow::cuda::advance(arguments, stream), "the solver"); });
  }

  static void unpack(ArcflowHostSession* session, const ArcflowHostUnpack* u) {
    const std::uint64_t bytes = product({kFloat, u->batch, u->rows, u->columns, u->channels, u->patch, u->patch});
    const auto* const tokens = address<float>(u->tokens, bytes);
    auto* const latents = address<float>(u->latents, bytes);
    std::vector<float> scaling, shift;  // by value: a recording outlives the caller's arrays
    if (u->scaling != nullptr && u->shift != nullptr && u->factor_count > 0) {
      scaling.assign(u->scaling, u->scaling + u->factor_count);
      shift.assign(u->shift, u->shift + u->factor_count);
    }
    session->session.put([shape = *u, tokens, latents, scaling, shift](cudaStream_t stream) {
      check(arcflow::cuda::unpack(tokens, latents, shape.batch, shape.rows, shape.columns, shape.channels, shape.patch,
                                  scaling.empty() ? nullptr : scaling.data(), shift.empty() ? nullptr : shift.data(),
                                  static_cast<std::int64_t>(scaling.size()), stream),
            "making latents of tokens");
    });
  }

  static void to_rgb8(ArcflowHostSession* session, ArcflowHostBuffer* images, ArcflowHostBuffer* pixels,
                      std::int64_t batch, std::int64_t height, std::int64_t width) {
    const auto* const from = address<float>(images, product({kFloat, batch, 3, height, width}));
    auto* const to = address<std::uint8_t>(pixels, product({batch, 3, height, width}));
    session->session.put([=](cudaStream_t stream) {
      check(arcflow::cuda::to_rgb8(from, to, batch, height, width, stream), "making pixels");
    });
  }

  static void finite(ArcflowHostSession* session, ArcflowHostBuffer* buffer, std::uint64_t count,
                     std::int32_t* all_finite) {
    *all_finite = session->session.finite(buffer->buffer, count) ? 1 : 0;
  }

  static void synchronize(ArcflowHostSession* session) { session->session.wait(); }

  static void graph_begin(ArcflowHostSession* session, std::uint64_t key, std::int32_t* mode) {
    *mode = session->session.graph_begin(key);
  }

  static void graph_end(ArcflowHostSession* session) { session->session.graph_end(); }

  static void graph_reset(ArcflowHostSession* session) { session->session.graph_reset(); }

  static void interrupt(ArcflowHostSession* session) { session->session.interrupt(); }
  static void rearm(ArcflowHostSession* session) { session->session.rearm(); }
};

constexpr ArcflowHostApi kApi = arcflow::hosts::table_of<Host, OnDevice>("tensorrt");

}  // namespace

extern "C" ARCFLOW_EXPORT const ArcflowHostApi* arcflow_host_get_api(std::uint32_t version) {
  return version == kArcflowHostVersion ? &kApi : nullptr;
}
