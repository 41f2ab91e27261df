// A C++ program against the installed headers and library: opens the model "tiny" by name and prints one image's
// digest. Usage: consumer_cpp ONNXRUNTIME
#include <arcflow/arcflow.hpp>
#include <cinttypes>
#include <cstdio>
#include <exception>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    arcflow::Context context;
    arcflow::ModelOptions options;
    options.bundle = "tiny";
    options.library = argv[1];
    options.threads = 1;
    const arcflow::Model model = context.open(options);
    arcflow::Session session = model.session();
    arcflow::Request request;
    request.prompts = {"a smiling face with sunglasses"};
    request.seed = 5;
    const arcflow::Result result = session.generate(request);

    std::uint64_t digest = 14695981039346656037u;  // FNV-1a
    for (const std::uint8_t value : result.rgb8) digest = (digest ^ value) * 1099511628211u;
    std::printf("%ux%u %016" PRIx64 "\n", result.shape.width, result.shape.height, digest);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
