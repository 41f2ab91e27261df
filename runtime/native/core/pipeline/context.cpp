// Logging through the caller's function.
#include "core/pipeline/context.hpp"

namespace arcflow::core {

void Log::write(std::int32_t level, const std::string& message) const noexcept {
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

}  // namespace arcflow::core
