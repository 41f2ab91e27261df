// Errors inside the core. They become statuses where the C interface begins and cross no module's border.
#pragma once

#include <stdexcept>
#include <string>

#include "arcflow/arcflow.h"

namespace arcflow::core {

// What went wrong, as a user can mend it: what was wrong, what is allowed, what to do.
class Error : public std::runtime_error {
 public:
  Error(ArcflowCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ArcflowCode code() const noexcept { return code_; }

 private:
  ArcflowCode code_;
};

// Of a bundle that is missing, altered, or not of this machine.
[[noreturn]] inline void reject(const std::string& message) { throw Error(ARCFLOW_BUNDLE_REJECTED, message); }

}  // namespace arcflow::core
