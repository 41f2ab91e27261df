// An engine host in C++: functions that throw, and the table of host.h made of them.
#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <new>
#include <string>
#include <vector>

#include "core/error.hpp"
#include "core/numerics/compute.hpp"
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

// What is there while a function of a host runs, made of its first argument: for most hosts nothing.
struct Anywhere {
  explicit Anywhere(const void*) {}
};

// A function that throws as the table has it. Where that has a code for a result, its last argument is for the message;
// where it has none, nothing is told.
template <auto function, class Around>
struct Guarded;
template <class First, class... Rest, void (*function)(First, Rest...), class Around>
struct Guarded<function, Around> {
  static std::int32_t call(First first, Rest... rest, ArcflowHostError* error) noexcept {
    return guard(error, [&] {
      [[maybe_unused]] const Around around(first);
      function(first, rest...);
    });
  }
  static void silent(First first, Rest... rest) noexcept { call(first, rest..., nullptr); }
};

// The table of a host: `Host` has a static function for each entry, by its name. Those whose entries return nothing, or
// a code, return nothing and may throw; the others must not.
template <class Host, class Around = Anywhere>
constexpr ArcflowHostApi table_of(const char* name) noexcept {
  ArcflowHostApi table{};
  table.version = kArcflowHostVersion;
  table.name = name;
  table.model_create = Guarded<&Host::model_create, Around>::call;
  table.model_destroy = Guarded<&Host::model_destroy, Around>::silent;
  table.model_backend = Host::model_backend;
  table.model_memory = Host::model_memory;
  table.session_create = Guarded<&Host::session_create, Around>::call;
  table.session_destroy = Guarded<&Host::session_destroy, Around>::silent;
  table.session_memory = Host::session_memory;
  table.buffer_create = Guarded<&Host::buffer_create, Around>::call;
  table.buffer_destroy = Guarded<&Host::buffer_destroy, Around>::silent;
  table.write = Guarded<&Host::write, Around>::call;
  table.read = Guarded<&Host::read, Around>::call;
  table.copy = Guarded<&Host::copy, Around>::call;
  table.run = Guarded<&Host::run, Around>::call;
  table.normal = Guarded<&Host::normal, Around>::call;
  table.advance = Guarded<&Host::advance, Around>::call;
  table.unpack = Guarded<&Host::unpack, Around>::call;
  table.to_rgb8 = Guarded<&Host::to_rgb8, Around>::call;
  table.finite = Guarded<&Host::finite, Around>::call;
  table.synchronize = Guarded<&Host::synchronize, Around>::call;
  table.graph_begin = Guarded<&Host::graph_begin, Around>::call;
  table.graph_end = Guarded<&Host::graph_end, Around>::call;
  table.graph_reset = Guarded<&Host::graph_reset, Around>::silent;
  table.interrupt = Host::interrupt;
  table.rearm = Host::rearm;
  table.prepare = Host::prepare;
  table.unprepare = Host::unprepare;
  static_assert(sizeof table == 28 * sizeof(void*), "an entry was appended: fill it in here too");
  return table;
}

// Bytes [offset, offset + count) lie inside `size`, or core::Error(ARCFLOW_INTERNAL).
inline void check_inside(std::uint64_t offset, std::uint64_t count, std::uint64_t size) {
  if (offset > size || count > size - offset) {
    throw core::Error(ARCFLOW_INTERNAL, std::to_string(count) + " bytes from " + std::to_string(offset) +
                                            " on are not inside a buffer of " + std::to_string(size));
  }
}

// One of a model's networks, by the core's number of it.
template <class Network>
const Network& network_at(const std::vector<Network>& networks, std::size_t index) {
  if (index < networks.size()) return networks[index];
  throw core::Error(ARCFLOW_INTERNAL, "there is no network " + std::to_string(index) + " in this model");
}

// "[1, 64, 16]"
inline std::string shape_text(const std::int64_t* dims, std::size_t rank) {
  std::string text;
  for (std::size_t axis = 0; axis < rank; ++axis) text += (axis == 0 ? "" : ", ") + std::to_string(dims[axis]);
  return "[" + text + "]";
}

// What a host without preparation gives for `prepare` and `unprepare`.
struct Unprepared {
  static constexpr decltype(ArcflowHostApi::prepare) prepare = nullptr;
  static constexpr decltype(ArcflowHostApi::unprepare) unprepare = nullptr;
};

}  // namespace arcflow::hosts
