// Packed tokens, latents and pixels: how one becomes the other on the CPU. The twin of runtime/architectures/layout.py.
#include <algorithm>
#include <cstring>

#include "core/error.hpp"
#include "core/numerics/compute.hpp"
#include "core/numerics/formula.hpp"

namespace arcflow::core {
namespace {

std::vector<float> ids_from(std::int64_t rows, std::int64_t columns, std::int64_t first_row,
                            std::int64_t first_column) {
  std::vector<float> ids;
  ids.reserve(static_cast<std::size_t>(rows * columns * 3));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      ids.insert(ids.end(), {0.0f, static_cast<float>(first_row + row), static_cast<float>(first_column + column)});
    }
  }
  return ids;
}

}  // namespace

void unpack(const float* tokens, std::int64_t batch, std::int64_t rows, std::int64_t columns, std::int64_t channels,
            std::int64_t patch, const float* scaling, const float* shift, std::int64_t factor_count, float* latents) {
  if ((scaling == nullptr) != (shift == nullptr) ||
      (scaling != nullptr && factor_count != 1 && factor_count != channels)) {
    throw Error(ARCFLOW_INTERNAL, "unpack: scaling and shift come together, with one number or one for each channel");
  }
  const std::int64_t width = columns * patch;
  const std::int64_t packed = channels * patch * patch;
  for (std::int64_t image = 0; image < batch; ++image) {
    for (std::int64_t channel = 0; channel < channels; ++channel) {
      const std::int64_t factor = factor_count == 1 ? 0 : channel;
      for (std::int64_t y = 0; y < rows * patch; ++y) {
        const float* from =
            tokens + (image * rows + y / patch) * columns * packed + (channel * patch + y % patch) * patch;
        for (std::int64_t column = 0; column < columns; ++column, from += packed) {
          for (std::int64_t dx = 0; dx < patch; ++dx) {
            latents[column * patch + dx] = scaling ? from[dx] / scaling[factor] + shift[factor] : from[dx];
          }
        }
        latents += width;
      }
    }
  }
}

void to_rgb8(const float* images, std::int64_t batch, std::int64_t height, std::int64_t width, std::uint8_t* pixels) {
  constexpr std::size_t kBlock = 1024;  // the levels of a block are made plane by plane, which vectorises
  std::uint8_t levels[3][kBlock];
  const auto plane = static_cast<std::size_t>(height * width);
  for (std::int64_t image = 0; image < batch; ++image) {
    for (std::size_t first = 0; first < plane; first += kBlock) {
      const std::size_t count = std::min(kBlock, plane - first);
      for (std::size_t colour = 0; colour < 3; ++colour) {
        const float* from = images + colour * plane + first;
        for (std::size_t i = 0; i < count; ++i) levels[colour][i] = formula::level(from[i]);
      }
      for (std::size_t i = 0; i < count; ++i, pixels += 3) {
        pixels[0] = levels[0][i];
        pixels[1] = levels[1][i];
        pixels[2] = levels[2][i];
      }
    }
    images += 3 * plane;
  }
}

bool all_finite(const float* values, std::size_t count) {
  constexpr std::size_t kBlock = 4096;  // an early end, without a branch in the loop that vectorises
  for (std::size_t first = 0; first < count; first += kBlock) {
    unsigned bad = 0;
    const std::size_t end = std::min(count, first + kBlock);
    for (std::size_t i = first; i < end; ++i) {
      unsigned bits = 0;
      std::memcpy(&bits, values + i, sizeof bits);
      bad |= formula::finite_bits(bits) ? 0u : 1u;
    }
    if (bad != 0) return false;
  }
  return true;
}

std::vector<float> image_ids(std::int64_t rows, std::int64_t columns) { return ids_from(rows, columns, 0, 0); }

std::vector<float> centred_image_ids(std::int64_t rows, std::int64_t columns) {
  return ids_from(rows, columns, -(rows - rows / 2), -(columns - columns / 2));
}

std::vector<float> text_positions(std::int64_t rows, std::int64_t columns, std::int64_t tokens) {
  std::vector<float> positions;
  const auto first = static_cast<float>(std::max(rows / 2, columns / 2));
  for (std::int64_t token = 0; token < tokens; ++token) positions.push_back(static_cast<float>(token) + first);
  return positions;
}

}  // namespace arcflow::core
