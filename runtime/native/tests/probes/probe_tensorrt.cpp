// Opens the TensorRT host as the core does and asks it for a model: how that fails, for
// tests/native/hosts/test_tensorrt_host.py. Arguments: the module, the library to use ("" to search), the number of the
// GPU, a plan's file. Prints JSON.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "hosts/host.h"

int main(int count, char** arguments) {
  using Json = nlohmann::json;
  if (count != 5) return 2;
  void* module = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) {
    std::cout << Json{{"dlopen", dlerror()}} << std::endl;
    return 1;
  }
  const auto get = reinterpret_cast<ArcflowHostGetApi>(dlsym(module, ARCFLOW_HOST_SYMBOL));
  const ArcflowHostApi* api = get != nullptr ? get(kArcflowHostVersion) : nullptr;
  if (api == nullptr) return 1;
  std::ifstream file(arguments[4], std::ios::binary);
  const std::string plan{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const std::int64_t dims[] = {-1, 4};
  const ArcflowHostPort port{"x", kArcflowFloat32, 2, dims, nullptr, nullptr, nullptr};
  ArcflowHostNetwork network{};
  network.name = "backbone";
  network.model = {"backbone.plan", plan.data(), plan.size()};
  network.inputs = network.outputs = &port;
  network.input_count = network.output_count = 1;
  std::string log;
  ArcflowHostOptions options{};
  options.library = *arguments[2] != '\0' ? arguments[2] : nullptr;
  options.device = static_cast<std::uint32_t>(std::strtoul(arguments[3], nullptr, 10));
  options.log = [](void* user, std::int32_t, const char* message) { *static_cast<std::string*>(user) += message; };
  options.log_user = &log;
  ArcflowHostModel* model = nullptr;
  ArcflowHostError error{};
  const std::int32_t code = api->model_create(&options, &network, 1, &model, &error);
  std::cout << Json{{"name", api->name},
                    {"unknown", get(999) == nullptr},
                    {"code", code},
                    {"message", error.message},
                    {"log", log}}
            << std::endl;
  if (model != nullptr) api->model_destroy(model);
  return 0;
}
