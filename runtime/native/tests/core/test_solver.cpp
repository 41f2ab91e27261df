// The closed-form solver on the CPU: golden vectors, the laws that the closed form obeys, and its speed at FLUX's size.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.hpp"
#include "core/numerics/formula.hpp"
#include "tests/core/golden.hpp"

using namespace arcflow;
using core::Segment;

namespace {

std::vector<float> advanced(const Segment& segment, const std::vector<float>& x, const std::vector<float>& means,
                            const std::vector<float>& logweights, const std::vector<float>& loggammas) {
  std::vector<float> out(x.size(), NAN);
  core::advance(segment, x.data(), means.data(), logweights.data(), loggammas.data(), out.data());
  return out;
}

}  // namespace

TEST_CASE("golden cases") {
  for (const auto& c : golden::solver_cases()) {
    CAPTURE(c.name);
    const auto moved = advanced(c.segment, golden::floats(c.x_a), golden::floats(c.means), golden::floats(c.logweights),
                                golden::floats(c.loggammas));
    CHECK(golden::relative_error(moved, c.x_b) < 1e-6);
  }
}

TEST_CASE("golden phi1, in double and in float") {
  const auto document = golden::read("solver.json");
  REQUIRE(document.at("phi1").size() >= 20);
  for (const auto& entry : document.at("phi1")) {
    const double z = entry.at("z"), value = entry.at("value");
    CAPTURE(z);
    CHECK(std::abs(formula::phi1(z) - value) <= 1e-15 * std::abs(value));
    const auto narrow = static_cast<float>(z);  // its own rounding moves phi1 by up to |z| / 2 units
    const double limit = (3.0 + std::abs(z)) * 1.2e-7;
    CHECK(std::abs(static_cast<double>(formula::phi1(narrow)) - value) <= limit * std::abs(value));
  }
  CHECK(std::isnan(formula::phi1(std::numeric_limits<double>::quiet_NaN())));
}

TEST_CASE("golden schedules") {
  const auto document = golden::read("solver.json");
  REQUIRE(document.at("schedules").size() >= 20);
  for (const auto& entry : document.at("schedules")) {
    const std::vector<double> levels = core::sigmas(entry.at("nfe"), entry.at("shift"), entry.at("final_step_ratio"));
    const std::vector<double> expected = entry.at("sigmas");
    REQUIRE(levels.size() == expected.size());
    for (std::size_t i = 0; i < levels.size(); ++i) CHECK(std::abs(levels[i] - expected[i]) <= 1e-15);
  }
  const std::vector<double> previews = core::preview_sigmas(3, 1.0);
  CHECK(previews == std::vector<double>{0.75, 0.5, 0.25});
  CHECK(core::preview_sigmas(0, 3.2).empty());
}

TEST_CASE("in place is the same as apart") {
  const auto c = golden::solver_cases().front();
  std::vector<float> x = golden::floats(c.x_a);
  const auto means = golden::floats(c.means), weights = golden::floats(c.logweights),
             gammas = golden::floats(c.loggammas);
  const auto apart = advanced(c.segment, x, means, weights, gammas);
  core::advance(c.segment, x.data(), means.data(), weights.data(), gammas.data(), x.data());
  CHECK(x == apart);
}

TEST_CASE("two moves are one") {
  auto c = golden::solver_cases().at(2);
  const auto means = golden::floats(c.means), weights = golden::floats(c.logweights),
             gammas = golden::floats(c.loggammas);
  Segment first = c.segment, second = c.segment;
  first.sigma_b = second.sigma_a = 0.45;
  const auto whole = advanced(c.segment, golden::floats(c.x_a), means, weights, gammas);
  const auto parts =
      advanced(second, advanced(first, golden::floats(c.x_a), means, weights, gammas), means, weights, gammas);
  CHECK(golden::relative_error(parts, {whole.begin(), whole.end()}) < 1e-6);
}

TEST_CASE("one mode is an Euler step") {
  const Segment s{1, 2, 1, 4, 2, 1.0, 1.0, 0.25};
  const std::vector<float> x{1, 2, 3, 4, 5, 6, 7, 8}, v{1, -1, 2, -2, 4, -4, 8, -8}, weights(4, 0.0f);
  const auto moved = advanced(s, x, v, weights, {});
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(moved[i] == x[i] - 0.75f * v[i]);
}

TEST_CASE("positions share their channels, whatever their number") {
  for (const std::int64_t positions : {1, 2, 3, 4, 6, 12}) {
    const Segment s{1, 1, 2, 12, positions, 1.0, 0.9, 0.4};
    const auto p = static_cast<std::size_t>(positions);
    std::vector<float> weights(2 * p), gammas(p);
    for (std::size_t i = 0; i < p; ++i) {
      weights[i] = -0.3f - 0.1f * static_cast<float>(i);
      weights[p + i] = -1.0f + 0.1f * static_cast<float>(i);
      gammas[i] = 0.5f * static_cast<float>(i) - 1.0f;
    }
    const auto moved = advanced(s, std::vector<float>(12, 0.0f), std::vector<float>(24, 1.0f), weights, gammas);
    for (std::size_t c = 0; c < 12; ++c) {
      const double straight = std::exp(static_cast<double>(weights[c % p])) * 0.5;
      const double rate = static_cast<double>(gammas[c % p]);
      const double bent =
          std::exp(static_cast<double>(weights[p + c % p]) + rate * 0.1) * 0.5 * formula::phi1(rate * 0.5);
      CHECK(static_cast<double>(moved[c]) == doctest::Approx(-(straight + bent)).epsilon(1e-6));
    }
  }
}

TEST_CASE("sizes that make no sense are rejected") {
  std::vector<float> memory(64);
  float* m = memory.data();
  for (const Segment& s :
       {Segment{0, 1, 1, 4, 4, 1, 1, 0}, Segment{1, 0, 1, 4, 4, 1, 1, 0}, Segment{1, 1, 0, 4, 4, 1, 1, 0},
        Segment{1, 1, 1, 0, 4, 1, 1, 0}, Segment{1, 1, 1, 4, 0, 1, 1, 0}, Segment{1, 1, 1, 6, 4, 1, 1, 0},
        Segment{-1, 1, 1, 4, 4, 1, 1, 0}}) {
    CHECK_THROWS_AS(core::advance(s, m, m, m, m, m), core::Error);
  }
}
