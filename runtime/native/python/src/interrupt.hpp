// Work that Ctrl-C can end: on the interpreter's main thread the work goes to a thread of its own, and the calling one
// looks for signals and runs the work's callbacks.
#pragma once

#include <functional>

namespace arcflow::python {

// Runs work() without the interpreter's lock. Calls that the work makes through `inside` run on the calling thread with
// the lock held. On the main thread, a signal whose handler raises (KeyboardInterrupt) calls stop() once, waits for the
// work to end and throws nb::python_error; on other threads Python delivers no signals and the work runs where it is.
// What the work throws is thrown again. stop must not throw.
class Interruptible {
 public:
  void run(const std::function<void()>& work, const std::function<void()>& stop);
  // From within the work: runs job() under the interpreter's lock, on the thread that called run, and throws what it
  // throws.
  void inside(const std::function<void()>& job);

 private:
  struct Shared;
  Shared* shared_ = nullptr;  // null where the work runs on the calling thread
};

}  // namespace arcflow::python
