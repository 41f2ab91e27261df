// A bounded queue in front of one or more workers, each with a session of its own, on one or more devices. What callers
// see: submit, then wait.
#pragma once

#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "server/engine.hpp"
#include "server/scheduling/batching.hpp"
#include "server/scheduling/pace.hpp"
#include "server/telemetry/metrics.hpp"

namespace arcflow::serve {

struct SchedulerOptions {
  std::size_t workers = 1;            // of each engine
  std::size_t queue = 64;             // requests that may wait, beside those that run
  std::size_t max_batch = 1;          // images
  std::size_t batch_work = SIZE_MAX;  // evaluations of all images of a batch
  Clock::duration batch_wait{};
  std::vector<Shape> warm_up;  // run at batch 1 and max_batch by every worker before it is ready
};

class Scheduler {
 public:
  enum class Admission { kAccepted, kFull, kTooLate, kDraining };
  enum class Outcome { kPartial, kDone, kFailed, kInvalid, kGone, kDeadline, kDropped };

  // Starts the workers. engines: at least one, of the same model, one a device; they and the metrics must outlive the
  // scheduler.
  Scheduler(std::vector<Engine*> engines, ModelMetrics& metrics, SchedulerOptions options);
  // Ends what runs and joins the workers.
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Blocks until every worker has its session and is warm. Throws what a worker's session or warm-up threw.
  void wait_ready();

  // kTooLate: by the pace of recent batches it would not be done by its deadline. It is taken where nothing is before
  // it, whatever the pace.
  Admission submit(const std::shared_ptr<Ticket>& ticket);

  // Blocks until the ticket is done, its deadline passes, or gone() says that its caller is not there any more; gone is
  // asked every `poll`. In the latter two cases the ticket leaves: out of the queue, or out of its batch, which is
  // cancelled once nobody in it is waited for. partial: where it is given, kPartial comes with each of the ticket's
  // partials in their order, all of them before kDone; wait again.
  Outcome wait(const std::shared_ptr<Ticket>& ticket, const std::function<bool()>& gone, Clock::duration poll,
               Partial* partial = nullptr);

  // From now on nothing is accepted; what was accepted goes on.
  void drain();
  // Blocks until nothing waits or runs, at most until then. Gives whether that came about.
  bool wait_idle(Clock::time_point until);
  // Drops what waits and cancels what runs: their callers get kDropped.
  void abort();

  // Seconds after which a rejected caller may expect room, 1 to 60.
  int retry_after() const;

 private:
  struct Running {
    std::vector<Share> shares;
    std::unique_ptr<CancelToken> token;
    Clock::time_point began;
  };

  void work(Engine& engine);
  bool next_batch(Running& running);
  // Whether the device is well: it made the batch, or that was cancelled, or wrong in itself.
  bool run(EngineSession& session, Running& running);
  // Lets other workers go first. Ends at once where all of them rest.
  void rest(std::size_t failures);
  void show(const Running& running, std::size_t item, Partial&& partial);
  void finish(Running& running, BatchResult&& result);
  void fail(Running& running, const std::string& message, bool invalid);
  void end(Running& running);
  // Until what is before a new request of `caller` is made, or with null all there is.
  double seconds_before(const std::string* caller) const;
  void leave(const std::shared_ptr<Ticket>& ticket);
  void remove(const std::shared_ptr<Ticket>& ticket);
  void report_depth();
  std::size_t waiting() const;

  const std::vector<Engine*> engines_;
  ModelMetrics& metrics_;
  const SchedulerOptions options_;
  const BatchLimit limit_;

  mutable std::mutex mutex_;
  std::condition_variable work_;     // for workers: something waits, or the end
  std::condition_variable changed_;  // for callers: a ticket is done or shows more, a worker is ready, nothing runs now
  Queue queue_;
  Turns turns_;
  std::list<Running*> running_;
  bool draining_ = false;
  bool stopping_ = false;
  bool crowded_ = false;
  Pace pace_;
  std::size_t ready_ = 0, resting_ = 0;  // workers
  std::exception_ptr startup_failure_;
  std::vector<std::thread> workers_;
};

}  // namespace arcflow::serve
