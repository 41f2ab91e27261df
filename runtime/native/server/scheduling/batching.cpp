// First come, first served, with those who can ride along.
#include "server/scheduling/batching.hpp"

#include <algorithm>

namespace arcflow::serve {
namespace {

bool joins(const Ticket& head, const Ticket& other) { return !head.alone && !other.alone && head.shape == other.shape; }

}  // namespace

std::vector<Share> take_batch(Queue& queue, std::size_t most) {
  std::vector<Share> batch;
  if (queue.empty()) return batch;
  const std::shared_ptr<Ticket> head = queue.front();
  std::size_t room = most;
  for (auto place = queue.begin(); place != queue.end() && room > 0;) {
    const std::shared_ptr<Ticket> ticket = *place;
    if (ticket != head && !joins(*head, *ticket)) {
      ++place;
      continue;
    }
    const std::size_t count = std::min(room, ticket->seeds.size() - ticket->taken);
    batch.push_back({ticket, ticket->taken, count});
    ticket->taken += count;
    room -= count;
    place = ticket->taken == ticket->seeds.size() ? queue.erase(place) : std::next(place);
  }
  return batch;
}

Clock::time_point hold_until(const Queue& queue, std::size_t most, bool crowded, Clock::duration wait) {
  constexpr auto at_once = Clock::time_point::min();
  if (queue.empty() || !crowded || queue.front()->alone) return at_once;
  std::size_t waiting = 0;
  for (const auto& ticket : queue) waiting += joins(*queue.front(), *ticket) ? ticket->seeds.size() - ticket->taken : 0;
  return waiting >= most ? at_once : queue.front()->arrived + wait;
}

}  // namespace arcflow::serve
