// The rules of a request, and text as Python sees it.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <limits>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/pipeline/request/request.hpp"
#include "core/text/python_text.hpp"

using namespace arcflow::core;

namespace {

// The facts of the embedded bundle that requests are held to.
Manifest tiny() {
  Manifest manifest;
  manifest.model = "tiny";
  manifest.limits = {{1, 1, 16}, {32, 64, 128}, {32, 64, 128}, {12, 12, 12}, 16};
  manifest.schedule = {1.7, 2.0, 2, 1.0, "bfloat16", 64};
  manifest.tokenizers["clip"] = {"clip.json", 24, 1832, "", 0, "max"};
  manifest.tokenizers["t5"] = {"t5.json", 12, 0, "", 0, "max"};
  return manifest;
}

struct Asked {
  std::vector<std::string> texts{"a rose"};
  std::vector<const char*> prompts;
  ArcflowRequest request = ARCFLOW_INIT(ArcflowRequest);

  CheckedRequest check(const Manifest& manifest = tiny()) {
    prompts.clear();
    for (const std::string& text : texts) prompts.push_back(text.c_str());
    if (request.prompts == nullptr && !texts.empty()) {
      request.prompts = prompts.data();
      request.prompt_count = prompts.size();
    }
    return check_request(manifest, request);
  }
  void refused(const std::string& words, const Manifest& manifest = tiny()) {
    try {
      check(manifest);
      FAIL_CHECK("was not refused: " << words);
    } catch (const Error& error) {
      CHECK(error.code() == ARCFLOW_INVALID_ARGUMENT);
      CHECK_MESSAGE(std::string(error.what()).find(words) != std::string::npos, error.what());
    }
  }
};

Asked with_text(const std::string& text) {
  Asked asked;
  asked.texts = {text};
  return asked;
}

}  // namespace

TEST_CASE("defaults are the bundle's") {
  Asked asked;
  const CheckedRequest checked = asked.check();
  CHECK(checked.prompts == std::vector<std::string>{"a rose"});
  CHECK(checked.nfe == 2);
  CHECK(checked.num_images == 1);
  CHECK(checked.width == 64);
  CHECK(checked.height == 64);
  CHECK(checked.seeds == std::vector<std::uint64_t>{0});
  CHECK(checked.sigmas.size() == 3);
  CHECK(checked.total() == 1);
}

TEST_CASE("numbers outside what is allowed") {
  const auto refused = [](void (*change)(ArcflowRequest&), const char* words) {
    Asked asked;
    change(asked.request);
    asked.refused(words);
  };
  refused([](ArcflowRequest& r) { r.nfe = 65; }, "nfe is 65; it must be from 1 to 64");
  refused([](ArcflowRequest& r) { r.num_images = 1025; }, "num_images is 1025; it must be from 1 to 1024");
  refused([](ArcflowRequest& r) { r.width = 16; }, "width is 16; it must be from 32 to 128");
  refused([](ArcflowRequest& r) { r.width = 4294967295U; }, "width is 4294967295");
  refused([](ArcflowRequest& r) { r.height = 33; }, "height is 33 px; it must be a multiple of 16 from 32 to 128");
  refused([](ArcflowRequest& r) { r.previews = 65; }, "previews is 65; it must be from 0 to 64");
  refused([](ArcflowRequest& r) { r.seed_count = 1; }, "seeds is NULL, but seed_count is not 0");
  refused([](ArcflowRequest& r) { r.timeout = -0.5; }, "timeout is -0.5");
  Asked two;
  two.texts = {"a", "b"};
  two.request.num_images = 1024;
  two.refused("the request asks for 2048 images in all; at most 1024 are allowed");
}

TEST_CASE("hostile counts are not walked") {
  Asked asked;
  const char* one = "a";
  asked.request.prompts = &one;
  asked.request.prompt_count = std::numeric_limits<std::size_t>::max();
  asked.request.num_images = 4294967295U;
  asked.refused("far too many images in all");
  asked.request.prompt_count = 1025;
  asked.request.num_images = 0;
  asked.refused("1025 images in all");
}

TEST_CASE("seeds count on from the first, modulo 2^64") {
  Asked asked;
  asked.request.seed = std::numeric_limits<std::uint64_t>::max();
  asked.request.num_images = 3;
  CHECK(asked.check().seeds == std::vector<std::uint64_t>{std::numeric_limits<std::uint64_t>::max(), 0, 1});
}

TEST_CASE("prompts that are no text") {
  Asked none;
  none.texts = {};
  none.refused("there is no prompt: give one prompt or more");
  Asked null;
  const char* nothing = nullptr;
  null.request.prompts = &nothing;
  null.request.prompt_count = 1;
  null.refused("prompts[0] is NULL");
  Asked missing;
  missing.texts = {};
  missing.request.prompt_count = 1;
  missing.refused("prompts is NULL; it may be only where tokens are given");
  for (const char* blank :
       {"", " ", "\t\n\v\f\r", "\x1c\x1d\x1e\x1f", "\xc2\x85", "\xc2\xa0", "\xe1\x9a\x80", "\xe2\x80\x8a",
        "\xe2\x80\xa8\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80 "}) {
    with_text(blank).refused("the prompt is empty");
  }
  for (const char* text : {"\xe2\x80\x8b", "\xef\xbb\xbf", "\xe1\xa0\x8e", "\x1b", "\x7f"}) {
    CHECK_NOTHROW(with_text(text).check());  // none of them is white space to str.strip
  }
  with_text(std::string(10001, 'x')).refused("the prompt has 10001 characters; at most 10000 are allowed");
  std::string wide;
  for (int i = 0; i < 10000; ++i) wide += "\xf0\x9f\x8e\x92";
  CHECK_NOTHROW(with_text(wide).check());
  with_text(wide + "!").refused("has 10001 characters");
  for (const char* bad : {"a \xff rose", "\x80", "\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xed\xbf\xbf", "\xf4\x90\x80\x80",
                          "\xf8\x88\x80\x80\x80", "\xe2\x82", "\xf0\x80\x80\x80", "\xe0\x80\x80", "\xe2\x28\xa1"}) {
    with_text(bad).refused("the prompt is not plain text: it holds a NUL or a byte that is not UTF-8");
  }
  for (const char* good :
       {"\xed\x9f\xbf", "\xee\x80\x80", "\xf4\x8f\xbf\xbf", "\xf0\x90\x80\x80", "\xc2\x80", "\xe0\xa0\x80"}) {
    CHECK_NOTHROW(with_text(good).check());
  }
}

TEST_CASE("tokens have their own rules") {
  const std::int64_t ids[] = {5, 6, 7, 8};
  ArcflowTokens tokens[2] = {ARCFLOW_INIT(ArcflowTokens), ARCFLOW_INIT(ArcflowTokens)};
  tokens[0].encoder = "clip";
  tokens[1].encoder = "t5";
  for (ArcflowTokens& one : tokens) {
    one.ids = ids;
    one.length = 2;
  }
  Asked asked;
  asked.texts = {"", "described only"};
  asked.request.tokens = tokens;
  asked.request.token_count = 2;

  const CheckedRequest checked = asked.check();
  CHECK(checked.tokens.at("clip").length == 24);
  CHECK(checked.tokens.at("clip").ids[2] == 1832);  // padded with the bundle's own
  CHECK(checked.tokens.at("clip").ids[24] == 7);
  CHECK(checked.tokens.at("t5").mask[1] == 1);
  CHECK(checked.tokens.at("t5").mask[2] == 0);

  const auto refused = [&](const char* words) { asked.refused(words); };
  SUBCASE("length") {
    tokens[0].length = 25;
    refused("the tokens of 'clip' have a length of 25; it must be from 1 to 24");
    tokens[0].length = 0;
    refused("length of 0");
    tokens[0].length = std::numeric_limits<std::size_t>::max();
    refused("it must be from 1 to 24");
  }
  SUBCASE("encoders") {
    tokens[1].encoder = "text";
    refused("'text' is no text encoder; tokens are given for every text encoder of tiny or for none: clip, t5");
    tokens[1].encoder = "clip";
    refused("tokens of 'clip' are given twice");
    tokens[1].encoder = nullptr;
    refused("the encoder of tokens[1] is NULL");
    asked.request.token_count = 1;
    refused("tokens are given for every text encoder");
    asked.request.tokens = nullptr;
    refused("tokens is NULL, but token_count is not 0");
  }
  SUBCASE("ids") {
    const std::int64_t negative[] = {5, -1, 7, 8};
    tokens[1].ids = negative;
    refused("a token of 't5' is -1; it must be from 0 to 2147483647");
    const std::int64_t large[] = {5, std::int64_t{1} << 31, 7, 8};
    tokens[1].ids = large;
    refused("a token of 't5' is 2147483648");
    tokens[1].ids = nullptr;
    refused("the ids of the tokens of 't5' are NULL");
  }
  SUBCASE("masks") {
    const std::int64_t two[] = {1, 2, 1, 1};
    tokens[0].mask = two;
    refused("the mask of 'clip' holds 2; it is 1 for a token and 0 for padding");
    const std::int64_t left[] = {1, 1, 0, 1};
    tokens[0].mask = left;
    refused("the mask of 'clip' has a token after padding");
    const std::int64_t none[] = {1, 1, 0, 0};
    tokens[0].mask = none;
    refused("a prompt has 0 tokens for 'clip'; it needs more than 0");
  }
  SUBCASE("a template's tokens are not enough") {
    Manifest manifest = tiny();
    manifest.tokenizers["clip"].drop = 2;
    asked.refused("a prompt has 2 tokens for 'clip'; it needs more than 2, which are the template's", manifest);
  }
  SUBCASE("padded to the longest alone") {
    Manifest manifest = tiny();
    manifest.tokenizers["clip"].pad = "longest";
    const std::int64_t mask[] = {1, 0, 1, 0};
    tokens[0].mask = mask;
    CHECK(asked.check(manifest).tokens.at("clip").length == 1);
  }
}

TEST_CASE("characters are counted as Python counts them") {
  CHECK(inspect_utf8("h\xc3\xa9llo").characters == 5);
  CHECK(inspect_utf8("\xff\xfe").characters == 2);
  CHECK(inspect_utf8("\xe2\x82").characters == 2);
  CHECK(inspect_utf8("").blank);
  CHECK_FALSE(inspect_utf8(" \xff").blank);
}
