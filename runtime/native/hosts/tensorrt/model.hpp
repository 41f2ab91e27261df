// The plans of a bundle, deserialised on one GPU: immutable, shared by sessions.
#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "hosts/table.hpp"
#include "hosts/tensorrt/library.hpp"

namespace arcflow::tensorrt {

// What TensorRT says: its errors are kept for the message of the call that fails, all goes to the caller's logger.
class Logger final : public nvinfer1::ILogger {
 public:
  explicit Logger(const ArcflowHostOptions& options) : log_(options.log), user_(options.log_user) {}

  void log(Severity severity, const char* message) noexcept override {
    if (severity == Severity::kVERBOSE || message == nullptr) return;
    const bool error = severity == Severity::kERROR || severity == Severity::kINTERNAL_ERROR;
    if (error) keep(message);
    say(error                            ? ARCFLOW_LOG_ERROR
        : severity == Severity::kWARNING ? ARCFLOW_LOG_WARNING
                                         : ARCFLOW_LOG_DEBUG,  // its information is about its insides
        message);
  }

  void say(ArcflowLogLevel level, const char* message) const noexcept {
    if (log_ != nullptr) log_(user_, level, message);
  }

  // The errors since the last call, "" if there were none. Sessions share it: another's may be among them.
  std::string take_errors() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::string errors;
    errors.swap(errors_);
    return errors;
  }

 private:
  void keep(const char* message) noexcept {
    try {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (errors_.size() < 1200) errors_ += (errors_.empty() ? "" : "; ") + std::string(message);
    } catch (...) {  // No memory for a message: the failure itself is still reported.
    }
  }

  void (*log_)(void* user, std::int32_t level, const char* message);
  void* user_;
  std::mutex mutex_;
  std::string errors_;
};

struct Network {
  std::string name;
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
  std::vector<std::string> inputs, outputs;
};

class Model {
 public:
  // Throws core::Error: ARCFLOW_BACKEND_UNAVAILABLE without a library, driver or GPU; ARCFLOW_BUNDLE_REJECTED for a
  // plan of another GPU or another version of TensorRT, or one whose ports are not the manifest's;
  // ARCFLOW_OUT_OF_MEMORY.
  Model(const ArcflowHostOptions& options, const ArcflowHostNetwork* networks, std::size_t count);

  const std::string& backend() const noexcept { return backend_; }  // "TensorRT 10.14.1, NVIDIA L4 (compute ...)"
  int device() const noexcept { return device_; }
  std::uint64_t bytes() const noexcept { return bytes_; }  // of the plans: nearly all of it is weights on the GPU
  std::uint64_t activation_bytes() const noexcept { return activation_bytes_; }  // of the network that needs most
  std::size_t size() const noexcept { return networks_.size(); }
  const Network& network(std::size_t index) const { return hosts::network_at(networks_, index); }
  Logger& logger() const noexcept { return *logger_; }

 private:
  void load(const ArcflowHostNetwork& source);

  int device_;
  std::unique_ptr<Logger> logger_;  // declared first: it outlives what writes to it
  Library library_;
  std::string gpu_;
  std::string backend_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::vector<Network> networks_;
  std::uint64_t bytes_ = 0;
  std::uint64_t activation_bytes_ = 0;
};

}  // namespace arcflow::tensorrt
