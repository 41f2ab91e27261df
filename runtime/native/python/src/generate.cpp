// See generate.hpp.
#include "generate.hpp"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <arcflow/arcflow.hpp>
#include <memory>
#include <utility>

#include "arrays.hpp"
#include "interrupt.hpp"

namespace nb = nanobind;

namespace arcflow::python {

namespace {

// What the library's callbacks reach through their `user`.
struct Callbacks {
  const Arguments& arguments;
  Interruptible interruptible;
  std::optional<nb::python_error> raised;  // by a callback
  std::vector<std::string> warnings;

  // Runs a callback; what it raises is kept, and 1 ends the request.
  template <class Job>
  std::int32_t call(Job job) {
    std::int32_t code = 1;
    interruptible.inside([&] {
      if (raised) return;
      try {
        job();
        code = 0;
      } catch (nb::python_error& error) {
        raised.emplace(std::move(error));
      } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
        raised.emplace();
      }
    });
    return code;
  }
};

std::int32_t ARCFLOW_CALL on_step(void* user, const ArcflowStep* step) {
  auto& callbacks = *static_cast<Callbacks*>(user);
  return callbacks.call([&] {
    nb::dict values;
    values["index"] = step->index;
    values["total"] = step->total;
    values["first_image"] = step->first_image;
    values["image_count"] = step->image_count;
    values["sigma_from"] = step->sigma_from;
    values["sigma_to"] = step->sigma_to;
    callbacks.arguments.on_step(values);
  });
}

std::int32_t ARCFLOW_CALL on_preview(void* user, const ArcflowPreview* preview) {
  auto& callbacks = *static_cast<Callbacks*>(user);
  return callbacks.call([&] {
    const std::size_t size = std::size_t{preview->width} * preview->height * 3;
    auto pixels = std::make_unique<std::uint8_t[]>(size);
    std::copy_n(preview->rgb8, size, pixels.get());
    callbacks.arguments.on_preview(preview->image, preview->frame, preview->sigma,
                                   array(std::move(pixels), {preview->height, preview->width, 3}));
  });
}

void ARCFLOW_CALL on_warning(void* user, const char* message) {
  static_cast<Callbacks*>(user)->warnings.emplace_back(message);
}

nb::dict seconds(const ArcflowOutput& output) {
  nb::dict values;
  for (const auto& [stage, took] : stage_seconds(output)) values[stage] = took;
  values["total"] = output.total_seconds;
  return values;
}

}  // namespace

nb::dict generate(Model& model, const Arguments& arguments) {
  Callbacks callbacks{arguments, {}, {}, {}};
  std::vector<const char*> prompts;
  for (const std::string& prompt : arguments.prompts) {
    // The C interface would take what comes before it for the whole.
    if (prompt.find('\0') != std::string::npos) throw nb::value_error("a prompt holds a NUL");
    prompts.push_back(prompt.c_str());
  }
  Cancel own;
  if (arguments.cancel == nullptr) own = make_cancel();

  auto request = ARCFLOW_INIT(ArcflowRequest);
  request.prompts = prompts.data();
  request.prompt_count = prompts.size();
  request.seed = arguments.seed;
  if (arguments.seeds) {
    request.seeds = arguments.seeds->data();
    request.seed_count = arguments.seeds->size();
  }
  request.num_images = arguments.num_images;
  request.nfe = arguments.nfe;
  request.width = arguments.width;
  request.height = arguments.height;
  request.previews = arguments.previews;
  request.timeout = arguments.timeout;
  request.cancel = own ? own.get() : const_cast<ArcflowCancel*>(arguments.cancel);
  request.on_step = arguments.on_step.is_none() ? nullptr : on_step;
  request.on_preview = arguments.on_preview.is_none() ? nullptr : on_preview;
  request.on_warning = on_warning;
  request.user = &callbacks;

  auto shape = ARCFLOW_INIT(ArcflowShape);
  check(api().model_shape(model.get(), &request, &shape));
  auto info = ARCFLOW_INIT(ArcflowModelInfo);
  check(api().model_info(model.get(), &info));
  std::unique_ptr<std::uint8_t[]> images(new std::uint8_t[shape.rgb8_bytes]);
  std::unique_ptr<float[]> latents(new float[shape.latent_floats]);
  auto output = ARCFLOW_INIT(ArcflowOutput);
  output.rgb8 = images.get();
  output.rgb8_bytes = shape.rgb8_bytes;
  output.latents = latents.get();
  output.latent_floats = shape.latent_floats;

  ArcflowStatus* status = nullptr;
  Session session = model.take();
  try {
    callbacks.interruptible.run([&] { status = api().session_generate(session.get(), &request, &output); },
                                [&] { api().cancel_request(request.cancel); });
  } catch (...) {
    api().status_destroy(status);
    model.give_back(std::move(session));
    throw;
  }
  model.give_back(std::move(session));
  if (callbacks.raised) {
    api().status_destroy(status);
    throw nb::python_error(std::move(*callbacks.raised));
  }
  check(status);

  nb::list warnings;
  for (const std::string& warning : callbacks.warnings) warnings.append(warning);
  const std::size_t count = shape.image_count;
  nb::dict result;
  result["images"] = array(std::move(images), {count, shape.height, shape.width, 3});
  result["latents"] = array(std::move(latents), {count, info.latent_channels, shape.height / info.latent_factor,
                                                 shape.width / info.latent_factor});
  result["seconds"] = seconds(output);
  result["warnings"] = warnings;
  return result;
}

}  // namespace arcflow::python
