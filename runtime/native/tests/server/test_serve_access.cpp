// Keys and the headers that say who asks.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <string>

#include "server/access/headers.hpp"
#include "server/access/keys.hpp"

using namespace arcflow::serve;

namespace {

// SHA-256 of "abc" and of nothing, from FIPS 180.
const std::string kAbc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const std::string kNothing = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855";

}  // namespace

TEST_CASE("a key is found by its hash, with its limits") {
  const ApiKeys keys = ApiKeys::parse("# people\r\n\n ann " + kAbc + " requests=4 nfe=8\r\nben " + kNothing);
  const ApiKey* key = keys.find("abc");
  REQUIRE(key != nullptr);
  CHECK(key->name == "ann");
  CHECK(key->limits.requests == 4);
  CHECK(key->limits.images == 0);
  CHECK(key->limits.nfe == 8);
  CHECK(keys.find("abd") == nullptr);
  CHECK(keys.find(kAbc) == nullptr);
}

TEST_CASE("a file that is no list of keys is told by line") {
  const auto fault = [](const std::string& text) -> std::string {
    try {
      ApiKeys::parse(text);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  CHECK(fault("# none\n").find("no key") != std::string::npos);
  CHECK(fault("\nann").find("line 2: ") == 0);
  CHECK(fault("ann " + kAbc + "\nben " + kAbc).find("line 2: this key is already that of ann") == 0);
  for (const char* limit : {"images", "images=", "images=-1", "images=1x", "images=9999999", "speed=1"}) {
    CHECK(fault("ann " + kAbc + " " + limit).find("is no limit") != std::string::npos);
  }
}

TEST_CASE("bearers") {
  CHECK(bearer_of("Bearer abc") == "abc");
  CHECK(bearer_of("bearer  abc") == "abc");
  for (const char* other : {"", "Bearer", "Bearer ", "Basic abc", "abc"}) CHECK(bearer_of(other).empty());
}

TEST_CASE("hosts") {
  CHECK(is_allowed_host("anything", {}));
  CHECK(is_allowed_host("Example.org:8080", {"localhost", "example.org"}));
  CHECK(is_allowed_host("[::1]:8080", {"[::1]"}));
  for (const char* host : {"", "evil.org", "example.org.evil.org", "example"}) {
    CHECK(!is_allowed_host(host, {"example.org"}));
  }
}

TEST_CASE("origins") {
  CHECK(is_allowed_origin("https://a.org", "https://a.org"));
  CHECK(is_allowed_origin("https://a.org", "*"));
  CHECK(!is_allowed_origin("https://a.org", ""));
  CHECK(!is_allowed_origin("", "*"));
  CHECK(!is_allowed_origin("https://a.org.evil.org", "https://a.org"));
}

TEST_CASE("traces") {
  const std::string trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  CHECK(is_traceparent(trace));
  CHECK(!is_traceparent(""));
  CHECK(!is_traceparent(trace + "-x"));
  CHECK(!is_traceparent("00-" + std::string(32, '0') + trace.substr(35)));
  for (std::size_t i = 0; i < trace.size(); ++i) {
    std::string broken = trace;
    broken[i] = 'G';
    CHECK(!is_traceparent(broken));
  }
}
