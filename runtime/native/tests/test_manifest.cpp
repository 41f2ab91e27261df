// The manifest's reader by itself: what it keeps, and that hostile text is rejected with an Error and nothing else.
// tests/native/test_bundle.py holds it to Python's words.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <fstream>
#include <sstream>
#include <string>

#include "core/bundle/manifest/checks.hpp"
#include "core/bundle/manifest/json_reader.hpp"
#include "core/bundle/manifest/manifest.hpp"
#include "core/error.hpp"
#include "core/text/python_text.hpp"

using namespace arcflow::core;

namespace {

std::string embedded() {
  std::ifstream file(ARCFLOW_SOURCE_DIR "/engines/bundles/tiny-fp32-cpu/manifest.json", std::ios::binary);
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
  CHECK(manifest.precision == "fp32");
  CHECK(manifest.target == "cpu");
  CHECK(manifest.networks.size() == 4);
  CHECK(manifest.tokenizers.at("clip").file == "tokenizers/clip.json");
  CHECK(manifest.limits.width.opt == 32);
  CHECK(manifest.schedule.nfe == 2);
  CHECK(manifest.files.size() == 6);
  CHECK(!manifest.engine);
  const auto& shape = manifest.networks.at("backbone").inputs.at(0).shape;
  CHECK(std::get<std::string>(shape.at(0)) == "batch");
  CHECK(std::get<std::int64_t>(shape.at(2)) == 16);
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
  const std::string start = "{\"kind\": \"other\", \"schema_version\": 2, \"x\": ";
  CHECK(
      begins(refusal(start + std::string(800, '[') + std::string(800, ']') + "}"), "manifest.json is of kind 'other'"));
}

TEST_CASE("numbers of any length") {
  const auto real = [](const std::string& text) { return JsonReader(text).number().real().value_or(-1); };
  CHECK(real("0") == 0);
  CHECK(real("1e-400") == 0);
  CHECK(real("1e400") == -1);
  CHECK(real("1e99999999999999999999999") == -1);
  CHECK(real("1e-99999999999999999999999") == 0);
  CHECK(real("1e9223372036854775807") == -1);
  CHECK(real("0.1e-9223372036854775807") == 0);
  CHECK(real(std::string(400, '9')) == -1);
  CHECK(real("0." + std::string(400, '0') + "1") == 0);
  CHECK(real("0." + std::string(400, '0') + "1e401") == 1);
  CHECK(real(std::string("1") + std::string(400, '0') + "e-400") == 1);
  CHECK(real("4.9e-324") == 4.9e-324);
  const auto fits = [](const std::string& text) { return JsonReader(text).number().fits; };
  CHECK(fits("18446744073709551615"));
  CHECK(!fits("18446744073709551616"));
  CHECK(fits("-9223372036854775808"));
  CHECK(!fits("-9223372036854775809"));
}

TEST_CASE("strings and their escapes") {
  CHECK(JsonReader(R"("a\u00e9\ud83d\ude00\n\"")").string() == "a\u00e9\U0001F600\n\"");
  for (const char* bad : {"\"", "\"\\", "\"\\u12", "\"\\u12g4\"", "\"\\ud83d\"", "\"\\ud83d\\u0041\"", "\"\\ude00\"",
                          "\"\\x\"", "\"\n\""}) {
    CHECK_THROWS_AS(JsonReader(bad).string(), JsonError);
    CHECK_THROWS_AS(JsonReader(bad).skip(), JsonError);
  }
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
  CHECK(utf8_fault("ab\xe2\x82").value() == "'utf-8' codec can't decode bytes in position 2-3: unexpected end of data");
  CHECK(!utf8_fault("\u00e9\U0001F600"));
}
