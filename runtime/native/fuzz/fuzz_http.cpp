// What callers of arcflow-serve control: a JSON body and header values. Byte 0 chooses which; the rest is the content.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "server/requests/api_error.hpp"
#include "server/requests/request.hpp"
#include "server/telemetry/log.hpp"
#include "server/telemetry/metrics.hpp"

namespace {

using namespace arcflow::serve;

ModelDescription tiny() {
  ModelDescription model;
  model.name = "tiny";
  model.bundle = "tiny-fp16-cpu";
  model.width = model.height = {32, 64, 128};
  model.multiple = 16;
  model.nfe = 2;
  model.max_nfe = 8;
  return model;
}

void require(bool holds) {
  if (!holds) std::abort();
}

void read_body(std::string_view body) {
  const ModelDescription model = tiny();
  GenerationRequest request;
  try {
    request = parse_generation(body, Catalogue({model}), RequestRules{});
  } catch (const ApiError& error) {
    require(error.status == 400 || error.status == 404);
    require(nlohmann::json::parse(to_json(error))["error"]["message"].is_string());
    return;
  }
  require(!request.prompt.empty() && request.prompt.find('\0') == std::string::npos);
  require(request.n >= 1 && request.n <= kMaxImages);
  require(request.shape.partials <= (request.stream ? kMaxPartials : 0) && (!request.stream || request.n == 1));
  require(request.timeout > 0 && request.timeout <= 60);
  require(request.shape.nfe >= 1 && request.shape.nfe <= model.max_nfe);
  for (const std::uint32_t side : {request.shape.width, request.shape.height}) {
    require(side >= 32 && side <= 128 && side % 16 == 0);
  }
}

void read_header(std::string_view value) {
  is_json_type(value);
  if (is_request_id(value)) require(value.size() <= kMaxRequestId);
  const std::string text(value);
  require(escape_label(text).find('\n') == std::string::npos);
  for (const LogFormat format : {LogFormat::kText, LogFormat::kJson}) {
    require(format_line(format, "T", "info", "request", {{"path", text}}).find('\n') == std::string::npos);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view content(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] == 'h') {
    read_header(content);
  } else {
    read_body(content);
  }
  return 0;
}
