// The module's one symbol: hosts/host.h on ONNX Runtime and main memory. No exception leaves it.
#include <cstring>
#include <string>

#include "core/numerics/compute.hpp"
#include "hosts/ort/session.hpp"
#include "hosts/table.hpp"

namespace {

using arcflow::core::Error;
using arcflow::hosts::product;
using arcflow::ort::Buffer;

struct Host {
  static void model_create(const ArcflowHostOptions* options, const ArcflowHostNetwork* networks, std::size_t count,
                           ArcflowHostModel** out) {
    *out = new ArcflowHostModel{std::make_shared<const arcflow::ort::Model>(*options, networks, count)};
  }
  static void model_destroy(ArcflowHostModel* model) { delete model; }
  static const char* model_backend(const ArcflowHostModel* model) { return model->model->backend().c_str(); }
  static void model_memory(const ArcflowHostModel* model, std::uint64_t* host, std::uint64_t* device) {
    *host = model->model->bytes();
    *device = 0;
  }

  static void session_create(ArcflowHostModel* model, void* stream, ArcflowHostSession** out) {
    if (stream != nullptr) {
      throw Error(ARCFLOW_INVALID_ARGUMENT, "a stream was given, but this model runs on the CPU: leave it out");
    }
    *out = new ArcflowHostSession{arcflow::ort::Session(model->model)};
  }
  static void session_destroy(ArcflowHostSession* session) { delete session; }
  static void session_memory(const ArcflowHostSession* session, std::uint64_t* host, std::uint64_t* device) {
    *host = session->session.bytes();
    *device = 0;
  }

  static void buffer_create(ArcflowHostSession* session, std::uint64_t bytes, ArcflowHostBuffer** out) {
    *out = new ArcflowHostBuffer{Buffer(bytes, session->session.total())};
  }
  static void buffer_destroy(ArcflowHostBuffer* buffer) { delete buffer; }
  static void write(ArcflowHostSession*, ArcflowHostBuffer* buffer, std::uint64_t offset, const void* source,
                    std::uint64_t bytes) {
    std::byte* target = buffer->buffer.at(offset, bytes);
    if (bytes != 0) std::memcpy(target, source, bytes);
  }
  static void read(ArcflowHostSession*, ArcflowHostBuffer* buffer, std::uint64_t offset, void* target,
                   std::uint64_t bytes) {
    const std::byte* source = buffer->buffer.at(offset, bytes);
    if (bytes != 0) std::memcpy(target, source, bytes);
  }
  static void copy(ArcflowHostSession*, ArcflowHostBuffer* from, std::uint64_t from_offset, ArcflowHostBuffer* to,
                   std::uint64_t to_offset, std::uint64_t bytes) {
    std::memmove(to->buffer.at(to_offset, bytes), from->buffer.at(from_offset, bytes), bytes);
  }

  static void run(ArcflowHostSession* session, std::size_t network, const ArcflowHostBinding* inputs,
                  std::size_t input_count, const ArcflowHostBinding* outputs, std::size_t output_count) {
    session->session.run(network, inputs, input_count, outputs, output_count);
  }
  static void normal(ArcflowHostSession*, std::uint64_t seed, ArcflowHostBuffer* buffer, std::uint64_t offset,
                     std::uint64_t count) {
    arcflow::core::normal(seed, 0, count, buffer->buffer.values<float>(count, offset));
  }
  static void advance(ArcflowHostSession*, const ArcflowHostAdvance* work) {
    if (work->type != kArcflowFloat32) {
      throw Error(ARCFLOW_BACKEND_UNAVAILABLE,
                  "the backbone's outputs are not float32, which a CPU bundle's have to be");
    }
    const auto values = [work](ArcflowHostBuffer* buffer, std::int64_t each, std::int64_t of) {
      return buffer->buffer.values<float>(product({work->batch, work->tokens, each, of}));
    };
    const arcflow::core::Segment segment{work->batch,     work->tokens,    work->modes,   work->channels,
                                         work->positions, work->sigma_src, work->sigma_a, work->sigma_b};
    arcflow::core::advance(segment, values(work->x, 1, work->channels),
                           values(work->means, work->modes, work->channels),
                           values(work->logweights, work->modes, work->positions),
                           work->modes > 1 ? values(work->loggammas, work->modes - 1, work->positions) : nullptr,
                           values(work->out, 1, work->channels));
  }
  static void unpack(ArcflowHostSession*, const ArcflowHostUnpack* work) {
    const std::uint64_t count =
        product({work->batch, work->rows, work->columns, work->channels, work->patch, work->patch});
    arcflow::core::unpack(work->tokens->buffer.values<float>(count), work->batch, work->rows, work->columns,
                          work->channels, work->patch, work->scaling, work->shift, work->factor_count,
                          work->latents->buffer.values<float>(count));
  }
  static void to_rgb8(ArcflowHostSession*, ArcflowHostBuffer* images, ArcflowHostBuffer* pixels, std::int64_t batch,
                      std::int64_t height, std::int64_t width) {
    const std::uint64_t count = product({batch, 3, height, width});
    arcflow::core::to_rgb8(images->buffer.values<float>(count), batch, height, width,
                           pixels->buffer.values<std::uint8_t>(count));
  }
  static void finite(ArcflowHostSession*, ArcflowHostBuffer* buffer, std::uint64_t count, std::int32_t* all_finite) {
    *all_finite = arcflow::core::all_finite(buffer->buffer.values<float>(count), count) ? 1 : 0;
  }
  static void synchronize(ArcflowHostSession*) {}  // All of it acts at once.

  // Nothing is recorded on a CPU.
  static void graph_begin(ArcflowHostSession*, std::uint64_t, std::int32_t* mode) { *mode = 0; }
  static void graph_end(ArcflowHostSession*) {}
  static void graph_reset(ArcflowHostSession*) {}

  static void interrupt(ArcflowHostSession* session) { session->session.interrupt(); }
  static void rearm(ArcflowHostSession* session) { session->session.rearm(); }

  static ArcflowHostPrepared* prepare(const ArcflowHostOptions* options) {
    ArcflowHostPrepared* prepared = nullptr;
    arcflow::hosts::guard(nullptr,
                          [&] { prepared = new ArcflowHostPrepared{arcflow::ort::Environment(options->library)}; });
    return prepared;
  }
  static void unprepare(ArcflowHostPrepared* prepared) { delete prepared; }
};

constexpr ArcflowHostApi kApi = arcflow::hosts::table_of<Host>("ort");

}  // namespace

extern "C" ARCFLOW_EXPORT const ArcflowHostApi* arcflow_host_get_api(std::uint32_t version) {
  return version == kArcflowHostVersion ? &kApi : nullptr;
}
