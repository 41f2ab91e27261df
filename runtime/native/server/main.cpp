// arcflow-serve: opens bundles and serves images from them until it is told to stop.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "server/library_engine.hpp"
#include "server/options.hpp"
#include "server/service.hpp"
#include "server/signals.hpp"

namespace arcflow::serve {
namespace {

constexpr int kUsage = 2;
constexpr std::size_t kSpareThreads = 2;  // for requests that are being rejected
constexpr std::size_t kUsualBatch = 32;   // at most, of the models there are
constexpr unsigned kLastAnswers = 5;      // seconds for the callers to take their answers at the end

// Ends the process if shutting down takes longer than it may. By a signal: there may be no thread to be had.
void end_after(unsigned seconds) {
  std::signal(SIGALRM, [](int) {
    constexpr char kWords[] = "arcflow-serve: error: could not shut down in time\n";
    [[maybe_unused]] const auto told = ::write(STDERR_FILENO, kWords, sizeof kWords - 1);
    std::_Exit(1);
  });
  ::alarm(seconds);
}

int fail(const std::string& message) {
  std::string line = "error: " + message;
  std::replace(line.begin(), line.end(), '\n', ' ');
  std::fprintf(stderr, "%s\n", line.c_str());
  return kUsage;
}

ConnectionRules rules_of(const Options& options) {
  ConnectionRules rules;
  // Whoever waits for an image holds a thread, so that all who may wait have one and the rest can be told.
  const std::size_t batch = options.max_batch == 0 ? kUsualBatch : options.max_batch;
  const std::size_t workers = options.workers * options.devices.size();
  rules.threads = options.models.size() * (options.queue + workers * batch) + kSpareThreads;
  rules.max_body = options.max_body;
  return rules;
}

// Listens in a thread of its own, and stops when it leaves the scope.
class Listening {
 public:
  explicit Listening(HttpServer& server) : server_(server), thread_([this] { server_.listen_after_bind(); }) {
    server_.wait_until_ready();
  }
  ~Listening() {
    server_.halt();
    thread_.join();
  }

 private:
  HttpServer& server_;
  std::thread thread_;
};

ServiceRules service_rules(const Options& options) {
  ServiceRules rules;
  rules.requests.seconds = options.timeout;
  rules.requests.images = options.max_images;
  rules.requests.nfe = options.max_nfe;
  rules.open_per_caller = options.queue_per_caller;
  if (!options.api_keys.empty()) rules.keys = ApiKeys::read(options.api_keys);
  rules.hosts = options.allowed_hosts;
  rules.cors = options.cors;
  rules.page = options.page;
  return rules;
}

Clock::duration duration_of(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

// One a model.
std::vector<SchedulerOptions> scheduling_of(const Options& options, const Catalogue& catalogue) {
  std::vector<SchedulerOptions> all;
  std::vector<std::vector<Shape>> warm_up = warm_up_shapes(options.warm_up, catalogue);
  for (const auto& entry : catalogue.all()) {
    const std::size_t most = entry.model.batch.max;
    SchedulerOptions wanted;
    wanted.workers = options.workers;
    wanted.queue = options.queue;
    wanted.batch_work = options.batch_work;
    wanted.max_batch = options.max_batch == 0 ? most : std::min(options.max_batch, most);
    wanted.batch_wait = duration_of(options.batch_wait / 1000);
    wanted.warm_up = std::move(warm_up[all.size()]);
    all.push_back(std::move(wanted));
  }
  return all;
}

Fleet load(const Options& options, Log& log) {
  return Fleet(options.models, options.devices, options.aliases, [&](const std::string& bundle, std::uint32_t device) {
    ModelOptions one = options.model;
    one.bundle = bundle;
    one.device = device;
    return open_library(one, log);
  });
}

void tell_ready(const Fleet& fleet, const std::vector<SchedulerOptions>& wanted, Log& log) {
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const Fleet::Model& served = fleet.models()[i];
    const ModelDescription& model = served.engine().model();
    log.write("info", "ready",
              {{"model", model.bundle},
               {"backend", model.backend},
               {"max_batch", static_cast<std::int64_t>(wanted[i].max_batch)},
               {"devices", static_cast<std::int64_t>(served.engines.size())},
               {"workers", static_cast<std::int64_t>(wanted[i].workers * served.engines.size())}});
  }
}

// Says that it is leaving, gives callers the delay to hear of it, and finishes what was accepted, within the grace.
// Gives whether all of it was.
bool drain(Service& service, Fleet& fleet, const Options& options) {
  service.withdraw();
  std::this_thread::sleep_for(duration_of(options.drain_delay));
  service.drain();
  fleet.drain();
  const bool whole = fleet.wait_idle(Clock::now() + duration_of(options.grace));
  if (!whole) fleet.abort();
  return whole;
}

// glibc gives threads heaps of their own, up to eight a core, each of which keeps what it once held. A thread for every
// request needs few of them.
void share_heaps() {
#if defined(__GLIBC__)
  mallopt(M_ARENA_MAX, 2);
#endif
}

int run(const Options& options) {
  share_heaps();
  Signals signals;
  Log log(options.log_format, stderr, options.log_level);
  Metrics metrics;
  HttpServer server(rules_of(options));
  Service service(server, metrics, log, service_rules(options));
  const int port = server.bind(options.host, options.port);
  if (port == 0) {
    return fail("cannot listen on " + options.host + " port " + std::to_string(options.port) + ": " +
                server.bind_error() + "; choose another --host or --port");
  }
  LogFields listening_on = {{"host", options.host}, {"port", std::int64_t{port}}};
  if (options.admin_port >= 0) {
    const int admin_port = server.bind(options.host, options.admin_port, true);
    if (admin_port == 0) {
      return fail("cannot listen on " + options.host + " port " + std::to_string(options.admin_port) + ": " +
                  server.bind_error() + "; choose another --admin-port");
    }
    listening_on.emplace_back("admin_port", std::int64_t{admin_port});
  }
  std::optional<Fleet> fleet;  // handlers use it until the server has stopped, so it outlives `listening`
  const Listening listening(server);
  log.write("info", "listening", listening_on);
  fleet.emplace(load(options, log));
  const std::vector<SchedulerOptions> wanted = scheduling_of(options, fleet->catalogue());
  fleet->start(metrics, wanted);
  signals.arm();
  service.open(*fleet);
  tell_ready(*fleet, wanted, log);
  signals.wait();
  log.write("info", "draining");
  const bool whole = drain(service, *fleet, options);
  log.write(whole ? "info" : "warning", "stopping", {{"finished", std::string(whole ? "all" : "not all")}});
  end_after(kLastAnswers);
  return whole ? 0 : 1;
}

}  // namespace

}  // namespace arcflow::serve

int main(int count, char** arguments) {
  using namespace arcflow::serve;
  try {
    const auto parsed = parse_options(count, arguments);
    if (const auto* end = std::get_if<Exit>(&parsed)) {
      std::fputs(end->text.c_str(), end->code == 0 ? stdout : stderr);
      return end->code;
    }
    return run(std::get<Options>(parsed));
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}
