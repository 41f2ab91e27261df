// One execution context of a plan: its shapes and addresses, and putting an evaluation on a stream.
#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "hosts/host.h"
#include "hosts/tensorrt/cuda.hpp"
#include "hosts/tensorrt/model.hpp"

namespace arcflow::tensorrt {

// Where a port of a network lies for one evaluation.
struct Bound {
  const char* name;
  void* address;
  std::vector<std::int64_t> dims;
  std::uint64_t room;  // bytes from the address to the end of its buffer
};

class Context {
 public:
  // arena: memory for activations, at least model.activation_bytes(), shared by contexts that never run at once.
  Context(const Model& model, std::size_t network, const DeviceMemory& arena, cudaStream_t stream);

  // Sets shapes and addresses. Throws core::Error where they do not fit the plan's profile or the buffers.
  void bind(const std::vector<Bound>& inputs, const std::vector<Bound>& outputs);
  // Puts the evaluation on the stream; waits for nothing.
  void enqueue(cudaStream_t stream);

  std::size_t network() const noexcept { return network_; }

 private:
  [[noreturn]] void fail(const std::string& what);
  void set_address(const Bound& port, const nvinfer1::Dims& dims);

  const Model& model_;
  std::size_t network_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::map<std::string, std::vector<std::int64_t>> shapes_;  // as last set: to set one again costs the plan's analysis
};

}  // namespace arcflow::tensorrt
