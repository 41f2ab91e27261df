// The service over real sockets with an engine of the test's own: rules of connections, and its states.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "server/service.hpp"

using namespace arcflow::serve;
using namespace std::chrono_literals;

namespace {

class NoToken final : public CancelToken {
 public:
  void cancel() noexcept override {}
};

// Every image is one grey pixel; its file is the seed's last byte.
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
  std::unique_ptr<EngineSession> session() override { return std::make_unique<Session>(); }
  std::unique_ptr<CancelToken> cancel_token() override { return std::make_unique<NoToken>(); }
  std::string encode(const Shape&, const Image& image) const override { return {image.rgb8.begin(), image.rgb8.end()}; }

 private:
  class Session final : public EngineSession {
   public:
    BatchResult generate(const Shape&, const std::vector<Item>& items, CancelToken&) override {
      BatchResult result;
      for (const Item& item : items) {
        if (item.prompt == "broken") throw EngineError(EngineError::Kind::kOther, "it broke");
        result.images.push_back({{static_cast<std::uint8_t>(item.seed)}, "{}"});
      }
      return result;
    }
    void warm_up(const Shape&, std::uint32_t) override {}
  };
  ModelDescription model_;
};

ConnectionRules quick() {
  ConnectionRules rules;
  rules.threads = 2;
  rules.idle = 300ms;
  rules.request = 300ms;
  rules.max_body = 4096;
  return rules;
}

struct Running {
  explicit Running(const ConnectionRules& rules = quick())
      : log(LogFormat::kJson, sink),
        server(rules),
        service(server, metrics, log, ServiceRules{}),
        port(server.bind("127.0.0.1", 0)) {
    REQUIRE(port > 0);
    thread = std::thread([this] { server.listen_after_bind(); });
    server.wait_until_ready();
  }
  ~Running() {
    stop();
    std::fclose(sink);
  }
  void open() {
    scheduler = std::make_unique<Scheduler>(engine, metrics, SchedulerOptions{});
    scheduler->wait_ready();
    service.open(engine, *scheduler);
  }
  void stop() {
    if (thread.joinable()) {
      server.halt();
      thread.join();
    }
  }

  // The log's line about a request for this path.
  nlohmann::json logged(const std::string& path) {
    log.flush(5s);
    std::rewind(sink);
    char line[4096];
    while (std::fgets(line, sizeof line, sink) != nullptr) {
      const auto entry = nlohmann::json::parse(line);
      if (entry.value("path", "") == path) return entry;
    }
    return nullptr;
  }

  std::FILE* sink = std::tmpfile();
  Metrics metrics;
  Log log;
  GreyEngine engine;
  std::unique_ptr<Scheduler> scheduler;
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

std::string post(const std::string& body, const std::string& headers = "") {
  return "POST /v1/images/generations HTTP/1.1\r\nContent-Type: application/json\r\n" + headers +
         "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

constexpr const char* kClose = "Connection: close\r\n";

nlohmann::json body_of(const std::string& answer) {
  return nlohmann::json::parse(answer.substr(answer.find("\r\n\r\n") + 4));
}

std::size_t answers_in(const std::string& text) {
  std::size_t count = 0;
  for (std::size_t at = text.find("HTTP/1.1 "); at != std::string::npos; at = text.find("HTTP/1.1 ", at + 1)) ++count;
  return count;
}

}  // namespace

TEST_CASE("before the model is loaded") {
  Running running;
  for (const std::string path : {"/ready", "/v1/models"}) {
    const Caller caller(running.port);
    caller.send("GET " + path + " HTTP/1.1\r\n\r\n");
    const std::string answer = caller.rest();
    CHECK(answer.find("HTTP/1.1 503 ") == 0);
    CHECK(answer.find("Retry-After: 1\r\n") != std::string::npos);
    CHECK(body_of(answer)["error"]["code"] == "not_ready");
  }
  CHECK(running.logged("/ready")["level"] == "info");  // a probe that is told to wait is no error
  CHECK(running.logged("/v1/models")["level"] == "warning");
  const Caller poster(running.port);
  poster.send(post("{\"prompt\": \"a\"}"));
  CHECK(poster.rest().find("HTTP/1.1 503 ") == 0);
  const Caller health(running.port);
  health.send("GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
  CHECK(health.rest().find("HTTP/1.1 200 ") == 0);
}

TEST_CASE("open, then draining") {
  Running running;
  running.open();
  const Caller first(running.port);
  first.send(post("{\"prompt\": \"a\", \"seed\": 65, \"n\": 2}", kClose));
  const auto data = body_of(first.rest())["data"];
  CHECK(data[0]["b64_json"] == "QQ==");
  CHECK(data[1]["b64_json"] == "Qg==");
  CHECK(data[1]["seed"] == 66);
  running.service.drain();
  const Caller late(running.port);
  late.send(post("{\"prompt\": \"a\"}"));
  const std::string answer = late.rest();
  CHECK(answer.find("HTTP/1.1 503 ") == 0);
  CHECK(body_of(answer)["error"]["code"] == "draining");
}

TEST_CASE("what the engine says reaches the caller") {
  Running running;
  running.open();
  const Caller refused(running.port);
  refused.send(post("{\"prompt\": \"refused\"}"));
  const std::string no = refused.rest();
  CHECK(no.find("HTTP/1.1 400 ") == 0);
  CHECK(body_of(no)["error"]["message"] == "not this prompt");
  const Caller broken(running.port);
  broken.send(post("{\"prompt\": \"broken\"}"));
  const std::string failed = broken.rest();
  CHECK(failed.find("HTTP/1.1 500 ") == 0);
  CHECK(body_of(failed)["error"]["type"] == "server_error");
  const Caller heavy(running.port);
  heavy.send(post("{\"prompt\": \"heavy\"}"));
  const std::string full = heavy.rest();
  CHECK(full.find("HTTP/1.1 503 ") == 0);
  CHECK(body_of(full)["error"]["code"] == "busy");
}

TEST_CASE("bodies have a budget of memory") {
  ConnectionRules rules = quick();
  rules.bodies = 6000;
  Running running(rules);
  running.open();
  const std::string head = "POST /v1/images/generations HTTP/1.1\r\nContent-Type: application/json\r\n";
  const Caller first(running.port), second(running.port);
  first.send(head + "Content-Length: 4000\r\n\r\n");
  std::this_thread::sleep_for(50ms);
  second.send(head + "Content-Length: 4000\r\n\r\n");
  CHECK(second.rest().find("HTTP/1.1 503 ") == 0);
  CHECK(first.rest().find("HTTP/1.1 408 ") == 0);
  const Caller third(running.port);
  third.send(post("{\"prompt\": \"a\"}" + std::string(3000, ' '), kClose));
  CHECK(third.rest().find("HTTP/1.1 200 ") == 0);
}

TEST_CASE("requests that are sent ahead are answered in order, up to the first error") {
  Running running;
  running.open();
  const Caller caller(running.port);
  caller.send(post("{\"prompt\": \"a\", \"seed\": 65}") + "GET /health HTTP/1.1\r\n\r\n" + post("nonsense") +
              "GET /health HTTP/1.1\r\n\r\n");
  const std::string text = caller.rest();
  CHECK(answers_in(text) == 3);
  CHECK(text.find("QQ==") < text.find("\"ok\""));
  CHECK(text.find("\"ok\"") < text.find("invalid_json"));
}

TEST_CASE("who is slow to ask does not hold a thread for long") {
  Running running;
  running.open();
  const auto began = Clock::now();
  const Caller dripping(running.port), silent(running.port);
  std::thread drip([&dripping] {
    for (const char c : std::string("GET /health HTTP/1.1\r\nx: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")) {
      if (!dripping.send(std::string(1, c))) break;
      std::this_thread::sleep_for(20ms);
    }
  });
  const Caller third(running.port);  // both threads are held
  third.send("GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
  CHECK(third.rest().find("HTTP/1.1 200 ") == 0);
  CHECK(Clock::now() - began < 2s);
  CHECK(dripping.rest().find("TIMEOUT") == std::string::npos);
  CHECK(silent.rest() == "");
  drip.join();
}

TEST_CASE("a body that is too large is rejected, said or not said beforehand") {
  Running running;
  running.open();
  const std::string large = "{\"prompt\": \"" + std::string(8192, 'a') + "\"}";
  const Caller said(running.port);
  said.send(post(large));
  CHECK(said.rest().find("HTTP/1.1 413 ") == 0);
  const Caller chunked(running.port);
  char size[32];
  std::snprintf(size, sizeof size, "%zx\r\n", large.size());
  chunked.send(
      "POST /v1/images/generations HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" +
      std::string(size) + large + "\r\n0\r\n\r\n");
  CHECK(chunked.rest().find("HTTP/1.1 413 ") == 0);
}

TEST_CASE("the end does not wait for idle callers") {
  Running running;
  running.open();
  const Caller idle(running.port);
  idle.send("GET /health HTTP/1.1\r\n\r\n");
  std::this_thread::sleep_for(50ms);
  const auto began = Clock::now();
  running.stop();
  CHECK(Clock::now() - began < 250ms + 1s);
  CHECK(answers_in(idle.rest()) == 1);
}

TEST_CASE("a handler of all that is under a path, and an answer without a body") {
  Routes routes;
  routes.Get("/a/*", [](const Request& in, Response& out) { out.body = in.path; });
  for (const auto& [path, status] : {std::pair{"/a/b/c", 200}, {"/a/", 200}, {"/a", 404}, {"/ab/c", 404}, {"/", 404}}) {
    Request request;
    request.method = "GET";
    request.path = path;
    Response response;
    routes.handle(request, response);
    CHECK(response.status == status);
  }
  Response none;
  none.status = 204;
  CHECK(head_of(none, {}) == "HTTP/1.1 204 No Content\r\n\r\n");
}

TEST_CASE("a port belongs to one server") {
  Running running;
  HttpServer second(quick());
  CHECK(second.bind("127.0.0.1", running.port) == 0);
}
