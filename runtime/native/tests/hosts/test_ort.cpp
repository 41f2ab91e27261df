// The ONNX Runtime host through its own table: loading, holding to the manifest, running, ending a run, failing.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "ort_support.hpp"

using namespace arcflow::ort_test;

TEST_CASE("a module of another version has no table") {
  void* module = dlopen(ARCFLOW_TEST_HOSTS "/libarcflow_host_ort.so", RTLD_NOW | RTLD_LOCAL);
  REQUIRE(module != nullptr);
  const auto get = reinterpret_cast<ArcflowHostGetApi>(dlsym(module, ARCFLOW_HOST_SYMBOL));
  CHECK(get(kArcflowHostVersion + 1) == nullptr);
  CHECK(std::string(get(kArcflowHostVersion)->name) == "ort");
}

TEST_CASE("a library that is missing or another one") {
  const Model missing(tiny("clip"), options("/nowhere/libonnxruntime.so"));
  CHECK(missing.code == ARCFLOW_BACKEND_UNAVAILABLE);
  CHECK(contains(missing.message(), "ONNX Runtime was not found: /nowhere/libonnxruntime.so"));
  CHECK(contains(missing.message(), "$ARCFLOW_ONNXRUNTIME"));
  const Model other(tiny("clip"), options("libm.so.6"));
  CHECK(other.code == ARCFLOW_BACKEND_UNAVAILABLE);
  CHECK(contains(other.message(), "libm.so.6 is not ONNX Runtime"));
}

TEST_CASE("what is prepared early is there, or fails without a word until a model is made") {
  const auto missing = options("/nowhere/libonnxruntime.so");
  CHECK(host().prepare(&missing) == nullptr);
  const auto usual = options();
  ArcflowHostPrepared* const prepared = host().prepare(&usual);
  REQUIRE(prepared != nullptr);
  const Model model(tiny("clip"));
  host().unprepare(prepared);  // The model goes on without it.
  CHECK(model.code == ARCFLOW_OK);
  CHECK(contains(host().model_backend(model.model), "ONNX Runtime 1."));
}

TEST_CASE("a network runs, and the same input gives the same bits") {
  const Model model(tiny("vae_decoder"));
  INFO(model.message());
  REQUIRE(model.code == ARCFLOW_OK);
  CHECK(contains(host().model_backend(model.model), "ONNX Runtime 1."));
  CHECK(contains(host().model_backend(model.model), ", CPU, 1 thread"));
  std::uint64_t bytes = 0, device = 1;
  host().model_memory(model.model, &bytes, &device);
  CHECK(bytes == tiny("vae_decoder").bytes.size());
  CHECK(device == 0);

  Vae vae(model);
  host().session_memory(vae.session, &bytes, &device);
  CHECK(bytes == (16 * 8 * 8 + 3 * 64 * 64) * 4);
  REQUIRE(vae.run() == ARCFLOW_OK);
  const std::vector<float> first = vae.result();
  for (const float value : first) REQUIRE(std::isfinite(value));
  CHECK(*std::max_element(first.begin(), first.end()) > *std::min_element(first.begin(), first.end()));
  REQUIRE(vae.run() == ARCFLOW_OK);
  CHECK(vae.result() == first);

  // Several sessions of one model at once.
  std::vector<std::vector<float>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&model, &result] {
      Vae own(model);
      for (int i = 0; i < 3; ++i) {
        if (own.run() != ARCFLOW_OK) return;
      }
      result = own.result();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) CHECK(result == first);
}

TEST_CASE("what does not fit is rejected and the session goes on") {
  const Model model(tiny("vae_decoder"));
  REQUIRE(model.code == ARCFLOW_OK);
  Vae vae(model);
  vae.in[1] = 8;
  vae.in[2] = 16;  // As many values, but another number of channels.
  CHECK(vae.run() == ARCFLOW_BACKEND_UNAVAILABLE);
  CHECK(contains(vae.message(), "the vae_decoder network failed on latents [1, 8, 16, 8]: "));
  vae.in = {2, 16, 8, 8};
  CHECK(vae.run() == ARCFLOW_INTERNAL);
  CHECK(contains(vae.message(), "8192 bytes from 0 on are not inside a buffer of 4096"));
  vae.in = {std::int64_t{1} << 60, 16, 8, 8};
  CHECK(vae.run() == ARCFLOW_INTERNAL);
  vae.in = {-1, 16, 8, 8};
  CHECK(vae.run() == ARCFLOW_INTERNAL);
  vae.in = {1, 16, 8, 8};
  vae.out = {1, 3, 32, 128};
  CHECK(vae.run() == ARCFLOW_BACKEND_UNAVAILABLE);
  vae.out = {1, 3, 64, 64};
  CHECK(vae.run() == ARCFLOW_OK);

  float value = 0;
  CHECK(host().read(vae.session, vae.latents, UINT64_MAX, &value, 4, &vae.error) == ARCFLOW_INTERNAL);
  CHECK(host().write(vae.session, vae.latents, 4094, &value, 4, &vae.error) == ARCFLOW_INTERNAL);
  CHECK(host().normal(vae.session, 1, vae.latents, 0, UINT64_MAX / 4 + 2, &vae.error) == ARCFLOW_INTERNAL);
#if !defined(ARCFLOW_TEST_SANITIZED)  // There, an allocation as large as this ends the program.
  ArcflowHostBuffer* huge = nullptr;
  CHECK(host().buffer_create(vae.session, std::uint64_t{1} << 60, &huge, &vae.error) == ARCFLOW_OUT_OF_MEMORY);
#endif
  std::uint64_t bytes = 0, device = 0;
  host().session_memory(vae.session, &bytes, &device);
  CHECK(bytes == (16 * 8 * 8 + 3 * 64 * 64) * 4);  // What failed is not counted.
}

TEST_CASE("a network that is not what the manifest says") {
  Described renamed = tiny("vae_decoder");
  renamed.output_names[0] = "pictures";
  const Model other(renamed);
  CHECK(other.code == ARCFLOW_BACKEND_UNAVAILABLE);
  CHECK(other.message() == "the vae_decoder network has outputs ['images']; the bundle's manifest says ['pictures']");

  Described retyped = tiny("vae_decoder");
  retyped.input_types[0] = kArcflowFloat16;
  const Model half(retyped);
  CHECK(half.code == ARCFLOW_BACKEND_UNAVAILABLE);
  CHECK(half.message() == "the vae_decoder network's 'latents' is float32; the bundle's manifest says float16");

  Described damaged = tiny("vae_decoder");
  damaged.bytes.resize(1000);
  const Model broken(damaged);
  CHECK(broken.code == ARCFLOW_BACKEND_UNAVAILABLE);
  CHECK(contains(broken.message(), "ONNX Runtime cannot load the vae_decoder network 'vae_decoder.onnx': "));
}

TEST_CASE("a run is ended from another thread, and the session is usable after it is rearmed") {
  const Model model(tiny("vae_decoder"));
  REQUIRE(model.code == ARCFLOW_OK);
  using Clock = std::chrono::steady_clock;
  Vae vae(model, 24);
  const auto begin = Clock::now();
  REQUIRE(vae.run() == ARCFLOW_OK);
  const auto whole = Clock::now() - begin;

  std::int32_t code = ARCFLOW_OK;
  Clock::duration delay{};
  for (int attempt = 0; attempt < 5 && code == ARCFLOW_OK; ++attempt) {  // The other thread may start too late.
    Clock::time_point interrupted;
    std::thread ender([&] {
      std::this_thread::sleep_for(whole / 5);
      interrupted = Clock::now();
      host().interrupt(vae.session);
    });
    code = vae.run();
    const auto end = Clock::now();
    ender.join();
    delay = end - interrupted;
    if (code == ARCFLOW_OK) host().rearm(vae.session);
  }
  CHECK(code == ARCFLOW_CANCELLED);
  CHECK_MESSAGE(delay < whole, "ended after " << std::chrono::duration<double>(delay).count() << " s");
  CHECK(vae.run() == ARCFLOW_CANCELLED);
  host().rearm(vae.session);
  CHECK(vae.run() == ARCFLOW_OK);
}

TEST_CASE("models come and go, in any order with their sessions") {
  for (int round = 0; round < 5; ++round) {
    auto model = std::make_unique<Model>(tiny("vae_decoder"));
    REQUIRE(model->code == ARCFLOW_OK);
    Vae vae(*model);
    model.reset();
    CHECK(vae.run() == ARCFLOW_OK);
  }
}

namespace {

// Just enough of protocol buffers to write a model: y = x + w, w[4] in the file "weights.bin" from byte 4 on.
std::string field(int number, const std::string& content) {
  std::string text{static_cast<char>(number << 3 | 2)};
  std::size_t size = content.size();
  for (; size > 127; size >>= 7) text += static_cast<char>(size | 128);
  return text + static_cast<char>(size) + content;
}
std::string field(int number, char value) { return {static_cast<char>(number << 3), value}; }
std::string entry(const std::string& key, const std::string& value) {
  return field(13, field(1, key) + field(2, value));
}

Described external(const std::string& location) {
  const std::string tensor = field(1, char{4}) + field(2, char{1}) + field(8, std::string("w")) +
                             entry("location", location) + entry("offset", "4") + entry("length", "16") +
                             field(14, char{1});
  const std::string shape = field(2, field(1, field(1, char{1}) + field(2, field(1, field(1, char{4})))));
  const std::string node = field(1, std::string("x")) + field(1, std::string("w")) + field(2, std::string("y")) +
                           field(4, std::string("Add"));
  const std::string graph = field(1, node) + field(2, std::string("g")) + field(5, tensor) +
                            field(11, field(1, std::string("x")) + shape) +
                            field(12, field(1, std::string("y")) + shape);
  const std::string model = field(1, char{8}) + field(7, graph) + field(8, field(2, char{17}));
  return {"sum", "sum.onnx", Bytes(model.begin(), model.end()), {"x"}, {"y"}, {kArcflowFloat32}, {kArcflowFloat32}, {},
          {},    {}};
}

}  // namespace

TEST_CASE("external data comes from the bytes that are given, and from nowhere else") {
  const float weights[] = {99, 1, 2, 3, 4};
  {
    Described sum = external("weights.bin");
    sum.data = {{"weights.bin", weights, sizeof(weights)}};
    const Model model(sum);
    INFO(model.message());
    REQUIRE(model.code == ARCFLOW_OK);
    std::uint64_t bytes = 0, device = 0;
    host().model_memory(model.model, &bytes, &device);
    CHECK(bytes == sum.bytes.size() + sizeof(weights));
    ArcflowHostSession* session = nullptr;
    ArcflowHostBuffer *x = nullptr, *y = nullptr;
    ArcflowHostError error{};
    REQUIRE(host().session_create(model.model, nullptr, &session, &error) == ARCFLOW_OK);
    REQUIRE(host().buffer_create(session, 20, &x, &error) == ARCFLOW_OK);
    REQUIRE(host().buffer_create(session, 16, &y, &error) == ARCFLOW_OK);
    const float values[] = {0, 10, 20, 30, 40};
    REQUIRE(host().write(session, x, 0, values, 20, &error) == ARCFLOW_OK);
    const std::int64_t four = 4;
    const ArcflowHostBinding input{"x", x, 4, 1, &four}, output{"y", y, 0, 1, &four};
    REQUIRE(host().run(session, 0, &input, 1, &output, 1, &error) == ARCFLOW_OK);
    float sums[4];
    REQUIRE(host().read(session, y, 0, sums, 16, &error) == ARCFLOW_OK);
    CHECK(sums[0] == 11);
    CHECK(sums[3] == 44);
    host().buffer_destroy(x);
    host().buffer_destroy(y);
    host().session_destroy(session);
  }
  // The file is there, but it is no part of what was verified.
  std::ofstream("weights.bin", std::ios::binary).write(reinterpret_cast<const char*>(weights), sizeof(weights));
  const Model stray(external("weights.bin"));
  CHECK(stray.code == ARCFLOW_BACKEND_UNAVAILABLE);
  std::remove("weights.bin");
  Described shortened = external("weights.bin");
  shortened.data = {{"weights.bin", weights, 16}};
  const Model beyond(shortened);
  CHECK(beyond.code == ARCFLOW_BACKEND_UNAVAILABLE);
}

TEST_CASE("the log goes to the callback") {
  static thread_local int lines = 0;
  ArcflowHostOptions with_log = options();
  with_log.log = [](void* user, std::int32_t level, const char* message) {
    if (level >= ARCFLOW_LOG_DEBUG && level <= ARCFLOW_LOG_ERROR && *message != '\0') ++*static_cast<int*>(user);
  };
  with_log.log_user = &lines;
  const Model model(tiny("vae_decoder"), with_log);
  REQUIRE(model.code == ARCFLOW_OK);
  Vae vae(model);
  vae.out = {1, 3, 32, 128};
  CHECK(vae.run() != ARCFLOW_OK);
  CHECK(lines > 0);  // A failing run is logged as an error.
}

TEST_CASE("arithmetic between the networks acts on buffers") {
  const Model model(tiny("vae_decoder"));
  REQUIRE(model.code == ARCFLOW_OK);
  Vae vae(model);
  ArcflowHostError error{};
  REQUIRE(host().normal(vae.session, 7, vae.latents, 16, 8, &error) == ARCFLOW_OK);
  std::int32_t finite = 0;
  REQUIRE(host().finite(vae.session, vae.latents, 1024, &finite, &error) == ARCFLOW_OK);
  CHECK(finite == 1);
  const float bad = std::nanf("");
  REQUIRE(host().write(vae.session, vae.latents, 4092, &bad, 4, &error) == ARCFLOW_OK);
  REQUIRE(host().finite(vae.session, vae.latents, 1024, &finite, &error) == ARCFLOW_OK);
  CHECK(finite == 0);

  // One mode: an Euler step from 1 to 0.5 along v = 2 with a gate of 1.
  const std::int64_t channels = 4;
  ArcflowHostBuffer *x = nullptr, *v = nullptr, *gate = nullptr;
  REQUIRE(host().buffer_create(vae.session, 16, &x, &error) == ARCFLOW_OK);
  REQUIRE(host().buffer_create(vae.session, 16, &v, &error) == ARCFLOW_OK);
  REQUIRE(host().buffer_create(vae.session, 4, &gate, &error) == ARCFLOW_OK);
  const float ones[] = {1, 1, 1, 1}, twos[] = {2, 2, 2, 2}, zero = 0;
  REQUIRE(host().write(vae.session, x, 0, ones, 16, &error) == ARCFLOW_OK);
  REQUIRE(host().write(vae.session, v, 0, twos, 16, &error) == ARCFLOW_OK);
  REQUIRE(host().write(vae.session, gate, 0, &zero, 4, &error) == ARCFLOW_OK);
  ArcflowHostAdvance step{x, v, gate, gate, x, kArcflowFloat32, 1, 1, 1, channels, 1, 1.0, 1.0, 0.5};
  REQUIRE(host().advance(vae.session, &step, &error) == ARCFLOW_OK);
  float state[4];
  REQUIRE(host().read(vae.session, x, 0, state, 16, &error) == ARCFLOW_OK);
  CHECK(state[0] == doctest::Approx(0.0));
  step.tokens = 2;
  CHECK(host().advance(vae.session, &step, &error) == ARCFLOW_INTERNAL);
  for (ArcflowHostBuffer* buffer : {x, v, gate}) host().buffer_destroy(buffer);
}
