// How requests end before they are done, through the C interface (arcflow_get_api) on the fake host: callbacks, tokens,
// deadlines, failures; and that the session then works on.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <chrono>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>

#include "api_support.hpp"

using namespace arcflow::test;
using Clock = std::chrono::steady_clock;

namespace {

void check(const Said& what, std::int32_t code, const std::string& words) {
  CHECK_MESSAGE(what.code == code, what.message);
  CHECK_MESSAGE(what.has(words), what.message);
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

TEST_CASE("callbacks end a request") {
  Fixture f;
  f.call.request.on_step = [](void*, const ArcflowStep*) { return 1; };
  check(f.generate(), ARCFLOW_CANCELLED, "ended by on_step");
  f.call.request.on_step = [](void*, const ArcflowStep*) -> std::int32_t {
    throw std::runtime_error("from the callback");
  };
  check(f.generate(), ARCFLOW_INTERNAL, "the callback on_step threw: from the callback");
  f.call.request.on_step = nullptr;
  f.call.request.previews = 1;
  f.call.request.on_preview = [](void*, const ArcflowPreview*) { return -1; };
  check(f.generate(), ARCFLOW_CANCELLED, "ended by on_preview");
  f.call.request.on_preview = [](void*, const ArcflowPreview*) -> std::int32_t { throw 4711; };
  check(f.generate(), ARCFLOW_INTERNAL, "the callback on_preview threw: an exception");
  f.call.request.previews = 0;
  CHECK(f.generate().ok());
}

TEST_CASE("a callback may not use its session, and may destroy it") {
  Fixture f;
  struct State {
    Fixture* fixture;
    Said inner;
  } state{&f, {}};
  f.call.request.user = &state;
  f.call.request.on_step = [](void* user, const ArcflowStep*) {
    auto& s = *static_cast<State*>(user);
    Call other;
    s.inner = other.generate(s.fixture->model.get(), s.fixture->session.get());
    return 0;
  };
  REQUIRE(f.generate().ok());
  check(state.inner, ARCFLOW_INVALID_ARGUMENT, "the session is in use");
  f.call.request.on_step = [](void* user, const ArcflowStep* step) {
    auto& s = *static_cast<State*>(user);
    if (step->index == 0) {
      s.fixture->session.reset();
      s.fixture->model.reset();
      s.fixture->context.reset();
    }
    return 0;
  };
  ArcflowOutput output = f.call.output;
  CHECK(said(api().session_generate(f.session.get(), &f.call.request, &output)).ok());
  CHECK(f.lines.has("0 bytes left"));
}

TEST_CASE("cancelled before, while it runs, and after") {
  Fixture f("slow=20000");
  auto cancel = make_cancel();
  f.call.request.cancel = cancel.get();
  SUBCASE("before") {
    api().cancel_request(cancel.get());
    check(f.generate(), ARCFLOW_CANCELLED, "cancelled by its token");
    check(f.generate(), ARCFLOW_CANCELLED, "");  // for good
    check(said(api().session_warm_up(f.session.get(), &f.call.request)), ARCFLOW_CANCELLED, "");
  }
  SUBCASE("while it runs, from another thread") {
    const auto start = Clock::now();
    std::thread other([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      api().cancel_request(cancel.get());
    });
    check(f.generate(), ARCFLOW_CANCELLED, "cancelled by its token");
    other.join();
    CHECK(seconds_since(start) < 5.0);
  }
  SUBCASE("by destroying nothing: a token that goes does not end what runs with it") {
    f.call.request.timeout = 0.05;
    std::thread other([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      cancel.reset();
    });
    check(f.generate(), ARCFLOW_DEADLINE_EXCEEDED, "");
    other.join();
  }
  // The session goes on working; so does the model.
  Fixture fast;
  auto token = make_cancel();
  fast.call.request.cancel = token.get();
  CHECK(fast.generate().ok());
  api().cancel_request(token.get());
  fast.call.request.cancel = nullptr;
  CHECK(fast.generate().ok());
}

TEST_CASE("a callback may cancel its own request") {
  Fixture f;
  auto cancel = make_cancel();
  f.call.request.cancel = cancel.get();
  f.call.request.user = cancel.get();
  f.call.request.on_step = [](void* user, const ArcflowStep*) {
    api().cancel_request(static_cast<ArcflowCancel*>(user));
    return 0;
  };
  check(f.generate(), ARCFLOW_CANCELLED, "cancelled by its token");
  f.call.request.cancel = nullptr;
  f.call.request.on_step = nullptr;
  CHECK(f.generate().ok());
}

TEST_CASE("a deadline") {
  Fixture f("slow=20000");
  f.call.request.timeout = 0.05;
  const auto start = Clock::now();
  check(f.generate(), ARCFLOW_DEADLINE_EXCEEDED, "the request was not done within its timeout of 0.05 s");
  check(f.generate(), ARCFLOW_DEADLINE_EXCEEDED, "");
  CHECK(seconds_since(start) < 5.0);
  Fixture fast;
  for (const double timeout : {60.0, 1e300, 0.0}) {
    fast.call.request.timeout = timeout;
    CHECK(fast.generate().ok());
  }
  fast.call.request.timeout = 1e-9;
  check(fast.generate(), ARCFLOW_DEADLINE_EXCEEDED, "");
  for (const double timeout :
       {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    fast.call.request.timeout = timeout;
    check(fast.generate(), ARCFLOW_INVALID_ARGUMENT, "it must be a finite number of seconds");
  }
  fast.call.request.timeout = 0.0;
  CHECK(fast.generate().ok());
}

TEST_CASE("what fails in a host is told with its own code") {
  for (const char* network : {"clip", "t5", "conditioner", "backbone", "vae_decoder"}) {
    Fixture f((std::string("fail=") + network).c_str());
    check(f.generate(), ARCFLOW_BACKEND_UNAVAILABLE, std::string("told to fail in ") + network);
    check(f.generate(), ARCFLOW_BACKEND_UNAVAILABLE, "told to fail in");
  }
  Fixture memory("memory");
  check(memory.generate(), ARCFLOW_OUT_OF_MEMORY, "told to have no memory");
  Fixture nan("nan");
  check(nan.generate(), ARCFLOW_BACKEND_UNAVAILABLE, "values that are not finite; check it: python -m engines.verify");
  nan.call.request.previews = 1;
  nan.call.request.on_preview = [](void*, const ArcflowPreview*) -> std::int32_t { std::abort(); };
  check(nan.generate(), ARCFLOW_BACKEND_UNAVAILABLE, "values that are not finite");
  Fixture unknown("fail=t5,unknown");
  check(unknown.generate(), ARCFLOW_INTERNAL, "an engine host failed with code 4711: fake host: told to fail in t5");
}

TEST_CASE("a failure while recording leaves nothing to replay") {
  Fixture f("recall");
  auto cancel = make_cancel();
  REQUIRE(f.generate().ok());
  const std::vector<float> good = f.call.latents;
  Fixture slow("recall,slow=20000");
  slow.call.request.timeout = 0.05;
  check(slow.generate(), ARCFLOW_DEADLINE_EXCEEDED, "");
  check(slow.generate(), ARCFLOW_DEADLINE_EXCEEDED, "");
  Fixture failing("recall,fail=backbone");
  check(failing.generate(), ARCFLOW_BACKEND_UNAVAILABLE, "told to fail in backbone");
  check(failing.generate(), ARCFLOW_BACKEND_UNAVAILABLE, "told to fail in backbone");
  REQUIRE(f.generate().ok());
  CHECK(f.call.latents == good);
}
