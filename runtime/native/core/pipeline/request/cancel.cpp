// Tokens and deadlines. Whoever ends a request holds the lock that removing it takes, so a request that is over is
// never touched; a request holds no lock while it runs, so a callback may cancel its own.
#include "core/pipeline/request/cancel.hpp"

#include <cstdio>

#include "core/error.hpp"

namespace arcflow::core {
namespace {

// Ten years: later than anything that runs, and far from where a time point would overflow.
constexpr double kForever = 10.0 * 365.0 * 86400.0;

}  // namespace

void Running::stop(Stop reason) {
  Stop none = Stop::kNone;
  if (reason_.compare_exchange_strong(none, reason, std::memory_order_acq_rel)) interrupt_();
}

void CancelToken::cancel() {
  const std::lock_guard<std::mutex> lock(mutex_);
  cancelled_ = true;
  for (Running* running : running_) running->stop(Stop::kCancelled);
}

void CancelToken::add(Running& running) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (cancelled_) {
    running.stop(Stop::kCancelled);
  } else {
    running_.insert(&running);
  }
}

void CancelToken::remove(Running& running) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  running_.erase(&running);
}

DeadlineWatch::~DeadlineWatch() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void DeadlineWatch::add(Clock::time_point deadline, Running& running) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto place = running_.emplace(deadline, &running);
  if (!thread_.joinable()) {
    try {
      thread_ = std::thread(&DeadlineWatch::watch, this);
    } catch (...) {
      running_.erase(place);
      throw;
    }
  }
  if (place == running_.begin()) changed_.notify_all();
}

void DeadlineWatch::remove(Running& running) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto at = running_.begin(); at != running_.end();) {
    at = at->second == &running ? running_.erase(at) : std::next(at);
  }
}

void DeadlineWatch::watch() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!ending_) {
    if (running_.empty()) {
      changed_.wait(lock);
      continue;
    }
    const auto [deadline, running] = *running_.begin();
    if (Clock::now() < deadline) {
      changed_.wait_until(lock, deadline);
      continue;
    }
    running_.erase(running_.begin());
    running->stop(Stop::kDeadline);
  }
}

Supervised::Supervised(std::shared_ptr<CancelToken> token, DeadlineWatch& watch, double timeout,
                       Clock::time_point start, std::function<void()> interrupt)
    : running_(std::move(interrupt)),
      token_(std::move(token)),
      watch_(watch),
      timeout_(timeout < kForever ? timeout : 0.0),
      deadline_(start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_))) {
  if (timeout_ > 0.0) watch_.add(deadline_, running_);
  try {
    if (token_) token_->add(running_);
  } catch (...) {
    if (timeout_ > 0.0) watch_.remove(running_);
    throw;
  }
}

Supervised::~Supervised() {
  if (token_) token_->remove(running_);
  if (timeout_ > 0.0) watch_.remove(running_);
}

void Supervised::check() const {
  Stop reason = running_.reason();
  // The watch's thread may be late on a busy machine.
  if (reason == Stop::kNone && timeout_ > 0.0 && Clock::now() >= deadline_) reason = Stop::kDeadline;
  if (reason == Stop::kCancelled) throw Error(ARCFLOW_CANCELLED, "the request was cancelled by its token");
  if (reason == Stop::kDeadline) {
    char seconds[64];
    std::snprintf(seconds, sizeof seconds, "%g", timeout_);
    throw Error(ARCFLOW_DEADLINE_EXCEEDED,
                std::string("the request was not done within its timeout of ") + seconds + " s");
  }
}

}  // namespace arcflow::core
