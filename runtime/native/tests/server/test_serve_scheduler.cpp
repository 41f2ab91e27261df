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

#include "scheduler_support.hpp"
#include "server/scheduling/scheduler.hpp"

using namespace arcflow::serve;
using namespace std::chrono_literals;

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
  constexpr Shape shape{64, 64, 2, 3};
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

namespace {

// Two devices, of which the first fails whatever it is given until it is mended.
struct TwoDevices {
  TwoDevices() : scheduler({&bad, &good}, metrics, options_of(1)) {
    bad.before = [this](const std::vector<Item>&) {
      if (broken) throw EngineError(EngineError::Kind::kOther, "the device is lost");
    };
    scheduler.wait_ready();
  }
  std::shared_ptr<Ticket> make(std::uint64_t seed) {
    auto ticket = ticket_of({seed});
    scheduler.submit(ticket);
    scheduler.wait(ticket, nobody, 1ms);
    return ticket;
  }
  std::atomic<bool> broken{true};
  FakeEngine bad, good;
  ModelMetrics metrics;
  Scheduler scheduler;
};

}  // namespace

TEST_CASE("a device that fails loses nothing and takes ever less; mended, it works again") {
  TwoDevices devices;
  for (std::uint64_t seed = 0; seed < 200; ++seed) CHECK(devices.make(seed)->failure.empty());
  const std::size_t tried = devices.bad.seen().size();
  CHECK(tried < 20);  // about half without rests
  CHECK(devices.good.seen().size() == 200);
  devices.broken = false;
  devices.good.open(false);  // busy, so that the mended one takes what comes once it has rested
  const auto first = ticket_of({1}), second = ticket_of({2});
  devices.scheduler.submit(first);
  devices.scheduler.submit(second);
  CHECK((devices.scheduler.wait(second, nobody, 1ms) == Scheduler::Outcome::kDone || first->done));
  devices.good.open(true);
  CHECK(devices.scheduler.wait(first, nobody, 1ms) == Scheduler::Outcome::kDone);
}

TEST_CASE("where every device fails, requests fail at once") {
  TwoDevices devices;
  devices.good.before = devices.bad.before;
  const auto began = Clock::now();
  for (std::uint64_t seed = 0; seed < 20; ++seed) CHECK(devices.make(seed)->failure == "the device is lost");
  CHECK(Clock::now() - began < 10s);
  CHECK(devices.bad.seen().size() + devices.good.seen().size() == 40);
}
