// The workers' loop and what happens to a batch whose members leave or whose engine fails.
#include "server/scheduling/scheduler.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

namespace arcflow::serve {
namespace {

// Of a worker whose batch failed; twice as long after each further one in a row.
constexpr std::chrono::milliseconds kFirstRest{100}, kLongestRest{60'000};

}  // namespace

Scheduler::Scheduler(std::vector<Engine*> engines, ModelMetrics& metrics, SchedulerOptions options)
    : engines_(std::move(engines)),
      metrics_(metrics),
      options_(std::move(options)),
      limit_(options_.max_batch, options_.batch_work) {
  for (Engine* engine : engines_) {
    for (std::size_t i = 0; i < options_.workers; ++i) workers_.emplace_back([this, engine] { work(*engine); });
  }
}

Scheduler::~Scheduler() {
  drain();
  abort();
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Scheduler::wait_ready() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return startup_failure_ != nullptr || ready_ == workers_.size(); });
  if (startup_failure_ != nullptr) std::rethrow_exception(startup_failure_);
}

Scheduler::Admission Scheduler::submit(const std::shared_ptr<Ticket>& ticket) {
  const std::lock_guard lock(mutex_);
  if (draining_) return Admission::kDraining;
  if (waiting() >= options_.queue) return Admission::kFull;
  if (pace_.too_late(*ticket, seconds_before(&ticket->caller), Clock::now())) return Admission::kTooLate;
  ticket->images.resize(ticket->seeds.size());
  queue_.push_back(ticket);
  report_depth();
  work_.notify_all();
  return Admission::kAccepted;
}

Scheduler::Outcome Scheduler::wait(const std::shared_ptr<Ticket>& ticket, const std::function<bool()>& gone,
                                   Clock::duration poll, Partial* partial) {
  std::unique_lock lock(mutex_);
  const auto shows = [&] { return partial != nullptr && !ticket->abandoned && !ticket->partials.empty(); };
  while (!ticket->done && !shows()) {
    if (ticket->abandoned) return Outcome::kDropped;
    changed_.wait_until(lock, std::min(Clock::now() + poll, ticket->deadline));
    if (ticket->done || ticket->abandoned || shows()) continue;
    if (Clock::now() >= ticket->deadline) {
      leave(ticket);
      return Outcome::kDeadline;
    }
    lock.unlock();
    const bool left = gone();
    lock.lock();
    if (left && !ticket->done) {
      leave(ticket);
      return Outcome::kGone;
    }
  }
  if (shows()) {
    *partial = std::move(ticket->partials.front());
    ticket->partials.pop_front();
    return Outcome::kPartial;
  }
  if (ticket->failure.empty()) return Outcome::kDone;
  return ticket->invalid ? Outcome::kInvalid : Outcome::kFailed;
}

void Scheduler::drain() {
  const std::lock_guard lock(mutex_);
  draining_ = true;
  work_.notify_all();
}

bool Scheduler::wait_idle(Clock::time_point until) {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, until, [this] { return queue_.empty() && running_.empty(); });
}

void Scheduler::abort() {
  const std::lock_guard lock(mutex_);
  for (const auto& ticket : queue_) ticket->abandoned = true;
  queue_.clear();
  for (Running* running : running_) {
    for (const Share& share : running->shares) share.ticket->abandoned = true;
    running->token->cancel();
  }
  report_depth();
  changed_.notify_all();
}

int Scheduler::retry_after() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(std::clamp(std::ceil(seconds_before(nullptr)), 1.0, 60.0));
}

double Scheduler::seconds_before(const std::string* caller) const {
  double seconds = pace_.seconds_before(queue_, caller);
  for (const Running* running : running_) seconds += pace_.seconds_left(running->shares, Clock::now() - running->began);
  return seconds / static_cast<double>(workers_.size());
}

void Scheduler::work(Engine& engine) {
  std::unique_ptr<EngineSession> session;
  try {
    session = engine.session();
    for (const Shape& shape : options_.warm_up) {
      session->warm_up(shape, 1);
      if (options_.max_batch > 1) session->warm_up(shape, static_cast<std::uint32_t>(options_.max_batch));
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    startup_failure_ = std::current_exception();
    changed_.notify_all();
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    ++ready_;
    changed_.notify_all();
  }
  Running running;
  std::size_t failures = 0;  // in a row
  while (next_batch(running)) {
    failures = run(*session, running) ? 0 : failures + 1;
    if (failures > 0) rest(failures);
  }
}

// A device that fails is free at once: without a rest it would take most of the requests, and fail them.
void Scheduler::rest(std::size_t failures) {
  std::unique_lock lock(mutex_);
  ++resting_;
  work_.notify_all();  // where all rest, one must not
  const auto time = std::min(kFirstRest * (1 << std::min<std::size_t>(failures - 1, 20)), kLongestRest);
  work_.wait_for(lock, time, [this] { return stopping_ || resting_ == workers_.size(); });
  --resting_;
}

// Waits for work and takes it; false at the end.
bool Scheduler::next_batch(Running& running) {
  std::unique_lock lock(mutex_);
  for (;;) {
    work_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) return false;
    const Clock::time_point until = hold_until(queue_, limit_, turns_, crowded_ && !draining_, options_.batch_wait);
    if (until > Clock::now()) {
      work_.wait_until(lock, until);
      continue;  // others came, or left, or the time is up: look again
    }
    break;
  }
  running.shares = take_batch(queue_, limit_, turns_);
  running.token = engines_.front()->cancel_token();
  running_.push_back(&running);
  const Clock::time_point now = running.began = Clock::now();
  for (const Share& share : running.shares) {
    ++share.ticket->running;
    if (share.first == 0) {
      share.ticket->started = now;
      metrics_.observe_stage("queue", std::chrono::duration<double>(now - share.ticket->arrived).count());
    }
  }
  report_depth();
  return true;
}

bool Scheduler::run(EngineSession& session, Running& running) {
  std::vector<Item> items;
  for (const Share& share : running.shares) {
    for (std::size_t i = share.first; i < share.first + share.count; ++i) {
      items.push_back({share.ticket->prompt, share.ticket->seeds[i]});
    }
  }
  metrics_.observe_batch(items.size());
  const auto sink = [&](std::size_t item, Partial&& partial) { show(running, item, std::move(partial)); };
  try {
    BatchResult result = session.generate(running.shares.front().ticket->shape, items, *running.token, sink);
    if (result.images.size() != items.size()) {
      throw EngineError(EngineError::Kind::kOther, "the engine gave another number of images than it was asked for");
    }
    finish(running, std::move(result));
    return true;
  } catch (const EngineError& error) {
    fail(running, error.what(), error.kind() == EngineError::Kind::kInvalid);
    return error.kind() != EngineError::Kind::kOther;
  } catch (const std::exception& error) {
    fail(running, error.what(), false);
    return false;
  }
}

// Requests that show partials have one image each. A batch that is made again shows what it has shown already.
void Scheduler::show(const Running& running, std::size_t item, Partial&& partial) {
  const std::lock_guard lock(mutex_);
  if (item >= running.shares.size()) return;
  Ticket& ticket = *running.shares[item].ticket;
  if (ticket.done || ticket.abandoned || ticket.seeds.size() != 1 || partial.index != ticket.shown) return;
  ++ticket.shown;
  ticket.partials.push_back(std::move(partial));
  changed_.notify_all();
}

void Scheduler::finish(Running& running, BatchResult&& result) {
  const std::lock_guard lock(mutex_);
  for (const auto& [stage, seconds] : result.seconds) metrics_.observe_stage(stage, seconds);
  pace_.learn(running.shares, result.total_seconds);
  auto image = result.images.begin();
  for (const Share& share : running.shares) {
    Ticket& ticket = *share.ticket;
    const auto begin = std::exchange(image, image + static_cast<std::ptrdiff_t>(share.count));
    if (ticket.done || ticket.abandoned) {
      continue;  // its caller may be reading it, or is gone
    }
    std::move(begin, image, ticket.images.begin() + static_cast<std::ptrdiff_t>(share.first));
    ticket.batch = std::max(ticket.batch, result.images.size());
    ticket.generate_seconds += result.total_seconds;
    ticket.done =
        std::none_of(ticket.images.begin(), ticket.images.end(), [](const Image& one) { return one.rgb8.empty(); });
    if (ticket.done) remove(share.ticket);
  }
  crowded_ = running.shares.size() > 1 || !queue_.empty();
  end(running);
  changed_.notify_all();
}

// A batch that several share may have failed by the fault of one, and any by that of its device: each request is tried
// again by itself, once.
void Scheduler::fail(Running& running, const std::string& message, bool invalid) {
  const std::lock_guard lock(mutex_);
  pace_.learn_at_least(running.shares, Clock::now() - running.began);
  const bool again = running.shares.size() > 1 || (engines_.size() > 1 && !invalid);
  for (auto share = running.shares.rbegin(); share != running.shares.rend(); ++share) {
    Ticket& ticket = *share->ticket;
    if (ticket.abandoned || ticket.done) continue;
    if (again && !ticket.alone) {
      // From this share on, whatever else of the ticket is on its way: made twice is better than not at all.
      ticket.alone = true;
      ticket.taken = share->first;
      remove(share->ticket);
      queue_.push_front(share->ticket);
    } else {
      ticket.failure = message.empty() ? "the engine failed" : message;
      ticket.invalid = invalid;
      ticket.done = true;
      remove(share->ticket);
    }
  }
  end(running);
  work_.notify_all();
  changed_.notify_all();
}

void Scheduler::end(Running& running) {
  for (const Share& share : running.shares) --share.ticket->running;
  running_.remove(&running);
  report_depth();
}

void Scheduler::leave(const std::shared_ptr<Ticket>& ticket) {
  ticket->abandoned = true;
  remove(ticket);
  for (Running* running : running_) {
    const auto& shares = running->shares;
    const bool mine =
        std::any_of(shares.begin(), shares.end(), [&](const Share& share) { return share.ticket == ticket; });
    if (mine && std::all_of(shares.begin(), shares.end(), [](const Share& share) { return share.ticket->abandoned; })) {
      running->token->cancel();
    }
  }
  report_depth();
  changed_.notify_all();
}

void Scheduler::remove(const std::shared_ptr<Ticket>& ticket) {
  queue_.erase(std::remove(queue_.begin(), queue_.end(), ticket), queue_.end());
}

// Requests of which nothing runs. One that is made in several batches keeps its place in the queue meanwhile.
std::size_t Scheduler::waiting() const {
  return static_cast<std::size_t>(
      std::count_if(queue_.begin(), queue_.end(), [](const auto& ticket) { return ticket->running == 0; }));
}

void Scheduler::report_depth() {
  std::size_t images = 0;
  for (const Running* running : running_) {
    for (const Share& share : running->shares) images += share.count;
  }
  metrics_.set_load(waiting(), images, running_.size());
}

}  // namespace arcflow::serve
