// A thread that takes the signals, for as long as the process lives.
#include "server/signals.hpp"

#include <chrono>
#include <cstdlib>
#include <thread>

namespace arcflow::serve {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kSame{1};  // signals within it are one

}  // namespace

struct Signals::State {
  std::mutex mutex;
  std::condition_variable changed;
  bool armed = false, received = false;
  Clock::time_point first;
};

Signals::Signals() : state_(std::make_shared<State>()) {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGHUP, SIG_IGN);
  sigset_t set{};
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::thread(watch, state_, set).detach();
}

void Signals::arm() {
  const std::lock_guard lock(state_->mutex);
  state_->armed = true;
}

void Signals::wait() {
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [this] { return state_->received; });
}

void Signals::watch(const std::shared_ptr<State>& state, const sigset_t& set) {
  for (;;) {
    int number = 0;
    sigwait(&set, &number);
    const std::lock_guard lock(state->mutex);
    const Clock::time_point now = Clock::now();
    if (!state->armed || (state->received && now - state->first >= kSame)) std::_Exit(128 + number);
    if (state->received) continue;
    state->received = true;
    state->first = now;
    state->changed.notify_all();
  }
}

}  // namespace arcflow::serve
