// The service over real sockets with an engine of the test's own: rules of connections, and its states.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "serve_support.hpp"
#include "server/service.hpp"

using namespace arcflow::serve;
using namespace arcflow::serve::test;

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
