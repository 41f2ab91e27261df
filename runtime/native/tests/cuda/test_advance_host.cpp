// The solver's kernels, their own source compiled for the host: against the golden vectors, and against the CPU's path.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <type_traits>

#include "core/numerics/compute.hpp"
#include "cuda/plan.hpp"
#include "tests/core/golden.hpp"
#include "tests/cuda/cuda_on_host.hpp"

using namespace arcflow;
using core::Segment;
using cuda_on_host::Device;

namespace {

using cuda::Bfloat16;
using cuda::Half;

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
auto kernel_of(cuda::Variant variant) {
  const auto pick = [variant](auto any, auto wide, auto fixed) {
    return variant == cuda::Variant::kAny ? any : variant == cuda::Variant::kWide ? wide : fixed;
  };
  if constexpr (std::is_same_v<T, float>) {
    return pick(arcflow_advance_f32_any, arcflow_advance_f32, arcflow_advance_f32_modes16);
  } else if constexpr (std::is_same_v<T, Half>) {
    return pick(arcflow_advance_f16_any, arcflow_advance_f16, arcflow_advance_f16_modes16);
  } else {
    return pick(arcflow_advance_bf16_any, arcflow_advance_bf16, arcflow_advance_bf16_modes16);
  }
}

struct Manner {  // of a run, where it is not the usual one
  bool raw = false, in_place = false;
  std::size_t shift = 0;
  const cuda::Variant* variant = nullptr;  // in place of the planned one
};

template <class T>
std::vector<float> run_advance(const Segment& s, const std::vector<float>& x, const std::vector<T>& means,
                               const std::vector<T>& logweights, const std::vector<T>& loggammas,
                               const Manner& manner = {}) {
  const Device<float> device_x(x);
  const Device<float> apart(std::vector<float>(x.size(), NAN));
  const Device<T> device_means(means, manner.shift), weights(logweights), gammas(loggammas);
  cuda::AdvancePlan plan;
  const long long tokens = s.batch * s.tokens;
  REQUIRE(cuda::plan_advance(tokens, s.modes, s.channels, s.positions, sizeof(T), manner.shift == 0, &plan));
  CHECK(static_cast<long long>(plan.blocks) * plan.tokens_per_block >= tokens);
  float* const out = manner.in_place ? device_x.data : apart.data;
  const auto kernel = kernel_of<T>(manner.variant != nullptr ? *manner.variant : plan.variant);
  cuda_on_host::launch(plan.blocks, cuda::kAdvanceThreads, plan.shared_bytes, [&] {
    kernel(device_means.data, weights.data, gammas.data, device_x.data, out, tokens, static_cast<int>(s.modes),
           static_cast<int>(s.channels), static_cast<int>(s.positions), plan.tokens_per_block,
           static_cast<float>(s.sigma_src - s.sigma_a), static_cast<float>(s.sigma_a - s.sigma_b), manner.raw ? 1 : 0);
  });
  return std::vector<float>(out, out + x.size());
}

// Coefficients in float32 carry the rounding of l * D into exp: a few units of 2^-23 for rates of ordinary size.
constexpr double kTolerance = 2e-6;

template <class T>
struct Field {
  std::vector<T> means, logweights, loggammas;
  std::vector<float> x;
};

template <class T>
Field<T> drawn(const Segment& s, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> gauss;
  const auto draw = [&](std::int64_t count, float mean, float spread) {
    std::vector<T> values(static_cast<std::size_t>(count));
    for (T& value : values) value = narrowed<T>(mean + spread * gauss(random));
    return values;
  };
  const std::int64_t tokens = s.batch * s.tokens;
  Field<T> field;
  field.means = draw(tokens * s.modes * s.channels, 0.0f, 1.0f);
  field.logweights = draw(tokens * s.modes * s.positions, -1.5f, 0.7f);
  field.loggammas = draw(tokens * (s.modes - 1) * s.positions, 0.0f, 1.0f);
  field.x.resize(static_cast<std::size_t>(tokens * s.channels));
  for (float& value : field.x) value = gauss(random);
  return field;
}

template <class T>
void against_the_cpu(const Segment& s, unsigned seed, const Manner& manner = {}) {
  const auto [means, logweights, loggammas, x] = drawn<T>(s, seed);
  const auto wide = [](const std::vector<T>& values) {
    std::vector<float> result;
    for (const T value : values) result.push_back(widened(value));
    return result;
  };
  std::vector<float> expected(x.size());
  core::advance(s, x.data(), wide(means).data(), wide(logweights).data(), wide(loggammas).data(), expected.data());
  const std::vector<float> actual = run_advance(s, x, means, logweights, loggammas, manner);
  CHECK(golden::relative_error(actual, {expected.begin(), expected.end()}) < kTolerance);
}

}  // namespace

TEST_CASE("golden vectors, 16 bytes and a value at a time") {
  for (const auto& c : golden::solver_cases()) {
    CAPTURE(c.name);
    // Rates of six with a whole unit of sigma between: e^z is as uncertain as the rounding of z there.
    const double tolerance = c.name == "wide gammas" ? 1e-5 : kTolerance;
    for (const std::size_t shift : {std::size_t{0}, std::size_t{1}}) {
      const auto moved = run_advance(c.segment, golden::floats(c.x_a), golden::floats(c.means),
                                     golden::floats(c.logweights), golden::floats(c.loggammas), {false, false, shift});
      CHECK(golden::relative_error(moved, c.x_b) < tolerance);
    }
  }
}

TEST_CASE_TEMPLATE("the CPU's path, for every type", T, float, Half, Bfloat16) {
  unsigned seed = 1;
  for (const Segment& s : {Segment{1, 64, 16, 64, 4, 1.0, 1.0, 0.7619}, Segment{2, 37, 16, 64, 4, 0.76, 0.6, 0.1},
                           Segment{1, 1, 1, 8, 4, 1.0, 1.0, 0.5}, Segment{3, 11, 3, 24, 4, 1.0, 0.8, 0.0},
                           Segment{1, 9, 8, 16, 4, 0.9, 0.9, 0.2}, Segment{1, 5, 17, 136, 4, 0.9, 0.9, 0.2}}) {
    CAPTURE(s.tokens);
    against_the_cpu<T>(s, seed++);
    against_the_cpu<T>(s, seed++, {false, true});
    against_the_cpu<T>(s, seed++, {false, false, 1});
  }
}

TEST_CASE_TEMPLATE("positions, channels and modes that 16 bytes do not divide", T, float, Half, Bfloat16) {
  unsigned seed = 100;
  for (const Segment& s : {Segment{1, 13, 5, 6, 1, 1.0, 1.0, 0.5}, Segment{1, 7, 16, 12, 4, 1.0, 1.0, 0.5},
                           Segment{2, 3, 4, 9, 9, 1.0, 0.9, 0.5}, Segment{1, 6, 40, 200, 100, 1.0, 1.0, 0.5}}) {
    against_the_cpu<T>(s, seed++);
  }
}

TEST_CASE_TEMPLATE("with 16 modes known when compiled, the same to the bit", T, float, Half, Bfloat16) {
  unsigned seed = 200;
  // A place a thread; a ragged last block; several places a thread, with a part of the threads idle at the end.
  for (const Segment& s : {Segment{1, 64, 16, 64, 4, 1.0, 1.0, 0.7619}, Segment{1, 37, 16, 64, 4, 0.76, 0.6, 0.1},
                           Segment{1, 11, 16, 200, 4, 0.9, 0.8, 0.2}, Segment{1, 1, 16, 8, 4, 1.0, 1.0, 0.5}}) {
    CAPTURE(s.channels);
    const auto [means, logweights, loggammas, x] = drawn<T>(s, seed++);
    cuda::AdvancePlan plan;
    REQUIRE(cuda::plan_advance(s.tokens, s.modes, s.channels, s.positions, sizeof(T), true, &plan));
    CHECK(plan.variant == cuda::Variant::kFixed);
    for (const bool raw : {false, true}) {
      const auto fixed = run_advance(s, x, means, logweights, loggammas, {raw});
      for (const cuda::Variant variant : {cuda::Variant::kWide, cuda::Variant::kAny}) {
        const auto other = run_advance(s, x, means, logweights, loggammas, {raw, false, 0, &variant});
        CHECK(std::memcmp(fixed.data(), other.data(), fixed.size() * sizeof(float)) == 0);
      }
      const auto in_place = run_advance(s, x, means, logweights, loggammas, {raw, true});
      CHECK(std::memcmp(fixed.data(), in_place.data(), fixed.size() * sizeof(float)) == 0);
    }
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
  const auto actual = run_advance(s, x, means, logits, gammas, {true});
  CHECK(golden::relative_error(actual, {expected.begin(), expected.end()}) <
        2e-5);  // logits of 100 carry 8e-6 of their own
}

TEST_CASE("launches for all sizes, or none") {
  cuda::AdvancePlan plan;
  REQUIRE(cuda::plan_advance(4096, 16, 64, 4, 4, true, &plan));
  CHECK(plan.variant == cuda::Variant::kFixed);
  CHECK(plan.tokens_per_block == 8);
  CHECK(plan.blocks == 512);
  CHECK(plan.shared_bytes == 8 * 31 * 4 * 4);
  REQUIRE(cuda::plan_advance(4096, 16, 64, 4, 2, true, &plan));
  CHECK(plan.tokens_per_block == 16);
  REQUIRE(cuda::plan_advance(4096, 15, 64, 4, 4, true, &plan));
  CHECK(plan.variant == cuda::Variant::kWide);
  REQUIRE(cuda::plan_advance(4096, 16, 64, 4, 4, false, &plan));
  CHECK(plan.variant == cuda::Variant::kAny);
  for (const std::int64_t bad : {std::int64_t{0}, std::int64_t{-1}, INT64_MAX, INT64_MIN}) {
    CHECK_FALSE(cuda::plan_advance(bad, 16, 64, 4, 4, true, &plan));
    CHECK_FALSE(cuda::plan_advance(1, bad, 64, 4, 4, true, &plan));
    CHECK_FALSE(cuda::plan_advance(1, 16, bad, 4, 4, true, &plan));
    CHECK_FALSE(cuda::plan_advance(1, 16, 64, bad, 4, true, &plan));
  }
  CHECK_FALSE(cuda::plan_advance(1, 1 << 18, 4, 4, 4, true, &plan));  // more than a block's shared memory
}
