// The closed-form solver on the CPU, bit for bit what runtime/solver.py computes: coefficients in float64, the mixture
// in float32, mode by mode in ascending order, product and sum rounded apart (no FMA: -ffp-contract=off). The noise
// (foundation/noise.py) and the numbers that condition a backbone, beside it.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/numerics/compute.hpp"
#include "core/numerics/formula.hpp"

namespace arcflow::core {
namespace {

void check(const Segment& s) {
  if (s.batch < 1 || s.tokens < 1 || s.modes < 1 || s.positions < 1 || s.channels < 1 ||
      s.channels % s.positions != 0) {
    throw Error(ARCFLOW_INTERNAL,
                "advance: sizes must be 1 or more and channels a multiple of positions; they are batch " +
                    std::to_string(s.batch) + ", tokens " + std::to_string(s.tokens) + ", modes " +
                    std::to_string(s.modes) + ", channels " + std::to_string(s.channels) + ", positions " +
                    std::to_string(s.positions));
  }
}

// One mode's coefficients [positions] repeated over the channels, so that the loop over channels is a plain product.
void spread(const double* coefficients, std::size_t positions, std::size_t channels, float* row) {
  for (std::size_t p = 0; p < positions; ++p) row[p] = static_cast<float>(coefficients[p]);
  // Doubling keeps the copies long; each is of whole periods, since channels is a multiple of positions.
  for (std::size_t done = positions; done < channels; done *= 2) {
    std::copy_n(row, std::min(done, channels - done), row + done);
  }
}

// These two loops are nearly all of the work. The restricted pointers let the compiler vectorise them without a test.
void start_mixture(const float* __restrict v, const float* __restrict row, std::size_t channels,
                   float* __restrict sum) {
  for (std::size_t c = 0; c < channels; ++c) sum[c] = v[c] * row[c];
}

void add_mode(const float* __restrict v, const float* __restrict row, std::size_t channels, float* __restrict sum) {
  for (std::size_t c = 0; c < channels; ++c) sum[c] += v[c] * row[c];
}

constexpr float kTimeScale = 1000.0F;

double shift_sigma(double t, double shift) { return shift * t / (1.0 + (shift - 1.0) * t); }

}  // namespace

void advance(const Segment& segment, const float* x, const float* means, const float* logweights,
             const float* loggammas, float* out) {
  check(segment);
  const auto modes = static_cast<std::size_t>(segment.modes);
  const auto channels = static_cast<std::size_t>(segment.channels);
  const auto positions = static_cast<std::size_t>(segment.positions);
  const auto tokens = static_cast<std::size_t>(segment.batch) * static_cast<std::size_t>(segment.tokens);
  const double start = segment.sigma_src - segment.sigma_a;
  const double span = segment.sigma_a - segment.sigma_b;

  std::vector<double> coefficients(positions);
  std::vector<float> scratch(2 * channels);
  float* const row = scratch.data();
  float* const sum = row + channels;
  for (std::size_t token = 0; token < tokens; ++token) {
    for (std::size_t k = 0; k < modes; ++k) {
      for (std::size_t p = 0; p < positions; ++p) {
        const auto logweight = static_cast<double>(logweights[k * positions + p]);
        coefficients[p] = k == 0 ? formula::straight_coefficient(logweight, span)
                                 : formula::coefficient(
                                       logweight, static_cast<double>(loggammas[(k - 1) * positions + p]), start, span);
      }
      spread(coefficients.data(), positions, channels, row);
      (k == 0 ? start_mixture : add_mode)(means + k * channels, row, channels, sum);
    }
    for (std::size_t c = 0; c < channels; ++c) out[c] = x[c] - sum[c];
    x += channels;
    out += channels;
    means += modes * channels;
    logweights += modes * positions;
    loggammas += (modes - 1) * positions;
  }
}

std::vector<double> sigmas(std::int64_t nfe, double shift, double final_step_ratio) {
  const double base = 1.0 / (static_cast<double>(nfe - 1) + final_step_ratio);
  std::vector<double> levels;
  for (std::int64_t i = 0; i < nfe; ++i) levels.push_back(shift_sigma(1.0 - static_cast<double>(i) * base, shift));
  levels.push_back(shift_sigma(0.0, shift));
  return levels;
}

std::vector<double> preview_sigmas(std::int64_t count, double shift) {
  std::vector<double> levels;
  for (std::int64_t i = 0; i < count; ++i) {
    levels.push_back(shift_sigma(1.0 - static_cast<double>(i + 1) / static_cast<double>(count + 1), shift));
  }
  return levels;
}

void normal(std::uint64_t seed, std::uint64_t first, std::size_t count, float* out) {
  for (std::size_t i = 0; i < count; ++i) out[i] = formula::normal<double>(seed, first + i);
}

// To the bit what runtime/architectures/conditioning.py makes.
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
