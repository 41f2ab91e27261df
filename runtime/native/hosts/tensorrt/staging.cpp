// A few chunks, each free again when the device has read it. Not yet run: see model.cpp.
#include "hosts/tensorrt/staging.hpp"

#include <algorithm>
#include <cstring>

namespace arcflow::tensorrt {
namespace {

constexpr std::uint64_t kLeast = 64 << 10;
constexpr std::uint64_t kPiece = 4 << 20;  // what is larger goes in pieces
constexpr std::size_t kMostChunks = 8;

}  // namespace

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
