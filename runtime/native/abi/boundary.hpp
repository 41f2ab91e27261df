// The border of the C interface: errors as they leave the library, to make one never fails; and structs that came from
// a program of another age. Each begins with its own size: one that ends early lacks fields that were added since,
// which then are zero, the default; one that is longer may ask for nothing that is not known here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "arcflow/arcflow.h"
#include "core/error.hpp"

// The message lies behind the struct, in the same piece of memory.
struct ArcflowStatus {
  std::int32_t code;
  const char* message;
};

namespace arcflow::abi {

// The size at the head of a struct called `name`, checked; the bytes past `known` too where `tail` says so.
// Throws core::Error(ARCFLOW_INVALID_ARGUMENT).
enum class Tail { kMustBeZero, kIgnored };
std::size_t checked_size(const void* given, const char* name, std::size_t known, Tail tail);

template <class T>
void require(const T* pointer, const char* name) {
  if (pointer == nullptr) throw core::Error(ARCFLOW_INVALID_ARGUMENT, std::string(name) + " is NULL");
}

// *given in this library's layout.
template <class T>
T whole(const T* given, const char* name) {
  static_assert(std::is_trivially_copyable_v<T>);
  const std::size_t size = checked_size(given, name, sizeof(T), Tail::kMustBeZero);
  T value{};
  std::memcpy(static_cast<void*>(&value), given, std::min(size, sizeof(T)));
  value.struct_size = sizeof(T);
  return value;
}

// The same, or all defaults for NULL.
template <class T>
T whole_or_default(const T* given, const char* name) {
  if (given != nullptr) return whole(given, name);
  T value{};
  value.struct_size = sizeof(T);
  return value;
}

// Fills in *out as far as its size reaches, from the byte `first` of the struct on; its size stays.
template <class T>
void fill(T* out, const char* name, const T& value, std::size_t first = sizeof(std::size_t)) {
  static_assert(std::is_trivially_copyable_v<T>);
  const std::size_t end = std::min(checked_size(out, name, sizeof(T), Tail::kIgnored), sizeof(T));
  if (end <= first) return;
  std::memcpy(reinterpret_cast<char*>(out) + first, reinterpret_cast<const char*>(&value) + first, end - first);
}

// A request in this library's layout, its list of tokens too.
class WholeRequest {
 public:
  explicit WholeRequest(const ArcflowRequest* given);
  const ArcflowRequest& get() const noexcept { return request_; }

 private:
  ArcflowRequest request_;
  std::vector<ArcflowTokens> tokens_;
};

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
