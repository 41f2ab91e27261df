// Sessions of one model on many threads, with tokens cancelled at random and objects destroyed meanwhile: for
// ThreadSanitizer, through arcflow_get_api on the fake host.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "api_support.hpp"

using namespace arcflow::test;

namespace {

constexpr int kThreads = 8;
constexpr int kRounds = 40;

// Runs `work(thread)` on several threads at once.
template <class Work>
void on_threads(int count, const Work& work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back([&work, i] { work(i); });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

TEST_CASE("sessions share a model and give what they give alone") {
  Lines lines;
  const auto context = make_context(&lines);
  const auto model = make_model(context.get(), "recall");
  std::vector<std::vector<float>> alone;
  for (int i = 0; i < kThreads; ++i) {
    const auto session = make_session(model.get());
    Call call;
    call.request.seed = static_cast<std::uint64_t>(i);
    REQUIRE(call.generate(model.get(), session.get()).ok());
    alone.push_back(call.latents);
  }
  std::atomic<int> wrong{0};
  on_threads(kThreads, [&](int i) {
    const auto session = make_session(model.get());
    Call call;
    call.request.seed = static_cast<std::uint64_t>(i);
    for (int round = 0; round < kRounds; ++round) {
      if (!call.generate(model.get(), session.get()).ok() || call.latents != alone[static_cast<std::size_t>(i)])
        ++wrong;
    }
  });
  CHECK(wrong == 0);
}

TEST_CASE("cancelled at random, by tokens that come and go, with deadlines between") {
  const auto context = make_context();
  const auto model = make_model(context.get(), "slow=2");
  std::atomic<int> strange{0};
  std::atomic<int> done{0};
  std::atomic<int> cancelled{0};
  std::atomic<int> late{0};
  on_threads(kThreads, [&](int i) {
    std::minstd_rand random(static_cast<unsigned>(i + 1));
    const auto session = make_session(model.get());
    Call call;
    for (int round = 0; round < kRounds; ++round) {
      auto cancel = make_cancel();
      call.request.cancel = random() % 4 != 0 ? cancel.get() : nullptr;
      call.request.timeout = random() % 3 == 0 ? 0.004 : random() % 2 == 0 ? 60.0 : 0.0;
      const auto delay = std::chrono::microseconds(random() % 16000);
      std::thread other([&] {
        std::this_thread::sleep_for(delay);
        api().cancel_request(cancel.get());
      });
      const Said what = call.generate(model.get(), session.get());
      // A session ends at the same time as the token is cancelled.
      if (random() % 8 == 0) make_session(model.get()).reset();
      switch (what.code) {
        case ARCFLOW_OK:
          ++done;
          break;
        case ARCFLOW_CANCELLED:
          ++cancelled;
          break;
        case ARCFLOW_DEADLINE_EXCEEDED:
          ++late;
          break;
        default:
          ++strange;
      }
      other.join();
    }
  });
  CHECK(strange == 0);
  CHECK(done > 0);
  CHECK(cancelled > 0);
  CHECK(late > 0);
}

TEST_CASE("one token ends the requests of every thread") {
  const auto context = make_context();
  const auto model = make_model(context.get(), "slow=20000");
  const auto cancel = make_cancel();
  std::atomic<int> cancelled{0};
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    on_threads(2, [&](int) { api().cancel_request(cancel.get()); });
  });
  on_threads(kThreads, [&](int) {
    const auto session = make_session(model.get());
    Call call;
    call.request.cancel = cancel.get();
    if (call.generate(model.get(), session.get()).code == ARCFLOW_CANCELLED) ++cancelled;
  });
  other.join();
  CHECK(cancelled == kThreads);
}

TEST_CASE("a session that two threads use says so and stays whole") {
  const auto context = make_context();
  const auto model = make_model(context.get(), "slow=1");
  const auto session = make_session(model.get());
  std::atomic<int> refused{0};
  std::atomic<int> done{0};
  std::atomic<int> strange{0};
  on_threads(4, [&](int) {
    Call call;
    for (int round = 0; round < 20; ++round) {
      const Said what = call.generate(model.get(), session.get());
      if (what.ok()) {
        ++done;
      } else if (what.code == ARCFLOW_INVALID_ARGUMENT && what.has("the session is in use")) {
        ++refused;
      } else {
        ++strange;
      }
    }
  });
  CHECK(strange == 0);
  CHECK(done > 0);
  CHECK(done + refused == 80);
}

TEST_CASE("models and contexts come and go beside each other") {
  Lines lines;
  auto context = make_context(&lines);
  std::atomic<int> wrong{0};
  on_threads(4, [&](int) {
    for (int round = 0; round < 3; ++round) {
      auto model = make_model(context.get(), "slow=1");
      auto session = make_session(model.get());
      model.reset();
      Call call;
      call.request.timeout = 60.0;
      ArcflowOutput output = ARCFLOW_INIT(ArcflowOutput);
      if (!said(api().session_generate(session.get(), &call.request, &output)).ok()) ++wrong;
    }
  });
  context.reset();
  CHECK(wrong == 0);
}
