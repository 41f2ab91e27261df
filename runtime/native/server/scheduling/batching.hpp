// Which waiting images go through the networks together. Pure: the queue and the time come from the caller.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "server/engine.hpp"

namespace arcflow::serve {

using Clock = std::chrono::steady_clock;

// One accepted request, from the queue to its answer. What is above the blank line never changes; the scheduler's
// mutex guards the rest until `done`.
struct Ticket {
  Shape shape;
  std::string prompt;
  std::vector<std::uint64_t> seeds;  // one an image
  Clock::time_point arrived;
  Clock::time_point deadline;

  std::vector<Image> images;    // in the order of seeds; one without pixels is not made yet
  std::size_t taken = 0;        // the first so many are made or being made
  bool alone = false;           // not to be joined with others: a batch that it was in failed
  bool abandoned = false;       // nobody waits for it any more
  bool done = false;            // all images made, or failed
  std::string failure;          // why not; "" for success
  bool invalid = false;         // the failure is the request's own fault
  std::size_t batch = 0;        // images in the largest batch that it was in
  double generate_seconds = 0;  // summed over its batches
  Clock::time_point started;
};

// `count` images of a ticket from `first` on, as part of a batch.
struct Share {
  std::shared_ptr<Ticket> ticket;
  std::size_t first = 0, count = 0;
};

using Queue = std::deque<std::shared_ptr<Ticket>>;

// Takes the next batch out of the queue: the oldest request's images, then those of later requests with the same
// shape as far as they fit, in the order of arrival. So nobody is overtaken by a request that does not ride along.
// A request that is taken only in part keeps its place; one that is taken whole leaves the queue.
// most: images of a batch, 1 or more. Gives nothing where the queue is empty.
std::vector<Share> take_batch(Queue& queue, std::size_t most);

// Until when a free worker should hold back for others to join. Now or earlier: go at once. crowded: the batch before
// this one was shared, so others are about to come; otherwise a lone caller would only be slowed down.
Clock::time_point hold_until(const Queue& queue, std::size_t most, bool crowded, Clock::duration wait);

}  // namespace arcflow::serve
