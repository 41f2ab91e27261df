#include "interrupt.hpp"

#include <nanobind/nanobind.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

namespace nb = nanobind;

namespace arcflow::python {
namespace {

constexpr std::chrono::milliseconds kLook{50};

bool on_main_thread() {
  const nb::module_ threading = nb::module_::import_("threading");
  return threading.attr("current_thread")().is(threading.attr("main_thread")());
}

}  // namespace

struct Interruptible::Shared {
  std::mutex mutex;
  std::condition_variable changed;
  const std::function<void()>* job = nullptr;
  std::exception_ptr raised;  // by the job
  bool done = false;
};

void Interruptible::run(const std::function<void()>& work, const std::function<void()>& stop) {
  if (!on_main_thread()) {
    const nb::gil_scoped_release unlocked;
    work();
    return;
  }
  Shared shared;
  shared_ = &shared;
  std::optional<nb::python_error> interrupt;
  std::exception_ptr thrown;
  std::thread worker([&] {
    try {
      work();
    } catch (...) {
      thrown = std::current_exception();
    }
    const std::lock_guard<std::mutex> lock(shared.mutex);
    shared.done = true;
    shared.changed.notify_all();
  });
  for (bool done = false; !done;) {
    const std::function<void()>* job = nullptr;
    {
      const nb::gil_scoped_release unlocked;
      std::unique_lock<std::mutex> lock(shared.mutex);
      shared.changed.wait_for(lock, kLook, [&] { return shared.done || shared.job != nullptr; });
      job = shared.job;
      done = shared.done;
    }
    if (job != nullptr) {
      std::exception_ptr raised;
      try {
        (*job)();
      } catch (...) {
        raised = std::current_exception();
      }
      const std::lock_guard<std::mutex> lock(shared.mutex);
      shared.raised = raised;
      shared.job = nullptr;
      shared.changed.notify_all();
    }
    if (PyErr_CheckSignals() != 0) {
      nb::python_error raised;
      if (!interrupt) {
        interrupt.emplace(std::move(raised));
        stop();
      }
    }
  }
  worker.join();
  shared_ = nullptr;
  if (interrupt) throw nb::python_error(std::move(*interrupt));
  if (thrown) std::rethrow_exception(thrown);
}

void Interruptible::inside(const std::function<void()>& job) {
  if (shared_ == nullptr) {
    const nb::gil_scoped_acquire locked;
    job();
    return;
  }
  std::unique_lock<std::mutex> lock(shared_->mutex);
  shared_->job = &job;
  shared_->changed.notify_all();
  shared_->changed.wait(lock, [&] { return shared_->job == nullptr; });
  if (const std::exception_ptr raised = std::exchange(shared_->raised, nullptr)) std::rethrow_exception(raised);
}

}  // namespace arcflow::python
