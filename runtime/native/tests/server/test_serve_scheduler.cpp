// Queue, batches and their ends, with an engine that does what the test says.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/scheduling/scheduler.hpp"
#include "server/telemetry/metrics.hpp"

using namespace arcflow::serve;
using namespace std::chrono_literals;

namespace {

constexpr Shape kSmall{32, 32, 2}, kLarge{64, 64, 2};

std::shared_ptr<Ticket> ticket_of(std::vector<std::uint64_t> seeds, const Shape& shape = kSmall,
                                  Clock::duration timeout = 30s) {
  auto ticket = std::make_shared<Ticket>();
  ticket->shape = shape;
  ticket->prompt = "a boot";
  ticket->seeds = std::move(seeds);
  ticket->arrived = Clock::now();
  ticket->deadline = ticket->arrived + timeout;
  return ticket;
}

class FakeToken final : public CancelToken {
 public:
  void cancel() noexcept override { cancelled = true; }
  std::atomic<bool> cancelled{false};
};

// Generates images of one byte, the seed's. A batch runs until the gate is open or its token is cancelled.
class FakeEngine final : public Engine {
 public:
  const ModelDescription& model() const override { return model_; }
  void check(const Shape&, const std::string&) const override {}
  std::unique_ptr<EngineSession> session() override { return std::make_unique<Session>(*this); }
  std::unique_ptr<CancelToken> cancel_token() override { return std::make_unique<FakeToken>(); }
  std::string encode(const Shape&, const Image& image) const override { return image.settings; }

  void open(bool gate) {
    const std::lock_guard lock(mutex);
    gate_open = gate;
  }
  std::vector<std::vector<std::uint64_t>> seen() {
    const std::lock_guard lock(mutex);
    return batches;
  }
  bool started(std::size_t count) {
    for (int i = 0; i < 2000; ++i) {
      if (seen().size() >= count) return true;
      std::this_thread::sleep_for(1ms);
    }
    return false;
  }

  std::mutex mutex;
  bool gate_open = true;
  std::vector<std::vector<std::uint64_t>> batches;  // seeds of every batch, in the order of their start
  std::atomic<int> cancelled{0};
  std::function<void(const std::vector<Item>&)> before = [](const std::vector<Item>&) {};
  std::function<void()> on_warm_up = [] {};
  double image_seconds = 0;  // what a batch is said to have taken, an image

 private:
  class Session final : public EngineSession {
   public:
    explicit Session(FakeEngine& engine) : engine_(engine) {}
    BatchResult generate(const Shape& shape, const std::vector<Item>& items, CancelToken& token,
                         const PartialSink& sink) override {
      std::vector<std::uint64_t> seeds;
      for (const Item& item : items) seeds.push_back(item.seed);
      {
        const std::lock_guard lock(engine_.mutex);
        engine_.batches.push_back(seeds);
      }
      for (std::uint32_t index = 0; index < shape.partials; ++index) {
        for (std::size_t j = 0; j < items.size(); ++j) {
          sink(j, {index, 0.5, {{static_cast<std::uint8_t>(10 * items[j].seed + index)}, "{}"}});
        }
      }
      engine_.before(items);
      for (;;) {
        if (static_cast<FakeToken&>(token).cancelled) {
          ++engine_.cancelled;
          throw EngineError(EngineError::Kind::kCancelled, "cancelled");
        }
        const std::lock_guard lock(engine_.mutex);
        if (engine_.gate_open) break;
      }
      BatchResult result;
      for (const Item& item : items) result.images.push_back({{static_cast<std::uint8_t>(item.seed)}, "{}"});
      result.total_seconds = engine_.image_seconds * static_cast<double>(items.size());
      return result;
    }
    void warm_up(const Shape&, std::uint32_t) override { engine_.on_warm_up(); }

   private:
    FakeEngine& engine_;
  };
  ModelDescription model_;
};

bool nobody() { return false; }

struct Bench {
  explicit Bench(SchedulerOptions options) : scheduler({&engine}, metrics, std::move(options)) {
    scheduler.wait_ready();
  }
  FakeEngine engine;
  ModelMetrics metrics;
  Scheduler scheduler;

  Scheduler::Outcome wait(const std::shared_ptr<Ticket>& ticket) { return scheduler.wait(ticket, nobody, 1ms); }
};

SchedulerOptions options_of(std::size_t max_batch, std::size_t queue = 64, std::size_t workers = 1) {
  SchedulerOptions options;
  options.max_batch = max_batch;
  options.queue = queue;
  options.workers = workers;
  return options;
}

using Seeds = std::vector<std::vector<std::uint64_t>>;

}  // namespace

TEST_CASE("images come back to who asked, in order") {
  Bench bench(options_of(4));
  const auto ticket = ticket_of({7, 8, 9, 10, 11, 12});
  REQUIRE(bench.scheduler.submit(ticket) == Scheduler::Admission::kAccepted);
  REQUIRE(bench.wait(ticket) == Scheduler::Outcome::kDone);
  for (std::size_t i = 0; i < 6; ++i) {
    CHECK(ticket->images[i].rgb8 == std::vector<std::uint8_t>{static_cast<std::uint8_t>(7 + i)});
  }
  CHECK(bench.engine.seen() == Seeds{{7, 8, 9, 10}, {11, 12}});
  CHECK(ticket->batch == 4);
}

TEST_CASE("what waits while a batch runs is joined, and the queue is bounded") {
  Bench bench(options_of(4, 3));
  bench.engine.open(false);
  const auto first = ticket_of({1});
  bench.scheduler.submit(first);
  REQUIRE(bench.engine.started(1));
  std::vector<std::shared_ptr<Ticket>> waiting = {ticket_of({2}), ticket_of({3}, kLarge), ticket_of({4})};
  for (const auto& ticket : waiting) CHECK(bench.scheduler.submit(ticket) == Scheduler::Admission::kAccepted);
  CHECK(bench.scheduler.submit(ticket_of({5})) == Scheduler::Admission::kFull);
  CHECK(bench.scheduler.retry_after() >= 1);
  bench.engine.open(true);
  CHECK(bench.wait(first) == Scheduler::Outcome::kDone);
  for (const auto& ticket : waiting) CHECK(bench.wait(ticket) == Scheduler::Outcome::kDone);
  CHECK(bench.engine.seen() == Seeds{{1}, {2, 4}, {3}});
}

TEST_CASE("partials come to who asked, in order, once, and before the image") {
  constexpr Shape shape{32, 32, 2, 3};
  Bench bench(options_of(4));
  bool failed = false;
  bench.engine.before = [&failed](const std::vector<Item>& items) {  // a batch that is made again shows nothing twice
    if (items.size() == 2 && !std::exchange(failed, true)) throw EngineError(EngineError::Kind::kOther, "once");
  };
  bench.engine.open(false);
  const auto first = ticket_of({9});
  bench.scheduler.submit(first);
  REQUIRE(bench.engine.started(1));
  const auto one = ticket_of({1}, shape), two = ticket_of({2}, shape), without = ticket_of({3});
  for (const auto& ticket : {one, two, without}) bench.scheduler.submit(ticket);
  bench.engine.open(true);
  for (const auto& ticket : {one, two}) {
    for (std::uint32_t index = 0; index < 3; ++index) {
      Partial partial;
      REQUIRE(bench.scheduler.wait(ticket, nobody, 1ms, &partial) == Scheduler::Outcome::kPartial);
      CHECK(partial.index == index);
      CHECK(partial.image.rgb8[0] == 10 * ticket->seeds[0] + index);
    }
    Partial none;
    CHECK(bench.scheduler.wait(ticket, nobody, 1ms, &none) == Scheduler::Outcome::kDone);
    CHECK(ticket->partials.empty());
  }
  CHECK(bench.wait(without) == Scheduler::Outcome::kDone);
  CHECK(bench.wait(first) == Scheduler::Outcome::kDone);
  CHECK(bench.engine.seen() == Seeds{{9}, {1, 2}, {1}, {2}, {3}});  // who wants none is not made with who does
}

TEST_CASE("a queue is worked off by the workers of every device") {
  FakeEngine one, other;
  ModelMetrics metrics;
  Scheduler scheduler({&one, &other}, metrics, options_of(1));
  scheduler.wait_ready();
  one.open(false);
  other.open(false);
  const std::vector<std::shared_ptr<Ticket>> tickets = {ticket_of({1}), ticket_of({2}), ticket_of({3})};
  for (const auto& ticket : tickets) scheduler.submit(ticket);
  REQUIRE(one.started(1));
  REQUIRE(other.started(1));
  CHECK(metrics.counts().running == 2);
  CHECK(metrics.counts().queued == 1);
  other.open(true);  // whoever is free takes what waits
  CHECK(scheduler.wait(tickets[2], nobody, 1ms) == Scheduler::Outcome::kDone);
  CHECK(other.seen().size() == 2);
  one.open(true);
  for (const auto& ticket : tickets) CHECK(scheduler.wait(ticket, nobody, 1ms) == Scheduler::Outcome::kDone);
  CHECK(one.seen().size() == 1);
}

TEST_CASE("a caller who leaves the queue frees its slot") {
  Bench bench(options_of(1, 1));
  bench.engine.open(false);
  const auto running = ticket_of({1}), waiting = ticket_of({2});
  bench.scheduler.submit(running);
  REQUIRE(bench.engine.started(1));
  bench.scheduler.submit(waiting);
  CHECK(bench.scheduler.submit(ticket_of({3})) == Scheduler::Admission::kFull);
  CHECK(bench.scheduler.wait(waiting, [] { return true; }, 1ms) == Scheduler::Outcome::kGone);
  const auto next = ticket_of({4});
  CHECK(bench.scheduler.submit(next) == Scheduler::Admission::kAccepted);
  bench.engine.open(true);
  CHECK(bench.wait(running) == Scheduler::Outcome::kDone);
  CHECK(bench.wait(next) == Scheduler::Outcome::kDone);
  CHECK(bench.engine.seen() == Seeds{{1}, {4}});
}

TEST_CASE("a batch is cancelled when the last of its members has left, and not before") {
  Bench bench(options_of(4));
  bench.engine.open(false);
  const auto head = ticket_of({1});
  bench.scheduler.submit(head);
  REQUIRE(bench.engine.started(1));
  const auto a = ticket_of({2}), b = ticket_of({3});
  bench.scheduler.submit(a);
  bench.scheduler.submit(b);
  CHECK(bench.scheduler.wait(head, [] { return true; }, 1ms) == Scheduler::Outcome::kGone);
  REQUIRE(bench.engine.started(2));
  CHECK(bench.engine.cancelled == 1);
  CHECK(bench.scheduler.wait(a, [] { return true; }, 1ms) == Scheduler::Outcome::kGone);
  std::this_thread::sleep_for(20ms);
  CHECK(bench.engine.cancelled == 1);
  SUBCASE("the one who stays gets its image") {
    bench.engine.open(true);
    CHECK(bench.wait(b) == Scheduler::Outcome::kDone);
    CHECK(bench.engine.cancelled == 1);
  }
  SUBCASE("nobody stays") {
    CHECK(bench.scheduler.wait(b, [] { return true; }, 1ms) == Scheduler::Outcome::kGone);
    CHECK(bench.scheduler.wait_idle(Clock::now() + 5s));
    CHECK(bench.engine.cancelled == 2);
  }
}

TEST_CASE("a deadline ends the wait and the work") {
  Bench bench(options_of(1));
  bench.engine.open(false);
  const auto running = ticket_of({1}, kSmall, 30ms), waiting = ticket_of({2}, kSmall, 20ms);
  bench.scheduler.submit(running);
  bench.scheduler.submit(waiting);
  CHECK(bench.wait(waiting) == Scheduler::Outcome::kDeadline);
  CHECK(bench.wait(running) == Scheduler::Outcome::kDeadline);
  CHECK(bench.scheduler.wait_idle(Clock::now() + 5s));
  CHECK(bench.engine.cancelled == 1);
  CHECK(bench.engine.seen() == Seeds{{1}});
}

TEST_CASE("what could not be done by its deadline is not accepted") {
  Bench bench(options_of(1));
  bench.engine.image_seconds = 1;
  using Admission = Scheduler::Admission;
  const auto first = ticket_of({1});
  REQUIRE(bench.scheduler.submit(first) == Admission::kAccepted);
  REQUIRE(bench.wait(first) == Scheduler::Outcome::kDone);
  bench.engine.open(false);
  const auto running = ticket_of({2}, kSmall, 900ms);  // nothing is before it: it is tried
  REQUIRE(bench.scheduler.submit(running) == Admission::kAccepted);
  REQUIRE(bench.engine.started(2));
  const auto waiting = ticket_of({3, 4, 5});
  REQUIRE(bench.scheduler.submit(waiting) == Admission::kAccepted);
  CHECK(bench.scheduler.retry_after() == 4);
  CHECK(bench.scheduler.submit(ticket_of({6}, kSmall, 5500ms)) == Admission::kTooLate);
  const auto last = ticket_of({6}, kSmall, 7s);
  CHECK(bench.scheduler.submit(last) == Admission::kAccepted);
  bench.engine.open(true);
  for (const auto& ticket : {waiting, last}) CHECK(bench.wait(ticket) == Scheduler::Outcome::kDone);
}

TEST_CASE("one bad member does not take the others with it") {
  Bench bench(options_of(8));
  bench.engine.before = [](const std::vector<Item>& items) {
    for (const Item& item : items) {
      if (item.seed == 13) throw EngineError(EngineError::Kind::kInvalid, "thirteen");
    }
  };
  bench.engine.open(false);
  const auto first = ticket_of({1});
  bench.scheduler.submit(first);
  REQUIRE(bench.engine.started(1));
  const auto good = ticket_of({2}), bad = ticket_of({13}), also = ticket_of({3, 4});
  for (const auto& ticket : {good, bad, also}) bench.scheduler.submit(ticket);
  bench.engine.open(true);
  CHECK(bench.wait(good) == Scheduler::Outcome::kDone);
  CHECK(bench.wait(also) == Scheduler::Outcome::kDone);
  CHECK(bench.wait(bad) == Scheduler::Outcome::kInvalid);
  CHECK(bad->failure == "thirteen");
  CHECK(also->images[1].rgb8 == std::vector<std::uint8_t>{4});
  CHECK(bench.engine.seen() == Seeds{{1}, {2, 13, 3, 4}, {2}, {13}, {3, 4}});
}

TEST_CASE("an engine that fails, fails the request and not the worker") {
  Bench bench(options_of(1));
  bench.engine.before = [](const std::vector<Item>& items) {
    if (items[0].seed == 13) throw std::bad_alloc();
  };
  const auto bad = ticket_of({13}), good = ticket_of({1});
  bench.scheduler.submit(bad);
  bench.scheduler.submit(good);
  CHECK(bench.wait(bad) == Scheduler::Outcome::kFailed);
  CHECK(bench.wait(good) == Scheduler::Outcome::kDone);
}

TEST_CASE("draining finishes what was accepted and accepts no more") {
  Bench bench(options_of(1));
  bench.engine.open(false);
  const auto a = ticket_of({1}), b = ticket_of({2});
  bench.scheduler.submit(a);
  bench.scheduler.submit(b);
  bench.scheduler.drain();
  CHECK(bench.scheduler.submit(ticket_of({3})) == Scheduler::Admission::kDraining);
  CHECK(!bench.scheduler.wait_idle(Clock::now() + 5ms));
  SUBCASE("in time") {
    bench.engine.open(true);
    CHECK(bench.scheduler.wait_idle(Clock::now() + 5s));
    CHECK(bench.wait(a) == Scheduler::Outcome::kDone);
    CHECK(bench.wait(b) == Scheduler::Outcome::kDone);
  }
  SUBCASE("dropped") {
    bench.scheduler.abort();
    CHECK(bench.wait(a) == Scheduler::Outcome::kDropped);
    CHECK(bench.wait(b) == Scheduler::Outcome::kDropped);
    CHECK(bench.scheduler.wait_idle(Clock::now() + 5s));
  }
}

TEST_CASE("a worker that cannot start is told") {
  FakeEngine good, engine;
  engine.on_warm_up = [] { throw EngineError(EngineError::Kind::kOther, "no room"); };
  ModelMetrics metrics;
  SchedulerOptions options = options_of(2);
  options.warm_up = {kSmall};
  Scheduler scheduler({&good, &engine}, metrics, options);
  CHECK_THROWS_WITH(scheduler.wait_ready(), "no room");
}

TEST_CASE("many callers, two workers: every image once, to its own caller") {
  Bench bench(options_of(4, 1000, 2));
  std::atomic<int> wrong{0}, done{0};
  std::vector<std::thread> callers;
  for (std::uint64_t c = 0; c < 8; ++c) {
    callers.emplace_back([&bench, &wrong, &done, c] {
      for (std::uint64_t i = 0; i < 100; ++i) {
        const std::uint64_t seed = (c * 100 + i) % 251;
        const auto ticket = ticket_of({seed, seed + 1}, i % 3 == 0 ? kLarge : kSmall);
        if (bench.scheduler.submit(ticket) != Scheduler::Admission::kAccepted) {
          ++wrong;
          continue;
        }
        const bool leaves = i % 7 == 0;
        const auto outcome = bench.scheduler.wait(ticket, [leaves] { return leaves; }, 1ms);
        if (outcome == Scheduler::Outcome::kDone) {
          ++done;
          if (ticket->images[0].rgb8[0] != seed || ticket->images[1].rgb8[0] != seed + 1) ++wrong;
        } else if (!leaves) {
          ++wrong;
        }
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
  CHECK(done >= 8 * 85);
  CHECK(bench.scheduler.wait_idle(Clock::now() + 5s));
}
