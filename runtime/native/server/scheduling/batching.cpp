// Callers in turn, each first come, first served, with those who can ride along.
#include "server/scheduling/batching.hpp"

namespace arcflow::serve {
namespace {

bool joins(const Ticket& head, const Ticket& other) { return !head.alone && !other.alone && head.shape == other.shape; }

// The request whose turn it is. The queue is not empty.
const std::shared_ptr<Ticket>& head_of(const Queue& queue, const Turns& turns) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < queue.size(); ++i) {
    if (turns.last(queue[i]->caller) < turns.last(queue[best]->caller)) best = i;
  }
  return queue[best];
}

}  // namespace

std::uint64_t Turns::last(const std::string& caller) const {
  const auto found = last_.find(caller);
  return found == last_.end() ? 0 : found->second;
}

void Turns::serve(const std::vector<Share>& batch) {
  ++count_;
  for (const Share& share : batch) last_[share.ticket->caller] = count_;
  while (last_.size() > kMost) {
    last_.erase(std::min_element(last_.begin(), last_.end(),
                                 [](const auto& one, const auto& other) { return one.second < other.second; }));
  }
}

std::vector<Share> take_batch(Queue& queue, const BatchLimit& limit, Turns& turns) {
  std::vector<Share> batch;
  if (queue.empty()) return batch;
  const std::shared_ptr<Ticket> head = head_of(queue, turns);
  std::size_t room = limit.of(head->shape);
  const auto take = [&batch, &room](const std::shared_ptr<Ticket>& ticket) {
    const std::size_t count = std::min(room, ticket->seeds.size() - ticket->taken);
    batch.push_back({ticket, ticket->taken, count});
    ticket->taken += count;
    room -= count;
  };
  take(head);
  for (const auto& ticket : queue) {
    if (room == 0) break;
    if (ticket != head && joins(*head, *ticket)) take(ticket);
  }
  const auto whole = [](const std::shared_ptr<Ticket>& ticket) { return ticket->taken == ticket->seeds.size(); };
  queue.erase(std::remove_if(queue.begin(), queue.end(), whole), queue.end());
  turns.serve(batch);
  return batch;
}

Clock::time_point hold_until(const Queue& queue, const BatchLimit& limit, const Turns& turns, bool crowded,
                             Clock::duration wait) {
  constexpr auto at_once = Clock::time_point::min();
  if (queue.empty() || !crowded) return at_once;
  const Ticket& head = *head_of(queue, turns);
  if (head.alone) return at_once;
  std::size_t waiting = 0;
  for (const auto& ticket : queue) waiting += joins(head, *ticket) ? ticket->seeds.size() - ticket->taken : 0;
  return waiting >= limit.of(head.shape) ? at_once : head.arrived + wait;
}

}  // namespace arcflow::serve
