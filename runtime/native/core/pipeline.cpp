// A session at work. Nothing here knows which host it runs on; work is put on its stream in order, and the loop of
// evaluations waits for nothing unless somebody watches.
#include "core/pipeline.hpp"

#include <algorithm>
#include <cstdio>

#include "core/compute.hpp"
#include "core/error.hpp"
#include "core/pipeline_encode.hpp"

namespace arcflow::core {
namespace {

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Adds the time from its making to its end to a stage.
class Stage {
 public:
  explicit Stage(double& total) : total_(total), start_(Clock::now()) {}
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;
  ~Stage() { total_ += seconds_since(start_); }

 private:
  double& total_;
  Clock::time_point start_;
};

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

[[noreturn]] void stopped_by(const char* callback) {
  throw Error(ARCFLOW_CANCELLED, std::string("the request was ended by ") + callback);
}

template <class Call>
void call_back(const char* name, Call&& call) {
  std::string what;
  try {
    call();
    return;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    what = error.what();
  } catch (...) {
    what = "an exception";
  }
  throw Error(ARCFLOW_INTERNAL, std::string("the callback ") + name + " threw: " + what +
                                    "; callbacks end a request by what they return");
}

}  // namespace

OutputShape output_shape(const Manifest& manifest, const CheckedRequest& request) {
  const std::int64_t factor = manifest.latent.vae_factor;
  const auto pictures = static_cast<std::int64_t>(request.total());
  const std::int64_t width = request.width;
  const std::int64_t height = request.height;
  const std::uint64_t values = product({pictures, 3, height, width});
  return {request.total(), values, values, product({pictures, manifest.latent.channels, height / factor, width / factor})};
}

// Where a request stands.
struct Session::Job {
  const CheckedRequest& request;
  const Listener& listener;
  ArcflowOutput& output;
  const Supervised& supervised;
  bool all_networks = false;  // decode though nobody asked for pixels
  EncodedPrompts prompts{};
  Encoded encoded{};
  std::vector<std::size_t> rows{};  // by picture of the batch: its prompt's row
  std::uint32_t evaluations = 0;    // of the whole request
  std::uint32_t done = 0;           // evaluations
  std::uint32_t frame = 0;          // previews of the batch so far

  bool watched() const noexcept { return listener.on_step != nullptr || request.previews > 0; }
};

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

void Session::run(Job& job, std::size_t pictures) {
  try {
    job.supervised.check();
    encode(job);
    const auto most = static_cast<std::size_t>(model_->manifest().limits.batch.max);
    job.evaluations = static_cast<std::uint32_t>((pictures + most - 1) / most) * job.request.nfe;
    for (std::size_t first = 0; first < pictures; first += most) {
      job.supervised.check();
      run_batch(job, first, std::min(most, pictures - first));
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
    job.rows.clear();
    for (std::size_t j = first; j < first + count; ++j) {
      job.rows.push_back(job.prompts.row_of[j / job.request.num_images]);
    }
    shape.text_tokens = architecture.gather(device_, job.encoded, job.rows);
  }
  {
    const Stage stage(job.output.noise_seconds);
    architecture.prepare(device_, shape, job.request.sigmas);
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

void Session::denoise(Job& job, const BatchShape& shape) {
  const Architecture& architecture = model_->architecture();
  const std::vector<double>& sigmas = job.request.sigmas;
  const std::vector<std::int64_t> key{shape.batch, shape.grid.rows, shape.grid.columns, shape.text_tokens,
                                      static_cast<std::int64_t>(job.request.nfe)};
  const Clock::time_point start = Clock::now();
  double solver = 0.0;
  device_.recorded(key, [&] {
    for (std::size_t step = 0; step + 1 < sigmas.size(); ++step) {
      job.supervised.check();
      architecture.evaluate(device_, shape, step);
      const Stage stage(solver);
      architecture.advance(device_, shape, Slot::kTokens, Slot::kTokens, sigmas[step], sigmas[step + 1]);
    }
  });
  job.output.solver_seconds += solver;
  job.output.backbone_seconds += seconds_since(start) - solver;
}

void Session::denoise_watched(Job& job, const BatchShape& shape, std::size_t first) {
  const Architecture& architecture = model_->architecture();
  const std::vector<double>& sigmas = job.request.sigmas;
  for (std::size_t step = 0; step + 1 < sigmas.size(); ++step) {
    job.supervised.check();
    {
      const Stage stage(job.output.backbone_seconds);
      architecture.evaluate(device_, shape, step);
    }
    if (job.request.previews > 0) show_previews(job, shape, first, sigmas[step], sigmas[step + 1]);
    {
      const Stage stage(job.output.solver_seconds);
      architecture.advance(device_, shape, Slot::kTokens, Slot::kTokens, sigmas[step], sigmas[step + 1]);
    }
    const std::uint32_t index = job.done++;
    if (job.listener.on_step == nullptr) continue;
    device_.synchronize();  // What is reported as done is done.
    ArcflowStep report = ARCFLOW_INIT(ArcflowStep);
    report.index = index;
    report.total = job.evaluations;
    report.first_image = static_cast<std::uint32_t>(first);
    report.image_count = static_cast<std::uint32_t>(shape.batch);
    report.sigma_from = sigmas[step];
    report.sigma_to = sigmas[step + 1];
    call_back("on_step", [&] {
      if (job.listener.on_step(job.listener.user, &report) != 0) stopped_by("on_step");
    });
  }
}

void Session::show_previews(Job& job, const BatchShape& shape, std::size_t first, double sigma_src, double sigma_end) {
  const Architecture& architecture = model_->architecture();
  const auto batch = static_cast<std::size_t>(shape.batch);
  const std::size_t picture = architecture.image_values(shape.grid);
  for (const double sigma : preview_sigmas(job.request.previews, model_->manifest().schedule.shift)) {
    if (sigma < sigma_end || sigma >= sigma_src) continue;
    job.supervised.check();
    {
      const Stage stage(job.output.solver_seconds);
      device_.need(Slot::kPreviewTokens, batch * architecture.token_values(shape.grid) * sizeof(float));
      architecture.advance(device_, shape, Slot::kTokens, Slot::kPreviewTokens, sigma_src, sigma);
      check_finite(Slot::kPreviewTokens, batch * architecture.token_values(shape.grid));
    }
    {
      const Stage stage(job.output.vae_seconds);
      architecture.decode(device_, shape, Slot::kPreviewTokens);
      device_.need(Slot::kPixels, batch * picture);
      device_.to_rgb8(Slot::kImages, Slot::kPixels, shape.batch, job.request.height, job.request.width);
      pixels_.resize(std::max(pixels_.size(), batch * picture));
      device_.read(Slot::kPixels, 0, pixels_.data(), batch * picture);
    }
    for (std::size_t row = 0; row < batch; ++row) {
      ArcflowPreview preview = ARCFLOW_INIT(ArcflowPreview);
      preview.image = static_cast<std::uint32_t>(first + row);
      preview.frame = job.frame;
      preview.sigma = sigma;
      preview.rgb8 = pixels_.data() + row * picture;
      preview.width = job.request.width;
      preview.height = job.request.height;
      call_back("on_preview", [&] {
        if (job.listener.on_preview(job.listener.user, &preview) != 0) stopped_by("on_preview");
      });
    }
    ++job.frame;
  }
}

void Session::finish(Job& job, const BatchShape& shape, std::size_t first) {
  const Architecture& architecture = model_->architecture();
  ArcflowOutput& output = job.output;
  const auto batch = static_cast<std::size_t>(shape.batch);
  const std::size_t tokens = architecture.token_values(shape.grid);
  const std::size_t picture = architecture.image_values(shape.grid);
  const Stage stage(output.vae_seconds);
  if (output.latents != nullptr) {
    architecture.unpack(device_, shape, Slot::kTokens);
    device_.read(Slot::kLatents, 0, output.latents + first * tokens, batch * tokens * sizeof(float));
  }
  if (output.images == nullptr && output.rgb8 == nullptr && !job.all_networks) return;
  job.supervised.check();
  architecture.decode(device_, shape, Slot::kTokens);
  check_finite(Slot::kImages, batch * picture);
  if (output.images != nullptr) {
    device_.read(Slot::kImages, 0, output.images + first * picture, batch * picture * sizeof(float));
  }
  if (output.rgb8 == nullptr && !job.all_networks) return;
  device_.need(Slot::kPixels, batch * picture);
  device_.to_rgb8(Slot::kImages, Slot::kPixels, shape.batch, job.request.height, job.request.width);
  if (output.rgb8 != nullptr) device_.read(Slot::kPixels, 0, output.rgb8 + first * picture, batch * picture);
}

void Session::check_finite(Slot slot, std::uint64_t count) {
  if (!device_.finite(slot, count)) {
    throw Error(ARCFLOW_BACKEND_UNAVAILABLE,
                "the networks gave values that are not finite; check it: python -m engines.verify");
  }
}

}  // namespace arcflow::core
