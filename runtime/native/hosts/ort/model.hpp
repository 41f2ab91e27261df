// The networks of a bundle in ONNX Runtime on the CPU, options as in runtime/hosts/onnx_network.py: equal to the bit.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "hosts/ort/library.hpp"
#include "hosts/table.hpp"

namespace arcflow::ort {

struct Port {
  std::string name;
  ONNXTensorElementDataType type;
};

// One loaded network. Running it is safe from several threads at once.
struct Network {
  std::string name;
  Handle<OrtSession> session;
  std::vector<Port> inputs, outputs;
};

// Loaded networks; immutable.
class Model {
 public:
  // Loads them from the given bytes alone: no path is opened. Throws core::Error.
  Model(const ArcflowHostOptions& options, const ArcflowHostNetwork* networks, std::size_t count);

  const OrtApi& api() const noexcept { return *environment_.library.api; }
  const OrtMemoryInfo* memory() const noexcept { return memory_.get(); }
  const Network& network(std::size_t index) const { return hosts::network_at(networks_, index); }
  const std::string& backend() const noexcept { return backend_; }
  std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  struct Log {
    void (*write)(void* user, std::int32_t level, const char* message);
    void* user;
  };

  Handle<OrtSessionOptions> session_options(const ArcflowHostNetwork& network, std::uint32_t threads) const;
  void load_all(const ArcflowHostNetwork* networks, std::size_t count, std::uint32_t threads);
  Network load(const ArcflowHostNetwork& network, std::uint32_t threads) const;
  std::vector<Port> ports(const ArcflowHostNetwork& network, const OrtSession* session, bool inputs) const;
  static void ORT_API_CALL forward(void* log, OrtLoggingLevel severity, const char* category, const char* id,
                                   const char* location, const char* message);

  // In this order: sessions go first, then the environment that they live in.
  Environment environment_;
  Log log_;
  Handle<OrtMemoryInfo> memory_;
  std::vector<Network> networks_;
  std::string backend_;
  std::uint64_t bytes_ = 0;
};

// The ONNX element type of an ArcflowHostType, and its size in bytes. Throws core::Error for any other number.
ONNXTensorElementDataType element_type(std::int32_t type);
std::uint64_t element_bytes(ONNXTensorElementDataType type);

}  // namespace arcflow::ort
