// Which waiting images go through the networks together. Pure: the queue and the time come from the caller.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
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
  std::string caller;                // with whom it takes turns
  Clock::time_point arrived;
  Clock::time_point deadline;

  std::vector<Image> images;     // in the order of seeds; one without pixels is not made yet
  std::deque<Partial> partials;  // of the only image: made, and not yet handed to the caller
  std::uint32_t shown = 0;       // partials that were made so far
  std::size_t taken = 0;         // the first so many are made or being made
  std::size_t running = 0;       // batches that it is in now
  bool alone = false;            // not to be joined with others: a batch that it was in failed
  bool abandoned = false;        // nobody waits for it any more
  bool done = false;             // all images made, or failed
  std::string failure;           // why not; "" for success
  bool invalid = false;          // the failure is the request's own fault
  std::size_t batch = 0;         // images in the largest batch that it was in
  double generate_seconds = 0;   // summed over its batches
  Clock::time_point started;
};

// `count` images of a ticket from `first` on, as part of a batch.
struct Share {
  std::shared_ptr<Ticket> ticket;
  std::size_t first = 0, count = 0;
};

using Queue = std::deque<std::shared_ptr<Ticket>>;

// What one batch may hold. evaluations: images times evaluations each, but for a single image, which is never split. A
// partial's run of the VAE counts as one too. A batch cannot be interrupted, so this is how long others wait while a
// large request is made.
struct BatchLimit {
  BatchLimit(std::size_t most_images, std::size_t most_evaluations = SIZE_MAX)
      : images(most_images), evaluations(most_evaluations) {}
  std::size_t images, evaluations;

  std::size_t of(const Shape& shape) const {
    const std::size_t work = std::max<std::size_t>(1, shape.nfe + shape.partials);
    return std::max<std::size_t>(1, std::min(images, evaluations / work));
  }
};

// When callers were last served. The least recent of at most kMost are forgotten, which is what they count as anyway.
class Turns {
 public:
  static constexpr std::size_t kMost = 1024;

  // The number of the batch that this caller was last in; 0: none that is remembered.
  std::uint64_t last(const std::string& caller) const;
  void serve(const std::vector<Share>& batch);

 private:
  std::map<std::string, std::uint64_t> last_;
  std::uint64_t count_ = 0;
};

// Takes the next batch out of the queue. Callers take turns: the oldest request of the caller who was not served for
// the longest goes first, then those of later requests with the same shape as far as they fit, in the order of arrival.
// A request that is taken only in part keeps its place; one that is taken whole leaves the queue. Gives nothing where
// the queue is empty.
std::vector<Share> take_batch(Queue& queue, const BatchLimit& limit, Turns& turns);

// Until when a free worker should hold back for others to join. Now or earlier: go at once. crowded: the batch before
// this one was shared, so others are about to come; otherwise a lone caller would only be slowed down.
Clock::time_point hold_until(const Queue& queue, const BatchLimit& limit, const Turns& turns, bool crowded,
                             Clock::duration wait);

}  // namespace arcflow::serve
