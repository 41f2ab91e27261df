// The numbers that condition a backbone as it saw them in training, to the bit what
// runtime/architectures/conditioning.py makes.
#include <cstdint>
#include <cstring>

#include "core/numerics/compute.hpp"

namespace arcflow::core {
namespace {

constexpr float kTimeScale = 1000.0F;

}  // namespace

float to_bfloat16(float value) noexcept {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  bits = (bits + 0x7FFFU + ((bits >> 16U) & 1U)) & 0xFFFF0000U;
  float rounded = 0.0F;
  std::memcpy(&rounded, &bits, sizeof rounded);
  return rounded;
}

float scaled_bfloat16(float value) noexcept { return to_bfloat16(to_bfloat16(value) * kTimeScale) / kTimeScale; }

}  // namespace arcflow::core
