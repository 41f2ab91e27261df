// Pinned memory that what is written passes through, so that the caller may reuse its own at once and nothing waits.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "hosts/tensorrt/cuda.hpp"

namespace arcflow::tensorrt {

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
