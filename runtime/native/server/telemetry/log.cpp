// Log lines as JSON objects, or as words and name=value for a person.
#include "server/telemetry/log.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <nlohmann/json.hpp>

namespace arcflow::serve {
namespace {

using Json = nlohmann::ordered_json;

std::string utc_now() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto milliseconds = std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
  const std::time_t seconds = milliseconds / 1000;
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char day[32];
  std::strftime(day, sizeof day, "%Y-%m-%dT%H:%M:%S", &parts);
  char text[48];
  std::snprintf(text, sizeof text, "%s.%03dZ", day, static_cast<int>(milliseconds % 1000));
  return text;
}

Json to_json(const LogValue& value) {
  return std::visit([](const auto& content) { return Json(content); }, value);
}

std::string dump(const Json& value) { return value.dump(-1, ' ', true, Json::error_handler_t::replace); }

// A string as it is where that is plain, else quoted.
std::string plain(const LogValue& value) {
  const auto* text = std::get_if<std::string>(&value);
  const auto is_plain = [](char c) { return c > ' ' && c <= '~' && c != '"' && c != '=' && c != '\\'; };
  const bool bare = text != nullptr && !text->empty() && std::all_of(text->begin(), text->end(), is_plain);
  return bare ? *text : dump(to_json(value));
}

}  // namespace

std::string format_line(LogFormat format, const std::string& time, const std::string& level, const std::string& event,
                        const LogFields& fields) {
  if (format == LogFormat::kJson) {
    Json line;
    line["time"] = time;
    line["level"] = level;
    line["event"] = event;
    for (const auto& [name, value] : fields) line[name] = to_json(value);
    return dump(line);
  }
  std::string line = time + " " + level + " " + event;
  for (const auto& [name, value] : fields) line += " " + name + "=" + plain(value);
  return line;
}

void Log::write(const std::string& level, const std::string& event, const LogFields& fields) {
  const std::string line = format_line(format_, utc_now(), level, event, fields) + "\n";
  const std::lock_guard lock(mutex_);
  std::fwrite(line.data(), 1, line.size(), stream_);
  std::fflush(stream_);
}

}  // namespace arcflow::serve
