// The C++ header over the real library: ownership, errors, callbacks that throw, and what it rejects by itself.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "arcflow/arcflow.hpp"

namespace {

const std::string kTiny = ARCFLOW_SOURCE_DIR "/engines/bundles/tiny-fp16-cpu";

const arcflow::Model& tiny() {
  static const arcflow::Model model = [] {
    arcflow::ContextOptions options;
    options.host_directory = ARCFLOW_TEST_HOSTS;
    arcflow::ModelOptions model_options;
    model_options.bundle = kTiny;
    model_options.threads = 1;
    return arcflow::Context(options).open(model_options);  // The context may go before its models.
  }();
  return model;
}

arcflow::Request face() {
  arcflow::Request request;
  request.prompts = {"a smiling face with sunglasses"};
  request.seed = 7;
  return request;
}

template <class Call>
void check_code(ArcflowCode code, const std::string& part, Call&& call) {
  try {
    call();
    FAIL_CHECK("nothing was thrown");
  } catch (const arcflow::Error& error) {
    CHECK(error.code() == code);
    CHECK_MESSAGE(std::string(error.what()).find(part) != std::string::npos, error.what());
  }
}

}  // namespace

TEST_CASE("a model says what it is") {
  const ArcflowModelInfo info = tiny().info();
  CHECK(std::string(info.model) == "tiny");
  CHECK(std::string(info.bundle) == kTiny);
  CHECK(std::string(info.backend).find("ONNX Runtime") == 0);
  CHECK(info.width.opt == 64);
  CHECK(tiny().memory().host_bytes > 13'000'000);
  CHECK(tiny().memory().device_bytes == 0);
}

TEST_CASE("images, floats and latents") {
  arcflow::Session session = tiny().session();
  arcflow::Request request = face();
  request.num_images = 3;
  const arcflow::Result result = session.generate(request, arcflow::Keep::kEverything);
  REQUIRE(result.size() == 3);
  CHECK(result.rgb8.size() == 3 * 64 * 64 * 3);
  CHECK(result.images.size() == result.rgb8.size());
  CHECK(result.latents.size() == 3 * 16 * 8 * 8);
  for (std::size_t i = 0; i < 64 * 64; ++i) {  // The first image's red channel, by both ways.
    const float level = std::nearbyint(std::clamp((result.images[i] + 1.0f) * 127.5f, 0.0f, 255.0f));
    CHECK(std::abs(level - static_cast<float>(result.rgb8[3 * i])) <= 1.0f);
  }
  const arcflow::Image second = result.image(1);
  CHECK(second.width == 64);
  CHECK(std::equal(second.rgb8.begin(), second.rgb8.end(), result.rgb8.begin() + 64 * 64 * 3));
  CHECK_THROWS_AS(result.image(3), std::out_of_range);
  CHECK(result.output.total_seconds > 0.0);
  CHECK(result.output.rgb8 == nullptr);

  // One by one with seeds of their own, by pixels alone, in another session: the same images.
  arcflow::Session other = tiny().session();
  request.num_images = 0;
  request.seed = 8;
  CHECK(other.generate(request).rgb8 == second.rgb8);
  CHECK(other.generate(request).latents.empty());
  request.seeds = {8};
  request.seed = 0;
  CHECK(other.generate(request).rgb8 == second.rgb8);
  CHECK(other.memory().host_bytes > 0);
}

TEST_CASE("into the caller's own buffers") {
  arcflow::Session session = tiny().session();
  session.warm_up(face());
  std::vector<std::uint8_t> pixels(tiny().shape(face()).rgb8_bytes);
  ArcflowOutput output = ARCFLOW_INIT(ArcflowOutput);
  output.rgb8 = pixels.data();
  output.rgb8_bytes = pixels.size();
  session.generate(face(), output);
  CHECK(pixels == session.generate(face()).rgb8);
  output.rgb8_bytes = 10;
  check_code(ARCFLOW_INVALID_ARGUMENT, "", [&] { session.generate(face(), output); });
}

TEST_CASE("callbacks") {
  arcflow::Session session = tiny().session();
  arcflow::Request request = face();
  request.previews = 3;
  std::vector<double> sigmas;
  std::vector<std::string> warnings;
  std::uint32_t steps = 0;
  request.on_step = [&](const ArcflowStep& step) { CHECK(step.index == steps++); };
  request.on_preview = [&](const ArcflowPreview& preview) { sigmas.push_back(preview.sigma); };
  request.on_warning = [&](const std::string& message) { warnings.push_back(message); };
  for (int i = 0; i < 40; ++i) request.prompts[0] += " and another face";
  session.generate(request);
  CHECK(steps == 2);
  CHECK(sigmas.size() == 3);
  CHECK(std::is_sorted(sigmas.rbegin(), sigmas.rend()));
  CHECK(!warnings.empty());
}

TEST_CASE("what a callback throws comes out as it was, and the session goes on") {
  struct Own {
    int value;
  };
  arcflow::Session session = tiny().session();
  const auto expected = session.generate(face()).rgb8;
  int steps = 0;
  arcflow::Request request = face();
  request.on_step = [&](const ArcflowStep&) {
    ++steps;
    throw Own{42};
  };
  try {
    session.generate(request);
    FAIL("nothing was thrown");
  } catch (const Own& own) {
    CHECK(own.value == 42);
  }
  CHECK(steps == 1);
  request.on_step = nullptr;
  request.previews = 2;
  request.on_preview = [](const ArcflowPreview&) { throw std::runtime_error("enough"); };
  CHECK_THROWS_WITH_AS(session.generate(request), "enough", std::runtime_error);
  request.on_preview = nullptr;
  request.previews = 0;
  request.prompts[0] += std::string(400, 'x');  // A warning's callback cannot end the request, but it is heard.
  request.on_warning = [](const std::string&) { throw std::runtime_error("cut"); };
  CHECK_THROWS_WITH_AS(session.generate(request), "cut", std::runtime_error);
  CHECK(session.generate(face()).rgb8 == expected);
}

TEST_CASE("a token ends a request from another thread, and every later one") {
  arcflow::CancelToken token;
  arcflow::Request request = face();
  request.cancel = &token;
  request.num_images = 500;
  arcflow::Session session = tiny().session();
  std::optional<std::thread> ender;
  request.on_step = [&](const ArcflowStep&) {
    if (!ender) ender.emplace([copy = token] { copy.cancel(); });
  };
  check_code(ARCFLOW_CANCELLED, "", [&] { session.generate(request); });
  ender->join();
  check_code(ARCFLOW_CANCELLED, "", [&] { session.generate(request); });
  request.cancel = nullptr;
  request.num_images = 1;
  CHECK(session.generate(request).size() == 1);
}

TEST_CASE("a deadline") {
  arcflow::Session session = tiny().session();
  arcflow::Request request = face();
  request.num_images = 500;
  request.timeout = 0.02;
  check_code(ARCFLOW_DEADLINE_EXCEEDED, "", [&] { session.generate(request); });
}

TEST_CASE("what is rejected") {
  check_code(ARCFLOW_BUNDLE_REJECTED, "no bundle", [] { arcflow::Context().open("./nowhere"); });
  check_code(ARCFLOW_BUNDLE_REJECTED, "", [] { arcflow::verify_bundle("/nowhere"); });
  arcflow::verify_bundle(kTiny);
  arcflow::Session session = tiny().session();
  arcflow::Request request = face();
  request.width = 33;
  check_code(ARCFLOW_INVALID_ARGUMENT, "33", [&] { session.generate(request); });
  request = face();
  request.prompts[0] += std::string(1, '\0');
  check_code(ARCFLOW_INVALID_ARGUMENT, "the prompt is not plain text", [&] { session.generate(request); });
  check_code(ARCFLOW_INVALID_ARGUMENT, "there is no prompt", [&] { session.generate({}); });
  check_code(ARCFLOW_INVALID_ARGUMENT, "", [&] { arcflow::encode_png({2, 2, std::vector<std::uint8_t>(11)}); });
  check_code(ARCFLOW_INVALID_ARGUMENT, "", [&] { tiny().describe(face(), 1); });
}

TEST_CASE("token ids in place of prompts") {
  arcflow::Session session = tiny().session();
  arcflow::Request request;
  request.tokens = {{"clip", 24, std::vector<std::int64_t>(24, 1), {}},
                    {"t5", 12, std::vector<std::int64_t>(12, 1), {}}};
  CHECK(session.generate(request).size() == 1);
  request.tokens[0].ids.pop_back();
  check_code(ARCFLOW_INVALID_ARGUMENT, "the tokens for 'clip' are 23 ids", [&] { session.generate(request); });
  request.tokens[0].length = 0;
  check_code(ARCFLOW_INVALID_ARGUMENT, "the tokens for 'clip'", [&] { session.generate(request); });
}

TEST_CASE("the settings and the file") {
  const std::string settings = tiny().describe(face());
  CHECK(settings.find(R"({"prompt": "a smiling face with sunglasses", "seed": 7, "model": "tiny", )") == 0);
  const arcflow::Image image{2, 1, {1, 2, 3, 4, 5, 6}};
  const std::string png = arcflow::encode_png(image, settings);
  CHECK(png.compare(1, 3, "PNG") == 0);
  CHECK(png.find("\"precision\": \"fp16\", \"prompt\": \"a smiling face with sunglasses\", \"seed\": 7") !=
        std::string::npos);  // Sorted.
  CHECK(arcflow::encode_png(image).size() < png.size());
}

TEST_CASE("noise can be made in parts") {
  const std::vector<float> whole = arcflow::noise(7, 0, 100);
  const std::vector<float> part = arcflow::noise(7, 60, 40);
  CHECK(std::equal(part.begin(), part.end(), whole.begin() + 60));
}

TEST_CASE("the logger lives as long as what may call it") {
  int lines = 0;
  std::optional<arcflow::Model> model;
  {
    arcflow::ContextOptions options;
    options.host_directory = ARCFLOW_TEST_HOSTS;
    options.least_level = ARCFLOW_LOG_DEBUG;
    options.logger = [&lines](ArcflowLogLevel, const std::string&) {
      ++lines;
      throw std::runtime_error("dropped");
    };
    model = arcflow::Context(options).open(kTiny);
  }
  CHECK(model->session().generate(face()).size() == 1);
  CHECK(lines > 0);
}

TEST_CASE("sessions of one model in several threads") {
  const auto expected = tiny().session().generate(face()).rgb8;
  std::vector<std::vector<std::uint8_t>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) threads.emplace_back([&result] { result = tiny().session().generate(face()).rgb8; });
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) CHECK(result == expected);
}

TEST_CASE("an older library is rejected, not called") {
  ArcflowApi old = *arcflow::linked_api();
  old.struct_size -= sizeof(void*);
  check_code(ARCFLOW_BACKEND_UNAVAILABLE, "older than this program's", [&] { arcflow::Context({}, &old); });
  check_code(ARCFLOW_BACKEND_UNAVAILABLE, "older than this program's", [] { arcflow::CancelToken(nullptr); });
}
