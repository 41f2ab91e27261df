// ArcFlow in C++17: the C interface of arcflow.h with objects that clean up after themselves and errors that are
// thrown.
//
//     arcflow::Context context;
//     arcflow::Model model = context.open("tiny");
//     arcflow::Session session = model.session();
//     arcflow::Request request;
//     request.prompts = {"a smiling face with sunglasses"};
//     arcflow::Result result = session.generate(request);
//     std::string png = arcflow::encode_png(result.image(0), model.describe(request, 0));
//
// Header only: nothing of it is part of the library's ABI, and the program may be built with any compiler and any
// standard library. Everything throws arcflow::Error, std::bad_alloc, or what a callback threw; nothing else. The rules
// for threads are those of arcflow.h. Objects are movable; a Model is also copyable and then means the same model.
//
// A program that opens libarcflow_runtime while it runs gives the table that it got from there to Context, CancelToken
// and the free functions; one that is linked with it leaves that out.
#ifndef ARCFLOW_ARCFLOW_HPP_
#define ARCFLOW_ARCFLOW_HPP_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arcflow/arcflow.h"
#include "arcflow/request.hpp"

namespace arcflow {

// One image: [height, width, 3].
struct Image {
  std::uint32_t width = 0, height = 0;
  std::vector<std::uint8_t> rgb8;
};

// The images of a request, one after the other in each vector; those that were not asked for are empty.
struct Result {
  ArcflowShape shape = ARCFLOW_INIT(ArcflowShape);
  std::vector<std::uint8_t> rgb8;                      // [image_count, height, width, 3]
  std::vector<float> images;                           // [image_count, 3, height, width], about -1 to 1
  std::vector<float> latents;                          // [image_count, channels, height/factor, width/factor]
  ArcflowOutput output = ARCFLOW_INIT(ArcflowOutput);  // its seconds by stage; its pointers are null

  std::size_t size() const noexcept { return shape.image_count; }
  // A copy of one image; throws std::out_of_range.
  Image image(std::size_t index) const {
    if (index >= size()) throw std::out_of_range("arcflow::Result::image");
    const auto bytes = static_cast<std::ptrdiff_t>(rgb8.size() / size());
    const auto begin = rgb8.begin() + bytes * static_cast<std::ptrdiff_t>(index);
    return {shape.width, shape.height, {begin, begin + bytes}};
  }
};

// The seconds of a request's stages by name, from "tokenize" to "vae".
inline std::array<std::pair<const char*, double>, 6> stage_seconds(const ArcflowOutput& output) {
  return {{{"tokenize", output.tokenize_seconds},
           {"text", output.text_seconds},
           {"noise", output.noise_seconds},
           {"backbone", output.backbone_seconds},
           {"solver", output.solver_seconds},
           {"vae", output.vae_seconds}}};
}

enum class Keep { kPixels, kEverything };  // rgb8 alone, or images and latents too

struct ContextOptions {
  // Called from any thread, never twice at once. What it throws is dropped.
  std::function<void(ArcflowLogLevel level, const std::string& message)> logger;
  ArcflowLogLevel least_level = ARCFLOW_LOG_INFO;
  std::string host_directory;  // where libarcflow_host_*.so lie; "": "arcflow" beside the library
};

struct ModelOptions {
  std::string bundle;  // a folder, or a model's name
  std::string precision, target, host, library;
  std::uint32_t threads = 0, device = 0;
  bool allow_links = false;
};

namespace detail {

// What all objects of a context share: it lives as long as the last of them.
struct Shared {
  const ArcflowApi* api;
  decltype(ContextOptions::logger) logger;

  static void ARCFLOW_CALL log(void* self, std::int32_t level, const char* message) {
    try {
      static_cast<Shared*>(self)->logger(static_cast<ArcflowLogLevel>(level), message);
    } catch (...) {  // There is nobody to tell.
    }
  }
};

}  // namespace detail

class Model;

// The buffers of one thread. It keeps its model alive.
class Session {
 public:
  Result generate(const Request& request, Keep keep = Keep::kPixels) {
    detail::CRequest raw(request);
    const ArcflowApi* api = shared_->api;
    Result result;
    detail::check(api, api->model_shape(model_.get(), raw.get(), &result.shape));
    result.rgb8.resize(result.shape.rgb8_bytes);
    ArcflowOutput& output = result.output;
    output.rgb8 = result.rgb8.data();
    output.rgb8_bytes = result.rgb8.size();
    if (keep == Keep::kEverything) {
      result.images.resize(result.shape.image_floats);
      result.latents.resize(result.shape.latent_floats);
      output.images = result.images.data();
      output.image_floats = result.images.size();
      output.latents = result.latents.data();
      output.latent_floats = result.latents.size();
    }
    raw.finish(api, api->session_generate(handle_.get(), raw.get(), &output));
    output.rgb8 = nullptr;
    output.images = output.latents = nullptr;
    return result;
  }
  // Into the caller's own buffers; see ArcflowOutput.
  void generate(const Request& request, ArcflowOutput& output) {
    detail::CRequest raw(request);
    raw.finish(shared_->api, shared_->api->session_generate(handle_.get(), raw.get(), &output));
  }
  // Runs every network once at the request's shape.
  void warm_up(const Request& request) {
    detail::CRequest raw(request);
    raw.finish(shared_->api, shared_->api->session_warm_up(handle_.get(), raw.get()));
  }
  ArcflowMemory memory() const {
    ArcflowMemory memory = ARCFLOW_INIT(ArcflowMemory);
    detail::check(shared_->api, shared_->api->session_memory(handle_.get(), &memory));
    return memory;
  }

 private:
  friend class Model;
  Session(std::shared_ptr<detail::Shared> shared, std::shared_ptr<ArcflowModel> model,
          const ArcflowSessionOptions& options)
      : shared_(std::move(shared)), model_(std::move(model)), handle_(nullptr, shared_->api->session_destroy) {
    ArcflowSession* raw = nullptr;
    detail::check(shared_->api, shared_->api->session_create(model_.get(), &options, &raw));
    handle_.reset(raw);
  }

  std::shared_ptr<detail::Shared> shared_;
  std::shared_ptr<ArcflowModel> model_;
  detail::Handle<ArcflowSession> handle_;
};

// A verified bundle, loaded; immutable and shared between threads. Copies are the same model.
class Model {
 public:
  // One session a thread. stream: a cudaStream_t of the caller's, or null.
  Session session(void* stream = nullptr) const {
    ArcflowSessionOptions options = ARCFLOW_INIT(ArcflowSessionOptions);
    options.stream = stream;
    return Session(shared_, handle_, options);
  }
  // The strings in it live as long as the model.
  ArcflowModelInfo info() const {
    ArcflowModelInfo info = ARCFLOW_INIT(ArcflowModelInfo);
    detail::check(shared_->api, shared_->api->model_info(handle_.get(), &info));
    return info;
  }
  ArcflowMemory memory() const {
    ArcflowMemory memory = ARCFLOW_INIT(ArcflowMemory);
    detail::check(shared_->api, shared_->api->model_memory(handle_.get(), &memory));
    return memory;
  }
  // Checks a request and says what it will make; nothing runs.
  ArcflowShape shape(const Request& request) const {
    detail::CRequest raw(request);
    ArcflowShape shape = ARCFLOW_INIT(ArcflowShape);
    detail::check(shared_->api, shared_->api->model_shape(handle_.get(), raw.get(), &shape));
    return shape;
  }
  // All that determines image `image` of a request, as one JSON object: for encode_png.
  std::string describe(const Request& request, std::uint32_t image = 0) const {
    detail::CRequest raw(request);
    ArcflowBytes* bytes = nullptr;
    detail::check(shared_->api, shared_->api->describe_image(handle_.get(), raw.get(), image, &bytes));
    return detail::text_of(shared_->api, bytes);
  }

 private:
  friend class Context;
  Model(std::shared_ptr<detail::Shared> shared, ArcflowModel* raw)
      : shared_(std::move(shared)), handle_(raw, shared_->api->model_destroy) {}

  std::shared_ptr<detail::Shared> shared_;
  std::shared_ptr<ArcflowModel> handle_;
};

// Logger and folder of the engine hosts; models outlive it.
class Context {
 public:
  explicit Context(const ContextOptions& options = {}, const ArcflowApi* api = linked_api())
      : shared_(std::make_shared<detail::Shared>(detail::Shared{detail::checked(api), options.logger})),
        handle_(nullptr, api->context_destroy) {
    ArcflowContextOptions raw_options = ARCFLOW_INIT(ArcflowContextOptions);
    if (shared_->logger) raw_options.logger = &detail::Shared::log;
    raw_options.logger_user = shared_.get();
    raw_options.least_level = options.least_level;
    raw_options.host_directory = detail::text(options.host_directory);
    ArcflowContext* raw = nullptr;
    detail::check(api, api->context_create(&raw_options, &raw));
    handle_.reset(raw);
  }
  // Verifies and loads a bundle.
  Model open(const ModelOptions& options) const {
    ArcflowModelOptions raw_options = ARCFLOW_INIT(ArcflowModelOptions);
    raw_options.bundle = options.bundle.c_str();
    raw_options.precision = detail::text(options.precision);
    raw_options.target = detail::text(options.target);
    raw_options.host = detail::text(options.host);
    raw_options.library = detail::text(options.library);
    raw_options.threads = options.threads;
    raw_options.device = options.device;
    raw_options.allow_links = options.allow_links ? 1 : 0;
    ArcflowModel* raw = nullptr;
    detail::check(shared_->api, shared_->api->model_open(handle_.get(), &raw_options, &raw));
    return Model(shared_, raw);
  }
  Model open(const std::string& bundle) const {
    ModelOptions options;
    options.bundle = bundle;
    return open(options);
  }

 private:
  std::shared_ptr<detail::Shared> shared_;
  detail::Handle<ArcflowContext> handle_;
};

// A PNG file. settings: a JSON object to keep in its text chunks, or "".
inline std::string encode_png(const Image& image, const std::string& settings = "",
                              const ArcflowApi* api = linked_api()) {
  if (image.rgb8.size() / 3 != std::size_t{image.width} * image.height || image.rgb8.size() % 3 != 0) {
    throw Error(ARCFLOW_INVALID_ARGUMENT, "the image's rgb8 is not width * height * 3 bytes");
  }
  ArcflowBytes* bytes = nullptr;
  detail::check(api, api->encode_png(image.rgb8.data(), image.width, image.height, detail::text(settings), &bytes));
  return detail::text_of(api, bytes);
}

// Checks every byte of the bundle in a folder against its manifest; loads and runs nothing.
inline void verify_bundle(const std::string& folder, const ArcflowApi* api = linked_api()) {
  detail::check(api, api->verify_bundle(folder.c_str()));
}

// `count` values of an image's starting noise from element `first` on.
inline std::vector<float> noise(std::uint64_t seed, std::uint64_t first, std::size_t count,
                                const ArcflowApi* api = linked_api()) {
  std::vector<float> values(count);
  detail::check(api, api->noise(seed, first, count, values.data()));
  return values;
}

}  // namespace arcflow

#endif  // ARCFLOW_ARCFLOW_HPP_
