// The kernels' own source, compiled for the host: against the golden vectors, and against the CPU's path.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <type_traits>

#include "core/compute.hpp"
#include "cuda/plan.hpp"
#include "tests/cuda_on_host.hpp"
#include "tests/golden.hpp"

using namespace arcflow;
using core::Segment;

namespace {

using cuda::Bfloat16;
using cuda::Half;

// Memory as CUDA hands it out: aligned, here by `shift` values too few or not.
template <class T>
struct Device {
  explicit Device(const std::vector<T>& values, std::size_t shift = 0) : room(values.size() * sizeof(T) / 16 + 4) {
    data = reinterpret_cast<T*>(room.data()) + shift;
    if (!values.empty()) std::memcpy(static_cast<void*>(data), values.data(), values.size() * sizeof(T));
  }
  struct alignas(16) Line {
    unsigned char bytes[16];
  };
  std::vector<Line> room;
  T* data;
};

float widened(float value) { return value; }
float widened(Bfloat16 value) { return cuda::to_float(value); }
float widened(Half value) { return cuda::to_float(value); }

template <class T>
T narrowed(float value);
template <>
float narrowed(float value) {
  return value;
}
template <>
Bfloat16 narrowed(float value) {
  return {static_cast<unsigned short>(cuda::bits_of(value) >> 16)};
}
template <>
Half narrowed(float value) {  // truncates; test values are far from the ends of the range
  if (std::abs(value) < 1e-4f) return {0};
  const unsigned bits = cuda::bits_of(value);
  const unsigned exponent = ((bits >> 23) & 0xFFu) - 112u;
  return {static_cast<unsigned short>(((bits >> 16) & 0x8000u) | (exponent << 10) | ((bits >> 13) & 0x3FFu))};
}

template <class T>
auto kernel_of(bool wide) {
  if constexpr (std::is_same_v<T, float>) return wide ? arcflow_advance_f32 : arcflow_advance_f32_any;
  if constexpr (std::is_same_v<T, Half>) return wide ? arcflow_advance_f16 : arcflow_advance_f16_any;
  if constexpr (std::is_same_v<T, Bfloat16>) return wide ? arcflow_advance_bf16 : arcflow_advance_bf16_any;
}

template <class T>
std::vector<float> run_advance(const Segment& s, const std::vector<float>& x, const std::vector<T>& means,
                               const std::vector<T>& logweights, const std::vector<T>& loggammas, bool raw = false,
                               bool in_place = false, std::size_t shift = 0) {
  const Device<float> device_x(x);
  const Device<float> apart(std::vector<float>(x.size(), NAN));
  const Device<T> device_means(means, shift), weights(logweights), gammas(loggammas);
  cuda::AdvancePlan plan;
  const long long tokens = s.batch * s.tokens;
  REQUIRE(cuda::plan_advance(tokens, s.modes, s.channels, s.positions, sizeof(T), shift == 0, &plan));
  CHECK(static_cast<long long>(plan.blocks) * plan.tokens_per_block >= tokens);
  float* const out = in_place ? device_x.data : apart.data;
  cuda_on_host::launch(plan.blocks, cuda::kAdvanceThreads, plan.shared_bytes, [&] {
    kernel_of<T>(plan.wide)(device_means.data, weights.data, gammas.data, device_x.data, out, tokens,
                            static_cast<int>(s.modes), static_cast<int>(s.channels), static_cast<int>(s.positions),
                            plan.tokens_per_block, static_cast<float>(s.sigma_src - s.sigma_a),
                            static_cast<float>(s.sigma_a - s.sigma_b), raw ? 1 : 0);
  });
  return std::vector<float>(out, out + x.size());
}

double relative_error(const std::vector<float>& actual, const std::vector<double>& expected) {
  double scale = 1e-30, worst = 0.0;
  for (const double value : expected) scale = std::max(scale, std::abs(value));
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(static_cast<double>(actual[i]) - expected[i]);
    worst = std::max(worst, std::isnan(error) ? 1e30 : error);
  }
  return worst / scale;
}

// Coefficients in float32 carry the rounding of l * D into exp: a few units of 2^-23 for rates of ordinary size.
constexpr double kTolerance = 2e-6;

template <class T>
void against_the_cpu(const Segment& s, unsigned seed, bool in_place, std::size_t shift) {
  std::mt19937 random(seed);
  std::normal_distribution<float> gauss;
  const auto draw = [&](std::int64_t count, float mean, float spread) {
    std::vector<T> values(static_cast<std::size_t>(count));
    for (T& value : values) value = narrowed<T>(mean + spread * gauss(random));
    return values;
  };
  const std::int64_t tokens = s.batch * s.tokens;
  const std::vector<T> means = draw(tokens * s.modes * s.channels, 0.0f, 1.0f);
  const std::vector<T> logweights = draw(tokens * s.modes * s.positions, -1.5f, 0.7f);
  const std::vector<T> loggammas = draw(tokens * (s.modes - 1) * s.positions, 0.0f, 1.0f);
  std::vector<float> x(static_cast<std::size_t>(tokens * s.channels));
  for (float& value : x) value = gauss(random);
  const auto wide = [](const std::vector<T>& values) {
    std::vector<float> result;
    for (const T value : values) result.push_back(widened(value));
    return result;
  };
  std::vector<float> expected(x.size());
  core::advance(s, x.data(), wide(means).data(), wide(logweights).data(), wide(loggammas).data(), expected.data());
  const std::vector<float> actual = run_advance(s, x, means, logweights, loggammas, false, in_place, shift);
  CHECK(relative_error(actual, {expected.begin(), expected.end()}) < kTolerance);
}

}  // namespace

TEST_CASE("golden vectors, 16 bytes and a value at a time") {
  for (const auto& c : golden::solver_cases()) {
    CAPTURE(c.name);
    // Rates of six with a whole unit of sigma between: e^z is as uncertain as the rounding of z there.
    const double tolerance = c.name == "wide gammas" ? 1e-5 : kTolerance;
    for (const std::size_t shift : {std::size_t{0}, std::size_t{1}}) {
      const auto moved = run_advance(c.segment, golden::floats(c.x_a), golden::floats(c.means),
                                     golden::floats(c.logweights), golden::floats(c.loggammas), false, false, shift);
      CHECK(relative_error(moved, c.x_b) < tolerance);
    }
  }
}

TEST_CASE_TEMPLATE("the CPU's path, for every type", T, float, Half, Bfloat16) {
  unsigned seed = 1;
  for (const Segment& s : {Segment{1, 64, 16, 64, 4, 1.0, 1.0, 0.7619}, Segment{2, 37, 16, 64, 4, 0.76, 0.6, 0.1},
                           Segment{1, 1, 1, 8, 4, 1.0, 1.0, 0.5}, Segment{3, 11, 3, 24, 4, 1.0, 0.8, 0.0},
                           Segment{1, 9, 8, 16, 4, 0.9, 0.9, 0.2}, Segment{1, 5, 17, 136, 4, 0.9, 0.9, 0.2}}) {
    CAPTURE(s.tokens);
    against_the_cpu<T>(s, seed++, false, 0);
    against_the_cpu<T>(s, seed++, true, 0);
    against_the_cpu<T>(s, seed++, false, 1);
  }
}

TEST_CASE_TEMPLATE("positions, channels and modes that 16 bytes do not divide", T, float, Half, Bfloat16) {
  unsigned seed = 100;
  for (const Segment& s : {Segment{1, 13, 5, 6, 1, 1.0, 1.0, 0.5}, Segment{1, 7, 16, 12, 4, 1.0, 1.0, 0.5},
                           Segment{2, 3, 4, 9, 9, 1.0, 0.9, 0.5}, Segment{1, 6, 40, 200, 100, 1.0, 1.0, 0.5}}) {
    against_the_cpu<T>(s, seed++, false, 0);
  }
}

TEST_CASE("softmax over the modes of raw logits") {
  std::mt19937 random(7);
  std::normal_distribution<float> gauss;
  const Segment s{1, 20, 16, 64, 4, 1.0, 1.0, 0.7};
  std::vector<float> x(20 * 64), means(20 * 16 * 64), logits(20 * 16 * 4), gammas(20 * 15 * 4), expected(x.size());
  for (auto* values : {&x, &means, &logits, &gammas}) {
    for (float& value : *values) value = gauss(random);
  }
  for (float& value : logits) value = 30.0f * value + 80.0f;  // exp of these alone would not be finite
  std::vector<float> weights = logits;
  for (std::size_t token = 0; token < 20; ++token) {
    for (std::size_t p = 0; p < 4; ++p) {
      double total = 0.0;
      for (std::size_t k = 0; k < 16; ++k) total += std::exp(static_cast<double>(logits[(token * 16 + k) * 4 + p]));
      for (std::size_t k = 0; k < 16; ++k) {
        float& value = weights[(token * 16 + k) * 4 + p];
        value = static_cast<float>(static_cast<double>(value) - std::log(total));
      }
    }
  }
  core::advance(s, x.data(), means.data(), weights.data(), gammas.data(), expected.data());
  const auto actual = run_advance(s, x, means, logits, gammas, true);
  CHECK(relative_error(actual, {expected.begin(), expected.end()}) < 2e-5);  // logits of 100 carry 8e-6 of their own
}

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

TEST_CASE("pictures to bytes, to the bit") {
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

TEST_CASE("launches for all sizes, or none") {
  cuda::AdvancePlan plan;
  REQUIRE(cuda::plan_advance(4096, 16, 64, 4, 4, true, &plan));
  CHECK(plan.wide);
  CHECK(plan.tokens_per_block == 8);
  CHECK(plan.blocks == 512);
  CHECK(plan.shared_bytes == 8 * 31 * 4 * 4);
  REQUIRE(cuda::plan_advance(4096, 16, 64, 4, 2, true, &plan));
  CHECK(plan.tokens_per_block == 16);
  for (const std::int64_t bad : {std::int64_t{0}, std::int64_t{-1}, INT64_MAX, INT64_MIN}) {
    CHECK_FALSE(cuda::plan_advance(bad, 16, 64, 4, 4, true, &plan));
    CHECK_FALSE(cuda::plan_advance(1, bad, 64, 4, 4, true, &plan));
    CHECK_FALSE(cuda::plan_advance(1, 16, bad, 4, 4, true, &plan));
    CHECK_FALSE(cuda::plan_advance(1, 16, 64, bad, 4, true, &plan));
  }
  CHECK_FALSE(cuda::plan_advance(1, 1 << 18, 4, 4, 4, true, &plan));  // more than a block's shared memory
}
