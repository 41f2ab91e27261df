// An engine that does what the test says, and a scheduler in front of it.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/scheduling/scheduler.hpp"
#include "server/telemetry/metrics.hpp"

namespace arcflow::serve {

using namespace std::chrono_literals;

constexpr Shape kSmall{64, 64, 2}, kLarge{128, 128, 2};

inline std::shared_ptr<Ticket> ticket_of(std::vector<std::uint64_t> seeds, const Shape& shape = kSmall,
                                         Clock::duration timeout = 30s) {
  auto ticket = std::make_shared<Ticket>();
  ticket->shape = shape;
  ticket->prompt = "a dog";
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

inline bool nobody() { return false; }

struct Bench {
  explicit Bench(SchedulerOptions options) : scheduler({&engine}, metrics, std::move(options)) {
    scheduler.wait_ready();
  }
  FakeEngine engine;
  ModelMetrics metrics;
  Scheduler scheduler;

  Scheduler::Outcome wait(const std::shared_ptr<Ticket>& ticket) { return scheduler.wait(ticket, nobody, 1ms); }
};

inline SchedulerOptions options_of(std::size_t max_batch, std::size_t queue = 64, std::size_t workers = 1) {
  SchedulerOptions options;
  options.max_batch = max_batch;
  options.queue = queue;
  options.workers = workers;
  return options;
}

using Seeds = std::vector<std::vector<std::uint64_t>>;

}  // namespace arcflow::serve
