// The module's one symbol: hosts/host.h on ONNX Runtime and main memory. No exception leaves it.
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "core/numerics/compute.hpp"
#include "hosts/ort/session.hpp"

namespace {

using arcflow::core::Error;
using arcflow::ort::Buffer;

void tell(ArcflowHostError* error, const char* message) noexcept {
  if (error == nullptr) return;
  std::strncpy(error->message, message, sizeof(error->message) - 1);
  error->message[sizeof(error->message) - 1] = '\0';
}

// Runs `action` and turns what it throws into a code and its message.
template <class Action>
std::int32_t guard(ArcflowHostError* error, Action&& action) noexcept {
  try {
    action();
    return ARCFLOW_OK;
  } catch (const Error& failure) {
    tell(error, failure.what());
    return failure.code();
  } catch (const std::bad_alloc&) {
    tell(error, "main memory is exhausted; ask for fewer or smaller pictures at once");
    return ARCFLOW_OUT_OF_MEMORY;
  } catch (const std::exception& failure) {
    tell(error, failure.what());
    return ARCFLOW_INTERNAL;
  } catch (...) {
    tell(error, "an exception of an unknown kind");
    return ARCFLOW_INTERNAL;
  }
}

// The product of sizes, for bounds that are checked next. Throws Error(ARCFLOW_INTERNAL) for what is no size.
std::uint64_t product(std::initializer_list<std::int64_t> sizes) {
  std::uint64_t result = 1;
  for (const std::int64_t size : sizes) {
    if (size < 0 || (size > 0 && result > INT64_MAX / static_cast<std::uint64_t>(size))) {
      throw Error(ARCFLOW_INTERNAL, "the size " + std::to_string(size) + " is out of range");
    }
    result *= static_cast<std::uint64_t>(size);
  }
  return result;
}

std::int32_t model_create(const ArcflowHostOptions* options, const ArcflowHostNetwork* networks, std::size_t count,
                          ArcflowHostModel** out, ArcflowHostError* error) {
  return guard(error, [&] {
    *out = new ArcflowHostModel{std::make_shared<const arcflow::ort::Model>(*options, networks, count)};
  });
}

void model_destroy(ArcflowHostModel* model) { delete model; }

const char* model_backend(const ArcflowHostModel* model) { return model->model->backend().c_str(); }

void model_memory(const ArcflowHostModel* model, std::uint64_t* host, std::uint64_t* device) {
  *host = model->model->bytes();
  *device = 0;
}

std::int32_t session_create(ArcflowHostModel* model, void* stream, ArcflowHostSession** out, ArcflowHostError* error) {
  return guard(error, [&] {
    if (stream != nullptr) {
      throw Error(ARCFLOW_INVALID_ARGUMENT, "a stream was given, but this model runs on the CPU: leave it out");
    }
    *out = new ArcflowHostSession{arcflow::ort::Session(model->model)};
  });
}

void session_destroy(ArcflowHostSession* session) { delete session; }

void session_memory(const ArcflowHostSession* session, std::uint64_t* host, std::uint64_t* device) {
  *host = session->session.bytes();
  *device = 0;
}

std::int32_t buffer_create(ArcflowHostSession* session, std::uint64_t bytes, ArcflowHostBuffer** out,
                           ArcflowHostError* error) {
  return guard(error, [&] { *out = new ArcflowHostBuffer{Buffer(bytes, session->session.total())}; });
}

void buffer_destroy(ArcflowHostBuffer* buffer) { delete buffer; }

std::int32_t write(ArcflowHostSession*, ArcflowHostBuffer* buffer, std::uint64_t offset, const void* source,
                   std::uint64_t bytes, ArcflowHostError* error) {
  return guard(error, [&] {
    std::byte* target = buffer->buffer.at(offset, bytes);
    if (bytes != 0) std::memcpy(target, source, bytes);
  });
}

std::int32_t read(ArcflowHostSession*, ArcflowHostBuffer* buffer, std::uint64_t offset, void* target,
                  std::uint64_t bytes, ArcflowHostError* error) {
  return guard(error, [&] {
    const std::byte* source = buffer->buffer.at(offset, bytes);
    if (bytes != 0) std::memcpy(target, source, bytes);
  });
}

std::int32_t copy(ArcflowHostSession*, ArcflowHostBuffer* from, std::uint64_t from_offset, ArcflowHostBuffer* to,
                  std::uint64_t to_offset, std::uint64_t bytes, ArcflowHostError* error) {
  return guard(error,
               [&] { std::memmove(to->buffer.at(to_offset, bytes), from->buffer.at(from_offset, bytes), bytes); });
}

std::int32_t run(ArcflowHostSession* session, std::size_t network, const ArcflowHostBinding* inputs,
                 std::size_t input_count, const ArcflowHostBinding* outputs, std::size_t output_count,
                 ArcflowHostError* error) {
  return guard(error, [&] { session->session.run(network, inputs, input_count, outputs, output_count); });
}

std::int32_t normal(ArcflowHostSession*, std::uint64_t seed, ArcflowHostBuffer* buffer, std::uint64_t offset,
                    std::uint64_t count, ArcflowHostError* error) {
  return guard(error, [&] { arcflow::core::normal(seed, 0, count, buffer->buffer.values<float>(count, offset)); });
}

std::int32_t advance(ArcflowHostSession*, const ArcflowHostAdvance* work, ArcflowHostError* error) {
  return guard(error, [&] {
    if (work->type != kArcflowFloat32) {
      throw Error(ARCFLOW_BACKEND_UNAVAILABLE,
                  "the backbone's outputs are not float32, which a CPU bundle's have to be");
    }
    const std::uint64_t tokens = product({work->batch, work->tokens});
    const auto size = [tokens](std::int64_t a, std::int64_t b) {
      return product({static_cast<std::int64_t>(tokens), a, b});
    };
    const arcflow::core::Segment segment{work->batch,     work->tokens,    work->modes,   work->channels,
                                         work->positions, work->sigma_src, work->sigma_a, work->sigma_b};
    const std::uint64_t state = size(1, work->channels);
    arcflow::core::advance(
        segment, work->x->buffer.values<float>(state),
        work->means->buffer.values<float>(size(work->modes, work->channels)),
        work->logweights->buffer.values<float>(size(work->modes, work->positions)),
        work->modes > 1 ? work->loggammas->buffer.values<float>(size(work->modes - 1, work->positions)) : nullptr,
        work->out->buffer.values<float>(state));
  });
}

std::int32_t unpack(ArcflowHostSession*, const ArcflowHostUnpack* work, ArcflowHostError* error) {
  return guard(error, [&] {
    const std::uint64_t count =
        product({work->batch, work->rows, work->columns, work->channels, work->patch, work->patch});
    arcflow::core::unpack(work->tokens->buffer.values<float>(count), work->batch, work->rows, work->columns,
                          work->channels, work->patch, work->scaling, work->shift, work->factor_count,
                          work->latents->buffer.values<float>(count));
  });
}

std::int32_t to_rgb8(ArcflowHostSession*, ArcflowHostBuffer* images, ArcflowHostBuffer* pixels, std::int64_t batch,
                     std::int64_t height, std::int64_t width, ArcflowHostError* error) {
  return guard(error, [&] {
    const std::uint64_t count = product({batch, 3, height, width});
    arcflow::core::to_rgb8(images->buffer.values<float>(count), batch, height, width,
                           pixels->buffer.values<std::uint8_t>(count));
  });
}

std::int32_t finite(ArcflowHostSession*, ArcflowHostBuffer* buffer, std::uint64_t count, std::int32_t* all_finite,
                    ArcflowHostError* error) {
  return guard(error,
               [&] { *all_finite = arcflow::core::all_finite(buffer->buffer.values<float>(count), count) ? 1 : 0; });
}

std::int32_t synchronize(ArcflowHostSession*, ArcflowHostError*) { return ARCFLOW_OK; }  // All of it acts at once.

// Nothing is recorded on a CPU.
std::int32_t graph_begin(ArcflowHostSession*, std::uint64_t, std::int32_t* mode, ArcflowHostError*) {
  *mode = 0;
  return ARCFLOW_OK;
}
std::int32_t graph_end(ArcflowHostSession*, ArcflowHostError*) { return ARCFLOW_OK; }
void graph_reset(ArcflowHostSession*) {}

void interrupt(ArcflowHostSession* session) { session->session.interrupt(); }
void rearm(ArcflowHostSession* session) { session->session.rearm(); }

ArcflowHostPrepared* prepare(const ArcflowHostOptions* options) {
  ArcflowHostPrepared* prepared = nullptr;
  guard(nullptr, [&] { prepared = new ArcflowHostPrepared{arcflow::ort::Environment(options->library)}; });
  return prepared;
}

void unprepare(ArcflowHostPrepared* prepared) { delete prepared; }

const ArcflowHostApi kApi = {
    kArcflowHostVersion,
    "ort",
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
    prepare,
    unprepare,
};

}  // namespace

extern "C" ARCFLOW_EXPORT const ArcflowHostApi* arcflow_host_get_api(std::uint32_t version) {
  return version == kArcflowHostVersion ? &kApi : nullptr;
}
