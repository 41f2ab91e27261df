// A host's session with errors as exceptions and buffers that are made once and grow: what the pipeline works on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

#include "hosts/host.h"

namespace arcflow::core {

// The buffers of a session, by what they hold.
enum class Slot : std::size_t {
  kIds,  // a text encoder's token ids, and their mask
  kIdsMask,
  kPooledAll,  // encodings of every different prompt of a request
  kSequenceAll,
  kPooled,  // encodings of the images of a batch
  kSequence,
  kSequenceMask,
  kZeros,
  kTimestep,  // noise levels of all evaluations
  kGuidance,
  kImageIds,
  kTextIds,
  kModulation,  // what a conditioner makes: of this, rows for each evaluation
  kContext,
  kImageRotary,
  kTextRotary,
  kTokens,  // x
  kPreviewTokens,
  kMeans,
  kLogweights,
  kLoggammas,
  kLatents,  // as the caller gets them
  kVaeLatents,
  kImages,
  kPixels,
  kCount
};

// The stretch of a buffer that a port of a network is bound to.
struct Binding {
  const char* port;
  Slot slot;
  std::vector<std::int64_t> dims;
  std::uint64_t offset = 0;  // bytes
};

// Where offsets into a buffer begin: engines want addresses that are multiples of it.
constexpr std::uint64_t kAlignment = 256;
constexpr std::uint64_t aligned(std::uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// The product of sizes that are not negative. Throws Error(ARCFLOW_OUT_OF_MEMORY) where no memory could hold it.
std::uint64_t product(std::initializer_list<std::int64_t> sizes);
constexpr std::int64_t kFloatBytes = sizeof(float);

class Device {
 public:
  // networks: in the host's order. stream: the caller's, or null. Throws Error, as everything here.
  Device(const ArcflowHostApi& api, ArcflowHostModel* model, const std::vector<std::string>& networks, void* stream);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // Makes sure that a buffer holds so many bytes. Whether it was made anew: what was in it is lost then.
  bool need(Slot slot, std::uint64_t bytes);
  void write(Slot slot, std::uint64_t offset, const void* data, std::uint64_t bytes);
  // Makes sure that a buffer holds so many bytes, and writes them from its beginning on.
  void put(Slot slot, const void* data, std::uint64_t bytes);
  void read(Slot slot, std::uint64_t offset, void* data, std::uint64_t bytes);
  void copy(Slot from, std::uint64_t from_offset, Slot to, std::uint64_t to_offset, std::uint64_t bytes);
  void run(const std::string& network, const std::vector<Binding>& inputs, const std::vector<Binding>& outputs);
  void normal(std::uint64_t seed, Slot slot, std::uint64_t offset, std::uint64_t count);
  // The buffers of `advance` and `unpack` are filled in from the slots.
  void advance(Slot x, Slot out, ArcflowHostAdvance segment);
  void unpack(Slot tokens, Slot latents, ArcflowHostUnpack shape);
  void to_rgb8(Slot images, Slot pixels, std::int64_t batch, std::int64_t height, std::int64_t width);
  bool finite(Slot slot, std::uint64_t count);
  void synchronize();

  void interrupt() noexcept { api_.interrupt(session_); }
  void rearm() noexcept { api_.rearm(session_); }
  void memory(std::uint64_t& host, std::uint64_t& device) const noexcept;

  // Does `work`, or replays it where it was recorded at the same shape. Between, only run and advance may be called.
  template <class Work>
  void recorded(const std::vector<std::int64_t>& shape, Work&& work) {
    if (!begin_recording(shape)) return end_recording();
    try {
      work();
    } catch (...) {
      abandon_recording();
      throw;
    }
    end_recording();
  }

 private:
  struct Held {
    ArcflowHostBuffer* buffer = nullptr;
    std::uint64_t bytes = 0;
  };

  Held& held(Slot slot) { return held_[static_cast<std::size_t>(slot)]; }
  ArcflowHostBuffer* buffer(Slot slot) const;
  bool begin_recording(const std::vector<std::int64_t>& shape);  // whether the work is to be done
  void end_recording();
  void abandon_recording() noexcept;
  void forget_recordings() noexcept;

  const ArcflowHostApi& api_;
  std::map<std::string, std::size_t> networks_;
  ArcflowHostSession* session_ = nullptr;
  std::array<Held, static_cast<std::size_t>(Slot::kCount)> held_{};
  std::map<std::vector<std::int64_t>, std::uint64_t> recordings_;
  std::uint64_t next_recording_ = 1;
};

}  // namespace arcflow::core
