// Answers that are written in pieces, over real sockets: their form, and how they end before their time.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "serve_support.hpp"
#include "server/service.hpp"

using namespace arcflow::serve;
using namespace arcflow::serve::test;

namespace {

std::string ask(const std::string& prompt, int partials, const std::string& more = "",
                const std::string& headers = "") {
  return post("{\"prompt\": \"" + prompt +
                  "\", \"seed\": 65, \"stream\": true, \"partial_images\": " + std::to_string(partials) + more + "}",
              headers);
}

// The bytes of a chunked body, which must be framed as HTTP says to its end.
std::string dechunked(const std::string& answer) {
  std::string out;
  std::size_t at = answer.find("\r\n\r\n") + 4;
  for (;;) {
    const std::size_t end = answer.find("\r\n", at);
    REQUIRE(end != std::string::npos);
    const std::size_t size = std::stoul(answer.substr(at, end - at), nullptr, 16);
    out += answer.substr(end + 2, size);
    REQUIRE(answer.substr(end + 2 + size, 2) == "\r\n");
    at = end + 2 + size + 2;
    if (size == 0) break;
  }
  CHECK(at == answer.size());
  return out;
}

// The data of all events, whose names must be their types.
std::vector<nlohmann::json> events(const std::string& body) {
  std::vector<nlohmann::json> out;
  for (std::size_t at = 0; at < body.size();) {
    const std::size_t line = body.find("\ndata: ", at), end = body.find("\n\n", at);
    REQUIRE(end != std::string::npos);
    out.push_back(nlohmann::json::parse(body.substr(line + 7, end - line - 7)));
    CHECK(body.substr(at, line - at) == "event: " + out.back()["type"].get<std::string>());
    at = end + 2;
  }
  return out;
}

}  // namespace

TEST_CASE("partials, then the image, on a connection that is kept") {
  Running running;
  running.open();
  const Caller caller(running.port);
  caller.send(ask("a", 2, "", "x-request-id: abc\r\n") + "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
  const std::string text = caller.rest();
  REQUIRE(answers_in(text) == 2);
  const std::size_t second = text.rfind("HTTP/1.1 ");
  const std::string first = text.substr(0, second);
  CHECK(first.find("HTTP/1.1 200 OK\r\n") == 0);
  for (const char* header :
       {"Content-Type: text/event-stream; charset=utf-8", "Cache-Control: no-store", "X-Accel-Buffering: no",
        "Transfer-Encoding: chunked", "x-request-id: abc", "Keep-Alive: timeout=0, max=9999"}) {
    CHECK_MESSAGE(first.find(std::string(header) + "\r\n") != std::string::npos, header);
  }
  CHECK(first.find("Content-Length") == std::string::npos);
  const auto all = events(dechunked(first));
  REQUIRE(all.size() == 3);
  for (int i = 0; i < 2; ++i) {
    const auto& one = all[static_cast<std::size_t>(i)];
    CHECK(one["type"] == "image_generation.partial_image");
    CHECK(one["partial_image_index"] == i);
    CHECK(one["b64_json"] == (i == 0 ? "AA==" : "AQ=="));
    CHECK(one["sigma"] == 0.5);
  }
  CHECK(all[2]["type"] == "image_generation.completed");
  CHECK(all[2]["b64_json"] == "QQ==");
  CHECK(all[2]["size"] == "8x8");
  CHECK(text.find("\"ok\"", second) != std::string::npos);
  CHECK(running.counts("arcflow_requests_total{route=\"/v1/images/generations\",code=\"200\"} 1"));
  CHECK(running.counts("arcflow_partial_images_total{model=\"grey\"} 2"));
  CHECK(running.counts("arcflow_streams_total{ended=\"completed\"} 1"));
  const auto line = running.logged("/v1/images/generations");
  CHECK(line["ended"] == "completed");
  CHECK(line["partials"] == 2);
}

TEST_CASE("without partials there is one event, and HTTP/1.0 has no chunks") {
  Running running;
  running.open();
  const Caller caller(running.port);
  std::string old = ask("a", 0);
  caller.send(old.replace(old.find("HTTP/1.1"), 8, "HTTP/1.0"));
  const std::string answer = caller.rest();
  CHECK(answer.find("Transfer-Encoding") == std::string::npos);
  CHECK(answer.find("Connection: close\r\n") != std::string::npos);
  const auto all = events(answer.substr(answer.find("\r\n\r\n") + 4));
  REQUIRE(all.size() == 1);
  CHECK(all[0]["b64_json"] == "QQ==");
}

TEST_CASE("errors are ordinary answers before the stream begins, and events after") {
  Running running;
  running.open();
  const Caller two(running.port);
  two.send(ask("a", 2, ", \"n\": 2"));
  const std::string refused = two.rest();
  CHECK(refused.find("HTTP/1.1 400 ") == 0);
  CHECK(body_of(refused)["error"]["param"] == "n");
  const Caller caller(running.port);
  caller.send(ask("broken", 1, "", kClose));
  const auto all = events(dechunked(caller.rest()));
  REQUIRE(all.size() == 2);
  CHECK(all[1]["type"] == "error");
  CHECK(all[1]["error"]["code"] == "generation_failed");
  CHECK(all[1]["error"]["param"].is_null());
  CHECK(running.counts("arcflow_streams_total{ended=\"failed\"} 1"));
}

TEST_CASE("a deadline, and the end of the server, in the middle of a stream") {
  Running running;
  running.open();
  const Caller late(running.port), dropped(running.port);
  late.send(ask("a gate", 1, ", \"timeout\": 0.1", kClose));
  const auto all = events(dechunked(late.rest()));
  REQUIRE(all.size() == 2);
  CHECK(all[1]["error"]["code"] == "deadline_exceeded");
  CHECK(running.logged("/v1/images/generations")["level"] == "error");
  dropped.send(ask("a gate", 1, "", kClose));
  const std::string begun = dropped.until("\n\n");
  running.scheduler().abort();
  const auto rest = events(dechunked(begun + dropped.rest()));
  CHECK(rest[1]["error"]["type"] == "server_error");
  CHECK(running.scheduler().wait_idle(Clock::now() + 5s));
  CHECK(running.engine.cancelled == 2);
  CHECK(running.counts("arcflow_streams_total{ended=\"deadline\"} 1"));
  CHECK(running.counts("arcflow_streams_total{ended=\"shutdown\"} 1"));
}

TEST_CASE("the server's end waits for a stream that has begun") {
  Running running;
  running.open();
  const Caller caller(running.port);
  caller.send(ask("a gate", 1));
  const std::string begun = caller.until("\n\n");
  running.server.halt();
  std::this_thread::sleep_for(20ms);
  running.engine.gate = true;
  const auto all = events(dechunked(begun + caller.rest()));
  CHECK(all.back()["type"] == "image_generation.completed");
}

TEST_CASE("a caller who vanishes between two events ends the work") {
  Running running;
  running.open();
  {
    const Caller caller(running.port);
    caller.send(ask("a gate", 1));
    caller.until("\n\n");
  }
  CHECK(running.counts("arcflow_cancelled_total{reason=\"client_gone\"} 1"));
  CHECK(running.counts("arcflow_streams_total{ended=\"client_gone\"} 1"));
  CHECK(running.counts("arcflow_connections 1"));
  CHECK(running.scheduler().wait_idle(Clock::now() + 5s));
  CHECK(running.engine.cancelled == 1);
  CHECK(running.logged("/v1/images/generations")["ended"] == "client_gone");
}

TEST_CASE("a caller who does not read is let go, and the work with it") {
  ConnectionRules rules = quick();
  rules.stall = 200ms;
  Running running(rules);
  running.open();
  const Caller slow(running.port);
  slow.send(ask("much behind a gate", 4));
  CHECK(running.counts("arcflow_connections_ended_total{reason=\"stalled\"} 1"));
  CHECK(running.counts("arcflow_streams_total{ended=\"client_gone\"} 1"));
  CHECK(running.scheduler().wait_idle(Clock::now() + 5s));
  CHECK(running.engine.cancelled == 1);
  const Caller other(running.port);
  other.send(ask("a", 0, "", kClose));
  CHECK(events(dechunked(other.rest())).size() == 1);
  const std::string rest = slow.rest();
  CHECK(rest.find("TIMEOUT") == std::string::npos);
  CHECK(rest.find("\r\n0\r\n\r\n") == std::string::npos);
}

TEST_CASE("a caller who reads slowly gets all of it") {
  Running running;
  running.open();
  const Caller slow(running.port);
  slow.send(ask("much", 2, "", kClose));
  std::this_thread::sleep_for(300ms);
  const auto all = events(dechunked(slow.rest()));
  REQUIRE(all.size() == 3);
  CHECK(all[2]["b64_json"].get<std::string>().size() == 5'333'336);
}
