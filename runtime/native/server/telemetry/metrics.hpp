// What the service counts, and its rendering in Prometheus' text format, version 0.0.4.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "server/engine.hpp"

namespace arcflow::serve {

// Counts of values by upper bound, as Prometheus has them. Not safe by itself: Metrics locks.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds);
  void observe(double value);
  // Lines of name_bucket, name_sum, name_count. labels: `stage="vae"` or "".
  std::string render(const std::string& name, const std::string& labels) const;

 private:
  std::vector<double> bounds_;
  std::vector<std::uint64_t> counts_;  // of each bound alone, the last for what is above all
  double sum_ = 0;
};

// What is counted of one model. All functions may be called from any thread.
class ModelMetrics {
 public:
  struct Counts {
    std::map<std::string, Histogram> stages;
    Histogram batches;
    std::size_t queued = 0, in_flight = 0, running = 0;
    std::uint64_t images = 0, partials = 0;
  };

  ModelMetrics();

  // queued: requests that wait. images, batches: that are being made now.
  void set_load(std::size_t queued, std::size_t images, std::size_t batches);
  void observe_batch(std::size_t images);
  void observe_stage(const std::string& stage, double seconds);
  void count_images(std::size_t images);
  void count_partial();
  Counts counts() const;

 private:
  mutable std::mutex mutex_;
  Counts counts_;
};

// All functions may be called from any thread.
class Metrics {
 public:
  Metrics();

  // A request is answered. route: one of the service's, or "other", so that callers cannot make up label values.
  void count_request(const std::string& route, int status);
  void set_ready(bool ready);
  void count_stream(const std::string& ended);  // "completed", "client_gone", "deadline", "shutdown", "failed"
  // "queue_full", "caller_full", "too_late", "draining", "not_ready", "invalid", "unauthorized"
  void count_rejected(const std::string& reason);
  void count_cancelled(const std::string& reason);  // "client_gone", "deadline", "shutdown"
  // A model that is served from now on; id: its label. The reference lives as long as this object.
  ModelMetrics& add_model(const std::string& id, const ModelDescription& model);
  void set_dropped_lines(std::uint64_t lines);  // of the log, in all

  // The whole page.
  std::string render() const;

 private:
  struct Model {
    std::string label, build_labels;  // `model="tiny"`
    std::unique_ptr<ModelMetrics> metrics;
  };

  std::string render_models() const;

  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, std::uint64_t> requests_;
  std::map<std::string, std::uint64_t> rejected_, cancelled_, streams_;
  std::vector<Model> models_;
  std::uint64_t dropped_lines_ = 0;
  bool ready_ = false;
  double started_;
};

// A label's value with backslash, quote and newline escaped.
std::string escape_label(const std::string& value);

}  // namespace arcflow::serve
