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
  ModelOptions& library = options.model;
  library.bundle = "tiny";
  CLI::App app("Serve images over HTTP, as OpenAI's images API has it.", "arcflow-serve");
  app.footer(kExamples);
  app.set_version_flag("--version", "arcflow-serve, interface version " + std::to_string(ARCFLOW_API_VERSION));
  app.get_formatter()->column_width(32);
  app.option_defaults()->always_capture_default()->take_last();
  app.add_option("--model", library.bundle, "a model's name, or a bundle's folder")->type_name("NAME");
  app.add_option("--precision", library.precision, "which bundle of the model: fp32, ...")->type_name("NAME");
  app.add_option("--target", library.target, "which bundle of the model: cpu, sm120, ...")->type_name("NAME");
  app.add_option("--library", library.library,
                 "libonnxruntime (default: $ARCFLOW_ONNXRUNTIME, then the loader's search)")
      ->type_name("PATH");
  app.add_option("--threads", library.threads, "compute threads of a network; 0: the cores, at most 8")
      ->check(CLI::Range(0, 1024))
      ->type_name("N");
  app.add_option("--device", library.device, "ordinal of the GPU")->check(CLI::Range(0, 1023))->type_name("N");
  app.add_option("--host", options.host, "address to listen on")->type_name("ADDRESS");
  app.add_option("--port", options.port, "0: any free one, which the log tells")
      ->check(CLI::Range(0, 65535))
      ->type_name("N");
  app.add_option("--workers", options.workers, "sessions that make images at the same time")
      ->check(CLI::Range(1, 64))
      ->type_name("N");
  app.add_option("--queue", options.queue, "requests that may wait; more get 429")
      ->check(CLI::Range(1, 1000))
      ->type_name("N");
  app.add_option("--max-batch", options.max_batch, "images made together; 0: what the model takes")
      ->check(CLI::Range(0, 1024))
      ->type_name("N");
  app.add_option("--batch-wait", options.batch_wait, "how long to wait for others to join, while there are others")
      ->check(CLI::Range(0.0, 1000.0))
      ->type_name("MS");
  app.add_option("--timeout", options.timeout, "most that a request may take")
      ->check(CLI::Range(0.001, 3600.0))
      ->type_name("SECONDS");
  app.add_option("--grace", options.grace, "most that accepted requests may take after SIGTERM")
      ->check(CLI::Range(0.0, 3600.0))
      ->type_name("SECONDS");
  app.add_option("--max-body", options.max_body, "of a request")
      ->check(CLI::Range(std::size_t{1024}, std::size_t{1} << 30))
      ->type_name("BYTES");
  app.add_option("--warm-up", options.warm_up, "sizes to warm up at: usual, none, or 512x512,768x512")
      ->delimiter(',')
      ->take_all()
      ->type_name("SIZES");
  std::string format = "text";
  app.add_option("--log-format", format, "one line a request on standard error")
      ->check(CLI::IsMember({"text", "json"}))
      ->type_name("text|json");
  try {
    app.parse(count, arguments);
  } catch (const CLI::Success& success) {  // --help, --version
    std::ostringstream text;
    app.exit(success, text, text);
    return Exit{0, text.str()};
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
