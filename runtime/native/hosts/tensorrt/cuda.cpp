// CUDA's statuses as errors a user can act on.
#include "hosts/tensorrt/cuda.hpp"

#include <algorithm>
#include <cstring>

#include "core/error.hpp"

namespace arcflow::tensorrt {
namespace {

constexpr std::uint64_t kLeast = 64 << 10;
constexpr std::uint64_t kPiece = 4 << 20;  // what is larger goes in pieces
constexpr std::size_t kMostChunks = 8;

}  // namespace

using core::Error;

std::string megabytes(std::uint64_t bytes) { return std::to_string((bytes + (1u << 20) - 1) >> 20) + " MiB"; }

bool about_memory(const std::string& message) {
  for (const char* sign : {"out of memory", "OutOfMemory", "Out of memory", "insufficient memory"}) {
    if (message.find(sign) != std::string::npos) return true;
  }
  return false;
}

void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it again
  if (status == cudaErrorMemoryAllocation) {
    std::size_t free = 0, total = 0;
    std::string room;
    if (cudaMemGetInfo(&free, &total) == cudaSuccess) {
      room = " (" + megabytes(free) + " of " + megabytes(total) + " are free)";
    }
    cudaGetLastError();
    throw Error(ARCFLOW_OUT_OF_MEMORY, what + ": the GPU's memory is exhausted" + room +
                                           "; ask for fewer or smaller images at once, or close other sessions");
  }
  throw Error(ARCFLOW_BACKEND_UNAVAILABLE,
              what + ": CUDA error " + std::to_string(static_cast<int>(status)) + ", " + cudaGetErrorString(status));
}

std::string require_device(int device) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver) {
    cudaGetLastError();
    int driver = 0;
    cudaDriverGetVersion(&driver);
    throw Error(ARCFLOW_BACKEND_UNAVAILABLE, std::string("a bundle of TensorRT plans needs an NVIDIA GPU, and ") +
                                                 (driver == 0 ? "there is no NVIDIA driver on this machine"
                                                              : "the driver is older than CUDA " +
                                                                    std::to_string(CUDART_VERSION / 1000) + " needs") +
                                                 "; install a driver for it, or use a bundle for the target cpu");
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
    cudaGetLastError();
    throw Error(ARCFLOW_BACKEND_UNAVAILABLE,
                "a bundle of TensorRT plans needs an NVIDIA GPU, and CUDA finds none; see "
                "$CUDA_VISIBLE_DEVICES, or use a bundle for the target cpu");
  }
  check(status, "looking for GPUs");
  if (device < 0 || device >= count) {
    throw Error(ARCFLOW_BACKEND_UNAVAILABLE,
                "there is no GPU " + std::to_string(device) + "; this machine has 0 to " + std::to_string(count - 1));
  }
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "asking GPU " + std::to_string(device) + " what it is");
  return std::string(properties.name) + " (compute capability " + std::to_string(properties.major) + "." +
         std::to_string(properties.minor) + ")";
}

DeviceGuard::DeviceGuard(int device) {
  if (cudaGetDevice(&before_) != cudaSuccess) before_ = -1;
  if (before_ != device) check(cudaSetDevice(device), "choosing GPU " + std::to_string(device));
  if (before_ == device) before_ = -1;
}

DeviceGuard::~DeviceGuard() {
  if (before_ >= 0) cudaSetDevice(before_);
}

DeviceMemory::DeviceMemory(std::uint64_t bytes) : bytes_(bytes) {
  if (bytes != 0) check(cudaMalloc(&data_, bytes), "allocating " + megabytes(bytes) + " on the GPU");
}

DeviceMemory::~DeviceMemory() {
  if (data_ != nullptr) cudaFree(data_);
}

PinnedMemory::PinnedMemory(std::uint64_t bytes) : bytes_(bytes) {
  check(cudaMallocHost(&data_, bytes), "allocating " + megabytes(bytes) + " of pinned main memory");
}

PinnedMemory::~PinnedMemory() { cudaFreeHost(data_); }

Event::Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "making an event"); }

Event::~Event() { cudaEventDestroy(event_); }

void Event::record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "recording an event"); }

bool Event::done() const {
  const cudaError_t status = cudaEventQuery(event_);
  if (status == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check(status, "work on the GPU failed");
  return true;
}

void Event::wait() const { check(cudaEventSynchronize(event_), "work on the GPU failed"); }

Staging::Chunk& Staging::free_chunk(std::uint64_t bytes) {
  for (const auto& chunk : chunks_) {
    if (chunk->memory.bytes() >= bytes && chunk->copied.done()) return *chunk;
  }
  if (chunks_.size() >= kMostChunks) {
    // All under way, or too small: the oldest makes room. This is the one place that waits, and only for a copy.
    chunks_.front()->copied.wait();
    bytes_ -= chunks_.front()->memory.bytes();
    chunks_.erase(chunks_.begin());
  }
  chunks_.push_back(std::make_unique<Chunk>(std::max(bytes, kLeast)));
  bytes_ += chunks_.back()->memory.bytes();
  return *chunks_.back();
}

void Staging::write(void* to, const void* from, std::uint64_t bytes, cudaStream_t stream) {
  auto* target = static_cast<unsigned char*>(to);
  const auto* source = static_cast<const unsigned char*>(from);
  while (bytes > 0) {
    const std::uint64_t piece = std::min(bytes, kPiece);
    Chunk& chunk = free_chunk(piece);
    std::memcpy(chunk.memory.data(), source, piece);
    check(cudaMemcpyAsync(target, chunk.memory.data(), piece, cudaMemcpyHostToDevice, stream), "copying to the GPU");
    chunk.copied.record(stream);
    target += piece;
    source += piece;
    bytes -= piece;
  }
}

}  // namespace arcflow::tensorrt
