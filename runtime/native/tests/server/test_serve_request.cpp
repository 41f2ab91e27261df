// The service's reading of requests: every field's rule, and bytes that mean harm.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "server/options.hpp"
#include "server/requests/base64.hpp"
#include "server/requests/request.hpp"

using namespace arcflow::serve;

namespace {

ModelDescription tiny() {
  ModelDescription model;
  model.name = "tiny";
  model.bundle = "tiny-fp16-cpu";
  model.batch = {1, 1, 16};
  model.width = model.height = {32, 64, 128};
  model.multiple = 16;
  model.nfe = 2;
  model.max_nfe = 8;
  return model;
}

GenerationRequest good(const std::string& body, const RequestRules& rules = {}) {
  try {
    return parse_generation(body, Catalogue({tiny()}), rules);
  } catch (const ApiError& error) {
    FAIL(body << ": " << error.message);
    throw;
  }
}

ApiError bad(const std::string& body, const RequestRules& rules = {}) {
  try {
    parse_generation(body, Catalogue({tiny()}), rules);
  } catch (const ApiError& error) {
    return error;
  }
  FAIL(body);
  return {};
}

std::string with(const std::string& field) { return "{\"prompt\": \"a dog\", " + field + "}"; }

}  // namespace

TEST_CASE("defaults are the model's and the server's") {
  const auto request = good("{\"prompt\": \"a dog\"}");
  CHECK(request.prompt == "a dog");
  CHECK(request.n == 1);
  CHECK((request.shape == Shape{64, 64, 2}));
  CHECK(!request.seed);
  CHECK(request.timeout == 60);
}

TEST_CASE("every field is read") {
  const auto request = good(
      R"({"prompt": "caf\u00e9 \ud83d\udc5f", "n": 3, "size": "96x48", "nfe": 4, "seed": 18446744073709551615,
          "timeout": 2.5, "model": "tiny-fp16-cpu", "response_format": "b64_json", "output_format": "png",
          "stream": false, "partial_images": 0, "background": "auto"})");
  CHECK(request.prompt == "caf\xc3\xa9 \xf0\x9f\x91\x9f");
  CHECK(request.n == 3);
  CHECK((request.shape == Shape{96, 48, 4}));
  CHECK(*request.seed == UINT64_MAX);
  CHECK(request.timeout == 2.5);
}

TEST_CASE("null counts as absent, and what changes nothing is ignored") {
  const auto request = good(with(
      R"("n": null, "size": "auto", "seed": null, "user": "u", "quality": "high", "style": "vivid", "metadata": {"a": [1]})"));
  CHECK(request.n == 1);
  CHECK(!request.seed);
}

TEST_CASE("a rule that is broken is named with its field") {
  const struct {
    const char* field;
    const char* param;
    const char* says;
  } cases[] = {
      {R"("n": 0)", "n", "from 1 to 10"},
      {R"("n": 11)", "n", "from 1 to 10"},
      {R"("n": -1)", "n", "n is -1"},
      {R"("n": 1.0)", "n", "whole number"},
      {R"("n": "1")", "n", "n is '1'"},
      {R"("n": true)", "n", "n is true"},
      {R"("n": 99999999999999999999999)", "n", "whole number"},
      {R"("seed": 18446744073709551616)", "seed", "whole number"},
      {R"("seed": -1)", "seed", "seed is -1"},
      {R"("n": 1.0)", "n", "n is 1.0; a whole number from 1 to 10 is needed, written without a point"},
      {R"("n": 1e400)", "n", "a number in n is too large"},
      {R"("metadata": {"a": 1e400})", "metadata", "a number in metadata is too large"},
      {R"("nfe": 9)", "nfe", "from 1 to 8"},
      {R"("size": "64")", "size", "WIDTHxHEIGHT"},
      {R"("size": "64x")", "size", "WIDTHxHEIGHT"},
      {R"("size": "64x64x64")", "size", "WIDTHxHEIGHT"},
      {R"("size": "-16x64")", "size", "WIDTHxHEIGHT"},
      {R"("size": "999999x64")", "size", "WIDTHxHEIGHT"},
      {R"("size": "1024x1024")", "size", "from 32 to 128"},
      {R"("size": "64x65")", "size", "multiple of 16"},
      {R"("size": 64)", "size", "a string is needed"},
      {R"("timeout": 0)", "timeout", "more than 0"},
      {R"("timeout": 61)", "timeout", "at most this server's 60.0"},
      {R"("timeout": -2)", "timeout", "more than 0"},
      {R"("timeout": "1")", "timeout", "seconds"},
      {R"("response_format": "url")", "response_format", "keeps no files that a link could lead to"},
      {R"("response_format": "file")", "response_format", "\"b64_json\""},
      {R"("output_format": "gif")", "output_format", "\"png\" or \"jpeg\" or \"webp\""},
      {R"("output_compression": 101)", "output_compression", "from 0 to 100"},
      {R"("background": "transparent")", "background", "opaque"},
      {R"("stream": 1)", "stream", "stream is 1; true or false is needed"},
      {R"("stream": "true")", "stream", "true or false"},
      {R"("stream": true, "n": 2)", "n", "a stream has one image"},
      {R"("stream": true, "partial_images": 9)", "partial_images", "from 0 to 8"},
      {R"("stream": true, "response_format": "url")", "response_format", "keeps no files"},
      {R"("partial_images": 2)", "partial_images", "add \"stream\": true"},
      {R"("partial_images": 2, "stream": false)", "partial_images", "add \"stream\": true"},
      {R"("steps": 2)", "steps", "no field 'steps'"},
  };
  for (const auto& one : cases) {
    const ApiError error = bad(with(one.field));
    CHECK(error.status == 400);
    CHECK(error.param == one.param);
    CHECK_MESSAGE(error.message.find(one.says) != std::string::npos, error.message);
  }
}

TEST_CASE("a stream has partials, and what has none has an equal shape") {
  const auto request = good(with(R"("stream": true, "partial_images": 8, "n": 1)"));
  CHECK(request.stream);
  CHECK((request.shape == Shape{64, 64, 2, 8}));
  const auto none = good(with(R"("stream": true)"));
  CHECK(none.stream);
  CHECK(none.shape == good(with(R"("partial_images": null, "stream": null)")).shape);
  CHECK(!(none.shape == request.shape));
}

TEST_CASE("a seed of minus nought is nought") { CHECK(good(with(R"("seed": -0)")).seed == 0); }

TEST_CASE("prompts") {
  CHECK(bad("{}").code == "missing_field");
  CHECK(bad(R"({"prompt": null})").code == "missing_field");
  CHECK(bad(R"({"prompt": " \t\n"})").message.find("empty") != std::string::npos);
  CHECK(bad(R"({"prompt": "a\u0000b"})").message.find("NUL") != std::string::npos);
  CHECK(bad(R"({"prompt": ["a"]})").message.find("a string is needed") != std::string::npos);
  const std::string most(10'000, 'a');
  CHECK(good("{\"prompt\": \"" + most + "\"}").prompt == most);
  CHECK(bad("{\"prompt\": \"" + most + "a\"}").message.find("10001 characters") != std::string::npos);
  std::string accents;  // characters are counted, not bytes
  for (int i = 0; i < 10'000; ++i) accents += "\xc3\xa9";
  CHECK(good("{\"prompt\": \"" + accents + "\"}").prompt == accents);
}

TEST_CASE("a model that is not here is 404") {
  const ApiError error = bad(with(R"("model": "dall-e-3")"));
  CHECK(error.status == 404);
  CHECK(error.code == "model_not_found");
}

TEST_CASE("a server may allow less than the model") {
  RequestRules rules;
  rules.images = 2;
  rules.nfe = 1;
  CHECK(good(with(R"("model": "tiny")"), rules).shape.nfe == 1);
  CHECK(bad(with(R"("nfe": 2)"), rules).message.find("from 1 to 1") != std::string::npos);
  CHECK(bad(with(R"("n": 3)"), rules).message.find("from 1 to 2") != std::string::npos);
}

TEST_CASE("fields that there are not are named, and those that there are") {
  const ApiError error = bad(R"({"prompt": "a", "steps": 1, "cfg": 2, "b": null, "c": 1, "d": 1, "e": 1, "f": 1})");
  CHECK(error.message ==
        "there are no fields 'c', 'cfg', 'd', 'e' and 2 more; there are prompt, n, size, response_format, model, seed, "
        "nfe, timeout, output_format, output_compression, stream, partial_images, background");
  CHECK(error.param == "c");
}

TEST_CASE("bytes that are no JSON object") {
  for (const std::string body :
       {"", "{", "[]", "1", "null", "\"a\"", "{\"prompt\": \"a\"} x", "{\"prompt\": \"\xff\"}",
        "{\"prompt\": \"\\ud800\"}", "{'prompt': 'a'}", "{\"prompt\": \"a\", \"prompt\": \"b\"}"}) {
    const ApiError error = bad(body);
    CHECK(error.status == 400);
    CHECK_MESSAGE(error.code == "invalid_json", body);
  }
}

TEST_CASE("what a message repeats is short") {
  const std::string name(100'000, 'a');
  const ApiError error = bad("{\"" + name + "\": 1, \"" + name + "\": 2}");
  CHECK(error.code == "invalid_json");
  CHECK(error.message.size() < 200);
}

TEST_CASE("nesting and numbers of fields are bounded") {
  const auto nested = [](std::size_t depth, const char* open, const char* shut) {
    std::string text;
    for (std::size_t i = 0; i < depth; ++i) text += open;
    for (std::size_t i = 0; i < depth; ++i) text += shut;
    return text;
  };
  CHECK(good(with("\"metadata\": " + nested(15, "[", "]"))).n == 1);
  CHECK(bad(with("\"metadata\": " + nested(16, "[", "]"))).message.find("deeper") != std::string::npos);
  CHECK(bad(with("\"metadata\": " + nested(1'000'000, "[", "]"))).message.find("deeper") != std::string::npos);
  CHECK(bad(nested(200'000, "{\"a\":", "}")).code == "invalid_json");
  std::string many = "{";
  for (int i = 0; i < 65; ++i) many += (i == 0 ? "\"f" : ", \"f") + std::to_string(i) + "\": 1";
  CHECK(bad(many + "}").message.find("more than 64 fields") != std::string::npos);
}

TEST_CASE("errors are OpenAI's shape, whatever bytes they repeat") {
  const auto body = nlohmann::json::parse(to_json(bad_request("bad \xff byte", "n")));
  CHECK(body["error"]["type"] == "invalid_request_error");
  CHECK(body["error"]["param"] == "n");
  CHECK(body["error"]["code"] == "invalid_value");
  CHECK(nlohmann::json::parse(to_json(plain_error(404)))["error"]["param"].is_null());
  CHECK(plain_error(500).type == "server_error");
}

TEST_CASE("header values") {
  CHECK(is_json_type("application/json"));
  CHECK(is_json_type("Application/JSON ; charset=utf-8"));
  for (const char* type :
       {"", "text/json", "application/jsonx", "application/x-www-form-urlencoded", ";application/json"}) {
    CHECK(!is_json_type(type));
  }
  CHECK(is_request_id("a-1_b"));
  CHECK(is_request_id(std::string(128, 'x')));
  CHECK(!is_request_id(std::string(129, 'x')));
  for (const char* id : {"", "a b", "a\nb", "caf\xc3\xa9", "\x7f"}) CHECK(!is_request_id(id));
}

TEST_CASE("base64") {
  CHECK(base64("") == "");
  CHECK(base64("f") == "Zg==");
  CHECK(base64("foobar") == "Zm9vYmFy");
  CHECK(base64(std::string("\0\xff\x80", 3)) == "AP+A");
}

TEST_CASE("options") {
  const char* arguments[] = {"arcflow-serve", "--port", "0", "--max-batch", "4", "--warm-up", "usual,96x48"};
  const auto parsed = parse_options(7, arguments);
  REQUIRE(std::holds_alternative<Options>(parsed));
  const auto& options = std::get<Options>(parsed);
  CHECK(options.port == 0);
  CHECK(options.host == "127.0.0.1");
  CHECK(options.models == std::vector<std::string>{"tiny"});
  CHECK(options.devices == std::vector<std::uint32_t>{0});
  const Catalogue alone({tiny()});
  const auto shapes = warm_up_shapes(options.warm_up, alone);
  REQUIRE(shapes[0].size() == 2);
  CHECK((shapes[0][1] == Shape{96, 48, 2}));
  CHECK(warm_up_shapes({"none"}, alone)[0].empty());
  CHECK_THROWS_WITH(warm_up_shapes({"1x1"}, alone), doctest::Contains("--warm-up: the width of size is 1 px"));
  for (const char* wrong : {"--port=65536", "--queue=0", "--nosuch", "--timeout=0", "--timeout=nan", "--timeout=inf",
                            "--timeout=-1", "--device=-1", "--device=0,0", "--device=0,x", "--grace=NaN",
                            "--log-level=loud", "--log-format=xml", "--workers=many"}) {
    const char* words[] = {"arcflow-serve", wrong};
    const auto end = parse_options(2, words);
    REQUIRE_MESSAGE(std::holds_alternative<Exit>(end), wrong);
    CHECK(std::get<Exit>(end).code == 2);
    const std::string& text = std::get<Exit>(end).text;
    CHECK(text.find('\n') == text.size() - 1);
  }
}
