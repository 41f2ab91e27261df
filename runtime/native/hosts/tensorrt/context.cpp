// Shapes, addresses and enqueueV3. Not yet run: see model.cpp.
#include "hosts/tensorrt/context.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "hosts/table.hpp"

namespace arcflow::tensorrt {
namespace {

using core::Error;

constexpr std::uintptr_t kAlignment = 256;  // that TensorRT asks of addresses

std::string text(const std::vector<std::int64_t>& dims) { return hosts::shape_text(dims.data(), dims.size()); }

std::uint64_t value_bytes(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kINT64:
      return 8;
    case nvinfer1::DataType::kHALF:
    case nvinfer1::DataType::kBF16:
      return 2;
    default:
      return 4;  // the other types of the manifest
  }
}

}  // namespace

Context::Context(const Model& model, std::size_t network, const DeviceMemory& arena, cudaStream_t stream)
    : model_(model), network_(network) {
  nvinfer1::ICudaEngine& engine = *model.network(network).engine;
  context_.reset(engine.createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
  if (context_ == nullptr) fail("its execution context cannot be made");
  context_->setDeviceMemoryV2(arena.data(), static_cast<std::int64_t>(arena.bytes()));
  // A plan of ours has one profile, which is also a context's first.
  if (context_->getOptimizationProfile() != 0 && !context_->setOptimizationProfileAsync(0, stream)) {
    fail("its profile cannot be chosen");
  }
}

void Context::fail(const std::string& what) {
  const std::string said = model_.logger().take_errors();
  const bool memory = cudaGetLastError() == cudaErrorMemoryAllocation || about_memory(said);
  throw Error(
      memory ? ARCFLOW_OUT_OF_MEMORY : ARCFLOW_BACKEND_UNAVAILABLE,
      "network '" + model_.network(network_).name + "': " + what + (said.empty() ? "" : "; TensorRT says: " + said));
}

void Context::set_address(const Bound& port, const nvinfer1::Dims& dims) {
  const nvinfer1::ICudaEngine& engine = *model_.network(network_).engine;
  std::uint64_t bytes = value_bytes(engine.getTensorDataType(port.name));
  bool same = static_cast<std::size_t>(dims.nbDims) == port.dims.size();
  for (std::size_t d = 0; same && d < port.dims.size(); ++d) {
    same = dims.d[d] == port.dims[d] && port.dims[d] >= 0;
    bytes =
        port.dims[d] != 0 && bytes > UINT64_MAX / static_cast<std::uint64_t>(std::max<std::int64_t>(port.dims[d], 1))
            ? UINT64_MAX
            : bytes * static_cast<std::uint64_t>(std::max<std::int64_t>(port.dims[d], 0));
  }
  if (!same) fail(std::string("'") + port.name + "' has another shape in the plan than " + text(port.dims));
  if (bytes > port.room) fail(std::string("the buffer of '") + port.name + "' is too small for " + text(port.dims));
  if (reinterpret_cast<std::uintptr_t>(port.address) % kAlignment != 0) {
    fail(std::string("'") + port.name + "' does not begin at a multiple of 256 bytes");
  }
  if (!context_->setTensorAddress(port.name, port.address)) fail(std::string("'") + port.name + "' cannot be bound");
}

void Context::bind(const std::vector<Bound>& inputs, const std::vector<Bound>& outputs) {
  const Network& network = model_.network(network_);
  if (inputs.size() != network.inputs.size() || outputs.size() != network.outputs.size()) {
    fail("not every port is bound");
  }
  model_.logger().take_errors();
  for (const Bound& input : inputs) {
    std::vector<std::int64_t>& set = shapes_[input.name];
    nvinfer1::Dims dims{};
    if (input.dims.size() > static_cast<std::size_t>(nvinfer1::Dims::MAX_DIMS)) fail("too many dimensions");
    dims.nbDims = static_cast<std::int32_t>(input.dims.size());
    std::copy(input.dims.begin(), input.dims.end(), dims.d);
    if (set != input.dims || input.dims.empty()) {
      if (!context_->setInputShape(input.name, dims)) {
        set.clear();
        fail(std::string("the shape ") + text(input.dims) + " of '" + input.name + "' is outside the plan's profile");
      }
      set = input.dims;
    }
    set_address(input, dims);
  }
  for (const Bound& output : outputs) set_address(output, context_->getTensorShape(output.name));
}

void Context::enqueue(cudaStream_t stream) {
  if (!context_->enqueueV3(stream)) fail("its evaluation cannot be enqueued");
}

}  // namespace arcflow::tensorrt
