// Rendering of counters, gauges and histograms.
#include "server/telemetry/metrics.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>

namespace arcflow::serve {
namespace {

const std::vector<double> kSeconds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60};
const std::vector<double> kBatch = {1, 2, 3, 4, 6, 8, 12, 16, 32, 64};
constexpr std::array<const char*, 9> kStages = {"queue",  "tokenize", "text",   "noise", "backbone",
                                                "solver", "vae",      "encode", "total"};

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

std::string head(const std::string& name, const char* type, const char* help) {
  return "# HELP " + name + " " + help + "\n# TYPE " + name + " " + type + "\n";
}

std::string gauge(const std::string& name, const char* help, double value) {
  return head(name, "gauge", help) + name + " " + number(value) + "\n";
}

std::string label(const char* name, const std::string& value) {
  return std::string(name) + "=\"" + escape_label(value) + "\"";
}

// Bytes of main memory that the process holds, or 0 where the system does not say.
double resident_bytes() {
  std::ifstream file("/proc/self/statm");
  double pages = 0, resident = 0;
  file >> pages >> resident;
  return file ? resident * static_cast<double>(sysconf(_SC_PAGESIZE)) : 0;
}

double unix_now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

}  // namespace

std::string escape_label(const std::string& value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    out += c == '\n' ? std::string("\\n") : std::string(1, c);
  }
  return out;
}

Histogram::Histogram(std::vector<double> bounds) : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}

void Histogram::observe(double value) {
  const auto place = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  ++counts_[static_cast<std::size_t>(place)];
  sum_ += value;
}

std::string Histogram::render(const std::string& name, const std::string& labels) const {
  std::string out;
  std::uint64_t below = 0;
  for (std::size_t i = 0; i < counts_.size(); ++i) {
    below += counts_[i];
    const std::string bound = i < bounds_.size() ? number(bounds_[i]) : "+Inf";
    out += name + "_bucket{" + labels + (labels.empty() ? "" : ",") + "le=\"" + bound + "\"} " + std::to_string(below) +
           "\n";
  }
  const std::string tail = labels.empty() ? " " : "{" + labels + "} ";
  out += name + "_sum" + tail + number(sum_) + "\n";
  return out + name + "_count" + tail + std::to_string(below) + "\n";
}

ModelMetrics::ModelMetrics() : counts_{{}, Histogram(kBatch)} {
  for (const char* stage : kStages) counts_.stages.emplace(stage, Histogram(kSeconds));
}

void ModelMetrics::set_load(std::size_t queued, std::size_t images, std::size_t batches) {
  const std::lock_guard lock(mutex_);
  counts_.queued = queued;
  counts_.in_flight = images;
  counts_.running = batches;
}

void ModelMetrics::observe_batch(std::size_t images) {
  const std::lock_guard lock(mutex_);
  counts_.batches.observe(static_cast<double>(images));
}

void ModelMetrics::observe_stage(const std::string& stage, double seconds) {
  const std::lock_guard lock(mutex_);
  counts_.stages.at(stage).observe(seconds);
}

void ModelMetrics::count_images(std::size_t images) {
  const std::lock_guard lock(mutex_);
  counts_.images += images;
}

void ModelMetrics::count_partial() {
  const std::lock_guard lock(mutex_);
  ++counts_.partials;
}

ModelMetrics::Counts ModelMetrics::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

Metrics::Metrics() : started_(unix_now()) {
  for (const char* reason :
       {"queue_full", "caller_full", "too_late", "draining", "not_ready", "invalid", "unauthorized"})
    rejected_[reason] = 0;
  for (const char* reason : {"client_gone", "deadline", "shutdown"}) cancelled_[reason] = 0;
  for (const char* end : {"completed", "client_gone", "deadline", "shutdown", "failed"}) streams_[end] = 0;
}

void Metrics::count_request(const std::string& route, int status) {
  const std::lock_guard lock(mutex_);
  ++requests_[{route, status}];
}

void Metrics::set_ready(bool ready) {
  const std::lock_guard lock(mutex_);
  ready_ = ready;
}

void Metrics::count_stream(const std::string& ended) {
  const std::lock_guard lock(mutex_);
  ++streams_[ended];
}

void Metrics::count_rejected(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  ++rejected_[reason];
}

void Metrics::count_cancelled(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  ++cancelled_[reason];
}

ModelMetrics& Metrics::add_model(const std::string& id, const ModelDescription& model) {
  const std::string own = label("model", id);
  std::string build = label("version", model.version) + "," + own + "," + label("precision", model.precision) + "," +
                      label("target", model.target) + "," + label("digest", model.digest) + "," +
                      label("backend", model.backend);
  const std::lock_guard lock(mutex_);
  models_.push_back({own, std::move(build), std::make_unique<ModelMetrics>()});
  return *models_.back().metrics;
}

void Metrics::set_dropped_lines(std::uint64_t lines) {
  const std::lock_guard lock(mutex_);
  dropped_lines_ = lines;
}

// Every metric of the models, each with a line or more a model.
std::string Metrics::render_models() const {
  std::string depth = head("arcflow_queue_depth", "gauge", "Requests that wait for a worker.");
  std::string in_flight = head("arcflow_in_flight_images", "gauge", "Images that are being made.");
  std::string running = head("arcflow_running_batches", "gauge", "Batches that are being made.");
  std::string images = head("arcflow_images_total", "counter", "Images that were sent.");
  std::string partials = head("arcflow_partial_images_total", "counter", "Partial images that were sent.");
  std::string batches = head("arcflow_batch_size", "histogram", "Images of a batch.");
  std::string stages = head("arcflow_stage_seconds", "histogram",
                            "Seconds by stage: queue, encode and total of a request, the others of a batch.");
  std::string build = head("arcflow_build_info", "gauge", "What is served.");
  for (const Model& model : models_) {
    const ModelMetrics::Counts counts = model.metrics->counts();
    const std::string own = "{" + model.label + "} ";
    depth += "arcflow_queue_depth" + own + std::to_string(counts.queued) + "\n";
    in_flight += "arcflow_in_flight_images" + own + std::to_string(counts.in_flight) + "\n";
    running += "arcflow_running_batches" + own + std::to_string(counts.running) + "\n";
    images += "arcflow_images_total" + own + std::to_string(counts.images) + "\n";
    partials += "arcflow_partial_images_total" + own + std::to_string(counts.partials) + "\n";
    batches += counts.batches.render("arcflow_batch_size", model.label);
    for (const auto& [stage, histogram] : counts.stages) {
      stages += histogram.render("arcflow_stage_seconds", model.label + ",stage=\"" + stage + "\"");
    }
    build += "arcflow_build_info{" + model.build_labels + "} 1\n";
  }
  return depth + in_flight + running + images + partials + batches + stages + build;
}

std::string Metrics::render() const {
  const std::lock_guard lock(mutex_);
  std::string out = head("arcflow_requests_total", "counter", "Requests answered, by route and status.");
  for (const auto& [key, count] : requests_) {
    out += "arcflow_requests_total{route=\"" + escape_label(key.first) + "\",code=\"" + std::to_string(key.second) +
           "\"} " + std::to_string(count) + "\n";
  }
  out += gauge("arcflow_ready", "1 when requests are accepted.", ready_ ? 1 : 0);
  out += head("arcflow_log_dropped_lines_total", "counter", "Log lines that nobody took in time.") +
         "arcflow_log_dropped_lines_total " + std::to_string(dropped_lines_) + "\n";
  const auto family = [&out](const std::string& name, const char* label, const char* help, const auto& counts) {
    out += head(name, "counter", help);
    for (const auto& [value, count] : counts) {
      out += name + "{" + label + "=\"" + escape_label(value) + "\"} " + std::to_string(count) + "\n";
    }
  };
  family("arcflow_rejected_total", "reason", "Generation requests that were not accepted.", rejected_);
  family("arcflow_cancelled_total", "reason", "Accepted requests that ended without images.", cancelled_);
  family("arcflow_streams_total", "ended", "Streamed answers, by how they ended.", streams_);
  out += render_models();
  out += gauge("process_resident_memory_bytes", "Main memory held by the process.", resident_bytes());
  out += head("process_start_time_seconds", "gauge", "Unix time of the start.") + "process_start_time_seconds " +
         std::to_string(started_) + "\n";
  return out;
}

}  // namespace arcflow::serve
