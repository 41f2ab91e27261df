// What TensorRT says: its errors are kept for the message of the call that fails, all goes to the caller's logger.
#pragma once

#include <NvInferRuntime.h>

#include <mutex>
#include <string>

#include "arcflow/arcflow.h"
#include "hosts/host.h"

namespace arcflow::tensorrt {

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

}  // namespace arcflow::tensorrt
