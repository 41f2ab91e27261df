// Lines on standard error: one for each request, and a few for the server's own life.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
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

// Takes lines from any thread and never waits for whoever reads them: a thread of its own writes. At most 256 KiB wait;
// what comes beyond is dropped and counted, and the log says so once its reader is back.
class Log {
 public:
  // least: the level from which on lines are written, "info", "warning" or "error". Keeps the stream's descriptor but
  // does not own it.
  Log(LogFormat format, std::FILE* stream, const std::string& least = "info");
  // Waits for what is left to be written, for a second at most.
  ~Log();
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  void write(const std::string& level, const std::string& event, const LogFields& fields = {});

  // Lines that were never written: their reader stalled, or is gone.
  std::uint64_t dropped() const;

  // Waits until all is written, so long at most. Gives whether it is.
  bool flush(std::chrono::milliseconds most) const;

 private:
  struct State;
  const LogFormat format_;
  const int least_;
  // Shared with the thread: where its reader never comes back, the thread outlives the log.
  const std::shared_ptr<State> state_;
};

}  // namespace arcflow::serve
