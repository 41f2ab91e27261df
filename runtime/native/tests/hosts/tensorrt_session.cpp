// The TensorRT host's own logic, driven through its table of functions over stand-ins for CUDA and TensorRT: streams,
// staging, recordings and their rejections, interrupts, errors, and that nothing is leaked. Where there is a GPU the
// real libraries take their place; this says nothing about those. Built by hosts/tensorrt/CMakeLists.txt.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <chrono>
#include <cmath>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "core/error.hpp"
#include "core/numerics/compute.hpp"
#include "cuda/launch.hpp"
#include "hosts/host.h"
#include "hosts/tensorrt/library.hpp"

namespace arcflow::tensorrt {

Library open_library(const char*) {
  return {"TensorRT", "10.14.1", [](void* logger, std::int32_t) noexcept -> void* {
            nvinfer1::tensorrt.logger = static_cast<nvinfer1::ILogger*>(logger);
            return new nvinfer1::IRuntime;
          }};
}

}  // namespace arcflow::tensorrt

// The kernels' launches, on the stand-in's stream with the CPU's arithmetic.
namespace arcflow::cuda {

cudaError_t advance(const Advance& a, cudaStream_t stream) {
  stand_in_put(stream, [a] {
    const core::Segment s{1, a.tokens, a.modes, a.channels, a.positions, a.sigma_src, a.sigma_a, a.sigma_b};
    core::advance(s, a.x, static_cast<const float*>(a.means), static_cast<const float*>(a.logweights),
                  static_cast<const float*>(a.loggammas), a.out);
  });
  return cudaSuccess;
}
cudaError_t normal(std::uint64_t seed, std::uint64_t first, std::uint64_t count, float* out, cudaStream_t stream) {
  stand_in_put(stream, [=] { core::normal(seed, first, count, out); });
  return cudaSuccess;
}
cudaError_t unpack(const float* tokens, float* latents, std::int64_t batch, std::int64_t rows, std::int64_t columns,
                   std::int64_t channels, std::int64_t patch, const float* scaling, const float* shift,
                   std::int64_t factor_count, cudaStream_t stream) {
  const std::vector<float> by(scaling, scaling + factor_count), plus(shift, shift + factor_count);
  stand_in_put(stream, [=] {
    core::unpack(tokens, batch, rows, columns, channels, patch, by.empty() ? nullptr : by.data(),
                 plus.empty() ? nullptr : plus.data(), factor_count, latents);
  });
  return cudaSuccess;
}
cudaError_t to_rgb8(const float* images, std::uint8_t* pixels, std::int64_t batch, std::int64_t height,
                    std::int64_t width, cudaStream_t stream) {
  stand_in_put(stream, [=] { core::to_rgb8(images, batch, height, width, pixels); });
  return cudaSuccess;
}
cudaError_t find_nonfinite(const float* values, std::uint64_t count, std::uint32_t* found, cudaStream_t stream) {
  stand_in_put(stream, [=] { *found = core::all_finite(values, count) ? 0 : 1; });
  return cudaSuccess;
}

}  // namespace arcflow::cuda

extern "C" const ArcflowHostApi* arcflow_host_get_api(std::uint32_t version);

namespace {

using nvinfer1::tensorrt;

struct Failed {
  std::int32_t code;
  std::string message;
};

struct Host {
  explicit Host(const char* plan = "backbone.plan", std::int32_t type = kArcflowFloat32, std::size_t outputs = 1) {
    const std::int64_t dims[] = {-1, 4};
    const ArcflowHostPort x{"x", type, 2, dims, nullptr, nullptr, nullptr};
    const ArcflowHostPort y[] = {{"y", kArcflowFloat32, 2, dims, nullptr, nullptr, nullptr},
                                 {"z", kArcflowFloat32, 2, dims, nullptr, nullptr, nullptr}};
    ArcflowHostNetwork network{};
    network.name = "backbone";
    network.model = {plan, "plan", 4};
    network.inputs = &x;
    network.input_count = 1;
    network.outputs = y;
    network.output_count = outputs;
    ArcflowHostOptions options{};
    try {
      check(api->model_create(&options, &network, 1, &model, &error));
      check(api->session_create(model, nullptr, &session, &error));
      for (ArcflowHostBuffer*& buffer : buffers) check(api->buffer_create(session, 4096, &buffer, &error));
    } catch (const Failed&) {
      close();
      throw;
    }
  }
  ~Host() { close(); }
  void close() {
    for (ArcflowHostBuffer* buffer : buffers) {
      if (buffer != nullptr) api->buffer_destroy(buffer);
    }
    if (session != nullptr) api->session_destroy(session);
    if (model != nullptr) api->model_destroy(model);
  }
  void check(std::int32_t code) {
    if (code != ARCFLOW_OK) throw Failed{code, error.message};
  }
  std::int32_t run(int from = 0, int to = 1, std::int64_t rows = 2, std::uint64_t offset = 0) {
    const std::int64_t dims[] = {rows, 4};
    const ArcflowHostBinding x{"x", buffers[from], offset, 2, dims}, y{"y", buffers[to], 0, 2, dims};
    return api->run(session, 0, &x, 1, &y, 1, &error);
  }
  void write(const std::vector<float>& values, int to = 0) {
    check(api->write(session, buffers[to], 0, values.data(), values.size() * 4, &error));
  }
  std::vector<float> read(int from, std::size_t count = 8) {
    std::vector<float> values(count);
    check(api->read(session, buffers[from], 0, values.data(), count * 4, &error));
    return values;
  }
  // A stretch of two evaluations, from buffer 0 over 1 to 2: y = 4 x + 3. The mode it had.
  std::int32_t stretch(std::uint64_t key, std::int64_t rows = 2) {
    std::int32_t mode = -1;
    check(api->graph_begin(session, key, &mode, &error));
    if (mode != 2) {
      check(run(0, 1, rows));
      check(run(1, 2, rows));
    }
    check(api->graph_end(session, &error));
    return mode;
  }

  const ArcflowHostApi* api = arcflow_host_get_api(kArcflowHostVersion);
  ArcflowHostError error{};
  ArcflowHostModel* model = nullptr;
  ArcflowHostSession* session = nullptr;
  ArcflowHostBuffer* buffers[3] = {};
};

struct NothingLeft {
  ~NothingLeft() {
    CHECK(tensorrt.contexts == 0);
    CHECK(stand_in.graphs == 0);
    CHECK(stand_in.memory.empty());
    CHECK(tensorrt.broken == "");
    tensorrt = {};
    stand_in = {};
  }
};

const std::vector<float> kOnes(8, 1.0f);

}  // namespace

TEST_CASE("two evaluations on one stream, without waiting") {
  const NothingLeft after;
  Host host;
  CHECK(std::string(host.api->model_backend(host.model)) == "TensorRT 10.14.1, Stand-in (compute capability 9.0)");
  std::vector<float> source = kOnes;
  host.write(source);
  source.assign(8, 99.0f);  // may be reused at once
  host.check(host.run(0, 1));
  host.check(host.run(1, 2));
  CHECK(tensorrt.evaluations == 0);
  CHECK(host.read(2) == std::vector<float>(8, 7.0f));
  CHECK(tensorrt.evaluations == 2);
}

TEST_CASE("a stretch is done, captured, and replayed on new input") {
  const NothingLeft after;
  Host host;
  host.write(kOnes);
  CHECK(host.stretch(5) == 1);
  CHECK(host.read(2) == std::vector<float>(8, 7.0f));
  CHECK(tensorrt.evaluations == 2);  // once, though recorded too
  for (const float value : {2.0f, 3.0f}) {
    host.write(std::vector<float>(8, value));
    CHECK(host.stretch(5) == 2);
    CHECK(host.read(2) == std::vector<float>(8, 4.0f * value + 3.0f));
  }
  CHECK(stand_in.launches == 2);
  // Another shape, and evaluations outside: the first recording's contexts are not touched.
  CHECK(host.stretch(6, 1) == 1);
  host.check(host.run(0, 1, 1));
  CHECK(host.stretch(5) == 2);
  CHECK(host.stretch(6, 1) == 2);
  host.api->graph_reset(host.session);
  CHECK(host.stretch(5) == 1);
}

TEST_CASE("what is written and copied in a stretch is replayed") {
  const NothingLeft after;
  Host host;
  for (int turn = 0; turn < 2; ++turn) {
    std::int32_t mode = -1;
    host.check(host.api->graph_begin(host.session, 1, &mode, &host.error));
    CHECK(mode == turn + 1);
    if (mode != 2) {
      host.write(kOnes);
      host.check(host.api->copy(host.session, host.buffers[0], 0, host.buffers[1], 0, 32, &host.error));
      host.check(host.api->normal(host.session, 3, host.buffers[2], 0, 8, &host.error));
    }
    host.check(host.api->graph_end(host.session, &host.error));
    CHECK(host.read(1) == kOnes);
    std::vector<float> noise(8);
    arcflow::core::normal(3, 0, 8, noise.data());
    CHECK(host.read(2) == noise);
    host.write(std::vector<float>(8, 0.0f), 1);
    host.write(std::vector<float>(8, 0.0f), 2);
  }
}

TEST_CASE("a rejected capture loses nothing") {
  const NothingLeft after;
  Host host;
  host.write(kOnes);
  stand_in.refuse_capture = true;
  CHECK(host.stretch(5) == 1);
  CHECK(host.read(2) == std::vector<float>(8, 7.0f));
  stand_in.refuse_capture = false;
  host.write(std::vector<float>(8, 2.0f));
  CHECK(host.stretch(5) == 0);  // and is not tried again
  CHECK(host.read(2) == std::vector<float>(8, 11.0f));
  CHECK(stand_in.launches == 0);
}

TEST_CASE("a stretch that waits, or is never ended, is done all the same") {
  const NothingLeft after;
  Host host;
  host.write(kOnes);
  std::int32_t mode = -1;
  host.check(host.api->graph_begin(host.session, 1, &mode, &host.error));
  host.check(host.run(0, 1));
  CHECK(host.read(1) == std::vector<float>(8, 3.0f));
  host.check(host.api->graph_end(host.session, &host.error));
  host.check(host.api->graph_begin(host.session, 1, &mode, &host.error));
  CHECK(mode == 0);
  host.check(host.api->graph_end(host.session, &host.error));
  host.check(host.api->graph_begin(host.session, 2, &mode, &host.error));
  host.check(host.run(0, 1));
  CHECK(host.stretch(2) == 1);
  host.check(host.api->graph_end(host.session, &host.error));  // one too many
}

TEST_CASE("a failure in a stretch is told, and the next try records") {
  const NothingLeft after;
  Host host;
  host.write(kOnes);
  std::int32_t mode = -1;
  host.check(host.api->graph_begin(host.session, 1, &mode, &host.error));
  tensorrt.fail = true;
  CHECK(host.run() == ARCFLOW_BACKEND_UNAVAILABLE);
  CHECK(std::string(host.error.message).find("network 'backbone'") == 0);
  CHECK(std::string(host.error.message).find("no such luck") != std::string::npos);
  host.check(host.api->graph_end(host.session, &host.error));
  CHECK(host.stretch(1) == 1);
  CHECK(host.read(2) == std::vector<float>(8, 7.0f));
}

TEST_CASE("an interrupt ends a wait, and what comes after, until it is rearmed") {
  const NothingLeft after;
  Host host;
  host.write(kOnes);
  CHECK(host.stretch(1) == 1);
  stand_in.stuck = true;
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    host.api->interrupt(host.session);
  });
  float value = 0.0f;
  CHECK(host.api->read(host.session, host.buffers[2], 0, &value, 4, &host.error) == ARCFLOW_CANCELLED);
  other.join();
  CHECK(host.run() == ARCFLOW_CANCELLED);
  std::int32_t mode = -1;
  host.check(host.api->graph_begin(host.session, 1, &mode, &host.error));
  CHECK(host.api->graph_end(host.session, &host.error) == ARCFLOW_CANCELLED);
  CHECK(stand_in.launches == 0);
  host.api->graph_reset(host.session);  // while the device is busy yet
  stand_in.stuck = false;
  host.api->rearm(host.session);
  CHECK(host.stretch(1) == 1);
  CHECK(host.read(2) == std::vector<float>(8, 7.0f));
}

TEST_CASE("large and many writes pass through staging in order") {
  const NothingLeft after;
  Host host;
  std::vector<float> large(3 << 20);
  std::iota(large.begin(), large.end(), 0.0f);
  ArcflowHostBuffer* buffer = nullptr;
  host.check(host.api->buffer_create(host.session, large.size() * 4, &buffer, &host.error));
  host.check(host.api->write(host.session, buffer, 0, large.data(), large.size() * 4, &host.error));
  for (int i = 0; i < 40; ++i) host.write(std::vector<float>(8, static_cast<float>(i)));
  std::vector<float> back(large.size());
  host.check(host.api->read(host.session, buffer, 0, back.data(), back.size() * 4, &host.error));
  CHECK(back == large);
  CHECK(host.read(0) == std::vector<float>(8, 39.0f));
  std::uint64_t main_bytes = 0, device_bytes = 0;
  host.api->session_memory(host.session, &main_bytes, &device_bytes);
  CHECK(main_bytes > 0);
  CHECK(main_bytes < (64u << 20));
  CHECK(device_bytes >= large.size() * 4 + 3 * 4096 + 1024);
  host.api->buffer_destroy(buffer);
}

TEST_CASE("finite, latents, pixels and the solver reach their buffers") {
  const NothingLeft after;
  Host host;
  std::int32_t finite = -1;
  host.write(kOnes);
  host.check(host.api->finite(host.session, host.buffers[0], 8, &finite, &host.error));
  CHECK(finite == 1);
  host.write({1.0f, NAN});
  host.check(host.api->finite(host.session, host.buffers[0], 8, &finite, &host.error));
  CHECK(finite == 0);
  std::vector<float> tokens(16);
  std::iota(tokens.begin(), tokens.end(), 0.0f);
  host.write(tokens);
  float scaling[] = {2.0f}, shift[] = {1.0f};
  const ArcflowHostUnpack unpack{host.buffers[0], host.buffers[1], 1, 1, 2, 2, 2, scaling, shift, 1};
  host.check(host.api->unpack(host.session, &unpack, &host.error));
  scaling[0] = 100.0f;  // the caller's again
  std::vector<float> latents(16);
  const float by[] = {2.0f};
  arcflow::core::unpack(tokens.data(), 1, 1, 2, 2, 2, by, shift, 1, latents.data());
  CHECK(host.read(1, 16) == latents);
  ArcflowHostAdvance advance{};
  advance.x = advance.out = host.buffers[0];
  advance.means = host.buffers[0];
  advance.logweights = host.buffers[2];
  advance.batch = advance.tokens = advance.modes = 1;
  advance.channels = advance.positions = 4;
  advance.sigma_src = advance.sigma_a = 1.0;
  advance.sigma_b = 0.5;
  host.write(std::vector<float>(4, 0.0f), 2);
  host.check(host.api->advance(host.session, &advance, &host.error));  // one mode needs no rates
  CHECK(host.read(0, 4) == std::vector<float>{0.0f, 0.5f, 1.0f, 1.5f});
  host.check(host.api->to_rgb8(host.session, host.buffers[0], host.buffers[1], 1, 1, 1, &host.error));
}

TEST_CASE("what does not fit is rejected") {
  const NothingLeft after;
  Host host;
  CHECK(host.run(0, 1, 9) == ARCFLOW_BACKEND_UNAVAILABLE);
  CHECK(std::string(host.error.message).find("[9, 4] of 'x' is outside the plan's profile") != std::string::npos);
  CHECK(host.run(0, 1, 2, 16) == ARCFLOW_BACKEND_UNAVAILABLE);    // not a multiple of 256
  CHECK(host.run(0, 1, 2, 4096) == ARCFLOW_BACKEND_UNAVAILABLE);  // nothing left there
  CHECK(host.run(0, 1, 2, 5000) == ARCFLOW_INTERNAL);
  CHECK(host.api->run(host.session, 7, nullptr, 0, nullptr, 0, &host.error) == ARCFLOW_INTERNAL);
  float value = 0.0f;
  CHECK(host.api->read(host.session, host.buffers[0], 4093, &value, 4, &host.error) == ARCFLOW_INTERNAL);
  CHECK(host.api->write(host.session, host.buffers[0], UINT64_MAX, &value, 4, &host.error) == ARCFLOW_INTERNAL);
  CHECK(host.api->normal(host.session, 1, host.buffers[0], 0, 1025, &host.error) == ARCFLOW_INTERNAL);
  CHECK(host.api->normal(host.session, 1, host.buffers[0], 0, UINT64_MAX, &host.error) == ARCFLOW_INTERNAL);
  CHECK(host.api->finite(host.session, host.buffers[0], 1025, nullptr, &host.error) == ARCFLOW_INTERNAL);
  CHECK(host.api->to_rgb8(host.session, host.buffers[0], host.buffers[1], 1, 100, 100, &host.error) ==
        ARCFLOW_INTERNAL);
  CHECK(host.api->to_rgb8(host.session, host.buffers[0], host.buffers[1], -1, 1, 1, &host.error) == ARCFLOW_INTERNAL);
  host.check(host.run(0, 1, 8));  // and the session goes on
}

TEST_CASE("plans that do not load, do not fit the manifest or the memory") {
  const NothingLeft after;
  const auto failure = [](auto... arguments) {
    try {
      const Host host(arguments...);
    } catch (const Failed& failed) {
      return failed;
    }
    return Failed{ARCFLOW_OK, ""};
  };
  CHECK(failure("backbone.onnx").code == ARCFLOW_INVALID_ARGUMENT);
  CHECK(failure("backbone.plan", kArcflowInt64).code == ARCFLOW_BUNDLE_REJECTED);
  const Failed missing = failure("backbone.plan", kArcflowFloat32, 2u);
  CHECK(missing.code == ARCFLOW_BUNDLE_REJECTED);
  CHECK(missing.message.find("no output 'z'") != std::string::npos);
  CHECK(failure("backbone.plan", kArcflowFloat32, 0u).code == ARCFLOW_BUNDLE_REJECTED);
  tensorrt.refuse_plan = "the plan was built for compute 8.9";
  const Failed other = failure("backbone.plan");
  CHECK(other.code == ARCFLOW_BUNDLE_REJECTED);
  CHECK(other.message.find("compute capability 9.0") != std::string::npos);
  CHECK(other.message.find("built for compute 8.9") != std::string::npos);
  tensorrt.refuse_plan = "Cuda Runtime (out of memory)";
  CHECK(failure("backbone.plan").code == ARCFLOW_OUT_OF_MEMORY);
  tensorrt.refuse_plan = "";
  stand_in.full = true;
  const Failed full = failure("backbone.plan");
  CHECK(full.code == ARCFLOW_OUT_OF_MEMORY);
  CHECK(full.message.find("are free") != std::string::npos);
}
