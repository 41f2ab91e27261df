// A loaded bundle as the Python module holds it, and one request from Python: its callbacks, and its results as arrays.
#pragma once

#include <nanobind/nanobind.h>

#include <arcflow/arcflow.hpp>
#include <mutex>
#include <utility>
#include <vector>

namespace arcflow::python {

// A loaded bundle with the sessions that its calls have made: a call takes an idle one or makes another, so that any
// number of threads can generate at once.
struct PooledModel {
  explicit PooledModel(Model loaded) : model(std::move(loaded)) {}
  Session take();
  void give_back(Session session);

  const Model model;

 private:
  std::mutex mutex_;
  std::vector<Session> idle_;
};

// {"images": uint8 [N, H, W, 3], "latents": float32 [N, C, h, w], "seconds": {stage: s}, "warnings": [str]}. The arrays
// own the memory that the library wrote into. on_step, on_preview: callables or None; what one raises ends the request
// and is raised again.
nanobind::dict generate(PooledModel& model, Request& request, const nanobind::object& on_step,
                        const nanobind::object& on_preview);

}  // namespace arcflow::python
