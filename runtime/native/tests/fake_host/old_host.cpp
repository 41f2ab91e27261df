// A host module of another version of the interface.
#include "hosts/host.h"

namespace {
const ArcflowHostApi kApi{kArcflowHostVersion + 1,
                          "old",
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {},
                          {}};
}  // namespace

extern "C" __attribute__((visibility("default"))) const ArcflowHostApi* arcflow_host_get_api(std::uint32_t) {
  return &kApi;
}
