// Options by CLI11. A bad one is one line and exit code 2, as everywhere in ArcFlow.
#include "server/options.hpp"

#include <arcflow/arcflow.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <stdexcept>

#include "server/requests/request.hpp"

namespace arcflow::serve {
namespace {

constexpr const char* kExamples = R"(examples:
  arcflow-serve
  arcflow-serve --model engines/bundles/tiny-fp32-cpu --port 9000 --workers 2 --threads 1
  arcflow-serve --host 0.0.0.0 --queue 256 --batch-wait 5 --log-format json
  curl -s http://127.0.0.1:8080/v1/images/generations -H 'Content-Type: application/json' \
       -d '{"prompt": "a dark ankle boot", "seed": 7}'

SIGTERM or SIGINT: new requests get 503, accepted ones are finished, exit code 0. A second signal ends it at once.
)";

}  // namespace

std::variant<Options, Exit> parse_options(int count, const char* const* arguments) {
  Options options;
  ModelOptions& model = options.model;
  model.bundle = "tiny";
  CLI::App app("Serve images over HTTP, as OpenAI's images API has it.", "arcflow-serve");
  app.footer(kExamples);
  app.set_version_flag("--version", "arcflow-serve, interface version " + std::to_string(ARCFLOW_API_VERSION));
  app.get_formatter()->column_width(32);
  app.option_defaults()->always_capture_default()->take_last();
  const auto text = [&app](const char* name, auto& value, const char* type, const char* help) {
    return app.add_option(name, value, help)->type_name(type);
  };
  const auto number = [&text](const char* name, auto& value, auto low, auto high, const char* type, const char* help) {
    text(name, value, type, help)->check(CLI::Range(low, high));
  };
  text("--model", model.bundle, "NAME", "a model's name, or a bundle's folder");
  text("--precision", model.precision, "NAME", "which bundle of the model: fp32, ...");
  text("--target", model.target, "NAME", "which bundle of the model: cpu, sm120, ...");
  text("--library", model.library, "PATH", "libonnxruntime (default: $ARCFLOW_ONNXRUNTIME, then the loader's search)");
  number("--threads", model.threads, 0, 1024, "N", "compute threads of a network; 0: the cores, at most 8");
  number("--device", model.device, 0, 1023, "N", "ordinal of the GPU");
  text("--host", options.host, "ADDRESS", "address to listen on");
  number("--port", options.port, 0, 65535, "N", "0: any free one, which the log tells");
  number("--admin-port", options.admin_port, 0, 65535, "N", "a port of their own for /health, /ready and /metrics");
  number("--workers", options.workers, 1, 64, "N", "sessions that make images at the same time");
  number("--queue", options.queue, 1, 1000, "N", "requests that may wait; more get 429");
  number("--max-batch", options.max_batch, 0, 1024, "N", "images made together; 0: what the model takes");
  number("--batch-wait", options.batch_wait, 0.0, 1000.0, "MS",
         "how long to wait for others to join, while there are others");
  number("--timeout", options.timeout, 0.001, 3600.0, "SECONDS", "most that a request may take");
  number("--grace", options.grace, 0.0, 3600.0, "SECONDS", "most that accepted requests may take after SIGTERM");
  number("--max-body", options.max_body, std::size_t{1024}, std::size_t{1} << 30, "BYTES", "of a request");
  text("--warm-up", options.warm_up, "SIZES", "sizes to warm up at: usual, none, or 512x512,768x512")
      ->delimiter(',')
      ->take_all();
  std::string format = "text";
  text("--log-format", format, "text|json", "one line a request on standard error")
      ->check(CLI::IsMember({"text", "json"}));
  try {
    app.parse(count, arguments);
  } catch (const CLI::Success& success) {  // --help, --version
    std::ostringstream help;
    app.exit(success, help, help);
    return Exit{0, help.str()};
  } catch (const CLI::ParseError& error) {
    std::string line = error.what();
    std::replace(line.begin(), line.end(), '\n', ' ');
    return Exit{2, "arcflow-serve: error: " + line + " (see arcflow-serve --help)\n"};
  }
  options.log_format = format == "json" ? LogFormat::kJson : LogFormat::kText;
  return options;
}

std::vector<Shape> warm_up_shapes(const std::vector<std::string>& sizes, const ModelDescription& model) {
  std::vector<Shape> shapes;
  for (const std::string& size : sizes) {
    if (size == "none") continue;
    if (size == "usual") {
      shapes.push_back({model.width.usual, model.height.usual, model.nfe});
      continue;
    }
    try {
      shapes.push_back(parse_size(size, model));
    } catch (const ApiError& error) {
      throw std::invalid_argument("--warm-up: " + error.message);
    }
  }
  return shapes;
}

}  // namespace arcflow::serve
