// The pipeline's side of a host's session.
#include "core/pipeline/device.hpp"

#include "core/error.hpp"
#include "core/numerics/compute.hpp"
#include "core/pipeline/host_loader.hpp"

namespace arcflow::core {
namespace {

// Shapes that stay recorded; a session that sees more forgets them all and begins again.
constexpr std::size_t kMaxRecordings = 16;

}  // namespace

std::uint64_t product(std::initializer_list<std::int64_t> sizes) {
  return product(sizes, [](std::int64_t) {
    throw Error(ARCFLOW_OUT_OF_MEMORY, "the bundle's limits make buffers that no memory could hold");
  });
}

Device::Device(const ArcflowHostApi& api, ArcflowHostModel* model, const std::vector<std::string>& networks,
               void* stream)
    : api_(api) {
  for (std::size_t i = 0; i < networks.size(); ++i) networks_[networks[i]] = i;
  call_host(api_.session_create, model, stream, &session_);
}

Device::~Device() {
  ArcflowHostError error;
  api_.synchronize(session_, &error);  // Buffers may go only when no work is left on them.
  api_.graph_reset(session_);
  for (const Held& one : held_) {
    if (one.buffer != nullptr) api_.buffer_destroy(one.buffer);
  }
  api_.session_destroy(session_);
}

bool Device::need(Slot slot, std::uint64_t bytes) {
  Held& one = held(slot);
  const std::uint64_t size = aligned(bytes > 0 ? bytes : 1);
  if (size <= one.bytes) return false;
  if (one.buffer != nullptr) {
    synchronize();
    forget_recordings();
    api_.buffer_destroy(one.buffer);
    one = Held{};
  }
  ArcflowHostBuffer* made = nullptr;
  call_host(api_.buffer_create, session_, size, &made);
  one = Held{made, size};
  return true;
}

ArcflowHostBuffer* Device::buffer(Slot slot) const {
  ArcflowHostBuffer* found = held_[static_cast<std::size_t>(slot)].buffer;
  if (found == nullptr) throw Error(ARCFLOW_INTERNAL, "a buffer of the pipeline was used before it was made");
  return found;
}

void Device::write(Slot slot, std::uint64_t offset, const void* data, std::uint64_t bytes) {
  call_host(api_.write, session_, buffer(slot), offset, data, bytes);
}

void Device::put(Slot slot, const void* data, std::uint64_t bytes) {
  need(slot, bytes);
  if (bytes > 0) write(slot, 0, data, bytes);
}

void Device::read(Slot slot, std::uint64_t offset, void* data, std::uint64_t bytes) {
  call_host(api_.read, session_, buffer(slot), offset, data, bytes);
}

void Device::copy(Slot from, std::uint64_t from_offset, Slot to, std::uint64_t to_offset, std::uint64_t bytes) {
  call_host(api_.copy, session_, buffer(from), from_offset, buffer(to), to_offset, bytes);
}

void Device::run(const std::string& network, const std::vector<Binding>& inputs, const std::vector<Binding>& outputs) {
  const auto bound = [this](const std::vector<Binding>& bindings) {
    std::vector<ArcflowHostBinding> result;
    result.reserve(bindings.size());
    for (const Binding& one : bindings) {
      const auto rank = static_cast<std::int32_t>(one.dims.size());
      result.push_back({one.port, buffer(one.slot), one.offset, rank, one.dims.data()});
    }
    return result;
  };
  const auto in = bound(inputs);
  const auto out = bound(outputs);
  call_host(api_.run, session_, networks_.at(network), in.data(), in.size(), out.data(), out.size());
}

void Device::normal(std::uint64_t seed, Slot slot, std::uint64_t offset, std::uint64_t count) {
  call_host(api_.normal, session_, seed, buffer(slot), offset, count);
}

void Device::advance(Slot x, Slot out, ArcflowHostAdvance segment) {
  segment.x = buffer(x);
  segment.means = buffer(Slot::kMeans);
  segment.logweights = buffer(Slot::kLogweights);
  segment.loggammas = buffer(Slot::kLoggammas);
  segment.out = buffer(out);
  call_host(api_.advance, session_, &segment);
}

void Device::unpack(Slot tokens, Slot latents, ArcflowHostUnpack shape) {
  shape.tokens = buffer(tokens);
  shape.latents = buffer(latents);
  call_host(api_.unpack, session_, &shape);
}

void Device::to_rgb8(Slot images, Slot pixels, std::int64_t batch, std::int64_t height, std::int64_t width) {
  call_host(api_.to_rgb8, session_, buffer(images), buffer(pixels), batch, height, width);
}

bool Device::finite(Slot slot, std::uint64_t count) {
  std::int32_t all_finite = 0;
  call_host(api_.finite, session_, buffer(slot), count, &all_finite);
  return all_finite != 0;
}

void Device::synchronize() { call_host(api_.synchronize, session_); }

void Device::memory(std::uint64_t& host, std::uint64_t& device) const noexcept {
  api_.session_memory(session_, &host, &device);
}

bool Device::begin_recording(const std::vector<std::int64_t>& shape) {
  if (recordings_.count(shape) == 0 && recordings_.size() >= kMaxRecordings) forget_recordings();
  const auto [place, fresh] = recordings_.try_emplace(shape, next_recording_);
  if (fresh) ++next_recording_;
  std::int32_t mode = 0;
  call_host(api_.graph_begin, session_, place->second, &mode);
  return mode != 2;
}

void Device::end_recording() { call_host(api_.graph_end, session_); }

void Device::abandon_recording() noexcept {
  ArcflowHostError error;
  api_.graph_end(session_, &error);  // What it says of the rest no longer matters.
  forget_recordings();
}

void Device::forget_recordings() noexcept {
  api_.graph_reset(session_);
  recordings_.clear();
}

}  // namespace arcflow::core
