// A request in C++, and how it crosses the C interface: the part of arcflow.hpp, which includes it, that comes first.
#ifndef ARCFLOW_REQUEST_HPP_
#define ARCFLOW_REQUEST_HPP_

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "arcflow/arcflow.h"

namespace arcflow {

// Why a call failed: code() says of what kind, what() in a sentence.
class Error : public std::runtime_error {
 public:
  Error(ArcflowCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ArcflowCode code() const noexcept { return code_; }

 private:
  ArcflowCode code_;
};

namespace detail {

template <class T>
using Handle = std::unique_ptr<T, void(ARCFLOW_CALL*)(T*)>;

inline const ArcflowApi* checked(const ArcflowApi* api) {
  if (api == nullptr || api->struct_size < sizeof(ArcflowApi)) {
    throw Error(ARCFLOW_BACKEND_UNAVAILABLE, "the library libarcflow_runtime is older than this program's arcflow.h");
  }
  return api;
}

// Throws what a status says; null passes.
inline void check(const ArcflowApi* api, ArcflowStatus* status) {
  if (status == nullptr) return;
  const Handle<ArcflowStatus> owner(status, api->status_destroy);
  throw Error(static_cast<ArcflowCode>(api->status_code(status)), api->status_message(status));
}

inline const char* text(const std::string& value) { return value.empty() ? nullptr : value.c_str(); }

inline std::string text_of(const ArcflowApi* api, ArcflowBytes* bytes) {
  const Handle<ArcflowBytes> owner(bytes, api->bytes_destroy);
  return {reinterpret_cast<const char*>(api->bytes_data(bytes)), api->bytes_size(bytes)};
}

}  // namespace detail

// The table of the library that the program is linked with.
inline const ArcflowApi* linked_api() { return detail::checked(arcflow_get_api(ARCFLOW_API_VERSION)); }

// Ends requests from another thread. Copies are the same token; once cancelled it stays so.
class CancelToken {
 public:
  explicit CancelToken(const ArcflowApi* api = linked_api()) : api_(detail::checked(api)) {
    ArcflowCancel* raw = nullptr;
    detail::check(api_, api_->cancel_create(&raw));
    handle_.reset(raw, api_->cancel_destroy);
  }
  void cancel() const { api_->cancel_request(handle_.get()); }
  ArcflowCancel* get() const noexcept { return handle_.get(); }

 private:
  const ArcflowApi* api_;
  std::shared_ptr<ArcflowCancel> handle_;
};

// Token ids for one text encoder in place of its tokenizer's: `length` for each prompt, one prompt after the other.
struct Tokens {
  std::string encoder;  // "clip", "t5", "text"
  std::size_t length = 0;
  std::vector<std::int64_t> ids, mask;  // mask may be empty: every id is a token
};

// What to make. Zero and empty mean the bundle's default, as in ArcflowRequest.
//
// Callbacks run on the thread that called generate(). One that throws ends the request; generate() then throws the
// same.
struct Request {
  std::vector<std::string> prompts;  // UTF-8; may be empty where tokens are given for every encoder
  std::vector<Tokens> tokens;
  std::uint64_t seed = 0;
  std::vector<std::uint64_t> seeds;  // one for each image, or empty: from seed
  std::uint32_t num_images = 0;      // a prompt
  std::uint32_t nfe = 0, width = 0, height = 0, previews = 0;
  double timeout = 0.0;                 // seconds
  const CancelToken* cancel = nullptr;  // has to outlive the call
  std::function<void(const ArcflowStep&)> on_step;
  std::function<void(const ArcflowPreview&)> on_preview;
  std::function<void(const std::string&)> on_warning;
};

namespace detail {

// A Request as the C interface takes it, and what its callbacks threw. It refers to the Request and stays in place.
class CRequest {
 public:
  explicit CRequest(const Request& request) : request_(request) {
    std::size_t prompt_count = request.prompts.size();
    if (prompt_count == 0 && !request.tokens.empty() && request.tokens[0].length != 0) {
      prompt_count = request.tokens[0].ids.size() / request.tokens[0].length;
    }
    for (const std::string& prompt : request.prompts) {
      if (prompt.find('\0') != std::string::npos) {
        throw Error(ARCFLOW_INVALID_ARGUMENT,
                    "the prompt is not plain text: it holds a NUL or a byte that is not UTF-8");
      }
      prompts_.push_back(prompt.c_str());
    }
    for (const Tokens& tokens : request.tokens) {
      if (tokens.length == 0 || tokens.ids.size() / tokens.length != prompt_count ||
          tokens.ids.size() % tokens.length != 0 || (!tokens.mask.empty() && tokens.mask.size() != tokens.ids.size())) {
        throw Error(ARCFLOW_INVALID_ARGUMENT,
                    "the tokens for '" + tokens.encoder + "' are " + std::to_string(tokens.ids.size()) + " ids and " +
                        std::to_string(tokens.mask.size()) + " mask values; " + std::to_string(prompt_count) +
                        " prompts of length " + std::to_string(tokens.length) +
                        " need their product of ids, and as "
                        "many mask values or none");
      }
      tokens_.push_back({sizeof(ArcflowTokens), tokens.encoder.c_str(), tokens.ids.data(),
                         tokens.mask.empty() ? nullptr : tokens.mask.data(), tokens.length});
    }
    raw_.prompts = prompts_.empty() ? nullptr : prompts_.data();
    raw_.prompt_count = prompt_count;
    raw_.tokens = tokens_.empty() ? nullptr : tokens_.data();
    raw_.token_count = tokens_.size();
    raw_.seed = request.seed;
    raw_.seeds = request.seeds.empty() ? nullptr : request.seeds.data();
    raw_.seed_count = request.seeds.size();
    raw_.num_images = request.num_images;
    raw_.nfe = request.nfe;
    raw_.width = request.width;
    raw_.height = request.height;
    raw_.previews = request.previews;
    raw_.timeout = request.timeout;
    raw_.cancel = request.cancel != nullptr ? request.cancel->get() : nullptr;
    if (request.on_step) raw_.on_step = &CRequest::step;
    if (request.on_preview) raw_.on_preview = &CRequest::preview;
    if (request.on_warning) raw_.on_warning = &CRequest::warning;
    raw_.user = this;
  }
  CRequest(const CRequest&) = delete;
  CRequest& operator=(const CRequest&) = delete;

  const ArcflowRequest* get() const noexcept { return &raw_; }

  // Throws what a callback threw, or what the status says.
  void finish(const ArcflowApi* api, ArcflowStatus* status) const {
    if (thrown_) {
      if (status != nullptr) api->status_destroy(status);
      std::rethrow_exception(thrown_);
    }
    check(api, status);
  }

 private:
  // Calls back unless an earlier callback threw; an exception is kept, and the request ended with the next step.
  template <class Callback, class Value>
  std::int32_t call(const Callback& callback, const Value& value) noexcept {
    if (thrown_) return 1;
    try {
      callback(value);
      return 0;
    } catch (...) {
      thrown_ = std::current_exception();
      return 1;
    }
  }
  static std::int32_t ARCFLOW_CALL step(void* self, const ArcflowStep* value) {
    auto* request = static_cast<CRequest*>(self);
    return request->call(request->request_.on_step, *value);
  }
  static std::int32_t ARCFLOW_CALL preview(void* self, const ArcflowPreview* value) {
    auto* request = static_cast<CRequest*>(self);
    return request->call(request->request_.on_preview, *value);
  }
  static void ARCFLOW_CALL warning(void* self, const char* message) {
    auto* request = static_cast<CRequest*>(self);
    request->call(request->request_.on_warning, message);
  }

  const Request& request_;
  std::vector<const char*> prompts_;
  std::vector<ArcflowTokens> tokens_;
  ArcflowRequest raw_ = ARCFLOW_INIT(ArcflowRequest);
  std::exception_ptr thrown_;
};

}  // namespace detail

}  // namespace arcflow

#endif  // ARCFLOW_REQUEST_HPP_
