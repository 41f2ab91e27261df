// The Python module arcflow_native._core: the C interface as Python sees it. Its types are in arcflow_native/_core.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "arrays.hpp"
#include "generate.hpp"
#include "handles.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace arcflow::python {

namespace {

struct CancelObject {
  Cancel handle = make_cancel();
};

const char* c_str(const std::optional<std::string>& text) { return text ? text->c_str() : nullptr; }

nb::tuple range(const ArcflowRange& value) { return nb::make_tuple(value.min, value.opt, value.max); }

nb::dict info(const Model& model) {
  auto value = ARCFLOW_INIT(ArcflowModelInfo);
  check(api().model_info(model.get(), &value));
  nb::dict result;
  result["model"] = value.model;
  result["architecture"] = value.architecture;
  result["precision"] = value.precision;
  result["target"] = value.target;
  result["digest"] = value.digest;
  result["bundle"] = nb::steal(PyUnicode_DecodeFSDefault(value.bundle));
  result["backend"] = value.backend;
  result["batch"] = range(value.batch);
  result["width"] = range(value.width);
  result["height"] = range(value.height);
  result["multiple"] = value.multiple;
  result["nfe"] = value.nfe;
  result["max_nfe"] = value.max_nfe;
  result["latent_channels"] = value.latent_channels;
  result["latent_factor"] = value.latent_factor;
  return result;
}

nb::tuple memory(const Model& model) {
  auto value = ARCFLOW_INIT(ArcflowMemory);
  check(api().model_memory(model.get(), &value));
  return nb::make_tuple(value.host_bytes, value.device_bytes);
}

nb::object noise(std::uint64_t seed, std::size_t count, std::uint64_t first) {
  auto values = std::make_unique<float[]>(count);
  check(api().noise(seed, first, count, values.get()));
  return array(std::move(values), {count});
}

void verify_bundle(const std::string& folder) {
  ArcflowStatus* status = nullptr;
  {
    const nb::gil_scoped_release unlocked;
    status = api().verify_bundle(folder.c_str());
  }
  check(status);
}

}  // namespace

}  // namespace arcflow::python

NB_MODULE(_core, m) {
  using namespace arcflow::python;
  using Text = std::optional<std::string>;
  m.doc() = "ArcFlow's C interface.";

  nb::class_<CancelObject>(m, "Cancel", "A token that ends the requests it was given to, from any thread.")
      .def(nb::init<>())
      .def("cancel", [](CancelObject& self) { api().cancel_request(self.handle.get()); });

  nb::class_<Model>(m, "Model", "A verified bundle, loaded. Any number of threads may generate with it at once.")
      .def(
          "__init__",
          [](Model* self, const std::string& bundle, const Text& precision, const Text& target, const Text& host,
             const Text& library, std::uint32_t threads, std::uint32_t device) {
            auto options = ARCFLOW_INIT(ArcflowModelOptions);
            options.bundle = bundle.c_str();
            options.precision = c_str(precision);
            options.target = c_str(target);
            options.host = c_str(host);
            options.library = c_str(library);
            options.threads = threads;
            options.device = device;
            new (self) Model(options);
          },
          "bundle"_a, nb::kw_only(), "precision"_a.none() = nb::none(), "target"_a.none() = nb::none(),
          "host"_a.none() = nb::none(), "library"_a.none() = nb::none(), "threads"_a = 0, "device"_a = 0)
      .def_prop_ro("info", &info, "What the model is and what it takes.")
      .def_prop_ro("memory", &memory, "Bytes held in main memory and on the device.")
      .def(
          "generate",
          [](Model& self, std::vector<std::string> prompts, std::uint64_t seed,
             std::optional<std::vector<std::uint64_t>> seeds, std::uint32_t num_images, std::uint32_t nfe,
             std::uint32_t width, std::uint32_t height, std::uint32_t previews, double timeout,
             const CancelObject* cancel, nb::object on_step, nb::object on_preview) {
            const Arguments arguments{std::move(prompts),
                                      seed,
                                      std::move(seeds),
                                      num_images,
                                      nfe,
                                      width,
                                      height,
                                      previews,
                                      timeout,
                                      cancel == nullptr ? nullptr : cancel->handle.get(),
                                      std::move(on_step),
                                      std::move(on_preview)};
            return generate(self, arguments);
          },
          "prompts"_a, nb::kw_only(), "seed"_a = 0, "seeds"_a.none() = nb::none(), "num_images"_a = 1, "nfe"_a = 0,
          "width"_a = 0, "height"_a = 0, "previews"_a = 0, "timeout"_a = 0.0, "cancel"_a.none() = nb::none(),
          "on_step"_a.none() = nb::none(), "on_preview"_a.none() = nb::none(),
          "Images and latents of a request, without holding the interpreter's lock.");

  m.def("library_version", [] { return api().library_version(); }, "The library's version.");
  m.def("noise", &noise, "seed"_a, "count"_a, "first"_a = 0, "An image's starting noise from an element on.");
  m.def("verify_bundle", &verify_bundle, "folder"_a, "Checks every byte of a bundle against its manifest.");
}
