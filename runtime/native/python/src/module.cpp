// The Python module arcflow_native._core: the C interface as Python sees it. Its types are in arcflow_native/_core.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "arrays.hpp"
#include "generate.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace arcflow::python {
namespace {

using Text = std::optional<std::string>;

// arcflow_native.NativeError for an Error.
void raise(const Error& error) {
  const nb::object type = nb::module_::import_("arcflow_native._errors").attr("NativeError");
  const std::string message = error.what();  // a path may hold bytes that are not UTF-8
  const nb::object text =
      nb::steal(PyUnicode_DecodeUTF8(message.data(), static_cast<Py_ssize_t>(message.size()), "backslashreplace"));
  if (text.is_valid()) PyErr_SetObject(type.ptr(), type(static_cast<int>(error.code()), text).ptr());
}

nb::tuple range(const ArcflowRange& value) { return nb::make_tuple(value.min, value.opt, value.max); }

nb::dict info(const PooledModel& pooled) {
  const ArcflowModelInfo value = pooled.model.info();
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

nb::tuple memory(const PooledModel& pooled) {
  const ArcflowMemory value = pooled.model.memory();
  return nb::make_tuple(value.host_bytes, value.device_bytes);
}

nb::object noise(std::uint64_t seed, std::size_t count, std::uint64_t first) {
  auto values = std::make_unique<float[]>(count);
  arcflow::detail::check(linked_api(), linked_api()->noise(seed, first, count, values.get()));
  return array(std::move(values), {count});
}

void open(PooledModel* self, const std::string& bundle, const Text& precision, const Text& target, const Text& host,
          const Text& library, std::uint32_t threads, std::uint32_t device, bool allow_links) {
  const ModelOptions options{
      bundle,     precision.value_or(""), target.value_or(""), host.value_or(""), library.value_or(""), threads, device,
      allow_links};
  const nb::gil_scoped_release unlocked;
  new (self) PooledModel(Context().open(options));
}

nb::dict generate_one(PooledModel& self, std::vector<std::string> prompts, std::uint64_t seed,
                      std::optional<std::vector<std::uint64_t>> seeds, std::uint32_t num_images, std::uint32_t nfe,
                      std::uint32_t width, std::uint32_t height, std::uint32_t previews, double timeout,
                      const CancelToken* cancel, const nb::object& on_step, const nb::object& on_preview) {
  if (seeds && seeds->empty()) throw nb::value_error("seeds is empty; give one seed for each image, or None");
  Request request;
  request.prompts = std::move(prompts);
  request.seed = seed;
  if (seeds) request.seeds = *std::move(seeds);
  request.num_images = num_images;
  request.nfe = nfe;
  request.width = width;
  request.height = height;
  request.previews = previews;
  request.timeout = timeout;
  request.cancel = cancel;
  return generate(self, request, on_step, on_preview);
}

}  // namespace
}  // namespace arcflow::python

NB_MODULE(_core, m) {
  using namespace arcflow::python;
  m.doc() = "ArcFlow's C interface.";
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const arcflow::Error& error) {
      raise(error);
    }
  });

  nb::class_<arcflow::CancelToken>(m, "Cancel", "A token that ends the requests it was given to, from any thread.")
      .def("__init__", [](arcflow::CancelToken* self) { new (self) arcflow::CancelToken; })
      .def("cancel", &arcflow::CancelToken::cancel);

  nb::class_<PooledModel>(m, "Model", "A verified bundle, loaded. Any number of threads may generate with it at once.")
      .def("__init__", &open, "bundle"_a, nb::kw_only(), "precision"_a.none() = nb::none(),
           "target"_a.none() = nb::none(), "host"_a.none() = nb::none(), "library"_a.none() = nb::none(),
           "threads"_a = 0, "device"_a = 0, "allow_links"_a = false)
      .def_prop_ro("info", &info, "What the model is and what it takes.")
      .def_prop_ro("memory", &memory, "Bytes held in main memory and on the device.")
      .def("generate", &generate_one, "prompts"_a, nb::kw_only(), "seed"_a = 0, "seeds"_a.none() = nb::none(),
           "num_images"_a = 1, "nfe"_a = 0, "width"_a = 0, "height"_a = 0, "previews"_a = 0, "timeout"_a = 0.0,
           "cancel"_a.none() = nb::none(), "on_step"_a.none() = nb::none(), "on_preview"_a.none() = nb::none(),
           "Images and latents of a request, without holding the interpreter's lock.");

  m.def("library_version", [] { return arcflow::linked_api()->library_version(); }, "The library's version.");
  m.def("noise", &noise, "seed"_a, "count"_a, "first"_a = 0, "An image's starting noise from an element on.");
  m.def(
      "verify_bundle", [](const std::string& folder) { arcflow::verify_bundle(folder); }, "folder"_a,
      nb::call_guard<nb::gil_scoped_release>(), "Checks every byte of a bundle against its manifest.");
}
