#include "generate.hpp"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "arrays.hpp"
#include "interrupt.hpp"

namespace nb = nanobind;

namespace arcflow::python {
namespace {

nb::dict seconds(const ArcflowOutput& output) {
  nb::dict values;
  for (const auto& [stage, took] : stage_seconds(output)) values[stage] = took;
  values["total"] = output.total_seconds;
  return values;
}

nb::dict described(const ArcflowStep& step) {
  nb::dict values;
  values["index"] = step.index;
  values["total"] = step.total;
  values["first_image"] = step.first_image;
  values["image_count"] = step.image_count;
  values["sigma_from"] = step.sigma_from;
  values["sigma_to"] = step.sigma_to;
  return values;
}

nb::object pixels_of(const ArcflowPreview& preview) {
  const std::size_t size = std::size_t{preview.width} * preview.height * 3;
  auto pixels = std::make_unique<std::uint8_t[]>(size);
  std::copy_n(preview.rgb8, size, pixels.get());
  return array(std::move(pixels), {preview.height, preview.width, 3});
}

}  // namespace

Session PooledModel::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (idle_.empty()) return model.session();
  Session session = std::move(idle_.back());
  idle_.pop_back();
  return session;
}

void PooledModel::give_back(Session session) {
  const std::lock_guard<std::mutex> lock(mutex_);
  idle_.push_back(std::move(session));
}

nb::dict generate(PooledModel& pooled, Request& request, const nb::object& on_step, const nb::object& on_preview) {
  Interruptible interruptible;
  std::vector<std::string> warnings;
  std::optional<CancelToken> own;
  if (request.cancel == nullptr) request.cancel = &own.emplace();
  if (!on_step.is_none()) {
    request.on_step = [&](const ArcflowStep& step) { interruptible.inside([&] { on_step(described(step)); }); };
  }
  if (!on_preview.is_none()) {
    request.on_preview = [&](const ArcflowPreview& preview) {
      interruptible.inside([&] { on_preview(preview.image, preview.frame, preview.sigma, pixels_of(preview)); });
    };
  }
  request.on_warning = [&](const std::string& message) { warnings.push_back(message); };

  const ArcflowShape shape = pooled.model.shape(request);
  const ArcflowModelInfo info = pooled.model.info();
  std::unique_ptr<std::uint8_t[]> images(new std::uint8_t[shape.rgb8_bytes]);
  std::unique_ptr<float[]> latents(new float[shape.latent_floats]);
  auto output = ARCFLOW_INIT(ArcflowOutput);
  output.rgb8 = images.get();
  output.rgb8_bytes = shape.rgb8_bytes;
  output.latents = latents.get();
  output.latent_floats = shape.latent_floats;

  Session session = pooled.take();
  try {
    interruptible.run([&] { session.generate(request, output); }, [&] { request.cancel->cancel(); });
  } catch (...) {
    pooled.give_back(std::move(session));
    throw;
  }
  pooled.give_back(std::move(session));

  nb::list told;
  for (const std::string& warning : warnings) told.append(warning);
  const std::size_t count = shape.image_count;
  nb::dict result;
  result["images"] = array(std::move(images), {count, shape.height, shape.width, 3});
  result["latents"] = array(std::move(latents), {count, info.latent_channels, shape.height / info.latent_factor,
                                                 shape.width / info.latent_factor});
  result["seconds"] = seconds(output);
  result["warnings"] = told;
  return result;
}

}  // namespace arcflow::python
