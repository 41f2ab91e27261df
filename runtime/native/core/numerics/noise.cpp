// The noise an image starts from, on the CPU: the twin of runtime/noise.py (DESIGN.md, "Noise").
#include "core/numerics/compute.hpp"
#include "core/numerics/formula.hpp"

namespace arcflow::core {

void normal(std::uint64_t seed, std::uint64_t first, std::size_t count, float* out) {
  for (std::size_t i = 0; i < count; ++i) {
    out[i] = formula::normal<double>(seed, first + i);
  }
}

}  // namespace arcflow::core
