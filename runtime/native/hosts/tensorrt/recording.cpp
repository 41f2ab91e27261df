// Capture and replay. Not yet run: see model.cpp.
#include "hosts/tensorrt/recording.hpp"

#include "core/error.hpp"

namespace arcflow::tensorrt {
namespace {

constexpr std::size_t kMost = 32;  // graphs and their contexts take memory; more shapes than that run without

}  // namespace

Recordings::Mode Recordings::begin(std::uint64_t key, cudaStream_t stream) {
  retire_open();  // what was begun and never ended
  replay_ = nullptr;
  const auto found = recordings_.find(key);
  if (found != recordings_.end()) {
    if (found->second->refused) return Mode::kEager;
    replay_ = found->second.get();
    return Mode::kReplay;
  }
  // A stream that its owner captures himself cannot be captured again: the work becomes a part of his graph.
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const bool busy = cudaStreamIsCapturing(stream, &status) != cudaSuccess || status != cudaStreamCaptureStatusNone;
  if (busy || recordings_.size() >= kMost) {
    cudaGetLastError();
    return Mode::kEager;
  }
  if (!retired_.empty() && cudaStreamQuery(stream) == cudaSuccess) retired_.clear();
  cudaGetLastError();
  open_ = std::make_unique<Recording>();
  key_ = key;
  return Mode::kRecord;
}

Context& Recordings::keep(std::unique_ptr<Context> context) {
  open_->contexts.push_back(std::move(context));
  return *open_->contexts.back();
}

const PinnedMemory& Recordings::keep(std::unique_ptr<PinnedMemory> memory) {
  open_->memories.push_back(std::move(memory));
  return *open_->memories.back();
}

void Recordings::spoil(bool refused) noexcept {
  if (open_ == nullptr) return;
  open_->spoilt = true;
  open_->refused = open_->refused || refused;
}

std::string Recordings::end(cudaStream_t stream) {
  if (Recording* replay = replay_; replay != nullptr) {
    replay_ = nullptr;
    check(cudaGraphLaunch(replay->graph, stream), "replaying what was recorded");
    return "";
  }
  if (open_ == nullptr) return "";
  if (open_->spoilt && !open_->refused) {  // It failed: the next time may go well.
    retire_open();
    return "";
  }
  std::unique_ptr<Recording> done = std::move(open_);
  std::string reason = done->refused ? "it waits for the GPU" : capture(*done, stream);
  done->refused = !reason.empty();
  done->actions.clear();
  // Where it is rejected its contexts must stay all the same: they are at work.
  recordings_[key_] = std::move(done);
  return reason;
}

std::string Recordings::capture(Recording& recording, cudaStream_t stream) {
  // Thread-local: other sessions' threads may go on allocating.
  cudaError_t status = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  std::string reason;
  if (status == cudaSuccess) {
    try {
      for (const Action& action : recording.actions) action(stream);
    } catch (const core::Error& error) {
      reason = error.what();
    }
    cudaGraph_t graph = nullptr;
    status = cudaStreamEndCapture(stream, &graph);  // also where an action failed: it ends the capture
    if (status == cudaSuccess && reason.empty()) {
      status = cudaGraphInstantiate(&recording.graph, graph, 0);
      if (status != cudaSuccess) recording.graph = nullptr;
    }
    if (graph != nullptr) cudaGraphDestroy(graph);
  }
  if (reason.empty() && status != cudaSuccess) reason = cudaGetErrorString(status);
  cudaGetLastError();
  return reason;
}

void Recordings::retire_open() {
  if (open_ != nullptr) retired_.push_back(std::move(open_));
}

void Recordings::reset() {
  retire_open();
  replay_ = nullptr;
  for (auto& [key, recording] : recordings_) retired_.push_back(std::move(recording));
  recordings_.clear();
}

}  // namespace arcflow::tensorrt
