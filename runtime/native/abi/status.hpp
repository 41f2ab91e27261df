// Errors as they leave the library; to make one never fails.
#pragma once

#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <utility>

#include "arcflow/arcflow.h"
#include "core/error.hpp"

// The message lies behind the struct, in the same piece of memory.
struct ArcflowStatus {
  std::int32_t code;
  const char* message;
};

namespace arcflow::abi {

inline const ArcflowStatus kNoMemory{ARCFLOW_OUT_OF_MEMORY,
                                     "there is not enough main memory, not even to say for what"};

// A status that the caller destroys. Where there is no memory for it, one that says so and that nobody owns.
inline ArcflowStatus* make_status(ArcflowCode code, const char* message) noexcept {
  const std::size_t size = std::strlen(message) + 1;
  void* memory = std::malloc(sizeof(ArcflowStatus) + size);
  // Nobody writes through the pointer: the type is opaque outside.
  if (memory == nullptr) return const_cast<ArcflowStatus*>(&kNoMemory);
  char* text = static_cast<char*>(memory) + sizeof(ArcflowStatus);
  std::memcpy(text, message, size);
  return new (memory) ArcflowStatus{code, text};
}
inline void destroy_status(ArcflowStatus* status) noexcept {
  if (status != &kNoMemory) std::free(status);
}

// Does the work of one function of the table; what it throws becomes the function's status.
template <class Work>
ArcflowStatus* guarded(Work&& work) noexcept {
  try {
    std::forward<Work>(work)();
    return nullptr;
  } catch (const core::Error& error) {
    return make_status(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return make_status(ARCFLOW_OUT_OF_MEMORY, "there is not enough main memory for the call");
  } catch (const std::exception& error) {
    return make_status(ARCFLOW_INTERNAL, error.what());
  } catch (...) {
    return make_status(ARCFLOW_INTERNAL, "an exception of an unknown kind");
  }
}

}  // namespace arcflow::abi
