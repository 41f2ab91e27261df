// Products of sizes that came from elsewhere.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace arcflow::core {

// The product of sizes, at most 2^63 - 1. refuse(size) has to throw: it is called with the first size that is negative
// or makes the product greater.
template <class Refuse>
std::uint64_t product(std::initializer_list<std::int64_t> sizes, const Refuse& refuse) {
  std::uint64_t result = 1;
  for (const std::int64_t size : sizes) {
    const auto factor = static_cast<std::uint64_t>(size);
    if (size < 0 || (size > 0 && result > static_cast<std::uint64_t>(INT64_MAX) / factor)) refuse(size);
    result *= factor;
  }
  return result;
}

}  // namespace arcflow::core
