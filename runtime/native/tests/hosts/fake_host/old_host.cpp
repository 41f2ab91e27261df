// A host module of another version of the interface.
#include "hosts/host.h"

namespace {

constexpr ArcflowHostApi old() {
  ArcflowHostApi table{};
  table.version = kArcflowHostVersion + 1;
  table.name = "old";
  return table;
}
constexpr ArcflowHostApi kApi = old();

}  // namespace

extern "C" __attribute__((visibility("default"))) const ArcflowHostApi* arcflow_host_get_api(std::uint32_t) {
  return &kApi;
}
