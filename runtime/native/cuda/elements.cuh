// The small kernels beside the solver: noise, tokens to latents, images to bytes, and the search for NaN and
// infinity.
#pragma once

#include "cuda/device.cuh"

namespace arcflow::cuda {

// The VAE's normalisation, handed over by value so that a recorded graph keeps it. count: 0 (none), 1 or channels.
constexpr int kMaxFactors = 256;
struct Factors {
  int count;
  float scaling[kMaxFactors];
  float shift[kMaxFactors];
};

ARCFLOW_DEVICE unsigned long long first_index() {
  return static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x;
}
ARCFLOW_DEVICE unsigned long long stride() { return static_cast<unsigned long long>(gridDim.x) * blockDim.x; }

ARCFLOW_DEVICE void normal(unsigned long long seed, unsigned long long first, unsigned long long count, float* out) {
  for (unsigned long long i = first_index(); i < count; i += stride()) {
    out[i] = formula::normal<double>(seed, first + i);
  }
}

// A thread makes `patch` neighbours of a row: they lie together in the token and in the latent.
ARCFLOW_DEVICE void unpack(const float* tokens, float* latents, unsigned long long batch, unsigned rows,
                           unsigned columns, unsigned channels, unsigned patch, const Factors& factors) {
  const unsigned long long count = batch * channels * rows * patch * columns;
  const unsigned packed = channels * patch * patch;
  for (unsigned long long i = first_index(); i < count; i += stride()) {
    const auto column = static_cast<unsigned>(i % columns);
    const unsigned long long line = i / columns;  // of the latents of all images and channels
    const auto y = static_cast<unsigned>(line % (rows * patch));
    const auto channel = static_cast<unsigned>(line / (rows * patch) % channels);
    const unsigned long long image = line / (rows * patch) / channels;
    const unsigned long long token = (image * rows + y / patch) * columns + column;
    const float* const from = tokens + token * packed + (channel * patch + y % patch) * patch;
    float* const to = latents + i * patch;
    for (unsigned dx = 0; dx < patch; ++dx) {
      float value = from[dx];
      if (factors.count != 0) {
        const unsigned factor = factors.count == 1 ? 0 : channel;
        value = value / factors.scaling[factor] + factors.shift[factor];
      }
      to[dx] = value;
    }
  }
}

// plane: pixels of an image. Four pixels a thread, with 16-byte loads and 4-byte stores where the planes allow it.
ARCFLOW_DEVICE void to_rgb8(const float* images, unsigned char* pixels, unsigned long long batch,
                            unsigned long long plane) {
  const bool wide = plane % 4 == 0;
  const unsigned long long groups = (plane + 3) / 4;
  for (unsigned long long i = first_index(); i < batch * groups; i += stride()) {
    const unsigned long long image = i / groups;
    const unsigned long long pixel = i % groups * 4;
    const float* const from = images + image * 3 * plane + pixel;
    unsigned char* const to = pixels + (image * plane + pixel) * 3;
    if (wide) {
      alignas(4) unsigned char bytes[12];
      for (int colour = 0; colour < 3; ++colour) {
        const auto four = load_once<float, 4>(from + static_cast<unsigned long long>(colour) * plane);
        for (int j = 0; j < 4; ++j) bytes[3 * j + colour] = formula::level(four[j]);
      }
      for (int word = 0; word < 3; ++word) {
        Pack<unsigned char, 4> four;
        for (int j = 0; j < 4; ++j) four.value[j] = bytes[4 * word + j];
        reinterpret_cast<Pack<unsigned char, 4>*>(to)[word] = four;
      }
    } else {
      for (unsigned long long j = 0; j < 4 && pixel + j < plane; ++j) {
        for (int colour = 0; colour < 3; ++colour) {
          to[3 * j + static_cast<unsigned>(colour)] =
              formula::level(from[static_cast<unsigned long long>(colour) * plane + j]);
        }
      }
    }
  }
}

// *found becomes 1 where a value is infinite or NaN; the caller has set it to 0. values: aligned to 16 bytes.
ARCFLOW_DEVICE void find_nonfinite(const float* values, unsigned long long count, unsigned* found) {
  bool bad = false;
  for (unsigned long long i = first_index(); i < count / 4; i += stride()) {
    const auto four = load_once<float, 4>(values + 4 * i);
    for (int j = 0; j < 4; ++j) bad = bad || !formula::finite_bits(bits_of(four[j]));
  }
  for (unsigned long long i = count / 4 * 4 + first_index(); i < count; i += stride()) {
    bad = bad || !formula::finite_bits(bits_of(values[i]));
  }
  if (bad) *found = 1;  // Whoever writes writes the same.
}

}  // namespace arcflow::cuda
