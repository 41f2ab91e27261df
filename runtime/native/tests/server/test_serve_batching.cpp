// Which requests go through the networks together, and whose turn it is.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "server/scheduling/batching.hpp"
#include "server/scheduling/pace.hpp"

using namespace arcflow::serve;
using namespace std::chrono_literals;

namespace {

constexpr Shape kSmall{64, 64, 2}, kLarge{128, 128, 2};

std::shared_ptr<Ticket> ticket_of(std::vector<std::uint64_t> seeds, const Shape& shape = kSmall) {
  auto ticket = std::make_shared<Ticket>();
  ticket->shape = shape;
  ticket->seeds = std::move(seeds);
  ticket->arrived = Clock::now();
  return ticket;
}

std::shared_ptr<Ticket> of(const std::string& caller, std::vector<std::uint64_t> seeds, const Shape& shape = kSmall) {
  auto ticket = ticket_of(std::move(seeds), shape);
  ticket->caller = caller;
  return ticket;
}

std::vector<std::vector<std::uint64_t>> seeds_of(const std::vector<Share>& batch) {
  std::vector<std::vector<std::uint64_t>> out;
  for (const Share& share : batch) {
    const auto first = share.ticket->seeds.begin() + static_cast<std::ptrdiff_t>(share.first);
    out.emplace_back(first, first + static_cast<std::ptrdiff_t>(share.count));
  }
  return out;
}

using Seeds = std::vector<std::vector<std::uint64_t>>;

}  // namespace

TEST_CASE("the oldest goes first, and those who fit ride along") {
  Turns turns;
  Queue queue = {ticket_of({1}), ticket_of({10}, kLarge), ticket_of({2, 3}), ticket_of({4, 5})};
  CHECK(seeds_of(take_batch(queue, 4, turns)) == Seeds{{1}, {2, 3}, {4}});
  REQUIRE(queue.size() == 2);
  CHECK(seeds_of(take_batch(queue, 4, turns)) == Seeds{{10}});
  CHECK(seeds_of(take_batch(queue, 4, turns)) == Seeds{{5}});
  CHECK(take_batch(queue, 4, turns).empty());
}

TEST_CASE("a request larger than a batch is made in several, in its turn") {
  Turns turns;
  Queue queue = {ticket_of({1, 2, 3, 4, 5}), ticket_of({6})};
  CHECK(seeds_of(take_batch(queue, 2, turns)) == Seeds{{1, 2}});
  CHECK(seeds_of(take_batch(queue, 2, turns)) == Seeds{{3, 4}});
  CHECK(seeds_of(take_batch(queue, 2, turns)) == Seeds{{5}, {6}});
  CHECK(queue.empty());
}

TEST_CASE("callers take turns, and the oldest of each goes first") {
  Turns turns;
  Queue queue = {of("a", {1, 2, 3}), of("a", {4}), of("b", {10}, kLarge), of("c", {20}, kLarge), of("b", {11})};
  CHECK(seeds_of(take_batch(queue, 1, turns)) == Seeds{{1}});
  CHECK(seeds_of(take_batch(queue, 2, turns)) == Seeds{{10}, {20}});  // c rides along
  CHECK(seeds_of(take_batch(queue, 1, turns)) == Seeds{{2}});
  CHECK(seeds_of(take_batch(queue, 1, turns)) == Seeds{{11}});
  CHECK(seeds_of(take_batch(queue, 4, turns)) == Seeds{{3}, {4}});
  CHECK(queue.empty());
}

TEST_CASE("a caller of two requests at a time does not keep the others out") {
  Turns turns;
  Queue queue = {of("a", {1, 2, 3, 4}), of("b", {10})};
  std::vector<std::uint64_t> order;
  for (std::uint64_t next = 11; next < 15; ++next) {
    queue.push_back(of("b", {next}));  // b always has one that waits
    order.push_back(seeds_of(take_batch(queue, 1, turns))[0][0]);
  }
  CHECK(order == std::vector<std::uint64_t>{1, 10, 2, 11});
}

TEST_CASE("a batch has so many evaluations at most, and one image at least") {
  Turns turns;
  Queue queue = {ticket_of({1, 2, 3}, {64, 64, 4}), ticket_of({4, 5}, {64, 64, 64})};
  const BatchLimit limit(8, 10);
  CHECK(limit.of({64, 64, 2, 3}) == 2);  // a partial counts as an evaluation
  CHECK(seeds_of(take_batch(queue, limit, turns)) == Seeds{{1, 2}});
  CHECK(seeds_of(take_batch(queue, limit, turns)) == Seeds{{3}});
  CHECK(seeds_of(take_batch(queue, limit, turns)) == Seeds{{4}});
}

TEST_CASE("callers are forgotten, least recent first") {
  Turns turns;
  for (std::size_t i = 0; i <= Turns::kMost; ++i) turns.serve({{of(std::to_string(i), {1}), 0, 1}});
  CHECK(turns.last("0") == 0);
  CHECK(turns.last("1") == 2);
}

TEST_CASE("who is to be alone is alone") {
  Turns turns;
  Queue queue = {ticket_of({1}), ticket_of({2}), ticket_of({3})};
  queue[1]->alone = true;
  CHECK(seeds_of(take_batch(queue, 8, turns)) == Seeds{{1}, {3}});
  CHECK(seeds_of(take_batch(queue, 8, turns)) == Seeds{{2}});
}

TEST_CASE("how long what waits will take") {
  Pace pace;
  const std::string a = "a", b = "b", c = "c";
  const Queue queue = {of(a, {1, 2}), of(b, {3}), of(a, {4}, kLarge), of(a, {5}), of(b, {6})};
  CHECK(pace.seconds_before(queue, nullptr) == 0);
  pace.learn({{queue[0], 0, 2}}, 3);
  CHECK(pace.seconds_of(kSmall, 1) == doctest::Approx(1.5));
  CHECK(pace.seconds_of(kLarge, 2) == doctest::Approx(12));
  pace.learn({{queue[0], 0, 2}}, 0.5);
  CHECK(pace.seconds_of(kSmall, 1) == doctest::Approx(0.8 * 1.5 + 0.2 * 0.25));

  SUBCASE("all of the queue; what is before a caller, whose turn comes") {
    const double one = pace.seconds_of(kSmall, 1);
    CHECK(pace.seconds_before(queue, nullptr) == doctest::Approx(9 * one));
    CHECK(pace.seconds_before(queue, &a) == doctest::Approx(9 * one));
    CHECK(pace.seconds_before(queue, &b) == doctest::Approx(9 * one));
    CHECK(pace.seconds_before(queue, &c) == doctest::Approx(3 * one));
    CHECK(pace.seconds_before({}, &c) == 0);
  }
  SUBCASE("a batch that ended unfinished tells no more than that it takes so long") {
    const double before = pace.seconds_of(kSmall, 1);
    pace.learn_at_least({{queue[1], 0, 1}}, 100ms);
    CHECK(pace.seconds_of(kSmall, 1) == before);
    CHECK(pace.seconds_left({{queue[1], 0, 1}}, 100ms) == doctest::Approx(before - 0.1));
    CHECK(pace.seconds_left({{queue[1], 0, 1}}, 10s) == 0);
    pace.learn_at_least({{queue[1], 0, 1}}, 10s);
    CHECK(pace.seconds_of(kSmall, 1) == doctest::Approx(0.8 * before + 0.2 * 10));
  }
  SUBCASE("what is too late") {
    const auto ticket = of(c, {1});
    ticket->deadline = ticket->arrived + 4s;
    const double own = pace.seconds_of(kSmall, 1);
    CHECK(!pace.too_late(*ticket, 2.9 - own, ticket->arrived));
    CHECK(pace.too_late(*ticket, 3.1 - own, ticket->arrived));
    CHECK(pace.too_late(*ticket, 2.9 - own, ticket->arrived + 1s));
    CHECK(!pace.too_late(*ticket, 0, ticket->arrived + 4s));
  }
}

TEST_CASE("a free worker holds back only while others are about to come") {
  Turns turns;
  Queue queue = {ticket_of({1})};
  const auto arrived = queue.front()->arrived;
  CHECK(hold_until(queue, 4, turns, false, 2ms) < Clock::now());
  CHECK(hold_until(queue, 4, turns, true, 2ms) == arrived + 2ms);
  queue.push_back(ticket_of({10}, kLarge));
  CHECK(hold_until(queue, 2, turns, true, 2ms) == arrived + 2ms);  // the other cannot join
  queue.push_back(ticket_of({2}));
  CHECK(hold_until(queue, 2, turns, true, 2ms) < Clock::now());  // full
  queue.front()->alone = true;
  CHECK(hold_until(queue, 4, turns, true, 2ms) < Clock::now());
  CHECK(hold_until({}, 4, turns, true, 2ms) < Clock::now());
}
