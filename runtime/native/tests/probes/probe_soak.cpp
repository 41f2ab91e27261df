// Generates many images with one model, sessions coming and going and some requests failing or being cancelled, and
// prints one JSON object: what was made, and the memory after the warm-up and at the same point of the last model's
// life, resident and handed out by malloc; the latter does not depend on how it is cut up. A leak checker does the
// rest. Usage: probe_soak BUNDLE ONNXRUNTIME COUNT
#include <malloc.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "arcflow/arcflow.h"

namespace {

constexpr int kWarmUp = 260;      // until every allocator has its arenas, also those of models that were closed
constexpr int kNewSession = 25;   // images of one session
constexpr int kNewModel = 100;    // images of one model
constexpr int kSample = 60;       // images of a model after which memory is looked at
constexpr int kDisturbance = 10;  // every tenth request is one that fails

const ArcflowApi& api() { return *arcflow_get_api(ARCFLOW_API_VERSION); }

// The code of a status that is destroyed with that.
int code(ArcflowStatus* status) {
  const int value = api().status_code(status);
  if (value != ARCFLOW_OK && value != ARCFLOW_CANCELLED && value != ARCFLOW_INVALID_ARGUMENT) {
    std::fprintf(stderr, "error: %s\n", api().status_message(status));
  }
  api().status_destroy(status);
  return value;
}

void require(ArcflowStatus* status) {
  if (code(status) != ARCFLOW_OK) std::exit(2);
}

long resident_kilobytes() {
  std::ifstream file("/proc/self/statm");
  long size = 0;
  long resident = 0;
  file >> size >> resident;
  return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

struct Memory {
  long resident = 0;
  long allocated = 0;

  static Memory now() {
    const auto heap = mallinfo2();
    return {resident_kilobytes(), static_cast<long>((heap.uordblks + heap.hblkhd) / 1024)};
  }
};

std::int32_t end_at_once(void*, const ArcflowStep*) { return 1; }

struct Program {
  const char* bundle;
  const char* onnxruntime;
  ArcflowContext* context = nullptr;
  ArcflowModel* model = nullptr;
  ArcflowSession* session = nullptr;
  std::vector<std::uint8_t> pixels;
  std::vector<float> latents;

  void open_model() {
    api().session_destroy(session);
    session = nullptr;
    api().model_destroy(model);
    model = nullptr;
    auto options = ARCFLOW_INIT(ArcflowModelOptions);
    options.bundle = bundle;
    options.library = onnxruntime;
    options.threads = 1;
    require(api().model_open(context, &options, &model));
  }

  void open_session() {
    api().session_destroy(session);
    session = nullptr;
    require(api().session_create(model, nullptr, &session));
  }

  int generate(ArcflowRequest request) {
    auto shape = ARCFLOW_INIT(ArcflowShape);
    const int checked = code(api().model_shape(model, &request, &shape));
    if (checked != ARCFLOW_OK) return checked;
    pixels.resize(shape.rgb8_bytes);
    latents.resize(shape.latent_floats);
    auto output = ARCFLOW_INIT(ArcflowOutput);
    output.rgb8 = pixels.data();
    output.rgb8_bytes = pixels.size();
    output.latents = latents.data();
    output.latent_floats = latents.size();
    return code(api().session_generate(session, &request, &output));
  }

  // A request that is rejected, one that a callback ends, or one whose token was cancelled before.
  int disturb(ArcflowRequest request, int kind) {
    ArcflowCancel* cancel = nullptr;
    if (kind == 0) request.width = 1;
    if (kind == 1) request.on_step = end_at_once;
    if (kind == 2) {
      require(api().cancel_create(&cancel));
      api().cancel_request(cancel);
      request.cancel = cancel;
    }
    const int result = generate(request);
    api().cancel_destroy(cancel);
    return result;
  }

  // The image's file, as a service would send it.
  std::size_t encode(const ArcflowRequest& request) {
    auto shape = ARCFLOW_INIT(ArcflowShape);
    require(api().model_shape(model, &request, &shape));
    ArcflowBytes* settings = nullptr;
    require(api().describe_image(model, &request, 0, &settings));
    ArcflowBytes* png = nullptr;
    require(api().encode_png(pixels.data(), shape.width, shape.height,
                             reinterpret_cast<const char*>(api().bytes_data(settings)), &png));
    const std::size_t size = api().bytes_size(png);
    api().bytes_destroy(png);
    api().bytes_destroy(settings);
    return size;
  }
};

}  // namespace

int main(int argc, char** argv) {
  const int count = argc == 4 ? std::atoi(argv[3]) : 0;
  if (count <= 0) {
    std::fprintf(stderr, "usage: probe_soak BUNDLE ONNXRUNTIME COUNT\n");
    return 2;
  }
  Program program{argv[1], argv[2], nullptr, nullptr, nullptr, {}, {}};
  require(api().context_create(nullptr, &program.context));
  const char* prompts[] = {"a smiling face with sunglasses", "picture of a pizza", "a red apple \xF0\x9F\x91\x9C"};
  int made = 0;
  int failed = 0;
  std::size_t bytes = 0;
  Memory warm;
  Memory end;
  for (int i = 0; made < count; ++i) {
    if (i % kNewModel == 0) program.open_model();
    if (i % kNewSession == 0) program.open_session();
    if (i % kNewModel == kSample && i >= kWarmUp) {
      end = Memory::now();
      if (warm.allocated == 0) warm = end;
    }
    auto request = ARCFLOW_INIT(ArcflowRequest);
    const char* const prompt = prompts[i % 3];
    request.prompts = &prompt;
    request.prompt_count = 1;
    request.seed = static_cast<std::uint64_t>(i);
    if (i % kDisturbance == kDisturbance - 1) {
      const int kind = i / kDisturbance % 3;
      const int expected = kind == 0 ? ARCFLOW_INVALID_ARGUMENT : ARCFLOW_CANCELLED;
      const int result = program.disturb(request, kind);
      if (result != expected) {
        std::fprintf(stderr, "error: request %d ended with code %d, not %d\n", i, result, expected);
        return 1;
      }
      ++failed;
      continue;
    }
    if (program.generate(request) != ARCFLOW_OK) return 1;
    bytes += program.encode(request);
    ++made;
  }
  api().session_destroy(program.session);
  api().model_destroy(program.model);
  api().context_destroy(program.context);
  std::printf(
      "{\"made\": %d, \"failed\": %d, \"png_bytes\": %zu, \"warm_resident_kilobytes\": %ld, "
      "\"end_resident_kilobytes\": %ld, \"warm_allocated_kilobytes\": %ld, \"end_allocated_kilobytes\": %ld}\n",
      made, failed, bytes, warm.resident, end.resident, warm.allocated, end.allocated);
  return 0;
}
