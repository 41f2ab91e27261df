// Prometheus' text, and log lines that callers cannot forge.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <nlohmann/json.hpp>
#include <string>

#include "server/telemetry/log.hpp"
#include "server/telemetry/metrics.hpp"

using namespace arcflow::serve;

namespace {

bool has(const std::string& text, const std::string& line) {
  return ("\n" + text).find("\n" + line + "\n") != std::string::npos;
}

}  // namespace

TEST_CASE("a histogram counts from below, bounds included") {
  Histogram histogram({1, 2});
  for (const double value : {0.5, 1.0, 1.5, 3.0}) histogram.observe(value);
  const std::string text = histogram.render("h", "stage=\"vae\"");
  CHECK(
      text ==
      "h_bucket{stage=\"vae\",le=\"1\"} 2\nh_bucket{stage=\"vae\",le=\"2\"} 3\nh_bucket{stage=\"vae\",le=\"+Inf\"} 4\n"
      "h_sum{stage=\"vae\"} 6\nh_count{stage=\"vae\"} 4\n");
  CHECK(Histogram({1}).render("e", "").find("e_bucket{le=\"1\"} 0\n") == 0);
}

TEST_CASE("the page has every counter") {
  Metrics metrics;
  metrics.count_request("/health", 200);
  metrics.count_request("/health", 200);
  metrics.count_request("other", 404);
  metrics.count_stream("completed");
  metrics.count_rejected("queue_full");
  metrics.count_cancelled("client_gone");
  metrics.set_ready(true);
  ModelDescription model;
  model.name = "tiny";
  model.backend = "ONNX \"Runtime\"\n\\";
  ModelMetrics& tiny = metrics.add_model("tiny", model);
  ModelMetrics& other = metrics.add_model("ot\"her", model);
  tiny.set_load(3, 5, 1);
  tiny.observe_batch(4);
  tiny.observe_stage("queue", 0.002);
  tiny.count_images(4);
  tiny.count_partial();
  other.count_images(2);
  const std::string page = metrics.render();
  CHECK(has(page, "arcflow_requests_total{route=\"/health\",code=\"200\"} 2"));
  CHECK(has(page, "arcflow_requests_total{route=\"other\",code=\"404\"} 1"));
  CHECK(has(page, "arcflow_queue_depth{model=\"tiny\"} 3"));
  CHECK(has(page, "arcflow_in_flight_images{model=\"tiny\"} 5"));
  CHECK(has(page, "arcflow_running_batches{model=\"tiny\"} 1"));
  CHECK(has(page, "arcflow_images_total{model=\"tiny\"} 4\narcflow_images_total{model=\"ot\\\"her\"} 2"));
  CHECK(has(page, "arcflow_partial_images_total{model=\"tiny\"} 1"));
  CHECK(has(page, "arcflow_streams_total{ended=\"completed\"} 1"));
  CHECK(has(page, "arcflow_streams_total{ended=\"failed\"} 0"));
  CHECK(has(page, "arcflow_rejected_total{reason=\"queue_full\"} 1"));
  CHECK(has(page, "arcflow_rejected_total{reason=\"draining\"} 0"));
  CHECK(has(page, "arcflow_cancelled_total{reason=\"client_gone\"} 1"));
  CHECK(has(page, "arcflow_ready 1"));
  CHECK(has(page, "arcflow_batch_size_bucket{model=\"tiny\",le=\"3\"} 0"));
  CHECK(has(page, "arcflow_batch_size_bucket{model=\"tiny\",le=\"4\"} 1"));
  CHECK(has(page, "arcflow_stage_seconds_bucket{model=\"tiny\",stage=\"queue\",le=\"0.0025\"} 1"));
  CHECK(page.find("backend=\"ONNX \\\"Runtime\\\"\\n\\\\\"} 1\n") != std::string::npos);
  CHECK(page.find("process_resident_memory_bytes ") != std::string::npos);
}

TEST_CASE("a log line is one line") {
  const LogFields fields = {
      {"path", std::string("/a\nb \"c\" \xff")}, {"status", std::int64_t{404}}, {"total_ms", 1.5}};
  const std::string json = format_line(LogFormat::kJson, "T", "info", "request", fields);
  CHECK(json.find('\n') == std::string::npos);
  const auto parsed = nlohmann::json::parse(json);
  CHECK(parsed["status"] == 404);
  CHECK(parsed["total_ms"] == 1.5);
  CHECK(parsed["event"] == "request");
  const std::string text = format_line(LogFormat::kText, "T", "info", "request", fields);
  CHECK(text == "T info request path=\"/a\\nb \\\"c\\\" \\ufffd\" status=404 total_ms=1.5");
  CHECK(format_line(LogFormat::kText, "T", "info", "up", {}) == "T info up");
}

TEST_CASE("a log has a least level, and drops what its reader does not take") {
  std::signal(SIGPIPE, SIG_IGN);
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  std::FILE* stream = fdopen(ends[1], "w");
  {
    Log log(LogFormat::kText, stream, "warning");
    log.write("info", "not this");
    log.write("error", "this");
    REQUIRE(log.flush(std::chrono::seconds(5)));
    char text[256] = "";
    REQUIRE(read(ends[0], text, sizeof text - 1) > 0);
    CHECK(std::string(text).find(" error this\n") != std::string::npos);
    CHECK(std::string(text).find("not this") == std::string::npos);
    const std::string long_line(10'000, 'a');
    for (int i = 0; i < 100; ++i) log.write("error", long_line);
    CHECK(log.dropped() > 40);
    CHECK(!log.flush(std::chrono::milliseconds(1)));
    close(ends[0]);  // and SIGPIPE is ignored
    CHECK(log.flush(std::chrono::seconds(5)));
    CHECK(log.dropped() >= 99 - 65536 / 10'000);
  }
  std::fclose(stream);
}
