// How the solver's kernel is launched for given sizes. No CUDA needed, so that it is tested where there is none.
#pragma once

#include <cstdint>

namespace arcflow::cuda {

constexpr std::int64_t kAdvanceThreads = 128;
constexpr std::int64_t kFixedModes = 16;  // what the released students have

// The kernels of a type: a value a load, arcflow_advance_<type>_any; 16 bytes a load, arcflow_advance_<type>; the same
// with kFixedModes known when compiled, arcflow_advance_<type>_modes16.
enum class Variant : std::int32_t { kAny, kWide, kFixed };

struct AdvancePlan {
  Variant variant;
  std::int32_t tokens_per_block;
  std::uint32_t blocks;
  std::uint32_t shared_bytes;
};

// tokens: of the whole batch. value_bytes: 4 (float32) or 2. aligned: whether all addresses are multiples of 16.
// False where the sizes are out of what the kernels take.
inline bool plan_advance(std::int64_t tokens, std::int64_t modes, std::int64_t channels, std::int64_t positions,
                         std::int64_t value_bytes, bool aligned, AdvancePlan* plan) {
  constexpr std::int64_t kMost = 1 << 20;
  constexpr std::int64_t kSharedLimit = 48 * 1024;  // what a block may have without asking
  if (tokens < 1 || modes < 1 || modes > kMost || channels < 1 || channels > kMost || positions < 1 ||
      positions > kMost || channels % positions != 0 || modes * positions > kMost) {
    return false;
  }
  const std::int64_t width = 16 / value_bytes;
  bool wide = aligned && positions == 4 && channels % width == 0;
  const std::int64_t lanes = wide ? channels / width : channels;
  // A multiple of 8 keeps the beginning of every block's gates on 16 bytes. One place a thread, where that is possible.
  std::int64_t here = (kAdvanceThreads / lanes + 7) / 8 * 8;
  here = here < 8 ? 8 : here;
  const std::int64_t token_bytes = (2 * modes - 1) * positions * 4;
  while (here > 8 && here * token_bytes > kSharedLimit) here -= 8;
  if (here * token_bytes > kSharedLimit) {
    // Very many modes or positions: fewer tokens, whose gates may begin anywhere, so a value at a time.
    wide = false;
    here = kSharedLimit / token_bytes;
    if (here < 1) return false;
  }
  const std::int64_t blocks = (tokens - 1) / here + 1;
  if (blocks > 0x7FFFFFFF) return false;
  plan->variant = !wide ? Variant::kAny : modes == kFixedModes ? Variant::kFixed : Variant::kWide;
  plan->tokens_per_block = static_cast<std::int32_t>(here);
  plan->blocks = static_cast<std::uint32_t>(blocks);
  plan->shared_bytes = static_cast<std::uint32_t>(here * token_bytes);
  return true;
}

}  // namespace arcflow::cuda
