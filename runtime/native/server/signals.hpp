// The signals that end the server.
#pragma once

#include <condition_variable>
#include <csignal>
#include <memory>
#include <mutex>

namespace arcflow::serve {

// Turns SIGTERM and SIGINT into a wait. Every thread that is started after it leaves these signals to it. SIGHUP and
// SIGPIPE do nothing: a server outlives the terminal that it was started from.
class Signals {
 public:
  Signals();

  // From now on the first signal is only told to wait(), and those of the second that follows count as the same one:
  // process groups and supervisors send it twice. A later one ends the process at once, as any does before this call.
  void arm();
  void wait();

 private:
  struct State;
  static void watch(const std::shared_ptr<State>& state, const sigset_t& set);

  const std::shared_ptr<State> state_;
};

}  // namespace arcflow::serve
