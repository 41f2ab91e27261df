// An engine host in C++: functions that throw, and the table of host.h made of them.
#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <new>
#include <string>

#include "core/error.hpp"
#include "core/numerics/sizes.hpp"
#include "hosts/host.h"

namespace arcflow::hosts {

// Runs `action`; what it throws becomes a code, and a message in `error`, which may be null.
template <class Action>
std::int32_t guard(ArcflowHostError* error, Action&& action) noexcept {
  const auto tell = [error](const char* message, ArcflowCode code) {
    if (error != nullptr) {
      std::strncpy(error->message, message, sizeof(error->message) - 1);
      error->message[sizeof(error->message) - 1] = '\0';
    }
    return static_cast<std::int32_t>(code);
  };
  try {
    action();
    return ARCFLOW_OK;
  } catch (const core::Error& failure) {
    return tell(failure.what(), failure.code());
  } catch (const std::bad_alloc&) {
    return tell("main memory is exhausted; ask for fewer or smaller images at once", ARCFLOW_OUT_OF_MEMORY);
  } catch (const std::exception& failure) {
    return tell(failure.what(), ARCFLOW_INTERNAL);
  } catch (...) {
    return tell("an exception of an unknown kind", ARCFLOW_INTERNAL);
  }
}

// The product of sizes, for bounds that are checked next. Throws core::Error(ARCFLOW_INTERNAL) for what is no size.
inline std::uint64_t product(std::initializer_list<std::int64_t> sizes) {
  return core::product(sizes, [](std::int64_t size) {
    throw core::Error(ARCFLOW_INTERNAL, "the size " + std::to_string(size) + " is out of range");
  });
}

// A function that throws as the table has it: with a code for a result, and a last argument for the message.
template <auto function>
struct Guarded;
template <class... Arguments, void (*function)(Arguments...)>
struct Guarded<function> {
  static std::int32_t call(Arguments... arguments, ArcflowHostError* error) noexcept {
    return guard(error, [&] { function(arguments...); });
  }
};

// The table of a host: `Host` has a static function for each entry, by its name. Those whose entries return a code
// return nothing and may throw; the others must not.
template <class Host>
constexpr ArcflowHostApi table_of(const char* name) noexcept {
  ArcflowHostApi table{};
  table.version = kArcflowHostVersion;
  table.name = name;
  table.model_create = Guarded<&Host::model_create>::call;
  table.model_destroy = Host::model_destroy;
  table.model_backend = Host::model_backend;
  table.model_memory = Host::model_memory;
  table.session_create = Guarded<&Host::session_create>::call;
  table.session_destroy = Host::session_destroy;
  table.session_memory = Host::session_memory;
  table.buffer_create = Guarded<&Host::buffer_create>::call;
  table.buffer_destroy = Host::buffer_destroy;
  table.write = Guarded<&Host::write>::call;
  table.read = Guarded<&Host::read>::call;
  table.copy = Guarded<&Host::copy>::call;
  table.run = Guarded<&Host::run>::call;
  table.normal = Guarded<&Host::normal>::call;
  table.advance = Guarded<&Host::advance>::call;
  table.unpack = Guarded<&Host::unpack>::call;
  table.to_rgb8 = Guarded<&Host::to_rgb8>::call;
  table.finite = Guarded<&Host::finite>::call;
  table.synchronize = Guarded<&Host::synchronize>::call;
  table.graph_begin = Guarded<&Host::graph_begin>::call;
  table.graph_end = Guarded<&Host::graph_end>::call;
  table.graph_reset = Host::graph_reset;
  table.interrupt = Host::interrupt;
  table.rearm = Host::rearm;
  table.prepare = Host::prepare;
  table.unprepare = Host::unprepare;
  static_assert(sizeof table == 28 * sizeof(void*), "an entry was appended: fill it in here too");
  return table;
}

// What a host without preparation gives for `prepare` and `unprepare`.
struct Unprepared {
  static constexpr decltype(ArcflowHostApi::prepare) prepare = nullptr;
  static constexpr decltype(ArcflowHostApi::unprepare) unprepare = nullptr;
};

}  // namespace arcflow::hosts
