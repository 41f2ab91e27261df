// A stand-in for TensorRT with as much of its interface as the host uses. Every plan is one network: y = 2 x + 1 on
// float32 [n, 4], n from 1 to 8. It is strict where TensorRT's documentation is: addresses on 256 bytes, shapes before
// addresses are used, and a context that a graph was captured of must not be changed.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>

#include "cuda_runtime_api.h"

#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_MINOR 14
#define NV_TENSORRT_VERSION 101401

namespace nvinfer1 {

enum class DataType : std::int32_t { kFLOAT, kHALF, kINT8, kINT32, kBOOL, kUINT8, kFP8, kBF16, kINT64 };
enum class TensorIOMode : std::int32_t { kNONE, kINPUT, kOUTPUT };
enum class TensorLocation : std::int32_t { kDEVICE, kHOST };
enum class ExecutionContextAllocationStrategy : std::int32_t { kSTATIC, kON_PROFILE_CHANGE, kUSER_MANAGED };

struct Dims {
  static constexpr std::int32_t MAX_DIMS = 8;
  std::int32_t nbDims;
  std::int64_t d[MAX_DIMS];
};

class ILogger {
 public:
  enum class Severity : std::int32_t { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
  virtual void log(Severity severity, const char* message) noexcept = 0;
  virtual ~ILogger() = default;
};

struct StandInTensorRt {
  ILogger* logger = nullptr;
  int contexts = 0;         // that exist
  int evaluations = 0;      // that ran on the device
  std::string refuse_plan;  // what deserialising says
  bool fail = false;        // the next evaluation cannot be enqueued
  std::string broken;       // a rule that the host broke
};
inline StandInTensorRt tensorrt;

class IExecutionContext {
 public:
  IExecutionContext() { ++tensorrt.contexts; }
  ~IExecutionContext() { --tensorrt.contexts; }
  void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept { memory_ = size >= 1024 ? memory : nullptr; }
  std::int32_t getOptimizationProfile() const noexcept { return 0; }
  bool setOptimizationProfileAsync(std::int32_t, cudaStream_t) noexcept { return true; }
  bool setInputShape(const char* name, const Dims& dims) noexcept {
    if (captured_) tensorrt.broken = "a shape was set where a graph had been captured";
    if (std::string(name) != "x" || dims.nbDims != 2 || dims.d[0] < 1 || dims.d[0] > 8 || dims.d[1] != 4) {
      tensorrt.logger->log(ILogger::Severity::kERROR, "dimensions are not in the profile");
      return false;
    }
    rows_ = dims.d[0];
    return true;
  }
  Dims getTensorShape(const char*) const noexcept { return {2, {rows_, 4}}; }
  bool setTensorAddress(const char* name, void* address) noexcept {
    if (captured_) tensorrt.broken = "an address was set where a graph had been captured";
    if (reinterpret_cast<std::uintptr_t>(address) % 256 != 0) tensorrt.broken = "an address that is not aligned";
    addresses_[name] = address;
    return true;
  }
  bool enqueueV3(cudaStream_t stream) noexcept {
    if (memory_ == nullptr || rows_ < 1 || addresses_.size() != 2) tensorrt.broken = "enqueued before all was set";
    if (tensorrt.fail) {
      tensorrt.fail = false;
      tensorrt.logger->log(ILogger::Severity::kERROR, "no such luck");
      return false;
    }
    captured_ = captured_ || stream->capture != nullptr;
    const auto* x = static_cast<const float*>(addresses_["x"]);
    auto* y = static_cast<float*>(addresses_["y"]);
    stand_in_put(stream, [this, x, y, rows = rows_] {
      ++tensorrt.evaluations;
      if (memory_ == nullptr) tensorrt.broken = "evaluated without memory";
      for (std::int64_t i = 0; i < rows * 4; ++i) y[i] = 2.0f * x[i] + 1.0f;
    });
    return true;
  }

 private:
  void* memory_ = nullptr;
  std::int64_t rows_ = -1;
  std::map<std::string, void*> addresses_;
  bool captured_ = false;
};

class ICudaEngine {
 public:
  TensorIOMode getTensorIOMode(const char* name) const noexcept {
    const std::string port = name;
    return port == "x" ? TensorIOMode::kINPUT : port == "y" ? TensorIOMode::kOUTPUT : TensorIOMode::kNONE;
  }
  Dims getTensorShape(const char*) const noexcept { return {2, {-1, 4}}; }
  DataType getTensorDataType(const char*) const noexcept { return DataType::kFLOAT; }
  TensorLocation getTensorLocation(const char*) const noexcept { return TensorLocation::kDEVICE; }
  std::int32_t getNbIOTensors() const noexcept { return 2; }
  std::int64_t getDeviceMemorySizeV2() const noexcept { return 1024; }
  IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept {
    return new IExecutionContext;
  }
};

class IRuntime {
 public:
  ICudaEngine* deserializeCudaEngine(const void*, std::size_t) noexcept {
    if (tensorrt.refuse_plan.empty()) return new ICudaEngine;
    tensorrt.logger->log(ILogger::Severity::kERROR, tensorrt.refuse_plan.c_str());
    return nullptr;
  }
};

}  // namespace nvinfer1
