// The manifest's reader by itself: what it keeps, and that hostile text is rejected with an Error and nothing else.
// tests/native/core/test_bundle.py holds it to Python's words.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <fstream>
#include <sstream>
#include <string>

#include "core/bundle/manifest/manifest.hpp"
#include "core/bundle/manifest/readers.hpp"
#include "core/error.hpp"
#include "core/text/python_text.hpp"

using namespace arcflow::core;

namespace {

std::string embedded() {
  std::ifstream file(ARCFLOW_SOURCE_DIR "/engines/bundles/tiny-fp16-cpu/manifest.json", std::ios::binary);
  std::ostringstream data;
  data << file.rdbuf();
  return data.str();
}

// The message with which `data` is rejected; "" where it is taken. Anything but an Error fails the test.
std::string refusal(const std::string& data) {
  try {
    parse_manifest(data);
  } catch (const Error& error) {
    CHECK(error.code() == ARCFLOW_BUNDLE_REJECTED);
    return error.what();
  }
  return "";
}

bool begins(const std::string& text, const std::string& start) { return text.compare(0, start.size(), start) == 0; }

}  // namespace

TEST_CASE("the embedded bundle's manifest") {
  const Manifest manifest = parse_manifest(embedded());
  CHECK(manifest.model == "tiny");
  CHECK(manifest.architecture == "flux");
  CHECK(manifest.precision == "fp16");
  CHECK(manifest.target == "cpu");
  CHECK(manifest.networks.size() == 5);
  CHECK(manifest.tokenizers.at("clip").file == "tokenizers/clip.json");
  CHECK(manifest.limits.width.opt == 64);
  CHECK(manifest.schedule.nfe == 2);
  CHECK(manifest.files.size() == 7);
  CHECK(!manifest.engine);
  const auto& shape = manifest.networks.at("backbone").inputs.at(0).shape;
  CHECK(std::get<std::string>(shape.at(0)) == "batch");
  CHECK(std::get<std::int64_t>(shape.at(2)) == 64);
}

TEST_CASE("no byte of it can change unseen, and no end is missed") {
  const std::string good = embedded();
  REQUIRE(good.size() > 4000);
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::string flipped = good;
    flipped[at] = static_cast<char>(flipped[at] ^ (1 << at % 8));
    CHECK_MESSAGE(refusal(flipped) != "", "byte ", at);
    if (at % 7 == 0) CHECK_MESSAGE(refusal(good.substr(0, at)) != "", "cut at ", at);
  }
}

TEST_CASE("deep nesting is rejected, and the stack is not used up") {
  for (const char* one : {"{\"a\":", "[", "{\"a\":["}) {
    std::string data = "{\"x\":";
    for (int i = 0; i < 100000; ++i) data += one;
    CHECK(refusal(data) == "manifest.json is damaged or is not a bundle's manifest: it is nested too deeply");
  }
  const std::string start = "{\"kind\": \"other\", \"schema_version\": 4, \"x\": ";
  CHECK(
      begins(refusal(start + std::string(800, '[') + std::string(800, ']') + "}"), "manifest.json is of kind 'other'"));
}

TEST_CASE("what is no JSON, though the parser would let it pass") {
  CHECK(readers::parse(R"({"a": "\u00e9\ud83d\ude00"})")["a"] == "\u00e9\U0001F600");
  CHECK(readers::parse("1e-400") == 0);
  for (const std::string bad : {"", "{", "{}x", "\"\xff\"", "\"\\ud83d\"", "\xEF\xBB\xBF{}", "01", "NaN", "1e400"}) {
    CHECK_THROWS_AS(readers::parse(bad), readers::JsonError);
  }
  CHECK_THROWS_AS(readers::parse(std::string("{}\0{}", 5)), readers::JsonError);
}

TEST_CASE("whole numbers up to 64 bits") {
  const auto read = [](const char* text) { return readers::any_integer(readers::parse(text), nullptr); };
  CHECK(read("-9223372036854775808") == INT64_MIN);
  CHECK(read("9223372036854775807") == INT64_MAX);
  CHECK_THROWS_WITH_AS(read("9223372036854775808"), "Expected `int` <= 9223372036854775807", readers::JsonError);
  CHECK_THROWS_WITH_AS(read("99999999999999999999"), "Expected `int`, got `float`", readers::JsonError);
}

TEST_CASE("paths that may name a file") {
  for (const char* path : {"a", "a.b", "a/b", "a/b/c.json", ".hidden", "with space", "..a", "a..b/c"}) {
    CHECK_MESSAGE(!unsafe_path(path), path);
  }
  for (const char* path : {"", ".", "..", "../a", "a/../b", "a/..", "/a", "//a", "a//b", "a/", "./a", "a/.", "a\\b",
                           "C:a", "a\nb", "a\x7f", "\u00e9"}) {
    CHECK_MESSAGE(unsafe_path(path), path);
  }
  CHECK(unsafe_path(std::string_view("a\0b", 3)));
}

TEST_CASE("text as Python shows it") {
  CHECK(python_repr("it's") == "\"it's\"");
  CHECK(python_repr("it's \"it\"") == "'it\\'s \"it\"'");
  CHECK(python_repr("\t\\\x01\u00e9\u00ad\u200b\U000E0001") == "'\\t\\\\\\x01\u00e9\\xad\\u200b\\U000e0001'");
  CHECK(python_repr("'\"") == R"('\'"')");
  CHECK(python_repr("a\\\n\x7F\u00A0\u200D\U000E0001\u00E9") == R"('a\\\n\x7f\xa0\u200d\U000e0001é')");
  CHECK(python_repr("a\xff") == "'a\\udcff'");
  CHECK(python_repr("ab\xe2\x82z\xed\xa0\x80") == "'ab\\udce2\\udc82z\\udced\\udca0\\udc80'");
}
