// The module's one symbol: hosts/host.h on TensorRT and CUDA. No exception leaves it, and the thread's current device
// is after every call what it was before.
#include <cstring>
#include <exception>
#include <initializer_list>
#include <new>
#include <string>

#include "core/error.hpp"
#include "cuda/launch.hpp"
#include "hosts/tensorrt/session.hpp"

struct ArcflowHostModel {
  std::shared_ptr<const arcflow::tensorrt::Model> model;
};
struct ArcflowHostSession {
  explicit ArcflowHostSession(ArcflowHostModel& model, void* stream) : session(model.model, stream) {}
  arcflow::tensorrt::Session session;
};
struct ArcflowHostBuffer {
  std::unique_ptr<arcflow::tensorrt::Buffer> buffer;
};

namespace {

using arcflow::core::Error;
using namespace arcflow::tensorrt;

template <class Action>
std::int32_t guard(ArcflowHostError* error, Action&& action) noexcept {
  const auto tell = [error](const char* message, ArcflowCode code) {
    if (error != nullptr) {
      std::strncpy(error->message, message, sizeof(error->message) - 1);
      error->message[sizeof(error->message) - 1] = '\0';
    }
    return static_cast<std::int32_t>(code);
  };
  try {
    action();
    return ARCFLOW_OK;
  } catch (const Error& failure) {
    return tell(failure.what(), failure.code());
  } catch (const std::bad_alloc&) {
    return tell("main memory is exhausted; ask for fewer or smaller pictures at once", ARCFLOW_OUT_OF_MEMORY);
  } catch (const std::exception& failure) {
    return tell(failure.what(), ARCFLOW_INTERNAL);
  } catch (...) {
    return tell("an exception of an unknown kind", ARCFLOW_INTERNAL);
  }
}

// The same on the session's device.
template <class Action>
std::int32_t on_device(ArcflowHostSession* session, ArcflowHostError* error, Action&& action) noexcept {
  return guard(error, [&] {
    const DeviceGuard device(session->session.device());
    action(session->session);
  });
}

// Bytes of that many values of a size, for bounds that are checked next. Throws Error(ARCFLOW_INTERNAL).
std::uint64_t bytes_of(std::uint64_t value_bytes, std::initializer_list<std::int64_t> sizes) {
  std::uint64_t bytes = value_bytes;
  for (const std::int64_t size : sizes) {
    if (size < 0 || (size > 0 && bytes > INT64_MAX / static_cast<std::uint64_t>(size))) {
      throw Error(ARCFLOW_INTERNAL, "the size " + std::to_string(size) + " is out of range");
    }
    bytes *= static_cast<std::uint64_t>(size);
  }
  return bytes;
}

template <class T>
T* address(ArcflowHostBuffer* buffer, std::uint64_t bytes, std::uint64_t offset = 0) {
  if (buffer == nullptr) throw Error(ARCFLOW_INTERNAL, "a buffer is missing");
  return static_cast<T*>(buffer->buffer->at(offset, bytes));
}

std::vector<Bound> bound(const ArcflowHostBinding* bindings, std::size_t count) {
  std::vector<Bound> result;
  for (std::size_t i = 0; i < count; ++i) {
    const ArcflowHostBinding& one = bindings[i];
    void* const at = address<void>(one.buffer, 0, one.offset);
    result.push_back({one.name, at, {one.dims, one.dims + one.rank}, one.buffer->buffer->bytes() - one.offset});
  }
  return result;
}

std::int32_t model_create(const ArcflowHostOptions* options, const ArcflowHostNetwork* networks, std::size_t count,
                          ArcflowHostModel** out, ArcflowHostError* error) {
  return guard(error, [&] { *out = new ArcflowHostModel{std::make_shared<const Model>(*options, networks, count)}; });
}

void model_destroy(ArcflowHostModel* model) {
  // A session may live on; the engines go with the last of them.
  guard(nullptr, [&] {
    const DeviceGuard device(model->model->device());
    delete model;
  });
}

const char* model_backend(const ArcflowHostModel* model) { return model->model->backend().c_str(); }

void model_memory(const ArcflowHostModel* model, std::uint64_t* host, std::uint64_t* device) {
  *host = 0;
  *device = model->model->bytes();
}

std::int32_t session_create(ArcflowHostModel* model, void* stream, ArcflowHostSession** out, ArcflowHostError* error) {
  return guard(error, [&] {
    const DeviceGuard device(model->model->device());
    *out = new ArcflowHostSession(*model, stream);
  });
}

void session_destroy(ArcflowHostSession* session) {
  guard(nullptr, [&] {
    const DeviceGuard device(session->session.device());
    delete session;
  });
}

void session_memory(const ArcflowHostSession* session, std::uint64_t* host, std::uint64_t* device) {
  *host = session->session.host_bytes();
  *device = session->session.device_bytes();
}

std::int32_t buffer_create(ArcflowHostSession* session, std::uint64_t bytes, ArcflowHostBuffer** out,
                           ArcflowHostError* error) {
  return on_device(session, error, [&](Session& s) { *out = new ArcflowHostBuffer{s.make_buffer(bytes)}; });
}

void buffer_destroy(ArcflowHostBuffer* buffer) { delete buffer; }

std::int32_t write(ArcflowHostSession* session, ArcflowHostBuffer* to, std::uint64_t offset, const void* from,
                   std::uint64_t bytes, ArcflowHostError* error) {
  return on_device(session, error, [&](Session& s) { s.write(*to->buffer, offset, from, bytes); });
}

std::int32_t read(ArcflowHostSession* session, ArcflowHostBuffer* from, std::uint64_t offset, void* to,
                  std::uint64_t bytes, ArcflowHostError* error) {
  return on_device(session, error, [&](Session& s) { s.read(*from->buffer, offset, to, bytes); });
}

std::int32_t copy(ArcflowHostSession* session, ArcflowHostBuffer* from, std::uint64_t from_offset,
                  ArcflowHostBuffer* to, std::uint64_t to_offset, std::uint64_t bytes, ArcflowHostError* error) {
  return on_device(session, error, [&](Session& s) {
    const void* const source = address<void>(from, bytes, from_offset);
    void* const target = address<void>(to, bytes, to_offset);
    if (bytes == 0 || source == target) return;
    s.put([source, target, bytes](cudaStream_t stream) {
      check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, stream), "copying on the GPU");
    });
  });
}

std::int32_t run(ArcflowHostSession* session, std::size_t network, const ArcflowHostBinding* inputs,
                 std::size_t input_count, const ArcflowHostBinding* outputs, std::size_t output_count,
                 ArcflowHostError* error) {
  return on_device(session, error,
                   [&](Session& s) { s.run(network, bound(inputs, input_count), bound(outputs, output_count)); });
}

std::int32_t normal(ArcflowHostSession* session, std::uint64_t seed, ArcflowHostBuffer* buffer, std::uint64_t offset,
                    std::uint64_t count, ArcflowHostError* error) {
  return on_device(session, error, [&](Session& s) {
    const std::uint64_t bytes = bytes_of(sizeof(float), {static_cast<std::int64_t>(count)});
    auto* const out = address<float>(buffer, bytes, offset);
    s.put([seed, count, out](cudaStream_t stream) {
      check(arcflow::cuda::normal(seed, 0, count, out, stream), "making noise");
    });
  });
}

std::int32_t advance(ArcflowHostSession* session, const ArcflowHostAdvance* a, ArcflowHostError* error) {
  return on_device(session, error, [&](Session& s) {
    if (a->type != kArcflowFloat32 && a->type != kArcflowFloat16 && a->type != kArcflowBfloat16) {
      throw Error(ARCFLOW_INTERNAL, "advance: a field of type " + std::to_string(a->type));
    }
    const std::uint64_t value = a->type == kArcflowFloat32 ? 4 : 2;
    const std::uint64_t state = bytes_of(sizeof(float), {a->batch, a->tokens, a->channels});
    arcflow::cuda::Advance arguments{};
    arguments.means = address<void>(a->means, bytes_of(value, {a->batch, a->tokens, a->modes, a->channels}));
    arguments.logweights = address<void>(a->logweights, bytes_of(value, {a->batch, a->tokens, a->modes, a->positions}));
    const std::uint64_t rates = bytes_of(value, {a->batch, a->tokens, a->modes - 1, a->positions});
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
    s.put([arguments](cudaStream_t stream) { check(arcflow::cuda::advance(arguments, stream), "the solver"); });
  });
}

std::int32_t unpack(ArcflowHostSession* session, const ArcflowHostUnpack* u, ArcflowHostError* error) {
  return on_device(session, error, [&](Session& s) {
    const std::uint64_t bytes =
        bytes_of(sizeof(float), {u->batch, u->rows, u->columns, u->channels, u->patch, u->patch});
    const auto* const tokens = address<float>(u->tokens, bytes);
    auto* const latents = address<float>(u->latents, bytes);
    std::vector<float> scaling, shift;  // by value: a recording outlives the caller's arrays
    if (u->scaling != nullptr && u->shift != nullptr && u->factor_count > 0) {
      scaling.assign(u->scaling, u->scaling + u->factor_count);
      shift.assign(u->shift, u->shift + u->factor_count);
    }
    s.put([shape = *u, tokens, latents, scaling, shift](cudaStream_t stream) {
      check(arcflow::cuda::unpack(tokens, latents, shape.batch, shape.rows, shape.columns, shape.channels, shape.patch,
                                  scaling.empty() ? nullptr : scaling.data(), shift.empty() ? nullptr : shift.data(),
                                  static_cast<std::int64_t>(scaling.size()), stream),
            "making latents of tokens");
    });
  });
}

std::int32_t to_rgb8(ArcflowHostSession* session, ArcflowHostBuffer* images, ArcflowHostBuffer* pixels,
                     std::int64_t batch, std::int64_t height, std::int64_t width, ArcflowHostError* error) {
  return on_device(session, error, [&](Session& s) {
    const auto* const from = address<float>(images, bytes_of(sizeof(float), {batch, 3, height, width}));
    auto* const to = address<std::uint8_t>(pixels, bytes_of(1, {batch, 3, height, width}));
    s.put([=](cudaStream_t stream) {
      check(arcflow::cuda::to_rgb8(from, to, batch, height, width, stream), "making pixels");
    });
  });
}

std::int32_t finite(ArcflowHostSession* session, ArcflowHostBuffer* buffer, std::uint64_t count,
                    std::int32_t* all_finite, ArcflowHostError* error) {
  return on_device(session, error, [&](Session& s) { *all_finite = s.finite(*buffer->buffer, count) ? 1 : 0; });
}

std::int32_t synchronize(ArcflowHostSession* session, ArcflowHostError* error) {
  return on_device(session, error, [](Session& s) { s.wait(); });
}

std::int32_t graph_begin(ArcflowHostSession* session, std::uint64_t key, std::int32_t* mode, ArcflowHostError* error) {
  return on_device(session, error, [&](Session& s) { *mode = s.graph_begin(key); });
}

std::int32_t graph_end(ArcflowHostSession* session, ArcflowHostError* error) {
  return on_device(session, error, [](Session& s) { s.graph_end(); });
}

void graph_reset(ArcflowHostSession* session) {
  on_device(session, nullptr, [](Session& s) { s.graph_reset(); });
}

void interrupt(ArcflowHostSession* session) { session->session.interrupt(); }
void rearm(ArcflowHostSession* session) { session->session.rearm(); }

const ArcflowHostApi kApi = {
    kArcflowHostVersion,
    "tensorrt",
    model_create,
    model_destroy,
    model_backend,
    model_memory,
    session_create,
    session_destroy,
    session_memory,
    buffer_create,
    buffer_destroy,
    write,
    read,
    copy,
    run,
    normal,
    advance,
    unpack,
    to_rgb8,
    finite,
    synchronize,
    graph_begin,
    graph_end,
    graph_reset,
    interrupt,
    rearm,
    nullptr,  // Files of gigabytes take longer than anything that could be done meanwhile.
    nullptr,
};

}  // namespace

extern "C" ARCFLOW_EXPORT const ArcflowHostApi* arcflow_host_get_api(std::uint32_t version) {
  return version == kArcflowHostVersion ? &kApi : nullptr;
}
