// A session's stream and what goes on it. Not yet run: see model.cpp.
#include "hosts/tensorrt/session.hpp"

#include <chrono>
#include <cstring>
#include <string>
#include <thread>

#include "core/error.hpp"
#include "cuda/launch.hpp"
#include "hosts/table.hpp"

namespace arcflow::tensorrt {

using core::Error;

Stream::Stream(int device, void* callers)
    : device_(device), own_(callers == nullptr), stream_(static_cast<cudaStream_t>(callers)) {
  // Non-blocking: work on the process's default stream is none of ours.
  if (own_) check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
}

Stream::~Stream() {
  if (own_) cudaStreamDestroy(stream_);
}

Buffer::Buffer(std::uint64_t bytes, std::shared_ptr<Stream> stream, std::shared_ptr<std::atomic<std::uint64_t>> total)
    : stream_(std::move(stream)), total_(std::move(total)), memory_(std::make_unique<DeviceMemory>(bytes)) {
  *total_ += bytes;
}

Buffer::~Buffer() {
  try {
    const DeviceGuard guard(stream_->device());
    cudaStreamSynchronize(stream_->get());  // An interrupted request may have left work on it.
    *total_ -= memory_->bytes();
    memory_.reset();
  } catch (...) {  // The device is gone, and the memory with it.
  }
}

void* Buffer::at(std::uint64_t offset, std::uint64_t bytes) const {
  hosts::check_inside(offset, bytes, memory_->bytes());
  return static_cast<unsigned char*>(memory_->data()) + offset;
}

Session::Session(std::shared_ptr<const Model> model, void* stream)
    : model_(std::move(model)),
      stream_(std::make_shared<Stream>(model_->device(), stream)),
      total_(std::make_shared<std::atomic<std::uint64_t>>(0)),
      arena_(model_->activation_bytes()),
      found_(sizeof(std::uint32_t)),
      found_here_(sizeof(std::uint32_t)),
      contexts_(model_->size()) {}

Session::~Session() { cudaStreamSynchronize(stream_->get()); }

std::uint64_t Session::device_bytes() const noexcept { return *total_ + arena_.bytes() + found_.bytes(); }

void Session::check_interrupted() const {
  if (interrupted_) throw Error(ARCFLOW_CANCELLED, "the request was cancelled");
}

void Session::put(Action action) {
  try {
    action(stream_->get());
  } catch (...) {
    recordings_.spoil(false);
    throw;
  }
  if (recordings_.open()) recordings_.note(std::move(action));
}

void Session::write(const Buffer& to, std::uint64_t offset, const void* from, std::uint64_t bytes) {
  void* const target = to.at(offset, bytes);
  if (bytes == 0) return;
  if (!recordings_.open()) return staging_.write(target, from, bytes, stream_->get());
  // A replay writes again what was written first: those bytes must stay.
  const PinnedMemory& kept = recordings_.keep(std::make_unique<PinnedMemory>(bytes));
  std::memcpy(kept.data(), from, bytes);
  put([target, source = kept.data(), bytes](cudaStream_t stream) {
    check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyHostToDevice, stream), "copying to the GPU");
  });
}

void Session::read(const Buffer& from, std::uint64_t offset, void* to, std::uint64_t bytes) {
  const void* const source = from.at(offset, bytes);
  wait();
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, source, bytes, cudaMemcpyDeviceToHost, stream_->get()), "copying from the GPU");
  check(cudaStreamSynchronize(stream_->get()), "copying from the GPU");
}

void Session::wait() {
  recordings_.spoil(true);
  done_.record(stream_->get());
  // Asks again and again, so that an interrupt is heard: what is on the stream then runs out behind it, in order.
  while (!done_.done()) {
    check_interrupted();
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

Context& Session::context_for(std::size_t network) {
  if (recordings_.open()) return recordings_.keep(std::make_unique<Context>(*model_, network, arena_, stream_->get()));
  std::unique_ptr<Context>& own = contexts_.at(network);
  if (own == nullptr) own = std::make_unique<Context>(*model_, network, arena_, stream_->get());
  return *own;
}

void Session::run(std::size_t network, const std::vector<Bound>& inputs, const std::vector<Bound>& outputs) {
  model_->network(network);  // rejects a wrong number
  try {
    check_interrupted();
    Context& context = context_for(network);
    context.bind(inputs, outputs);
    put([&context](cudaStream_t stream) { context.enqueue(stream); });
  } catch (...) {
    recordings_.spoil(false);
    throw;
  }
}

bool Session::finite(const Buffer& buffer, std::uint64_t count) {
  if (count > buffer.bytes() / sizeof(float))
    throw Error(ARCFLOW_INTERNAL, "finite: more values than the buffer holds");
  const auto* values = static_cast<const float*>(buffer.at(0, count * sizeof(float)));
  auto* found = static_cast<std::uint32_t*>(found_.data());
  check(cuda::find_nonfinite(values, count, found, stream_->get()), "looking for values that are not finite");
  check(cudaMemcpyAsync(found_here_.data(), found, sizeof *found, cudaMemcpyDeviceToHost, stream_->get()),
        "copying from the GPU");
  wait();
  return *static_cast<const std::uint32_t*>(found_here_.data()) == 0;
}

std::int32_t Session::graph_begin(std::uint64_t key) {
  return static_cast<std::int32_t>(recordings_.begin(key, stream_->get()));
}

void Session::graph_end() {
  if (interrupted_) recordings_.spoil(false);
  if (recordings_.replaying()) check_interrupted();
  const std::string refused = recordings_.end(stream_->get());
  if (!refused.empty()) {
    model_->logger().take_errors();  // They were about the capture, which nobody needs.
    model_->logger().say(ARCFLOW_LOG_INFO, ("runs without a CUDA graph: " + refused).c_str());
  }
}

void Session::graph_reset() { recordings_.reset(); }

}  // namespace arcflow::tensorrt
