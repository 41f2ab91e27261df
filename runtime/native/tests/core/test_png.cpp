// PNG and settings: the structure of the file, and JSON as Python writes it. tests/native/core/test_png.py compares
// bytes.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <zlib.h>

#include <clocale>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/numerics/png.hpp"
#include "core/pipeline/request/settings.hpp"

using namespace arcflow::core;

namespace {

std::string json(const std::string& text, KeyOrder order = KeyOrder::kGiven) {
  return to_json(parse_settings("{\"v\": " + text + "}"), order);
}

void check_refused(const std::string& text, const std::string& part) {
  try {
    parse_settings(text);
    FAIL_CHECK("was not refused: " << text);
  } catch (const Error& error) {
    CHECK(error.code() == ARCFLOW_INVALID_ARGUMENT);
    CHECK_MESSAGE(std::string(error.what()).find(part) != std::string::npos, error.what());
  }
}

}  // namespace

TEST_CASE("floats are written as Python writes them") {
  const std::pair<const char*, const char*> cases[] = {
      {"1.0", "1.0"},         {"0.1", "0.1"},
      {"1e16", "1e+16"},      {"9999999999999998.0", "9999999999999998.0"},
      {"0.0001", "0.0001"},   {"0.00001", "1e-05"},
      {"-0.0", "-0.0"},       {"1.5e-7", "1.5e-07"},
      {"123.456", "123.456"}, {"5e-324", "5e-324"},
      {"1e22", "1e+22"},      {"1.7976931348623157e308", "1.7976931348623157e+308"},
      {"100.0", "100.0"},     {"0.30000000000000004", "0.30000000000000004"}};
  for (const auto& [text, expected] : cases) CHECK(json(text) == "{\"v\": " + std::string(expected) + "}");
  CHECK(summary(parse_settings(R"({"a": 0.123456789, "b": 1e-5, "c": 1234567.0, "d": 100000.0, "e": 1.0})")) ==
        "\na: 0.123457, b: 1e-05, c: 1.23457e+06, d: 100000, e: 1");
}

TEST_CASE("values are written as Python writes them") {
  CHECK(json("18446744073709551615") == "{\"v\": 18446744073709551615}");
  CHECK(json("-9223372036854775808") == "{\"v\": -9223372036854775808}");
  CHECK(json("[1, 2.0, null, true, {}, []]") == "{\"v\": [1, 2.0, null, true, {}, []]}");
  CHECK(json(R"("\u00e9\ud83d\ude00\n\u007f\"\\/")") == R"({"v": "\u00e9\ud83d\ude00\n\u007f\"\\/"})");
  CHECK(to_json(parse_settings(R"({"b": 1, "a": {"z": 1, "y": 2}})"), KeyOrder::kSorted) ==
        R"({"a": {"y": 2, "z": 1}, "b": 1})");
  CHECK(
      summary(parse_settings(R"({"seed": 7, "prompt": "a rose", "sigmas": [1.0, 0.25], "x": null, "y": ["", "b"]})")) ==
      "a rose\nseed: 7, sigmas: 1 0.25, x: null, y:  b");
}

TEST_CASE("settings that are no JSON object are rejected") {
  check_refused("", "syntax error");
  check_refused("[1]", "it is of the type array");
  check_refused("{\"a\": 1} x", "syntax error");
  check_refused("{\"a\": 1e999}", "1e999");
  check_refused("{\"a\": 18446744073709551616}", "has more than 64 bits");
  check_refused("{\"a\": \"\xff\"}", "UTF-8");
  check_refused("{\"a\": \"\\ud800\"}", "syntax error");
  check_refused("{\"a\": " + std::string(100'000, '['), "nested more than 32 deep");
}

TEST_CASE("a locale changes nothing") {
  if (std::setlocale(LC_ALL, "de_DE.UTF-8") == nullptr) return;  // Not installed here.
  CHECK(json("0.5") == "{\"v\": 0.5}");
  CHECK(summary(parse_settings("{\"a\": 0.5}")) == "\na: 0.5");
  std::setlocale(LC_ALL, "C");
}

TEST_CASE("an image's settings in the order of runtime/result.py") {
  Manifest manifest;
  manifest.model = "tiny";
  manifest.precision = "fp16";
  manifest.target = "cpu";
  manifest.digest = "ab";
  manifest.schedule.guidance = 3.5;
  CHECK(describe(manifest, {"a \u201cred\u201d apple", 7, 2, {1.0, 0.5, 0.0}, 64, 48}) ==
        R"({"prompt": "a \u201cred\u201d apple", "seed": 7, "model": "tiny", "precision": "fp16", "target": "cpu", )"
        R"("bundle": "ab", "nfe": 2, "sigmas": [1.0, 0.5, 0.0], "guidance": 3.5, "width": 64, "height": 48})");
}

TEST_CASE("the pixels come back") {
  const std::uint32_t width = 37, height = 21;
  std::vector<std::uint8_t> rgb8(width * height * 3);
  for (std::size_t i = 0; i < rgb8.size(); ++i) rgb8[i] = static_cast<std::uint8_t>(i * i / 7 + i % 5);
  const std::string png = encode_png(rgb8.data(), width, height, nullptr);
  const auto number = [&png](std::size_t at) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(png[at + i]);
    return value;
  };
  CHECK(png.substr(0, 8) == "\x89PNG\r\n\x1a\n");
  std::string data, order;
  for (std::size_t at = 8; at < png.size(); at += 12 + number(at)) {
    order += png.substr(at + 4, 4) + " ";
    if (png.substr(at + 4, 4) == "IDAT") data = png.substr(at + 8, number(at));
    CHECK(number(at + 8 + number(at)) == crc32(0, reinterpret_cast<const Bytef*>(png.data() + at + 4), number(at) + 4));
  }
  CHECK(order == "IHDR IDAT IEND ");
  CHECK(number(16) == width);
  CHECK(number(20) == height);
  const std::size_t stride = width * 3;
  std::vector<std::uint8_t> rows((stride + 1) * height), decoded(rgb8.size());
  uLongf size = rows.size();
  REQUIRE(uncompress(rows.data(), &size, reinterpret_cast<const Bytef*>(data.data()), data.size()) == Z_OK);
  REQUIRE(size == rows.size());
  for (std::size_t y = 0; y < height; ++y) {
    for (std::size_t x = 0; x < stride; ++x) {
      const auto before = [&](bool left, bool up) -> int {
        return (left && x < 3) || (up && y == 0) ? 0 : decoded[(y - (up ? 1 : 0)) * stride + x - (left ? 3 : 0)];
      };
      const int a = before(true, false), b = before(false, true), c = before(true, true), p = a + b - c;
      const int pa = std::abs(p - a), pb = std::abs(p - b), pc = std::abs(p - c);
      const int predicted[] = {0, a, b, (a + b) / 2, pa <= pb && pa <= pc ? a : pb <= pc ? b : c};
      REQUIRE(rows[y * (stride + 1)] < 5);
      decoded[y * stride + x] =
          static_cast<std::uint8_t>(rows[y * (stride + 1) + 1 + x] + predicted[rows[y * (stride + 1)]]);
    }
  }
  CHECK(decoded == rgb8);
}

TEST_CASE("sides out of range") {
  const std::uint8_t pixel[3] = {1, 2, 3};
  CHECK_THROWS_WITH_AS(encode_png(pixel, 0, 1, nullptr), "an image of 0 x 1 px; each side must be from 1 to 16384",
                       Error);
  CHECK_THROWS_AS(encode_png(pixel, 1, 16385, nullptr), Error);
}
