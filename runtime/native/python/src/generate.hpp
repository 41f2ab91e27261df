// One request from Python: its arguments, its callbacks, and its results as numpy arrays.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "handles.hpp"

namespace arcflow::python {

struct Arguments {
  std::vector<std::string> prompts;
  std::uint64_t seed = 0;
  std::optional<std::vector<std::uint64_t>> seeds;
  std::uint32_t num_images = 1, nfe = 0, width = 0, height = 0, previews = 0;
  double timeout = 0.0;
  const ArcflowCancel* cancel = nullptr;  // not owned; null: one of the call's own
  nanobind::object on_step, on_preview;   // callables or None
};

// {"images": uint8 [N, H, W, 3], "latents": float32 [N, C, h, w], "seconds": {stage: s}, "warnings": [str]}. The arrays
// own the memory that the library wrote into. What a callback raises ends the request and is raised again.
nanobind::dict generate(Model& model, const Arguments& arguments);

}  // namespace arcflow::python
