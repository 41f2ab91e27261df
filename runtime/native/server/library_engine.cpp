// arcflow::Error becomes EngineError, and a batch of anybody's images becomes one request.
#include "server/library_engine.hpp"

#include <nlohmann/json.hpp>
#include <utility>

namespace arcflow::serve {
namespace {

EngineError translated(const Error& error) {
  using Kind = EngineError::Kind;
  const Kind kind = error.code() == ARCFLOW_INVALID_ARGUMENT ? Kind::kInvalid
                    : error.code() == ARCFLOW_CANCELLED      ? Kind::kCancelled
                                                             : Kind::kOther;
  return {kind, error.what()};
}

template <class Call>
auto guarded(const Call& call) {
  try {
    return call();
  } catch (const Error& error) {
    throw translated(error);
  }
}

// A batch in the library's terms: a prompt and a seed for each image. Equal prompts are encoded once.
Request request_of(const Shape& shape, const std::vector<Item>& items) {
  Request request;
  for (const Item& item : items) {
    request.prompts.push_back(item.prompt);
    request.seeds.push_back(item.seed);
  }
  request.num_images = 1;
  request.nfe = shape.nfe;
  request.width = shape.width;
  request.height = shape.height;
  return request;
}

class LibraryToken final : public CancelToken {
 public:
  void cancel() noexcept override { token.cancel(); }
  arcflow::CancelToken token;
};

class LibrarySession final : public EngineSession {
 public:
  explicit LibrarySession(const Model& model) : model_(model), session_(model.session()) {}

  BatchResult generate(const Shape& shape, const std::vector<Item>& items, CancelToken& token,
                       const PartialSink& sink) override {
    return guarded([&] {
      Request request = request_of(shape, items);
      request.cancel = &static_cast<LibraryToken&>(token).token;
      request.previews = shape.partials;
      if (shape.partials > 0) {
        request.on_preview = [&](const ArcflowPreview& frame) { sink(frame.image, partial_of(request, frame)); };
      }
      const Result made = session_.generate(request);
      BatchResult result;
      for (std::size_t j = 0; j < items.size(); ++j) {
        result.images.push_back({made.image(j).rgb8, model_.describe(request, static_cast<std::uint32_t>(j))});
      }
      for (const auto& [stage, took] : stage_seconds(made.output)) result.seconds[stage] = took;
      result.total_seconds = made.output.total_seconds;
      return result;
    });
  }

  void warm_up(const Shape& shape, std::uint32_t batch) override {
    guarded([&] { session_.warm_up(request_of(shape, std::vector<Item>(batch, Item{"warm-up", 0}))); });
  }

 private:
  // With the settings of the file that the generate command writes for it.
  Partial partial_of(const Request& request, const ArcflowPreview& frame) const {
    const std::size_t bytes = std::size_t{frame.width} * frame.height * 3;
    std::string settings = model_.describe(request, frame.image);
    settings.insert(settings.rfind('}'), ", \"sigma\": " + nlohmann::json(frame.sigma).dump());
    return {frame.frame, frame.sigma, {{frame.rgb8, frame.rgb8 + bytes}, std::move(settings)}};
  }

  Model model_;
  Session session_;
};

class LibraryEngine final : public Engine {
 public:
  LibraryEngine(const ModelOptions& options, Log& log, const std::string& hosts) : model_(open(options, log, hosts)) {
    const ArcflowModelInfo info = model_.info();
    const auto limits = [](const ArcflowRange& range) { return Limits{range.min, range.opt, range.max}; };
    description_.name = info.model;
    description_.precision = info.precision;
    description_.target = info.target;
    description_.bundle = description_.name + "-" + info.precision + "-" + info.target;
    description_.digest = info.digest;
    description_.backend = info.backend;
    description_.version = linked_api()->library_version();
    description_.batch = limits(info.batch);
    description_.width = limits(info.width);
    description_.height = limits(info.height);
    description_.multiple = info.multiple;
    description_.nfe = info.nfe;
    description_.max_nfe = info.max_nfe;
  }

  const ModelDescription& model() const override { return description_; }

  void check(const Shape& shape, const std::string& prompt) const override {
    guarded([&] { model_.shape(request_of(shape, {{prompt, 0}})); });
  }

  std::unique_ptr<EngineSession> session() override {
    return guarded([&] { return std::make_unique<LibrarySession>(model_); });
  }
  std::unique_ptr<CancelToken> cancel_token() override {
    return guarded([] { return std::make_unique<LibraryToken>(); });
  }

  std::string encode(const Shape& shape, const Image& image) const override {
    // "scale" is what the generate command writes for an image that is not enlarged: the files are equal.
    std::string settings = image.settings;
    settings.insert(settings.rfind('}'), ", \"scale\": 1");
    return guarded([&] { return encode_png({shape.width, shape.height, image.rgb8}, settings); });
  }

 private:
  static Model open(const ModelOptions& options, Log& log, const std::string& hosts) {
    ContextOptions context;
    context.host_directory = hosts;
    context.least_level = ARCFLOW_LOG_WARNING;
    context.logger = [&log](ArcflowLogLevel level, const std::string& message) {
      log.write(level == ARCFLOW_LOG_WARNING ? "warning" : "error", "library", {{"message", message}});
    };
    return guarded([&] { return Context(context).open(options); });
  }

  Model model_;
  ModelDescription description_;
};

}  // namespace

std::unique_ptr<Engine> open_library(const ModelOptions& options, Log& log, const std::string& hosts) {
  return std::make_unique<LibraryEngine>(options, log, hosts);
}

}  // namespace arcflow::serve
