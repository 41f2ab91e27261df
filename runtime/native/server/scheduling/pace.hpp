// How long batches take, learnt from those that ran, and so how long what waits will. Pure, as batching is.
#pragma once

#include <string>
#include <vector>

#include "server/scheduling/batching.hpp"

namespace arcflow::serve {

class Pace {
 public:
  // Seconds that so many images of that shape take, as far as is known: 0 before the first batch.
  double seconds_of(const Shape& shape, std::size_t images) const;
  double seconds_of(const std::vector<Share>& batch) const;
  // What is left of a batch that has run so long.
  double seconds_left(const std::vector<Share>& batch, Clock::duration ran) const;

  // Until what is in the queue before a new request of `caller` is made by one worker; with null all that is in it.
  // Callers take turns: of another one at most as many requests are before it as the caller has waiting, and one more.
  double seconds_before(const Queue& queue, const std::string* caller) const;

  // Whether a request before which so many seconds of work are will hardly be done by its deadline. Never where nothing
  // is before it.
  bool too_late(const Ticket& ticket, double before, Clock::time_point now) const;

  // A batch took so long.
  void learn(const std::vector<Share>& batch, double took);
  // One ended unfinished after so long. Where none is done in time, nothing else tells that they take longer than
  // thought.
  void learn_at_least(const std::vector<Share>& batch, Clock::duration ran);

 private:
  double unit_seconds_ = 0;  // a moving average: seconds of one evaluation of one pixel
};

}  // namespace arcflow::serve
