// The page's policy, and what callers get who have it already.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <stdexcept>
#include <string>

#include "server/page/page.hpp"

using namespace arcflow::serve;

TEST_CASE("style and script are known by their SHA-256, and nothing else may run") {
  const std::string policy = content_policy("<style>abc</style><script type=\"module\">\n</script>");
  // Of "abc", from FIPS 180, and of a line's end.
  CHECK(policy.find("style-src 'sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0='") != std::string::npos);
  CHECK(policy.find("script-src 'sha256-AbpHGcgLb+kRsJGnwFEktk7uzpZOCcBY74+YBdrKVGs='") != std::string::npos);
  CHECK(policy.find("default-src 'none'; ") == 0);
  CHECK_THROWS_AS(content_policy("<style>abc</style>"), std::logic_error);
  CHECK_THROWS_AS(content_policy("<style>abc<script type=\"module\"></script>"), std::logic_error);
}

TEST_CASE("a file is sent once") {
  for (const auto give : {give_page, give_openapi}) {
    Response first, second, other;
    give({}, first);
    CHECK(first.status == 200);
    CHECK(first.headers.front().first == "ETag");
    CHECK(!first.body.empty());
    Request request;
    request.headers = {{"If-None-Match", "\"other\", W/" + first.headers.front().second}};
    give(request, second);
    CHECK(second.status == 304);
    CHECK(second.body.empty());
    request.headers = {{"If-None-Match", "\"other\""}};
    give(request, other);
    CHECK(other.status == 200);
    CHECK(other.body == first.body);
  }
}
