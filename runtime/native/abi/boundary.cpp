// Reading sizes that may be anything.
#include "abi/boundary.hpp"

namespace arcflow::abi {
namespace {

// Far more than any struct of this interface will ever need: what is larger was never initialised.
constexpr std::size_t kMostBytes = 4096;
// Far more text encoders than any architecture has.
constexpr std::size_t kMostTokens = 16;

[[noreturn]] void refuse(const std::string& message) { throw core::Error(ARCFLOW_INVALID_ARGUMENT, message); }

}  // namespace

std::size_t checked_size(const void* given, const char* name, std::size_t known, Tail tail) {
  if (given == nullptr) refuse(std::string(name) + " is NULL");
  std::size_t size = 0;
  std::memcpy(&size, given, sizeof size);
  if (size < sizeof size || size > kMostBytes || size % alignof(void*) != 0) {
    refuse(std::string("struct_size of ") + name + " is " + std::to_string(size) + "; initialise it with ARCFLOW_INIT");
  }
  if (tail == Tail::kMustBeZero && size > known) {
    const char* bytes = static_cast<const char*>(given);
    if (std::any_of(bytes + known, bytes + size, [](char byte) { return byte != 0; })) {
      refuse(std::string(name) + " asks for something that this library (version " + ARCFLOW_VERSION +
             ") does not know: install a newer one");
    }
  }
  return size;
}

WholeRequest::WholeRequest(const ArcflowRequest* given) : request_(whole(given, "request")) {
  if (request_.tokens == nullptr || request_.token_count == 0) return;
  if (request_.token_count > kMostTokens) {
    refuse("token_count is " + std::to_string(request_.token_count) + "; it is one for each text encoder, or 0");
  }
  // The caller's array has the caller's stride.
  const std::size_t stride = checked_size(request_.tokens, "tokens", sizeof(ArcflowTokens), Tail::kMustBeZero);
  const char* at = reinterpret_cast<const char*>(request_.tokens);
  for (std::size_t i = 0; i < request_.token_count; ++i, at += stride) {
    std::size_t size = 0;
    std::memcpy(&size, at, sizeof size);
    if (size != stride) {
      refuse("struct_size of tokens[" + std::to_string(i) + "] is " + std::to_string(size) + ", of the first " +
             std::to_string(stride) + "; initialise each with ARCFLOW_INIT");
    }
    tokens_.push_back(whole(reinterpret_cast<const ArcflowTokens*>(at), "tokens"));
  }
  request_.tokens = tokens_.data();
}

}  // namespace arcflow::abi
