// What happens to a batch of images. Nothing here knows which host it runs on; work is put on its stream in order,
// and the loop of evaluations waits for nothing unless somebody watches.
#include <algorithm>

#include "core/error.hpp"
#include "core/numerics/compute.hpp"
#include "core/pipeline/job.hpp"
#include "core/pipeline/pipeline.hpp"

namespace arcflow::core {
namespace {

[[noreturn]] void stopped_by(const char* callback) {
  throw Error(ARCFLOW_CANCELLED, std::string("the request was ended by ") + callback);
}

}  // namespace

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
  const std::size_t values = architecture.image_values(shape.grid);
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
      device_.need(Slot::kPixels, batch * values);
      device_.to_rgb8(Slot::kImages, Slot::kPixels, shape.batch, job.request.height, job.request.width);
      pixels_.resize(std::max(pixels_.size(), batch * values));
      device_.read(Slot::kPixels, 0, pixels_.data(), batch * values);
    }
    for (std::size_t row = 0; row < batch; ++row) {
      ArcflowPreview preview = ARCFLOW_INIT(ArcflowPreview);
      preview.image = static_cast<std::uint32_t>(first + row);
      preview.frame = job.frame;
      preview.sigma = sigma;
      preview.rgb8 = pixels_.data() + row * values;
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
  const std::size_t values = architecture.image_values(shape.grid);
  const Stage stage(output.vae_seconds);
  if (output.latents != nullptr) {
    architecture.unpack(device_, shape, Slot::kTokens);
    device_.read(Slot::kLatents, 0, output.latents + first * tokens, batch * tokens * sizeof(float));
  }
  if (output.images == nullptr && output.rgb8 == nullptr && !job.all_networks) return;
  job.supervised.check();
  architecture.decode(device_, shape, Slot::kTokens);
  check_finite(Slot::kImages, batch * values);
  if (output.images != nullptr) {
    device_.read(Slot::kImages, 0, output.images + first * values, batch * values * sizeof(float));
  }
  if (output.rgb8 == nullptr && !job.all_networks) return;
  device_.need(Slot::kPixels, batch * values);
  device_.to_rgb8(Slot::kImages, Slot::kPixels, shape.batch, job.request.height, job.request.width);
  if (output.rgb8 != nullptr) device_.read(Slot::kPixels, 0, output.rgb8 + first * values, batch * values);
}

void Session::check_finite(Slot slot, std::uint64_t count) {
  if (!device_.finite(slot, count)) {
    throw Error(ARCFLOW_BACKEND_UNAVAILABLE,
                "the networks gave values that are not finite; check it: python -m engines.verify");
  }
}

}  // namespace arcflow::core
