// The kernels beside the solver, and loads: their own source compiled for the host, against the CPU's path.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "core/numerics/compute.hpp"
#include "tests/cuda/cuda_on_host.hpp"

using namespace arcflow;
using cuda::Bfloat16;
using cuda::Half;
using cuda_on_host::Device;

TEST_CASE("every half and bfloat16 is read as it is") {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const auto word = static_cast<unsigned short>(bits);
    const int exponent = (word >> 10) & 31, mantissa = word & 1023;
    const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    const float half = cuda::to_float(Half{word});
    if (exponent == 31) {
      CHECK((mantissa == 0 ? std::isinf(half) : std::isnan(half)));
    } else {
      CHECK(static_cast<double>(half) == ((word & 0x8000) != 0 ? -magnitude : magnitude));
    }
    CHECK(cuda::bits_of(cuda::to_float(Bfloat16{word})) == bits << 16);
  }
  // Out of the 16 bytes of a load as well.
  std::vector<Half> halves;
  std::vector<Bfloat16> bfloats;
  for (unsigned bits = 0; bits < 65536; ++bits) {
    halves.push_back({static_cast<unsigned short>(bits)});
    bfloats.push_back({static_cast<unsigned short>(bits)});
  }
  const Device<Half> half(halves);
  const Device<Bfloat16> bfloat(bfloats);
  bool same = true;
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const int place = static_cast<int>(bits % 8);
    const auto of = [](float value) { return cuda::bits_of(value); };
    same = same && of(cuda::load_once<Half, 8>(half.data + bits / 8 * 8)[place]) == of(cuda::to_float(halves[bits]));
    same = same && of(cuda::load_once<Bfloat16, 8>(bfloat.data + bits / 8 * 8)[place]) == bits << 16;
  }
  CHECK(same);
}

TEST_CASE("noise, to the bit") {
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{0xFFFFFFFFFFFFFFFF}}) {
    std::vector<float> expected(1000), actual(1000);
    core::normal(seed, 0xFFFFFFF0, 1000, expected.data());
    cuda_on_host::launch(2, 64, 0, [&] { arcflow_normal(seed, 0xFFFFFFF0, 1000, actual.data()); });
    CHECK(std::memcmp(actual.data(), expected.data(), 4000) == 0);
  }
}

TEST_CASE("tokens to latents, to the bit") {
  std::mt19937 random(3);
  std::normal_distribution<float> gauss;
  for (const int patch : {1, 2, 3}) {
    for (const int factor_count : {0, 1, 5}) {
      const int batch = 2, rows = 3, columns = 7, channels = 5;
      std::vector<float> tokens(static_cast<std::size_t>(batch * rows * columns * channels * patch * patch));
      for (float& value : tokens) value = gauss(random);
      cuda::Factors factors = {};
      factors.count = factor_count;
      for (int i = 0; i < factor_count; ++i) {
        factors.scaling[i] = 0.3f + static_cast<float>(i);
        factors.shift[i] = 0.1f * static_cast<float>(i) - 0.2f;
      }
      std::vector<float> expected(tokens.size()), actual(tokens.size());
      const bool any = factor_count > 0;
      core::unpack(tokens.data(), batch, rows, columns, channels, patch, any ? factors.scaling : nullptr,
                   any ? factors.shift : nullptr, factor_count, expected.data());
      cuda_on_host::launch(3, 16, 0, [&] {
        arcflow_unpack(tokens.data(), actual.data(), batch, rows, columns, channels, static_cast<unsigned>(patch),
                       factors);
      });
      CHECK(std::memcmp(actual.data(), expected.data(), tokens.size() * 4) == 0);
    }
  }
}

TEST_CASE("images to bytes, to the bit") {
  std::mt19937 random(4);
  std::normal_distribution<float> gauss;
  for (const std::size_t height : {std::size_t{8}, std::size_t{5}}) {
    const std::size_t width = height + 4;
    const std::size_t count = 2 * 3 * height * width;
    std::vector<float> values(count);
    for (float& value : values) value = gauss(random);
    values[0] = NAN;
    values[1] = INFINITY;
    values[2] = -INFINITY;
    const Device<float> images(values);
    const Device<unsigned char> pixels(std::vector<unsigned char>(count, 77));
    std::vector<unsigned char> expected(count);
    core::to_rgb8(values.data(), 2, static_cast<std::int64_t>(height), static_cast<std::int64_t>(width),
                  expected.data());
    cuda_on_host::launch(2, 16, 0, [&] { arcflow_to_rgb8(images.data, pixels.data, 2, height * width); });
    CHECK(std::memcmp(pixels.data, expected.data(), count) == 0);
  }
}

TEST_CASE("the search for what is not finite") {
  for (const std::size_t count : {std::size_t{1}, std::size_t{4}, std::size_t{103}}) {
    for (const std::size_t place : {count, std::size_t{0}, count - 1, count / 2}) {
      for (const float bad : {NAN, INFINITY, -INFINITY}) {
        std::vector<float> values(count, 3.4e38f);
        if (place < count) values[place] = bad;
        const Device<float> device(values);
        std::vector<unsigned> found(8, 0);
        // One thread each: here every finder writes, which is a race only to C++.
        cuda_on_host::launch(2, 1, 0, [&] { arcflow_find_nonfinite(device.data, count, found.data()); });
        CHECK(found[0] == (place < count ? 1u : 0u));
      }
    }
  }
}
