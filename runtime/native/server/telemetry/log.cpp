// Log lines as JSON objects, or as words and name=value for a person; and the thread that writes them.
#include "server/telemetry/log.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <ctime>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

namespace arcflow::serve {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kWaiting = 256 * 1024;  // bytes
constexpr std::size_t kPart = 4096;           // bytes, PIPE_BUF
constexpr int kPoll = 50;                     // milliseconds
constexpr std::chrono::milliseconds kFarewell{1000};

int rank(const std::string& level) { return level == "info" ? 0 : level == "warning" ? 1 : 2; }

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

// What the log and its thread share.
struct Log::State {
  int descriptor = -1;
  LogFormat format = LogFormat::kText;
  std::mutex mutex;
  std::condition_variable changed;
  std::string pending;        // whole lines
  std::uint64_t dropped = 0;  // lines, in all
  std::uint64_t unsaid = 0;   // of these, what the log has not told yet
  bool writing = false, ending = false, abandoned = false;

  void run();
  std::size_t put(const std::string& text);
  bool is_abandoned() {
    const std::lock_guard lock(mutex);
    return abandoned;
  }
};

// Gives how many bytes were taken. A pipe with room takes kPart bytes at once, so that waiting for room comes before
// writing, and a reader that stalls holds up no more than a poll.
std::size_t Log::State::put(const std::string& text) {
  std::size_t done = 0;
  while (done < text.size()) {
    pollfd room{descriptor, POLLOUT, 0};
    if (poll(&room, 1, kPoll) <= 0) {
      if (is_abandoned()) break;
      continue;
    }
    const ssize_t count = ::write(descriptor, text.data() + done, std::min(kPart, text.size() - done));
    if (count > 0) {
      done += static_cast<std::size_t>(count);
    } else if (errno != EINTR && errno != EAGAIN) {
      break;  // nobody reads any more, or the disk is full
    }
  }
  return done;
}

void Log::State::run() {
  std::unique_lock lock(mutex);
  for (;;) {
    changed.wait(lock, [this] { return ending || !pending.empty() || unsaid > 0; });
    if (abandoned || (pending.empty() && unsaid == 0)) return;
    std::string text = std::exchange(pending, {});
    if (unsaid > 0) {
      const auto count = static_cast<std::int64_t>(std::exchange(unsaid, 0));
      text += format_line(format, utc_now(), "warning", "log lines dropped", {{"lines", count}}) + "\n";
    }
    writing = true;
    lock.unlock();
    const std::size_t done = put(text);
    lock.lock();
    dropped +=
        static_cast<std::uint64_t>(std::count(text.begin() + static_cast<std::ptrdiff_t>(done), text.end(), '\n'));
    writing = false;
    changed.notify_all();
  }
}

Log::Log(LogFormat format, std::FILE* stream, const std::string& least)
    : format_(format), least_(rank(least)), state_(std::make_shared<State>()) {
  state_->descriptor = fileno(stream);
  state_->format = format;
  std::thread([state = state_] { state->run(); }).detach();
}

Log::~Log() {
  flush(kFarewell);
  const std::lock_guard lock(state_->mutex);
  state_->ending = state_->abandoned = true;
  state_->changed.notify_all();
}

void Log::write(const std::string& level, const std::string& event, const LogFields& fields) {
  if (rank(level) < least_) return;
  const std::string line = format_line(format_, utc_now(), level, event, fields) + "\n";
  const std::lock_guard lock(state_->mutex);
  if (state_->pending.size() + line.size() > kWaiting) {
    ++state_->dropped;
    ++state_->unsaid;
    return;
  }
  state_->pending += line;
  state_->changed.notify_all();
}

std::uint64_t Log::dropped() const {
  const std::lock_guard lock(state_->mutex);
  return state_->dropped;
}

bool Log::flush(std::chrono::milliseconds most) const {
  std::unique_lock lock(state_->mutex);
  return state_->changed.wait_for(
      lock, most, [this] { return state_->pending.empty() && state_->unsaid == 0 && !state_->writing; });
}

}  // namespace arcflow::serve
