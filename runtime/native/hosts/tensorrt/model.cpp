// Loading plans, and holding them to what the manifest says of them.
//
// Not yet run: it was compiled and linked where there is no GPU. What runs there is tested: every way in which opening
// the library or the device fails (tests/native/hosts/test_tensorrt_host.py).
#include "hosts/tensorrt/model.hpp"

#include <algorithm>
#include <string_view>

#include "core/error.hpp"
#include "hosts/tensorrt/cuda.hpp"

namespace arcflow::tensorrt {
namespace {

using core::Error;
using nvinfer1::DataType;
using nvinfer1::TensorIOMode;

DataType wanted(std::int32_t type) {
  switch (type) {
    case kArcflowFloat16:
      return DataType::kHALF;
    case kArcflowBfloat16:
      return DataType::kBF16;
    case kArcflowInt64:
      return DataType::kINT64;
    case kArcflowInt32:
      return DataType::kINT32;
    default:
      return DataType::kFLOAT;
  }
}

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// The plan must take and give exactly the ports of the manifest, in memory of the GPU.
void check_ports(const ArcflowHostNetwork& source, const nvinfer1::ICudaEngine& engine) {
  const std::string name = std::string("network '") + source.name + "': ";
  const auto check_side = [&](const ArcflowHostPort* ports, std::size_t count, TensorIOMode mode, const char* side) {
    for (std::size_t i = 0; i < count; ++i) {
      const ArcflowHostPort& port = ports[i];
      if (engine.getTensorIOMode(port.name) != mode) {
        throw Error(ARCFLOW_BUNDLE_REJECTED,
                    name + "the plan has no " + side + " '" + port.name + "', which the manifest lists");
      }
      const nvinfer1::Dims dims = engine.getTensorShape(port.name);
      bool same = engine.getTensorDataType(port.name) == wanted(port.type) && dims.nbDims == port.rank;
      for (std::int32_t d = 0; same && d < port.rank; ++d) {
        same = dims.d[d] < 0 || port.dims[d] < 0 || dims.d[d] == port.dims[d];
      }
      if (!same) {
        throw Error(ARCFLOW_BUNDLE_REJECTED,
                    name + side + " '" + port.name + "' of the plan has another type or shape than the manifest says");
      }
      if (engine.getTensorLocation(port.name) != nvinfer1::TensorLocation::kDEVICE) {
        throw Error(ARCFLOW_BUNDLE_REJECTED,
                    name + side + " '" + port.name + "' of the plan is a shape, not a tensor on the GPU");
      }
    }
  };
  check_side(source.inputs, source.input_count, TensorIOMode::kINPUT, "input");
  check_side(source.outputs, source.output_count, TensorIOMode::kOUTPUT, "output");
  if (static_cast<std::size_t>(engine.getNbIOTensors()) != source.input_count + source.output_count) {
    throw Error(ARCFLOW_BUNDLE_REJECTED, name + "the plan has " + std::to_string(engine.getNbIOTensors()) +
                                             " inputs and outputs and the manifest lists " +
                                             std::to_string(source.input_count + source.output_count));
  }
}

}  // namespace

Model::Model(const ArcflowHostOptions& options, const ArcflowHostNetwork* networks, std::size_t count)
    : device_(static_cast<int>(options.device)),
      logger_(std::make_unique<Logger>(options)),
      library_(open_library(options.library)),
      gpu_(require_device(device_)),
      backend_(library_.name + " " + library_.version + ", " + gpu_) {
  const DeviceGuard guard(device_);
  // Only now: without a GPU this call may not come back.
  runtime_.reset(static_cast<nvinfer1::IRuntime*>(library_.create_runtime(logger_.get(), NV_TENSORRT_VERSION)));
  if (runtime_ == nullptr) {
    throw Error(ARCFLOW_BACKEND_UNAVAILABLE,
                library_.name + " " + library_.version + " does not start on " + gpu_ + ": " + logger_->take_errors());
  }
  for (std::size_t i = 0; i < count; ++i) load(networks[i]);
}

void Model::load(const ArcflowHostNetwork& source) {
  const std::string name = std::string("network '") + source.name + "'";
  if (ends_with(source.model.name, ".onnx")) {
    throw Error(ARCFLOW_INVALID_ARGUMENT,
                name +
                    " is an ONNX file, and the host tensorrt runs plans: build them with `python -m "
                    "export.engine`, or leave the choice of the host out");
  }
  logger_->take_errors();
  Network network;
  network.name = source.name;
  network.engine.reset(runtime_->deserializeCudaEngine(source.model.data, source.model.size));
  if (network.engine == nullptr) {
    const std::string said = logger_->take_errors();
    if (cudaGetLastError() == cudaErrorMemoryAllocation || about_memory(said)) {
      std::size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      throw Error(ARCFLOW_OUT_OF_MEMORY, name + ": its plan of " + megabytes(source.model.size) +
                                             " does not fit into " + gpu_ + ", where " + megabytes(free) + " of " +
                                             megabytes(total) + " are free");
    }
    throw Error(ARCFLOW_BUNDLE_REJECTED,
                name + ": its plan does not load with " + library_.name + " " + library_.version + " on " + gpu_ +
                    "; a plan is for one kind of GPU and one version of TensorRT: build it here with `python -m "
                    "export.engine`" +
                    (said.empty() ? "" : "; TensorRT says: " + said));
  }
  check_ports(source, *network.engine);
  for (std::size_t i = 0; i < source.input_count; ++i) network.inputs.emplace_back(source.inputs[i].name);
  for (std::size_t i = 0; i < source.output_count; ++i) network.outputs.emplace_back(source.outputs[i].name);
  bytes_ += source.model.size;
  const std::int64_t activations = network.engine->getDeviceMemorySizeV2();
  activation_bytes_ = std::max(activation_bytes_, static_cast<std::uint64_t>(std::max<std::int64_t>(activations, 0)));
  networks_.push_back(std::move(network));
}

}  // namespace arcflow::tensorrt
