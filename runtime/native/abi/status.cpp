// Making statuses without ever failing.
#include "abi/status.hpp"

#include <cstdlib>
#include <cstring>

namespace arcflow::abi {
namespace {

const ArcflowStatus kNoMemory{ARCFLOW_OUT_OF_MEMORY, "there is not enough main memory, not even to say for what"};

}  // namespace

ArcflowStatus* make_status(ArcflowCode code, const char* message) noexcept {
  const std::size_t size = std::strlen(message) + 1;
  void* memory = std::malloc(sizeof(ArcflowStatus) + size);
  // Nobody writes through the pointer: the type is opaque outside.
  if (memory == nullptr) return const_cast<ArcflowStatus*>(&kNoMemory);
  char* text = static_cast<char*>(memory) + sizeof(ArcflowStatus);
  std::memcpy(text, message, size);
  return new (memory) ArcflowStatus{code, text};
}

void destroy_status(ArcflowStatus* status) noexcept {
  if (status != &kNoMemory) std::free(status);
}

}  // namespace arcflow::abi
