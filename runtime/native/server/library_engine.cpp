// Statuses become EngineError, handles are owned, and a batch of anybody's pictures becomes one request.
#include "server/library_engine.hpp"

#include <arcflow/arcflow.h>

#include <utility>

namespace arcflow::serve {

namespace {

using Kind = EngineError::Kind;

const ArcflowApi& api() {
  const ArcflowApi* table = arcflow_get_api(ARCFLOW_API_VERSION);
  if (table == nullptr) {
    throw EngineError(Kind::kOther, "the ArcFlow library that was found is older than this program");
  }
  return *table;
}

void check_status(ArcflowStatus* status) {
  if (status == nullptr) {
    return;
  }
  const std::int32_t code = api().status_code(status);
  const std::string message = api().status_message(status);
  api().status_destroy(status);
  throw EngineError(code == ARCFLOW_INVALID_ARGUMENT ? Kind::kInvalid
                    : code == ARCFLOW_CANCELLED      ? Kind::kCancelled
                                                     : Kind::kOther,
                    message);
}

// Handles that destroy themselves.
struct Destroy {
  void operator()(ArcflowContext* handle) const { api().context_destroy(handle); }
  void operator()(ArcflowModel* handle) const { api().model_destroy(handle); }
  void operator()(ArcflowSession* handle) const { api().session_destroy(handle); }
  void operator()(ArcflowCancel* handle) const { api().cancel_destroy(handle); }
  void operator()(ArcflowBytes* handle) const { api().bytes_destroy(handle); }
};
template <class T>
using Handle = std::unique_ptr<T, Destroy>;

std::string text_of(const Handle<ArcflowBytes>& bytes) {
  return {reinterpret_cast<const char*>(api().bytes_data(bytes.get())), api().bytes_size(bytes.get())};
}

const char* or_null(const std::string& text) { return text.empty() ? nullptr : text.c_str(); }

// A batch in the library's terms. The items must outlive it.
class BatchRequest {
 public:
  BatchRequest(const Shape& shape, const std::vector<Item>& items) {
    for (const Item& item : items) {
      prompts_.push_back(item.prompt.c_str());
      seeds_.push_back(item.seed);
    }
    request.prompts = prompts_.data();
    request.prompt_count = prompts_.size();
    request.seeds = seeds_.data();
    request.seed_count = seeds_.size();
    request.num_images = 1;
    request.nfe = shape.nfe;
    request.width = shape.width;
    request.height = shape.height;
  }
  ArcflowRequest request = ARCFLOW_INIT(ArcflowRequest);

 private:
  std::vector<const char*> prompts_;
  std::vector<std::uint64_t> seeds_;
};

class LibraryToken final : public CancelToken {
 public:
  LibraryToken() {
    ArcflowCancel* handle = nullptr;
    check_status(api().cancel_create(&handle));
    handle_.reset(handle);
  }
  void cancel() noexcept override { api().cancel_request(handle_.get()); }
  ArcflowCancel* get() const { return handle_.get(); }

 private:
  Handle<ArcflowCancel> handle_;
};

class LibrarySession final : public EngineSession {
 public:
  explicit LibrarySession(ArcflowModel* model) : model_(model) {
    const auto options = ARCFLOW_INIT(ArcflowSessionOptions);
    ArcflowSession* handle = nullptr;
    check_status(api().session_create(model, &options, &handle));
    handle_.reset(handle);
  }

  BatchResult generate(const Shape& shape, const std::vector<Item>& items, CancelToken& token) override {
    BatchRequest batch(shape, items);
    batch.request.cancel = static_cast<LibraryToken&>(token).get();
    auto sizes = ARCFLOW_INIT(ArcflowShape);
    check_status(api().model_shape(model_, &batch.request, &sizes));
    pixels_.resize(sizes.rgb8_bytes);
    auto output = ARCFLOW_INIT(ArcflowOutput);
    output.rgb8 = pixels_.data();
    output.rgb8_bytes = pixels_.size();
    check_status(api().session_generate(handle_.get(), &batch.request, &output));
    BatchResult result;
    const std::size_t bytes = sizes.rgb8_bytes / items.size();
    for (std::size_t j = 0; j < items.size(); ++j) {
      ArcflowBytes* settings = nullptr;
      check_status(api().describe_image(model_, &batch.request, static_cast<std::uint32_t>(j), &settings));
      const auto first = pixels_.begin() + static_cast<std::ptrdiff_t>(j * bytes);
      result.pictures.push_back(
          {{first, first + static_cast<std::ptrdiff_t>(bytes)}, text_of(Handle<ArcflowBytes>(settings))});
    }
    result.seconds = {output.tokenize_seconds, output.text_seconds, output.noise_seconds, output.backbone_seconds,
                      output.solver_seconds,   output.vae_seconds,  output.total_seconds};
    return result;
  }

  void warm_up(const Shape& shape, std::uint32_t batch) override {
    const std::vector<Item> items(batch, Item{"warm-up", 0});
    const BatchRequest request(shape, items);
    check_status(api().session_warm_up(handle_.get(), &request.request));
  }

 private:
  ArcflowModel* model_;
  Handle<ArcflowSession> handle_;
  std::vector<std::uint8_t> pixels_;
};

void ARCFLOW_CALL log_message(void* user, std::int32_t level, const char* message) {
  constexpr const char* names[] = {"debug", "info", "warning", "error"};
  const char* name = level >= 0 && level < 4 ? names[level] : "info";
  static_cast<Log*>(user)->write(name, "library", {{"message", std::string(message)}});
}

class LibraryEngine final : public Engine {
 public:
  LibraryEngine(const LibraryOptions& options, Log& log) {
    auto settings = ARCFLOW_INIT(ArcflowContextOptions);
    settings.logger = log_message;
    settings.logger_user = &log;
    settings.least_level = ARCFLOW_LOG_WARNING;
    settings.host_directory = or_null(options.host_directory);
    ArcflowContext* context = nullptr;
    check_status(api().context_create(&settings, &context));
    context_.reset(context);
    auto wanted = ARCFLOW_INIT(ArcflowModelOptions);
    wanted.bundle = options.bundle.c_str();
    wanted.precision = or_null(options.precision);
    wanted.target = or_null(options.target);
    wanted.host = or_null(options.engine_host);
    wanted.library = or_null(options.library);
    wanted.threads = options.threads;
    wanted.device = options.device;
    ArcflowModel* model = nullptr;
    check_status(api().model_open(context_.get(), &wanted, &model));
    model_.reset(model);
    describe();
  }

  const ModelDescription& model() const override { return description_; }

  void check(const Shape& shape, const std::string& prompt) const override {
    const std::vector<Item> items{{prompt, 0}};
    const BatchRequest batch(shape, items);
    auto sizes = ARCFLOW_INIT(ArcflowShape);
    check_status(api().model_shape(model_.get(), &batch.request, &sizes));
  }

  std::unique_ptr<EngineSession> session() override { return std::make_unique<LibrarySession>(model_.get()); }
  std::unique_ptr<CancelToken> cancel_token() override { return std::make_unique<LibraryToken>(); }

  std::string encode(const Shape& shape, const Picture& picture) const override {
    // "scale" is what the generate command writes for a picture that is not enlarged: the files are equal.
    std::string settings = picture.settings;
    settings.insert(settings.rfind('}'), ", \"scale\": 1");
    ArcflowBytes* file = nullptr;
    check_status(api().encode_png(picture.rgb8.data(), shape.width, shape.height, settings.c_str(), &file));
    return text_of(Handle<ArcflowBytes>(file));
  }

 private:
  void describe() {
    auto info = ARCFLOW_INIT(ArcflowModelInfo);
    check_status(api().model_info(model_.get(), &info));
    const auto limits = [](const ArcflowRange& range) { return Limits{range.min, range.opt, range.max}; };
    description_.name = info.model;
    description_.precision = info.precision;
    description_.target = info.target;
    description_.bundle = description_.name + "-" + info.precision + "-" + info.target;
    description_.digest = info.digest;
    description_.backend = info.backend;
    description_.version = api().library_version();
    description_.batch = limits(info.batch);
    description_.width = limits(info.width);
    description_.height = limits(info.height);
    description_.multiple = info.multiple;
    description_.nfe = info.nfe;
    description_.max_nfe = info.max_nfe;
  }

  Handle<ArcflowContext> context_;
  Handle<ArcflowModel> model_;
  ModelDescription description_;
};

}  // namespace

std::unique_ptr<Engine> open_library(const LibraryOptions& options, Log& log) {
  return std::make_unique<LibraryEngine>(options, log);
}

}  // namespace arcflow::serve
