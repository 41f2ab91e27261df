// Tokens, latents, pixels and position ids on the CPU.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cmath>

#include "core/error.hpp"
#include "core/numerics/compute.hpp"

using namespace arcflow;

TEST_CASE("a token is a patch of every channel, channel by channel") {
  // One image of 1 x 2 tokens, 2 channels, patches of 2 x 2: value 10 * token + place.
  const std::vector<float> tokens{0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17};
  std::vector<float> latents(16);
  core::unpack(tokens.data(), 1, 1, 2, 2, 2, nullptr, nullptr, 0, latents.data());
  CHECK(latents == std::vector<float>{0, 1, 10, 11, 2, 3, 12, 13, 4, 5, 14, 15, 6, 7, 16, 17});
  const float scaling[] = {2.0f, 4.0f}, shift[] = {1.0f, -1.0f};
  core::unpack(tokens.data(), 1, 1, 2, 2, 2, scaling, shift, 2, latents.data());
  CHECK(latents[2] == 10.0f / 2.0f + 1.0f);
  CHECK(latents[8] == 4.0f / 4.0f - 1.0f);
  core::unpack(tokens.data(), 1, 1, 2, 2, 2, scaling, shift, 1, latents.data());
  CHECK(latents[8] == 4.0f / 2.0f + 1.0f);
  CHECK_THROWS_AS(core::unpack(tokens.data(), 1, 1, 2, 2, 2, scaling, shift, 3, latents.data()), core::Error);
  CHECK_THROWS_AS(core::unpack(tokens.data(), 1, 1, 2, 2, 2, scaling, nullptr, 2, latents.data()), core::Error);
}

TEST_CASE("pixels are clipped, rounded half to even, and interleaved") {
  const float inf = INFINITY;
  const std::vector<float> planes{-1.1f, -1.0f,  0.0f, 1.0f,    // red
                                  2.0f,  inf,    -inf, NAN,     // green
                                  1e30f, -1e30f, 0.5f, -0.5f};  // blue
  std::vector<std::uint8_t> pixels(12);
  core::to_rgb8(planes.data(), 1, 2, 2, pixels.data());
  CHECK(pixels == std::vector<std::uint8_t>{0, 255, 255, 0, 255, 0, 128, 0, 191, 255, 0, 64});
  // Every level and what lies around it, over more than one block of the loop.
  std::vector<float> values;
  for (int level = 0; level <= 255; ++level) {
    for (const float off : {-0.49f, 0.0f, 0.49f}) values.push_back((static_cast<float>(level) + off) / 127.5f - 1.0f);
  }
  const std::size_t plane = values.size();
  for (int copy = 0; copy < 5; ++copy)
    values.insert(values.end(), values.begin(), values.begin() + static_cast<long>(plane));
  std::vector<std::uint8_t> levels(values.size());
  core::to_rgb8(values.data(), 2, 3, 256, levels.data());
  for (std::size_t i = 0; i < values.size(); ++i) CHECK(levels[i] == i / 3 % plane / 3);
}

TEST_CASE("finite") {
  for (const std::size_t count : {std::size_t{1}, std::size_t{5000}}) {
    std::vector<float> values(count, 3.4e38f);
    CHECK(core::all_finite(values.data(), count));
    for (const std::size_t place : {std::size_t{0}, count / 2, count - 1}) {
      for (const float bad : {INFINITY, -INFINITY, NAN}) {
        values[place] = bad;
        CHECK_FALSE(core::all_finite(values.data(), count));
      }
      values[place] = -3.4e38f;
    }
    CHECK(core::all_finite(values.data(), count));
  }
  CHECK(core::all_finite(nullptr, 0));
}

TEST_CASE("position ids") {
  CHECK(core::image_ids(2, 2) == std::vector<float>{0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 1});
  // An odd side has one more before the middle.
  CHECK(core::centred_image_ids(3, 2) ==
        std::vector<float>{0, -2, -1, 0, -2, 0, 0, -1, -1, 0, -1, 0, 0, 0, -1, 0, 0, 0});
  CHECK(core::text_positions(4, 7, 3) == std::vector<float>{3, 4, 5});
  CHECK(core::text_positions(9, 7, 2) == std::vector<float>{4, 5});
}
