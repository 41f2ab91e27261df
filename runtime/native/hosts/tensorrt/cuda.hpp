// CUDA's statuses as errors, and small owners of what it hands out.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace arcflow::tensorrt {

// Throws Error for anything but success: ARCFLOW_OUT_OF_MEMORY with the memory that is free, or
// ARCFLOW_BACKEND_UNAVAILABLE. what: "allocating 3 MB".
void check(cudaError_t status, const std::string& what);

// Whether a library's message is about memory.
bool about_memory(const std::string& message);

std::string megabytes(std::uint64_t bytes);

// "NVIDIA H100 80GB HBM3 (compute capability 9.0)". Throws Error(ARCFLOW_BACKEND_UNAVAILABLE) where there is no driver,
// no GPU, or none with that number.
std::string require_device(int device);

// Makes a device the thread's current one, and gives the caller's own back at the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = -1;
};

// Memory of the current device.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(std::uint64_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; }
  DeviceMemory& operator=(DeviceMemory&&) = delete;

  void* data() const noexcept { return data_; }
  std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  void* data_ = nullptr;
  std::uint64_t bytes_ = 0;
};

// Main memory that the GPU copies from and to by itself.
class PinnedMemory {
 public:
  explicit PinnedMemory(std::uint64_t bytes);
  ~PinnedMemory();
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  void* data() const noexcept { return data_; }
  std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  void* data_ = nullptr;
  std::uint64_t bytes_;
};

class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t stream);
  bool done() const;  // throws what went wrong on the device until then
  void wait() const;

 private:
  cudaEvent_t event_ = nullptr;
};

// Pinned memory that what is written passes through, so that the caller may reuse its own at once and nothing waits: a
// few chunks, each free again when the device has read it.
class Staging {
 public:
  // Copies `from` and puts the copy to the device on the stream.
  void write(void* to, const void* from, std::uint64_t bytes, cudaStream_t stream);
  std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  struct Chunk {
    explicit Chunk(std::uint64_t size) : memory(size) {}
    PinnedMemory memory;
    Event copied;  // when the device has read it
  };
  Chunk& free_chunk(std::uint64_t bytes);

  std::vector<std::unique_ptr<Chunk>> chunks_;
  std::uint64_t bytes_ = 0;
};

}  // namespace arcflow::tensorrt
