// The noise: Philox against its authors' vectors, golden values to the bit, and independence of how it is cut.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "core/numerics/formula.hpp"
#include "tests/core/golden.hpp"

using namespace arcflow;

TEST_CASE("Philox4x32-10: Random123's known answers") {
  struct Answer {
    formula::Words counter;
    unsigned key0, key1;
    formula::Words words;
  };
  const Answer answers[] = {
      {{{0, 0, 0, 0}}, 0, 0, {{0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8}}},
      {{{0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF}},
       0xFFFFFFFF,
       0xFFFFFFFF,
       {{0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD}}},
      {{{0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344}},
       0xA4093822,
       0x299F31D0,
       {{0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1}}},
  };
  for (const Answer& answer : answers) {
    const formula::Words words = formula::philox4x32(answer.counter, answer.key0, answer.key1);
    for (int i = 0; i < 4; ++i) CHECK(words.w[i] == answer.words.w[i]);
  }
}

TEST_CASE("golden values, to the bit") {
  const auto document = golden::read("noise.json");
  std::size_t compared = 0;
  for (const auto& entry : document.at("cases")) {
    const std::uint64_t seed = std::stoull(entry.at("seed").get<std::string>());
    for (std::size_t i = 0; i < document.at("indices").size(); ++i) {
      const std::uint64_t index = std::stoull(document.at("indices")[i].get<std::string>());
      float value = NAN;
      core::normal(seed, index, 1, &value);
      CAPTURE(seed);
      CAPTURE(index);
      CHECK(value == entry.at("values")[i].get<float>());
      ++compared;
    }
  }
  CHECK(compared >= 100);
}

TEST_CASE("any stretch holds what the whole holds") {
  std::vector<float> whole(1000), part(300);
  core::normal(42, 0, whole.size(), whole.data());
  core::normal(42, 500, part.size(), part.data());
  for (std::size_t i = 0; i < part.size(); ++i) CHECK(part[i] == whole[500 + i]);
}

TEST_CASE("mean, variance and tails") {
  std::vector<float> values(100000);
  core::normal(0x123456789ABCDEF, 0, values.size(), values.data());
  double sum = 0.0, squares = 0.0, most = 0.0;
  for (const float value : values) {
    const auto z = static_cast<double>(value);
    sum += z;
    squares += z * z;
    most = std::max(most, std::abs(z));
  }
  const auto n = static_cast<double>(values.size());
  CHECK(std::abs(sum / n) < 5.0 / std::sqrt(n));
  CHECK(std::abs(squares / n - 1.0) < 5.0 * std::sqrt(2.0 / n));
  CHECK(most < 8.6);
  CHECK(most > 3.5);
}
