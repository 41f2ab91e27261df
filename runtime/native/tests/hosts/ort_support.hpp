// What the tests of the ONNX Runtime host stand on: its table, networks as the core describes them, and owners.
#pragma once

#include <dlfcn.h>
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "arcflow/arcflow.h"
#include "hosts/host.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ARCFLOW_TEST_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define ARCFLOW_TEST_SANITIZED
#endif
#endif

namespace arcflow::ort_test {

using Bytes = std::vector<char>;

inline const ArcflowHostApi& host() {
  static const ArcflowHostApi* const api = [] {
    void* module = dlopen(ARCFLOW_TEST_HOSTS "/libarcflow_host_ort.so", RTLD_NOW | RTLD_LOCAL);
    if (module == nullptr) throw std::runtime_error(dlerror());
    return reinterpret_cast<ArcflowHostGetApi>(dlsym(module, ARCFLOW_HOST_SYMBOL))(kArcflowHostVersion);
  }();
  return *api;
}

inline Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

// A network of the embedded bundle, as the core would describe it; the parts may be changed before it is used.
struct Described {
  std::string name, file = name + ".onnx";
  Bytes bytes;
  std::vector<std::string> input_names, output_names;
  std::vector<std::int32_t> input_types, output_types;
  std::vector<ArcflowHostPort> inputs, outputs;
  std::vector<ArcflowHostBlob> data;

  ArcflowHostNetwork network() {
    const auto ports = [](const auto& names, const auto& types) {
      std::vector<ArcflowHostPort> result;
      for (std::size_t i = 0; i < names.size(); ++i) result.push_back({names[i].c_str(), types[i], 0, {}, {}, {}, {}});
      return result;
    };
    inputs = ports(input_names, input_types);
    outputs = ports(output_names, output_types);
    return {name.c_str(),   {file.c_str(), bytes.data(), bytes.size()},
            data.data(),    data.size(),
            inputs.data(),  inputs.size(),
            outputs.data(), outputs.size()};
  }
};

inline Described tiny(const std::string& name) {
  const std::string folder = ARCFLOW_SOURCE_DIR "/engines/bundles/tiny-fp16-cpu/";
  const Bytes text = read_file(folder + "manifest.json");
  const auto spec = nlohmann::json::parse(text.begin(), text.end())["networks"][name];
  Described result{name, spec["file"], read_file(folder + std::string(spec["file"])), {}, {}, {}, {}, {}, {}, {}};
  const auto fill = [](const nlohmann::json& ports, auto& names, auto& types) {
    for (const auto& port : ports) {
      names.push_back(port["name"]);
      types.push_back(port["dtype"] == "int64" ? kArcflowInt64 : kArcflowFloat32);
    }
  };
  fill(spec["inputs"], result.input_names, result.input_types);
  fill(spec["outputs"], result.output_names, result.output_types);
  return result;
}

inline ArcflowHostOptions options(const char* library = nullptr) { return {library, 1, 0, nullptr, nullptr}; }

struct Model {
  ArcflowHostModel* model = nullptr;
  ArcflowHostError error{};
  std::int32_t code;
  explicit Model(Described network, const ArcflowHostOptions& how = options()) {
    const ArcflowHostNetwork described = network.network();
    code = host().model_create(&how, &described, 1, &model, &error);
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  ~Model() {
    if (model != nullptr) host().model_destroy(model);
  }
  std::string message() const { return error.message; }
};

// A session with one network's buffers, filled with a fixed pattern.
struct Vae {
  static constexpr std::int64_t kSide = 8;
  std::vector<std::int64_t> in, out;
  ArcflowHostSession* session = nullptr;
  ArcflowHostBuffer *latents = nullptr, *images = nullptr;
  ArcflowHostError error{};

  explicit Vae(const Model& model, std::int64_t batch = 1)
      : in{batch, 16, kSide, kSide}, out{batch, 3, kSide * 8, kSide * 8} {
    REQUIRE(host().session_create(model.model, nullptr, &session, &error) == ARCFLOW_OK);
    std::vector<float> values(static_cast<std::size_t>(batch * 16 * kSide * kSide));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i));
    REQUIRE(host().buffer_create(session, values.size() * 4, &latents, &error) == ARCFLOW_OK);
    REQUIRE(host().buffer_create(session, image_count() * 4, &images, &error) == ARCFLOW_OK);
    REQUIRE(host().write(session, latents, 0, values.data(), values.size() * 4, &error) == ARCFLOW_OK);
  }
  Vae(const Vae&) = delete;
  Vae& operator=(const Vae&) = delete;
  ~Vae() {
    host().buffer_destroy(latents);
    host().buffer_destroy(images);
    host().session_destroy(session);
  }
  std::size_t image_count() const { return static_cast<std::size_t>(out[0] * out[1] * out[2] * out[3]); }
  std::int32_t run() {
    const ArcflowHostBinding input{"latents", latents, 0, 4, in.data()};
    const ArcflowHostBinding output{"images", images, 0, 4, out.data()};
    return host().run(session, 0, &input, 1, &output, 1, &error);
  }
  std::vector<float> result() {
    std::vector<float> values(image_count());
    REQUIRE(host().read(session, images, 0, values.data(), values.size() * 4, &error) == ARCFLOW_OK);
    return values;
  }
  std::string message() const { return error.message; }
};

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace arcflow::ort_test
