// A session's requests, from their checks to their batches. batch.cpp has what happens to one batch.
#include "core/pipeline/pipeline.hpp"

#include <algorithm>
#include <cstdio>

#include "core/error.hpp"
#include "core/numerics/compute.hpp"
#include "core/pipeline/job.hpp"

namespace arcflow::core {
namespace {

// The session is one caller's for as long as this lives.
class Claim {
 public:
  explicit Claim(std::atomic<bool>& busy) : busy_(busy) {
    if (busy_.exchange(true, std::memory_order_acquire)) {
      throw Error(ARCFLOW_INVALID_ARGUMENT,
                  "the session is in use: by another thread, or by the request whose callback this is; a session is "
                  "used by one thread at a time, make one for each");
    }
  }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;
  ~Claim() { busy_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool>& busy_;
};

void check_capacity(const char* name, const void* buffer, std::size_t have, std::size_t need) {
  if (buffer != nullptr && have < need) {
    throw Error(ARCFLOW_INVALID_ARGUMENT, std::string(name) + " of the output is " + std::to_string(have) +
                                              "; the request makes " + std::to_string(need));
  }
}

}  // namespace

OutputShape output_shape(const Manifest& manifest, const CheckedRequest& request) {
  const std::int64_t factor = manifest.latent.vae_factor;
  const auto images = static_cast<std::int64_t>(request.total());
  const std::int64_t width = request.width;
  const std::int64_t height = request.height;
  const std::uint64_t values = product({images, 3, height, width});
  return {request.total(), values, values,
          product({images, manifest.latent.channels, height / factor, width / factor})};
}

Session::Session(std::shared_ptr<const Model> model, void* stream)
    : model_(std::move(model)), device_(model_->api(), model_->loaded(), model_->networks(), stream) {}

void Session::memory(std::uint64_t& host, std::uint64_t& device) const {
  const Claim claim(busy_);
  device_.memory(host, device);
  host += pixels_.capacity();
}

void Session::generate(const CheckedRequest& request, const Listener& listener, Clock::time_point start,
                       ArcflowOutput& output) {
  const OutputShape shape = output_shape(model_->manifest(), request);
  check_capacity("rgb8_bytes", output.rgb8, output.rgb8_bytes, shape.rgb8_bytes);
  check_capacity("image_floats", output.images, output.image_floats, shape.image_floats);
  check_capacity("latent_floats", output.latents, output.latent_floats, shape.latent_floats);
  if (request.previews > 0 && listener.on_preview == nullptr) {
    throw Error(ARCFLOW_INVALID_ARGUMENT, "previews is " + std::to_string(request.previews) +
                                              ", but on_preview is NULL: give a function that takes them");
  }
  const Claim claim(busy_);
  device_.rearm();
  const Supervised supervised(listener.cancel, model_->context().deadlines, request.timeout, start,
                              [this] { device_.interrupt(); });
  output.tokenize_seconds = output.text_seconds = output.noise_seconds = 0.0;
  output.backbone_seconds = output.solver_seconds = output.vae_seconds = output.total_seconds = 0.0;
  Job job{request, listener, output, supervised};
  run(job, request.total());
  output.total_seconds = seconds_since(start);
  const Log& log = model_->context().log;
  if (log.wants(ARCFLOW_LOG_DEBUG)) {
    char text[256];
    std::snprintf(text, sizeof text,
                  "generated %zu in %.4f s: tokenize %.4f, text %.4f, noise %.4f, backbone %.4f, solver %.4f, vae %.4f",
                  request.total(), output.total_seconds, output.tokenize_seconds, output.text_seconds,
                  output.noise_seconds, output.backbone_seconds, output.solver_seconds, output.vae_seconds);
    log.write(ARCFLOW_LOG_DEBUG, text);
  }
}

void Session::warm_up(const CheckedRequest& request, const Listener& listener, Clock::time_point start) {
  const Claim claim(busy_);
  device_.rearm();
  Listener silent;
  silent.cancel = listener.cancel;
  CheckedRequest quiet = request;
  quiet.previews = 0;
  const Supervised supervised(silent.cancel, model_->context().deadlines, request.timeout, start,
                              [this] { device_.interrupt(); });
  ArcflowOutput output{};
  Job job{quiet, silent, output, supervised};
  job.all_networks = true;
  run(job, std::min(request.total(), static_cast<std::size_t>(model_->manifest().limits.batch.max)));
}

void Session::run(Job& job, std::size_t images) {
  try {
    job.supervised.check();
    encode(job);
    const auto most = static_cast<std::size_t>(model_->manifest().limits.batch.max);
    job.evaluations = static_cast<std::uint32_t>((images + most - 1) / most) * job.request.nfe;
    for (std::size_t first = 0; first < images; first += most) {
      job.supervised.check();
      run_batch(job, first, std::min(most, images - first));
    }
  } catch (const Error&) {
    // An engine that was interrupted fails in its own words; the reason is ours to say.
    job.supervised.check();
    throw;
  }
}

void Session::encode(Job& job) {
  {
    const Stage stage(job.output.tokenize_seconds);
    job.prompts = tokenize(job.request, model_->tokenizers());
  }
  for (const std::string& warning : job.prompts.warnings) {
    model_->context().log.write(ARCFLOW_LOG_WARNING, warning);
    if (job.listener.on_warning == nullptr) continue;
    call_back("on_warning", [&] { job.listener.on_warning(job.listener.user, warning.c_str()); });
  }
  job.supervised.check();
  const Stage stage(job.output.text_seconds);
  job.encoded = model_->architecture().encode(device_, job.prompts.tokens);
}

void Session::run_batch(Job& job, std::size_t first, std::size_t count) {
  const Architecture& architecture = model_->architecture();
  BatchShape shape;
  shape.batch = static_cast<std::int64_t>(count);
  shape.grid = architecture.grid(job.request.width, job.request.height);
  job.frame = 0;
  {
    const Stage stage(job.output.text_seconds);
    std::vector<std::size_t> rows;
    for (std::size_t j = first; j < first + count; ++j) {
      rows.push_back(job.prompts.row_of[j / job.request.num_images]);
    }
    // A batch of the same prompts as the one before it finds everything as it was made for that.
    const bool fresh = rows != job.rows;
    if (fresh) job.text_tokens = architecture.gather(device_, job.encoded, rows);
    shape.text_tokens = job.text_tokens;
    if (fresh) architecture.prepare(device_, shape, job.request.sigmas);
    job.rows = std::move(rows);
  }
  {
    const Stage stage(job.output.noise_seconds);
    const std::uint64_t values = architecture.token_values(shape.grid);
    for (std::size_t j = 0; j < count; ++j) {
      device_.normal(job.request.seeds[first + j], Slot::kTokens, j * values * sizeof(float), values);
    }
  }
  if (job.watched()) {
    denoise_watched(job, shape, first);
  } else {
    denoise(job, shape);
  }
  {
    // On a GPU this is where the work that was put on the stream is waited for.
    const Stage stage(job.output.backbone_seconds);
    check_finite(Slot::kTokens, count * architecture.token_values(shape.grid));
  }
  finish(job, shape, first);
}

}  // namespace arcflow::core
