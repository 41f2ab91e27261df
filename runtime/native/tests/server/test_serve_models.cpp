// Several models and devices in one server: their names, their engines, and the callers that they share.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <arcflow/arcflow.hpp>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "server/library_engine.hpp"
#include "server/options.hpp"
#include "server/requests/request.hpp"
#include "server/scheduling/callers.hpp"
#include "server/scheduling/fleet.hpp"

using namespace arcflow::serve;
using namespace std::chrono_literals;

namespace {

using Devices = std::vector<std::uint32_t>;
using Opened = std::vector<std::pair<std::string, std::uint32_t>>;

ModelDescription model_of(const std::string& name, const std::string& precision, const std::string& target,
                          const Limits& side) {
  ModelDescription model;
  model.name = name;
  model.precision = precision;
  model.target = target;
  model.bundle = name + "-" + precision + "-" + target;
  model.width = model.height = side;
  model.multiple = 16;
  model.nfe = 2;
  model.max_nfe = 8;
  return model;
}

const ModelDescription kTiny = model_of("tiny", "fp16", "cpu", {32, 64, 128});
const ModelDescription kWhole = model_of("tiny", "fp32", "cpu", {32, 64, 128});
const ModelDescription kFlux = model_of("flux", "fp8", "sm90", {256, 1024, 2048});

std::string not_found(const Catalogue& catalogue, const std::string& name) {
  try {
    catalogue.find(name);
  } catch (const ApiError& error) {
    CHECK(error.status == 404);
    return error.message;
  }
  return "";
}

class Idle final : public EngineSession {
 public:
  BatchResult generate(const Shape&, const std::vector<Item>&, CancelToken&, const PartialSink&) override { return {}; }
  void warm_up(const Shape&, std::uint32_t) override {}
};

// A model that is described and never asked for images. A GPU's has no sessions.
class Described final : public Engine {
 public:
  explicit Described(ModelDescription model) : model_(std::move(model)) {}
  const ModelDescription& model() const override { return model_; }
  void check(const Shape&, const std::string&) const override {}
  std::unique_ptr<EngineSession> session() override {
    if (model_.target == "cpu") return std::make_unique<Idle>();
    throw EngineError(EngineError::Kind::kOther, "no session of " + model_.bundle);
  }
  std::unique_ptr<CancelToken> cancel_token() override { return nullptr; }
  std::string encode(const Shape&, const Image&) const override { return ""; }

 private:
  const ModelDescription model_;
};

// Opens a bundle by the name of its description, and notes it.
Fleet::Open noting(Opened& opened) {
  return [&opened](const std::string& bundle, std::uint32_t device) -> std::unique_ptr<Engine> {
    opened.emplace_back(bundle, device);
    for (const ModelDescription& model : {kTiny, kWhole, kFlux}) {
      if (model.bundle == bundle) return std::make_unique<Described>(model);
    }
    throw EngineError(EngineError::Kind::kOther, "no bundle for '" + bundle + "'");
  };
}

}  // namespace

TEST_CASE("models are found by name, bundle and alias; the first of a name has it") {
  const Catalogue catalogue({kTiny, kWhole, kFlux}, {"gpt-image-1=flux", "whole=tiny-fp32-cpu", "small=tiny"});
  const auto& all = catalogue.all();
  CHECK(all[0].id == "tiny");
  CHECK(all[1].id == "tiny-fp32-cpu");
  CHECK(all[2].id == "flux");
  const std::pair<const char*, std::size_t> names[] = {{"tiny", 0},          {"tiny-fp16-cpu", 0}, {"small", 0},
                                                       {"tiny-fp32-cpu", 1}, {"whole", 1},         {"flux", 2},
                                                       {"gpt-image-1", 2}};
  for (const auto& [name, place] : names) CHECK(catalogue.find(name) == place);
  CHECK(
      not_found(catalogue, "dall-e-3") ==
      "the model 'dall-e-3' is not served here; this server has tiny, small, tiny-fp32-cpu, whole, flux, gpt-image-1");
}

TEST_CASE("names that do not go together are a sentence") {
  const auto made = [](const std::vector<ModelDescription>& models, const std::vector<std::string>& aliases = {}) {
    return Catalogue(models, aliases).all().size();
  };
  CHECK_THROWS_WITH(made({kTiny, kFlux, kTiny}), doctest::Contains("two of the models are the bundle tiny-fp16-cpu"));
  CHECK_THROWS_WITH(made({kTiny, kFlux}, {"a=qwen"}), "--alias a=qwen: this server has tiny, flux, not qwen");
  for (const char* alias : {"tiny=flux", "flux-fp8-sm90=tiny", "flux=flux"}) {
    CHECK_THROWS_WITH(made({kTiny, kFlux}, {alias}), doctest::Contains("is taken; choose another one"));
  }
  CHECK_THROWS_WITH(made({kTiny, kFlux}, {"a=tiny", "a=flux"}), doctest::Contains("the name a is taken"));
}

TEST_CASE("a request is read by the limits of the model that it names") {
  const Catalogue catalogue({kTiny, kFlux}, {"gpt-image-1=flux"});
  const auto read = [&](const std::string& fields) {
    return parse_generation("{\"prompt\": \"a\"" + fields + "}", catalogue, {});
  };
  CHECK(read("").model == 0);
  CHECK((read("").shape == Shape{64, 64, 2}));
  CHECK(read(R"(, "model": "gpt-image-1")").model == 1);
  CHECK((read(R"(, "model": "flux")").shape == Shape{1024, 1024, 2}));
  CHECK(read(R"(, "model": "flux", "size": "512x256")").shape.width == 512);
  CHECK_THROWS_AS(read(R"(, "size": "512x256")"), ApiError);
  CHECK_THROWS_AS(read(R"(, "model": "flux", "size": "64x64")"), ApiError);
}

TEST_CASE("a size warms up the models that take it") {
  const Catalogue catalogue({kTiny, kFlux});
  const auto shapes = warm_up_shapes({"usual", "96x48", "512x512"}, catalogue);
  CHECK(shapes[0] == std::vector<Shape>{{64, 64, 2}, {96, 48, 2}});
  CHECK(shapes[1] == std::vector<Shape>{{1024, 1024, 2}, {512, 512, 2}});
  CHECK_THROWS_WITH(
      warm_up_shapes({"usual", "8x8"}, catalogue),
      "--warm-up: no model takes 8x8: the width of size is 8 px; it must be a multiple of 16 from 32 to 128");
}

TEST_CASE("options name models and devices") {
  const char* words[] = {"arcflow-serve", "--model", "a", "--device", "0,3", "--model=b"};
  const auto parsed = parse_options(6, words);
  REQUIRE(std::holds_alternative<Options>(parsed));
  CHECK(std::get<Options>(parsed).models == std::vector<std::string>{"a", "b"});
  CHECK(std::get<Options>(parsed).devices == Devices{0, 3});
  const char* twice[] = {"arcflow-serve", "--model", "a", "--model", "a"};
  const auto end = parse_options(5, twice);
  REQUIRE(std::holds_alternative<Exit>(end));
  CHECK(std::get<Exit>(end).text == "arcflow-serve: error: --model: a is there twice (see arcflow-serve --help)\n");
  const char* stray[] = {"arcflow-serve", "--model", "a", "b"};
  CHECK(std::holds_alternative<Exit>(parse_options(4, stray)));
}

TEST_CASE("every model is opened on every device, and what is wrong is found before the second one") {
  Opened opened;
  const Fleet fleet({"flux-fp8-sm90"}, {0, 2}, {}, noting(opened));
  CHECK(opened == Opened{{"flux-fp8-sm90", 0}, {"flux-fp8-sm90", 2}});
  CHECK(fleet.models()[0].engines.size() == 2);
  const auto failure = [&](const std::vector<std::string>& bundles, const Devices& devices,
                           const std::vector<std::string>& aliases = {}) -> std::string {
    opened.clear();
    try {
      const Fleet wrong(bundles, devices, aliases, noting(opened));
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  };
  CHECK(failure({"flux-fp8-sm90", "huge"}, {0, 1}) == "no bundle for 'huge'");
  CHECK(opened.size() == 2);
  CHECK(failure({"flux-fp8-sm90"}, {0, 1}, {"a=qwen"}) != "");
  CHECK(opened.size() == 1);
  CHECK(failure({"flux-fp8-sm90", "tiny-fp16-cpu"}, {0, 1}).find("--device 0,1: tiny-fp16-cpu runs on the CPU") == 0);
  CHECK(failure({"tiny-fp16-cpu"}, {1}).find("--device 1: tiny-fp16-cpu runs on the CPU") == 0);
  CHECK(failure({"tiny-fp16-cpu", "tiny-fp32-cpu"}, {0}) == "");
}

TEST_CASE("a worker of any model that cannot start is told") {
  Opened opened;
  Metrics metrics;
  Fleet fleet({"tiny-fp16-cpu", "flux-fp8-sm90"}, {0}, {}, noting(opened));
  CHECK_THROWS_WITH(fleet.start(metrics, std::vector<SchedulerOptions>(2)), "no session of flux-fp8-sm90");
}

TEST_CASE("callers have so many requests open, whichever models they are for") {
  Callers callers;
  auto first = callers.enter("a", 2);
  const auto second = callers.enter("a", 2), other = callers.enter("b", 2);
  CHECK(first != nullptr);
  CHECK(second != nullptr);
  CHECK(other != nullptr);
  CHECK(callers.enter("a", 2) == nullptr);
  CHECK(callers.enter("a", 0) != nullptr);
  first.reset();
  CHECK(callers.enter("a", 2) != nullptr);
}

// The library, with a host that has two devices. What it makes there is the same: arithmetic.
TEST_CASE("one queue over two devices of the library") {
  Log log(LogFormat::kText, stderr, "error");
  const auto open = [&log](std::uint32_t device) {
    arcflow::ModelOptions options;
    options.bundle = std::string(ARCFLOW_SOURCE_DIR) + "/engines/bundles/tiny-fp16-cpu";
    options.host = "fake";
    options.library = "devices=2,slow=20";
    options.device = device;
    return open_library(options, log, std::string(ARCFLOW_TEST_HOSTS) + "-test");
  };
  CHECK_THROWS_WITH_AS(open(2), doctest::Contains("there is no device 2"), EngineError);
  const auto one = open(0), other = open(1);
  CHECK(one->model().backend == "a fake, device 0");
  CHECK(other->model().backend == "a fake, device 1");
  ModelMetrics metrics;
  Scheduler scheduler({one.get(), other.get()}, metrics, {});
  scheduler.wait_ready();
  std::vector<std::shared_ptr<Ticket>> tickets;
  for (int i = 0; i < 2; ++i) {
    auto ticket = std::make_shared<Ticket>();
    ticket->shape = {64, 64, 2};
    ticket->prompt = "a dog";
    ticket->seeds = {7};
    ticket->arrived = Clock::now();
    ticket->deadline = ticket->arrived + 30s;
    scheduler.submit(ticket);
    tickets.push_back(std::move(ticket));
  }
  bool both = false;
  const auto watch = [&both, &metrics] {
    both = both || metrics.counts().running == 2;
    return false;
  };
  for (const auto& ticket : tickets) CHECK(scheduler.wait(ticket, watch, 1ms) == Scheduler::Outcome::kDone);
  CHECK(both);
  CHECK(tickets[0]->images[0].rgb8 == tickets[1]->images[0].rgb8);
}
