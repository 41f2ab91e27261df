// Lines on standard error: one for each request, and a few for the server's own life.
#pragma once

#include <cstdio>
#include <mutex>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace arcflow::serve {

enum class LogFormat { kText, kJson };

using LogValue = std::variant<std::string, double, std::int64_t>;
using LogFields = std::vector<std::pair<std::string, LogValue>>;

// One line, without its end. time: UTC, "2026-01-31T12:00:00.123Z". Bytes that are not UTF-8 are replaced, control
// characters escaped, so that what a caller sent cannot forge a line. Prompts are not for logs.
std::string format_line(LogFormat format, const std::string& time, const std::string& level, const std::string& event,
                        const LogFields& fields);

// Writes whole lines, from any thread.
class Log {
 public:
  Log(LogFormat format, std::FILE* stream) : format_(format), stream_(stream) {}
  void write(const std::string& level, const std::string& event, const LogFields& fields = {});

 private:
  const LogFormat format_;
  std::FILE* const stream_;
  std::mutex mutex_;
};

}  // namespace arcflow::serve
