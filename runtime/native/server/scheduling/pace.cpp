// A moving average over pixels' evaluations, a frame counting as one: other sizes and numbers count as they cost.
#include "server/scheduling/pace.hpp"

#include <algorithm>
#include <map>

namespace arcflow::serve {
namespace {

// Of the time to a deadline: paces vary, and others may join the batch.
constexpr double kFilled = 0.75;

double seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

double units_of(const Shape& shape, std::size_t images) {
  return static_cast<double>(images) * (shape.nfe + shape.partials) * shape.width * shape.height;
}

double units_of(const std::vector<Share>& batch) {
  double units = 0;
  for (const Share& share : batch) units += units_of(share.ticket->shape, share.count);
  return units;
}

}  // namespace

double Pace::seconds_of(const Shape& shape, std::size_t images) const {
  return units_of(shape, images) * unit_seconds_;
}

double Pace::seconds_of(const std::vector<Share>& batch) const { return units_of(batch) * unit_seconds_; }

double Pace::seconds_left(const std::vector<Share>& batch, Clock::duration ran) const {
  return std::max(0.0, seconds_of(batch) - seconds(ran));
}

double Pace::seconds_before(const Queue& queue, const std::string* caller) const {
  std::size_t own = 0;
  for (const auto& ticket : queue) own += caller != nullptr && ticket->caller == *caller ? 1 : 0;
  std::map<std::string, std::size_t> others;
  double sum = 0;
  for (const auto& ticket : queue) {
    if (caller != nullptr && ticket->caller != *caller && others[ticket->caller]++ > own) continue;
    sum += seconds_of(ticket->shape, ticket->seeds.size() - ticket->taken);
  }
  return sum;
}

bool Pace::too_late(const Ticket& ticket, double before, Clock::time_point now) const {
  const double own = seconds_of(ticket.shape, ticket.seeds.size());
  return before > 0 && before + own > kFilled * seconds(ticket.deadline - now);
}

void Pace::learn(const std::vector<Share>& batch, double took) {
  const double found = took / units_of(batch);
  unit_seconds_ = unit_seconds_ == 0 ? found : 0.8 * unit_seconds_ + 0.2 * found;
}

void Pace::learn_at_least(const std::vector<Share>& batch, Clock::duration ran) {
  if (seconds(ran) > seconds_of(batch)) learn(batch, seconds(ran));
}

}  // namespace arcflow::serve
