// Structs that came from a program of another age. Each begins with its own size: one that ends early lacks fields that
// were added since, which then are zero, the default; one that is longer may ask for nothing that is not known here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "arcflow/arcflow.h"
#include "core/error.hpp"

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

}  // namespace arcflow::abi
