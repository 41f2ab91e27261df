// Times the library on one bundle, one image at a time, and prints medians in seconds as one JSON object.
// Usage: probe_latency LIBRARY BUNDLE ONNXRUNTIME THREADS RUNS PROMPT   (driven by benchmarks/latency.py)
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "arcflow/arcflow.h"

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kWarmUp = 3;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

void check(const ArcflowApi& api, ArcflowStatus* status) {
  if (status == nullptr) return;
  std::fprintf(stderr, "error: %s\n", api.status_message(status));
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) {
    std::fprintf(stderr, "usage: probe_latency LIBRARY BUNDLE ONNXRUNTIME THREADS RUNS PROMPT\n");
    return 2;
  }
  void* library = dlopen(argv[1], RTLD_NOW);
  void* symbol = library == nullptr ? nullptr : dlsym(library, "arcflow_get_api");
  if (symbol == nullptr) {
    std::fprintf(stderr, "error: cannot load %s: %s\n", argv[1], dlerror());
    return 2;
  }
  const ArcflowApi* table = reinterpret_cast<decltype(&arcflow_get_api)>(symbol)(ARCFLOW_API_VERSION);
  if (table == nullptr) {
    std::fprintf(stderr, "error: %s has no version %u of the interface\n", argv[1], ARCFLOW_API_VERSION);
    return 2;
  }
  const ArcflowApi& api = *table;
  const int runs = std::atoi(argv[5]);

  const auto opening = Clock::now();
  ArcflowContext* context = nullptr;
  check(api, api.context_create(nullptr, &context));
  auto options = ARCFLOW_INIT(ArcflowModelOptions);
  options.bundle = argv[2];
  options.library = argv[3];
  options.threads = static_cast<std::uint32_t>(std::atoi(argv[4]));
  ArcflowModel* model = nullptr;
  check(api, api.model_open(context, &options, &model));
  ArcflowSession* session = nullptr;
  check(api, api.session_create(model, nullptr, &session));
  const double opened = since(opening);

  const char* prompts[] = {argv[6]};
  auto request = ARCFLOW_INIT(ArcflowRequest);
  request.prompts = prompts;
  request.prompt_count = 1;
  auto shape = ARCFLOW_INIT(ArcflowShape);
  check(api, api.model_shape(model, &request, &shape));
  std::vector<std::uint8_t> pixels(shape.rgb8_bytes);

  std::map<std::string, std::vector<double>> stages;
  std::vector<double> walls, overheads;
  for (int attempt = 0; attempt < kWarmUp + runs; ++attempt) {
    request.seed = static_cast<std::uint64_t>(attempt);
    auto output = ARCFLOW_INIT(ArcflowOutput);
    output.rgb8 = pixels.data();
    output.rgb8_bytes = pixels.size();
    const auto start = Clock::now();
    check(api, api.session_generate(session, &request, &output));
    const double wall = since(start);
    if (attempt < kWarmUp) continue;
    walls.push_back(wall);
    stages["tokenize"].push_back(output.tokenize_seconds);
    stages["text"].push_back(output.text_seconds);
    stages["noise"].push_back(output.noise_seconds);
    stages["backbone"].push_back(output.backbone_seconds);
    stages["solver"].push_back(output.solver_seconds);
    stages["vae"].push_back(output.vae_seconds);
    overheads.push_back(wall - output.text_seconds - output.backbone_seconds - output.vae_seconds);
  }
  nlohmann::json medians;
  for (const auto& [name, seconds] : stages) medians[name] = median(seconds);
  const nlohmann::json result = {{"open_s", opened},
                                 {"total_s", median(walls)},
                                 {"denoise_s", median(stages["backbone"]) + median(stages["solver"])},
                                 {"stages_s", medians},
                                 {"outside_networks_s", median(overheads)},
                                 {"nfe", shape.nfe},
                                 {"runs", runs}};
  std::printf("%s\n", result.dump().c_str());
  api.session_destroy(session);
  api.model_destroy(model);
  api.context_destroy(context);
  return 0;
}
