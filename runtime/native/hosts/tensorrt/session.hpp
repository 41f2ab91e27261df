// One stream of work on a model: buffers, evaluations and kernels are put on it in order, and nothing waits for the GPU
// but read, finite and synchronize. Used by one thread at a time; interrupt and rearm from any.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "hosts/host.h"
#include "hosts/tensorrt/context.hpp"
#include "hosts/tensorrt/cuda.hpp"
#include "hosts/tensorrt/model.hpp"
#include "hosts/tensorrt/recording.hpp"

namespace arcflow::tensorrt {

// The caller's stream, or one of our own that lives as long as anything uses it.
class Stream {
 public:
  Stream(int device, void* callers);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const noexcept { return stream_; }
  int device() const noexcept { return device_; }

 private:
  int device_;
  bool own_;
  cudaStream_t stream_;
};

class Buffer {
 public:
  Buffer(std::uint64_t bytes, std::shared_ptr<Stream> stream, std::shared_ptr<std::atomic<std::uint64_t>> total);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // The address of `bytes` bytes from `offset` on. Throws core::Error(ARCFLOW_INTERNAL) where they are not all inside.
  void* at(std::uint64_t offset, std::uint64_t bytes) const;
  std::uint64_t bytes() const noexcept { return memory_->bytes(); }

 private:
  std::shared_ptr<Stream> stream_;
  std::shared_ptr<std::atomic<std::uint64_t>> total_;
  std::unique_ptr<DeviceMemory> memory_;
};

// The model's device must be the thread's current one while anything here is called, construction and destruction
// included.
class Session {
 public:
  Session(std::shared_ptr<const Model> model, void* stream);
  ~Session();

  Buffer make_buffer(std::uint64_t bytes) { return Buffer(bytes, stream_, total_); }
  void write(const Buffer& to, std::uint64_t offset, const void* from, std::uint64_t bytes);
  void read(const Buffer& from, std::uint64_t offset, void* to, std::uint64_t bytes);
  void run(std::size_t network, const std::vector<Bound>& inputs, const std::vector<Bound>& outputs);
  bool finite(const Buffer& buffer, std::uint64_t count);
  // Returns when the stream is empty, or throws core::Error(ARCFLOW_CANCELLED) when interrupted.
  void wait();

  // Puts work on the stream and, between graph_begin and graph_end, into the recording.
  void put(Action action);

  // host.h, graph_begin: the mode. What is recorded is done as well, while it is noted; the noted actions are captured
  // at graph_end, when all that TensorRT prepares at a first evaluation is in place. A rejected capture thus costs
  // nothing: the work was done, and the key is left unrecorded from then on.
  std::int32_t graph_begin(std::uint64_t key);
  void graph_end();
  void graph_reset();

  void interrupt() noexcept { interrupted_ = true; }
  void rearm() noexcept { interrupted_ = false; }
  std::uint64_t device_bytes() const noexcept;
  std::uint64_t host_bytes() const noexcept { return staging_.bytes(); }
  int device() const noexcept { return model_->device(); }

 private:
  void check_interrupted() const;
  Context& context_for(std::size_t network);

  std::shared_ptr<const Model> model_;
  std::shared_ptr<Stream> stream_;
  std::shared_ptr<std::atomic<std::uint64_t>> total_;
  DeviceMemory arena_;  // activations of whichever network runs
  DeviceMemory found_;  // what `finite` found
  PinnedMemory found_here_;
  Event done_;
  Staging staging_;
  std::vector<std::unique_ptr<Context>> contexts_;  // of the networks, outside recordings
  Recordings recordings_;
  std::atomic<bool> interrupted_{false};
};

}  // namespace arcflow::tensorrt
