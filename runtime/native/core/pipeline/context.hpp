// What the models of one caller share: its logger, where engine hosts lie, and the thread that keeps deadlines.
#pragma once

#include <filesystem>
#include <mutex>
#include <string>

#include "arcflow/arcflow.h"
#include "core/pipeline/request/cancel.hpp"

namespace arcflow::core {

// Hands messages to the caller's function, one at a time. Safe from any thread.
class Log {
 public:
  Log(ArcflowLogger logger, void* user, std::int32_t least) noexcept : logger_(logger), user_(user), least_(least) {}

  bool wants(std::int32_t level) const noexcept { return logger_ != nullptr && level >= least_; }
  // What the logger throws is dropped, and so is what is logged from inside it.
  void write(std::int32_t level, const std::string& message) const noexcept {
    if (!wants(level)) return;
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (writing_) return;
    writing_ = true;
    try {
      logger_(user_, level, message.c_str());
    } catch (...) {  // NOLINT: a logger has nobody to tell.
    }
    writing_ = false;
  }

 private:
  ArcflowLogger logger_;
  void* user_;
  std::int32_t least_;
  mutable std::recursive_mutex mutex_;
  mutable bool writing_ = false;
};

struct Context {
  Context(ArcflowLogger logger, void* user, std::int32_t least, std::filesystem::path folder)
      : log(logger, user, least), host_directory(std::move(folder)) {}

  Log log;
  std::filesystem::path host_directory;  // "": "arcflow" beside the library
  DeadlineWatch deadlines;
};

}  // namespace arcflow::core
