// The plans of a bundle, deserialised on one GPU: immutable, shared by sessions.
#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "hosts/table.hpp"
#include "hosts/tensorrt/library.hpp"
#include "hosts/tensorrt/logger.hpp"

namespace arcflow::tensorrt {

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
