// The arithmetic between the networks, on main memory: what a CPU host does where a GPU host launches kernels.
// Formulas are in core/numerics/formula.hpp, written once for host and device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace arcflow::core {

// The closed-form solver's sizes and levels (runtime/solver.py).
struct Segment {
  std::int64_t batch, tokens, modes, channels, positions;
  double sigma_src, sigma_a, sigma_b;
};

// out = x + displacement, all float32, packed as in ArcflowHostAdvance; out may be x. The coefficients are computed in
// float64, the mixture in float32, mode by mode in ascending order, product and sum rounded apart: to the bit what
// runtime/solver.py makes of the same coefficients.
void advance(const Segment& segment, const float* x, const float* means, const float* logweights,
             const float* loggammas, float* out);

// `count` values of an image's noise from element `first` on (DESIGN.md, "Noise").
void normal(std::uint64_t seed, std::uint64_t first, std::size_t count, float* out);

// Tokens [batch, rows*columns, channels*patch^2] -> latents [batch, channels, rows*patch, columns*patch]; where scaling
// is given, value / scaling + shift with factor_count (1 or channels) numbers each.
void unpack(const float* tokens, std::int64_t batch, std::int64_t rows, std::int64_t columns, std::int64_t channels,
            std::int64_t patch, const float* scaling, const float* shift, std::int64_t factor_count, float* latents);

// [batch, 3, height, width] in about [-1, 1] -> uint8 [batch, height, width, 3], clipped, rounded half to even.
void to_rgb8(const float* images, std::int64_t batch, std::int64_t height, std::int64_t width, std::uint8_t* pixels);

bool all_finite(const float* values, std::size_t count);

// Position ids of image tokens, [rows*columns, 3]: (0, row, column); centred: about the middle, as Qwen-Image has them.
std::vector<float> image_ids(std::int64_t rows, std::int64_t columns);
std::vector<float> centred_image_ids(std::int64_t rows, std::int64_t columns);
// Positions of text beside an image with centred ids, [tokens].
std::vector<float> text_positions(std::int64_t rows, std::int64_t columns, std::int64_t tokens);

// Noise levels of an nfe-step schedule, nfe + 1 values from 1 to 0, and of previews (runtime/solver.py).
std::vector<double> sigmas(std::int64_t nfe, double shift, double final_step_ratio);
std::vector<double> preview_sigmas(std::int64_t count, double shift);

// A noise level or guidance, finite, as a backbone saw it that was trained in bfloat16
// (runtime/architectures/conditioning.py): the nearest bfloat16, ties to even; and what one makes of it that multiplies
// by 1000 and rounds again, over 1000.
float to_bfloat16(float value) noexcept;
float scaled_bfloat16(float value) noexcept;

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
