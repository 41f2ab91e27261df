// Options by CLI11. A bad one is one line and exit code 2, as everywhere in ArcFlow.
#include "server/options.hpp"

#include <arcflow/arcflow.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <sstream>
#include <stdexcept>

namespace arcflow::serve {
namespace {

constexpr const char* kExamples = R"(examples:
  arcflow-serve
  arcflow-serve --model engines/bundles/tiny-fp16-cpu --port 9000 --workers 2 --threads 1
  arcflow-serve --model flux --model qwen --device 0,1 --alias gpt-image-1=flux
  arcflow-serve --host 0.0.0.0 --queue 256 --batch-wait 5 --log-format json
  curl -s http://127.0.0.1:8080/v1/images/generations -H 'Content-Type: application/json' \
       -d '{"prompt": "a smiling face with sunglasses", "seed": 7}'

SIGTERM or SIGINT: new requests get 503, accepted ones are finished, exit code 0. Another one a second later or
more ends it at once. SIGHUP does nothing.
)";

// CLI::Range lets NaN through: it is neither less nor more than anything.
std::string is_a_number(const std::string& text) {
  return text.find_first_of("nN") == std::string::npos ? "" : text + " is no number";
}

// What is wrong where a value is there twice, or "".
template <class Value>
std::string repeated(const char* option, const std::vector<Value>& values) {
  for (auto one = values.begin(); one != values.end(); ++one) {
    if (std::find(values.begin(), one, *one) == one) continue;
    std::ostringstream out;
    out << option << ": " << *one << " is there twice";
    return out.str();
  }
  return "";
}

}  // namespace

std::variant<Options, Exit> parse_options(int count, const char* const* arguments) {
  Options options;
  ModelOptions& model = options.model;
  CLI::App app("Serve images over HTTP, as OpenAI's images API has it.", "arcflow-serve");
  app.footer(kExamples);
  app.set_version_flag("--version", "arcflow-serve, interface version " + std::to_string(ARCFLOW_API_VERSION));
  app.get_formatter()->column_width(32);
  app.option_defaults()->always_capture_default()->take_last();
  const auto text = [&app](const char* name, auto& value, const char* type, const char* help) {
    return app.add_option(name, value, help)->type_name(type);
  };
  const auto number = [&text](const char* name, auto& value, auto low, auto high, const char* type, const char* help) {
    text(name, value, type, help)->check(is_a_number)->check(CLI::Range(low, high));
  };
  text("--model", options.models, "NAME",
       "a model's name, or a bundle's folder; once for each model, of which the first is for requests that name none")
      ->take_all()
      ->allow_extra_args(false);
  text("--precision", model.precision, "NAME", "which bundle of each model: fp16, ...");
  text("--target", model.target, "NAME", "which bundle of each model: cpu, sm120, ...");
  text("--library", model.library, "PATH", "libonnxruntime (default: $ARCFLOW_ONNXRUNTIME, then the loader's search)");
  app.add_flag("--allow-links", model.allow_links,
               "the bundle's files may be links, as in caches; digests must still fit");
  number("--threads", model.threads, 0, 1024, "N", "compute threads of a network; 0: the cores, at most 8");
  text("--device", options.devices, "N,N,...", "ordinals of the GPUs; each holds every model, and must have the room")
      ->delimiter(',')
      ->take_all()
      ->allow_extra_args(false)
      ->check(is_a_number)
      ->check(CLI::Range(0, 1023));
  text("--host", options.host, "ADDRESS", "address to listen on");
  number("--port", options.port, 0, 65535, "N", "0: any free one, which the log tells");
  number("--admin-port", options.admin_port, 0, 65535, "N", "a port of their own for /health, /ready and /metrics");
  number("--workers", options.workers, 1, 64, "N",
         "sessions of each model on each device, which make images at the same time");
  number("--queue", options.queue, 1, 1000, "N", "requests that may wait for a model; more get 429");
  number("--max-batch", options.max_batch, 0, 1024, "N", "images made together; 0: what the model takes");
  number("--batch-work", options.batch_work, std::size_t{1}, std::size_t{1} << 20, "N",
         "evaluations of a batch at most; larger requests are made in several, between which others have their turn");
  number("--queue-per-caller", options.queue_per_caller, 0, 1000, "N",
         "requests of one caller that may wait or run, over all models; 0: any number");
  number("--max-nfe", options.max_nfe, 0, 1000, "N", "evaluations that a request may ask for; 0: what the model takes");
  number("--max-images", options.max_images, std::uint32_t{1}, kMaxImages, "N", "images that a request may ask for");
  number("--batch-wait", options.batch_wait, 0.0, 1000.0, "MS",
         "how long to wait for others to join, while there are others");
  number("--timeout", options.timeout, 0.001, 3600.0, "SECONDS", "most that a request may take");
  number("--drain-delay", options.drain_delay, 0.0, 3600.0, "SECONDS",
         "how long requests are still taken after SIGTERM, while /ready already says no");
  number("--grace", options.grace, 0.0, 3600.0, "SECONDS", "most that accepted requests may take after that");
  number("--max-body", options.max_body, std::size_t{1024}, std::size_t{1} << 30, "BYTES", "of a request");
  text("--warm-up", options.warm_up, "SIZES",
       "sizes to warm up the models at that take them: usual, none, or 512x512,768x512")
      ->delimiter(',')
      ->take_all();
  text("--alias", options.aliases, "NAME=MODEL", "another name for a model, as in gpt-image-1=flux")
      ->take_all()
      ->check([](const std::string& alias) {
        const std::size_t sign = alias.find('=');
        const bool whole = sign != std::string::npos && sign > 0 && sign + 1 < alias.size();
        return whole && alias.find('/') == std::string::npos ? "" : alias + " is not NAME=MODEL";
      });
  text("--api-keys", options.api_keys, "FILE", "whom to serve: lines of a name and the SHA-256 of a key");
  text("--allowed-host", options.allowed_hosts, "HOST", "names in the Host header to answer to")->take_all();
  text("--cors", options.cors, "ORIGIN", "whose web pages may ask, as in https://example.org; *: all")
      ->check([](const std::string& origin) {
        const std::size_t scheme = origin.find("://");
        const bool good = scheme != std::string::npos && origin.size() > scheme + 3 &&
                          origin.find_first_of("/ \t\r\n", scheme + 3) == std::string::npos;
        return good || origin == "*" ? "" : origin + " is no origin, like https://example.org";
      });
  app.add_flag_callback("--no-page", [&options] { options.page = false; }, "no page at /");
  std::string format = "text";
  text("--log-format", format, "text|json", "one line a request on standard error")
      ->check(CLI::IsMember({"text", "json"}));
  text("--log-level", options.log_level, "info|warning|error", "the least that the log says")
      ->check(CLI::IsMember({"info", "warning", "error"}));
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
  for (const std::string& twice : {repeated("--model", options.models), repeated("--device", options.devices)}) {
    if (!twice.empty()) return Exit{2, "arcflow-serve: error: " + twice + " (see arcflow-serve --help)\n"};
  }
  options.log_format = format == "json" ? LogFormat::kJson : LogFormat::kText;
  return options;
}

std::vector<std::vector<Shape>> warm_up_shapes(const std::vector<std::string>& sizes, const Catalogue& catalogue) {
  std::vector<std::vector<Shape>> shapes(catalogue.all().size());
  for (const std::string& size : sizes) {
    if (size == "none") continue;
    bool taken = false;
    std::string why;  // the first model's words
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      const ModelDescription& model = catalogue.all()[i].model;
      try {
        shapes[i].push_back(size == "usual" ? Shape{model.width.usual, model.height.usual, model.nfe}
                                            : parse_size(size, model));
        taken = true;
      } catch (const ApiError& error) {
        if (i == 0) why = error.message;
      }
    }
    if (!taken) {
      throw std::invalid_argument("--warm-up: " + (shapes.size() > 1 ? "no model takes " + size + ": " : "") + why);
    }
  }
  return shapes;
}

}  // namespace arcflow::serve
