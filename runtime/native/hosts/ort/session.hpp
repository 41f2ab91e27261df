// One thread's work on a model: buffers of main memory, runs over them, and ending a run from elsewhere.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "hosts/host.h"
#include "hosts/ort/model.hpp"

namespace arcflow::ort {

// Aligned memory of a fixed size, its content undefined at first.
class Buffer {
 public:
  // `total` is what the session's buffers hold together. Throws std::bad_alloc.
  Buffer(std::uint64_t bytes, std::shared_ptr<std::atomic<std::uint64_t>> total);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Where `bytes` bytes from `offset` on begin. Throws core::Error(ARCFLOW_INTERNAL) where they are not all inside.
  std::byte* at(std::uint64_t offset, std::uint64_t bytes) const;
  // `count` values of T from the byte `offset` on.
  template <class T>
  T* values(std::uint64_t count, std::uint64_t offset = 0) const {
    return reinterpret_cast<T*>(at(offset, count > UINT64_MAX / sizeof(T) ? UINT64_MAX : count * sizeof(T)));
  }

 private:
  std::byte* data_;
  std::uint64_t bytes_;
  std::shared_ptr<std::atomic<std::uint64_t>> total_;
};

class Session {
 public:
  explicit Session(std::shared_ptr<const Model> model);

  const std::shared_ptr<std::atomic<std::uint64_t>>& total() const noexcept { return total_; }
  std::uint64_t bytes() const noexcept { return *total_; }

  // One evaluation over the given memory; it is done when this returns. Throws core::Error, ARCFLOW_CANCELLED after
  // interrupt().
  void run(std::size_t network, const ArcflowHostBinding* inputs, std::size_t input_count,
           const ArcflowHostBinding* outputs, std::size_t output_count);

  // From any thread: ends a run in progress and those after it, until rearm().
  void interrupt();
  void rearm();

 private:
  void bind(const Network& network, const std::vector<Port>& ports, const ArcflowHostBinding& binding,
            std::vector<Handle<OrtValue>>& values) const;

  std::shared_ptr<const Model> model_;
  std::shared_ptr<std::atomic<std::uint64_t>> total_;
  Handle<OrtRunOptions> options_;
  // ONNX Runtime ends a terminated run with a general failure; this tells it from others. The mutex keeps the two in
  // step.
  std::mutex mutex_;
  std::atomic<bool> interrupted_{false};
};

}  // namespace arcflow::ort

// What the opaque handles of hosts/host.h are here.
struct ArcflowHostModel {
  std::shared_ptr<const arcflow::ort::Model> model;
};
struct ArcflowHostSession {
  arcflow::ort::Session session;
};
struct ArcflowHostBuffer {
  arcflow::ort::Buffer buffer;
};
struct ArcflowHostPrepared {
  arcflow::ort::Environment environment;
};
