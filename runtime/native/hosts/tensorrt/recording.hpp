// Stretches of work as CUDA graphs: noted while they are done, captured afterwards, replayed from then on. The owner
// makes sure that the stream is idle when it destroys one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "hosts/tensorrt/context.hpp"
#include "hosts/tensorrt/cuda.hpp"

namespace arcflow::tensorrt {

using Action = std::function<void(cudaStream_t)>;

class Recordings {
 public:
  enum class Mode : std::int32_t { kEager = 0, kRecord = 1, kReplay = 2 };

  Mode begin(std::uint64_t key, cudaStream_t stream);
  // Whether actions are being noted.
  bool open() const noexcept { return open_ != nullptr; }
  // Whether `end` launches what was recorded.
  bool replaying() const noexcept { return replay_ != nullptr; }
  void note(Action action) { open_->actions.push_back(std::move(action)); }
  // A context, or memory, that lives as long as what is recorded now. A context of its own for every evaluation: its
  // shapes and addresses must not change while a graph of it exists.
  Context& keep(std::unique_ptr<Context> context);
  const PinnedMemory& keep(std::unique_ptr<PinnedMemory> memory);
  // The stretch waited for the device, or failed: it cannot be replayed. refused: nor is it to be tried again.
  void spoil(bool refused) noexcept;
  // Captures what was noted, or launches what was recorded. Why a capture was rejected, "" if nothing was.
  std::string end(cudaStream_t stream);
  void reset();  // forgets all keys

 private:
  struct Recording {
    std::vector<Action> actions;
    std::vector<std::unique_ptr<Context>> contexts;
    std::vector<std::unique_ptr<PinnedMemory>> memories;
    cudaGraphExec_t graph = nullptr;
    bool refused = false;
    bool spoilt = false;

    Recording() = default;
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;
    ~Recording() {
      if (graph != nullptr) cudaGraphExecDestroy(graph);
    }
  };

  void retire_open();
  static std::string capture(Recording& recording, cudaStream_t stream);

  std::map<std::uint64_t, std::unique_ptr<Recording>> recordings_;
  // No longer to be used, but perhaps under way on the device yet: freed when the stream is next found idle.
  std::vector<std::unique_ptr<Recording>> retired_;
  std::unique_ptr<Recording> open_;
  std::uint64_t key_ = 0;
  Recording* replay_ = nullptr;
};

}  // namespace arcflow::tensorrt
