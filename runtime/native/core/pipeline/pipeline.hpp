// From prompts to images: tokenizers, text encoders and conditioner, the backbone with the solver between, the VAE
// decoder. The C++ twin of runtime/pipeline.py, written once for every engine host.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "arcflow/arcflow.h"
#include "core/pipeline/device.hpp"
#include "core/pipeline/model.hpp"
#include "core/pipeline/request/cancel.hpp"
#include "core/pipeline/request/request.hpp"

namespace arcflow::core {

// What is told while a request runs, and by whom it may be ended.
struct Listener {
  ArcflowOnStep on_step = nullptr;
  ArcflowOnPreview on_preview = nullptr;
  ArcflowOnWarning on_warning = nullptr;
  void* user = nullptr;
  std::shared_ptr<CancelToken> cancel;  // may be null
};

// What a request makes: images, and the values of each of them.
struct OutputShape {
  std::size_t images, rgb8_bytes, image_floats, latent_floats;  // of the whole request
};
OutputShape output_shape(const Manifest& manifest, const CheckedRequest& request);

class Session {
 public:
  // stream: the caller's cudaStream_t, or null.
  Session(std::shared_ptr<const Model> model, void* stream);

  const Model& model() const noexcept { return *model_; }
  // Fills in the buffers of `output` that are not null and its timings; `start` is when the call began. Throws Error:
  // ARCFLOW_INVALID_ARGUMENT where a buffer is too small or the session is in use, and whatever went wrong on the way.
  void generate(const CheckedRequest& request, const Listener& listener, Clock::time_point start,
                ArcflowOutput& output);
  // Runs every network at the request's shape, for its first batch.
  void warm_up(const CheckedRequest& request, const Listener& listener, Clock::time_point start);
  void memory(std::uint64_t& host, std::uint64_t& device) const;

 private:
  struct Job;  // one request on its way

  void run(Job& job, std::size_t images);
  void encode(Job& job);
  void run_batch(Job& job, std::size_t first, std::size_t count);
  void denoise(Job& job, const BatchShape& shape);
  void denoise_watched(Job& job, const BatchShape& shape, std::size_t first);
  void show_previews(Job& job, const BatchShape& shape, std::size_t first, double sigma_src, double sigma_end);
  void finish(Job& job, const BatchShape& shape, std::size_t first);
  void check_finite(Slot slot, std::uint64_t count);

  std::shared_ptr<const Model> model_;
  Device device_;
  std::vector<std::uint8_t> pixels_;  // of a preview
  mutable std::atomic<bool> busy_{false};
};

}  // namespace arcflow::core
