// The table: each function turns the caller's structs into the core's values, and what the core throws into a status.
#include <algorithm>
#include <memory>
#include <string>

#include "abi/boundary.hpp"
#include "arcflow/arcflow.h"
#include "core/bundle/bundle.hpp"
#include "core/numerics/compute.hpp"
#include "core/numerics/png.hpp"
#include "core/pipeline/context.hpp"
#include "core/pipeline/model.hpp"
#include "core/pipeline/pipeline.hpp"
#include "core/pipeline/request/cancel.hpp"
#include "core/pipeline/request/request.hpp"
#include "core/pipeline/request/settings.hpp"

// Handles share what they stand for: an object lives until the last handle, and the last object that needs it, is gone.
struct ArcflowContext {
  std::shared_ptr<arcflow::core::Context> self;
};
struct ArcflowModel {
  std::shared_ptr<const arcflow::core::Model> self;
};
struct ArcflowSession {
  std::shared_ptr<arcflow::core::Session> self;
};
struct ArcflowCancel {
  std::shared_ptr<arcflow::core::CancelToken> self;
};
struct ArcflowBytes {
  std::string self;
};

namespace arcflow::abi {
namespace {

using core::Error;

std::string text_or_empty(const char* text) { return text != nullptr ? text : ""; }

// Where a result goes; NULL until there is one.
template <class T>
void clear(T** out) {
  require(out, "out");
  *out = nullptr;
}

const char* ARCFLOW_CALL library_version() { return ARCFLOW_VERSION; }

std::int32_t ARCFLOW_CALL status_code(const ArcflowStatus* status) {
  return status != nullptr ? status->code : std::int32_t{ARCFLOW_OK};
}
const char* ARCFLOW_CALL status_message(const ArcflowStatus* status) {
  return status != nullptr ? status->message : "";
}
void ARCFLOW_CALL status_destroy(ArcflowStatus* status) { destroy_status(status); }

ArcflowStatus* ARCFLOW_CALL context_create(const ArcflowContextOptions* options, ArcflowContext** out) {
  return guarded([&] {
    clear(out);
    const ArcflowContextOptions given = whole_or_default(options, "options");
    if (given.least_level < ARCFLOW_LOG_DEBUG || given.least_level > ARCFLOW_LOG_ERROR) {
      throw Error(ARCFLOW_INVALID_ARGUMENT,
                  "least_level is " + std::to_string(given.least_level) + "; it must be from 0 (debug) to 3 (error)");
    }
    auto context = std::make_shared<core::Context>(given.logger, given.logger_user, given.least_level,
                                                   text_or_empty(given.host_directory));
    *out = new ArcflowContext{std::move(context)};
  });
}
void ARCFLOW_CALL context_destroy(ArcflowContext* context) { delete context; }

ArcflowStatus* ARCFLOW_CALL model_open(ArcflowContext* context, const ArcflowModelOptions* options,
                                       ArcflowModel** out) {
  return guarded([&] {
    clear(out);
    require(context, "context");
    const ArcflowModelOptions given = whole(options, "options");
    if (given.bundle == nullptr || *given.bundle == '\0') {
      throw Error(ARCFLOW_INVALID_ARGUMENT,
                  "bundle of the options is missing: give a model's name or a bundle's folder");
    }
    core::OpenOptions opening;
    opening.bundle = given.bundle;
    opening.precision = text_or_empty(given.precision);
    opening.target = text_or_empty(given.target);
    opening.host = text_or_empty(given.host);
    opening.library = text_or_empty(given.library);
    opening.threads = given.threads;
    opening.device = given.device;
    opening.allow_links = given.allow_links != 0;
    *out = new ArcflowModel{std::make_shared<const core::Model>(context->self, opening)};
  });
}
void ARCFLOW_CALL model_destroy(ArcflowModel* model) { delete model; }

ArcflowRange range(const core::Range& limit) {
  const auto number = [](std::int64_t value) {
    return static_cast<std::uint32_t>(std::clamp<std::int64_t>(value, 0, UINT32_MAX));
  };
  return {number(limit.min), number(limit.opt), number(limit.max)};
}

ArcflowStatus* ARCFLOW_CALL model_info(const ArcflowModel* model, ArcflowModelInfo* info) {
  return guarded([&] {
    require(model, "model");
    const core::Model& self = *model->self;
    const core::Manifest& manifest = self.manifest();
    ArcflowModelInfo facts = ARCFLOW_INIT(ArcflowModelInfo);
    facts.model = manifest.model.c_str();
    facts.architecture = manifest.architecture.c_str();
    facts.precision = manifest.precision.c_str();
    facts.target = manifest.target.c_str();
    facts.digest = manifest.digest.c_str();
    facts.bundle = self.folder().c_str();
    facts.backend = self.backend().c_str();
    facts.batch = range(manifest.limits.batch);
    facts.width = range(manifest.limits.width);
    facts.height = range(manifest.limits.height);
    facts.multiple = static_cast<std::uint32_t>(manifest.limits.multiple);
    facts.nfe = static_cast<std::uint32_t>(manifest.schedule.nfe);
    facts.max_nfe = static_cast<std::uint32_t>(manifest.schedule.max_nfe);
    facts.latent_channels = static_cast<std::uint32_t>(manifest.latent.channels);
    facts.latent_factor = static_cast<std::uint32_t>(manifest.latent.vae_factor);
    fill(info, "info", facts);
  });
}

// What a model or a session holds.
template <class Handle>
ArcflowStatus* memory_of(const Handle* handle, const char* name, ArcflowMemory* memory) {
  return guarded([&] {
    require(handle, name);
    ArcflowMemory facts = ARCFLOW_INIT(ArcflowMemory);
    handle->self->memory(facts.host_bytes, facts.device_bytes);
    fill(memory, "memory", facts);
  });
}

ArcflowStatus* ARCFLOW_CALL model_memory(const ArcflowModel* model, ArcflowMemory* memory) {
  return memory_of(model, "model", memory);
}

ArcflowStatus* ARCFLOW_CALL model_shape(const ArcflowModel* model, const ArcflowRequest* request, ArcflowShape* shape) {
  return guarded([&] {
    require(model, "model");
    const core::Manifest& manifest = model->self->manifest();
    const core::CheckedRequest checked = core::check_request(manifest, WholeRequest(request).get());
    const core::OutputShape sizes = core::output_shape(manifest, checked);
    ArcflowShape facts = ARCFLOW_INIT(ArcflowShape);
    facts.image_count = static_cast<std::uint32_t>(sizes.images);
    facts.width = checked.width;
    facts.height = checked.height;
    facts.nfe = checked.nfe;
    facts.rgb8_bytes = sizes.rgb8_bytes;
    facts.image_floats = sizes.image_floats;
    facts.latent_floats = sizes.latent_floats;
    fill(shape, "shape", facts);
  });
}

ArcflowStatus* ARCFLOW_CALL session_create(ArcflowModel* model, const ArcflowSessionOptions* options,
                                           ArcflowSession** out) {
  return guarded([&] {
    clear(out);
    require(model, "model");
    const ArcflowSessionOptions given = whole_or_default(options, "options");
    *out = new ArcflowSession{std::make_shared<core::Session>(model->self, given.stream)};
  });
}
void ARCFLOW_CALL session_destroy(ArcflowSession* session) { delete session; }

ArcflowStatus* ARCFLOW_CALL session_memory(const ArcflowSession* session, ArcflowMemory* memory) {
  return memory_of(session, "session", memory);
}

core::Listener listener_of(const ArcflowRequest& request) {
  core::Listener listener{request.on_step, request.on_preview, request.on_warning, request.user, nullptr};
  if (request.cancel != nullptr) listener.cancel = request.cancel->self;
  return listener;
}

ArcflowStatus* ARCFLOW_CALL session_warm_up(ArcflowSession* session, const ArcflowRequest* request) {
  return guarded([&] {
    const core::Clock::time_point start = core::Clock::now();
    require(session, "session");
    const std::shared_ptr<core::Session> self = session->self;
    const WholeRequest given(request);
    self->warm_up(core::check_request(self->model().manifest(), given.get()), listener_of(given.get()), start);
  });
}

ArcflowStatus* ARCFLOW_CALL session_generate(ArcflowSession* session, const ArcflowRequest* request,
                                             ArcflowOutput* output) {
  return guarded([&] {
    const core::Clock::time_point start = core::Clock::now();
    require(session, "session");
    const std::shared_ptr<core::Session> self = session->self;  // it may be destroyed by a callback
    const WholeRequest given(request);
    ArcflowOutput result = whole(output, "output");
    self->generate(core::check_request(self->model().manifest(), given.get()), listener_of(given.get()), start, result);
    fill(output, "output", result, offsetof(ArcflowOutput, tokenize_seconds));
  });
}

ArcflowStatus* ARCFLOW_CALL cancel_create(ArcflowCancel** out) {
  return guarded([&] {
    clear(out);
    *out = new ArcflowCancel{std::make_shared<core::CancelToken>()};
  });
}
void ARCFLOW_CALL cancel_request(ArcflowCancel* cancel) {
  if (cancel != nullptr) cancel->self->cancel();
}
void ARCFLOW_CALL cancel_destroy(ArcflowCancel* cancel) { delete cancel; }

ArcflowStatus* ARCFLOW_CALL describe_image(const ArcflowModel* model, const ArcflowRequest* request,
                                           std::uint32_t image, ArcflowBytes** out) {
  return guarded([&] {
    clear(out);
    require(model, "model");
    const core::Manifest& manifest = model->self->manifest();
    const core::CheckedRequest checked = core::check_request(manifest, WholeRequest(request).get());
    if (image >= checked.total()) {
      throw Error(ARCFLOW_INVALID_ARGUMENT, "image is " + std::to_string(image) + "; the request makes " +
                                                std::to_string(checked.total()) + ", the first of them is 0");
    }
    const core::ImageSettings settings{checked.prompt_of(image), checked.seeds[image], checked.nfe,
                                       checked.sigmas,           checked.width,        checked.height};
    *out = new ArcflowBytes{core::describe(manifest, settings)};
  });
}

ArcflowStatus* ARCFLOW_CALL encode_png(const std::uint8_t* rgb8, std::uint32_t width, std::uint32_t height,
                                       const char* settings, ArcflowBytes** out) {
  return guarded([&] {
    clear(out);
    require(rgb8, "rgb8");
    *out = new ArcflowBytes{core::encode_png(rgb8, width, height, settings)};
  });
}
const std::uint8_t* ARCFLOW_CALL bytes_data(const ArcflowBytes* bytes) {
  return bytes != nullptr ? reinterpret_cast<const std::uint8_t*>(bytes->self.c_str()) : nullptr;
}
std::size_t ARCFLOW_CALL bytes_size(const ArcflowBytes* bytes) { return bytes != nullptr ? bytes->self.size() : 0; }
void ARCFLOW_CALL bytes_destroy(ArcflowBytes* bytes) { delete bytes; }

ArcflowStatus* ARCFLOW_CALL verify_bundle(const char* folder) {
  return guarded([&] {
    require(folder, "folder");
    core::Bundle::open(folder).verify();
  });
}

ArcflowStatus* ARCFLOW_CALL noise(std::uint64_t seed, std::uint64_t first, std::size_t count, float* out) {
  return guarded([&] {
    if (count == 0) return;
    require(out, "out");
    core::normal(seed, first, count, out);
  });
}

// In the order of the header, which only ever grows at its end.
const ArcflowApi kApi{
    sizeof(ArcflowApi), ARCFLOW_API_VERSION, library_version, status_code,    status_message,  status_destroy,
    context_create,     context_destroy,     model_open,      model_destroy,  model_info,      model_memory,
    model_shape,        session_create,      session_destroy, session_memory, session_warm_up, session_generate,
    cancel_create,      cancel_request,      cancel_destroy,  describe_image, encode_png,      bytes_data,
    bytes_size,         bytes_destroy,       verify_bundle,   noise};

}  // namespace
}  // namespace arcflow::abi

extern "C" const ArcflowApi* ARCFLOW_CALL arcflow_get_api(std::uint32_t version) {
  return version == ARCFLOW_API_VERSION ? &arcflow::abi::kApi : nullptr;
}
