// Ending a request that runs: by a token, by a deadline. The request is told through one flag and its engine host at
// once.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>

namespace arcflow::core {

using Clock = std::chrono::steady_clock;

enum class Stop : int { kNone, kCancelled, kDeadline };

// One running request, as those see it who may end it. The first reason counts.
class Running {
 public:
  explicit Running(std::function<void()> interrupt) : interrupt_(std::move(interrupt)) {}
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

  // From any thread: notes the reason and interrupts the host.
  void stop(Stop reason);
  Stop reason() const noexcept { return reason_.load(std::memory_order_acquire); }

 private:
  std::atomic<Stop> reason_{Stop::kNone};
  std::function<void()> interrupt_;
};

// A cancel token: ends every request that runs with it, and every later one. Safe from any thread.
class CancelToken {
 public:
  void cancel();
  // A request is ended at once where the token is cancelled already.
  void add(Running& running);
  // When this returns, the token no longer touches `running`.
  void remove(Running& running) noexcept;

 private:
  std::mutex mutex_;
  bool cancelled_ = false;
  std::set<Running*> running_;
};

// Ends requests whose time has passed. Its one thread starts with the first deadline and ends with the object.
class DeadlineWatch {
 public:
  DeadlineWatch() = default;
  DeadlineWatch(const DeadlineWatch&) = delete;
  DeadlineWatch& operator=(const DeadlineWatch&) = delete;
  ~DeadlineWatch();

  void add(Clock::time_point deadline, Running& running);
  // When this returns, the watch no longer touches `running`.
  void remove(Running& running) noexcept;

 private:
  void watch();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::multimap<Clock::time_point, Running*> running_;
  bool ending_ = false;
  std::thread thread_;
};

// A request known to its token and to the watch for as long as this lives. token may be null; timeout in seconds,
// counted from `start`, 0 for none.
class Supervised {
 public:
  Supervised(std::shared_ptr<CancelToken> token, DeadlineWatch& watch, double timeout, Clock::time_point start,
             std::function<void()> interrupt);
  Supervised(const Supervised&) = delete;
  Supervised& operator=(const Supervised&) = delete;
  ~Supervised();

  // Throws Error(ARCFLOW_CANCELLED or ARCFLOW_DEADLINE_EXCEEDED) once the request is to end.
  void check() const;

 private:
  Running running_;
  std::shared_ptr<CancelToken> token_;
  DeadlineWatch& watch_;
  double timeout_;
  Clock::time_point deadline_;
};

}  // namespace arcflow::core
