// The service over real sockets with an engine of the test's own, and a caller's socket.
#pragma once

#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/service.hpp"

namespace arcflow::serve::test {

using namespace std::chrono_literals;

class FlagToken final : public CancelToken {
 public:
  void cancel() noexcept override { cancelled = true; }
  std::atomic<bool> cancelled{false};
};

// Every image is one grey pixel; its file is the seed's last byte, that of a partial the partial's number. After its
// partials an image with a "gate" waits until the gate is open; files with "much" in them have four megabytes.
class GreyEngine final : public Engine {
 public:
  GreyEngine() {
    model_.name = "grey";
    model_.width = model_.height = {8, 8, 8};
    model_.multiple = 8;
  }
  const ModelDescription& model() const override { return model_; }
  void check(const Shape&, const std::string& prompt) const override {
    if (prompt == "refused") throw EngineError(EngineError::Kind::kInvalid, "not this prompt");
    if (prompt == "heavy") throw std::bad_alloc();
  }
  std::unique_ptr<EngineSession> session() override { return std::make_unique<Session>(*this); }
  std::unique_ptr<CancelToken> cancel_token() override { return std::make_unique<FlagToken>(); }
  std::string encode(const Shape&, const Image& image) const override { return {image.rgb8.begin(), image.rgb8.end()}; }

  std::atomic<bool> gate{false};
  std::atomic<int> cancelled{0};

 private:
  class Session final : public EngineSession {
   public:
    explicit Session(GreyEngine& engine) : engine_(engine) {}
    BatchResult generate(const Shape& shape, const std::vector<Item>& items, CancelToken& token,
                         const PartialSink& sink) override {
      const auto has = [](const Item& item, const char* word) { return item.prompt.find(word) != std::string::npos; };
      const auto image = [&has](const Item& item, std::uint64_t grey) {
        return Image{std::vector<std::uint8_t>(has(item, "much") ? 4'000'000 : 1, static_cast<std::uint8_t>(grey)),
                     "{}"};
      };
      BatchResult result;
      for (std::uint32_t index = 0; index < shape.partials; ++index) {
        for (std::size_t j = 0; j < items.size(); ++j) sink(j, {index, 0.5, image(items[j], index)});
      }
      for (const Item& item : items) {
        if (item.prompt == "broken") throw EngineError(EngineError::Kind::kOther, "it broke");
        while (has(item, "gate") && !engine_.gate) {
          if (static_cast<FlagToken&>(token).cancelled) {
            ++engine_.cancelled;
            throw EngineError(EngineError::Kind::kCancelled, "cancelled");
          }
          std::this_thread::sleep_for(1ms);
        }
        result.images.push_back(image(item, item.seed));
      }
      return result;
    }
    void warm_up(const Shape&, std::uint32_t) override {}

   private:
    GreyEngine& engine_;
  };
  ModelDescription model_;
};

inline ConnectionRules quick() {
  ConnectionRules rules;
  rules.threads = 2;
  rules.idle = 300ms;
  rules.request = 300ms;
  rules.max_body = 4096;
  return rules;
}

struct Running {
  explicit Running(const ConnectionRules& rules = quick())
      : log(LogFormat::kJson, sink.get()),
        server(rules),
        service(server, metrics, log, ServiceRules{}),
        port(server.bind("127.0.0.1", 0)) {
    REQUIRE(port > 0);
    thread = std::thread([this] { server.listen_after_bind(); });
    server.wait_until_ready();
  }
  ~Running() { stop(); }
  void open() {
    fleet = std::make_unique<Fleet>(std::vector<std::string>{"grey"}, std::vector<std::uint32_t>{0},
                                    std::vector<std::string>{},
                                    [this](const std::string&, std::uint32_t) { return std::move(made); });
    fleet->start(metrics, {SchedulerOptions{}});
    service.open(*fleet);
  }
  Scheduler& scheduler() const { return *fleet->models()[0].scheduler; }
  void stop() {
    if (thread.joinable()) {
      server.halt();
      thread.join();
    }
  }
  // Whether the metrics come to say this, in a line of their own, within 5 s.
  bool counts(const std::string& line) const;

  // The log's line about a request for this path.
  nlohmann::json logged(const std::string& path) {
    log.flush(5s);
    std::rewind(sink.get());
    char line[4096];
    while (std::fgets(line, sizeof line, sink.get()) != nullptr) {
      const auto entry = nlohmann::json::parse(line);
      if (entry.value("path", "") == path) return entry;
    }
    return nullptr;
  }

  std::unique_ptr<std::FILE, int (*)(std::FILE*)> sink{std::tmpfile(), std::fclose};  // outlives the log
  Metrics metrics;
  Log log;
  std::unique_ptr<GreyEngine> made = std::make_unique<GreyEngine>();
  GreyEngine& engine = *made;
  std::unique_ptr<Fleet> fleet;
  HttpServer server;
  Service service;
  int port;
  std::thread thread;
};

// A socket, raw.
class Caller {
 public:
  explicit Caller(int port) : socket_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  }
  ~Caller() { close(socket_); }
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;

  bool send(const std::string& text) const { return ::send(socket_, text.data(), text.size(), MSG_NOSIGNAL) > 0; }
  // What comes until it holds this, or nothing has come for 5 s.
  std::string until(const std::string& end) const {
    std::string out;
    char byte;
    while (out.find(end) == std::string::npos) {
      pollfd waiting{socket_, POLLIN, 0};
      if (poll(&waiting, 1, 5000) <= 0 || recv(socket_, &byte, 1, 0) <= 0) break;
      out += byte;
    }
    return out;
  }
  // All that comes until the end, or until nothing has come for 5 s ("TIMEOUT" is then added).
  std::string rest() const {
    std::string out;
    char part[4096];
    for (;;) {
      pollfd waiting{socket_, POLLIN, 0};
      if (poll(&waiting, 1, 5000) <= 0) return out + "TIMEOUT";
      const ssize_t count = recv(socket_, part, sizeof part, 0);
      if (count <= 0) return out;
      out.append(part, static_cast<std::size_t>(count));
    }
  }

 private:
  int socket_;
};

inline bool Running::counts(const std::string& line) const {
  for (int i = 0; i < 500; ++i) {
    const Caller caller(port);
    caller.send("GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n");
    if (caller.rest().find("\n" + line + "\n") != std::string::npos) return true;
    std::this_thread::sleep_for(10ms);
  }
  return false;
}

inline std::string post(const std::string& body, const std::string& headers = "") {
  return "POST /v1/images/generations HTTP/1.1\r\nContent-Type: application/json\r\n" + headers +
         "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

constexpr const char* kClose = "Connection: close\r\n";

inline nlohmann::json body_of(const std::string& answer) {
  return nlohmann::json::parse(answer.substr(answer.find("\r\n\r\n") + 4));
}

inline std::size_t answers_in(const std::string& text) {
  std::size_t count = 0;
  for (std::size_t at = text.find("HTTP/1.1 "); at != std::string::npos; at = text.find("HTTP/1.1 ", at + 1)) ++count;
  return count;
}

}  // namespace arcflow::serve::test
